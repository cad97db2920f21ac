//! What `doctor` finds on good and bad kernels, and that the agent does not pretend.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use serde_json::Value;

use super::{base_policy, fresh};
use crate::{
    agent::{Agent, PATIENCE, expect, json, text},
    attack::{Attempt, GOOD, evil, exec_path, good, install, is_old_kernel, library_runs, note},
    events,
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
        let expected = if id == "ima" && is_old_kernel() { "warning" } else { "ok" };
        ensure!(row(&report, id)?["state"] == expected, "{report}");
    }
    let table = String::from_utf8(expect(0, &["doctor"])?.stdout)?;
    ensure!(table.contains("the gates can hold on this kernel"), "{table}");

    // Naively, programs that are attached would be thought to be called.
    let program = Path::new("/tmp/doctor-evil");
    install(program, &evil("doctor")?)?;
    let held = fs::OpenOptions::new().write(true).open("/proc/sys/kernel/ftrace_enabled")?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    ensure!(exec_path(program)? == Attempt::Refused);
    let silenced = fs::write("/proc/sys/kernel/ftrace_enabled", "0");
    let error = silenced.err().and_then(|error| error.raw_os_error());
    ensure!(error == Some(libc::EPERM), "ftrace_enabled can be opened: {error:?}");
    // L50: whoever had it open before.
    let silenced = held.write_all_at(b"0", 0);
    if is_old_kernel() {
        let error = silenced.err().and_then(|error| error.raw_os_error());
        ensure!(error == Some(libc::EBUSY), "ftrace_enabled can be set: {error:?}");
        ensure!(exec_path(program)? == Attempt::Refused);
        note("doctor", "this kernel keeps ftrace enabled while programs are attached");
        return agent.stop();
    }
    silenced?;
    ensure!(exec_path(program)? == Attempt::Ran, "L50 is closed: take it out of docs/limits.md");
    held.write_all_at(b"1", 0)?;
    ensure!(exec_path(program)? == Attempt::Refused);
    agent.stop()?;
    fs::write("/proc/sys/kernel/ftrace_enabled", "0")?;
    let result = fails("ftrace", "no gate is called", "kernel.ftrace_enabled=1");
    fs::write("/proc/sys/kernel/ftrace_enabled", "1")?;
    result
}

/// A30: `bpf` is not in `lsm=`, so programs would load and never be called. What is left is
/// fanotify, which is said to be degraded wherever it shows.
pub fn without_bpf_lsm() -> Result<()> {
    let report = doctor(1)?;
    ensure!(report["gates_can_hold"] == false && report["backend"] == "fanotify", "{report}");
    let found = row(&report, "bpf-lsm")?;
    ensure!(
        found["state"] == "failed"
            && found["found"].as_str().is_some_and(|text| text.contains("never be called"))
            && found["mend"].as_str().is_some_and(|text| text.contains(",bpf")),
        "{found}"
    );
    let table = String::from_utf8(expect(1, &["doctor"])?.stdout)?;
    ensure!(table.contains("degraded to fanotify"), "{table}");

    let lab = fresh("/data/fanotify")?;
    let (listed, unlisted) = (lab.join("listed"), lab.join("unlisted"));
    install(&listed, &good("fanotify")?)?;
    install(&unlisted, &evil("fanotify")?)?;
    let policy = base_policy(&[&listed])?;
    let output = expect(3, &["run", "--policy", text(&policy.file)?, "--backend", "bpf-lsm"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains(",bpf") && said.lines().count() == 1, "{said}");

    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let said = fs::read_to_string("/run/agent.log")?;
    ensure!(said.contains("degraded to fanotify") && said.lines().count() == 1, "{said}");
    let runs = |path: &Path| -> Result<bool> {
        Ok(Command::new(path).status().is_ok_and(|status| status.code() == Some(i32::from(GOOD))))
    };
    let mark = events::mark()?;
    ensure!(exec_path(&unlisted)? == Attempt::Refused, "an unlisted program");
    events::wait_for(mark, "the refused exec", |event| {
        event["outcome"] == "deny"
            && event["reason"] == "unlisted"
            && event["backend"] == "fanotify"
            && event["artifact"]["path"] == "/data/fanotify/unlisted"
            && event["process"]["ancestors"][0]["comm"].is_string()
    })?;
    ensure!(runs(&listed)? && runs(&listed)?, "a listed program");
    // Twice, as the second time finds it known.
    for _ in 0..2 {
        ensure!(Command::new("/usr/bin/true").status()?.success(), "a dynamic program");
    }
    // In place, with the size kept, long after it was known.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(runs(&listed)?);
    fs::write(&listed, evil("fanotify")?)?;
    ensure!(exec_path(&listed)? == Attempt::Refused, "a program that was changed");
    // On a filesystem that is mounted later.
    let late = fresh("/mnt/late")?;
    mount("tmpfs", late, "tmpfs", MountFlags::empty(), None)?;
    install(&late.join("evil"), &evil("late")?)?;
    let end = Instant::now() + PATIENCE;
    while exec_path(late.join("evil"))? != Attempt::Refused {
        ensure!(Instant::now() < end, "a filesystem that was mounted later is not watched");
    }
    unmount(late, UnmountFlags::DETACH)?;

    let status = json(&["status", "--json"])?;
    ensure!(
        status["backend"] == "fanotify"
            && status["degraded"] == true
            && status["health"] == "warning",
        "{status}"
    );
    let shown = String::from_utf8(expect(0, &["status"])?.stdout)?;
    ensure!(shown.contains("DEGRADED to fanotify"), "{shown}");

    // L30: what it does not see.
    let library = Path::new("/files/libevil.so");
    let preload = || library_runs(Command::new("/usr/bin/true").env("LD_PRELOAD", library));
    ensure!(preload()? == Attempt::Ran, "L30 is closed: take it out of docs/limits.md");

    expect(0, &["mode", "audit"])?;
    let mark = events::mark()?;
    ensure!(exec_path(&unlisted)? == Attempt::Ran, "audit mode has stopped it");
    events::wait_for(mark, "the exec in audit mode", |event| event["outcome"] == "would-deny")?;
    expect(0, &["mode", "enforce", "--skip-preflight"])?;
    ensure!(exec_path(&unlisted)? == Attempt::Refused);
    // L30: nor anything without the agent.
    agent.signal(Signal::KILL)?;
    ensure!(exec_path(&unlisted)? == Attempt::Ran, "L30 is closed: take it out of docs/limits.md");
    Ok(())
}

/// A30: IMA hashes with another algorithm.
pub fn with_sha1() -> Result<()> {
    if is_old_kernel() {
        note("doctor-with-sha1", "this kernel has no IMA, and the agent hashes");
        let report = doctor(0)?;
        ensure!(row(&report, "ima")?["state"] == "warning", "{report}");
        return Ok(());
    }
    fails("ima", "ima_hash=sha1", "remove ima_hash=sha1")
}

/// The strictest lockdown does not keep the gates from working.
pub fn locked_down() -> Result<()> {
    fresh("/tmp/lockdown")?;
    if is_old_kernel() {
        note(
            "lockdown",
            "the programs do not load on this kernel, so that fanotify is fallen back to",
        );
        let report = doctor(1)?;
        ensure!(row(&report, "lockdown")?["state"] == "failed", "{report}");
        ensure!(report["backend"] == "fanotify", "{report}");
        let program = Path::new("/tmp/lockdown/evil");
        install(program, &evil("lockdown")?)?;
        let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
        ensure!(exec_path(program)? == Attempt::Refused);
        ensure!(json(&["status", "--json"])?["degraded"] == true);
        return agent.stop();
    }
    let report = doctor(0)?;
    let lockdown = row(&report, "lockdown")?;
    let found = lockdown["found"].as_str().unwrap_or_default();
    ensure!(lockdown["state"] == "warning" && found.starts_with("confidentiality"), "{report}");
    let program = Path::new("/tmp/lockdown/evil");
    install(program, &evil("lockdown")?)?;
    // What only sees USB devices has to copy from the kernel's memory; the gates do not.
    let policy = base_policy(&[])?;
    policy.append("\n[usb]\ndefault = \"allow\"\n")?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(exec_path(program)? == Attempt::Refused);
    let status = json(&["status", "--json"])?;
    for (id, state) in [("usb-seen", "warning"), ("usb-guard", "ok")] {
        ensure!(row(&status, id)?["state"] == state, "{id}: {status}");
    }
    agent.stop()
}
