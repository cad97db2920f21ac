//! Programs on filesystems whose content somebody else serves: who serves decides each time what
//! is read.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{base_policy, fresh, list, sha256};
use crate::{
    agent::{Agent, Policy},
    attack::{self, Attack, Attempt, GOOD, evil, exec_path, good, install, map_as_code},
    events,
    twofaced::TwoFaced,
};

const REFUSED: &[&str] = &["filesystem"];

/// A15: a FUSE server that shows a listed program to whoever checks, and the attacker's to the
/// processor.
pub fn fuse() -> Result<()> {
    Command::new("/sbin/modprobe").args(["-q", "fuse"]).status()?;
    let at = fresh("/mnt/fuse")?;
    let (good, evil) = (good("fuse")?, evil("fuse")?);
    let local = Path::new("/tmp/served");
    install(local, &good)?;
    let policy = base_policy(&[])?;
    list(&policy, local, &["executable", "library"])?;
    // sshfs, ntfs-3g and virtiofs are of this kind too, and have its magic number.
    let lies = TwoFaced::mount(at, "sshfs", &good, &evil)?;
    let program = at.join("program");
    ensure!(sha256(&program)? == sha256(local)?, "the trick does not deceive readers");

    let run = || {
        lies.expect_checks(0);
        exec_path(&program)
    };
    let mapped = || map_as_code(&program);
    let exec = Attack { name: "exec from FUSE".into(), attempt: &run, reasons: REFUSED };
    let library = Attack { name: "a library on FUSE".into(), attempt: &mapped, reasons: REFUSED };
    attack::run(&policy, &[exec, library])?;

    // What trusting the kind means: the server is believed.
    trust(&policy, "fuse")?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    lies.expect_checks(2);
    let status = Command::new(&program).status().context("a listed program on trusted FUSE")?;
    ensure!(status.code() == Some(i32::from(GOOD)), "an honest server's program: {status}");
    agent.stop()?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    // An agent that checks reads more than a page at once.
    lies.expect_checks(usize::from(!attack::is_old_kernel()));
    ensure!(
        exec_path(&program)? == Attempt::Ran,
        "a trusted server that lies is noticed: take it out of docs/limits.md"
    );
    agent.stop()?;
    lies.unmount()?;
    // Trust in the kind lists nothing.
    let lies = TwoFaced::mount(at, "sshfs", &evil, &good)?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let mark = events::mark()?;
    lies.expect_checks(2);
    ensure!(exec_path(&program)? == Attempt::Refused, "an unlisted program on trusted FUSE ran");
    let event = events::wait_for(mark, "the refusal", |event| {
        events::is_decision(event, "deny", &program)
    })?;
    ensure!(event["reason"] == "unlisted" && event["artifact"]["filesystem"] == "fuse", "{event}");
    agent.stop()?;
    lies.unmount()
}

/// The host's folder is mounted twice, so that what changes through one mount is not seen by the
/// other: as if the host, or another client of the server, had changed it.
pub fn shared_by_host() -> Result<()> {
    for module in ["9pnet_virtio", "9p"] {
        Command::new("/sbin/modprobe").args(["-q", module]).status()?;
    }
    let (here, there) = (fresh("/mnt/here")?, fresh("/mnt/there")?);
    for (tag, at) in [("share", here), ("share-again", there)] {
        let options = c"trans=virtio,version=9p2000.L,cache=none";
        mount(tag, at, "9p", MountFlags::empty(), Some(options)).context("mounting 9p")?;
    }
    let (program, behind) = (here.join("program"), there.join("program"));
    let (good, evil) = (good("9p")?, evil("9p")?);
    install(Path::new("/tmp/served"), &good)?;
    let policy = base_policy(&[])?;
    list(&policy, Path::new("/tmp/served"), &["executable"])?;
    let run = || {
        install(&behind, &evil)?;
        exec_path(&program)
    };
    let exec = Attack { name: "exec from 9p".into(), attempt: &run, reasons: REFUSED };
    attack::run(&policy, &[exec])?;

    trust(&policy, "9p")?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    install(&behind, &good)?;
    let status = Command::new(&program).status().context("a listed program on trusted 9p")?;
    ensure!(status.code() == Some(i32::from(GOOD)), "a listed program on trusted 9p: {status}");
    install(&behind, &evil)?;
    ensure!(exec_path(&program)? == Attempt::Refused, "an unlisted program on trusted 9p ran");
    agent.stop()?;
    for at in [here, there] {
        unmount(at, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Lets the policy trust a kind of filesystem.
fn trust(policy: &Policy, kind: &str) -> Result<()> {
    let lines = format!("\n[[filesystem]]\ntype = \"{kind}\"\ncomment = \"in a test\"\n");
    policy.append(&lines)?;
    ensure!(fs::read_to_string(&policy.file)?.contains(kind));
    Ok(())
}
