//! Bundles over the network: by those who may, and by nobody else.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::Output,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::bundles::{DEVICE, Operator, wait_for};
use crate::{
    agent::{expect, json, resident_kib, text},
    door::{self, Door},
    events, link,
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
    link::set_loopback(true)?;
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
    let door = opened(&operator, &pki)?;

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

    flood(&operator, &door)?;
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
    drop(door);
    ensure!(TcpStream::connect(ADDRESS).is_err(), "somebody else listens");
    door::check("warning", "is not there")?;
    operator.holds(3, false, "without a door")?;
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
    let shut = Door::start()?;
    sleep(Duration::from_millis(500));
    ensure!(TcpStream::connect(ADDRESS).is_err(), "there is a port");
    drop(shut);
    agent.stop()
}

/// The agent listens to nobody on the network; its door does, which cannot read what its user may not.
fn opened(operator: &Operator, pki: &Pki) -> Result<Door> {
    let key = pki.path("pump-3.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let missing = door::check("warning", "is not there")?;
    let mend = missing["mend"].as_str().unwrap_or_default();
    ensure!(mend.contains("systemctl enable --now portcullis-network"), "{missing}");
    ensure!(TcpStream::connect(ADDRESS).is_err(), "the agent listens");
    // As root, it is not run at all.
    let output = expect(3, &["network-door"])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("not for root"), "{output:?}");
    let door = Door::start()?;
    let check = door::check("warning", "pump-3.key cannot be read")?;
    println!("  {}; {}", check["found"], check["mend"]);
    ensure!(TcpStream::connect(ADDRESS).is_err(), "it listens without its key");
    // As root, who may: what is beside the device's file is permitted, and the rest is told.
    let output = expect(1, &["network-door", "--permit"])?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(told.contains("pump-3.key: let the user portcullis-network read it"), "{told}");
    let folder = Path::new("/etc/portcullis/api");
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    for name in ["pump-3.key", "pump-3.pem", "ca.pem"] {
        let file = folder.join(name);
        fs::copy(pki.path(name), &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    }
    let device = fs::read_to_string(DEVICE)?.replace(text(&pki.folder)?, text(folder)?);
    fs::write(DEVICE, device)?;
    let output = expect(0, &["network-door", "--permit"])?;
    println!("  {}", String::from_utf8_lossy(&output.stderr).trim().replace('\n', "\n  "));
    let found = door::check("ok", ADDRESS)?;
    println!("  {}", found["found"]);
    ensure!(TcpStream::connect(ADDRESS).is_ok(), "it does not listen");
    strangers_at_the_socket()?;
    let status = fs::read_to_string(format!("/proc/{}/status", door.pid()))?;
    for line in ["CapEff:\t0000000000000000", &format!("Uid:\t{0}\t{0}", door::UID)] {
        ensure!(status.contains(line), "the door has privileges: {status}");
    }
    operator.holds(1, false, "with a door")?;
    Ok(door)
}

/// The agent's socket for the door answers its user, and nobody else, root included.
fn strangers_at_the_socket() -> Result<()> {
    let mut stream = UnixStream::connect("/run/portcullis/network.sock")?;
    let mut answer = Vec::new();
    let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n");
    let _ = stream.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "root was answered: {}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Connections that say nothing cost the agent and its door nothing that lasts.
fn flood(operator: &Operator, door: &Door) -> Result<()> {
    let kib = || json(&["status", "--json"])?["resident_kib"].as_u64().context("resident memory");
    let (before, doors) = (kib()?, resident_kib(door.pid())?);
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
    let after = resident_kib(door.pid())?;
    println!("  {done} connections: {before} KiB before, {during} KiB after");
    println!("  the door: {doors} KiB before, {after} KiB after");
    ensure!(during < before + 2048, "{before} KiB before, {during} KiB after");
    ensure!(after < doors + 8192, "the door: {doors} KiB before, {after} KiB after");
    ensure!(Path::new(DEVICE).exists());
    Ok(())
}
