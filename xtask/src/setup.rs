//! Installs what building and testing need. Says what and why, does nothing that is done already,
//! and without the rights to do it prints the commands instead.

use std::{
    collections::BTreeSet, env, fmt, fs, path::Path, process::Command, thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result};
use portcullis_ebpf_build as ebpf;

use crate::{
    command::{command, run, shown, text_of},
    debian,
    kernel::{Kernel, SERIES},
};

/// The version of the linker for kernel programs that everything is tested with.
const BPF_LINKER: &str = "0.13.0";
/// The version of the checker of licences and advisories.
const CARGO_DENY: &str = "0.20.2";
/// Where Debian puts the LLVM that the linker is built against.
const LLVM: &str = "/usr/lib/llvm-22";

/// What the machine is set up for. Each includes what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum For {
    /// Building the binary.
    Building,
    /// Driving parsers with inputs that nobody thought of.
    Fuzzing,
    /// Booting a kernel with a small userland.
    Machines,
    /// Booting a Debian userland.
    Demo,
    /// All checks.
    Tests,
}

/// Set-up needs rights or a distribution that are not there. The text says what to do.
#[derive(Debug)]
pub struct NotPossibleHere(String);

impl fmt::Display for NotPossibleHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotPossibleHere {}

/// A package of Debian 12, and why it is needed.
struct Package {
    name: &'static str,
    why: &'static str,
    what_for: For,
    /// A program that shows that it is there, on other distributions.
    program: Option<&'static str>,
}

const fn package(
    name: &'static str,
    what_for: For,
    why: &'static str,
    program: Option<&'static str>,
) -> Package {
    Package { name, why, what_for, program }
}

/// What compiles the kernel programs, unless rustup's nightly can.
const COMPILER: [Package; 6] = [
    package("rustc-web", For::Building, "a Rust compiler that knows BPF", None),
    package("libstd-rust-web-dev-bpf", For::Building, "its compiled core library for BPF", None),
    package("llvm-22-dev", For::Building, "the LLVM that bpf-linker is built against", None),
    package("libzstd-dev", For::Building, "which that LLVM is linked with", None),
    package("zlib1g-dev", For::Building, "which that LLVM is linked with", None),
    package("g++", For::Building, "links bpf-linker with that LLVM", None),
];

const PACKAGES: [Package; 20] = [
    package("gcc", For::Building, "links the binaries", Some("gcc")),
    package("libc6-dev", For::Building, "the static C library", None),
    package("g++", For::Fuzzing, "compiles what drives the parsers", Some("g++")),
    package(QEMU, For::Machines, "runs real kernels, in software if need be", Some(EMULATOR)),
    package(
        "busybox-static",
        For::Machines,
        "the small userland in the virtual machines",
        Some("busybox"),
    ),
    package("cpio", For::Machines, "packs their first root filesystem", Some("cpio")),
    package("kmod", For::Machines, "indexes the kernels' modules", Some("depmod")),
    package("xz-utils", For::Machines, "unpacks modules", Some("xz")),
    package("zstd", For::Machines, "unpacks modules", Some("zstd")),
    package("gzip", For::Machines, "unpacks modules", Some("gzip")),
    package("e2fsprogs", For::Machines, "makes their disks", Some("mkfs.ext4")),
    package("xfsprogs", For::Machines, "makes a disk with shared blocks", Some("mkfs.xfs")),
    package("libc-bin", For::Machines, "finds the libraries that their programs need", Some("ldd")),
    package(
        "cryptsetup-bin",
        For::Tests,
        "makes an image that the kernel verifies as it is read",
        Some("veritysetup"),
    ),
    package(
        "openssl",
        For::Tests,
        "makes the keys, certificates and signatures that tests verify",
        Some("openssl"),
    ),
    package(
        "ima-evm-utils",
        For::Tests,
        "signs the programs whose signatures tests verify",
        Some("evmctl"),
    ),
    package(
        "linux-kbuild-6.1",
        For::Tests,
        "signs the modules whose signatures tests verify",
        None,
    ),
    package(
        "nats-server",
        For::Tests,
        "carries policies and events of the fleets in tests",
        Some("nats-server"),
    ),
    package("mmdebstrap", For::Demo, "makes the Debian root filesystem", Some("mmdebstrap")),
    package("debian-archive-keyring", For::Demo, "checks the packages that go into it", None),
];

const QEMU: &str =
    if cfg!(target_arch = "aarch64") { "qemu-system-arm" } else { "qemu-system-x86" };
const EMULATOR: &str =
    if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };

/// Makes the machine ready.
///
/// # Errors
/// [`NotPossibleHere`] with the commands to run if this process may not run them; otherwise what
/// went wrong.
pub fn setup(what_for: For) -> Result<()> {
    compiler_and_packages(what_for)?;
    tool("bpf-linker", BPF_LINKER, "links the kernel programs", &linker_features())?;
    eprintln!("kernel programs: compiled by {}", ebpf::find_toolchain()?);
    if what_for >= For::Tests {
        // Not optimised: it runs for a second, and takes minutes to optimise.
        tool("cargo-deny", CARGO_DENY, "checks licences and sources", &["--debug"])?;
    }
    if what_for >= For::Machines {
        for series in SERIES {
            Kernel::of_series(series)?;
        }
    }
    if what_for >= For::Demo {
        debian::image()?;
    }
    Ok(())
}

fn compiler_and_packages(what_for: For) -> Result<()> {
    let needs_compiler = ebpf::find_toolchain().is_err()
        || (ebpf::find_linker().is_err() && !Path::new(LLVM).is_dir() && !has_nightly());
    let wanted = COMPILER.iter().filter(|_| needs_compiler).chain(&PACKAGES);
    let wanted: Vec<_> = wanted.filter(|package| package.what_for <= what_for).collect();
    let is_debian_12 = is_debian_12();
    let missing: Vec<_> = if is_debian_12 {
        let installed = installed(&wanted)?;
        wanted.into_iter().filter(|package| !installed.contains(package.name)).collect()
    } else {
        wanted.into_iter().filter(|package| !is_there(package, needs_compiler)).collect()
    };
    if missing.is_empty() {
        return Ok(());
    }
    let names = || missing.iter().map(|package| package.name);
    let list: Vec<_> =
        missing.iter().map(|package| format!("  {:26}{}", package.name, package.why)).collect();
    let list = list.join("\n");
    if !is_debian_12 || !is_root() {
        let reason = if is_debian_12 { "needs root" } else { "knows Debian 12 only" };
        let update = apt(["update"]);
        let install =
            apt(["install", "--yes", "--no-install-recommends"].into_iter().chain(names()));
        let mut text = format!(
            "set-up {reason}. These are missing:\n{list}\nOn Debian 12, run as root:\n  {}\n  {}",
            shown(&update),
            shown(&install),
        );
        if !is_debian_12 {
            text.push_str("\nElsewhere, install the packages that hold the same.");
        }
        if needs_compiler {
            text.push_str(&format!(
                "\nTo compile the kernel programs with rustup instead:\n  rustup toolchain install \
                 nightly --component rust-src\n  cargo install bpf-linker --version {BPF_LINKER}"
            ));
        }
        return Err(NotPossibleHere(text).into());
    }
    eprintln!("installing:\n{list}");
    retry(|| run(&mut apt(["update", "-qq"])))?;
    let arguments =
        ["install", "--yes", "-qq", "--no-install-recommends"].into_iter().chain(names());
    let mut install = apt(arguments);
    retry(|| run(install.env("DEBIAN_FRONTEND", "noninteractive").stdout(log("apt")?)))
        .context("installing packages; the log is in the target folder, xtask/apt.log")
}

fn is_debian_12() -> bool {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let has = |wanted: &str| text.lines().any(|line| line.replace('"', "") == wanted);
    has("ID=debian") && has("VERSION_ID=12") && Path::new("/usr/bin/dpkg-query").is_file()
}

/// Whether what a package holds is there, on a distribution of which the packages are not known.
fn is_there(package: &Package, needs_compiler: bool) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = || env::split_paths(&path).chain(["/sbin", "/usr/sbin"].map(Into::into));
    match package.program {
        Some(program) => folders().any(|folder| folder.join(program).is_file()),
        // What cannot be seen is taken for there, but for the compiler, which was looked for.
        None => !needs_compiler || !COMPILER.iter().any(|one| one.name == package.name),
    }
}

/// Where a talkative program's output goes.
fn log(name: &str) -> Result<fs::File> {
    let path = crate::build::work_dir()?.join(format!("{name}.log"));
    fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))
}

fn has_nightly() -> bool {
    matches!(ebpf::find_toolchain(), Ok(ebpf::Toolchain::Nightly { .. }))
}

fn apt<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let mut apt = command("apt-get", ["-o", "Acquire::Retries=3"]);
    apt.args(arguments);
    apt
}

/// Those of the packages that are installed.
fn installed(packages: &[&Package]) -> Result<BTreeSet<String>> {
    let names = packages.iter().map(|package| package.name);
    let mut query =
        command("dpkg-query", ["--show", "--showformat", "${Package} ${db:Status-Status}\\n"]);
    // Fails for names that it never heard of, but still answers for the others.
    let output = query.args(names).output().context("asking dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed = text.lines().filter_map(|line| line.strip_suffix(" installed"));
    Ok(installed.map(str::to_owned).collect())
}

/// Features to build the linker with: Debian's LLVM, or the one that rustup's compiler brings.
fn linker_features() -> Vec<&'static str> {
    match ebpf::find_toolchain() {
        Ok(ebpf::Toolchain::Nightly { .. }) if !Path::new(LLVM).is_dir() => vec![],
        _ => vec!["--no-default-features", "--features", "llvm-22"],
    }
}

/// Installs a tool of crates.io into the cache folder, if it is not there in the right version.
fn tool(name: &str, version: &str, why: &str, features: &[&str]) -> Result<()> {
    let folder = ebpf::tools_dir()?;
    let own = folder.join("bin").join(name);
    let says = |program: &Path| text_of(Command::new(program).arg("--version")).unwrap_or_default();
    let is_right = |program: &Path| says(program).split_whitespace().any(|word| word == version);
    if is_right(&own) || is_right(Path::new(name)) {
        return Ok(());
    }
    eprintln!("installing {name} {version}: {why}");
    let root = folder.to_string_lossy().into_owned();
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut install =
        command(&cargo, ["install", "--quiet", "--locked", "--root", &root, "--version", version]);
    install
        .args(features)
        .arg(name)
        // A surrounding build must not reach into this one.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .env("CARGO_NET_RETRY", "5")
        .env("LLVM_PREFIX", LLVM);
    retry(|| run(&mut install)).with_context(|| format!("installing {name}"))
}

/// Tries three times: downloads break.
fn retry(mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    for wait in [2, 10] {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("{error:#}; trying again in {wait} s"),
        }
        sleep(Duration::from_secs(wait));
    }
    attempt()
}

/// Whether this process is root.
fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    // Real, effective, saved, filesystem.
    uid.and_then(|uid| uid.split_whitespace().nth(1)).is_some_and(|uid| uid == "0")
}
