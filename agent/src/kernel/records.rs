//! Digests on inodes, put there by the agent where the kernel cannot hash.
//!
//! The order of steps closes the race with a writer, as in the kernel programs: whoever opens a
//! file for writing deletes its record. So a claim that is made before the file is hashed and is
//! still there afterwards means that nobody opened the file for writing in between. That nobody
//! had it open before is for the caller to find out between the claim and the hash.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{InodeStorage, Map, MapData, MapError};
use portcullis_common::{Digest, Rule, Verdict, VerdictWord};

/// `BPF_EXIST` (linux/bpf.h): change what is there, and make nothing new.
const EXIST: u64 = 2;

/// A handle on the map of verdicts.
pub struct Records {
    map: OwnedFd,
    verdicts: InodeStorage<MapData, Verdict>,
}

/// A record that says that somebody is hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim(u64);

impl Records {
    /// A handle of its own on the map.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub fn of(map: &MapData) -> io::Result<Self> {
        Self::from_descriptor(map.fd().as_fd().try_clone_to_owned()?)
    }

    /// Another handle.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Self::from_descriptor(self.map.try_clone()?)
    }

    fn from_descriptor(map: OwnedFd) -> io::Result<Self> {
        let data = MapData::from_fd(map.try_clone()?).map_err(io::Error::other)?;
        let verdicts = InodeStorage::try_from(Map::InodeStorage(data)).map_err(io::Error::other)?;
        Ok(Self { map, verdicts })
    }

    /// The file's record, if it has one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn get(&self, file: &impl AsRawFd) -> Result<Option<Verdict>, MapError> {
        match self.verdicts.get(file, 0) {
            Ok(verdict) => Ok(Some(verdict)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the file's digest is known.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn is_known(&self, file: &impl AsRawFd) -> Result<bool, MapError> {
        Ok(self.get(file)?.is_some_and(|verdict| verdict.word.is_known()))
    }

    /// Replaces the file's record by a claim.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn claim(&mut self, file: &impl AsRawFd) -> Result<Claim, MapError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let stamp = NEXT.fetch_add(1, Ordering::Relaxed);
        self.verdicts.insert(file, Verdict { stamp, ..Verdict::default() }, 0)?;
        Ok(Claim(stamp))
    }

    /// Puts the digest into the claimed record. Returns `false` if the claim is gone: somebody
    /// opened the file for writing.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn fulfil(
        &mut self,
        file: &impl AsRawFd,
        claim: Claim,
        digest: Digest,
    ) -> Result<bool, MapError> {
        // Of generation 0, so that the gate asks the policy that is in force when it is used.
        let known = Verdict {
            word: VerdictWord::new(0, None),
            stamp: claim.0,
            rule: Rule::default(),
            digest,
        };
        match self.verdicts.insert(file, known, EXIST) {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the file's record away.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn forget(&mut self, file: &impl AsRawFd) -> Result<(), MapError> {
        match self.verdicts.remove(file) {
            Err(error) if is_missing(&error) => Ok(()),
            other => other,
        }
    }
}

fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(libc::ENOENT),
        _ => false,
    }
}
