//! What several processors do at the same moment with the same files.

use std::{
    fs::{self, File},
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use anyhow::{Result, bail, ensure};
use rustix::{
    io::Errno,
    thread::{CpuSet, sched_setaffinity},
};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, expect},
    attack::{Attempt, evil, good, map},
    events,
    mapping::ProtFlags,
};

const FILES: usize = 2000;
const PROCESSORS: usize = 2;
const CODE: ProtFlags = ProtFlags::READ.union(ProtFlags::EXEC);

/// A file that all use for the first time. Each finds no record on the inode and makes one, which the kernel
/// allows to one of them only: it must be refused to none.
pub fn first_use() -> Result<()> {
    let lab = fresh("/tmp/first-use")?;
    let content = good("first-use")?;
    let files: Vec<_> = (0..FILES).map(|number| lab.join(number.to_string())).collect();
    for file in &files {
        fs::write(file, &content)?;
    }
    let policy = base_policy(&[])?;
    list(&policy, &files[0], &["library"])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let mark = events::mark()?;

    let arrived = AtomicUsize::new(0);
    let refused: usize = thread::scope(|scope| {
        let users: Vec<_> = (0..PROCESSORS)
            .map(|processor| {
                let (files, arrived) = (&files, &arrived);
                scope.spawn(move || use_each(files, arrived, processor))
            })
            .collect();
        users.into_iter().map(|user| user.join().unwrap_or(FILES)).sum()
    });
    if refused > 0 {
        let told = events::wait_for(mark, "a refusal", |event| event["outcome"] == "deny")?;
        bail!("{refused} of {FILES} listed files were refused once: {told}");
    }
    agent.stop()?;
    Ok(fs::remove_dir_all(lab)?)
}

/// Maps each file as code, together with the other processors. How many were refused.
fn use_each(files: &[PathBuf], arrived: &AtomicUsize, processor: usize) -> usize {
    // Without it they take turns on one processor, and the test finds less.
    if stay_on(processor).is_err() {
        return files.len();
    }
    let mut refused = 0;
    for (round, path) in files.iter().enumerate() {
        let file = File::open(path);
        arrived.fetch_add(1, Ordering::SeqCst);
        while arrived.load(Ordering::SeqCst) < (round + 1) * PROCESSORS {
            std::hint::spin_loop();
        }
        let mapped = file.map_err(Into::into).and_then(|file| map(&file, CODE));
        refused += usize::from(!matches!(mapped, Ok(Attempt::Ran)));
    }
    refused
}

fn stay_on(processor: usize) -> Result<(), Errno> {
    let mut one = CpuSet::new();
    one.set(processor);
    sched_setaffinity(None, &one)
}

/// Policies are switched while all use the same files, so that each processor makes verdicts of one policy or
/// the next: what both policies list is never refused, and what none lists is never allowed.
pub fn switch() -> Result<()> {
    const SWITCHES: usize = 8;
    const LISTED: usize = 20;
    let lab = fresh("/tmp/switch")?;
    let policy = base_policy(&[])?;
    let mut listed = Vec::new();
    for number in 0..LISTED {
        let path = lab.join(format!("listed-{number}"));
        fs::write(&path, good(&format!("switch-{number}"))?)?;
        list(&policy, &path, &["library"])?;
        listed.push(File::open(path)?);
    }
    let path = lab.join("unlisted");
    fs::write(&path, evil("switch")?)?;
    let unlisted = File::open(path)?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let mark = events::mark()?;

    let over = AtomicBool::new(false);
    let use_all = |processor| -> Result<usize> {
        stay_on(processor)?;
        let mut rounds = 0;
        while !over.load(Ordering::Relaxed) {
            for file in &listed {
                ensure!(map(file, CODE)? == Attempt::Ran, "what both policies list was refused");
            }
            // Each is an event.
            if rounds % 50 == 0 {
                ensure!(map(&unlisted, CODE)? == Attempt::Refused, "what no policy lists has run");
            }
            rounds += 1;
        }
        Ok(rounds)
    };
    let rounds = thread::scope(|scope| -> Result<usize> {
        let use_all = &use_all;
        let users: Vec<_> =
            (0..PROCESSORS).map(|processor| scope.spawn(move || use_all(processor))).collect();
        let switched = (0..SWITCHES).try_for_each(|number| {
            policy.append(&format!(
                "\n[[allow]]\ndigest = \"{number:064x}\"\nkinds = [\"library\"]\n"
            ))?;
            expect(0, &["policy", "reload", "--skip-preflight"]).map(drop)
        });
        over.store(true, Ordering::Relaxed);
        let mut rounds = 0;
        for user in users {
            rounds += user.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        }
        switched.map(|()| rounds)
    })?;
    println!("  {SWITCHES} switches during {rounds} rounds");
    ensure!(rounds > SWITCHES, "nothing was used meanwhile");
    let wrong = events::since(mark)?.into_iter().find(|event| {
        let path = event["artifact"]["path"].as_str().unwrap_or_default();
        event["outcome"] == "deny" && path.contains("listed-")
    });
    ensure!(wrong.is_none(), "{}", wrong.unwrap_or_default());
    agent.stop()?;
    Ok(fs::remove_dir_all(lab)?)
}
