//! How many decisions a second there can be, and what telling of one costs with each kind of sink.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::now;
use crate::{
    agent::{self, Agent, PATIENCE, Policy},
    link,
    mapping::{MapFlags, Mapping, ProtFlags},
};

const FOLDER: &str = "/bench/events";
const DEVICE: &str = "/etc/portcullis/device.toml";
const RECEIVED: &str = "/bench/events/received.jsonl";

/// Mappings of one unlisted file as code, one after the other.
const FLOOD: u64 = 200_000;
/// So many of them find room in a ring that nobody takes anything out of.
const ROOM: u64 = 2000;
/// A listed file is mapped after so many of them.
const LISTED_EACH: u64 = 1000;

/// Files of which each is refused once, so that none of them is one of many.
const FILES: u64 = 5000;
/// So many of them find room in the ring.
const AT_ONCE: u64 = 500;

/// Measures, and prints one line of JSON. A nanosecond is an instruction.
pub fn events() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    fs::create_dir_all("/etc/portcullis")?;
    let policy = Policy::of(Path::new("/bench/policy"), &["/usr"])?;
    let flood = flood(&policy)?;
    let syslog = listen()?;
    let file = format!("type = \"file\"\npath = \"{RECEIVED}\"\nmax_mib = 64\n");
    let syslog = format!("type = \"syslog\"\naddress = \"tcp:127.0.0.1:{syslog}\"\n");
    let mut sinks = serde_json::Map::new();
    for (name, sink) in [
        ("spool alone", ""),
        ("file", &file),
        ("syslog over TCP", &syslog),
        ("audit", "type = \"audit\"\n"),
    ] {
        sinks.insert(name.to_owned(), each(&policy, sink).context(name)?);
    }
    println!("@@result {}", json!({ "flood": flood, "sinks": sinks }));
    Ok(())
}

/// Maps a file as code, and says whether that was allowed.
fn maps(file: &File) -> Result<bool> {
    match Mapping::new(file, 1, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::PERM) => Ok(false),
        Err(error) => Err(error).context("mapping"),
    }
}

/// The counters of the gate at mappings.
fn counters() -> Result<[u64; 2]> {
    let status = agent::status()?;
    let gates = status["gates"].as_array().context("gates")?;
    let gate = gates.iter().find(|gate| gate["gate"] == "mapping").context("the gate")?;
    let number = |what: &str| gate[what].as_u64().with_context(|| format!("no {what}"));
    Ok([number("denied")?, number("lost")?])
}

/// Only how many decisions a second there can be, and prints one line of JSON.
pub fn flood_alone() -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    let policy = Policy::of(Path::new("/bench/policy"), &["/usr"])?;
    println!("@@result {}", flood(&policy)?);
    Ok(())
}

/// One program maps what is refused as fast as it can: with an agent that takes what is told, and with one that
/// does not come to it. No verdict may be another one for that, and every one is told or counted.
fn flood(policy: &Policy) -> Result<Value> {
    let unlisted = Path::new(FOLDER).join("unlisted");
    fs::write(&unlisted, "unlisted")?;
    let (unlisted, listed) =
        (File::open(&unlisted)?, File::open("/lib/x86_64-linux-gnu/libc.so.6")?);
    let before = now();
    for _ in 0..FLOOD {
        ensure!(maps(&unlisted)?, "a mapping was refused without gates");
    }
    let bare = now() - before;
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    let mark = crate::events::mark()?;
    ensure!(maps(&listed)? && !maps(&unlisted)?, "the gate decides otherwise");
    let refused = |count: u64| -> Result<u64> {
        let before = now();
        for number in 0..count {
            ensure!(!maps(&unlisted)?, "mapping {number} was allowed");
            if number % LISTED_EACH == 0 {
                ensure!(maps(&listed)?, "after {number} refusals a listed file was refused");
            }
        }
        Ok(now() - before)
    };
    let agents = spent(&agent)?;
    let took = refused(FLOOD)?;
    let agents = spent(&agent)? - agents;
    let (told, lost) = accounted(mark, FLOOD + 1)?;
    let kib = agent.resident_kib()?;
    // Nobody takes anything out of the ring: it fills, and then it is full.
    let (filling, full) = agent.while_frozen(|| Ok((refused(ROOM)?, refused(FLOOD - ROOM)?)))?;
    let (all_told, _) = accounted(mark, 2 * FLOOD + 1)?;
    ensure!(all_told - told >= ROOM, "only {} of {ROOM} found room", all_told - told);
    agent.stop()?;
    let rate = |count: u64, took: u64| json!({ "a_second": count * 1_000_000_000 / took, "instructions": took / count });
    Ok(json!({
        "decisions": FLOOD, "all": rate(FLOOD, took),
        "of_the_agent": agents / FLOOD, "told": told, "lost": lost, "agent_kib": kib,
        "into_the_ring": rate(ROOM, filling), "into_a_full_ring": rate(FLOOD - ROOM, full),
        "without_gates": { "instructions": bare / FLOOD },
    }))
}

/// Waits until so many refusals are told or counted as lost. Returns how many each.
fn accounted(mark: crate::events::Mark, count: u64) -> Result<(u64, u64)> {
    let end = Instant::now() + PATIENCE;
    let (told, [denied, lost]) = loop {
        let counted = counters()?;
        let records = crate::events::since(mark)?;
        let told: u64 = records
            .iter()
            .filter(|event| event["outcome"] == "deny" && event["gate"] == "mapping")
            .map(|event| event["count"].as_u64().unwrap_or(1))
            .sum();
        if told + counted[1] >= counted[0] || Instant::now() > end {
            break (told, counted);
        }
        thread::sleep(Duration::from_millis(500));
    };
    ensure!(denied == count, "{denied} refusals were counted, and there were {count}");
    ensure!(told + lost == denied, "{told} told and {lost} lost of {denied}");
    Ok((told, lost))
}

/// What the agent spends for a record of its own, until the sink has it.
fn each(policy: &Policy, sink: &str) -> Result<Value> {
    let folder = Path::new(FOLDER).join("each");
    let _ = fs::remove_dir_all(&folder);
    let _ = fs::remove_dir_all("/var/lib/portcullis");
    fs::create_dir(&folder)?;
    let file = |number: u64| folder.join(number.to_string());
    for number in 0..FILES {
        fs::write(file(number), number.to_le_bytes())?;
    }
    let sink =
        if sink.is_empty() { String::new() } else { format!("[[sink]]\nname = \"it\"\n{sink}") };
    fs::write(DEVICE, format!("name = \"bench\"\n{sink}"))?;
    // Nothing else is to be written of them.
    let agent = Agent::start_with(policy, "enforce", "/dev/null", &["--skip-preflight"])?;
    let spent = spent(&agent)?;
    let lost = counters()?[1];
    let start = now();
    let mut most = 0;
    for number in 0..FILES {
        ensure!(!maps(&File::open(file(number))?)?, "an unlisted file was mapped");
        if number % AT_ONCE == 0 {
            // Until the agent has caught up.
            thread::sleep(Duration::from_secs(1));
            most = most.max(agent.resident_kib()?);
        }
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let status = agent::status()?;
        let behind =
            status["sinks"].as_array().into_iter().flatten().find(|sink| sink["name"] == "it");
        let behind = behind.map_or(Some(0), |sink| sink["behind"].as_u64());
        if behind == Some(0) && status["events"].as_u64() >= Some(FILES) {
            break;
        }
        ensure!(Instant::now() < end, "{status}");
        thread::sleep(Duration::from_millis(500));
    }
    let took = now() - start;
    let spent = self::spent(&agent)? - spent;
    most = most.max(agent.resident_kib()?);
    let lost = counters()?[1] - lost;
    agent.stop()?;
    ensure!(lost == 0, "{lost} records found no room: what was told is not all");
    Ok(json!({
        "records": FILES, "instructions": spent / FILES, "a_second": FILES * 1_000_000_000 / spent,
        "until_the_last_ms": took / 1_000_000, "agent_kib": most,
    }))
}

/// What all threads of the agent have used of processors so far.
fn spent(agent: &Agent) -> Result<u64> {
    let mut all = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        all += text.split(' ').next().context("a number")?.parse::<u64>()?;
    }
    Ok(all)
}

/// A receiver that takes everything.
fn listen() -> Result<u16> {
    link::set_loopback(true)?;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    Ok(port)
}
