//! The agent's runtime folder, and the lock that keeps a second agent out.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock, major, minor},
    io::Errno,
    process::{Pid, test_kill_process},
};
use thiserror::Error;

/// The runtime folder: it goes with a reboot.
pub const RUNTIME: &str = "/run/portcullis";

/// The lock's file in it.
const FILE: &str = "agent.lock";

/// How long the lock of an agent that has ended is waited for. A process that it was just starting has it too,
/// until it runs its program or ends.
const LEFT_BEHIND: Duration = Duration::from_secs(5);

/// Why the agent cannot be the one.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another agent runs.
    #[error("another agent runs (pid {0}); `portcullis status` shows it")]
    Taken(String),
    /// The folder or the lock cannot be made.
    #[error("{path}: {source}")]
    Io {
        /// What could not be made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Held as long as this agent runs; the kernel lets go of it however the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Makes the runtime folder and takes the lock in it. That changes nothing there if the lock's file
    /// exists, as gates that stand guard it until they know this process.
    ///
    /// # Errors
    /// If another agent has it, or the folder cannot be used.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let error =
            |path: &Path, source: io::Error| LockError::Io { path: path.to_owned(), source };
        // Others find their sockets in it, as where systemd makes it, and nothing else that is theirs.
        match DirBuilder::new().mode(0o711).create(folder) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error(folder, cause));
            }
            _ => {}
        }
        let path = folder.join(FILE);
        let opened = match File::open(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let mut new = OpenOptions::new();
                new.create(true).read(true).write(true).truncate(false).mode(0o600).open(&path)
            }
            opened => opened,
        };
        let mut file = opened.map_err(|cause| error(&path, cause))?;
        let end = Instant::now() + LEFT_BEHIND;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) => {
                    let mut owner = String::new();
                    let _ = file.rewind().and_then(|()| file.read_to_string(&mut owner));
                    let owner = owner.trim().to_owned();
                    if !has_ended(&owner) || Instant::now() > end {
                        return Err(LockError::Taken(owner));
                    }
                    sleep(Duration::from_millis(50));
                }
                Err(cause) => return Err(error(&path, cause.into())),
            }
        }
        Ok(Self { _file: file, path })
    }

    /// Writes down who has it, once the gates that stand know this process. That only serves the message
    /// to the next one.
    pub fn sign(&self) {
        let _ = fs::write(&self.path, format!("{}\n", std::process::id()));
    }
}

/// The process that has taken the lock in `folder`, if it still runs. Taking it to find that out would keep out
/// an agent that is starting; the kernel lists it (proc_locks(5)).
#[must_use]
pub fn holder(folder: &Path) -> Option<u32> {
    let file = fs::metadata(folder.join(FILE)).ok()?;
    listed_holder(&fs::read_to_string("/proc/locks").ok()?, file.dev(), file.ino())
}

/// The process that has locked this inode, of the kernel's list. Inodes of other filesystems have the same
/// numbers, and anybody may lock those. (btrfs and overlayfs are listed by another device than stat(2) tells;
/// nothing is found there.)
fn listed_holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let wanted = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 327 00:1a:1234 0 EOF
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, "FLOCK", _, "WRITE", pid, place, ..] = words[..] else { return None };
        pid.parse().ok().filter(|pid| *pid > 0 && place == wanted)
    })
}

/// Whether the process is gone that wrote this down. Who is only starting has written nothing yet.
fn has_ended(owner: &str) -> bool {
    let pid = owner.parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_an_agent_was_starting_when_it_ended_keeps_the_next_one_out_for_a_moment_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = folder.path().join("run");
        let left_behind = Lock::take(&runtime).expect("free");
        let mut ended = Command::new("true").spawn().expect("started");
        ended.wait().expect("waited for");
        fs::write(runtime.join("agent.lock"), ended.id().to_string()).expect("written");
        let next = std::thread::spawn(move || Lock::take(&runtime).map(drop));
        sleep(Duration::from_millis(200));
        assert!(!next.is_finished(), "it did not wait");
        drop(left_behind);
        next.join().expect("joined").expect("taken");
    }

    #[test]
    fn whoever_locks_the_same_number_elsewhere_is_not_taken_for_the_agent() {
        let locks = "1: FLOCK  ADVISORY  WRITE 41 00:1b:1234 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 42 00:1a:1234 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 327 00:1a:1234 0 EOF\n";
        let device = |number| rustix::fs::makedev(0, number);
        assert_eq!(listed_holder(locks, device(0x1a), 1234), Some(327));
        assert_eq!(listed_holder(locks, device(0x1c), 1234), None);
        assert_eq!(listed_holder(locks, device(0x1a), 1235), None);
    }

    #[test]
    fn the_second_is_told_who_was_first() {
        // A tmpfs, as where agents have it.
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let runtime = folder.path().join("run");
        assert_eq!(holder(&runtime), None);
        let first = Lock::take(&runtime).expect("free");
        first.sign();
        assert_eq!(holder(&runtime), Some(std::process::id()));
        let second = Lock::take(&runtime).expect_err("taken").to_string();
        assert!(second.contains(&format!("pid {}", std::process::id())), "{second}");
        drop(first);
        assert_eq!(holder(&runtime), None);
        Lock::take(&runtime).expect("free again");
    }
}
