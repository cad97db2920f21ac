//! How the programs recognise the agent.

use std::{fs, io};

use portcullis_common::Process;

/// This process. No other will ever be the same, also after it has ended and its id is given again.
///
/// # Errors
/// If there is no `/proc`.
pub fn own() -> io::Result<Process> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The name is in parentheses and may contain any character, so count from its end.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let started = rest.split_whitespace().nth(19).and_then(|word| word.parse().ok());
    let started = started.ok_or(io::ErrorKind::InvalidData)?;
    Ok(Process { started, pid: std::process::id(), reserved: 0 })
}
