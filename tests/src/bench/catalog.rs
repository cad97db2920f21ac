//! What a large catalog costs, beside the same digests in a manifest that the policy includes.

use std::{
    fmt::Write,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    agent::{Agent, Policy, expect, json as answer, text},
    attack::{Attempt, evil, exec_path, install},
    events,
    scenarios::{base_policy, list},
};

/// What both list.
const DIGESTS: u64 = 200_000;
/// The agent's folder of catalogs.
const FOLDER: &str = "/var/lib/portcullis/catalogs";
/// Where everything is made, on the same filesystem, so that a rename puts it there at once.
const LAB: &str = "/var/lib/portcullis/bench";

/// Measures both, and prints one line of JSON.
pub fn catalog() -> Result<()> {
    let _ = fs::remove_dir_all(FOLDER);
    fs::create_dir_all(FOLDER)?;
    fs::create_dir_all(LAB)?;
    let looped = Path::new("/var/lib/portcullis/bench/loop");
    install(looped, &evil("started all the time")?)?;
    let mut lines = String::new();
    for number in 1..=DIGESTS {
        writeln!(lines, "{number:064x}  /opt/file{number}")?;
    }
    let last = Path::new("/var/lib/portcullis/bench/last");
    install(last, &evil("the last one of the list")?)?;
    let digest = expect(0, &["scan", text(last)?, "-o", "-"]).map(|output| output.stdout)?;
    let digest = String::from_utf8(digest)?;
    let line = digest.lines().find(|line| !line.starts_with('#')).context("no digest")?;
    writeln!(lines, "{line}")?;
    fs::write("/var/lib/portcullis/bench/plain", &lines)?;
    let catalog = format!(
        "# portcullis manifest 1\n# catalog: large\n# version: 1\n# kinds: executable\n{lines}\
         # end: {} entries\n",
        DIGESTS + 1
    );
    fs::write("/var/lib/portcullis/bench/large.catalog", catalog)?;
    let at = |name: &str| format!("{LAB}/{name}");
    expect(0, &["key", "generate", "-o", &at("key.pem")])?;
    let sign = Instant::now();
    expect(0, &["catalog", "sign", &at("large.catalog"), "--key", &at("key.pem")])?;
    let sign = sign.elapsed();

    let as_catalog = dropped_in(looped, last)?;
    let as_manifest = included(looped, last)?;
    let result = json!({
        "digests": DIGESTS,
        "sign_ms": milliseconds(sign),
        "catalog": as_catalog,
        "manifest": as_manifest,
    });
    println!("@@result {result}");
    Ok(())
}

/// The catalog comes while the agent runs, and goes again.
fn dropped_in(looped: &Path, last: &Path) -> Result<Value> {
    let policy = base_policy(&[])?;
    list(&policy, looped, &["executable"])?;
    policy.append(&format!(
        "[[signer]]\nname = \"acme\"\nslot = \"maker\"\nkey = \"{LAB}/key.pub.pem\"\n\
         kinds = [\"executable\"]\n"
    ))?;
    let (agent, started) = start(&policy)?;
    ensure!(exec_path(last)? == Attempt::Refused, "nobody lists it yet");
    let before = used(&agent)?;
    // So that the peak is this one's, and not that of the start.
    let _ = fs::write(format!("/proc/{}/clear_refs", agent.pid()), "5");
    let in_force = move_in()?;
    ensure!(exec_path(last)? == Attempt::Ran, "it is listed now");
    let peak = field(&agent, "VmHWM")?;
    let with = used(&agent)?;
    let removed = move_out()?;
    ensure!(exec_path(last)? == Attempt::Refused, "nobody lists it any more");
    let after = used(&agent)?;
    // Once more, while programs are started: the gates must not notice.
    let ends = AtomicBool::new(false);
    let starts = thread::scope(|scope| {
        let worker = scope.spawn(|| starts_until(&ends, looped));
        let done = move_in().and_then(|_| move_out());
        ends.store(true, Ordering::Relaxed);
        let starts = worker.join().unwrap_or_else(|_| anyhow::bail!("the starts ended"));
        done.and(starts)
    })?;
    agent.stop()?;
    Ok(json!({
        "start_ms": milliseconds(started),
        "in_force_ms": milliseconds(in_force),
        "removed_ms": milliseconds(removed),
        "before": before,
        "peak_kib": peak,
        "with": with,
        "after": after,
        "starts": starts,
    }))
}

/// From the rename until the catalog is in force.
fn move_in() -> Result<Duration> {
    moved(LAB, FOLDER, "in-force")
}

fn move_out() -> Result<Duration> {
    moved(FOLDER, LAB, "removed")
}

fn moved(from: &str, to: &str, state: &str) -> Result<Duration> {
    let mark = events::mark()?;
    let began = Instant::now();
    for name in ["large.catalog.sig", "large.catalog"] {
        fs::rename(format!("{from}/{name}"), format!("{to}/{name}"))?;
    }
    wait_for(mark, state)?;
    Ok(began.elapsed())
}

fn wait_for(mark: events::Mark, state: &str) -> Result<Value> {
    events::wait_for(mark, state, |event| {
        event["type"] == "catalog"
            && event["state"] == state
            && event["file"].as_str().is_some_and(|file| file.ends_with("large.catalog"))
    })
}

/// Starts a program that is listed, again and again. None may be refused, and what nobody lists must
/// be.
fn starts_until(ends: &AtomicBool, looped: &Path) -> Result<Value> {
    let unlisted = Path::new("/tmp/unlisted");
    install(unlisted, &evil("never listed")?)?;
    let (mut starts, mut longest) = (0_u64, Duration::ZERO);
    while !ends.load(Ordering::Relaxed) {
        let began = Instant::now();
        ensure!(exec_path(looped)? == Attempt::Ran, "refused after {starts} starts");
        longest = longest.max(began.elapsed());
        ensure!(exec_path(unlisted)? == Attempt::Refused, "ran after {starts} starts");
        starts += 1;
    }
    Ok(json!({ "count": starts, "longest_ms": milliseconds(longest) }))
}

/// The same digests in the policy from the start.
fn included(looped: &Path, last: &Path) -> Result<Value> {
    let base = base_policy(&[])?;
    list(&base, looped, &["executable"])?;
    let policy = fs::read_to_string(&base.file)?.replace(
        "include = [\"base.manifest\"]",
        &format!(
            "include = [\"base.manifest\", {{ path = \"{LAB}/plain\", kinds = [\"executable\"] }}]"
        ),
    );
    fs::write(&base.file, policy)?;
    let (agent, started) = start(&base)?;
    ensure!(exec_path(last)? == Attempt::Ran, "it is listed");
    let peak = field(&agent, "VmHWM")?;
    let with = used(&agent)?;
    agent.stop()?;
    Ok(json!({ "start_ms": milliseconds(started), "peak_kib": peak, "with": with }))
}

fn start(policy: &Policy) -> Result<(Agent, Duration)> {
    let began = Instant::now();
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    Ok((agent, began.elapsed()))
}

/// Memory in KiB: the agent's, and what the kernel cannot give back.
fn used(agent: &Agent) -> Result<Value> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    // Maps that were replaced are freed after a grace period.
    thread::sleep(Duration::from_secs(2));
    let text = fs::read_to_string("/proc/meminfo")?;
    let kernel = ["SUnreclaim", "VmallocUsed", "Percpu"].iter().map(|name| value(&text, name));
    let kernel: u64 = kernel.collect::<Result<Vec<_>>>()?.iter().sum();
    let status = answer(&["status", "--json"])?;
    ensure!(status["digests"].as_u64().is_some(), "{status}");
    Ok(json!({ "agent_kib": field(agent, "VmRSS")?, "kernel_kib": kernel }))
}

fn field(agent: &Agent, name: &str) -> Result<u64> {
    value(&fs::read_to_string(format!("/proc/{}/status", agent.pid()))?, name)
}

fn value(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.with_context(|| format!("no {name}"))?.parse().with_context(|| name.to_owned())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
