//! The agent's runtime folder, and the lock that keeps a second agent out.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use thiserror::Error;

/// The runtime folder: it goes with a reboot.
pub const RUNTIME: &str = "/run/portcullis";

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
        let path = folder.join("agent.lock");
        let opened = match File::open(&path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                let mut new = OpenOptions::new();
                new.create(true).read(true).write(true).truncate(false).mode(0o600).open(&path)
            }
            opened => opened,
        };
        let mut file = opened.map_err(|cause| error(&path, cause))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                return Err(LockError::Taken(owner.trim().to_owned()));
            }
            Err(cause) => return Err(error(&path, cause.into())),
        }
        Ok(Self { _file: file, path })
    }

    /// Writes down who has it, once the gates that stand know this process. That only serves the message
    /// to the next one.
    pub fn sign(&self) {
        let _ = fs::write(&self.path, format!("{}\n", std::process::id()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = folder.path().join("run");
        let first = Lock::take(&runtime).expect("free");
        first.sign();
        let second = Lock::take(&runtime).expect_err("taken").to_string();
        assert!(second.contains(&format!("pid {}", std::process::id())), "{second}");
        drop(first);
        Lock::take(&runtime).expect("free again");
    }
}
