//! Catalogs: what a signer vouches for joins the policy, and leaves it.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, Timespec, clock_settime};
use serde_json::Value;

use super::{base_policy, fresh};
use crate::{
    agent::{Agent, Policy, expect, json, text},
    attack::{Attempt, exec_path},
    events,
};

/// What the host has made.
pub(super) const SIGNED: &str = "/files/signed";
/// The agent's folder of catalogs.
pub(super) const FOLDER: &str = "/var/lib/portcullis/catalogs";
/// Which versions were in force.
const SEEN: &str = "/var/lib/portcullis/catalogs.json";

/// No catalog was ever in force.
pub(super) fn forget_versions() {
    for file in [SEEN.to_owned(), format!("{SEEN}.copy")] {
        let _ = fs::remove_file(file);
    }
}

/// A policy that trusts a maker for some kinds, and an operator for programs.
pub(super) fn policy(maker_kinds: &str) -> Result<Policy> {
    let _ = fs::remove_dir_all(FOLDER);
    forget_versions();
    let policy = base_policy(&[])?;
    policy.append(&format!(
        "\n[[signer]]\nname = \"acme\"\nslot = \"maker\"\ncertificate = \"{SIGNED}/ca.crt\"\n\
         kinds = {maker_kinds}\nsubject = {{ common_name = \"ACME release\" }}\n\
         [[signer]]\nname = \"plant\"\nslot = \"operator\"\nkey = \"{SIGNED}/operator.pub.pem\"\n\
         kinds = [\"executable\"]\n"
    ))?;
    Ok(policy)
}

/// Puts a catalog and its signature into the agent's folder, as a copy does: one after the other.
pub(super) fn drop_in(name: &str) -> Result<()> {
    for entry in fs::read_dir(Path::new(SIGNED).join(name))? {
        let entry = entry?;
        fs::copy(entry.path(), Path::new(FOLDER).join(entry.file_name()))?;
    }
    Ok(())
}

fn take_away(name: &str) -> Result<()> {
    for suffix in ["", ".p7s", ".sig"] {
        let _ = fs::remove_file(format!("{FOLDER}/{name}.catalog{suffix}"));
    }
    Ok(())
}

pub(super) fn wait_for(mark: events::Mark, file: &str, state: &str) -> Result<Value> {
    events::wait_for(mark, &format!("{file} {state}"), |event| {
        event["type"] == "catalog"
            && event["state"] == state
            && event["file"].as_str().is_some_and(|seen| seen.ends_with(file))
    })
}

fn wait_for_refusal(mark: events::Mark, file: &str, reason: &str) -> Result<()> {
    let wanted = |event: &Value| {
        event["type"] == "catalog"
            && event["reason"] == reason
            && event["file"].as_str().is_some_and(|seen| seen.ends_with(file))
    };
    events::wait_for(mark, &format!("{file} refused as {reason}"), wanted).map(drop)
}

/// Copies of what the host has made, on a filesystem that is not the initramfs.
pub(super) fn programs() -> Result<[std::path::PathBuf; 3]> {
    let lab = fresh("/tmp/catalogs")?;
    let copy = |name: &str| -> Result<_> {
        let path = lab.join(name);
        fs::copy(Path::new(SIGNED).join(name), &path)?;
        Ok(path)
    };
    copy("sleeper")?;
    Ok([copy("program")?, copy("tool")?, copy("evil")?])
}

pub(super) fn attempt(path: &Path, expected: Attempt, when: &str) -> Result<()> {
    let found = exec_path(path)?;
    ensure!(found == expected, "{when}: {} {found:?}", path.display());
    Ok(())
}

/// What is dropped in runs, what is taken away does not any more, and nobody else's counts.
pub fn join_and_leave() -> Result<()> {
    let [program, tool, evil] = programs()?;
    let agent = Agent::start(&policy("[\"executable\"]")?, "enforce", &[])?;
    attempt(&program, Attempt::Refused, "before there is a catalog")?;

    let mark = events::mark()?;
    drop_in("pump-1")?;
    let told = wait_for(mark, "pump-1.catalog", "in-force")?;
    ensure!(told["signed"][0]["algorithm"] == "RSA-PSS 3072 SHA-256", "{told}");
    ensure!(told["signed"][0]["chain"].as_array().is_some_and(|chain| chain.len() == 2), "{told}");
    let mark = events::mark()?;
    attempt(&program, Attempt::Ran, "listed by a catalog")?;
    let decision = events::wait_for(mark, "what the catalog allows", |event| {
        events::is_decision(event, "allow", &program)
    })?;
    ensure!(decision["rule"]["signers"][0] == "acme", "{decision}");
    let explained = json(&["explain", "--json", text(&program)?])?;
    ensure!(explained[0]["rule"]["signed"][0]["signer"] == "acme", "{explained}");

    // The operator's, with another algorithm.
    attempt(&tool, Attempt::Refused, "before its catalog")?;
    let mark = events::mark()?;
    drop_in("tools")?;
    wait_for(mark, "tools.catalog", "in-force")?;
    attempt(&tool, Attempt::Ran, "listed by the operator's catalog")?;

    for (name, reason) in [
        ("untrusted", "untrusted-signer"),
        ("unsigned", "unsigned"),
        ("changed", "content-changed"),
    ] {
        let mark = events::mark()?;
        drop_in(name)?;
        wait_for_refusal(mark, &format!("{name}.catalog"), reason)?;
        attempt(&evil, Attempt::Refused, name)?;
    }
    let status = json(&["status", "--json"])?;
    ensure!(status["catalogs"].as_array().is_some_and(|list| list.len() == 2), "{status}");
    ensure!(status["refused"].as_array().is_some_and(|list| list.len() == 3), "{status}");

    let mark = events::mark()?;
    take_away("tools")?;
    wait_for(mark, "tools.catalog", "removed")?;
    attempt(&tool, Attempt::Refused, "its catalog is gone")?;
    attempt(&program, Attempt::Ran, "the other catalog is there still")?;

    // The folder is read when an agent starts, too.
    agent.stop()?;
    let agent = Agent::start(&policy_again()?, "enforce", &[])?;
    attempt(&program, Attempt::Ran, "its catalog is there when the agent starts")?;
    agent.stop()
}

/// The policy as it is, without forgetting what was seen.
fn policy_again() -> Result<Policy> {
    Ok(Policy { file: Path::new("/run/policy/policy.toml").to_owned() })
}

/// What a newer catalog takes back is refused from the next start on, and does not come back.
pub fn taken_back() -> Result<()> {
    let [program, ..] = programs()?;
    let agent = Agent::start(&policy("[\"executable\"]")?, "enforce", &[])?;
    let mark = events::mark()?;
    drop_in("pump-1")?;
    wait_for(mark, "pump-1.catalog", "in-force")?;
    // A program that the catalog lists too.
    let mut running = Command::new("/tmp/catalogs/sleeper").arg("600").spawn()?;

    let mark = events::mark()?;
    drop_in("pump-2")?;
    wait_for(mark, "pump-2.catalog", "in-force")?;
    wait_for_refusal(mark, "pump-1.catalog", "superseded")?;
    ensure!(running.try_wait()?.is_none(), "what runs goes on");
    running.kill()?;
    running.wait()?;
    attempt(Path::new("/tmp/catalogs/sleeper"), Attempt::Refused, "taken back")?;
    let mark = events::mark()?;
    attempt(&program, Attempt::Refused, "taken back")?;
    let decision = events::wait_for(mark, "what the catalog denies", |event| {
        events::is_decision(event, "deny", &program)
    })?;
    ensure!(decision["reason"] == "denied", "{decision}");

    // Deny beats allow, also where the policy's own file lists it.
    agent.stop()?;
    let listing = policy_again()?;
    super::list(&listing, &program, &["executable"])?;
    let agent = Agent::start(&listing, "enforce", &["--skip-preflight"])?;
    attempt(&program, Attempt::Refused, "taken back, and listed by the policy")?;
    agent.stop()?;

    // The old one alone: refused, now and by the next agent.
    let agent = Agent::start(&policy_of("[\"executable\"]")?, "enforce", &[])?;
    let mark = events::mark()?;
    take_away("pump-2")?;
    wait_for_refusal(mark, "pump-1.catalog", "rollback")?;
    attempt(&program, Attempt::Refused, "by an old catalog")?;
    agent.stop()?;
    let mark = events::mark()?;
    let agent = Agent::start(&policy_again()?, "enforce", &[])?;
    wait_for_refusal(mark, "pump-1.catalog", "rollback")?;
    attempt(&program, Attempt::Refused, "by an old catalog, for the next agent")?;
    agent.stop()
}

/// The policy anew, without forgetting what was seen.
fn policy_of(kinds: &str) -> Result<Policy> {
    let kept = fs::read(SEEN)?;
    let files: Vec<_> = fs::read_dir(FOLDER)?.flatten().map(|entry| entry.path()).collect();
    let files: Vec<_> =
        files.iter().map(|path| Ok((path, fs::read(path)?))).collect::<Result<_>>()?;
    let policy = policy(kinds)?;
    fs::create_dir_all(FOLDER)?;
    for (path, content) in files {
        fs::write(path, content)?;
    }
    fs::write(SEEN, kept)?;
    Ok(policy)
}

/// What a signer may vouch for, and what the policy revokes.
pub fn bounds() -> Result<()> {
    let [program, ..] = programs()?;
    let agent = Agent::start(&policy("[\"library\"]")?, "enforce", &[])?;
    let mark = events::mark()?;
    drop_in("pump-1")?;
    wait_for(mark, "pump-1.catalog", "in-force")?;
    attempt(&program, Attempt::Refused, "its signer may vouch for libraries only")?;
    agent.stop()?;

    let print = certificate_print("leaf.crt")?;
    let cases = [
        (format!("[[revoke]]\ncertificate = \"{print}\"\n"), "revoked"),
        ("[[revoke]]\nsigner = \"acme\"\n".to_owned(), "revoked"),
        ("[[revoke]]\ncatalog = \"pump\"\nbelow = 2\n".to_owned(), "revoked"),
        ("[[signer]]\nname = \"more\"\nslot = \"operator\"\n".to_owned(), ""),
    ];
    for (revoked, reason) in cases {
        let policy = policy("[\"executable\"]")?;
        policy.append(&revoked)?;
        if reason.is_empty() {
            // A mistake in what is trusted is a mistake in the policy.
            let output = expect(2, &["policy", "check", text(&policy.file)?])?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(error.contains("`certificate` is missing"), "{error}");
            continue;
        }
        fs::create_dir_all(FOLDER)?;
        drop_in("pump-1")?;
        let mark = events::mark()?;
        let agent = Agent::start(&policy, "enforce", &[])?;
        wait_for_refusal(mark, "pump-1.catalog", reason)?;
        attempt(&program, Attempt::Refused, &revoked)?;
        agent.stop()?;
    }
    Ok(())
}

/// A key that the signer's present one vouches for counts while the statement lies there.
pub fn new_key() -> Result<()> {
    let [_, tool, _] = programs()?;
    let agent = Agent::start(&policy("[\"executable\"]")?, "enforce", &[])?;
    let mark = events::mark()?;
    drop_in("tools-2")?;
    wait_for_refusal(mark, "tools-2.catalog", "bad-signature")?;
    attempt(&tool, Attempt::Refused, "signed with a key that nobody knows")?;
    let mark = events::mark()?;
    drop_in("next")?;
    let told = wait_for(mark, "tools-2.catalog", "in-force")?;
    ensure!(told["signed"][0]["signer"] == "plant", "{told}");
    attempt(&tool, Attempt::Ran, "signed with the new key")?;
    let mark = events::mark()?;
    for suffix in ["", ".sig"] {
        fs::remove_file(format!("{FOLDER}/next.rotation{suffix}"))?;
    }
    wait_for_refusal(mark, "tools-2.catalog", "bad-signature")?;
    attempt(&tool, Attempt::Refused, "the statement is gone")?;
    agent.stop()
}

/// Expiry warns and stops nothing, and a clock that was never set says nothing about it.
pub fn time() -> Result<()> {
    let [program, ..] = programs()?;
    let now = SystemTime::now();
    let decade = Duration::from_secs(10 * 365 * 86_400);
    // As a clock without a battery shows.
    let never_set = SystemTime::UNIX_EPOCH + decade;
    for (clock, warns) in [(now + decade, true), (never_set, false), (now, false)] {
        set_clock(clock)?;
        let done = (|| {
            let policy = policy("[\"executable\"]")?;
            fs::create_dir_all(FOLDER)?;
            drop_in("pump-1")?;
            let mark = events::mark()?;
            let agent = Agent::start(&policy, "enforce", &[])?;
            let told = wait_for(mark, "pump-1.catalog", "in-force")?;
            let warned =
                told["signed"][0]["warnings"].as_array().is_some_and(|all| !all.is_empty());
            ensure!(warned == warns, "at {clock:?}: {told}");
            attempt(&program, Attempt::Ran, "whatever the clock shows")?;
            let status = json(&["status", "--json"])?;
            let checks = status["checks"].as_array().context("no checks")?;
            let row = checks.iter().find(|check| check["id"] == "catalogs").context("no row")?;
            ensure!((row["state"] == "warning") == warns, "{row}");
            agent.stop()
        })();
        set_clock(now)?;
        done?;
    }
    Ok(())
}

/// What the policy file says anew counts from the next start on, while programs run and gates stand.
pub fn reload() -> Result<()> {
    let [program, tool, _] = programs()?;
    let trusting = policy("[\"executable\"]")?;
    fs::create_dir_all(FOLDER)?;
    drop_in("pump-1")?;
    let agent = Agent::start(&trusting, "enforce", &[])?;
    attempt(&program, Attempt::Ran, "its signer is trusted")?;
    let mut running = Command::new("/tmp/catalogs/sleeper").arg("600").spawn()?;

    trusting.append("\n[[revoke]]\nsigner = \"acme\"\n")?;
    let refused = expect(1, &["policy", "reload"])?;
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.contains("sleeper"), "what runs is not named: {refused}");
    attempt(&program, Attempt::Ran, "the policy before stays in force")?;
    expect(0, &["policy", "reload", "--skip-preflight"])?;
    ensure!(running.try_wait()?.is_none(), "what runs goes on");
    attempt(&program, Attempt::Refused, "its signer is revoked")?;
    attempt(Path::new("/tmp/catalogs/sleeper"), Attempt::Refused, "its signer is revoked")?;
    running.kill()?;
    running.wait()?;

    // A mistake leaves everything as it is.
    super::list(&trusting, &tool, &["executable"])?;
    expect(0, &["policy", "reload"])?;
    attempt(&tool, Attempt::Ran, "listed now")?;
    trusting.append("\n[[revoke]]\nsigner = \"nobody\"\n")?;
    let output = expect(2, &["policy", "reload"])?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(error.contains("no signer of this policy is called \"nobody\""), "{error}");
    attempt(&tool, Attempt::Ran, "the policy before stays in force")?;
    attempt(&program, Attempt::Refused, "the policy before stays in force")?;
    agent.stop()
}

fn set_clock(time: SystemTime) -> Result<()> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH)?;
    let time =
        Timespec { tv_sec: i64::try_from(since.as_secs())?, tv_nsec: since.subsec_nanos().into() };
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn certificate_print(name: &str) -> Result<String> {
    let path = Path::new(SIGNED).join(name);
    let shown = json(&["key", "show", "--json", text(&path)?])?;
    let print = shown["certificate"]["fingerprint"].as_str();
    print.map(str::to_owned).context("no fingerprint")
}
