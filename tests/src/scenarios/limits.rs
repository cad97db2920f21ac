//! The open ways around that `docs/limits.md` lists. Each must still work: when one does not any
//! more, the page has to be changed, and the way belongs among the attacks.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    process::Command,
};

use anyhow::{Result, ensure};
use rustix::mm::mmap_anonymous;

use super::{
    base_policy, fresh, list,
    victim::{BLOCK, Victim},
};
use crate::{
    agent::Agent,
    attack::{Attempt, EVIL, good, install, map_as_code},
    mapping::{MapFlags, Mapping, ProtFlags},
    raw,
};

pub fn known() -> Result<()> {
    let lab = fresh("/data/limits")?;
    let listed = lab.join("listed");
    install(&listed, &good("limits")?)?;
    let donor = Victim::of_size(&lab.join("donor"), 3 * BLOCK)?.good;
    install(&lab.join("donor"), &donor)?;
    let policy = base_policy(&[])?;
    list(&policy, &listed, &["executable", "library"])?;
    list(&policy, &lab.join("donor"), &["executable", "library"])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let result = (|| {
        still_works("L01", script_given_by_name()?)?;
        still_works("L03", memory_without_a_file()?)?;
        still_works("L06", changed_while_mapped(&listed)?)?;
        still_works("L20", exchanged_extents(&lab.join("donor"), &donor)?)
    })();
    agent.stop()?;
    result
}

fn still_works(limit: &str, attempt: Attempt) -> Result<()> {
    ensure!(
        attempt == Attempt::Ran,
        "{limit} is closed: take it out of docs/limits.md and test that it stays so"
    );
    Ok(())
}

fn script_given_by_name() -> Result<Attempt> {
    fs::write("/tmp/evil.sh", format!("exit {EVIL}\n"))?;
    crate::attack::exec(Command::new("/bin/sh").arg("/tmp/evil.sh"))
}

fn memory_without_a_file() -> Result<Attempt> {
    let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
    // SAFETY: a new mapping that is never touched and goes with the process.
    let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, all, MapFlags::PRIVATE) };
    Ok(if mapped.is_ok() { Attempt::Ran } else { Attempt::Refused })
}

fn changed_while_mapped(listed: &Path) -> Result<Attempt> {
    let code = ProtFlags::READ | ProtFlags::EXEC;
    let _mapping = Mapping::new(&File::open(listed)?, 4096, code, MapFlags::PRIVATE)?;
    let written = OpenOptions::new().write(true).open(listed)?.write_all_at(b"EVIL", 64);
    // What is mapped now runs on; the next mapping is judged by what the file has become.
    ensure!(map_as_code(listed)? == Attempt::Refused);
    Ok(if written.is_ok() { Attempt::Ran } else { Attempt::Refused })
}

/// The donor's pages stay in memory as they were, while its blocks read as zeros from now on.
fn exchanged_extents(donor: &Path, content: &[u8]) -> Result<Attempt> {
    let origin = donor.with_extension("origin");
    install(donor, content)?;
    install(&origin, &vec![1; content.len()])?;
    let open = |path| OpenOptions::new().read(true).write(true).open(path);
    let (to, from) = (open(donor)?, open(&origin)?);
    to.sync_all()?;
    from.sync_all()?;
    raw::exchange_extents(&from, &to, (content.len() / BLOCK) as u64)?;
    drop((to, from));
    ensure!(fs::read(donor)? == content, "the pages were dropped");
    ensure!(map_as_code(donor)? == Attempt::Ran, "listed content was refused");
    let reading = File::open(donor)?;
    rustix::fs::fadvise(&reading, 0, None, rustix::fs::Advice::DontNeed)?;
    ensure!(fs::read(donor)? != content, "the blocks are as they were");
    map_as_code(donor)
}
