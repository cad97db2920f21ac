//! What the programs at opening, truncating and mapping cost those who read, write and map files.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::Result;
use rustix::mm::{MprotectFlags, mprotect};
use serde_json::{Map, Value, json};

use super::lower_quartile;
use crate::{
    agent::{Agent, Policy},
    mapping::{MapFlags, Mapping, ProtFlags},
    scenarios::list,
};

/// What is mapped.
const MAPPED: &str = "/usr/bin/true";

/// Bytes that are read and written at a time.
const BYTES: usize = 4096;

/// Measures opening, reading, writing and mapping, and prints one line of JSON.
pub fn write() -> Result<()> {
    let policy = Policy::of(Path::new("/bench/policy"), &["/usr"])?;
    list(&policy, Path::new(MAPPED), &["library"])?;
    // On 6.12 the first seconds after boot carry background work.
    sleep(Duration::from_secs(3));
    // The first round of all is dearer, whatever comes first.
    measure()?;
    let before = measure()?;
    let agent = Agent::start(&policy, "enforce", &[])?;
    let enforce = measure()?;
    agent.stop()?;
    let after = measure()?;
    let result: Map<String, Value> = before
        .into_iter()
        .zip(enforce)
        .zip(after)
        .map(|(((name, before), (_, enforce)), (_, after))| {
            // What drifts over the run drifts out of the comparison.
            (name, json!({ "bare": before.midpoint(after), "enforce": enforce }))
        })
        .collect();
    println!("@@result {}", Value::Object(result));
    Ok(())
}

/// Measures reading and writing without and with the gate at USB's switches, which is asked before each
/// read and write of a file, and prints one line of JSON.
pub fn usb() -> Result<()> {
    let policy = Policy::of(Path::new("/bench/policy"), &["/usr"])?;
    sleep(Duration::from_secs(3));
    let under = |policy: &Policy| -> Result<Vec<(String, u64)>> {
        let agent = Agent::start(policy, "enforce", &[])?;
        // The first round of all is dearer, whatever comes first.
        calls()?;
        let costs = calls()?;
        agent.stop()?;
        Ok(costs)
    };
    let without = under(&policy)?;
    policy.append("\n[usb]\n")?;
    let with = under(&policy)?;
    let result: Map<String, Value> = without
        .into_iter()
        .zip(with)
        .map(|((name, without), (_, with))| (name, json!({ "without": without, "with": with })))
        .collect();
    println!("@@result {}", Value::Object(result));
    Ok(())
}

/// The same for a program's file.
fn mappings() -> Result<Vec<(String, u64)>> {
    let file = File::open(MAPPED)?;
    let map = |rights| Mapping::new(&file, BYTES, rights, MapFlags::PRIVATE);
    let mapped = map(ProtFlags::READ)?;
    let cost_of = |rights| lower_quartile(|| map(rights).map(drop).map_err(Into::into));
    let protected = lower_quartile(|| {
        // SAFETY: a mapping of ours, which keeps the rights that it has.
        Ok(unsafe { mprotect(mapped.address(), BYTES, MprotectFlags::READ) }?)
    })?;
    Ok(vec![
        ("mmap, munmap".into(), cost_of(ProtFlags::READ)?),
        ("mmap, munmap as code".into(), cost_of(ProtFlags::READ | ProtFlags::EXEC)?),
        ("mprotect".into(), protected),
    ])
}

/// Name and instructions of everything that is measured.
fn measure() -> Result<Vec<(String, u64)>> {
    let mut costs = calls()?;
    costs.extend(mappings()?);
    Ok(costs)
}

/// The same without mappings.
fn calls() -> Result<Vec<(String, u64)>> {
    let mut costs = Vec::new();
    for (filesystem, path) in [("tmpfs", "/tmp/bench"), ("ext4", "/data/bench")] {
        let content = [7; BYTES];
        fs::write(path, content)?;
        let opened_and_written = lower_quartile(|| {
            let file = OpenOptions::new().write(true).open(path)?;
            Ok(file.write_all_at(&content, 0)?)
        })?;
        let mut buffer = [0; BYTES];
        let opened_and_read =
            lower_quartile(|| Ok(File::open(path)?.read_exact_at(&mut buffer, 0)?))?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let read = lower_quartile(|| Ok(file.read_exact_at(&mut buffer, 0)?))?;
        let written = lower_quartile(|| Ok(file.write_all_at(&content, 0)?))?;
        for (name, cost) in [
            ("open, write, close", opened_and_written),
            ("open, read, close", opened_and_read),
            ("read", read),
            ("write", written),
        ] {
            costs.push((format!("{name} ({filesystem})"), cost));
        }
    }
    Ok(costs)
}
