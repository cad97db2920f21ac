//! What the agent has reported.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::agent::PATIENCE;

/// Where the agents of scenarios write their events.
pub const FILE: &str = "/run/events.jsonl";

/// Every record so far.
pub fn all() -> Result<Vec<Value>> {
    let text = fs::read_to_string(FILE).unwrap_or_default();
    // The last line may be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// A place in the stream of records, to look for what comes after it.
#[derive(Clone, Copy)]
pub struct Mark(usize);

/// The end of the stream.
pub fn mark() -> Result<Mark> {
    Ok(Mark(all()?.len()))
}

/// The first record after the mark that `wanted` accepts; waits for it.
pub fn wait_for(mark: Mark, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let end = Instant::now() + PATIENCE;
    loop {
        let records = all()?;
        if let Some(found) = records.iter().skip(mark.0).find(|record| wanted(record)) {
            return Ok(found.clone());
        }
        if Instant::now() > end {
            let shown: Vec<_> = records.iter().skip(mark.0).map(Value::to_string).collect();
            bail!("no event of {what}; there were:\n{}", shown.join("\n"));
        }
        sleep(Duration::from_millis(20));
    }
}

/// Whether a record is a gate's decision of this outcome about this path.
pub fn is_decision(record: &Value, outcome: &str, path: &Path) -> bool {
    record["type"] == "decision"
        && record["outcome"] == outcome
        && record["artifact"]["path"].as_str().is_some_and(|seen| Path::new(seen) == path)
}
