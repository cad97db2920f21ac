//! A device comes from nothing to enforcement, and nobody types a digest.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::fresh;
use crate::{
    agent::{Agent, Policy, expect, json, portcullis, text},
    events,
};

/// Where the agent keeps what has run.
pub const KEPT: &str = "/var/lib/portcullis/history.jsonl";

const FOLDER: &str = "/root/plant";

/// What the device does all day.
const WORK: &str = "/opt/pump/pumpd && python3 -c 'import os' && dpkg --version > /dev/null \
                    && systemctl restart cron && systemctl is-active --quiet cron \
                    && systemd-run --quiet --wait --pipe /usr/bin/id -u > /dev/null";

/// What nobody wants.
const EVIL: &str = "/tmp/evil -u > /dev/null";

fn sh(line: &str) -> Result<bool> {
    let status = Command::new("/bin/sh").args(["-c", line]).stdin(Stdio::null()).status()?;
    Ok(status.success())
}

fn must(line: &str) -> Result<()> {
    ensure!(sh(line)?, "`{line}` failed");
    Ok(())
}

/// Runs `portcullis`, insists on `code`, and returns all that it says.
fn said(code: i32, arguments: &[&str]) -> Result<String> {
    let output = expect(code, arguments)?;
    let (out, err) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    Ok(format!("{out}{err}"))
}

/// Audit, learn, review, diff, enforce.
pub fn from_nothing() -> Result<()> {
    let folder = fresh(FOLDER)?;
    must(
        "systemctl is-system-running --wait > /dev/null; mkdir -p /opt/pump && \
         printf '#!/bin/sh\\n/opt/pump/motor -u > /dev/null\\n' > /opt/pump/pumpd && \
         cp /usr/bin/id /opt/pump/motor && echo pump >> /opt/pump/motor && \
         cp /usr/bin/id /tmp/evil && echo evil >> /tmp/evil && chmod +x /opt/pump/pumpd",
    )?;
    let policy = Policy { file: folder.join("policy.toml") };
    let file = text(&policy.file)?.to_owned();
    expect(0, &["policy", "init", "--name", "plant", "-o", &file])?;
    let agent = Agent::start(&policy, "audit", &[])?;
    must(WORK)?;
    must(EVIL)?;

    // Without a person nothing is decided, and without decisions nothing is enforced.
    let manifest = format!("{FOLDER}/learned.manifest");
    let refused = said(1, &["policy", "learn", "-o", &manifest])?;
    ensure!(refused.contains("nobody to ask"), "{refused}");
    ensure!(!Path::new(&manifest).exists());
    let refused = said(1, &["mode", "enforce"])?;
    ensure!(refused.contains("lists no digest"), "{refused}");

    review(&manifest)?;
    let draft = format!("{FOLDER}/draft.toml");
    expect(0, &["policy", "init", "--from", &manifest, "--name", "plant", "-o", &draft])?;
    let difference = said(0, &["policy", "diff", &draft])?;
    ensure!(difference.contains("/opt/pump/motor"), "{difference}");
    ensure!(difference.contains("! ") && difference.contains("/tmp/evil"), "{difference}");
    said(0, &["policy", "test", &draft])?;
    fs::rename(&draft, &file)?;
    expect(0, &["policy", "reload"])?;

    // Once more, until nothing is left: what the commands themselves have started is seen too.
    for round in 0.. {
        must(WORK)?;
        ensure!(round < 5, "there is always something left to learn");
        let output = portcullis(&["policy", "learn", "-o", &manifest])?;
        if output.status.success() {
            break;
        }
        let refused = said(1, &["mode", "enforce"])?;
        ensure!(refused.contains("would refuse"), "{refused}");
        review(&manifest)?;
        expect(0, &["policy", "reload"])?;
    }
    println!("  {}", fs::read_to_string(&manifest)?.lines().last().unwrap_or_default());

    // A device that is described by its history elsewhere.
    expect(0, &["history", "-o", "/root/plant/history"])?;
    said(0, &["policy", "test", "--history", "/root/plant/history", &file])?;
    fs::write("/root/plant/empty.toml", "name = \"p\"\nversion = 1\nmode = \"audit\"\n")?;
    let refused =
        said(1, &["policy", "test", "--history", "/root/plant/history", "/root/plant/empty.toml"])?;
    ensure!(refused.contains("/opt/pump/motor"), "{refused}");

    // Something new that nobody has decided about.
    must(
        "cp /usr/bin/id /opt/pump/new && echo new >> /opt/pump/new && /opt/pump/new -u > /dev/null",
    )?;
    let refused = said(1, &["mode", "enforce"])?;
    ensure!(refused.contains("/opt/pump/new") && !refused.contains("motor"), "{refused}");
    ensure!(json(&["status", "--json"])?["mode"] == "audit");
    must("rm /opt/pump/new")?;
    let refused = said(1, &["mode", "enforce"])?;
    ensure!(refused.contains("/opt/pump/new"), "gone, and run a moment ago: {refused}");
    review(&manifest)?;
    expect(0, &["policy", "reload"])?;
    expect(0, &["mode", "enforce"])?;
    must(WORK).context("in enforce mode")?;
    let mark = events::mark()?;
    ensure!(!sh(EVIL)?, "/tmp/evil runs");
    events::wait_for(mark, "evil", |event| event["reason"] == "denied")?;

    // The history outlives the agent.
    let count = || -> Result<u64> {
        let lines = said(0, &["history", "--json"])?;
        let motor = lines.lines().find(|line| line.contains("/opt/pump/motor")).context("motor")?;
        let motor: serde_json::Value = serde_json::from_str(motor)?;
        motor["uses"][0]["would_deny"].as_u64().context("a number")
    };
    let before = count()?;
    agent.stop()?;
    ensure!(Path::new(KEPT).exists(), "no {KEPT}");
    let agent = Agent::start(&policy, "enforce", &[])?;
    ensure!(before > 0 && count()? == before, "{before} became {}", count()?);
    agent.stop()
}

/// A person decides: packages as they are, `/tmp` and what is gone not, the rest yes.
fn review(manifest: &str) -> Result<()> {
    const FILE: &str = "/root/plant/review";
    let written = ["policy", "learn", "--accept-packages", "--write-review", FILE, "-o", manifest];
    expect(0, &written)?;
    let mut rejecting = false;
    let mut decided = String::new();
    for line in fs::read_to_string(FILE)?.lines() {
        if let Some(origin) = line.strip_prefix("# == ") {
            rejecting = origin.starts_with("in /tmp") || origin.starts_with("not there");
            println!("  {origin}");
        }
        let word = if rejecting { "reject " } else { "accept " };
        decided.push_str(&line.replacen("ask ", word, usize::from(line.starts_with("ask "))));
        decided.push('\n');
    }
    // Half decided is not decided.
    let undecided = portcullis(&["policy", "learn", "--review", FILE, "-o", manifest])?;
    ensure!(undecided.status.code() == Some(2), "{undecided:?}");
    fs::write(FILE, decided)?;
    expect(0, &["policy", "learn", "--review", FILE, "-o", manifest])?;
    Ok(())
}
