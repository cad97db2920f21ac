//! A file that several processors use for the first time at the same moment.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{base_policy, fresh, list};
use crate::{
    agent::Agent,
    attack::good,
    events,
    mapping::{MapFlags, Mapping, ProtFlags},
};

const FILES: usize = 2000;
const PROCESSORS: usize = 2;

/// Each finds no record on the inode and makes one, which the kernel allows to one of them only: it
/// must be refused to none.
pub fn at_once() -> Result<()> {
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
        ensure!(false, "{refused} of {FILES} listed files were refused once: {told}");
    }
    agent.stop()?;
    fs::remove_dir_all(Path::new(lab))?;
    Ok(())
}

/// Maps each file as code, together with the other processors. How many were refused.
fn use_each(files: &[PathBuf], arrived: &AtomicUsize, processor: usize) -> usize {
    let mut one = CpuSet::new();
    one.set(processor);
    // Without it they take turns on one processor, and the test finds less.
    if sched_setaffinity(None, &one).is_err() {
        return files.len();
    }
    let code = ProtFlags::READ | ProtFlags::EXEC;
    let mut refused = 0;
    for (round, path) in files.iter().enumerate() {
        let file = File::open(path);
        arrived.fetch_add(1, Ordering::SeqCst);
        while arrived.load(Ordering::SeqCst) < (round + 1) * PROCESSORS {
            std::hint::spin_loop();
        }
        let mapped = file.is_ok_and(|file| Mapping::new(&file, 1, code, MapFlags::PRIVATE).is_ok());
        refused += usize::from(!mapped);
    }
    refused
}
