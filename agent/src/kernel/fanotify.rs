//! The kernel's fanotify: asks this process before a file is opened.
//!
//! A group that dies with its process lets everything pass that waits (`fanotify_release`), so it
//! never decides alone where the kernel has gates. A child that was forked and has not started its
//! program yet keeps the group alive and would wait for itself: the agent starts no program while
//! it has a group.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use libc::{
    FAN_ALLOW, FAN_CLASS_CONTENT, FAN_CLOEXEC, FAN_CLOSE_WRITE, FAN_DENY, FAN_EVENT_ON_CHILD,
    FAN_MARK_ADD, FAN_MARK_FILESYSTEM, FAN_MARK_IGNORED_MASK, FAN_MARK_ONLYDIR, FAN_MARK_REMOVE,
    FAN_NOFD, FAN_NONBLOCK, FAN_OPEN_EXEC_PERM, FAN_OPEN_PERM, FAN_UNLIMITED_MARKS,
    FAN_UNLIMITED_QUEUE,
};

/// What an open is for, as far as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run it: a program, a script, an interpreter that either names.
    Exec,
    /// Anything else, and running it maybe as well.
    Open,
}

/// Somebody waits for an answer.
pub struct Question {
    /// The file, open for reading; what is done with it raises no question.
    pub file: File,
    /// What for.
    pub purpose: Purpose,
    /// The process that waits, or 0 if it is outside of our namespace.
    pub pid: u32,
}

/// What the kernel says.
pub enum Event {
    /// Somebody waits.
    Question(Question),
    /// The last descriptor for writing was closed of a file that is watched for that.
    Written(File),
}

/// A group: where questions come from.
pub struct Group {
    descriptor: OwnedFd,
}

impl Group {
    /// A group without marks.
    ///
    /// # Errors
    /// If the kernel has no permission events, or this process no right to them.
    pub fn new() -> io::Result<Self> {
        let flags = FAN_CLASS_CONTENT
            | FAN_CLOEXEC
            | FAN_NONBLOCK
            | FAN_UNLIMITED_QUEUE
            | FAN_UNLIMITED_MARKS;
        let file_flags = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: has no precondition.
        let descriptor = unsafe { libc::fanotify_init(flags, file_flags.cast_unsigned()) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given it to us.
        Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// Asks at every exec of a file of the filesystem that `place` lies on, in whatever mount.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch_filesystem(&self, place: &Path) -> io::Result<()> {
        self.mark_path(FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN_EXEC_PERM, place)
    }

    /// The same for the filesystem of an open file.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch_filesystem_of(&self, file: &impl AsFd) -> io::Result<()> {
        self.mark(FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_OPEN_EXEC_PERM, file)
    }

    /// Asks at every open of a file in a folder.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch_folder(&self, folder: &Path) -> io::Result<()> {
        self.mark_path(FAN_MARK_ADD | FAN_MARK_ONLYDIR, FAN_OPEN_PERM | FAN_EVENT_ON_CHILD, folder)
    }

    /// Asks no more about opens of this file, until it is written or [`Self::ask_again`]; and tells
    /// when it was open for writing. The mark keeps the inode in memory.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn ask_no_more(&self, file: &impl AsFd, of: Purpose) -> io::Result<()> {
        // First what revokes it, so that nothing is missed in between.
        self.mark(FAN_MARK_ADD, FAN_CLOSE_WRITE, file)?;
        let mask = match of {
            Purpose::Exec => FAN_OPEN_EXEC_PERM | FAN_OPEN_PERM,
            Purpose::Open => FAN_OPEN_PERM,
        };
        self.mark(FAN_MARK_ADD | FAN_MARK_IGNORED_MASK, mask, file)
    }

    /// Takes [`Self::ask_no_more`] back.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn ask_again(&self, file: &impl AsFd) -> io::Result<()> {
        let mask = FAN_OPEN_EXEC_PERM | FAN_OPEN_PERM;
        let ignored = self.mark(FAN_MARK_REMOVE | FAN_MARK_IGNORED_MASK, mask, file);
        let told = self.mark(FAN_MARK_REMOVE, FAN_CLOSE_WRITE, file);
        // What was not there, or went with a change of the file, needs not be taken back.
        for done in [ignored, told] {
            match done {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What has come. `None` if nothing has.
    ///
    /// # Errors
    /// If the kernel refuses; a question that could not be handed over is answered by it with no.
    pub fn read(&self) -> io::Result<Vec<Event>> {
        const ROOM: usize = 64;
        // SAFETY: made of integers only.
        let mut events: [libc::fanotify_event_metadata; ROOM] = unsafe { std::mem::zeroed() };
        // SAFETY: writes at most as many bytes as there are.
        let length = unsafe {
            libc::read(
                self.descriptor.as_raw_fd(),
                events.as_mut_ptr().cast(),
                size_of_val(&events),
            )
        };
        let length = match usize::try_from(length) {
            Ok(length) => length,
            Err(_) => {
                let error = io::Error::last_os_error();
                return match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Vec::new()),
                    _ => Err(error),
                };
            }
        };
        // A group of this class gets events of one size.
        let count = length / size_of::<libc::fanotify_event_metadata>();
        Ok(events[..count].iter().filter_map(event).collect())
    }

    /// Answers a question.
    ///
    /// # Errors
    /// If the kernel does not wait for one.
    pub fn answer(&self, question: &Question, allow: bool) -> io::Result<()> {
        let response = libc::fanotify_response {
            fd: question.file.as_raw_fd(),
            response: if allow { FAN_ALLOW } else { FAN_DENY },
        };
        // SAFETY: reads the struct.
        let written = unsafe {
            libc::write(
                self.descriptor.as_raw_fd(),
                ptr::from_ref(&response).cast(),
                size_of_val(&response),
            )
        };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn mark_path(&self, flags: u32, mask: u64, path: &Path) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        self.mark_at(flags, mask, libc::AT_FDCWD, path.as_ptr())
    }

    fn mark(&self, flags: u32, mask: u64, file: &impl AsFd) -> io::Result<()> {
        self.mark_at(flags, mask, file.as_fd().as_raw_fd(), ptr::null())
    }

    fn mark_at(
        &self,
        flags: u32,
        mask: u64,
        folder: RawFd,
        path: *const libc::c_char,
    ) -> io::Result<()> {
        // SAFETY: the path is null, which stands for the descriptor itself, or a string.
        let done =
            unsafe { libc::fanotify_mark(self.descriptor.as_raw_fd(), flags, mask, folder, path) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn event(metadata: &libc::fanotify_event_metadata) -> Option<Event> {
    // The queue has no bound, so it does not overflow, and every other event has a file.
    if metadata.fd == FAN_NOFD {
        return None;
    }
    // SAFETY: the kernel has just given it to us.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(metadata.fd) });
    let purpose = if metadata.mask & FAN_OPEN_EXEC_PERM != 0 {
        Purpose::Exec
    } else if metadata.mask & FAN_OPEN_PERM != 0 {
        Purpose::Open
    } else {
        return Some(Event::Written(file));
    };
    let pid = u32::try_from(metadata.pid).unwrap_or_default();
    Some(Event::Question(Question { file, purpose, pid }))
}
