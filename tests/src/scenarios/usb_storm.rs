//! USB devices that come and go faster than anybody can look at them.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::usb::{LISTED, is_about, policy};
use crate::{
    agent::{Agent, PATIENCE, expect, json},
    events,
    gadget::{Function, Gadget, prepare},
};

/// How many devices have come, have gone, and came when there was no room to tell of them.
fn counted() -> Result<[u64; 3]> {
    let status = json(&["status", "--json"])?;
    let number = |key: &str| status["usb"][key].as_u64().context("a number");
    Ok([number("attached")?, number("detached")?, number("lost_attached")?])
}

/// What events say of a device that comes and goes at a port.
struct Told {
    events: usize,
    /// How many of them were judged: one by one, and counted.
    judged: (u64, u64),
    /// How many of them went, in the same ways.
    gone: (u64, u64),
}

impl Told {
    fn about(serial: &str, port: &str, from: events::Mark) -> Result<Self> {
        let about: Vec<_> = events::since(from)?
            .into_iter()
            .filter(|event| event["type"] == "usb" && event["device"]["port"] == port)
            .collect();
        let untold = |what: &str| -> u64 {
            about.iter().filter_map(|event| event["untold"][what].as_u64()).sum()
        };
        let told = |states: &[&str]| {
            let is_told = |event: &&Value| {
                event["untold"].is_null()
                    && event["device"]["serial"] == serial
                    && event["state"].as_str().is_some_and(|state| states.contains(&state))
            };
            about.iter().filter(is_told).count() as u64
        };
        let judged = (told(&["held", "came-and-went"]), untold("judged"));
        let gone = (told(&["detached", "came-and-went"]), untold("detached"));
        Ok(Self { events: about.len(), judged, gone })
    }
}

/// Two hundred times a device comes and goes, mostly before the kernel asks what it is: a port has to be
/// quiet for a tenth of a second first (`HUB_DEBOUNCE_STABLE` in drivers/usb/core/hub.c). Whatever the
/// kernel has asked is accounted for, one by one.
pub fn storm() -> Result<()> {
    prepare()?;
    let policy = policy()?;
    policy.append("[[usb.reject]]\ninterfaces = { one_of = [\"03:*:*\"] }\n")?;
    let evil = Gadget::make("STORM1", &[Function::Storage])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let resident = || -> Result<u64> {
        json(&["status", "--json"])?["resident_kib"].as_u64().context("resident memory")
    };
    let (start, from) = (counted()?, events::mark()?);
    // The first costs what all of them do.
    evil.connect()?;
    evil.disconnect()?;
    // A keyboard is thrown off the bus. In the storm it would only be counted.
    let keyboard = Gadget::make("KEYS1", &[Function::Keyboard])?;
    let mark = events::mark()?;
    keyboard.insert()?;
    events::wait_for(mark, "KEYS1", |event| is_about(event, "rejected", "KEYS1"))?;
    ensure!(keyboard.port().is_none(), "it is still there");
    drop(keyboard);
    let (before, mark) = (resident()?, events::mark()?);
    for _ in 0..SEEN {
        evil.connect()?;
        evil.disconnect()?;
    }
    for _ in SEEN..200 {
        evil.flap()?;
    }
    evil.connect_in_the_end()?;
    evil.never_bound()?;
    let port = evil.port().context("a port")?;
    evil.disconnect()?;
    let end = Instant::now() + PATIENCE;
    let [came, went, lost] = loop {
        let now = counted()?;
        let [came, went, lost] = [0, 1, 2].map(|number| now[number] - start[number]);
        if came == went || Instant::now() > end {
            // Without the keyboard.
            break [came - 1, went - 1, lost];
        }
        sleep(Duration::from_millis(20));
    };
    println!("  {came} came, {went} went, {lost} were lost");
    ensure!(came > SEEN && came == went, "{came} came, {went} went");
    // A listed one is told and let in all the same.
    let listed = Gadget::plug(LISTED, &[Function::Storage])?;
    listed.bound_to(&["usb-storage"])?;
    events::wait_for(mark, LISTED, |event| is_about(event, "allowed", LISTED))?;
    drop(listed);
    let after = resident()?;
    println!("  {before} KiB before, {after} KiB after");
    ensure!(after < before + 2048, "{before} KiB became {after} KiB");
    drop(evil);
    agent.stop()?;
    // The listed one is the port's last, so that the port's count has its number.
    let told = Told::about("STORM1", &port, from)?;
    ensure!(told.events < 60, "{} events", told.events);
    let Told { judged, gone, .. } = told;
    println!("  {} events: {judged:?} judged and {gone:?} gone, told and counted", told.events);
    ensure!(judged.1 > 0, "nothing was only counted");
    ensure!(judged.0 + judged.1 + lost == came, "{judged:?} and {lost} of {came}");
    // With the end of the listed one.
    ensure!(gone.0 + gone.1 == went + 1, "{gone:?} of {went}");
    Ok(())
}

/// How many times of these the device is waited for.
const SEEN: u64 = 15;

/// A device comes and goes while the agent has no time, more often than the kernel's programs have room to
/// tell. It is held every time, each time is told or counted, and what is there in the end is judged.
pub fn overflow() -> Result<()> {
    // Each is two changes at least, and there is room for some 230.
    const TIMES: u64 = 132;
    prepare()?;
    let evil = Gadget::make("FLOOD1", &[Function::Storage])?;
    let agent = Agent::start(&policy()?, "enforce", &["--skip-preflight"])?;
    let (start, from) = (counted()?, events::mark()?);
    let port = agent.while_frozen(|| {
        for _ in 0..TIMES {
            evil.connect()?;
            evil.disconnect()?;
        }
        evil.connect()?;
        evil.never_bound()?;
        evil.port().context("a port")
    })?;
    events::wait_for(from, "the one that stays", |event| is_about(event, "held", "FLOOD1"))?;
    let explained = expect(1, &["usb", "explain", &port])?;
    ensure!(String::from_utf8_lossy(&explained.stdout).contains("held"), "{explained:?}");
    drop(evil);
    let listed = Gadget::plug(LISTED, &[Function::Storage])?;
    listed.bound_to(&["usb-storage"])?;
    drop(listed);
    let end = Instant::now() + PATIENCE;
    let [came, went, lost] = loop {
        let now = counted()?;
        let [came, went, lost] = [0, 1, 2].map(|number| now[number] - start[number]);
        if came == went || Instant::now() > end {
            break [came, went, lost];
        }
        sleep(Duration::from_millis(20));
    };
    agent.stop()?;
    let Told { events, judged, gone } = Told::about("FLOOD1", &port, from)?;
    println!("  {came} came, {went} went, {lost} were lost; {events} events: {judged:?}, {gone:?}");
    ensure!(came == went, "{came} came, {went} went");
    ensure!(lost > 0, "there was room for everything");
    ensure!(events < 60, "{events} events");
    // Without the listed one; but the one that stays is told although it was lost, as it is there.
    ensure!(judged.0 + judged.1 + lost == came, "{judged:?} and {lost} of {came}");
    Ok(())
}
