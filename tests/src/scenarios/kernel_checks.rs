//! What `doctor` finds on good and bad kernels, and that the agent does not pretend.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{base_policy, fresh};
use crate::{
    agent::{Agent, expect, text},
    attack::{Attempt, evil, exec_path, install},
};

fn doctor(code: i32) -> Result<Value> {
    Ok(serde_json::from_slice(&expect(code, &["doctor", "--json"])?.stdout)?)
}

fn row<'r>(report: &'r Value, id: &str) -> Result<&'r Value> {
    let rows = report["checks"].as_array().context("checks")?;
    rows.iter().find(|row| row["id"] == id).with_context(|| format!("no row {id} in {report}"))
}

/// A row that failed, with what was found and how to mend it; and `run` says the same.
fn fails(id: &str, found: &str, mend: &str) -> Result<()> {
    let report = doctor(1)?;
    ensure!(report["gates_can_hold"] == false, "{report}");
    let row = row(&report, id)?;
    let says =
        |key: &str, wanted: &str| row[key].as_str().is_some_and(|text| text.contains(wanted));
    ensure!(row["state"] == "failed" && says("found", found) && says("mend", mend), "{row}");
    let policy = base_policy(&[])?;
    let output = expect(3, &["run", "--policy", text(&policy.file)?])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains(mend) && said.lines().count() == 1, "{said}");
    ensure!(
        fs::read_dir("/sys/fs/bpf/portcullis").map_or(0, Iterator::count) == 0,
        "gates were left"
    );
    Ok(())
}

/// On a stock kernel everything holds; and the switch that silences BPF programs is noticed.
pub fn good_kernel() -> Result<()> {
    let report = doctor(0)?;
    ensure!(report["gates_can_hold"] == true, "{report}");
    for id in [
        "privileges",
        "kernel",
        "bpf-lsm",
        "btf",
        "ima",
        "ftrace",
        "load",
        "exec-gate",
        "mapping-gate",
        "forget-write",
        "forget-truncate",
    ] {
        ensure!(row(&report, id)?["state"] == "ok", "{report}");
    }
    let table = String::from_utf8(expect(0, &["doctor"])?.stdout)?;
    ensure!(table.contains("the gates can hold on this kernel"), "{table}");

    // Naively, programs that are attached would be thought to be called.
    let program = Path::new("/tmp/doctor-evil");
    install(program, &evil("doctor")?)?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    ensure!(exec_path(program)? == Attempt::Refused);
    fs::write("/proc/sys/kernel/ftrace_enabled", "0")?;
    ensure!(
        exec_path(program)? == Attempt::Ran,
        "this kernel does not have the hole; update the documentation"
    );
    fs::write("/proc/sys/kernel/ftrace_enabled", "1")?;
    ensure!(exec_path(program)? == Attempt::Refused);
    agent.stop()?;
    fs::write("/proc/sys/kernel/ftrace_enabled", "0")?;
    let result = fails("ftrace", "no gate is called", "kernel.ftrace_enabled=1");
    fs::write("/proc/sys/kernel/ftrace_enabled", "1")?;
    result
}

/// A30: `bpf` is not in `lsm=`, so programs would load and never be called.
pub fn without_bpf_lsm() -> Result<()> {
    fails("bpf-lsm", "never be called", ",bpf")
}

/// A30: IMA hashes with another algorithm.
pub fn with_sha1() -> Result<()> {
    fails("ima", "ima_hash=sha1", "remove ima_hash=sha1")
}

/// The strictest lockdown does not keep the gates from working.
pub fn locked_down() -> Result<()> {
    fresh("/tmp/lockdown")?;
    let report = doctor(0)?;
    let lockdown = row(&report, "lockdown")?;
    let found = lockdown["found"].as_str().unwrap_or_default();
    ensure!(lockdown["state"] == "warning" && found.starts_with("confidentiality"), "{report}");
    let program = Path::new("/tmp/lockdown/evil");
    install(program, &evil("lockdown")?)?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    ensure!(exec_path(program)? == Attempt::Refused);
    agent.stop()
}
