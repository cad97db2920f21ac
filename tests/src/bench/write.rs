//! What the programs at opening and truncating cost those who read and write files.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::lower_quartile;
use crate::agent::{Agent, Policy};

/// Bytes that are read and written at a time.
const BYTES: usize = 4096;

/// Measures opening, reading and writing, and prints one line of JSON.
pub fn write() -> Result<()> {
    let policy = Policy::of(Path::new("/bench/policy"), &["/usr"])?;
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

/// Name and instructions of everything that is measured.
fn measure() -> Result<Vec<(String, u64)>> {
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
