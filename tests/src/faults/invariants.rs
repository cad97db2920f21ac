//! What must hold after every fault.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::device::{Baseline, Device, MARKS, STATE, at};
use crate::{
    agent::{PATIENCE, portcullis},
    attack::{Attempt, exec_path},
    events,
};

/// Entries in the folder of bundles that can be needed: the state and its copy, the policy file's copy, and
/// four bundles with what they hold.
const MOST_KEPT: usize = 12;
/// Descriptors of an agent that does nothing.
const MOST_DESCRIPTORS: usize = 120;

/// The gates decide, by one of these versions, whether or not an agent runs.
pub fn gates_hold(may: &[u64]) -> Result<()> {
    ensure!(exec_path(at("evil"))? == Attempt::Refused, "an unlisted program has run");
    let listed = std::process::Command::new(at("listed")).status();
    let listed = listed.context("a listed program was refused")?;
    ensure!(
        listed.code() == Some(i32::from(crate::attack::GOOD)),
        "a listed program was refused: {listed}"
    );
    let expected =
        |version: &u64| if version.is_multiple_of(2) { Attempt::Ran } else { Attempt::Refused };
    let came_out = exec_path(at("program"))?;
    ensure!(
        may.iter().any(|version| expected(version) == came_out),
        "v{may:?} may be in force, and the program: {came_out:?}"
    );
    Ok(())
}

/// Without an agent, people are told that gates stand.
pub fn nobody_answers() -> Result<()> {
    let output = portcullis(&["status"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(3) && said.contains("gates that it left are in force"),
        "`portcullis status` without an agent gave {}: {said}",
        output.status
    );
    Ok(())
}

/// Everything that must hold of a device that has come to rest, with an agent. Returns the version in force,
/// which is one of `may`.
pub fn all(device: &Device, may: &[u64]) -> Result<u64> {
    let status = device.status()?;
    let version = status["policy"]["version"].as_u64().context("no version")?;
    ensure!(may.contains(&version), "v{version} is in force, which is none of v{may:?}");
    ensure!(
        status["mode"] == "enforce",
        "the mode is {}: {:?}",
        status["mode"],
        device.bad_checks()
    );
    gates_hold(&[version])?;
    if device.baseline == Baseline::Signed {
        let (in_force, newest) = written()?;
        ensure!(
            in_force == Some(version),
            "v{version} is in force, and the state says {in_force:?}: {}",
            status["checks"]
        );
        ensure!(
            newest >= Some(version),
            "the newest is said to be {newest:?}, and v{version} is in force"
        );
    }
    catalog_is(device)?;
    nothing_piles_up(device)?;
    Ok(version)
}

/// What the state says: the version in force, and the newest.
pub fn written() -> Result<(Option<u64>, Option<u64>)> {
    let path = Path::new(STATE).join("bundles/state.json");
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    let state: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    let version = |of: &Value| of["version"].as_u64();
    let in_force = version(&state["trial"]["bundle"]).or(version(&state["confirmed"]));
    Ok((in_force, version(&state["newest"])))
}

/// The latest catalog is in force, at the latest after the agent's look each minute.
fn catalog_is(device: &Device) -> Result<()> {
    if device.catalog == 0 {
        return Ok(());
    }
    let expected = if device.catalog.is_multiple_of(2) { Attempt::Ran } else { Attempt::Refused };
    let end = Instant::now() + 2 * PATIENCE;
    while exec_path(at("cataloged"))? != expected {
        ensure!(
            Instant::now() < end,
            "catalog v{} is not in force: {:?}",
            device.catalog,
            device.bad_checks()
        );
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn nothing_piles_up(device: &Device) -> Result<()> {
    // One may be written just now. What could not be removed from a disk that was read-only goes within a minute.
    let end = Instant::now() + 2 * PATIENCE;
    loop {
        let stray: Vec<_> = files()?.into_iter().filter(|path| is_temporary(path)).collect();
        if stray.is_empty() {
            break;
        }
        ensure!(Instant::now() < end, "left behind: {stray:?}");
        sleep(Duration::from_millis(50));
    }
    let kept = fs::read_dir(Path::new(STATE).join("bundles"))?.count();
    ensure!(kept <= MOST_KEPT, "{kept} entries in the folder of bundles");
    let folders = fs::read_dir("/sys/fs/bpf/portcullis")?.count();
    ensure!(folders == 1, "{folders} folders of pins");
    let pid = device.agent.as_ref().context("no agent")?.pid();
    let end = Instant::now() + Duration::from_secs(3);
    loop {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        if descriptors <= MOST_DESCRIPTORS {
            return Ok(());
        }
        // It may just be starting a process that reads something.
        ensure!(Instant::now() < end, "the agent has {descriptors} descriptors open");
        sleep(Duration::from_millis(50));
    }
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".tmp"))
}

/// Every file that the agent keeps, sorted by name.
pub fn files() -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![PathBuf::from(STATE), PathBuf::from(MARKS)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let entry = entry?;
            // One that has gone meanwhile is none.
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort();
    Ok(found)
}

/// The records on the disk are all there, unchanged and in order.
pub fn records_are_whole() -> Result<()> {
    events::verify_spool(STATE).context("the records are not whole")
}
