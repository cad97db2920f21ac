//! A commissioning, lived from beginning to end and told on the way, with the commands that a
//! technician would type.

use std::{
    fmt::Write,
    process::{Command, ExitCode, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// Where the demonstration keeps its files on the device.
const FOLDER: &str = "/etc/portcullis";

/// What was expected and what was seen, for the table at the end.
#[derive(Default)]
struct Findings {
    rows: Vec<(String, &'static str, &'static str)>,
}

impl Findings {
    fn add(&mut self, what: impl Into<String>, expected: &'static str, seen: &'static str) {
        self.rows.push((what.into(), expected, seen));
    }

    fn show(&self) -> bool {
        println!("\n{:<58} {:<10} {:<10}", "what", "expected", "seen");
        for (what, expected, seen) in &self.rows {
            let mark = if expected == seen { "" } else { "  <-- differs" };
            println!("{what:<58} {expected:<10} {seen:<10}{mark}");
        }
        self.rows.iter().all(|(_, expected, seen)| expected == seen)
    }
}

fn tell(text: &str) {
    println!("\n── {text}");
}

/// What a command line gave.
struct Ran {
    code: i32,
    text: String,
}

/// Types a command line, shows it and what it says (the last `lines` lines), and returns both.
fn type_in(line: &str, lines: usize) -> Result<Ran> {
    println!("# {line}");
    let output = Command::new("/bin/sh")
        .args(["-c", &format!("({line}) 2>&1")])
        .stdin(Stdio::null())
        .output()
        .with_context(|| line.to_owned())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let all: Vec<_> = text.lines().collect();
    if all.len() > lines && lines > 0 {
        println!("  …");
    }
    for shown in all.iter().skip(all.len().saturating_sub(lines)) {
        println!("  {shown}");
    }
    Ok(Ran { code: output.status.code().unwrap_or(-1), text })
}

/// The same for a command that must succeed.
fn must(line: &str, lines: usize) -> Result<String> {
    let ran = type_in(line, lines)?;
    ensure!(ran.code == 0, "`{line}` ended with {}:\n{}", ran.code, ran.text);
    Ok(ran.text)
}

/// Waits until a command line succeeds.
fn wait_for(line: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let status = Command::new("/bin/sh")
            .args(["-c", line])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if status.success() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "`{line}` did not succeed within a minute");
        sleep(Duration::from_millis(200));
    }
}

/// An attack: what it is, the command line, and what the output must say if it was refused.
struct Attack {
    name: &'static str,
    line: String,
    refused: &'static [&'static str],
}

/// The dynamic loader.
const LOADER: &str = "/lib*/ld-linux-*.so.*";

fn attacks() -> Result<Vec<Attack>> {
    let loader = find(LOADER)?;
    let library = find("/usr/lib/*-linux-gnu/libz.so.1")?;
    must(
        &format!(
            "cp /usr/bin/id /tmp/evil && echo changed >> /tmp/evil && \
             cp {library} /tmp/evil.so && echo changed >> /tmp/evil.so"
        ),
        5,
    )?;
    let python = "import os; f = os.memfd_create('evil'); \
                  os.write(f, open('/tmp/evil', 'rb').read()); os.execve(f, ['id'], {})";
    Ok(vec![
        Attack {
            name: "a copied and changed program",
            line: "/tmp/evil".into(),
            refused: &["Operation not permitted", "Permission denied"],
        },
        Attack {
            name: "an unlisted library through LD_PRELOAD",
            line: "LD_PRELOAD=/tmp/evil.so /usr/bin/id".into(),
            refused: &["cannot be preloaded"],
        },
        Attack {
            name: "an unlisted program through the dynamic loader",
            line: format!("{loader} /tmp/evil"),
            refused: &["Operation not permitted", "Permission denied", "failed to map"],
        },
        Attack {
            name: "an unlisted program from memory (memfd)",
            line: format!("python3 -c \"{python}\""),
            refused: &["PermissionError", "Operation not permitted"],
        },
    ])
}

fn find(pattern: &str) -> Result<String> {
    let output =
        Command::new("/bin/sh").args(["-c", &format!("ls -d {pattern} | head -n 1")]).output()?;
    let found = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(!found.is_empty(), "nothing like {pattern} on this device");
    Ok(found)
}

fn try_attacks(
    attacks: &[Attack],
    mode: &str,
    expected: &'static str,
    findings: &mut Findings,
) -> Result<()> {
    for attack in attacks {
        let ran = type_in(&attack.line, 3)?;
        let refused = attack.refused.iter().any(|words| ran.text.contains(words));
        let seen = if refused { "refused" } else { "runs" };
        findings.add(format!("{mode}: {}", attack.name), expected, seen);
    }
    Ok(())
}

/// A device is commissioned: from nothing to enforce, and attacked afterwards.
pub fn commissioning() -> ExitCode {
    finish(|findings| {
        tell("A device as it left the factory: Debian with systemd and its services.");
        // Until everything has started that starts at boot.
        wait_for("systemctl is-system-running | grep -qE 'running|degraded'")?;
        must(
            "systemctl --no-legend list-units --type=service --state=running | awk '{print $1}' | xargs",
            4,
        )?;

        tell("1. Can this kernel hold the gates? Everything is tried, nothing is assumed.");
        must("portcullis doctor", 20)?;

        tell("2. What is on the device? Programs, libraries, scripts, modules, by their content.");
        must(&format!("mkdir -p {FOLDER} && portcullis scan / -o {FOLDER}/base.manifest"), 4)?;
        must(
            &format!(
                "portcullis policy init --from {FOLDER}/base.manifest --name demo -o {FOLDER}/policy.toml"
            ),
            2,
        )?;
        must(&format!("cat {FOLDER}/policy.toml"), 10)?;

        tell("3. Somebody forgot a tool: it came after the scan.");
        must(
            "printf '#!/bin/sh\\necho pump is fine\\n' > /usr/local/bin/pump-check && chmod +x /usr/local/bin/pump-check",
            2,
        )?;

        tell("4. Audit: nothing is blocked, everything that would be is reported.");
        let run = format!(
            "systemd-run --quiet --unit=portcullis portcullis run --policy {FOLDER}/policy.toml --events /var/log/portcullis.jsonl"
        );
        must(&run, 2)?;
        wait_for("portcullis status")?;
        let listed = must("pump-check && systemctl restart cron && systemctl is-active cron", 3)?;
        findings.add(
            "audit: the forgotten tool",
            "runs",
            if listed.contains("pump is fine") { "runs" } else { "refused" },
        );
        let attacks = attacks()?;
        try_attacks(&attacks, "audit", "runs", findings)?;
        sleep(Duration::from_millis(500));
        let would = must("portcullis events | grep 'would deny' | cut -c 1-150", 12)?;
        findings.add(
            "audit: the tool and every attack were reported",
            "yes",
            if ["pump-check", "/tmp/evil ", "/tmp/evil.so", "memfd:evil"]
                .iter()
                .all(|what| would.contains(what))
            {
                "yes"
            } else {
                "no"
            },
        );

        tell("5. Enforce? Not while it would stop what has run and nobody has decided about.");
        let refused = type_in("portcullis mode enforce", 8)?;
        findings.add(
            "audit: enforcing before anybody has decided",
            "refused",
            if refused.code == 1 { "refused" } else { "possible" },
        );

        tell(
            "6. A person decides. The tool is legitimate; the rest is not, and is denied by name.",
        );
        let review = format!("{FOLDER}/review");
        let learned = format!("{FOLDER}/learned.manifest");
        must(&format!("portcullis policy learn --write-review {review} -o {learned}"), 6)?;
        must(&format!("grep -A 2 '^# ==' {review} | cut -c 1-110"), 12)?;
        must(&format!("sed -i '/pump-check/s/^ask/accept/; s/^ask/reject/' {review}"), 1)?;
        must(&format!("portcullis policy learn --review {review} -o {learned}"), 3)?;
        must(
            &format!(
                "sed -i 's/\"base.manifest\"/\"base.manifest\", \"learned.manifest\"/; s/^version = 1/version = 2/' {FOLDER}/policy.toml"
            ),
            2,
        )?;
        must("portcullis policy reload", 2)?;
        // What runs from memory has no digest to be denied, and the loader is needed as a library.
        must("portcullis history --expect-denied '/memfd:evil (deleted)'", 2)?;
        must(&format!("portcullis history --expect-denied $(realpath {})", find(LOADER)?), 2)?;
        must("portcullis mode enforce", 5)?;
        must("portcullis status", 8)?;
        let tool = type_in("pump-check", 2)?;
        findings.add(
            "enforce: the tool",
            "runs",
            if tool.text.contains("pump is fine") { "runs" } else { "refused" },
        );

        tell("8. The same attacks again.");
        try_attacks(&attacks, "enforce", "refused", findings)?;
        sleep(Duration::from_millis(500));
        must("portcullis events | grep ' denied ' | tail -n 4", 4)?;
        type_in("portcullis explain /tmp/evil", 8)?;

        tell("9. The system itself goes on as before.");
        let services = type_in(
            "systemctl restart cron ssh && systemctl is-active cron ssh && systemctl daemon-reload && logger still here",
            4,
        )?;
        findings.add(
            "enforce: systemctl restarts services",
            "works",
            if services.code == 0 { "works" } else { "fails" },
        );
        let failed = type_in("systemctl --no-legend list-units --failed | wc -l", 1)?;
        findings.add(
            "enforce: no service failed",
            "yes",
            if failed.text.trim() == "0" { "yes" } else { "no" },
        );
        let scheduled = type_in("systemd-run --quiet --wait --pipe /usr/bin/id -u", 1)?;
        findings.add(
            "enforce: a transient service",
            "works",
            if scheduled.text.trim() == "0" { "works" } else { "fails" },
        );

        tell("10. The agent is killed. The gates stay.");
        must("systemctl kill --signal=KILL portcullis; sleep 1", 1)?;
        type_in("portcullis status", 2)?;
        let after = type_in("/tmp/evil", 1)?;
        let refused = after.text.contains("Operation not permitted");
        findings.add(
            "agent killed: the changed program",
            "refused",
            if refused { "refused" } else { "runs" },
        );
        must("portcullis stop", 1)?;
        Ok(())
    })
}

/// The audit part, on the machine that this runs on.
pub fn here() -> ExitCode {
    finish(|findings| {
        tell("Can this kernel hold the gates?");
        must("portcullis doctor", 20)?;
        tell("What is on this machine? (A part of it, to keep this short.)");
        let folder = Command::new("mktemp").arg("-d").output()?;
        let folder = String::from_utf8(folder.stdout)?.trim().to_owned();
        must(&format!("portcullis scan /usr/bin /usr/sbin -o {folder}/base.manifest"), 3)?;
        must(
            &format!(
                "portcullis policy init --from {folder}/base.manifest --name here -o {folder}/policy.toml"
            ),
            2,
        )?;
        tell("Ten seconds of audit. Nothing is blocked.");
        println!("# portcullis run --policy {folder}/policy.toml --mode audit");
        let log = std::fs::File::create(format!("{folder}/log"))?;
        let mut agent = Command::new("portcullis")
            .args(["run", "--policy", &format!("{folder}/policy.toml"), "--mode", "audit"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let watched = (|| {
            wait_for("portcullis status")?;
            let attacks = attacks()?;
            try_attacks(&attacks, "audit", "runs", findings)?;
            sleep(Duration::from_secs(10));
            let would = must("portcullis events | grep 'would deny' | cut -c 1-150", 12)?;
            let seen = if would.contains("/tmp/evil ") { "yes" } else { "no" };
            findings.add("audit: the changed program was reported", "yes", seen);
            must("portcullis status", 8)
        })();
        must("portcullis stop", 1)?;
        agent.wait()?;
        watched.map(drop)
    })
}

fn finish(story: impl FnOnce(&mut Findings) -> Result<()>) -> ExitCode {
    let mut findings = Findings::default();
    let told = story(&mut findings);
    let as_expected = findings.show();
    let mut end = String::new();
    match &told {
        // Writing to a string does not fail.
        Err(error) => drop(writeln!(end, "the demonstration broke off: {error:#}")),
        Ok(()) if as_expected => end.push_str("everything came out as expected\n"),
        Ok(()) => end.push_str("something came out differently\n"),
    }
    print!("\n{end}");
    if told.is_ok() && as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
