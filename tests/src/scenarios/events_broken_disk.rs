//! A disk that answers with errors under the agent's state, so that the kernel makes the filesystem read-only.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    mount::{MountFlags, mount, mount_remount},
};
use serde_json::Value;

use super::{base_policy, fresh, modprobe, unmount_soon};
use crate::{
    agent::{self, Agent, PATIENCE, portcullis},
    attack::{Attempt, map_as_code},
    dm::{Mapped, Table},
    events,
};

/// The machine's disk, and where the first process has mounted it.
const DISK: &str = "/dev/vda";
const AT: &str = "/data";
const STATE: &str = "/data/broken/state";
const LAB: &str = "/run/broken";
/// A receiver that lies elsewhere and is well.
const LOG: &str = "/run/broken-log.jsonl";
const DEVICE: &str = "/etc/portcullis/device.toml";

/// A library that the policy lists.
const LISTED: &str = "/lib/x86_64-linux-gnu/libc.so.6";

/// Refusals between one thing that happens to the disk and the next.
const EACH: u64 = 40;

/// The gates go on, a receiver gets every record, and people are told. What a new agent finds on the mended
/// disk is a whole chain, as far as the disk has got.
pub fn goes_on() -> Result<()> {
    modprobe("dm_mod")?;
    fs::create_dir_all("/etc/portcullis")?;
    let sink = format!("type = \"file\"\npath = \"{LOG}\"\nmax_mib = 8\n");
    fs::write(DEVICE, format!("[[sink]]\nname = \"log\"\n{sink}"))?;
    let _ = fs::remove_file(LOG);
    unmount_soon(Path::new(AT))?;
    let sectors: u64 = fs::read_to_string("/sys/class/block/vda/size")?.trim().parse()?;
    let disk = Mapped::new("broken", &Table::writable(sectors, DISK))?;
    mounted(&disk.node())?;
    let (fresh_state, lab) = (fresh("/data/broken")?, fresh(LAB)?);
    let more = ["--skip-preflight", "--state", STATE];
    let agent = Agent::start(&base_policy(&[])?, "enforce", &more)?;
    let mut lab = Lab { folder: lab.to_owned(), refused: 0 };
    lab.refusals()?;

    // Who asks for it is told that the agent writes there.
    let asked = mount_remount(AT, MountFlags::RDONLY, "");
    ensure!(asked == Err(Errno::BUSY), "remounting read-only: {asked:?}");

    disk.exchange_suddenly(&Table::failing(sectors))?;
    // EIO or EROFS, which depends on the kernel.
    let is_broken = || File::create(fresh_state.join("probe")).is_err();
    let end = Instant::now() + PATIENCE;
    while !is_broken() {
        lab.refusals()?;
        ensure!(Instant::now() < end, "the filesystem goes on");
    }
    lab.refusals()?;
    // It was a loose cable; the filesystem stays as the kernel has made it.
    disk.exchange_suddenly(&Table::writable(sectors, DISK))?;
    ensure!(is_broken(), "the filesystem has mended itself");
    lab.refusals()?;
    agent.stop()?;
    println!("  every record came to the receiver");

    unmount_soon(Path::new(AT))?;
    mounted(&disk.node())?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &more)?;
    println!("  found on the mended disk: {}", agent::check("spool")?["found"]);
    lab.refusals()?;
    agent.stop()?;
    events::verify_spool(STATE)?;
    let key = format!("{STATE}/device.pub");
    // What the disk never got is followed by what has the same place in the chain.
    let all = portcullis(&["events", "verify", LOG, "--key", &key])?;
    let said = String::from_utf8_lossy(&all.stdout).into_owned();
    ensure!(all.status.code() == Some(1) && said.contains("and is another"), "{said}");
    fs::remove_dir_all(fresh_state)?;
    unmount_soon(Path::new(AT))?;
    disk.remove()?;
    mount(DISK, AT, "ext4", MountFlags::empty(), None).context("mounting the disk again")?;
    fs::remove_file(DEVICE)?;
    Ok(())
}

/// As a device mounts what it writes to, so that a fault of the disk does not spread.
fn mounted(device: &Path) -> Result<()> {
    mount(device, AT, "ext4", MountFlags::empty(), Some(c"errors=remount-ro"))
        .context("mounting the disk")
}

struct Lab {
    folder: PathBuf,
    refused: u64,
}

impl Lab {
    /// Files that nobody lists are refused, one that is listed is not, and the receiver hears of each.
    fn refusals(&mut self) -> Result<()> {
        let mut waiting = BTreeSet::new();
        for _ in 0..EACH {
            self.refused += 1;
            let file = self.folder.join(self.refused.to_string());
            fs::write(&file, self.refused.to_string())?;
            ensure!(map_as_code(&file)? == Attempt::Refused, "{} was mapped", file.display());
            waiting.insert(file.display().to_string());
        }
        let listed = map_as_code(Path::new(LISTED))?;
        ensure!(listed == Attempt::Ran, "a listed file was refused");
        let end = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(LOG).unwrap_or_default();
            // The last one may be on its way.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            for line in whole.lines() {
                let event: Value = serde_json::from_str(line).context("a record")?;
                if let Some(path) = event["artifact"]["path"].as_str() {
                    waiting.remove(path);
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the receiver has not got {waiting:?}");
            sleep(Duration::from_millis(200));
        }
    }
}
