//! What the agent has reported.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::agent::{PATIENCE, expect, text};

/// Has `events verify` look at the records that an agent keeps, whose state is in this folder.
pub fn verify_spool(state: &str) -> Result<()> {
    let mut words =
        vec!["events".into(), "verify".into(), "--key".into(), format!("{state}/device.pub")];
    for entry in fs::read_dir(format!("{state}/spool"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "jsonl") {
            words.push(text(&path)?.to_owned());
        }
    }
    expect(0, &words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

/// Where the agents of scenarios write their events.
pub const FILE: &str = "/run/events.jsonl";

/// Every record so far.
pub fn all() -> Result<Vec<Value>> {
    since(Mark(0))
}

/// A place in the stream of records, to look for what comes after it.
#[derive(Clone, Copy)]
pub struct Mark(u64);

/// The end of the stream.
pub fn mark() -> Result<Mark> {
    Ok(Mark(whole_lines(Mark(0))?.len() as u64))
}

/// The bytes after the mark; without the last line if that is still on its way.
fn whole_lines(mark: Mark) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match File::open(FILE) {
        Ok(mut file) => {
            file.seek(SeekFrom::Start(mark.0))?;
            file.read_to_end(&mut bytes)?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    Ok(bytes)
}

/// The records after the mark.
pub fn since(mark: Mark) -> Result<Vec<Value>> {
    let bytes = whole_lines(mark)?;
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| Ok(serde_json::from_slice(line)?)).collect()
}

/// The first record after the mark that `wanted` accepts; waits for it.
pub fn wait_for(mark: Mark, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let records = since(mark)?;
        if let Some(found) = records.iter().find(|record| wanted(record)) {
            return Ok(found.clone());
        }
        if Instant::now() > end {
            let shown: Vec<_> = records.iter().map(Value::to_string).collect();
            bail!("no event of {what}; there were:\n{}", shown.join("\n"));
        }
        sleep(Duration::from_millis(5));
    }
}

/// Whether a record is a gate's decision of this outcome about this path.
pub fn is_decision(record: &Value, outcome: &str, path: &Path) -> bool {
    record["type"] == "decision"
        && record["outcome"] == outcome
        && record["artifact"]["path"].as_str().is_some_and(|seen| Path::new(seen) == path)
}
