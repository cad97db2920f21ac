//! Policies of many digests: they load, decide, and are switched while programs start.

use std::{
    fmt::Write,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{base_policy, sha256};
use crate::{
    agent::{Agent, Policy, expect, json},
    attack::{Attempt, evil, exec_path, install},
};

/// 100,000 digests, in a manifest and in the policy file itself, load, decide, and are switched.
pub fn hundred_thousand() -> Result<()> {
    many(100_000, 2)
}

/// So many digests, and so many switches from one such policy to another.
pub fn many(digests: usize, switches: usize) -> Result<()> {
    let policy = base_policy(&[])?;
    let folder = Path::new("/run/policy");
    let mut list = String::new();
    for number in 0..digests / 2 {
        writeln!(list, "{:064x}  /opt/file{number}", number + 1)?;
    }
    fs::write(folder.join("more"), list)?;
    let mut text = fs::read_to_string(&policy.file)?.replace(
        "include = [\"base.manifest\"]",
        "include = [\"base.manifest\", { path = \"more\", kinds = [\"library\"] }]",
    );
    for number in 0..digests / 2 {
        writeln!(
            text,
            "[[allow]]\ndigest = \"{:064x}\"\nkinds = [\"executable\"]",
            digests + number
        )?;
    }
    fs::write(&policy.file, &text)?;
    let start = Instant::now();
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    println!("  {digests} digests in force after {:.1} s", start.elapsed().as_secs_f32());
    let status = json(&["status", "--json"])?;
    ensure!(status["digests"].as_u64().context("digests")? > digests as u64, "{status}");
    println!("  {} KiB resident", status["resident_kib"]);
    install(Path::new("/tmp/one-too-many"), &evil("one too many")?)?;
    ensure!(exec_path("/tmp/one-too-many")? == Attempt::Refused);
    switch(&policy, &text, switches)?;
    agent.stop()
}

/// Reloads a policy that always lists one program, and one of two others by turns, while all three are
/// started again and again.
fn switch(policy: &Policy, text: &str, switches: usize) -> Result<()> {
    const ALWAYS: &str = "/tmp/always";
    const BY_TURNS: [&str; 2] = ["/tmp/even", "/tmp/odd"];
    for path in [ALWAYS, BY_TURNS[0], BY_TURNS[1]] {
        install(Path::new(path), &evil(path)?)?;
    }
    let put_in_force = |round: usize| -> Result<()> {
        let mut text = text.to_owned();
        for path in [ALWAYS, BY_TURNS[round % 2]] {
            let digest = sha256(Path::new(path))?;
            write!(text, "\n[[allow]]\ndigest = \"{digest}\"\nkinds = [\"executable\"]\n")?;
        }
        fs::write(&policy.file, text)?;
        expect(0, &["policy", "reload", "--skip-preflight"]).map(drop)
    };
    put_in_force(0)?;
    let (over, starts, switched) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let run_all = || -> Result<()> {
        let mut last = None;
        while !over.load(Relaxed) {
            ensure!(exec_path(ALWAYS)? == Attempt::Ran, "what both policies list was refused");
            let [before, other, after] = [BY_TURNS[0], BY_TURNS[1], BY_TURNS[0]].map(exec_path);
            let (before, other, after) = (before?, other?, after?);
            // A switch takes longer than these three, so that there was none between them.
            ensure!(
                before != after || other != before,
                "both or none of two programs ran, which no policy says: {before:?}"
            );
            if last.is_some_and(|last| last != after) {
                switched.fetch_add(1, Relaxed);
            }
            last = Some(after);
            starts.fetch_add(4, Relaxed);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let runner = scope.spawn(run_all);
        let done = (1..=switches).try_for_each(put_in_force);
        over.store(true, Relaxed);
        let ran = runner.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?;
        ran.and(done)
    })?;
    let (starts, seen) = (starts.into_inner(), switched.into_inner());
    println!("  {switches} switches during {starts} starts, {seen} of them seen between two");
    // The last one may come after the last start.
    ensure!(seen + 1 >= switches as u64, "{switches} switches, and the programs saw {seen}");
    ensure!(starts > 4 * switches as u64, "only {starts} programs were started meanwhile");
    Ok(())
}
