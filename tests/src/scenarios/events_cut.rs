//! The network is away while a busy device goes on: what its receivers have when it is back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    fresh,
    receivers::{ACROSS_THE_NETWORK, FOLDER, Receiver, STATE, rsyslog, syslog_ng},
};
use crate::{
    agent::{self, Agent, PATIENCE, Policy, portcullis, text},
    attack::{Attempt, map_as_code},
    events, link,
    pki::Pki,
};

const DEVICE: &str = "/etc/portcullis/device.toml";
/// Where the attacker's files are: in memory, so that the disk is the agent's own.
const LAB: &str = "/run/cut";
const LOG: &str = "/root/received/log/events.jsonl";
/// A library that the policy lists.
const LISTED: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

/// What one hour brings if a second brings a record.
const AN_HOUR: u64 = 3600;
/// So many find room in the agent's ring.
const AT_ONCE: u64 = 200;
/// A listed file is mapped after so many.
const LISTED_EACH: u64 = 50;
/// What the agent may have more of at its most: what it remembers of the latest thousand records and of what
/// has run. What the spool holds is on the disk.
const AGENT_KIB: u64 = 12 << 10;
/// How often a path is in memory for each record that is remembered.
const COPIES: u64 = 4;
const REMEMBERED: u64 = 1000;
/// How soon a receiver that was away is tried again at the latest, and what it takes for everything then.
const RETURN: Duration = Duration::from_secs(180);

const SINKS: &str = r#"
[[sink]]
name = "log"
type = "file"
path = "/root/received/log/events.jsonl"
max_mib = 64
"#;

const RSYSLOG: &str = r#"
global(maxMessageSize="64k")
module(load="imtcp" StreamDriver.Name="ptcp")
input(type="imtcp" port="5140" ruleset="in")
template(name="line" type="string" string="%msg%\n")
ruleset(name="in") {
    action(type="omfile" file="/root/received/plain.jsonl" template="line")
}
"#;

const SYSLOG_NG: &str = r#"@version: 3.38
options { keep-hostname(yes); stats-freq(0); };
source s_tls { syslog(ip(127.0.0.1) port(6514) transport("tls")
    tls(key-file("/root/received/siem.key") cert-file("/root/received/siem.pem") peer-verify(optional-untrusted))); };
destination d_tls { file("/root/received/secret.jsonl" template("${MSG}\n")); };
log { source(s_tls); destination(d_tls); };
"#;

/// An hour's records come as fast as the agent takes them, and all of them arrive afterwards. Then as many
/// as the spool cannot hold come, and what has made room is told to the number.
pub fn cut() -> Result<()> {
    let lab = Lab::start()?;
    lab.cut("an hour's", Duration::ZERO, AN_HOUR, 0)?;
    ensure!(lab.accounted()?.values().all(|dropped| *dropped == 0), "records were dropped");
    // Nearly ten kilobytes each.
    lab.cut("more than fits", Duration::ZERO, 1200, 3400)?;
    ensure!(lab.accounted()?.values().all(|dropped| *dropped > 0), "everything found room");
    lab.end()
}

/// The network is away for so many seconds, in which so many records come, at an even pace. Their files'
/// paths are longer by so many bytes.
pub fn by_hand(seconds: u64, count: u64, longer: usize) -> Result<()> {
    let lab = Lab::start()?;
    lab.cut("by hand", Duration::from_secs(seconds), count, longer)?;
    lab.accounted()?;
    lab.end()
}

/// A device that enforces, and two receivers across a network.
struct Lab {
    agent: Agent,
    kib: u64,
    _receivers: [Receiver; 2],
}

impl Lab {
    fn start() -> Result<Self> {
        Pki::new(FOLDER)?.make("siem")?;
        fs::create_dir_all("/etc/portcullis")?;
        fs::write(DEVICE, format!("{ACROSS_THE_NETWORK}{SINKS}"))?;
        fs::write(format!("{FOLDER}/rsyslog.conf"), RSYSLOG)?;
        fs::write(format!("{FOLDER}/syslog-ng.conf"), SYSLOG_NG)?;
        fresh(LAB)?;
        let receivers = [syslog_ng()?, rsyslog()?];
        let listed = ["/usr/bin/portcullis", "/usr/bin/portcullis-guest", LISTED];
        let policy = Policy::of(fresh("/root/policy")?, &listed)?;
        let agent = Agent::start(&policy, "enforce", &["--skip-preflight", "--state", STATE])?;
        caught_up(&["plain", "secret", "log"])?;
        let kib = agent.resident_kib()?;
        Ok(Self { agent, kib, _receivers: receivers })
    }

    /// Cuts the network, lets records come, and gives it back.
    fn cut(&self, name: &str, time: Duration, count: u64, longer: usize) -> Result<()> {
        let folder = folder(name, longer)?;
        caught_up(&["plain", "secret", "log"])?;
        let start = Instant::now();
        link::set_loopback(false)?;
        let (mut mark, mut peak) = (events::mark()?, 0);
        let mut at_once = 0;
        for number in 0..count {
            let file = folder.join(number.to_string());
            fs::write(&file, format!("{name} {number}"))?;
            ensure!(map_as_code(&file)? == Attempt::Refused, "file {number} was mapped");
            if number % LISTED_EACH == 0 {
                ensure!(map_as_code(Path::new(LISTED))? == Attempt::Ran, "a listed one was not");
            }
            at_once += 1;
            if at_once == AT_ONCE || number + 1 == count {
                // What the agent writes at once goes on.
                refusals(mark, &folder, at_once)?;
                (mark, at_once) = (events::mark()?, 0);
                peak = peak.max(self.agent.resident_kib()?);
            }
            let due = time.mul_f64((number + 1) as f64 / count as f64);
            sleep(due.saturating_sub(start.elapsed()));
        }
        // So does a sink on the device itself, while those behind the network have nothing.
        let sinks = caught_up(&["log"])?;
        let behind = |name| sinks.get(name).copied().unwrap_or_default();
        ensure!(behind("plain") >= count && behind("secret") >= count, "{sinks:?}");
        println!(
            "  {name}: {count} records in {} s without a network, behind {sinks:?}; the agent had {} KiB, then \
             {peak} at most",
            start.elapsed().as_secs(),
            self.kib,
        );
        link::set_loopback(true)?;
        let back = Instant::now();
        caught_up(&["plain", "secret", "log"])?;
        let now = self.agent.resident_kib()?;
        println!(
            "  {name}: all sinks have caught up after {} s; {now} KiB",
            back.elapsed().as_secs()
        );
        let most = peak.max(now);
        let paths = (longer as u64 * (REMEMBERED * COPIES + count)) >> 10;
        ensure!(
            most < self.kib + AGENT_KIB + paths,
            "the agent grew from {} to {most} KiB",
            self.kib
        );
        Ok(())
    }

    /// Every record that there ever was has come to each receiver, or is told to have made room for later
    /// ones, and what is told is true to the number. Returns how many made room, for each sink.
    fn accounted(&self) -> Result<BTreeMap<&'static str, u64>> {
        let all: BTreeMap<_, _> = records(LOG)?.into_iter().map(|one| (one.record, one)).collect();
        let last = *all.last_key_value().context("no records")?.0;
        ensure!(all.len() as u64 == last, "the device's own log has {} of {last}", all.len());
        let mut made_room = BTreeMap::new();
        for sink in ["plain", "secret"] {
            let file = format!("{FOLDER}/{sink}.jsonl");
            let got: BTreeSet<_> = records(&file)?.iter().map(|one| one.record).collect();
            let mut told = BTreeSet::new();
            for record in all.values() {
                let event = &record.event;
                if event["type"] != "dropped" || event["sink"] != sink {
                    continue;
                }
                let number = |what: &str| event[what].as_u64().with_context(|| event.to_string());
                let links = number("first")?..=number("last")?;
                let of = all.values().filter(|one| {
                    one.event["chain"] == event["of"]
                        && one.event["link"].as_u64().is_some_and(|link| links.contains(&link))
                });
                let before = told.len();
                told.extend(of.map(|one| one.record));
                ensure!((told.len() - before) as u64 == number("count")?, "{event}");
            }
            let missing: Vec<_> =
                all.keys().filter(|one| !got.contains(one) && !told.contains(one)).collect();
            ensure!(missing.is_empty(), "{sink} has not got {missing:?}, and nobody has told");
            let both = told.intersection(&got).count();
            println!(
                "  {sink}: {} of {last} records arrived, {} are told to have made room, {both} of them are both",
                got.len(),
                told.len()
            );
            made_room.insert(sink, told.len() as u64);
            let key = format!("{STATE}/device.pub");
            let verified = portcullis(&["events", "verify", &file, "--key", &key])?;
            let said = String::from_utf8_lossy(&verified.stdout).into_owned();
            ensure!(verified.status.success(), "{sink}: {said}");
        }
        Ok(made_room)
    }

    fn end(self) -> Result<()> {
        self.agent.stop()?;
        fs::remove_file(DEVICE)?;
        fs::remove_dir_all(LAB)?;
        Ok(())
    }
}

/// A folder whose path is longer by so many bytes.
fn folder(name: &str, longer: usize) -> Result<PathBuf> {
    const NAME: usize = 200;
    let mut folder = Path::new(LAB).join(name.replace(' ', "-"));
    for _ in 0..longer / NAME {
        folder.push("d".repeat(NAME - 1));
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Waits until so many refusals in a folder are told after the mark.
fn refusals(mark: events::Mark, folder: &Path, count: u64) -> Result<()> {
    let folder = text(folder)?;
    let end = Instant::now() + PATIENCE;
    loop {
        let records = events::since(mark)?;
        let told = records.iter().filter(|event| {
            let path = event["artifact"]["path"].as_str();
            event["outcome"] == "deny" && path.is_some_and(|path| path.starts_with(folder))
        });
        let told = told.count() as u64;
        if told == count {
            return Ok(());
        }
        ensure!(told < count && Instant::now() < end, "{told} of {count} refusals are told");
        sleep(Duration::from_millis(100));
    }
}

/// Waits until these sinks have everything. Returns how many each of all has not.
fn caught_up(names: &[&str]) -> Result<BTreeMap<String, u64>> {
    let end = Instant::now() + RETURN;
    loop {
        let status = agent::status()?;
        let sinks = status["sinks"].as_array().context("sinks")?;
        let behind: BTreeMap<_, _> = sinks
            .iter()
            .filter_map(|sink| Some((sink["name"].as_str()?.to_owned(), sink["behind"].as_u64()?)))
            .collect();
        if names.iter().all(|name| behind.get(*name) == Some(&0)) {
            return Ok(behind);
        }
        ensure!(Instant::now() < end, "{names:?} are behind: {status}");
        sleep(Duration::from_millis(500));
    }
}

struct Record {
    record: u64,
    event: Value,
}

/// What a log has.
fn records(file: &str) -> Result<Vec<Record>> {
    let lines = BufReader::new(File::open(file).with_context(|| file.to_owned())?).lines();
    let records = lines.map(|line| {
        let line = line?;
        let event: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let record = event["record"].as_u64().context(line)?;
        Ok(Record { record, event })
    });
    records.collect()
}
