//! Has scripts judged before an interpreter opens them, on kernels that cannot hash a file at that
//! moment (before 6.9).
//!
//! The mapping gate hashes in its place: the agent maps the file as code for an instant. What that
//! gate says does not matter, as only the digest is wanted, which stays on the inode.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::mpsc::{Sender, channel},
    thread,
};

use portcullis_common::{Gate, Kinds, Reason};
use rustix::fs::{Mode, OFlags};

use crate::{
    event::decode::GateEvent,
    kernel::selftest,
    policy::{Policy, places},
};

/// How many files are kept open, so that their inodes stay in memory with their digests.
const KEPT: usize = 512;

/// Files whose digests are to stay known.
#[derive(Debug, Default)]
struct Kept(VecDeque<File>);

impl Kept {
    /// Keeps one more; the one that has been kept longest goes if there are too many.
    fn keep(&mut self, file: File) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(file);
    }
}

/// The thread that has scripts judged.
pub struct Scripts(Sender<Place>);

impl Scripts {
    /// Has the scripts judged that the policy lists, where its entries say they lie, and starts the
    /// thread for others.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(policy: &Policy) -> io::Result<Self> {
        let mut kept = Kept::default();
        let places = places::of(policy);
        let scripts = places.iter().filter(|(_, kinds)| kinds.intersects(Kinds::SCRIPT));
        // What is not there is told of when somebody opens it.
        scripts.filter_map(|(path, _)| appraise(path).ok()).for_each(|file| kept.keep(file));
        let (sender, places) = channel::<Place>();
        thread::Builder::new().name("appraise".into()).stack_size(128 * 1024).spawn(move || {
            for place in places {
                match place.appraise() {
                    Ok(file) => kept.keep(file),
                    Err(error) => tracing::debug!("a script cannot be judged: {error}"),
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Has the file of an event judged if the gate could not do it, for the next attempt.
    pub fn take(&self, event: &GateEvent) {
        if event.gate == Gate::Interpreter
            && event.reason == Reason::NotAppraised
            && let Some(place) = Place::of(event)
        {
            // The thread ends with this process only.
            let _ = self.0.send(place);
        }
    }
}

/// Where a file is that an event is about, and which one it is.
pub(super) struct Place {
    paths: [PathBuf; 2],
    device: u32,
    inode: u64,
}

impl Place {
    /// Of the event's file; `None` if the event has no path.
    pub(super) fn of(event: &GateEvent) -> Option<Self> {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
        let path = Path::new(OsStr::from_bytes(event.path.as_deref().ok()?));
        let root = PathBuf::from(format!("/proc/{}/root", event.header.pid));
        let seen = root.join(path.strip_prefix("/").ok()?);
        // The process may have ended by now.
        let paths = [seen, path.to_owned()];
        Some(Self { paths, device: event.header.device, inode: event.header.inode })
    }

    /// Opens the file if it is still there, and says under which path.
    pub(super) fn open(&self) -> io::Result<(File, &Path)> {
        self.find(open)
    }

    /// Has the file judged if it is still there.
    fn appraise(&self) -> io::Result<File> {
        self.find(appraise).map(|(file, _)| file)
    }

    fn find(&self, look: impl Fn(&Path) -> io::Result<File>) -> io::Result<(File, &Path)> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for path in &self.paths {
            match look(path) {
                Ok(file) => {
                    let found = file.metadata()?;
                    if selftest::kernel_device(found.dev()) == self.device
                        && found.ino() == self.inode
                    {
                        return Ok((file, path));
                    }
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Opens a file, if it is one. Whoever chose the path may have put something else there: opening a
/// device can do things, and opening a FIFO wait.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let found = File::from(found);
    if !found.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Not to wait for whoever has a lease on it either.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    OpenOptions::new().read(true).custom_flags(flags).open(link)
}

/// Has the file at a path judged.
fn appraise(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    selftest::map_as_code(&file)?;
    Ok(file)
}
