//! Building the binaries that go onto a device and into the virtual machines.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    command::{run, text_of},
    root,
};

/// What was built.
pub struct Built {
    /// The static `portcullis`.
    pub agent: PathBuf,
    /// The static first process and scenarios of the virtual machines.
    pub guest: PathBuf,
}

/// Builds both, static and optimised.
pub fn build() -> Result<Built> {
    let target = host_target()?;
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(root())
        // Static, so that one binary runs on every device; the target is named so that build
        // scripts and macros, which run here, are not linked that way. Packed relocations (binutils 2.38,
        // glibc 2.36) are a megabyte less to hash.
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static -Clink-arg=-Wl,-z,pack-relative-relocs")
        .args(["build", "--release", "--quiet", "--target", &target])
        .args(["--package", "portcullis", "--package", "portcullis-tests"]);
    run(&mut command)?;
    let folder = target_dir().join(&target).join("release");
    Ok(Built { agent: folder.join("portcullis"), guest: folder.join("portcullis-guest") })
}

/// The target triple of this machine.
pub fn host_target() -> Result<String> {
    let text = text_of(Command::new("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not name its host")?.to_owned())
}

/// Cargo's target folder.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A folder for what is made on the way, such as consoles of failed scenarios.
pub fn work_dir() -> Result<PathBuf> {
    let folder = target_dir().join("xtask");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
