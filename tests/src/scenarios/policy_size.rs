//! Policies of many digests.

use std::{fmt::Write, fs, path::Path, time::Instant};

use anyhow::{Context, Result, ensure};

use super::base_policy;
use crate::{
    agent::{Agent, json},
    attack::{Attempt, evil, exec_path, install},
};

/// 100,000 digests, in a manifest and in the policy file itself, load and decide.
pub fn hundred_thousand() -> Result<()> {
    const DIGESTS: usize = 100_000;
    let policy = base_policy(&[])?;
    let folder = Path::new("/run/policy");
    let mut list = String::new();
    for number in 0..DIGESTS / 2 {
        writeln!(list, "{:064x}  /opt/file{number}", number + 1)?;
    }
    fs::write(folder.join("more"), list)?;
    let mut text = fs::read_to_string(&policy.file)?.replace(
        "include = [\"base.manifest\"]",
        "include = [\"base.manifest\", { path = \"more\", kinds = [\"library\"] }]",
    );
    for number in 0..DIGESTS / 2 {
        writeln!(
            text,
            "[[allow]]\ndigest = \"{:064x}\"\nkinds = [\"executable\"]",
            DIGESTS + number
        )?;
    }
    fs::write(&policy.file, text)?;
    let start = Instant::now();
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    println!("  {DIGESTS} digests in force after {:.1} s", start.elapsed().as_secs_f32());
    let status = json(&["status", "--json"])?;
    ensure!(status["digests"].as_u64().context("digests")? > DIGESTS as u64, "{status}");
    println!("  {} KiB resident", status["resident_kib"]);
    install(Path::new("/tmp/one-too-many"), &evil("one too many")?)?;
    ensure!(exec_path("/tmp/one-too-many")? == Attempt::Refused);
    agent.stop()
}
