//! Catalogs that must not count, on a device that goes on working; and one that has expired.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::catalogs::{FOLDER, SIGNED, attempt, drop_in, policy, programs, wait_for};
use crate::{
    agent::{Agent, expect, json, portcullis, text},
    attack::Attempt,
    events,
};

/// Every one is refused for its own reason, which events, `status` and `catalog verify` name alike;
/// what they list stays denied, and the good catalog among them counts.
pub fn refused() -> Result<()> {
    let [program, tool, evil] = programs()?;
    let reasons = fs::read_to_string(format!("{SIGNED}/hostile/reasons"))?;
    let expected: Vec<_> = reasons.lines().filter_map(|line| line.split_once(' ')).collect();
    ensure!(expected.len() >= 15, "{reasons}");
    let policy = policy("[\"executable\"]")?;
    policy.append(&format!(
        "[[signer]]\nname = \"old\"\nslot = \"maker\"\ncertificate = \"{SIGNED}/old.crt\"\n\
         kinds = [\"executable\"]\n"
    ))?;
    let agent = Agent::start(&policy, "enforce", &[])?;
    let mark = events::mark()?;
    for name in ["tools", "hostile", "expired"] {
        drop_in(name)?;
    }
    fs::remove_file(format!("{FOLDER}/reasons"))?;
    wait_for(mark, "tools.catalog", "in-force")?;
    let told = wait_for(mark, "expired.catalog", "in-force")?;
    let warning = "the certificate of CN=expired,O=ACME expired at 2022-01-01T00:00:00Z";
    ensure!(told["signed"][0]["warnings"][0] == warning, "{told}");
    // What events tell comes from the same place, and can have come in several readings.
    for (file, reason) in &expected {
        events::wait_for(mark, &format!("{file} refused as {reason}"), |event| {
            event["type"] == "catalog"
                && event["reason"] == *reason
                && event["file"].as_str().is_some_and(|seen| seen.ends_with(&format!("/{file}")))
        })?;
    }
    let status = json(&["status", "--json"])?;
    ensure!(found(&status)? == sorted(&expected), "{status}");
    let in_force = status["catalogs"].as_array().context("no catalogs")?;
    ensure!(in_force.len() == 2, "{status}");
    let checks = status["checks"].as_array().context("no checks")?;
    let row = checks.iter().find(|check| check["id"] == "catalogs").context("no row")?;
    ensure!(row["state"] == "warning", "{row}");
    let shown = String::from_utf8(portcullis(&["status"])?.stdout)?;
    ensure!(shown.contains(warning), "{shown}");

    attempt(&evil, Attempt::Refused, "listed by catalogs that are refused")?;
    attempt(&tool, Attempt::Ran, "listed by the good catalog")?;
    attempt(&program, Attempt::Ran, "vouched for by a certificate that has expired")?;

    let policy = text(&policy.file)?;
    let files: Vec<_> = expected.iter().map(|(file, _)| format!("{FOLDER}/{file}")).collect();
    let mut words = vec!["catalog", "verify", "--json", "--policy", policy];
    words.extend(files.iter().map(String::as_str));
    let answers: Value = serde_json::from_slice(&expect(1, &words)?.stdout)?;
    for (answer, (file, reason)) in answers.as_array().context("no list")?.iter().zip(&expected) {
        ensure!(answer["verified"] == false && answer["reason"] == *reason, "{file}: {answer}");
    }
    let old = format!("{FOLDER}/expired.catalog");
    let shown = expect(0, &["catalog", "verify", "--policy", policy, &old])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains(warning), "{shown}");
    agent.stop()
}

fn sorted(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut all: Vec<_> =
        expected.iter().map(|(file, reason)| ((*file).to_owned(), (*reason).to_owned())).collect();
    all.sort();
    all
}

/// What `status` says is not in force.
fn found(status: &Value) -> Result<Vec<(String, String)>> {
    let refused = status["refused"].as_array().context("no list of what is refused")?;
    let mut all: Vec<_> = refused
        .iter()
        .map(|one| {
            let file = Path::new(one["path"].as_str().unwrap_or_default()).file_name();
            let reason = one["reason"].as_str().unwrap_or_default();
            (file.unwrap_or_default().to_string_lossy().into_owned(), reason.to_owned())
        })
        .collect();
    all.sort();
    Ok(all)
}
