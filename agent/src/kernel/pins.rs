//! Where the programs are pinned, so that they outlive the agent.
//!
//! Each agent has a folder of its own below [`ROOT`]. A new agent attaches and pins its own
//! programs first and removes its predecessors' folders afterwards, so that there is no moment
//! in which nothing decides.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};

use crate::kernel::filesystems;

/// Where bpffs is mounted on every distribution.
const BPFFS: &str = "/sys/fs/bpf";
/// The folder in it that is ours.
pub const ROOT: &str = "/sys/fs/bpf/portcullis";

/// Magic number of bpffs (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// One agent's folder of pins.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
}

impl Pins {
    /// Makes a folder for this agent, and mounts bpffs if nobody did.
    ///
    /// # Errors
    /// If bpffs is not to be had.
    pub fn create() -> io::Result<Self> {
        if filesystems::magic_of(Path::new(BPFFS))? != BPF_FS_MAGIC {
            mount(
                "bpf",
                BPFFS,
                "bpf",
                MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
                None,
            )?;
        }
        match fs::create_dir(ROOT) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let process = std::process::id();
        // A predecessor may have had the same number.
        for attempt in 0u32.. {
            let folder = Path::new(ROOT).join(format!("agent-{process}-{attempt}"));
            match fs::create_dir(&folder) {
                Ok(()) => return Ok(Self { folder }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the link of a program, or a map, is pinned.
    #[must_use]
    pub fn of(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Folders that other agents left.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn predecessors(&self) -> io::Result<Vec<PathBuf>> {
        Ok(all()?.into_iter().filter(|folder| *folder != self.folder).collect())
    }

    /// Unpins everything of this agent.
    ///
    /// # Errors
    /// If the bpffs refuses.
    pub fn remove(&self) -> io::Result<()> {
        remove(&self.folder)
    }
}

/// Folders of pins of every agent, alive or dead.
///
/// # Errors
/// If the folder cannot be read.
pub fn all() -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(ROOT) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Where another agent, alive or dead, has pinned a map of this name.
#[must_use]
pub fn inherited(name: &str) -> Option<PathBuf> {
    let folders = all().unwrap_or_default();
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.exists())
}

/// Unpins everything in a folder, whatever else lies there; a link goes, and not what it points to. The
/// kernel detaches what nobody holds any more, up to 100 ms later.
///
/// # Errors
/// If the bpffs refuses.
pub fn remove(folder: &Path) -> io::Result<()> {
    if fs::symlink_metadata(folder)?.is_dir() {
        fs::remove_dir_all(folder)
    } else {
        fs::remove_file(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_but_not_what_a_link_points_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("pins/folder/another")).expect("made");
        fs::create_dir(at("precious")).expect("made");
        fs::write(at("precious/file"), "").expect("written");
        std::os::unix::fs::symlink(at("precious"), at("pins/folder/link")).expect("made");
        std::os::unix::fs::symlink(at("precious"), at("link")).expect("made");
        remove(&at("pins")).expect("removed");
        remove(&at("link")).expect("removed");
        assert!(!at("pins").exists() && fs::symlink_metadata(at("link")).is_err());
        assert!(at("precious/file").exists());
    }
}
