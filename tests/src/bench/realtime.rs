//! What programs that must not wait, wait for while large files are hashed.

use std::{
    ffi::CStr,
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    thread::clock_nanosleep_absolute,
    time::{ClockId, Timespec, clock_gettime},
};
use serde_json::{Map, Value, json};

use super::{install, now, start};
use crate::{
    agent::{Agent, Policy},
    elf,
};

/// How often the real-time task wakes up, as `cyclictest -i 1000` does.
const PERIOD: i64 = 1_000_000;
const CYCLES: usize = 2000;
/// Size of what is hashed, in MiB.
const LARGE_MIB: usize = 16;

/// Debian's packages `rt-tests` and `libnuma1`, unpacked.
const CYCLICTEST: &str = "/files/usr/bin/cyclictest";
const LIBRARIES: &str = "/files/usr/lib/x86_64-linux-gnu";

/// Measures without and with the agent, and prints one line of JSON: nanoseconds, which are instructions.
pub fn realtime() -> Result<()> {
    both(|| cycles().map(|late| summary("wakes up late by", late)))
}

/// The same, with what `cyclictest` says of itself: microseconds, each of a thousand instructions.
pub fn cyclictest() -> Result<()> {
    both(|| {
        let cycles = CYCLES.to_string();
        let interval = (PERIOD / 1000).to_string();
        let words = ["-q", "-m", "-p", "80", "-i", &interval, "-l", &cycles];
        let output =
            Command::new(CYCLICTEST).args(words).env("LD_LIBRARY_PATH", LIBRARIES).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<_> = said.split_whitespace().collect();
        let after = |name: &str| -> Result<(String, u64)> {
            let at = words.iter().position(|word| *word == name);
            let number = at.and_then(|at| words.get(at + 1)).and_then(|word| word.parse().ok());
            let number: u64 = number.with_context(|| format!("no {name} in {output:?}"))?;
            Ok((format!("cyclictest, {name} µs"), number))
        };
        ["Min:", "Avg:", "Max:"].into_iter().map(after).collect()
    })
}

fn both(waiting: impl Fn() -> Result<Vec<(String, u64)>> + Send + Sync) -> Result<()> {
    fs::create_dir_all("/bench")?;
    let small = install("/bench/true", &elf::program(0, b"")?)?;
    let padding: Vec<u8> = (0..LARGE_MIB << 20).map(|at| (at >> 8 ^ at).to_le_bytes()[0]).collect();
    let large = elf::program(0, &padding)?;
    install("/bench/large", &large)?;
    let policy = Policy::of(Path::new("/bench/policy"), &["/"])?;
    sleep(Duration::from_secs(3));
    measure(&small, &large, &waiting)?;
    let bare = measure(&small, &large, &waiting)?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let enforce = measure(&small, &large, &waiting)?;
    agent.stop()?;
    let mut result = Map::new();
    for ((name, bare), (_, enforce)) in bare.into_iter().zip(enforce) {
        result.insert(name, json!({ "bare": bare, "enforce": enforce }));
    }
    println!("@@result {}", Value::Object(result));
    Ok(())
}

/// How long something waits, and how long a listed program takes to start and end, while another process
/// starts a large program that nobody has seen before, again and again.
fn measure(
    small: &CStr,
    large: &[u8],
    waiting: &(impl Fn() -> Result<Vec<(String, u64)>> + Sync),
) -> Result<Vec<(String, u64)>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<u64> {
            let mut starts = 0;
            while !over.load(Relaxed) {
                let _ = fs::remove_file("/bench/large");
                let name = install("/bench/large", large)?;
                // A child of another thread has the file open for writing, too, until its own exec.
                while let Err(error) = start(&[&name]) {
                    let code =
                        error.downcast_ref::<std::io::Error>().and_then(|e| e.raw_os_error());
                    ensure!(code == Some(libc::ETXTBSY), error);
                }
                starts += 1;
            }
            Ok(starts)
        });
        let starts_of_small = scope.spawn(|| -> Result<Vec<u64>> {
            let mut times = Vec::new();
            while !over.load(Relaxed) {
                let before = now();
                start(&[small])?;
                times.push(now() - before);
                sleep(Duration::from_millis(5));
            }
            Ok(times)
        });
        let late = scope.spawn(waiting).join().map_err(|_| anyhow::anyhow!("a thread panicked"));
        over.store(true, Relaxed);
        let late = late??;
        let panicked = |_| anyhow::anyhow!("a thread panicked");
        let times = starts_of_small.join().map_err(panicked)??;
        let starts = load.join().map_err(panicked)??;
        ensure!(starts > 1 && times.len() > 20, "{starts} large starts, {} small", times.len());
        let mut all = vec![("large programs started".to_owned(), starts)];
        all.extend(late);
        all.extend(summary("listed start takes", times));
        Ok(all)
    })
}

fn summary(what: &str, mut times: Vec<u64>) -> Vec<(String, u64)> {
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() * share / 1000).min(times.len() - 1));
    [("median", 500), ("99 %", 990), ("longest", 1000)]
        .map(|(name, share)| (format!("{what}, {name}"), at(share).copied().unwrap_or_default()))
        .into()
}

/// As a task of the highest priority.
fn cycles() -> Result<Vec<u64>> {
    let priority = libc::sched_param { sched_priority: 80 };
    // SAFETY: the parameter is valid; 0 is this thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    ensure!(done == 0, "no real-time priority: {}", std::io::Error::last_os_error());
    let mut late = Vec::with_capacity(CYCLES);
    let mut next = clock_gettime(ClockId::Monotonic);
    for _ in 0..CYCLES {
        next = later(next, PERIOD);
        clock_nanosleep_absolute(ClockId::Monotonic, &next)?;
        let now = clock_gettime(ClockId::Monotonic);
        let by = (now.tv_sec - next.tv_sec) * 1_000_000_000 + now.tv_nsec - next.tv_nsec;
        late.push(u64::try_from(by).unwrap_or_default());
        // Who is later than a period begins anew, as one delay is not to be counted twice.
        if by > PERIOD {
            next = now;
        }
    }
    Ok(late)
}

fn later(time: Timespec, nanoseconds: i64) -> Timespec {
    let all = time.tv_nsec + nanoseconds;
    Timespec { tv_sec: time.tv_sec + all / 1_000_000_000, tv_nsec: all % 1_000_000_000 }
}
