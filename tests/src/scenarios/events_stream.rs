//! The stream of events: complete, or with its losses counted, and never in the way.

use std::{
    collections::BTreeSet, fs, os::unix::ffi::OsStringExt, path::Path, thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount},
    process::Signal,
};
use serde_json::Value;

use super::{base_policy, bounded, fresh};
use crate::{
    agent::{Agent, expect, json},
    attack::{Attempt, evil, exec_path, install, is_old_kernel},
    events, init,
};

/// A17: a ring that nobody empties costs events, which are counted, and changes no verdict.
pub fn flood() -> Result<()> {
    const EXECS: u64 = 3000;
    fresh("/tmp/flood")?;
    let program = Path::new("/tmp/flood/evil");
    install(program, &evil("flood")?)?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    if is_old_kernel() {
        // What the agent does not know waits for it.
        ensure!(exec_path(program)? == Attempt::Refused);
    }
    let known = u64::from(is_old_kernel());
    let mark = events::mark()?;
    init::signal(agent.pid(), Signal::STOP)?;
    for number in 0..EXECS {
        ensure!(
            exec_path(program)? == Attempt::Refused,
            "exec {number} ran while the ring was full"
        );
    }
    init::signal(agent.pid(), Signal::CONT)?;
    let told = events::wait_for(mark, "a loss", |event| event["type"] == "lost")?;
    let lost = told["count"].as_u64().context("a count")?;
    ensure!(told["gate"] == "exec" && lost > 0, "{told}");
    let decided = || -> Result<u64> {
        let records = events::all()?;
        let told = records.iter().filter(|event| events::is_decision(event, "deny", program));
        // One record for many, with their number.
        Ok(told.map(|event| event["count"].as_u64().unwrap_or(1)).sum())
    };
    // Every single one is either told, by itself or in a number, or counted as lost.
    let end = std::time::Instant::now() + crate::agent::PATIENCE;
    while decided()? + lost < EXECS + known && std::time::Instant::now() < end {
        sleep(Duration::from_millis(50));
    }
    let told = decided()?;
    ensure!(told + lost == EXECS + known, "{told} told and {lost} lost of {EXECS} and {known}");
    let status = json(&["status", "--json"])?;
    ensure!(
        status["gates"][0]["lost"] == lost && status["gates"][0]["denied"] == EXECS + known,
        "{status}"
    );
    println!("  {EXECS} execs refused, {lost} events lost and counted");
    bounded::bomb(&agent, Duration::from_secs(5))?;
    agent.stop()
}

/// What `docs/events.md` promises of every record.
pub fn schema() -> Result<()> {
    let lab = fresh("/tmp/schema")?;
    let hostile = lab.join("new\nline \u{1b}[31m \u{202e}");
    install(&hostile, &evil("hostile name")?)?;
    let binary = lab.join(std::ffi::OsString::from_vec(b"not-utf8-\xff".to_vec()));
    install(&binary, &evil("binary name")?)?;
    // A path that does not fit into the usual event.
    let mut deep = lab.to_path_buf();
    for _ in 0..12 {
        deep.push("d".repeat(100));
    }
    fs::create_dir_all(&deep)?;
    let deep = deep.join("evil");
    install(&deep, &evil("deep")?)?;

    let mark = events::mark()?;
    let numbers = "/run/portcullis.prom";
    let agent = Agent::start(&base_policy(&[])?, "audit", &["--metrics", numbers])?;
    let started = events::wait_for(mark, "the start", |event| event["type"] == "agent-started")?;
    ensure!(started["mode"] == "audit" && started["policy"]["name"] == "policy", "{started}");
    for path in [&hostile, &binary, &deep] {
        ensure!(exec_path(path)? == Attempt::Ran);
    }
    let seen = events::wait_for(mark, "a hostile name", |event| {
        events::is_decision(event, "would-deny", &hostile)
    })?;
    for (pointer, expected) in [
        ("/schema", Value::from(1)),
        ("/gate", "exec".into()),
        ("/reason", "unlisted".into()),
        ("/mode", "audit".into()),
        ("/policy/version", 1.into()),
        ("/wanted", serde_json::json!(["executable", "script"])),
        ("/artifact/digest", super::sha256(&hostile)?.into()),
        ("/artifact/size", fs::metadata(&hostile)?.len().into()),
        ("/artifact/filesystem", "tmpfs".into()),
        ("/process/uid", 0.into()),
        ("/process/comm", "portcullis-gues".into()),
        ("/process/cgroup", "/".into()),
        ("/rule", Value::Null),
    ] {
        ensure!(seen.pointer(pointer) == Some(&expected), "{pointer} is not {expected} in {seen}");
    }
    let parent = &seen["process"]["ancestors"][0];
    ensure!(parent["pid"] == std::process::id(), "{seen}");
    let bytes = events::wait_for(mark, "a binary name", |event| {
        event["artifact"]["path_hex"]
            .as_str()
            .is_some_and(|hex| hex.ends_with("6e6f742d757466382dff"))
    })?;
    ensure!(
        bytes["artifact"]["path"].as_str().is_some_and(|path| path.ends_with("not-utf8-\u{fffd}")),
        "{bytes}"
    );
    events::wait_for(mark, "a long path", |event| events::is_decision(event, "would-deny", &deep))?;

    // For people, one line for each event, whatever the names are.
    let human = expect(0, &["events"])?;
    let text = String::from_utf8(human.stdout)?;
    let line = text
        .lines()
        .find(|line| line.contains("new\\nline"))
        .context("the hostile name, escaped")?;
    ensure!(
        line.contains("would deny exec") && !line.contains('\u{1b}') && !line.contains('\u{202e}'),
        "{line}"
    );

    // In the agent's numbers, which are written every fifteen seconds.
    let wanted = "portcullis_decisions_total{gate=\"exec\",verdict=\"would-deny\",mode=\"audit\"} ";
    let end = std::time::Instant::now() + crate::agent::PATIENCE;
    let told = loop {
        let page = fs::read_to_string(numbers).unwrap_or_default();
        let told = page.lines().find_map(|line| line.strip_prefix(wanted)).map(str::to_owned);
        if told.as_ref().is_some_and(|told| told != "0") || std::time::Instant::now() > end {
            ensure!(page.contains("\nportcullis_enforcing 0\n"), "{page}");
            break told;
        }
        sleep(Duration::from_millis(200));
    };
    let status = json(&["status", "--json"])?;
    ensure!(told == Some(status["gates"][0]["would_deny"].to_string()), "{told:?} in {status}");

    // Numbered without gaps.
    let numbers: Vec<_> = events::all()?.iter().filter_map(|event| event["seq"].as_u64()).collect();
    let own: BTreeSet<_> = numbers.iter().copied().collect();
    ensure!(own.len() as u64 == *own.last().unwrap_or(&0), "{numbers:?}");
    agent.stop()?;
    events::wait_for(mark, "the end", |event| {
        event["type"] == "agent-stopped" && event["gates_stay"] == false
    })?;
    Ok(())
}

/// A disk that fills up under the event file: no half lines, counted losses, and recovery.
pub fn full_disk() -> Result<()> {
    fs::create_dir_all("/run/small")?;
    mount("tmpfs", "/run/small", "tmpfs", MountFlags::empty(), Some(c"size=64k"))?;
    let file = "/run/small/events.jsonl";
    let program = Path::new("/tmp/full-disk");
    install(program, &evil("full disk")?)?;
    let agent = Agent::start_with(&base_policy(&[])?, "enforce", file, &["--skip-preflight"])?;
    let sink = || -> Result<Value> {
        let status = json(&["status", "--json"])?;
        let sinks = status["sinks"].as_array().context("sinks")?;
        Ok(sinks
            .iter()
            .find(|sink| sink["name"] == format!("file {file}"))
            .context("the file's sink")?
            .clone())
    };
    let end = std::time::Instant::now() + crate::agent::PATIENCE;
    let mut number = 0;
    while sink()?["lost"].as_u64() == Some(0) {
        // Always another one, as many of the same would be one record.
        for _ in 0..10 {
            number += 1;
            let another = format!("/tmp/full-disk-{number}");
            fs::hard_link(program, &another)?;
            ensure!(exec_path(&another)? == Attempt::Refused, "ran on a full disk");
            fs::remove_file(another)?;
        }
        ensure!(std::time::Instant::now() < end, "64 KiB did not fill up");
    }
    ensure!(sink()?["failing"] == true, "{}", sink()?);
    let text = fs::read_to_string(file)?;
    ensure!(text.ends_with('\n'), "a half line was left");
    for line in text.lines() {
        serde_json::from_str::<Value>(line).with_context(|| format!("a broken line: {line}"))?;
    }
    // The agent's other records and its gates go on; and so does the file once there is room.
    mount_remount("/run/small", MountFlags::empty(), "size=1m")?;
    let written = sink()?["written"].as_u64();
    ensure!(exec_path(program)? == Attempt::Refused);
    let end = std::time::Instant::now() + crate::agent::PATIENCE;
    while sink()?["written"].as_u64() <= written {
        ensure!(std::time::Instant::now() < end, "it did not recover: {}", sink()?);
        sleep(Duration::from_millis(50));
    }
    agent.stop()?;
    unmount("/run/small", UnmountFlags::DETACH)?;
    Ok(())
}
