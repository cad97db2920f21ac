//! Listed files whose content changes after, before or while they are judged.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, bail, ensure};

use super::{
    base_policy, fresh, list,
    victim::{self, Change, Victim},
};
use crate::{
    agent::Agent,
    attack::{self, Attack, Attempt, c_path, good, install, map_as_code},
    mapping::{MapFlags, Mapping, ProtFlags},
};

/// A05, A06: changed in place after the verdict, in every way there is without a special
/// filesystem, with size and times put back.
pub fn after_verdict() -> Result<()> {
    for folder in ["/data/change", "/tmp/change"] {
        println!(" on {folder}");
        fresh(folder)?;
        let path = Path::new(folder).join("victim");
        changes_of(&Victim::new(&path)?)?;
    }
    Ok(())
}

fn changes_of(victim: &Victim<'_>) -> Result<()> {
    let Victim { path, evil, .. } = victim;
    let writable = || OpenOptions::new().read(true).write(true).open(path);
    let changes = [
        Change::new("write", || Ok(writable()?.write_all_at(evil, 0)?)),
        Change::new("truncate and write", || Ok(fs::write(path, evil)?)),
        Change::new("write through a hard link", || {
            let link = path.with_extension("link");
            let _ = fs::remove_file(&link);
            fs::hard_link(path, &link)?;
            Ok(OpenOptions::new().write(true).open(link)?.write_all_at(evil, 0)?)
        }),
        Change::new("write through a descriptor reopened in /proc", || {
            let reading = File::open(path)?;
            let again = format!("/proc/self/fd/{}", reading.as_raw_fd());
            Ok(OpenOptions::new().write(true).open(again)?.write_all_at(evil, 0)?)
        }),
        Change::new("write through a shared mapping", || write_mapped(&writable()?, evil))
            .because(&["was-mapped"]),
        Change::new("O_TRUNC while opening to read, then append", || {
            OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(path)?;
            Ok(OpenOptions::new().append(true).open(path)?.write_all(evil)?)
        }),
        Change::new("truncate(2), then append", || {
            let name = c_path(path)?;
            // SAFETY: a valid string.
            let truncated = unsafe { libc::truncate(name.as_ptr(), 0) };
            ensure!(truncated == 0, "truncate failed");
            Ok(OpenOptions::new().append(true).open(path)?.write_all(evil)?)
        }),
        Change::new("copy_file_range", || {
            let source = path.with_extension("source");
            fs::write(&source, evil)?;
            let (from, to) = (File::open(source)?, writable()?);
            let copied =
                rustix::fs::copy_file_range(&from, Some(&mut 0), &to, Some(&mut 0), evil.len())?;
            ensure!(copied == evil.len(), "copied {copied} bytes only");
            Ok(())
        }),
        Change::new("write, with size and times put back", || {
            let before = fs::metadata(path)?;
            let file = writable()?;
            file.write_all_at(evil, 0)?;
            file.set_times(
                fs::FileTimes::new()
                    .set_accessed(before.accessed()?)
                    .set_modified(before.modified()?),
            )?;
            drop(file);
            let after = fs::metadata(path)?;
            ensure!((before.size(), before.mtime_nsec()) == (after.size(), after.mtime_nsec()));
            Ok(())
        }),
    ];
    victim::run(victim, &changes)
}

fn write_mapped(file: &File, content: &[u8]) -> Result<()> {
    let mut mapping =
        Mapping::new(file, content.len(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
    mapping.write_at(0, content);
    Ok(())
}

/// A07: a writer that was there before the verdict.
pub fn while_open() -> Result<()> {
    fresh("/data/open")?;
    let path = Path::new("/data/open/victim");
    let victim = Victim::new(path)?;
    let writer = || OpenOptions::new().read(true).write(true).open(path);
    let open_then_map = || {
        install(path, &victim.good)?;
        let writer = writer()?;
        // This is when a verdict would be made.
        let first = map_as_code(path)?;
        writer.write_all_at(&victim.evil, 0)?;
        let second = map_as_code(path)?;
        ensure!(
            first == second,
            "a file that is open for writing was judged {first:?}, then {second:?}"
        );
        Ok(second)
    };
    let mapped_then_map = || {
        install(path, &victim.good)?;
        let file = writer()?;
        let (length, both) = (victim.good.len(), ProtFlags::READ | ProtFlags::WRITE);
        let mut mapping = Mapping::new(&file, length, both, MapFlags::SHARED)?;
        // The descriptor is gone; the mapping still writes.
        drop(file);
        let first = map_as_code(path)?;
        mapping.write_at(0, &victim.evil);
        let second = map_as_code(path)?;
        ensure!(
            first == second,
            "a file that is mapped for writing was judged {first:?}, then {second:?}"
        );
        Ok(second)
    };
    let being_written: &[&str] = &["being-written"];
    attack::run(
        &victim.policy()?,
        &[
            Attack {
                name: "open for writing, then map".into(),
                attempt: &open_then_map,
                reasons: being_written,
            },
            Attack {
                name: "mapped for writing, then map".into(),
                attempt: &mapped_then_map,
                reasons: being_written,
            },
        ],
    )?;
    // Exec of such a file fails with ETXTBSY, with us and without.
    install(path, &victim.good)?;
    let held = writer()?;
    match std::process::Command::new(path).status() {
        Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {}
        other => bail!("exec of a file that is open for writing: {other:?}"),
    }
    drop(held);
    Ok(())
}

/// The verdict is made from a hash that takes a while; a writer in that time must show.
pub fn races_with_hash() -> Result<()> {
    const PADDING: usize = 8 << 20;
    const ROUNDS: usize = 25;
    fresh("/data/race")?;
    let path = Path::new("/data/race/victim");
    let mut content = good("race")?;
    content.resize(PADDING, 7);
    install(path, &content)?;
    let policy = base_policy(&[])?;
    list(&policy, path, &["executable", "library"])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let mut refused = 0;
    for round in 0..ROUNDS {
        install(path, &content)?;
        let done = AtomicBool::new(false);
        let during = thread::scope(|scope| -> Result<Attempt> {
            // Opens, writes and closes again and again while the other thread's mapping is judged.
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(5 * (round as u64 % 8)));
                while !done.load(Ordering::Relaxed) {
                    let written = OpenOptions::new()
                        .write(true)
                        .open(path)
                        .and_then(|file| file.write_all_at(b"EVIL", 64));
                    let _ = written;
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let attempt = map_as_code(path);
            done.store(true, Ordering::Relaxed);
            attempt
        })?;
        refused += usize::from(during == Attempt::Refused);
        // Whatever came out then: the content is evil now, and must not be allowed by a verdict of
        // what it was.
        OpenOptions::new().write(true).open(path)?.write_all_at(b"EVIL", 64)?;
        ensure!(map_as_code(path)? == Attempt::Refused, "round {round}: an old verdict was kept");
    }
    println!("  {refused} of {ROUNDS} were refused while a writer came and went");
    agent.stop()
}
