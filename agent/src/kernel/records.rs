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

use aya::maps::{Array, InodeStorage, Map, MapData, MapError};
use portcullis_common::{Digest, Rule, Verdict, VerdictWord};

use crate::kernel::filesystems;

/// `BPF_EXIST` (linux/bpf.h): change what is there, and make nothing new.
const EXIST: u64 = 2;

/// A handle on the map of verdicts, and on the number of writes behind overlay filesystems, which
/// verdicts on their files carry.
pub struct Records {
    maps: [OwnedFd; 2],
    verdicts: InodeStorage<MapData, Verdict>,
    overlay_writes: Array<MapData, u64>,
}

/// A record that says that somebody is hashing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    stamp: u64,
    /// As it was before the file was hashed.
    layer_writes: u64,
}

impl Records {
    /// A handle of its own on the maps.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub fn of(verdicts: &MapData, overlay_writes: &MapData) -> io::Result<Self> {
        let own = |map: &MapData| map.fd().as_fd().try_clone_to_owned();
        Self::from_descriptors([own(verdicts)?, own(overlay_writes)?])
    }

    /// Another handle.
    ///
    /// # Errors
    /// If the process has no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let [verdicts, overlay_writes] = &self.maps;
        Self::from_descriptors([verdicts.try_clone()?, overlay_writes.try_clone()?])
    }

    fn from_descriptors(maps: [OwnedFd; 2]) -> io::Result<Self> {
        let data = |map: &OwnedFd| MapData::from_fd(map.try_clone()?).map_err(io::Error::other);
        let verdicts = Map::InodeStorage(data(&maps[0])?);
        let overlay_writes = Map::Array(data(&maps[1])?);
        Ok(Self {
            verdicts: verdicts.try_into().map_err(io::Error::other)?,
            overlay_writes: overlay_writes.try_into().map_err(io::Error::other)?,
            maps,
        })
    }

    /// What a verdict on the file has to carry to hold: of an overlay's merged file, the number of
    /// writes behind such files; of any other, 0.
    fn layer_writes(&self, file: &impl AsFd) -> Result<u64, MapError> {
        if is_merged(file) { self.overlay_writes.get(&0, 0) } else { Ok(0) }
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
    pub fn is_known(&self, file: &(impl AsFd + AsRawFd)) -> Result<bool, MapError> {
        let layer_writes = self.layer_writes(file)?;
        Ok(self
            .get(file)?
            .is_some_and(|verdict| verdict.word.is_known() && verdict.layer_writes == layer_writes))
    }

    /// Replaces the file's record by a claim.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn claim(&mut self, file: &(impl AsFd + AsRawFd)) -> Result<Claim, MapError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let stamp = NEXT.fetch_add(1, Ordering::Relaxed);
        let layer_writes = self.layer_writes(file)?;
        self.insert(file, Verdict { stamp, ..Verdict::default() }, 0)?;
        Ok(Claim { stamp, layer_writes })
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
            stamp: claim.stamp,
            layer_writes: claim.layer_writes,
            rule: Rule::default(),
            digest,
        };
        match self.insert(file, known, EXIST) {
            Ok(()) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The kernel wants to be asked again while the last that other maps kept of the inode is taken
    /// away (`bpf_local_storage_update` in kernel/bpf, 5.10 to 7.2).
    fn insert(&mut self, file: &impl AsRawFd, record: Verdict, flags: u64) -> Result<(), MapError> {
        const TRIES: u32 = 4;
        let mut tried = 1;
        loop {
            match self.verdicts.insert(file, record, flags) {
                Err(error) if tried < TRIES && has_errno(&error, libc::EAGAIN) => tried += 1,
                done => return done,
            }
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

/// Whether this is a merged file of an overlay filesystem.
pub fn is_merged(file: &impl AsFd) -> bool {
    // A file that cannot be asked is none that could be hashed either.
    filesystems::magic_of_file(file).is_ok_and(|magic| magic == filesystems::OVERLAY.magic)
}

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || has_errno(error, libc::ENOENT)
}

fn has_errno(error: &MapError, errno: i32) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(errno))
}
