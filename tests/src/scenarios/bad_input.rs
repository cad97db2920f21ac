//! What is not as it should be: one clear line, the right exit code, and nothing changed.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{base_policy, fresh, list, sha256};
use crate::{
    agent::{Agent, PATIENCE, Policy, expect, json, portcullis, text},
    attack::{Attempt, evil, exec_path, good, install},
    console, events,
};

/// Policies, manifests and arguments of every wrong kind.
pub fn bad_input() -> Result<()> {
    let lab = fresh("/run/bad")?;
    let head = "name = \"p\"\nversion = 1\nmode = \"audit\"\n";
    let digest = "a".repeat(64);
    let write = |name: &str, content: &[u8]| -> Result<String> {
        let path = lab.join(name);
        fs::write(&path, content)?;
        Ok(text(&path)?.to_owned())
    };
    let ours = format!("# portcullis manifest 1\n# kinds: library\n{digest}  /a\n");
    write("cut.manifest", ours.as_bytes())?;
    write("binary.manifest", b"\x7fELF\x02\x01\x01")?;
    fs::File::create(lab.join("huge.manifest"))?.set_len(1 << 33)?;
    let include = |name: &str| format!("{head}include = [\"{name}\"]\n");
    let cases: [(&str, String, &str); 14] = [
        ("missing.toml", String::new(), "cannot be read: No such file"),
        ("empty.toml", String::new(), "`name` is missing"),
        ("syntax.toml", format!("{head}[[allow]\n"), "not valid TOML"),
        ("mode.toml", head.replace("audit", "observe"), ":3:8: unknown mode \"observe\""),
        ("version.toml", head.replace("= 1", "= -1"), ":2:11: `version` must be a whole number"),
        (
            "key.toml",
            format!("{head}alow = []\n"),
            ":4:1: unknown key `alow` in a policy; did you mean `allow`?",
        ),
        (
            "short.toml",
            format!("{head}[[allow]]\ndigest = \"ab\"\nkinds = [\"library\"]\n"),
            ":5:10: a digest of 2 digits",
        ),
        (
            "kind.toml",
            format!("{head}[[allow]]\ndigest = \"{digest}\"\nkinds = [\"plugin\"]\n"),
            ":6:10: unknown kind \"plugin\"",
        ),
        (
            "both.toml",
            format!(
                "{head}[[allow]]\ndigest = \"{digest}\"\nkinds = [\"library\"]\n[[deny]]\ndigest = \"{digest}\"\n"
            ),
            ":8:1: digest aaaaaaaaaaaa… is denied here and allowed in line 5",
        ),
        ("gone.toml", include("nowhere"), ":4:12: includes /run/bad/nowhere, which cannot be read"),
        ("folder.toml", include("."), "is not a file"),
        (
            "cut.toml",
            include("cut.manifest"),
            "cut.manifest: ends after 1 entries without an end line",
        ),
        (
            "binary.toml",
            include("binary.manifest"),
            "binary.manifest:1:1: `\u{7f}` is not a hexadecimal digit",
        ),
        ("huge.toml", include("huge.manifest"), "is larger than 256 MiB"),
    ];
    for (name, content, expected) in &cases {
        let path = if *name == "missing.toml" {
            text(&lab.join(name))?.to_owned()
        } else {
            write(name, content.as_bytes())?
        };
        for command in [&["policy", "check", &path][..], &["run", "--policy", &path]] {
            let output = expect(2, command)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(
                said.contains(expected) && said.contains("/run/bad/"),
                "{name}: {said:?} lacks {expected:?}"
            );
        }
    }
    for (arguments, code) in [
        (&["run"][..], 2),
        (&["frobnicate"], 2),
        (&["run", "--policy", "/dev/zero"], 2),
        (&["run", "--policy", "/run/bad"], 2),
        (&["scan", "/nowhere", "-o", "/run/bad/m"], 2),
        (&["scan", "/bin", "-o", "/nowhere/m"], 2),
        (&["policy", "init", "--from", "/nowhere", "-o", "/run/bad/p.toml"], 2),
        (&["policy", "init", "--from", "/run/bad/cut.manifest", "-o", "/run/bad/p.toml"], 2),
        (&["policy", "init", "--from", "/run/bad/cut.manifest", "-o", "/run/bad/empty.toml"], 2),
        (&["explain", "/nowhere"], 2),
        (&["mode", "off"], 2),
        (&["mode"], 3),
        (&["events"], 3),
    ] {
        let output = expect(code, arguments)?;
        ensure!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
    ensure!(!lab.join("p.toml").exists() && !lab.join("m").exists(), "something was half made");

    // Without privilege.
    let policy = base_policy(&[])?;
    let output = Command::new("portcullis")
        .args(["run", "--policy", text(&policy.file)?])
        .uid(65534)
        .gid(65534)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(3)
            && said.contains("run it as root")
            && said.lines().count() == 1,
        "{said}"
    );
    // An event file that cannot be.
    let output =
        expect(2, &["run", "--policy", text(&policy.file)?, "--events", "/nowhere/events"])?;
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("/nowhere/events: No such file"),
        "{output:?}"
    );
    after_it_was_enforced(&policy)
}

/// A policy file that was enforced, and has mistakes when the agent is started again.
fn after_it_was_enforced(policy: &Policy) -> Result<()> {
    const COPY: &str = "/var/lib/portcullis/bundles/given.bundle";
    let evil_program = Path::new("/tmp/unlisted");
    install(evil_program, &evil("bad input")?)?;
    let is_refused = || Ok::<_, anyhow::Error>(exec_path(evil_program)? == Attempt::Refused);
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    let end = Instant::now() + PATIENCE;
    while !Path::new(COPY).exists() {
        ensure!(Instant::now() < end, "no copy of the policy file was made");
        sleep(Duration::from_millis(20));
    }
    agent.signal(Signal::KILL)?;
    let good = fs::read_to_string(&policy.file)?;
    fs::write(&policy.file, good.clone() + "\n[[alow]]\n")?;
    // Of an agent that has no copy the gates go on.
    let output = expect(2, &["run", "--policy", text(&policy.file)?, "--state", "/run/empty"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.contains("did you mean `allow`?")
            && said.contains("the gates of the agent before stay"),
        "{said}"
    );
    ensure!(is_refused()?, "the gates have gone");

    let mark = events::mark()?;
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    let told = events::wait_for(mark, "the file is passed over", |event| {
        event["type"] == "bundle" && event["state"] == "passed-over"
    })?;
    let why = told["message"].as_str().unwrap_or_default();
    ensure!(why.contains("did you mean `allow`?"), "{told}");
    ensure!(is_refused()?, "nothing is enforced any more");
    let check = || -> Result<Value> {
        let status: Value = serde_json::from_slice(&portcullis(&["status", "--json"])?.stdout)?;
        let mut checks = status["checks"].as_array().into_iter().flatten();
        Ok(checks.find(|check| check["id"] == "bundles").cloned().unwrap_or_default())
    };
    let told = check()?;
    let found = told["found"].as_str().unwrap_or_default();
    ensure!(told["state"] == "failed" && found.contains("as it was in force before"), "{told}");
    expect(2, &["policy", "reload", "--skip-preflight"])?;
    fs::write(&policy.file, good)?;
    expect(0, &["policy", "reload", "--skip-preflight"])?;
    ensure!(check()?["state"] == "ok" && is_refused()?);
    agent.stop()
}

/// `explain` says what the gates will do, for files of every sort.
pub fn explain() -> Result<()> {
    let lab = fresh("/tmp/explain")?;
    let at = |name: &str| lab.join(name);
    install(&at("listed"), &good("explain")?)?;
    install(&at("unlisted"), &good("explain, another")?)?;
    install(&at("script"), b"#!/bin/sh\nexit 0\n")?;
    install(&at("denied"), &good("explain, denied")?)?;
    install(&at("text"), b"nothing that runs\n")?;
    fs::File::create(at("giant"))?.set_len(100 << 30)?;
    std::os::unix::fs::symlink(at("listed"), at("link"))?;
    let policy = base_policy(&[&at("listed")])?;
    list(&policy, &at("script"), &["library"])?;
    policy.append(&format!("\n[[deny]]\ndigest = \"{}\"\n", sha256(&at("denied"))?))?;
    /// Path, whether it is allowed, and each use with its reason.
    type Expectation = (&'static str, bool, &'static [(&'static str, &'static str)]);
    let expectations: [Expectation; 9] = [
        ("/tmp/explain/listed", true, &[("executable", "listed")]),
        ("/tmp/explain/link", true, &[("executable", "listed")]),
        ("/tmp/explain/unlisted", false, &[("executable", "unlisted")]),
        ("/tmp/explain/script", false, &[("script", "wrong-kind")]),
        ("/tmp/explain/denied", false, &[("executable", "denied")]),
        ("/tmp/explain/text", true, &[]),
        ("/dev/zero", false, &[("library", "not-a-file")]),
        ("/usr/bin/bash", true, &[("executable", "listed")]),
        ("/bin/busybox", true, &[("executable", "listed")]),
    ];
    let check = |more: &[&str], mode: &str| -> Result<()> {
        for (path, allowed, uses) in &expectations {
            let mut arguments = vec!["explain", "--json", path];
            arguments.extend(more);
            let output = expect(if *allowed { 0 } else { 1 }, &arguments)?;
            let answer: Value = serde_json::from_slice(&output.stdout)?;
            let seen: Vec<_> = answer[0]["uses"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|one| {
                    (one["kind"].as_str().unwrap_or("?"), one["reason"].as_str().unwrap_or("?"))
                })
                .collect();
            ensure!(seen == *uses, "{path}: {answer}");
            ensure!(answer[0]["mode"] == mode, "{path}: {answer}");
            if path.starts_with("/tmp/explain/l") {
                ensure!(answer[0]["digest"] == sha256(Path::new(path))?, "{answer}");
            }
        }
        Ok(())
    };
    // Without an agent, from the file alone.
    check(&["--policy", text(&policy.file)?], "audit")?;
    let agent = Agent::start(&policy, "audit", &[])?;
    check(&[], "audit")?;
    expect(0, &["mode", "enforce", "--skip-preflight"])?;
    check(&[], "enforce")?;
    // What was refused is on the page that people look at.
    ensure!(exec_path("/tmp/explain/unlisted")? == Attempt::Refused, "not refused");
    let page = expect(0, &["console", "--once"])?.stdout;
    let page = String::from_utf8(page)?;
    ensure!(page.contains("REFUSED /tmp/explain/unlisted (unlisted)"), "{page}");
    ensure!(page.lines().count() == 24, "{page}");
    console::shows("REFUSED /tmp/explain/unlisted (unlisted)")?;
    agent.stop()?;
    // A giant, and a FIFO that nobody writes to, take no time.
    expect(0, &["explain", "/tmp/explain/giant", "--policy", text(&policy.file)?])?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )?;
    expect(1, &["explain", "/tmp/explain/fifo", "--policy", text(&policy.file)?])?;
    let shown = json(&["explain", "--json", "/usr/bin/bash", "--policy", text(&policy.file)?])?;
    ensure!(shown[0]["rule"]["file"] == "/run/policy/base.manifest", "{shown}");
    Ok(())
}

/// The console over a serial line.
pub fn serial_line() -> Result<()> {
    let refused = fresh("/tmp/line")?.join("unlisted");
    install(&refused, &evil("line")?)?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    ensure!(exec_path(&refused)? == Attempt::Refused, "not refused");
    console::shows_over_a_line("REFUSED /tmp/line/unlisted (unlisted)")?;
    agent.stop()
}
