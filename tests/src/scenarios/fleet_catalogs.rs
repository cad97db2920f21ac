//! Catalogs through a fleet's servers, on a device that enforces: the part of scenario `fleet` in which a
//! program is let in and taken back.

use std::{
    fs::{self, File},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    fleet::{FOLDER, bundle_of, fleet, holds, journal, policy_text, push},
    package::sh,
};
use crate::{
    agent::{PATIENCE, expect, json},
    attack::{Attempt, evil, exec_path, install},
};

const PROGRAM: &str = "/root/fleet/program";
const KEPT: &str = "/var/lib/portcullis/fleet/catalog-program.parcel";

/// Makes version `version` of the catalog `program` from a manifest, with a signature.
fn catalog(
    version: u64,
    name: &str,
    manifest: &str,
    key: Option<&str>,
    more: &[&str],
) -> Result<String> {
    let file = format!("{FOLDER}/{name}.catalog");
    let number = version.to_string();
    let words =
        ["catalog", "make", "--from", manifest, "--name", "program", "--version", &number, "-o"];
    expect(0, &[&words[..], &[&file], more].concat())?;
    if let Some(key) = key {
        expect(0, &["catalog", "sign", &file, "--key", &format!("{FOLDER}/{key}.pem")])?;
    }
    Ok(file)
}

/// Pushes a catalog and returns what the device says of it.
fn give(code: i32, catalog: &str) -> Result<Value> {
    let rows = fleet(code, &["catalogs", "push", catalog, "--group", "plant-7", "--json"])?;
    rows.into_iter().next().context("no device answers")
}

/// Waits until the program is let in, or is not any more.
fn comes_to(expected: Attempt, when: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while exec_path(PROGRAM)? != expected {
        ensure!(Instant::now() < end, "{when}: not {expected:?}: {}", journal()?);
        sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A program that only a catalog lists runs once the catalog has come, and not when it is taken back; what
/// nobody trusted has signed does not count; and what is taken back cannot be let in again by the servers.
pub fn let_in_and_taken_back() -> Result<()> {
    for name in ["maker", "nobody"] {
        expect(0, &["key", "generate", "-o", &format!("{FOLDER}/{name}.pem")])?;
    }
    let of = |name: &str| format!("{FOLDER}/{name}.manifest");
    let server = "/opt/receivers/usr/sbin/nats-server";
    expect(0, &["scan", "-o", &of("device"), "/usr", "/var/lib/dpkg", server])?;
    install(Path::new(PROGRAM), &evil("fleet")?)?;
    for (name, path) in [("program", PROGRAM), ("other", "/usr/bin/true")] {
        expect(0, &["scan", "-o", &of(name), path])?;
    }
    let enforcing = policy_text(4)
        .replace("\"audit\"", "\"enforce\"\ninclude = [\"device.manifest\"]")
        + "[[signer]]\nname = \"maker\"\nslot = \"maker\"\nkey = \"maker.pub.pem\"\nkinds = \
           [\"executable\"]\nsigns = [\"catalog\"]\n";
    let first = catalog(1, "first", &of("program"), Some("maker"), &[])?;
    // Before the policy that trusts its signer, as well as signed by nobody whom any policy trusts.
    for (file, why) in [
        (catalog(1, "unsigned-here", &of("program"), Some("nobody"), &[])?, "bad-signature"),
        (first.clone(), "bad-signature"),
    ] {
        let row = give(1, &file)?;
        let message = row["message"].as_str().unwrap_or_default();
        ensure!(row["result"] == "refused" && message.contains(why), "{row}");
        println!("  refused: {message}");
    }
    let unsigned = catalog(1, "unsigned", &of("program"), None, &[])?;
    fleet(2, &["catalogs", "push", &unsigned, "--group", "plant-7"])?;
    let row = push(0, &bundle_of(4, &enforcing)?, &[])?;
    ensure!(row["result"] == "done" && row["mode"] == "enforce", "{row}");
    holds(4)?;
    comes_to(Attempt::Ran, "its catalog was there before the policy that trusts it")?;
    let explained = json(&["explain", "--json", PROGRAM])?;
    ensure!(explained[0]["rule"]["signed"][0]["signer"] == "maker", "{explained}");
    fleet(0, &["catalogs", "remove", "program", "--group", "plant-7"])?;
    comes_to(Attempt::Refused, "its catalog is taken away")?;
    let row = give(0, &first)?;
    ensure!(row["result"] == "done", "{row}");
    comes_to(Attempt::Ran, "its catalog is there again")?;
    let listed = fleet(0, &["catalogs", "list", "--group", "plant-7", "--json"])?;
    ensure!(listed[0]["name"] == "program" && listed[0]["digests"] == 1, "{listed:?}");

    // The next version takes it back, while the link is away.
    let withdraw = ["--withdraw-from", &first];
    let second = catalog(2, "second", &of("other"), Some("maker"), &withdraw)?;
    sh("systemctl stop portcullis-fleet")?;
    let words = ["catalogs", "push", &second, "--group", "plant-7", "--json", "--presence", "2s"];
    ensure!(fleet(0, &words)?[0]["result"] == "away", "it is not");
    ensure!(exec_path(PROGRAM)? == Attempt::Ran, "nothing has come yet");
    sh("systemctl start portcullis-fleet")?;
    comes_to(Attempt::Refused, "it is taken back")?;
    // The servers cannot let it in again, and nor can root.
    let row = give(1, &first)?;
    ensure!(row["message"].as_str().is_some_and(|text| text.contains("rollback")), "{row}");
    let rows = fleet(1, &["catalogs", "remove", "program", "--group", "plant-7", "--json"])?;
    ensure!(rows[0]["result"] == "stays", "{rows:?}");
    ensure!(fs::remove_file(KEPT).is_err(), "root has removed {KEPT}");
    ensure!(File::options().append(true).open(KEPT).is_err(), "root may write {KEPT}");
    ensure!(File::create("/var/lib/portcullis/fleet/x").is_err(), "root adds to the folder");
    ensure!(exec_path(PROGRAM)? == Attempt::Refused, "it is let in again");
    // It survives the agent.
    sh("systemctl restart portcullis")?;
    ensure!(exec_path(PROGRAM)? == Attempt::Refused, "a restart lets it in");
    let status = json(&["status", "--json"])?;
    ensure!(status["kept"][0]["name"] == "program", "{}", status["kept"]);

    let by_link = |line: &Value, state: &str| {
        let event = &line["event"];
        event["type"] == "catalog" && event["state"] == state && event["by"]["via"] == "fleet"
    };
    let end = Instant::now() + PATIENCE;
    loop {
        let lines = fleet(0, &["events", "--json"])?;
        let missing = ["received", "taken-away", "refused"]
            .into_iter()
            .find(|state| !lines.iter().any(|line| by_link(line, state)));
        let Some(missing) = missing else { break };
        ensure!(Instant::now() < end, "no event `{missing}` at the servers: {}", journal()?);
        sleep(Duration::from_millis(500));
    }
    // Only what is signed lifts it.
    let row = push(0, &bundle_of(5, &policy_text(5))?, &[])?;
    ensure!(row["result"] == "done" && row["mode"] == "audit", "{row}");
    Ok(())
}
