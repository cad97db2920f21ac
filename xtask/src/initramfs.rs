//! The first root filesystem of a virtual machine: a small userland, our binaries, and the modules
//! that a scenario may need.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    build::Built,
    command::{command, quietly, text_of},
    kernel::Kernel,
};

/// What goes in.
pub struct Contents<'a> {
    /// Whose modules.
    pub kernel: &'a Kernel,
    /// Our binaries.
    pub built: &'a Built,
    /// A folder that appears as `/files`.
    pub files: Option<&'a Path>,
    /// The command to run, as words.
    pub command: &'a [String],
}

/// Modules that scenarios use; those that the kernel has built in are left out.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "crc32c_generic",
    "ext4",
    "xfs",
    "overlay",
    "loop",
    "dm_mod",
    "dm_verity",
    "squashfs",
    "vfat",
    "nls_cp437",
    "nls_ascii",
    "fuse",
    "9p",
    "9pnet_virtio",
    "xhci_pci",
    "usb_storage",
    "uas",
    "sd_mod",
    "usbhid",
    "hid_generic",
    "dummy_hcd",
    "libcomposite",
    "usb_f_mass_storage",
    "usb_f_hid",
    "dummy",
    "cfg80211",
    "af_alg",
    "algif_hash",
    "sha256_generic",
    "sha512_generic",
    "autofs4",
    "binfmt_misc",
    "efivarfs",
];

/// Dynamically linked programs of this machine that scenarios attack and run.
const PROGRAMS: &[&str] = &[
    "/bin/bash",
    "/usr/bin/true",
    "/usr/bin/cat",
    "/usr/bin/ls",
    "/usr/bin/sha256sum",
    "/usr/bin/env",
    "/usr/bin/id",
    "/usr/bin/cp",
    "/usr/bin/sleep",
    "/usr/bin/xz",
];

/// Writes the archive to `out`.
pub fn write(contents: &Contents<'_>, out: &Path) -> Result<()> {
    let work = tempfile::tempdir()?;
    let root = work.path();
    for folder in ["etc", "proc", "sys", "dev", "run", "tmp", "root", "mnt", "portcullis"] {
        fs::create_dir_all(root.join(folder))?;
    }
    // As on Debian and most others.
    for merged in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(merged))?;
        symlink(Path::new("usr").join(merged), root.join(merged))?;
    }
    copy(Path::new("/bin/busybox"), &root.join("bin/busybox")).context("the static busybox")?;
    dynamic_programs(root)?;
    let applets = text_of(&mut command("/bin/busybox", ["--list"]))?;
    for applet in applets.lines() {
        let name = root.join("bin").join(applet);
        if !name.exists() {
            symlink("busybox", name)?;
        }
    }
    // The kernel calls it by this name to load modules on demand.
    symlink("../bin/busybox", root.join("sbin/modprobe"))?;
    symlink("../bin/portcullis-guest", root.join("sbin/init"))?;
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n\
         portcullis-network:x:990:990::/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\nportcullis-network:x:990:\n")?;

    copy(&contents.built.guest, &root.join("usr/bin/portcullis-guest"))?;
    symlink("/usr/bin/portcullis-guest", root.join("init"))?;
    copy(&contents.built.agent, &root.join("usr/bin/portcullis"))?;
    modules(contents.kernel, root)?;
    if let Some(files) = contents.files {
        quietly(Command::new("cp").arg("-a").arg(files).arg(root.join("files")))
            .with_context(|| format!("cannot take {} along", files.display()))?;
    } else {
        fs::create_dir(root.join("files"))?;
    }
    let words: Vec<u8> =
        contents.command.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    fs::write(root.join("portcullis/command"), words)?;

    // Names may hold anything, so they go to cpio ended by zeros.
    let mut find = Command::new("find")
        .args([".", "-print0"])
        .current_dir(root)
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio =
        command("cpio", ["--null", "--create", "--format=newc", "--owner=0:0", "--quiet"]);
    let status = cpio.current_dir(root).stdin(names).stdout(File::create(out)?).status()?;
    if !find.wait()?.success() || !status.success() {
        bail!("cpio could not write {}", out.display());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// Programs with the libraries and the loader that they name.
fn dynamic_programs(root: &Path) -> Result<()> {
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS.iter().copied() {
        let name = Path::new(program).file_name().context("a program without a name")?;
        copy(Path::new(program), &root.join("usr/bin").join(name))?;
        let listed = text_of(&mut command("ldd", [program]))?;
        let paths =
            listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
        libraries.extend(paths);
    }
    for library in libraries {
        // The loader has a name in a folder of its own, and lies among the libraries.
        let file = fs::canonicalize(&library)?;
        let folder = fs::canonicalize(library.parent().context("a library in no folder")?)?;
        let name = folder.join(library.file_name().context("a library without a name")?);
        let to = |path: &Path| Ok::<_, anyhow::Error>(root.join(path.strip_prefix("/")?));
        for path in [&file, &name] {
            fs::create_dir_all(to(path)?.parent().context("a library in no folder")?)?;
        }
        copy(&file, &to(&file)?)?;
        if name != file && !to(&name)?.exists() {
            symlink(&file, to(&name)?)?;
        }
    }
    Ok(())
}

/// Modules with those that they need, unpacked, and an index for modprobe.
fn modules(kernel: &Kernel, root: &Path) -> Result<()> {
    let index = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let version = kernel.modules.file_name().context("modules without a version")?;
    let to = root.join("lib/modules").join(version);
    let mut wanted = BTreeSet::new();
    for name in MODULES.iter().copied() {
        let line = index
            .lines()
            .find(|line| line.split(':').next().is_some_and(|path| module_name(path) == name));
        // What is not there is built in; a scenario that misses it fails with a message of its own.
        if let Some((path, needs)) = line.and_then(|line| line.split_once(':')) {
            wanted.insert(path);
            wanted.extend(needs.split_whitespace());
        }
    }
    for path in wanted {
        let from = kernel.modules.join(path);
        let plain = to.join(path.trim_end_matches(".xz").trim_end_matches(".zst"));
        fs::create_dir_all(plain.parent().context("a module in no folder")?)?;
        let unpack = match from.extension().map(OsStr::as_bytes) {
            Some(b"xz") => Some("xz"),
            Some(b"zst") => Some("zstd"),
            _ => None,
        };
        match unpack {
            None => copy(&from, &plain)?,
            Some(program) => {
                let content = quietly(Command::new(program).arg("-dc").arg(&from))?.stdout;
                fs::write(&plain, content)?;
            }
        }
    }
    for list in ["modules.builtin", "modules.order"] {
        if kernel.modules.join(list).is_file() {
            copy(&kernel.modules.join(list), &to.join(list))?;
        }
    }
    quietly(Command::new("/sbin/depmod").arg("-b").arg(root).arg(version))?;
    Ok(())
}

/// «a/b/usb-storage.ko.xz» is `usb_storage`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}
