//! A device of a fleet: the installed package, its link without privilege, and a real NATS server.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    fleet_catalogs,
    package::{forbid_strictly, nothing_was_forbidden, sh},
};
use crate::{
    agent::{self, PATIENCE, expect, json},
    pki::Pki,
};

pub(super) const FOLDER: &str = "/root/fleet";
const SERVER: &str = "/opt/receivers/usr/sbin/nats-server";
const ADDRESS: &str = "tls://127.0.0.1:4222";
/// The same as the device knows it: a name has to be found, by a process that may read nearly nothing.
const BY_NAME: &str = "tls://localhost:4222";

/// A server that ends with the scenario.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn server() -> Result<Server> {
    let accounts =
        expect(0, &["fleet", "accounts", "--operator", "ann", "--device", "pump-3=plant-7"])?;
    let config = format!(
        "server_name: one\nlisten: \"127.0.0.1:4222\"\njetstream {{ store_dir: \"{FOLDER}/store\" }}\n\
         tls {{ cert_file: \"{FOLDER}/server.pem\", key_file: \"{FOLDER}/server.key\", ca_file: \
         \"{FOLDER}/ca.pem\", verify_and_map: true, timeout: 60 }}\n{}",
        String::from_utf8_lossy(&accounts.stdout)
    );
    let file = format!("{FOLDER}/nats.conf");
    fs::write(&file, config)?;
    let log = fs::File::create(format!("{FOLDER}/nats.log"))?;
    let mut server = Command::new(SERVER);
    server.args(["--config", &file]).stdin(Stdio::null()).stderr(log);
    Ok(Server(server.spawn().context("starting nats-server")?))
}

/// Asks through the servers, as the operator.
pub(super) fn fleet(code: i32, words: &[&str]) -> Result<Vec<Value>> {
    let [cert, key, ca] = ["ann.pem", "ann.key", "ca.pem"].map(|name| format!("{FOLDER}/{name}"));
    let way = ["--server", ADDRESS, "--cert", &cert, "--key", &key, "--ca", &ca];
    let output = expect(code, &[&["fleet"], words, &way[..]].concat())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines = text.lines().filter(|line| line.starts_with('{'));
    Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
}

pub(super) fn push(code: i32, bundle: &str, more: &[&str]) -> Result<Value> {
    let words = ["push", bundle, "--group", "plant-7", "--json"];
    let rows = fleet(code, &[&words[..], more].concat())?;
    rows.into_iter().next().context("no device answers")
}

/// A bundle with this version of the policy.
fn bundle(version: u64, key: Option<&str>) -> Result<String> {
    built(version, &policy_text(version), key)
}

/// A bundle with this policy, as it should be signed.
pub(super) fn bundle_of(version: u64, policy: &str) -> Result<String> {
    built(version, policy, Some("ops"))
}

fn built(version: u64, text: &str, key: Option<&str>) -> Result<String> {
    let (policy, bundle) =
        (format!("{FOLDER}/v{version}.toml"), format!("{FOLDER}/v{version}.bundle"));
    fs::write(&policy, text)?;
    expect(0, &["policy", "build", &policy, "-o", &bundle])?;
    if let Some(key) = key {
        expect(0, &["policy", "sign", &bundle, "--key", &format!("{FOLDER}/{key}.pem")])?;
    }
    Ok(bundle)
}

pub(super) fn policy_text(version: u64) -> String {
    format!(
        "name = \"device\"\nversion = {version}\nmode = \"audit\"\n[[signer]]\nname = \"ops\"\nslot = \
         \"operator\"\nkey = \"ops.pub.pem\"\nsigns = [\"policy\"]\n"
    )
}

/// Waits until this version is in force.
pub(super) fn holds(version: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let status = agent::status()?;
        if status["policy"]["version"] == version {
            return Ok(());
        }
        ensure!(Instant::now() < end, "not {version}: {}; {}", status["policy"], journal()?);
        sleep(Duration::from_millis(300));
    }
}

pub(super) fn journal() -> Result<String> {
    sh(
        "journalctl --no-pager -n 30 -u portcullis-fleet -u portcullis; tail -n 20 /root/fleet/nats.log",
    )
}

/// What an operator says through the servers is done for its signature, at once or when the device comes
/// back; and what the device does is told there.
pub fn through_servers() -> Result<()> {
    forbid_strictly()?;
    // Another scenario may have purged it.
    sh(
        "systemctl is-system-running --wait > /dev/null; dpkg --install /files/portcullis_0.0.1_*.deb",
    )?;
    let pki = Pki::new(FOLDER)?;
    for name in ["server", "ann", "pump-3"] {
        pki.make_for(name, &[name, "127.0.0.1", "localhost"])?;
    }
    for name in ["ops", "stranger"] {
        expect(0, &["key", "generate", "-o", &format!("{FOLDER}/{name}.pem")])?;
    }
    sh("grep -qs localhost /etc/hosts || echo '127.0.0.1 localhost' >> /etc/hosts")?;
    let first = server()?;
    fs::write("/etc/portcullis/policy.toml", policy_text(1))?;
    fs::copy(format!("{FOLDER}/ops.pub.pem"), "/etc/portcullis/ops.pub.pem")?;
    let own = "/etc/portcullis/fleet";
    sh(&format!(
        "install -d -m 0700 -o portcullis-fleet {own} && install -m 0600 -o portcullis-fleet \
         {FOLDER}/ca.pem {FOLDER}/pump-3.pem {FOLDER}/pump-3.key {own}"
    ))?;
    fs::write(
        "/etc/portcullis/device.toml",
        format!(
            "name = \"pump-3\"\ngroups = [\"plant-7\"]\n[fleet]\nservers = [\"{BY_NAME}\"]\n\
             certificate = \"{own}/pump-3.pem\"\nkey = \"{own}/pump-3.key\"\nca = \"{own}/ca.pem\"\n"
        ),
    )?;
    fs::set_permissions("/etc/portcullis/device.toml", fs::Permissions::from_mode(0o644))?;
    sh("systemctl restart portcullis && systemctl start portcullis-fleet")?;
    let status = json(&["status", "--json"])?;
    let checks = status["checks"].as_array().context("checks")?;
    let check = checks.iter().find(|check| check["id"] == "fleet").context("no check")?;
    ensure!(check["state"] == "ok", "{check}");
    println!(
        "  {}",
        sh("systemd-analyze security --no-pager portcullis-fleet | tail -n 1")?.trim()
    );
    nobody_else()?;

    let room = ["--bundles", "64", "--catalogs", "16", "--events", "64"];
    fleet(0, &[&["prepare", "--replicas", "1"], &room[..]].concat())?;
    let end = Instant::now() + PATIENCE;
    let said = loop {
        let said = fleet(0, &["status", "--json"])?;
        if let Some(said) = said.into_iter().next() {
            break said;
        }
        ensure!(Instant::now() < end, "the device says nothing: {}", journal()?);
        sleep(Duration::from_millis(500));
    };
    ensure!(said["device"] == "pump-3" && said["policy"]["version"] == 1, "{said}");
    let confined = sh("journalctl --no-pager -u portcullis-fleet | grep 'confined by itself'")?;
    println!("  {}", confined.trim());
    ensure!(!confined.contains("not confined"), "{confined}");
    // Servers come back, and are found again.
    drop(first);
    let _server = server()?;
    sh(
        "for i in $(seq 100); do grep -q ' 0100007F:107E 01 ' /proc/net/tcp && exit 0; sleep 0.5; done; exit 1",
    )?;

    // A policy counts for its signature, whoever brings it.
    for (bundle, why) in
        [(bundle(2, None)?, "unsigned"), (bundle(2, Some("stranger"))?, "unknown-signer")]
    {
        let row = push(1, &bundle, &[])?;
        let message = row["message"].as_str().unwrap_or_default();
        ensure!(row["result"] == "refused", "{why}: {row}");
        println!("  refused: {message}");
    }
    holds(1)?;
    let second = bundle(2, Some("ops"))?;
    let more = ["--confirm-within", "10m", "--stage", "100%", "--settle", "1s", "--confirm"];
    let row = push(0, &second, &more)?;
    ensure!(row["result"] == "done" && row["policy"]["version"] == 2, "{row}");
    let status = json(&["status", "--json"])?;
    ensure!(status["bundle"]["version"] == 2 && status["bundle"]["until"].is_null(), "{status}");

    // Away, and back.
    sh("systemctl stop portcullis-fleet")?;
    let row = push(0, &bundle(3, Some("ops"))?, &["--presence", "2s"])?;
    ensure!(row["result"] == "away", "{row}");
    holds(2)?;
    sh("systemctl start portcullis-fleet")?;
    holds(3)?;
    let rows = fleet(0, &["rollback", "--group", "plant-7", "--json"])?;
    ensure!(rows[0]["result"] == "done", "{rows:?}");
    holds(2)?;

    let end = Instant::now() + PATIENCE;
    let by_link = |line: &Value| {
        line["device"] == "pump-3"
            && line["event"]["type"] == "bundle"
            && line["event"]["by"]["via"] == "fleet"
    };
    while !fleet(0, &["events", "--json"])?.iter().any(by_link) {
        ensure!(Instant::now() < end, "no such event at the servers: {}", journal()?);
        sleep(Duration::from_millis(500));
    }
    fleet_catalogs::let_in_and_taken_back()?;
    sh("systemctl stop portcullis-fleet && dpkg --purge portcullis")?;
    nothing_was_forbidden()?;
    ensure!(!Path::new("/var/lib/portcullis-fleet").exists(), "the link's folder is left");
    Ok(())
}

/// The agent's socket for the link answers the link's user, and nobody else.
fn nobody_else() -> Result<()> {
    let ask = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('/run/portcullis/fleet.sock')\n\
               s.sendall(b'GET /v1/status HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n')\nprint(len(s.recv(9)))";
    fs::write("/tmp/ask.py", ask)?;
    for (user, expected) in [("root", false), ("portcullis-fleet", true), ("nobody", false)] {
        let line =
            format!("setpriv --reuid {user} --clear-groups python3 /tmp/ask.py 2>&1 || true");
        let said = sh(&line)?;
        ensure!((said.trim() == "9") == expected, "{user}: {said}");
    }
    Ok(())
}
