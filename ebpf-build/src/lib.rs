//! Finds a Rust compiler for BPF and compiles the kernel programs with it.
//!
//! Two kinds of toolchain will do, and [`find_toolchain`] takes the first that is complete:
//!
//! * the distribution's own `rustc` with a compiled `core` for BPF (Debian's `rustc-web` and
//!   `libstd-rust-web-dev-bpf`);
//! * rustup's nightly with the `rust-src` component, which compiles `core` on the spot.
//!
//! Both need `bpf-linker`.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};
use thiserror::Error;

/// The environment variable that picks one kind of toolchain: `distribution` or `nightly`.
pub const CHOICE: &str = "PORTCULLIS_EBPF_TOOLCHAIN";

/// The environment variable that moves the cache folder (default: `portcullis` in
/// `$XDG_CACHE_HOME` or `~/.cache`).
pub const CACHE: &str = "PORTCULLIS_CACHE";

/// The file name of the compiled kernel programs.
pub const OBJECT: &str = "portcullis";

/// Why the kernel programs could not be compiled.
#[derive(Debug, Error)]
pub enum Error {
    /// No complete toolchain. Holds one line for each that was tried.
    #[error("no compiler for the kernel programs:\n{}\nrun `cargo xtask setup`", .0.join("\n"))]
    NoToolchain(Vec<String>),
    /// The choice in the environment is neither of the two.
    #[error("{CHOICE}={0} is neither `distribution` nor `nightly`")]
    UnknownChoice(String),
    /// No linker.
    #[error("bpf-linker is neither in {0} nor on PATH; run `cargo xtask setup`")]
    NoLinker(PathBuf),
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// What was to be started.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
    /// The compiler said no.
    #[error("compiling the kernel programs failed:\n{0}")]
    Compile(String),
    /// The compiled programs cannot be made smaller.
    #[error("{path}: cannot be stripped: {why}", path = .0.display(), why = .1)]
    Strip(PathBuf, String),
    /// There is no home to put a cache into.
    #[error("neither {CACHE}, XDG_CACHE_HOME nor HOME is set")]
    NoHome,
}

/// A compiler that can produce BPF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// The distribution's compiler, with its compiled `core`.
    Distribution {
        /// Path of `rustc`.
        rustc: PathBuf,
        /// What it says of itself.
        version: String,
    },
    /// rustup's nightly, which compiles `core` from `rust-src`.
    Nightly {
        /// What it says of itself.
        version: String,
    },
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Distribution { rustc, version } => {
                write!(f, "the distribution's {version} at {} (compiled core)", rustc.display())
            }
            Self::Nightly { version } => write!(f, "rustup's nightly {version} (rust-src)"),
        }
    }
}

/// The folder for everything that the project downloads or builds once for a machine.
///
/// # Errors
/// [`Error::NoHome`] if the environment names no place for it.
pub fn cache_dir() -> Result<PathBuf, Error> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from(CACHE)
        .or_else(|| from("XDG_CACHE_HOME").map(|cache| cache.join("portcullis")))
        .or_else(|| from("HOME").map(|home| home.join(".cache/portcullis")))
        .ok_or(Error::NoHome)
}

/// The folder into which set-up installs tools.
///
/// # Errors
/// As for [`cache_dir`].
pub fn tools_dir() -> Result<PathBuf, Error> {
    Ok(cache_dir()?.join("tools"))
}

/// The first complete toolchain, or the one that [`CHOICE`] asks for.
///
/// # Errors
/// [`Error::NoToolchain`] with what is missing from each.
pub fn find_toolchain() -> Result<Toolchain, Error> {
    let choice = env::var(CHOICE).ok().filter(|choice| !choice.is_empty());
    let candidates: &[fn() -> Result<Toolchain, String>] = match choice.as_deref() {
        None => &[distribution, nightly],
        Some("distribution") => &[distribution],
        Some("nightly") => &[nightly],
        Some(other) => return Err(Error::UnknownChoice(other.into())),
    };
    let mut missing = Vec::new();
    for candidate in candidates {
        match candidate() {
            Ok(toolchain) => return Ok(toolchain),
            Err(why) => missing.push(format!("  {why}")),
        }
    }
    Err(Error::NoToolchain(missing))
}

fn distribution() -> Result<Toolchain, String> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let version = first_line(Command::new(&rustc).arg("--version"))
        .map_err(|why| format!("distribution: {}: {why}", rustc.display()))?;
    let sysroot = first_line(Command::new(&rustc).args(["--print", "sysroot"]))
        .map_err(|why| format!("distribution: {version} names no sysroot: {why}"))?;
    let core = Path::new(&sysroot).join("lib/rustlib/bpfel-unknown-none/lib");
    if core.is_dir() {
        Ok(Toolchain::Distribution { rustc, version })
    } else {
        Err(format!("distribution: {version} has no core for BPF in {}", core.display()))
    }
}

fn nightly() -> Result<Toolchain, String> {
    let rustc = || {
        let mut command = Command::new("rustup");
        command.args(["run", "nightly", "rustc"]);
        command
    };
    let version = first_line(rustc().arg("--version")).map_err(|why| format!("nightly: {why}"))?;
    let sysroot = first_line(rustc().args(["--print", "sysroot"]))
        .map_err(|why| format!("nightly: {version} names no sysroot: {why}"))?;
    let source = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core");
    if source.is_dir() {
        Ok(Toolchain::Nightly { version })
    } else {
        Err(format!(
            "nightly: {version} lacks rust-src ({}); rustup component add rust-src --toolchain nightly",
            source.display()
        ))
    }
}

fn first_line(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().trim().to_owned()
    };
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Path of `bpf-linker`: the one that set-up installed, or else the one on `PATH`.
///
/// # Errors
/// [`Error::NoLinker`] if there is none.
pub fn find_linker() -> Result<PathBuf, Error> {
    let own = tools_dir()?.join("bin/bpf-linker");
    if own.is_file() {
        return Ok(own);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
        .ok_or(Error::NoLinker(own))
}

/// Compiles the package in `source` for `target` (`bpfel-unknown-none` or `bpfeb-unknown-none`),
/// with `out` as the target folder, and returns the path of the object.
///
/// # Errors
/// [`Error::Compile`] with the compiler's own words, or what kept it from starting.
pub fn compile(
    toolchain: &Toolchain,
    source: &Path,
    target: &str,
    out: &Path,
) -> Result<PathBuf, Error> {
    let linker = find_linker()?;
    let mut command = match toolchain {
        Toolchain::Distribution { rustc, .. } => {
            let mut command =
                Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
            // Stable compilers refuse `asm!` for BPF without this.
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1").arg("build");
            command
        }
        Toolchain::Nightly { .. } => {
            let mut command = Command::new("rustup");
            command.env_remove("RUSTC").args(["run", "nightly", "cargo", "build"]);
            command.arg("-Zbuild-std=core");
            command
        }
    };
    // A surrounding cargo (clippy, say) must not reach into this build.
    for name in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_MAKEFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTUP_TOOLCHAIN",
    ] {
        command.env_remove(name);
    }
    let output = command
        .current_dir(source)
        .env("RUSTFLAGS", format!("-Cdebuginfo=2 -Clinker={} -Clink-arg=--btf", linker.display()))
        .args(["--release", "--locked", "--target", target, "--target-dir"])
        .arg(out)
        .output()
        .map_err(|source| Error::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })?;
    if output.status.success() {
        let object = out.join(target).join("release").join(OBJECT);
        let stripped = out.join(OBJECT);
        strip(&object, &stripped)?;
        Ok(stripped)
    } else {
        Err(Error::Compile(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// Leaves out what only debuggers read, which is five sixths of the object. The kernel is told of
/// types and lines by `.BTF` and `.BTF.ext`, which stay, but are made from it.
fn strip(from: &Path, to: &Path) -> Result<(), Error> {
    let told = |why: String| Error::Strip(from.to_owned(), why);
    let bytes = fs::read(from).map_err(|error| told(error.to_string()))?;
    let mut builder = Builder::read(&*bytes).map_err(|error| told(error.to_string()))?;
    for section in &mut builder.sections {
        let name = &section.name;
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    // The compiler has one table of names for sections and symbols, the writer wants two.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = SHT_STRTAB;
    names.data = SectionData::SectionString;
    builder.delete_orphans();
    let mut stripped = Vec::new();
    builder.write(&mut stripped).map_err(|error| told(error.to_string()))?;
    fs::write(to, stripped).map_err(|error| Error::Strip(to.to_owned(), error.to_string()))
}
