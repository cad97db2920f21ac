//! BPF programs that others than the agent load: the policy's `other_bpf`.

use std::{
    fs, io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::shield::{bpf, is_refused};
use crate::{
    agent::{Policy, expect},
    events,
};

/// Of linux/bpf.h.
const PROGRAM_LOAD: i32 = 5;
const SOCKET_FILTER: u32 = 1;
const LSM: u32 = 29;
const LSM_MAC: u32 = 27;

/// The programs that are tried, by the words for them in events: what it is, and where it attaches.
const PROGRAMS: [(&str, Option<&str>); 2] = [("socket-filter", None), ("lsm", Some("lsm-mac"))];

/// What the policy in `policy` says about programs of others from now on, with an agent that runs.
pub fn choose(policy: &Policy, original: &str, choice: &str) -> Result<()> {
    fs::write(&policy.file, format!("other_bpf = \"{choice}\"\n{original}"))?;
    expect(0, &["policy", "reload", "--skip-preflight"]).map(drop)
}

/// They can be loaded, and it is told with this outcome, each time.
pub fn pass(outcome: &str) -> Result<()> {
    for (program, attach) in PROGRAMS {
        let mark = events::mark()?;
        load(program).with_context(|| format!("loading {program} was refused"))?;
        is_told(mark, program, attach, outcome)?;
    }
    Ok(())
}

/// They can be loaded many times, and that is told in its whole number.
pub fn pass_often(count: u64) -> Result<()> {
    let mark = events::mark()?;
    for _ in 0..count {
        load("socket-filter")?;
    }
    // The last record of a storm comes when its ten seconds are over.
    events::wait_for(mark, "more than one program at once", |event| {
        event["reason"] == "other-bpf" && event["count"].is_u64()
    })?;
    let told = events::since(mark)?;
    let told = told.iter().filter(|event| event["reason"] == "other-bpf");
    let seen: u64 = told.map(|event| event["count"].as_u64().unwrap_or(1)).sum();
    ensure!(seen == count, "of {count} programs {seen} were told");
    Ok(())
}

/// They cannot be loaded, and it is told.
pub fn are_refused() -> Result<()> {
    for (program, attach) in PROGRAMS {
        let mark = events::mark()?;
        is_refused(program, &|| load(program))?;
        is_told(mark, program, attach, "deny")?;
        println!("  refused: loading a BPF program ({program})");
    }
    Ok(())
}

/// They cannot be loaded while no agent is there that could tell of it.
pub fn are_refused_unseen() -> Result<()> {
    PROGRAMS.iter().try_for_each(|(program, _)| is_refused(program, &|| load(program)))
}

/// They can be loaded, and nothing is told.
pub fn pass_in_silence() -> Result<()> {
    let mark = events::mark()?;
    for (program, _) in PROGRAMS {
        load(program)?;
    }
    // What comes later is told later.
    is_refused("a later attack", &|| {
        fs::OpenOptions::new().write(true).open("/proc/sys/kernel/ftrace_enabled").map(drop)
    })?;
    events::wait_for(mark, "the later attack", |event| event["reason"] == "gate-switch")?;
    let told = events::since(mark)?;
    ensure!(told.iter().all(|event| event["reason"] != "other-bpf"), "{told:?}");
    Ok(())
}

fn is_told(mark: events::Mark, program: &str, attach: Option<&str>, outcome: &str) -> Result<()> {
    let event = events::wait_for(mark, program, |event| {
        event["reason"] == "other-bpf" && event["bpf"]["type"] == program
    })?;
    let own = fs::read_link("/proc/self/exe")?;
    ensure!(event["gate"] == "shield" && event["outcome"] == outcome, "{event}");
    ensure!(event["bpf"]["attach"] == serde_json::json!(attach), "{event}");
    ensure!(event["bpf"]["name"] == "others", "{event}");
    ensure!(event["process"]["pid"] == std::process::id(), "{event}");
    ensure!(event["artifact"]["path"].as_str() == own.to_str(), "{event}");
    Ok(())
}

/// Loads a program that does nothing, and lets go of it.
fn load(program: &str) -> io::Result<()> {
    // r0 = 0; exit
    let instructions: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    let (number, attach, function) = match program {
        "lsm" => (LSM, LSM_MAC, function_id("bpf_lsm_task_kill").map_err(io::Error::other)?),
        _ => (SOCKET_FILTER, 0, 0),
    };
    let mut attributes = [0u64; 14];
    attributes[0] = u64::from(number) | (instructions.len() as u64) << 32;
    attributes[1] = instructions.as_ptr() as u64;
    attributes[2] = license.as_ptr() as u64;
    attributes[6] = u64::from_le_bytes(*b"others\0\0");
    attributes[8] = u64::from(attach) << 32;
    attributes[13] = u64::from(function) << 32;
    // Up to 5.10 programs count as locked memory, of which the agent's maps have used up root's share.
    setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?;
    let descriptor = bpf(PROGRAM_LOAD, &mut attributes)?;
    // SAFETY: a new descriptor that nobody else has.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

/// The kernel's number for one of its functions, in its type information (Documentation/bpf/btf.rst).
fn function_id(name: &str) -> Result<u32> {
    const HEADER: usize = 24;
    const FUNCTION: u32 = 12;
    let bytes = fs::read("/sys/kernel/btf/vmlinux")?;
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4).context("type information that is cut short")?;
        anyhow::Ok(u32::from_le_bytes(bytes.try_into()?))
    };
    let (types, length) = (word(8)? as usize, word(12)? as usize);
    let strings = HEADER + word(16)? as usize;
    let mut at = HEADER + types;
    let end = at + length;
    let mut id = 0;
    while at < end {
        id += 1;
        let (own, info) = (strings + word(at)? as usize, word(at + 4)?);
        let (kind, entries) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        let is_it = bytes[own..].starts_with(name.as_bytes()) && bytes[own + name.len()] == 0;
        if kind == FUNCTION && is_it {
            return Ok(id);
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * entries,
                6 | 13 => 8 * entries,
                _ => 0,
            };
    }
    bail!("this kernel has no function {name}")
}
