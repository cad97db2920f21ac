//! Events at the receivers that plants have: what they have parsed, read back.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{
    fresh, metrics,
    receivers::{ACROSS_THE_NETWORK, FOLDER, RECEIVERS, STATE, receiver, rsyslog, syslog_ng},
};
use crate::{
    agent::{Agent, PATIENCE, Policy, expect, json, portcullis},
    attack::{evil, exec_path, install},
    events,
    gadget::{self, Function, Gadget},
    pki::Pki,
};

/// The agent's numbers.
const NUMBERS: &str = "/root/received/portcullis.prom";
const DEVICE: &str = "/etc/portcullis/device.toml";

const SINKS: &str = r#"
[[sink]]
name = "journal"
type = "journald"

[[sink]]
name = "near"
type = "syslog"
address = "unix:/root/received/log.sock"
format = "ecs"
events = "alarms"

[[sink]]
name = "stuck"
type = "syslog"
address = "tcp:127.0.0.1:5141"

[[sink]]
name = "audit"
type = "audit"

[[sink]]
name = "log"
type = "file"
path = "/root/received/log/events.jsonl"
max_mib = 1
"#;

const RSYSLOG: &str = r#"
module(load="imtcp" StreamDriver.Name="ptcp")
module(load="mmpstrucdata")
input(type="imtcp" port="5140" ruleset="in")
template(name="line" type="string" string="%$!rfc5424-sd!portcullis@32473!record% %$!rfc5424-sd!portcullis@32473!type% %$!rfc5424-sd!portcullis@32473!path% %app-name% %msgid%\n")
ruleset(name="in") {
    action(type="mmpstrucdata")
    action(type="omfile" file="/root/received/rsyslog.txt" template="line")
}
"#;

const SYSLOG_NG: &str = r#"@version: 3.38
options { keep-hostname(yes); stats-freq(0); };
source s_tls { syslog(ip(127.0.0.1) port(6514) transport("tls")
    tls(key-file("/root/received/siem.key") cert-file("/root/received/siem.pem") peer-verify(optional-untrusted))); };
source s_local { unix-dgram("/root/received/log.sock" flags(syslog-protocol)); };
destination d_tls { file("/root/received/syslog-ng.txt"
    template("${.SDATA.portcullis@32473.record} ${.SDATA.portcullis@32473.type} ${.SDATA.portcullis@32473.path} ${PROGRAM} ${MSGID}\n")); };
destination d_local { file("/root/received/local.txt" template("${MSG}\n")); };
log { source(s_tls); destination(d_tls); };
log { source(s_local); destination(d_local); };
"#;

/// Waits until something is so.
fn until<T>(what: &str, found: impl Fn() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found()? {
            return Ok(found);
        }
        if Instant::now() > end {
            let log = fs::read_to_string(format!("{FOLDER}/receivers.log")).unwrap_or_default();
            let status = json(&["status", "--json"])?;
            bail!("{what} did not come; sinks {}; receivers:\n{log}", status["sinks"]);
        }
        sleep(Duration::from_millis(100));
    }
}

/// The numbers that a receiver has parsed, in the order of their arrival, up to one about this path.
fn received(file: &str, path: &Path) -> Result<Vec<u64>> {
    until(&format!("{} in {file}", path.display()), || {
        let text = fs::read_to_string(format!("{FOLDER}/{file}")).unwrap_or_default();
        let wanted = format!(" decision {} portcullis decision-would-deny", path.display());
        if !text.lines().any(|line| line.ends_with(&wanted)) {
            return Ok(None);
        }
        let numbers = text.lines().map(|line| line.split(' ').next().unwrap_or_default().parse());
        Ok(Some(numbers.collect::<Result<Vec<u64>, _>>().context("a number")?))
    })
}

/// Whether every number is there, the first of each in its order.
fn in_sequence(numbers: &[u64]) -> Result<()> {
    let all: BTreeSet<_> = numbers.iter().copied().collect();
    let (first, last) = (all.first().context("none")?, all.last().context("none")?);
    ensure!(last - first + 1 == all.len() as u64, "a hole in {numbers:?}");
    let mut seen = BTreeSet::new();
    let mut latest = 0;
    for number in numbers.iter().filter(|number| seen.insert(**number)) {
        ensure!(*number > latest, "{number} came after {latest}");
        latest = *number;
    }
    Ok(())
}

fn output_of(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every receiver gets everything and parses it; one that is away gets it later, one that is stuck keeps
/// nobody waiting; and what somebody takes out of the log is found.
pub fn received_by_all() -> Result<()> {
    Pki::new(FOLDER)?.make("siem")?;
    fs::create_dir_all("/etc/portcullis")?;
    fs::write(DEVICE, format!("{ACROSS_THE_NETWORK}{SINKS}"))?;
    fs::write(format!("{FOLDER}/rsyslog.conf"), RSYSLOG)?;
    fs::write(format!("{FOLDER}/syslog-ng.conf"), SYSLOG_NG)?;
    fs::create_dir_all("/var/log/audit")?;
    // It takes connections, and nothing that comes over them.
    let stuck = TcpListener::bind("127.0.0.1:5141")?;
    // Hardly anything fits before somebody reads it.
    rustix::net::sockopt::set_socket_recv_buffer_size(&stuck, 1)?;
    let _auditd = receiver("sbin/auditd", &["-n", "-c", &format!("{RECEIVERS}/etc/audit")])?;
    let _syslog_ng = syslog_ng()?;
    let first = rsyslog()?;
    let policy = Policy::of(fresh("/root/policy")?, &["/usr/bin/portcullis"])?;
    policy.append("\n[usb]\n")?;
    let agent = Agent::start(&policy, "audit", &["--state", STATE, "--metrics", NUMBERS])?;
    let program = |name: &str| -> Result<PathBuf> {
        let path = Path::new("/root/received").join(name);
        install(&path, &evil(name)?)?;
        exec_path(&path)?;
        Ok(path)
    };

    let early = program("early")?;
    for file in ["rsyslog.txt", "syslog-ng.txt"] {
        in_sequence(&received(file, &early)?).context(file)?;
        println!("  parsed by {}", file.trim_end_matches(".txt"));
    }
    journal(&early)?;
    audited(&early)?;
    near(&early)?;
    changes_audited(&policy)?;

    drop(first);
    let mut late = early.clone();
    for number in 0..40 {
        late = program(&format!("away-{number}"))?;
    }
    // The others have them meanwhile.
    in_sequence(&received("syslog-ng.txt", &late)?)?;
    let status = json(&["status", "--json"])?;
    let sink = |name: &str| {
        let mut sinks = status["sinks"].as_array().into_iter().flatten();
        sinks.find(|sink| sink["name"] == name).cloned().unwrap_or_default()
    };
    ensure!(sink("plain")["behind"].as_u64() >= Some(40), "{status}");
    ensure!(sink("stuck")["behind"].as_u64() >= Some(40), "{status}");
    let _again = rsyslog()?;
    in_sequence(&received("rsyslog.txt", &late)?).context("after the receiver was away")?;
    println!("  one that was away has got everything in its order");

    let (mut taken, mut bytes) = (stuck.accept()?.0, [0; 16]);
    ensure!(taken.read(&mut bytes)? > 0, "nothing was sent to the stuck receiver");
    metrics::understood(Path::new(NUMBERS))?;
    agent.stop()?;
    verified()?;
    fs::remove_file(DEVICE)?;
    Ok(())
}

fn journal(path: &Path) -> Result<()> {
    let wanted = format!("PORTCULLIS_PATH={}", path.display());
    let entry = until("the journal's entry", || {
        let text = output_of("journalctl", &["-o", "json", "--no-pager", &wanted])?;
        Ok(text.lines().next().map(serde_json::from_str::<Value>).transpose()?)
    })?;
    // The first 16 bytes of `printf 'portcullis event decision-would-deny' | sha256sum`.
    let id =
        output_of("/bin/sh", &["-c", "printf 'portcullis event decision-would-deny' | sha256sum"])?;
    ensure!(
        entry["MESSAGE_ID"].as_str() == id.get(..32)
            && entry["PRIORITY"] == "5"
            && entry["SYSLOG_IDENTIFIER"] == "portcullis"
            && entry["PORTCULLIS_GATE"] == "exec"
            && entry["MESSAGE"].as_str().is_some_and(|text| text.starts_with("would deny exec of")),
        "{entry}"
    );
    println!("  found in the journal");
    Ok(())
}

/// A refusal, found in the kernel's audit.
fn audited(path: &Path) -> Result<()> {
    found_by_ausearch("USER_AVC", &["op=would-deny", &format!("exe_path=\"{}\"", path.display())])
}

/// So are a change of the policy and a USB device that the former speaks of.
fn changes_audited(policy: &Policy) -> Result<()> {
    gadget::prepare()?;
    let other =
        "[[usb.allow]]\nid = \"0781:5581\"\nserial = \"ELSE1\"\ninterfaces = [\"08:06:50\"]\n";
    policy.append(other)?;
    expect(0, &["policy", "reload"])?;
    found_by_ausearch(
        "USER_MAC_POLICY_LOAD",
        &["op=policy", "type=policy-changed", "res=success"],
    )?;
    let _stick = Gadget::plug("AUDITED1", &[Function::Storage])?;
    found_by_ausearch("USER_DEVICE", &["op=usb", "AUDITED1"])
}

/// Whether the kernel's audit has a record of this type with all of this in it.
fn found_by_ausearch(kind: &str, wanted: &[&str]) -> Result<()> {
    let ausearch = format!("{RECEIVERS}/sbin/ausearch");
    let look = |kind| output_of(&ausearch, &["-m", kind, "-if", "/var/log/audit/audit.log"]);
    let found = until(&format!("the audit record {kind}"), || {
        let is_it = |line: &str| wanted.iter().all(|word| line.contains(word));
        Ok(look(kind)?.lines().any(is_it).then_some(()))
    });
    found.with_context(|| format!("there are: {}", look(kind).unwrap_or_default()))?;
    println!("  found by ausearch: {kind}");
    Ok(())
}

fn near(path: &Path) -> Result<()> {
    let event = until("the event in ECS", || {
        let text = fs::read_to_string(format!("{FOLDER}/local.txt")).unwrap_or_default();
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines.find(|event| event["file"]["path"].as_str() == path.to_str()))
    })?;
    ensure!(
        event["event"]["action"] == "decision-would-deny" && event["event"]["kind"] == "alert",
        "{event}"
    );
    let text = fs::read_to_string(format!("{FOLDER}/local.txt"))?;
    ensure!(!text.contains("\"decision-allow\""), "more than alarms was sent");
    println!("  over a local socket, in ECS");
    Ok(())
}

/// What was recorded verifies, and what is taken out of it is named.
fn verified() -> Result<()> {
    let key = format!("{STATE}/device.pub");
    let log = format!("{FOLDER}/log/events.jsonl");
    events::verify_spool(STATE)?;
    expect(0, &["events", "verify", &log, "--key", &key])?;
    let text = fs::read_to_string(&log)?;
    let lines: Vec<_> = text.lines().collect();
    // Not the first of its chain, before which nothing can be missed.
    let is_main = |line: &&str| line.contains("\"chain\":\"main\"");
    let half = lines.len() / 2;
    let middle = half + lines[half..].iter().position(is_main).context("no refusal")?;
    let without: Vec<_> = lines
        .iter()
        .enumerate()
        .filter(|(index, _)| *index != middle)
        .map(|(_, line)| *line)
        .collect();
    let forged = format!("{FOLDER}/forged.jsonl");
    fs::write(&forged, without.join("\n") + "\n")?;
    let found = portcullis(&["events", "verify", &forged, "--key", &key])?;
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure!(
        found.status.code() == Some(1)
            && said.contains(&format!("{forged}:"))
            && said.contains("1 records are missing"),
        "{said}"
    );
    println!("  a record that was taken out is named: {}", said.lines().next().unwrap_or_default());
    Ok(())
}
