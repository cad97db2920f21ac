//! What a start of the agent costs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use crate::agent::{Agent, Policy};

/// Instructions in a tick of the clock by which the kernel counts (`USER_HZ` is 100).
const TICK: u64 = 10_000_000;

/// Starts that count. The first one, which reads the binary from the disk, does not.
const STARTS: u64 = 3;

/// Measures starts until the agent answers, and prints one line of JSON: what was spent in the agent and
/// in the kernel.
pub fn start() -> Result<()> {
    let policy = Policy::of(Path::new("/bench/plain"), &["/usr"])?;
    let mut spent = [0, 0];
    for round in 0..=STARTS {
        let agent = Agent::start(&policy, "audit", &[])?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
        agent.stop()?;
        // The name, which may have spaces, is in brackets; `utime` and `stime` are the 14th and 15th.
        let (_, after_name) = stat.rsplit_once(") ").context("a name")?;
        let fields: Vec<_> = after_name.split(' ').collect();
        for (spent, at) in spent.iter_mut().zip([11, 12]) {
            let ticks: u64 = fields.get(at).context("a field")?.parse()?;
            if round > 0 {
                *spent += ticks * TICK;
            }
        }
    }
    let [agent, kernel] = spent.map(|spent| spent / STARTS);
    println!("@@result {}", json!({ "agent": agent, "kernel": kernel }));
    Ok(())
}
