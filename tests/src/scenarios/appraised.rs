//! Kernels whose gates cannot hash: the agent does it before files are used.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::Signal,
};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, PATIENCE, json},
    attack::{Attempt, EVIL, GOOD, evil, exec_descriptor, exec_path, good, install, library_runs},
    events,
};

/// What is listed runs, whenever and wherever it comes; what is not does not; and a dead agent
/// changes neither for what was known.
pub fn by_agent() -> Result<()> {
    let lab = fresh("/data/appraised")?;
    let (listed, late, library) = (lab.join("listed"), lab.join("late"), lab.join("libevil.so"));
    install(&listed, &good("appraised")?)?;
    install(&library, &fs::read("/files/libevil.so")?)?;
    let policy = base_policy(&[])?;
    list(&policy, &listed, &["executable"])?;
    list(&policy, Path::new("/files/libevil.so"), &["library"])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;

    // Opened for writing without a change: the digest is gone, and comes back.
    ensure!(runs(&listed)?);
    drop(OpenOptions::new().write(true).open(&listed)?);
    eventually("a listed program after it was open for writing", || runs(&listed))?;
    // The same content in a new file, and other content in the same.
    install(&late, &good("appraised")?)?;
    ensure!(runs(&late)?, "a listed program in a new file");
    fs::write(&late, evil("appraised")?)?;
    ensure!(exec_path(&late)? == Attempt::Refused, "a program that was changed");

    // A library in a folder that no listed library lay in is seen when it was refused.
    let preload = || library_runs(Command::new("/usr/bin/true").env("LD_PRELOAD", &library));
    let mark = events::mark()?;
    ensure!(preload()? == Attempt::Refused, "nobody has hashed this library yet");
    events::wait_for(mark, "the refused library", |event| {
        event["reason"] == "not-appraised"
            && event["artifact"]["path"] == "/data/appraised/libevil.so"
    })?;
    eventually("a listed library after it was refused", || Ok(preload()? == Attempt::Ran))?;

    // Listed content that changes after it was hashed, by a descriptor that was never opened.
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut memory = File::from(memfd_create("appraised", flags)?);
    memory.write_all(&good("appraised")?)?;
    ensure!(exec_descriptor(&memory)? == Attempt::Refused, "not sealed");
    rustix::fs::ftruncate(&memory, 0)?;
    rustix::fs::seek(&memory, rustix::fs::SeekFrom::Start(0))?;
    memory.write_all(&evil("appraised")?)?;
    fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    ensure!(exec_descriptor(&memory)? == Attempt::Refused, "changed after it was looked at");

    let known = |status: &serde_json::Value| {
        let rows = status["checks"].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["id"] == "appraisal").unwrap_or_default()
    };
    println!("  {}", known(&json(&["status", "--json"])?));

    agent.signal(Signal::KILL)?;
    ensure!(runs(&listed)?, "what was known is known without the agent");
    let unknown = lab.join("unknown");
    install(&unknown, &good("appraised")?)?;
    ensure!(exec_path(&unknown).is_ok_and(|attempt| attempt == Attempt::Refused));
    install(&unknown, &evil("unknown")?)?;
    ensure!(exec_path(&unknown)? == Attempt::Refused, "an unlisted program after the agent died");
    // And it can be started again.
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(runs(&unknown).is_err() || exec_path(&unknown)? == Attempt::Refused);
    install(&unknown, &good("appraised")?)?;
    ensure!(runs(&unknown)?, "a listed program after the agent came back");
    agent.stop()
}

/// Whether a program runs that ends as listed ones do.
fn runs(path: &Path) -> Result<bool> {
    match Command::new(path).status() {
        Ok(status) => {
            ensure!(status.code() != Some(i32::from(EVIL)), "{} is not listed", path.display());
            Ok(status.code() == Some(i32::from(GOOD)))
        }
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds()? {
        ensure!(Instant::now() < end, "{what} is still refused");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
