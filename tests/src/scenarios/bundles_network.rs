//! Bundles over the network: by those who may, and by nobody else.

use std::{
    fs,
    net::TcpStream,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::bundles::{DEVICE, Operator, wait_for};
use crate::{
    agent::{expect, json, text},
    events,
    pki::Pki,
};

const ADDRESS: &str = "127.0.0.1:7443";

impl Pki {
    /// Runs `portcullis` on the device, as this operator.
    fn ask(&self, code: i32, name: &str, words: &[&str]) -> Result<Output> {
        Self::ask_at(&self.folder, "pump-3=127.0.0.1", code, name, words)
    }

    /// The same with certificates that are in a folder, at another address.
    pub(super) fn ask_at(
        folder: &Path,
        device: &str,
        code: i32,
        name: &str,
        words: &[&str],
    ) -> Result<Output> {
        let [cert, key, ca] =
            [format!("{name}.pem"), format!("{name}.key"), "ca.pem".into()].map(|n| folder.join(n));
        let way = ["--device", device, "--cert", text(&cert)?, "--key", text(&key)?];
        expect(code, &[words, &way[..], &["--ca", text(&ca)?]].concat())
    }
}

pub(super) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(mark: events::Mark, reason: &str) -> Result<Value> {
    events::wait_for(mark, &format!("an access refused for {reason}"), |event| {
        event["type"] == "access-refused" && event["reason"] == reason
    })
}

fn by(event: &Value, name: &str) -> Result<()> {
    let by = &event["by"];
    ensure!(by["via"] == "network" && by["name"] == name, "{event}");
    ensure!(by["fingerprint"].as_str().is_some_and(|print| print.len() == 64), "{event}");
    ensure!(by["address"].as_str().is_some_and(|from| from.starts_with("127.0.0.1:")), "{event}");
    Ok(())
}

/// A policy comes over the network for its signature, from those who may bring it.
pub fn pushed() -> Result<()> {
    let up = Command::new("/bin/busybox").args(["ip", "link", "set", "lo", "up"]).status()?;
    ensure!(up.success(), "the loopback device: {up}");
    let operator = Operator::new()?;
    let pki = Pki::new("/run/pki")?;
    for name in ["pump-3", "ann", "bob", "eve"] {
        pki.make(name)?;
    }
    let stranger = Pki::new("/run/stranger")?;
    stranger.make("ann")?;
    fs::copy(pki.path("ca.pem"), stranger.path("ca.pem"))?;
    fs::create_dir_all("/etc/portcullis")?;
    let config = format!(
        "name = \"pump-3\"\n[api]\nlisten = \"{ADDRESS}\"\ncertificate = \"{0}/pump-3.pem\"\n\
         key = \"{0}/pump-3.key\"\nclient_ca = \"{0}/ca.pem\"\n[[api.client]]\nname = \"ann\"\n\
         role = \"policy-admin\"\n[[api.client]]\nname = \"bob\"\nrole = \"operator\"\n",
        text(&pki.folder)?
    );
    wrong_configuration(&operator, &config)?;
    fs::write(DEVICE, &config)?;
    let agent = operator.start()?;
    operator.holds(1, false, "the policy file")?;

    let second = operator.bundle(2, true, &[])?;
    let mark = events::mark()?;
    let output =
        pki.ask(0, "ann", &["policy", "push", &second, "--confirm-within", "1h", "--json"])?;
    let row: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(row["result"] == "done" && row["policy"]["version"] == 2, "{row}");
    by(&wait_for(mark, "trial")?, "ann")?;
    operator.holds(2, true, "pushed over the network")?;
    pki.ask(0, "bob", &["policy", "confirm"])?;
    by(&wait_for(mark, "confirmed")?, "bob")?;

    // What one is let in for, one may do, and nothing more.
    let third = operator.bundle(3, false, &[])?;
    let mark = events::mark()?;
    let output = pki.ask(3, "bob", &["policy", "push", &third])?;
    ensure!(said(&output).contains("this needs policy-admin"), "{}", said(&output));
    by(&refused(mark, "role")?, "bob")?;
    let output = pki.ask(3, "eve", &["status"])?;
    ensure!(said(&output).contains("has no role here"), "{}", said(&output));
    let output = stranger.ask(3, "ann", &["policy", "push", &third])?;
    ensure!(said(&output).contains("does not take this certificate"), "{}", said(&output));
    let told = refused(mark, "wrong-certificate")?;
    ensure!(told["by"].is_null(), "{told}");
    // A policy counts for its signature, whoever brings it.
    let mark = events::mark()?;
    let output = pki.ask(1, "ann", &["policy", "push", &operator.unsigned(4, false, &[])?])?;
    ensure!(said(&output).contains("unsigned"), "{}", said(&output));
    by(&wait_for(mark, "refused")?, "ann")?;
    operator.holds(2, true, "after all that was refused")?;

    flood(&operator)?;
    let output = pki.ask(0, "bob", &["events", "--json"])?;
    let found = said(&output).lines().any(|line| {
        serde_json::from_str::<Value>(line).is_ok_and(|told| {
            told["device"] == "pump-3=127.0.0.1" && told["event"]["by"]["name"] == "ann"
        })
    });
    ensure!(found, "no event over the network: {}", said(&output));

    let mark = events::mark()?;
    pki.ask(0, "bob", &["policy", "rollback", "--because", "a test"])?;
    by(&wait_for(mark, "reverted")?, "bob")?;
    operator.holds(1, false, "rolled back over the network")?;
    let mark = events::mark()?;
    expect(0, &["policy", "push", &third])?;
    let told = wait_for(mark, "in-force")?;
    ensure!(told["by"]["via"] == "local" && told["by"]["uid"] == 0, "{told}");
    operator.stop(agent)
}

/// A mistake there is told, and keeps no gate from standing.
fn wrong_configuration(operator: &Operator, config: &str) -> Result<()> {
    fs::write(DEVICE, config.replace("role = \"operator\"", "role = \"boss\""))?;
    let agent = operator.start()?;
    operator.holds(1, false, "a wrong configuration")?;
    let status = json(&["status", "--json"])?;
    let checks = status["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["id"] == "api").context("no check")?;
    let found = check["found"].as_str().context("what was found")?;
    ensure!(
        check["state"] == "warning" && found.contains("device.toml:12: unknown role"),
        "{check}"
    );
    ensure!(TcpStream::connect(ADDRESS).is_err(), "there is a port");
    agent.stop()
}

/// Connections that say nothing cost the agent nothing that lasts.
fn flood(operator: &Operator) -> Result<()> {
    let kib = || json(&["status", "--json"])?["resident_kib"].as_u64().context("resident memory");
    let before = kib()?;
    let (mut held, mut done) = (Vec::new(), 0);
    for _ in 0..2000 {
        if let Ok(stream) = TcpStream::connect(ADDRESS) {
            held.push(stream);
            done += 1;
        }
        if held.len() == 200 {
            held.clear();
        }
    }
    let during = kib()?;
    operator.holds(2, true, "under a flood of connections")?;
    println!("  {done} connections: {before} KiB before, {during} KiB after");
    ensure!(during < before + 2048, "{before} KiB before, {during} KiB after");
    ensure!(Path::new(DEVICE).exists());
    Ok(())
}
