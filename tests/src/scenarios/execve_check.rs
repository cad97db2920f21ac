//! `AT_EXECVE_CHECK` (Linux 6.14): an interpreter asks the kernel whether a file could be run,
//! without running it. The gates answer as they would at exec.

use std::{fs::File, path::Path};

use anyhow::{Context, Result, ensure};

use super::{base_policy, fresh};
use crate::{
    agent::Agent,
    attack::{self, Attack, Attempt, evil, good, install},
};

/// linux/fcntl.h, from 6.14.
const AT_EXECVE_CHECK: i32 = 0x1_0000;

/// Asks about a file; `None` if the kernel does not know the question.
fn ask(path: &Path) -> Result<Option<Attempt>> {
    // A kernel that does not know the flag refuses the call, so this process is not replaced.
    match attack::execveat(&File::open(path)?, AT_EXECVE_CHECK) {
        Ok(()) => Ok(Some(Attempt::Ran)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EPERM) => Ok(Some(Attempt::Refused)),
            Some(libc::EINVAL) => Ok(None),
            _ => Err(error).context("execveat"),
        },
    }
}

/// An unlisted file is refused by the check, and a listed one passes.
pub fn honoured() -> Result<()> {
    let lab = fresh("/tmp/execve-check")?;
    let (listed, unlisted) = (lab.join("listed"), lab.join("unlisted"));
    install(&listed, &good("execve-check")?)?;
    install(&unlisted, &evil("execve-check")?)?;
    if ask(&listed)?.is_none() {
        attack::note("execve-check", "AT_EXECVE_CHECK is not offered by this kernel");
        return Ok(());
    }
    let answer = |path| Ok(ask(path)?.unwrap_or(Attempt::Ran));
    let unlisted = || answer(&unlisted);
    let policy = base_policy(&[&listed])?;
    attack::run(&policy, &[Attack::unlisted("a check of an unlisted file", &unlisted)])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(answer(&listed)? == Attempt::Ran, "the check refuses a listed file");
    agent.stop()
}
