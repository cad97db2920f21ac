//! Stock kernels from the machine's own package lists or another release's, unpacked and never
//! installed.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use portcullis_ebpf_build::cache_dir;

use crate::{
    command::{command, quietly, text_of},
    suites::Suite,
};

/// The series that everything is tested on.
pub const SERIES: [&str; 2] = ["6.1", "6.12"];

/// A series whose hooks cannot hash files, of which some is tested too.
pub const OLD: &str = "5.10";

/// What stands for the newest kernel that Debian has.
pub const NEWEST: &str = "newest";

/// Which kernel a command boots.
#[derive(clap::Args)]
pub struct Which {
    /// The kernel to boot: a series (5.10, 6.1, 6.12, newest …) or the path of an image
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// The modules of a kernel that is named by its image
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
}

impl Which {
    pub fn find(&self) -> Result<Kernel> {
        Kernel::find(&self.kernel, self.modules.as_deref())
    }
}

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

    /// Whether its hooks cannot hash files.
    pub fn is_old(&self) -> bool {
        self.name == OLD
    }

    /// What its command line needs so that BPF is among its security modules.
    pub fn needs(&self) -> &'static str {
        if self.is_old() { "lsm=lockdown,yama,apparmor,bpf" } else { "" }
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
        let without_apt =
            || format!("no {series} kernel without apt; name one: --kernel VMLINUZ --modules DIR");
        let suite = Suite::own();
        let mut packages = packages(&suite, series).with_context(without_apt)?;
        if series == NEWEST || packages.is_empty() {
            let suite = Suite::of(release_with(series))?;
            if let Some(kernel) = Self::from(&suite, series).with_context(without_apt)? {
                return Ok(kernel);
            }
            packages = self::packages(&suite, "")?;
        } else if let Some(kernel) = Self::of_packages(&suite, &packages)? {
            return Ok(kernel);
        }
        let there: BTreeSet<_> = packages.iter().map(|package| series_of(package)).collect();
        bail!(
            "no package of a {series} kernel can be had; there are {}",
            there.into_iter().collect::<Vec<_>>().join(", ")
        )
    }

    /// A kernel of another release, whose lists may not be here yet or be too old.
    fn from(suite: &Suite, series: &str) -> Result<Option<Self>> {
        let known = packages(suite, series)?;
        if !known.is_empty()
            && (suite.is_fresh() || series != NEWEST)
            && let Some(kernel) = Self::of_packages(suite, &known)?
        {
            return Ok(Some(kernel));
        }
        suite.update()?;
        Self::of_packages(suite, &packages(suite, series)?)
    }

    /// The first of the packages that is unpacked already or can be downloaded.
    fn of_packages(suite: &Suite, packages: &[String]) -> Result<Option<Self>> {
        let folder = cache_dir()?.join("kernels");
        for package in packages {
            let series = series_of(package);
            if let Some(kernel) = unpacked(&folder.join(package), &series) {
                return Ok(Some(kernel));
            }
            fs::create_dir_all(&folder)?;
            let work = tempfile::tempdir_in(&folder)?;
            eprintln!("downloading {package}, a kernel to test on, from {}", suite.name());
            // The lists may be older than the archive, which then has only newer ones.
            if let Err(error) = suite.download(&parts(suite, package)?, work.path()) {
                eprintln!("{package} cannot be had: {error:#}");
                continue;
            }
            unpack(work.path(), &folder.join(package))?;
            return unpacked(&folder.join(package), &series)
                .with_context(|| format!("{package} holds no kernel"))
                .map(Some);
        }
        Ok(None)
    }
}

/// The release that has kernels which the machine's own does not.
fn release_with(series: &str) -> &'static str {
    if numbers(series) == [5, 10] { "bullseye" } else { "sid" }
}

/// «linux-image-6.1.0-56-amd64» is of the series 6.1.
fn series_of(package: &str) -> String {
    let numbers: Vec<_> = numbers(package).iter().take(2).map(u32::to_string).collect();
    numbers.join(".")
}

/// Names of the packages of a series, or of every kernel, newest first.
fn packages(suite: &Suite, series: &str) -> Result<Vec<String>> {
    const IMAGE: &str = "linux-image-";
    let architecture = text_of(&mut command("dpkg", ["--print-architecture"]))?;
    let is_version = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    let prefix = match series {
        "" | NEWEST => IMAGE.to_owned(),
        series => format!("{IMAGE}{series}."),
    };
    let suffix = format!("-{}", architecture.trim());
    let mut found: Vec<_> = suite
        .names(&prefix)?
        .into_iter()
        // Not the names without a version, which stand for the newest.
        .filter(|name| name.strip_prefix(IMAGE).is_some_and(is_version) && numbers(name).len() > 2)
        .filter(|name| name.ends_with(&suffix))
        // Not the variants: cloud, real-time.
        .filter(|name| {
            !["cloud", "rt"].iter().any(|variant| name.contains(&format!("-{variant}-")))
        })
        .map(|name| (numbers(&name), name))
        .collect();
    found.sort();
    Ok(found.into_iter().rev().map(|(_, name)| name).collect())
}

/// The packages that hold what one is named after: from 7.0 on, the image and the modules lie in
/// two that it depends on.
fn parts(suite: &Suite, package: &str) -> Result<Vec<String>> {
    let parts =
        ["linux-binary-", "linux-modules-"].map(|part| package.replacen("linux-image-", part, 1));
    for part in &parts {
        if !suite.names(part)?.contains(part) {
            return Ok(vec![package.to_owned()]);
        }
    }
    Ok(parts.into())
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// Unpacks the archives in `work`. Moved into place whole, so that what broke on the way is never
/// taken for what did not.
fn unpack(work: &Path, to: &Path) -> Result<()> {
    let archives: Vec<_> =
        fs::read_dir(work)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let unpacked = work.join("unpacked");
    for archive in archives {
        quietly(Command::new("dpkg").arg("-x").arg(&archive).arg(&unpacked))?;
    }
    index_modules(&modules_below(&unpacked)?)?;
    match fs::rename(&unpacked, to) {
        // Another command was here first.
        Err(_) if to.is_dir() => Ok(()),
        renamed => Ok(renamed?),
    }
}

fn unpacked(folder: &Path, series: &str) -> Option<Kernel> {
    let modules = modules_below(folder).ok()?;
    // From 7.0 on it lies among the modules.
    let images = [
        folder.join("boot").join(format!("vmlinuz-{}", file_name(&modules))),
        modules.join("vmlinuz"),
    ];
    let image = images.into_iter().find(|image| image.is_file())?;
    Some(Kernel { image, modules, name: series.to_owned() })
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
