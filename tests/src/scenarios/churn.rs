//! Files that come, change and go, all day long: nothing may pile up.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{base_policy, fresh};
use crate::{
    agent::{Agent, json},
    attack::{Attempt, evil, install, map_as_code},
    mapping::{MapFlags, Mapping, ProtFlags},
};

/// Opens for writing in the test; `cargo xtask bench churn` does ten times as many.
const OPENS: u64 = 100_000;

/// Opens before the first that counts: one in eight is an event, and the agent remembers some
/// thousand events.
const WARM_UP: u64 = 40_000;

/// What the kernel may have more of afterwards, in KiB. A verdict of 56 bytes that stays for each
/// file that was judged would be several times that.
const KERNEL_KIB: u64 = 2048;
/// What the agent may have more of, in KiB: its queues are longer or shorter at times. What stays of
/// each event, or of each file, would be more.
const AGENT_KIB: u64 = 3072;

/// Memory in KiB: the agent's, and what the kernel cannot give back.
#[derive(Clone, Copy, Debug)]
struct Memory {
    agent: u64,
    kernel: u64,
}

/// The short version, as a test.
pub fn scenario() -> Result<()> {
    churn(OPENS).map(drop)
}

/// A million, as a measurement; prints one line of JSON.
pub fn million() -> Result<()> {
    let start = Instant::now();
    let (before, after) = churn(10 * OPENS)?;
    let result = json!({
        "opens_for_writing": 10 * OPENS,
        "seconds": start.elapsed().as_secs(),
        "agent_kib": { "before": before.agent, "after": after.agent },
        "kernel_kib": { "before": before.kernel, "after": after.kernel },
    });
    println!("@@result {result}");
    Ok(())
}

fn churn(opens: u64) -> Result<(Memory, Memory)> {
    let disk = fresh("/data/churn")?;
    let memory = fresh("/tmp/churn")?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    // What is allocated once is allocated by then, and the agent remembers as many events as it
    // ever does.
    work(disk, memory, WARM_UP)?;
    let before = used()?;
    work(disk, memory, opens)?;
    let after = used()?;
    println!("  {opens} opens for writing: {before:?}, then {after:?}");
    ensure!(after.agent < before.agent + AGENT_KIB, "the agent grew: {before:?}, {after:?}");
    ensure!(after.kernel < before.kernel + KERNEL_KIB, "the kernel grew: {before:?}, {after:?}");
    agent.stop()?;
    Ok((before, after))
}

/// Opens files for writing, and now and then judges one, maps one for writing, or makes it new.
fn work(disk: &Path, memory: &Path, opens: u64) -> Result<()> {
    const FILES: u64 = 64;
    let content = evil("churn")?;
    for number in 0..opens {
        let folder = if number % 2 == 0 { disk } else { memory };
        let path = folder.join((number % FILES).to_string());
        match number / FILES % 16 {
            0 => {
                install(&path, &content)?;
                let mapped = map_as_code(&path)?;
                ensure!(mapped == Attempt::Refused, "an unlisted file was mapped");
            }
            1 => {
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                let both = ProtFlags::READ | ProtFlags::WRITE;
                Mapping::new(&file, 64, both, MapFlags::SHARED)?.write_at(0, b"mapped");
            }
            2 => {
                // One that is in nobody's way, and has gone with its verdict at once.
                let gone = folder.join(format!("gone-{number}"));
                install(&gone, &content)?;
                map_as_code(&gone)?;
                fs::remove_file(&gone)?;
            }
            round => {
                let file = OpenOptions::new().write(true).open(&path)?;
                file.write_all_at(&round.to_le_bytes(), 8)?;
            }
        }
    }
    Ok(())
}

fn used() -> Result<Memory> {
    rustix::fs::sync();
    // Inodes that nobody uses, with what hangs on them; twice, as the first only lets go of names.
    for _ in 0..2 {
        File::create("/proc/sys/vm/drop_caches")?.write_all(b"3")?;
        // Freed after a grace period.
        sleep(Duration::from_millis(500));
    }
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("SUnreclaim:"));
    let kernel = line.and_then(|line| line.split_whitespace().next()).context("SUnreclaim")?;
    let status = json(&["status", "--json"])?;
    let agent = status["resident_kib"].as_u64().context("resident memory")?;
    Ok(Memory { agent, kernel: kernel.parse()? })
}
