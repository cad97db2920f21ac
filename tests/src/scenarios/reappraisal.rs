//! Content that changes with no write that a hook could see: the verdict stays, and the pass over
//! what runs notices.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{base_policy, fresh, list, sha256};
use crate::{
    agent::{self, Agent, PATIENCE, Policy, json},
    attack::{Attempt, evil, exec_path, good, install},
    events,
    mapping::{MapFlags, Mapping, ProtFlags},
};

const DISK: &str = "/dev/vda";

/// A27, A28: a raw write to the disk under a mounted filesystem, and pages in memory that are not
/// what was judged.
pub fn notices() -> Result<()> {
    let lab = fresh("/data/reappraisal")?;
    let path = lab.join("victim");
    let (good, evil) = (good("reappraisal")?, evil("reappraisal")?);
    install(&path, &good)?;
    let policy = base_policy(&[])?;
    list(&policy, &path, &["executable", "library"])?;
    let (was, becomes) = (sha256(&path)?, {
        let other = Path::new("/tmp/becomes");
        install(other, &evil)?;
        sha256(other)?
    });
    let agent = Agent::start(
        &policy,
        "enforce",
        &["--skip-preflight", "--reappraise-every", "1", "--reappraise-rate", "256"],
    )?;
    // Judged, and in use from now on; no page of it is touched, so that memory may let go of them.
    let file = File::open(&path)?;
    let code = ProtFlags::READ | ProtFlags::EXEC;
    let in_use = Mapping::new(&file, 4096, code, MapFlags::PRIVATE)?;
    let before = pass_after(None)?;
    println!("  {before}");
    ensure!(before["different"] == 0 && before["from_disk"].as_u64() > Some(0), "{before}");
    ensure!(before["files"].as_u64() > Some(1), "{before}");

    // An ordinary change is no finding: the verdict goes with it.
    let other = lab.join("other");
    install(&other, &good)?;
    let also_in_use = Mapping::new(&File::open(&other)?, 4096, code, MapFlags::PRIVATE)?;
    OpenOptions::new().write(true).open(&other)?.write_all_at(&evil, 0)?;
    let mark = events::mark()?;
    let pass = pass_after(Some(&before))?;
    ensure!(pass["different"] == 0, "{pass}");
    drop(also_in_use);

    write_below(&file, &evil)?;
    // Memory still has what was judged.
    ensure!(sha256(&path)? == was);
    let found = finding(mark, &path, "disk")?;
    ensure!(found["expected"] == *was && found["found"] == *becomes, "{found}");
    let memory_too = |event: &Value| event["type"] == "reappraisal" && event["where"] != "disk";
    ensure!(!events::all()?.iter().any(memory_too), "memory is what it was");

    // Memory is needed for something else, or a bug in the kernel reaches it.
    let mark = events::mark()?;
    fs::write("/proc/sys/vm/drop_caches", "1")?;
    let found = finding(mark, &path, "page-cache")?;
    ensure!(found["expected"] == *was && found["found"] == *becomes, "{found}");
    let failed = |event: &Value| event["type"] == "health" && event["check"] == "content";
    ensure!(events::all()?.iter().any(|event| failed(event) && event["state"] == "failed"));
    let status = agent::status()?;
    ensure!(status["health"] == "failed", "{status}");
    println!("  {} KiB resident after several passes", status["resident_kib"]);
    ensure!(status["resident_kib"].as_u64() < Some(15 * 1024), "{status}");
    // L08: noticed, and not stopped. The verdict belongs to the inode, which is in use.
    ensure!(
        exec_path(&path)? == Attempt::Ran,
        "L08 is closed: take it out of docs/limits.md and test that it stays so"
    );
    drop(in_use);
    drop(file);
    // All is well when nothing that runs differs any more.
    let mark = events::mark()?;
    events::wait_for(mark, "recovery", |event| failed(event) && event["state"] == "ok")?;
    agent.stop()?;

    // Off is off.
    let off = ["--skip-preflight", "--reappraise-every", "1", "--reappraise-rate", "0"];
    let agent = Agent::start(&policy, "audit", &off)?;
    sleep(Duration::from_secs(2));
    let status = agent::status()?;
    ensure!(status["reappraisal"].is_null(), "{status}");
    agent.stop()
}

/// A program in use whose content can change with no write that anybody sees.
pub(super) struct Victim {
    file: File,
    evil: Vec<u8>,
    in_use: Option<Mapping>,
}

impl Victim {
    /// Arguments with which the agent notices soon.
    pub(super) const OFTEN: [&'static str; 4] =
        ["--reappraise-every", "1", "--reappraise-rate", "256"];

    /// One that a policy lists.
    pub(super) fn listed(policy: &Policy) -> Result<Self> {
        let path = fresh("/data/victim")?.join("victim");
        install(&path, &good("a victim")?)?;
        list(policy, &path, &["executable", "library"])?;
        Ok(Self { file: File::open(&path)?, evil: evil("a victim")?, in_use: None })
    }

    /// Uses it, so that it is judged, and changes it.
    pub(super) fn change_below(&mut self) -> Result<()> {
        let code = ProtFlags::READ | ProtFlags::EXEC;
        self.in_use = Some(Mapping::new(&self.file, 4096, code, MapFlags::PRIVATE)?);
        write_below(&self.file, &self.evil)
    }

    /// Is not in use any more, and waits until the agent has seen that.
    pub(super) fn mend(self) -> Result<()> {
        let mark = events::mark()?;
        drop(self.in_use);
        drop(self.file);
        let is_well = |event: &Value| event["type"] == "health" && event["check"] == "content";
        events::wait_for(mark, "recovery", |event| is_well(event) && event["state"] == "ok")?;
        Ok(())
    }
}

/// Changes a file's content on the disk, past its filesystem.
fn write_below(file: &File, content: &[u8]) -> Result<()> {
    const FIBMAP: libc::Ioctl = 1;
    // Allocated and written only then.
    file.sync_all()?;
    rustix::fs::sync();
    let size = file.metadata()?.blksize();
    ensure!(content.len() as u64 <= size, "more than one block would have to be found");
    let mut block: libc::c_int = 0;
    // SAFETY: the kernel reads and writes the number that is pointed to.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), FIBMAP, &raw mut block) };
    ensure!(done == 0 && block > 0, "where the file lies: {}", std::io::Error::last_os_error());
    let disk = OpenOptions::new().write(true).open(DISK)?;
    disk.write_all_at(content, u64::try_from(block)? * size)?;
    Ok(disk.sync_all()?)
}

/// The finding about a file in one of the places.
fn finding(mark: events::Mark, path: &Path, place: &str) -> Result<Value> {
    events::wait_for(mark, &format!("a difference in the {place}"), |event| {
        event["type"] == "reappraisal"
            && event["where"] == place
            && event["path"].as_str().is_some_and(|shown| Path::new(shown) == path)
    })
}

/// The next pass that ends after another, or the first that does.
fn pass_after(earlier: Option<&Value>) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    // The one that is under way may have begun before.
    let mut wanted = if earlier.is_some() { 2 } else { 1 };
    let mut last = earlier.map_or(Value::Null, |pass| pass["ended"].clone());
    while Instant::now() < end {
        let pass = json(&["status", "--json"])?["reappraisal"].clone();
        if !pass.is_null() && pass["ended"] != last {
            last = pass["ended"].clone();
            wanted -= 1;
            if wanted == 0 {
                return Ok(pass);
            }
        }
        sleep(Duration::from_millis(100));
    }
    None.context("no pass over what runs has ended")
}
