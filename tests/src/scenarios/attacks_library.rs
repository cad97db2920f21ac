//! Libraries that the policy does not list, brought into listed programs.

use std::{fs, path::Path, process::Command};

use anyhow::Result;

use super::{base_policy, fresh, list};
use crate::attack::{self, Attack, install, library_runs, map_as_code};

/// A03: `LD_PRELOAD`, `LD_AUDIT`, `LD_LIBRARY_PATH`, dlopen, and mapping by hand.
pub fn unlisted() -> Result<()> {
    let lab = fresh("/tmp/library")?;
    let library = lab.join("libevil.so");
    install(&library, &fs::read("/files/libevil.so")?)?;
    let program = Path::new("/files/needs_evil");
    let policy = base_policy(&[])?;
    list(&policy, program, &["executable"])?;

    let true_with =
        |variable: &str| library_runs(Command::new("/usr/bin/true").env(variable, &library));
    let preload = || true_with("LD_PRELOAD");
    let audit = || true_with("LD_AUDIT");
    let library_path = || library_runs(Command::new(program).env("LD_LIBRARY_PATH", lab));
    let dlopen = || {
        let load = format!("enable -f {} nothing", library.display());
        library_runs(Command::new("/usr/bin/bash").args(["-c", &load]))
    };
    let by_hand = || map_as_code(&library);
    let attacks: [(&str, &dyn Fn() -> Result<attack::Attempt>); 5] = [
        ("LD_PRELOAD", &preload),
        ("LD_AUDIT", &audit),
        ("LD_LIBRARY_PATH", &library_path),
        ("dlopen", &dlopen),
        ("mmap", &by_hand),
    ];
    attack::run(&policy, &attacks.map(|(name, attempt)| Attack::unlisted(name, attempt)))
}
