//! What an older version, or a fault, leaves of pins; and a kernel that tells nothing of its types.

use std::{fs, io, path::Path};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{
    device::{Baseline, Device, LAB},
    invariants,
    random::Random,
};
use crate::agent::{LOG, expect};

const ROOT: &str = "/sys/fs/bpf/portcullis";
const TYPES: &str = "/sys/kernel/btf";

/// What lies in the folder of pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Junk {
    /// A folder with nothing in it.
    Empty,
    /// Folders in a folder.
    Nested,
    /// A link to a folder elsewhere.
    Link,
    /// A name that is no agent's.
    Strange,
}

impl Junk {
    pub const ALL: [Self; 4] = [Self::Empty, Self::Nested, Self::Link, Self::Strange];
}

/// Starts an agent where something else lies among the pins. Nobody puts it there while gates enforce; gates
/// that audit, and those of older agents, keep nobody from it.
pub fn with_junk(device: &mut Device, junk: Junk) -> Result<()> {
    let version = device.version;
    let enforces = device.baseline == Baseline::Signed;
    if !enforces {
        expect(0, &["mode", "audit"])?;
    }
    device.kill()?;
    let precious = Path::new(LAB).join("precious");
    fs::create_dir_all(&precious)?;
    fs::write(precious.join("file"), "")?;
    let put = match junk {
        Junk::Empty => fs::create_dir(format!("{ROOT}/agent-1-0")),
        Junk::Nested => fs::create_dir_all(format!("{ROOT}/agent-1-0/folder/another")),
        Junk::Link => std::os::unix::fs::symlink(&precious, format!("{ROOT}/agent-1-0")),
        Junk::Strange => fs::create_dir(format!("{ROOT}/strange")),
    };
    if enforces {
        let refused = put.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        ensure!(refused, "anybody may put things among the pins");
        invariants::gates_hold(&[version])?;
    } else {
        put.context("something among the pins of an agent that audits")?;
    }
    device.after_restart = version;
    device.start()?;
    ensure!(precious.join("file").exists(), "a link among the pins was followed");
    invariants::all(device, &[version])?;
    Ok(())
}

/// Removes some of a killed agent's pins, which only an agent that audits lets anybody do.
pub fn half_removed(device: &mut Device, random: &mut Random) -> Result<()> {
    let version = device.version;
    expect(0, &["mode", "audit"])?;
    device.kill()?;
    let mut removed = 0;
    for folder in fs::read_dir(ROOT)? {
        for pin in fs::read_dir(folder?.path())? {
            if random.below(2) == 0 {
                fs::remove_file(pin?.path()).context("a pin of an agent that audits")?;
                removed += 1;
            }
        }
    }
    println!("  {removed} pins removed");
    device.after_restart = version;
    device.start()?;
    invariants::all(device, &[version])?;
    Ok(())
}

/// Starts an agent where the kernel's types cannot be read.
pub fn without_types(device: &mut Device) -> Result<()> {
    let version = device.version;
    device.kill()?;
    mount("tmpfs", TYPES, "tmpfs", MountFlags::empty(), None).context("hiding the types")?;
    let started = device.start();
    let checked = (|| {
        invariants::gates_hold(&[version])?;
        if started.is_ok() {
            let status = device.status()?;
            let found = status["policy"]["version"].as_u64();
            ensure!(found == Some(version), "v{found:?} is said to be in force");
            ensure!(status["degraded"] == true && status["health"] != "ok", "{status}");
            // No mixture of what this agent enforces and what the one before has left.
            let next = device.next();
            let push = crate::agent::portcullis(&["policy", "push", &device.bundle(next)?])?;
            let now = if push.status.success() { next } else { version };
            invariants::gates_hold(&[now])?;
            device.version = now;
        } else {
            let said = fs::read_to_string(LOG)?;
            println!("  it does not start: {}", said.trim());
            ensure!(said.contains("type information"), "it does not say why: {said}");
            invariants::nobody_answers()?;
        }
        Ok(())
    })();
    unmount(TYPES, UnmountFlags::DETACH)?;
    checked?;
    if started.is_ok() {
        device.kill()?;
    }
    device.agent = None;
    device.after_restart = device.version;
    device.start()?;
    device.version = invariants::all(device, &[device.version])?;
    Ok(())
}
