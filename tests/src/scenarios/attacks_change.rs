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

use anyhow::{Context, Result, bail, ensure};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, Policy},
    attack::{self, Attack, Attempt, c_path, evil, exec_path, good, install, map_as_code},
    mapping::{MapFlags, Mapping, ProtFlags},
};

/// A listed and an unlisted program of the same size, and where the listed one lies.
struct Victim<'a> {
    path: &'a Path,
    good: Vec<u8>,
    evil: Vec<u8>,
}

impl<'a> Victim<'a> {
    fn new(path: &'a Path) -> Result<Self> {
        Ok(Self { path, good: good("victim")?, evil: evil("victim")? })
    }

    /// A new file with the listed content, judged once by both gates.
    fn restore(&self) -> Result<()> {
        install(self.path, &self.good)?;
        let status =
            std::process::Command::new(self.path).status().context("the listed program")?;
        ensure!(
            status.code() == Some(i32::from(attack::GOOD)),
            "the listed program ended with {status}"
        );
        ensure!(map_as_code(self.path)? == Attempt::Ran, "the listed program cannot be mapped");
        Ok(())
    }

    fn policy(&self) -> Result<Policy> {
        install(self.path, &self.good)?;
        let policy = base_policy(&[])?;
        list(&policy, self.path, &["executable", "library"])?;
        Ok(policy)
    }
}

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
    type Change<'c> = (&'static str, Box<dyn Fn() -> Result<()> + 'c>);
    type Try<'c> = (String, Box<dyn Fn() -> Result<Attempt> + 'c>);
    let changes: Vec<Change<'_>> = vec![
        ("write", Box::new(|| Ok(writable()?.write_all_at(evil, 0)?))),
        ("truncate and write", Box::new(|| Ok(fs::write(path, evil)?))),
        (
            "write through a hard link",
            Box::new(|| {
                let link = path.with_extension("link");
                let _ = fs::remove_file(&link);
                fs::hard_link(path, &link)?;
                Ok(OpenOptions::new().write(true).open(link)?.write_all_at(evil, 0)?)
            }),
        ),
        (
            "write through a descriptor reopened in /proc",
            Box::new(|| {
                let reading = File::open(path)?;
                let again = format!("/proc/self/fd/{}", reading.as_raw_fd());
                Ok(OpenOptions::new().write(true).open(again)?.write_all_at(evil, 0)?)
            }),
        ),
        ("write through a shared mapping", Box::new(|| write_mapped(&writable()?, evil))),
        (
            "O_TRUNC while opening to read, then append",
            Box::new(|| {
                OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(path)?;
                Ok(OpenOptions::new().append(true).open(path)?.write_all(evil)?)
            }),
        ),
        (
            "truncate(2), then append",
            Box::new(|| {
                let name = c_path(path)?;
                // SAFETY: a valid string.
                let truncated = unsafe { libc::truncate(name.as_ptr(), 0) };
                ensure!(truncated == 0, "truncate failed");
                Ok(OpenOptions::new().append(true).open(path)?.write_all(evil)?)
            }),
        ),
        (
            "copy_file_range",
            Box::new(|| {
                let source = path.with_extension("source");
                fs::write(&source, evil)?;
                let (from, to) = (File::open(source)?, writable()?);
                let copied = rustix::fs::copy_file_range(
                    &from,
                    Some(&mut 0),
                    &to,
                    Some(&mut 0),
                    evil.len(),
                )?;
                ensure!(copied == evil.len(), "copied {copied} bytes only");
                Ok(())
            }),
        ),
        (
            "write, with size and times put back",
            Box::new(|| {
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
        ),
    ];
    let attempts: Vec<Try<'_>> = changes
        .iter()
        .flat_map(|(name, change)| {
            let by_exec: Box<dyn Fn() -> Result<Attempt>> = Box::new(move || {
                victim.restore()?;
                change()?;
                exec_path(path)
            });
            let by_mapping: Box<dyn Fn() -> Result<Attempt>> = Box::new(move || {
                victim.restore()?;
                change()?;
                map_as_code(path)
            });
            [(format!("{name}, then exec"), by_exec), (format!("{name}, then map"), by_mapping)]
        })
        .collect();
    let attacks: Vec<_> =
        attempts.iter().map(|(name, attempt)| Attack::unlisted(name, attempt)).collect();
    attack::run(&victim.policy()?, &attacks)
}

fn write_mapped(file: &File, content: &[u8]) -> Result<()> {
    let mut mapping =
        Mapping::new(file, content.len(), ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED)?;
    mapping.write(content);
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
        mapping.write(&victim.evil);
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
