//! Audit mode is invisible.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{base_policy, fresh};
use crate::{
    agent::{Agent, json},
    attack::{good, install, is_old_kernel},
};

/// Starts of programs, in which nothing may differ.
const STARTS: usize = 2_000;

/// Thousands of starts of listed and unlisted programs, scripts and pipelines come out exactly as
/// without us.
pub fn audit() -> Result<()> {
    let lab = fresh("/data/soak")?;
    let small = lab.join("small");
    install(&small, &good("soak")?)?;
    let mut unlisted = fs::read("/usr/bin/cat")?;
    unlisted.extend(b"unlisted");
    install(&lab.join("cat"), &unlisted)?;
    install(&lab.join("script"), b"#!/bin/sh\necho \"$1\" | /data/soak/cat\nexit $(($1 % 5))\n")?;
    install(&lab.join("broken"), b"#!/nowhere/interpreter\n")?;
    install(&lab.join("no-program"), b"neither binary nor script\n")?;
    let without = outcomes(lab)?;
    let agent = Agent::start(&base_policy(&[])?, "audit", &[])?;
    let start = Instant::now();
    let with = outcomes(lab)?;
    println!("  {STARTS} starts in audit mode took {:.0} s", start.elapsed().as_secs_f32());
    for (number, (without, with)) in without.iter().zip(&with).enumerate() {
        ensure!(without == with, "start {number}: {without:?} without us, {with:?} in audit mode");
    }
    let status = json(&["status", "--json"])?;
    let gates = status["gates"].as_array().context("gates")?;
    for gate in gates {
        ensure!(gate["denied"] == 0, "{gate}");
    }
    ensure!(gates.iter().any(|gate| gate["would_deny"].as_u64() > Some(0)), "{status}");
    // Where the agent hashes, that is a warning by itself.
    let expected = if is_old_kernel() { "warning" } else { "ok" };
    ensure!(status["health"] == expected, "{status}");
    agent.stop()
}

/// Exit code or error, and output, of every start.
fn outcomes(lab: &Path) -> Result<Vec<(Option<i32>, Vec<u8>)>> {
    let mut outcomes = Vec::with_capacity(STARTS);
    for number in 0..STARTS {
        let argument = number.to_string();
        // Mostly the quickest, so that there can be many; every sort a hundred times or more.
        let (program, arguments) = match number % 40 {
            0 => (lab.join("script"), vec![argument.as_str()]),
            1 => (lab.join("cat"), vec!["/etc/passwd"]),
            2 => ("/usr/bin/id".into(), vec!["-u"]),
            3 => (lab.join("broken"), vec![]),
            4 => (lab.join("no-program"), vec![]),
            5 => ("/nowhere".into(), vec![]),
            6 => ("/usr/bin/env".into(), vec!["-i", "/bin/echo", argument.as_str()]),
            _ => (lab.join("small"), vec![]),
        };
        let mut command = Command::new(&program);
        command.args(arguments).stdin(Stdio::null());
        // Pipes cost more than the start itself, so they are only for those that say something.
        let outcome = if program == lab.join("small") {
            command.status().map(|status| (status.code(), Vec::new()))
        } else {
            let output = command.output();
            output.map(|output| (output.status.code(), [output.stdout, output.stderr].concat()))
        };
        outcomes.push(
            outcome.unwrap_or_else(|error| (error.raw_os_error().map(|errno| -errno), Vec::new())),
        );
    }
    Ok(outcomes)
}
