//! Stock kernels from the machine's own package lists, unpacked and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use portcullis_ebpf_build::cache_dir;

use crate::command::{command, quietly, text_of};

/// The series that everything is tested on.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// A kernel that a virtual machine can boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The image.
    pub image: PathBuf,
    /// Its modules: the folder that is named after its version.
    pub modules: PathBuf,
    /// How it is called in output.
    pub name: String,
}

impl Kernel {
    /// A kernel by series («6.1») or by the path of its image, with `modules` in that case.
    pub fn find(what: &str, modules: Option<&Path>) -> Result<Self> {
        if what.contains('/') || Path::new(what).is_file() {
            let modules =
                modules.context("a kernel named by its image needs --modules DIR as well")?;
            return Self::of_files(Path::new(what), modules);
        }
        if modules.is_some() {
            bail!("--modules goes with a kernel named by its image, not with {what}");
        }
        Self::of_series(what)
    }

    fn of_files(image: &Path, modules: &Path) -> Result<Self> {
        if !image.is_file() {
            bail!("no kernel image {}", image.display());
        }
        let modules = modules_folder(modules)?;
        index_modules(&modules)?;
        Ok(Self { image: image.to_owned(), name: file_name(&modules), modules })
    }

    /// The newest of a series, downloaded if it is not in the cache.
    pub fn of_series(series: &str) -> Result<Self> {
        let folder = cache_dir()?.join("kernels");
        let packages = packages(series).with_context(|| {
            format!("no {series} kernel without apt; name one: --kernel VMLINUZ --modules DIR")
        })?;
        for package in &packages {
            if let Some(kernel) = unpacked(&folder.join(package), series) {
                return Ok(kernel);
            }
            fs::create_dir_all(&folder)?;
            let work = tempfile::tempdir_in(&folder)?;
            eprintln!("downloading {package}, a kernel to test on");
            // The lists may be older than the archive, which then has only newer ones.
            if let Err(error) = download(package, work.path()) {
                eprintln!("{package} cannot be had: {error:#}");
                continue;
            }
            unpack(work.path(), &folder.join(package))?;
            return unpacked(&folder.join(package), series)
                .with_context(|| format!("{package} holds no kernel"));
        }
        bail!(
            "no package of a {series} kernel in the machine's package lists; try `apt-get update`"
        )
    }
}

/// Names of the packages of a series, newest first.
fn packages(series: &str) -> Result<Vec<String>> {
    let architecture = text_of(&mut command("dpkg", ["--print-architecture"]))?;
    let prefix = format!("linux-image-{series}.");
    let suffix = format!("-{}", architecture.trim());
    let names = text_of(&mut command("apt-cache", ["pkgnames", &prefix]))?;
    let mut found: Vec<_> = names
        .lines()
        .filter(|name| name.ends_with(&suffix))
        // Not the variants: cloud, real-time.
        .filter(|name| {
            !["cloud", "rt"].iter().any(|variant| name.contains(&format!("-{variant}-")))
        })
        .map(|name| (numbers(name), name.to_owned()))
        .collect();
    found.sort();
    Ok(found.into_iter().rev().map(|(_, name)| name).collect())
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn download(package: &str, to: &Path) -> Result<()> {
    let options = ["-q", "-o", "Acquire::Retries=3", "-o", "APT::Sandbox::User=root"];
    quietly(command("apt-get", options).args(["download", package]).current_dir(to))?;
    Ok(())
}

/// Unpacks the one archive in `work`. Moved into place whole, so that what broke on the way is
/// never taken for what did not.
fn unpack(work: &Path, to: &Path) -> Result<()> {
    let archive = fs::read_dir(work)?.next().context("nothing was downloaded")??.path();
    let unpacked = work.join("unpacked");
    quietly(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    index_modules(&modules_below(&unpacked)?)?;
    fs::rename(&unpacked, to)?;
    Ok(())
}

fn unpacked(folder: &Path, series: &str) -> Option<Kernel> {
    let modules = modules_below(folder).ok()?;
    let image = folder.join("boot").join(format!("vmlinuz-{}", file_name(&modules)));
    image.is_file().then(|| Kernel { image, modules, name: series.to_owned() })
}

/// The folder of modules in an unpacked package; newer ones have it below `usr`.
fn modules_below(package: &Path) -> Result<PathBuf> {
    let candidates = ["lib/modules", "usr/lib/modules"].map(|below| package.join(below));
    let folder =
        candidates.iter().find(|folder| folder.is_dir()).context("no folder of modules")?;
    modules_folder(folder)
}

/// The folder that holds `kernel`, given it or its parent.
fn modules_folder(folder: &Path) -> Result<PathBuf> {
    if folder.join("kernel").is_dir() {
        return Ok(folder.to_owned());
    }
    let inner = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.join("kernel").is_dir());
    inner.with_context(|| format!("no modules of a kernel in {}", folder.display()))
}

/// Writes `modules.dep`, which packages do not carry.
fn index_modules(modules: &Path) -> Result<()> {
    if modules.join("modules.dep").is_file() {
        return Ok(());
    }
    // depmod wants a root that has lib/modules/VERSION.
    let root = tempfile::tempdir()?;
    let below = root.path().join("lib/modules");
    fs::create_dir_all(&below)?;
    let version = file_name(modules);
    std::os::unix::fs::symlink(fs::canonicalize(modules)?, below.join(&version))?;
    quietly(Command::new("/sbin/depmod").arg("-b").arg(root.path()).arg(&version))?;
    Ok(())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
