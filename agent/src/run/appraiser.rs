//! Works out digests before files are used, where the kernel's gates cannot: the gates look up what
//! is put on the inodes here, and refuse what has nothing.
//!
//! * A program, and what its `#!` line or ELF header names, is hashed when it is opened for exec;
//!   the kernel waits for that. Nothing waits a second time: a file that is known is marked so that
//!   no more is asked about it until it is written.
//! * Libraries raise no such question, and asking at every open would make each many times dearer
//!   (docs/performance.md). So only the folders of listed libraries are watched.
//! * Everything that the policy lists is hashed beforehand in the background, where its entries say
//!   it lies. The marks keep those inodes, with their digests, in memory.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use aya::maps::MapError;
use portcullis_common::{Kinds, Reason};
use rustix::fs::{SealFlags, fcntl_get_seals};

use crate::{
    artifact::{MAX_HASHED_BYTES, digest},
    event::decode::GateEvent,
    kernel::{
        check::{Check, State},
        fanotify::{Group, Purpose, Question},
        filesystems, mountpoints,
        records::{self, Records},
        selftest::{self, kernel_device},
    },
    policy::{Policy, places},
    run::{
        preflight,
        questions::{Answerer, Questions, Scope},
        reappraise::yield_to_everybody,
        scripts,
        signatures::folders_of,
    },
    sync::lock,
};

/// Files about which nothing more is asked: each keeps an inode in memory, of about a kilobyte.
/// Beyond it the kernel asks every time, which is slower and decides the same.
const MAX_MARKED: usize = 16_384;

/// Files that wait to be hashed after they were refused.
const MAX_LATE: usize = 256;

/// How often a file is hashed anew because somebody opened it for writing meanwhile.
const ATTEMPTS: u32 = 3;

/// The threads that hash.
pub struct Appraiser {
    questions: Questions,
    work: Arc<Work>,
    folders_lacking: Vec<String>,
    late: SyncSender<(PathBuf, u32, u64)>,
}

/// How far the appraisal of a file came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appraised {
    /// Its digest is on its inode.
    Known,
    /// It cannot be said what it is; the gates refuse it.
    Not,
}

struct Work {
    records: Mutex<Records>,
    trusted: Vec<u64>,
    /// Device number of memfds, of which the kernel does not count the writers.
    memory: u64,
    /// Files that a thread is working on, so that two never claim the same.
    busy: Mutex<HashSet<(u64, u64)>>,
    free: Condvar,
    marked: Mutex<HashSet<(u64, u64)>>,
    hashed: AtomicU64,
}

impl Appraiser {
    /// Starts to hash.
    ///
    /// # Errors
    /// If the kernel asks no questions.
    pub fn start(records: Records, policy: &Policy) -> io::Result<Self> {
        let work = Arc::new(Work {
            records: Mutex::new(records),
            trusted: policy.trusted_filesystems.clone(),
            memory: File::from(selftest::memory_file()?).metadata()?.dev(),
            busy: Mutex::default(),
            free: Condvar::new(),
            marked: Mutex::default(),
            hashed: AtomicU64::new(0),
        });
        let answerer: Arc<dyn Answerer> = Arc::clone(&work) as _;
        let questions =
            Questions::start(Group::new()?, Scope::Local, work.trusted.clone(), answerer)?;

        let places = places::of(policy);
        let opened = Kinds::LIBRARY.union(Kinds::MODULE);
        let libraries = places.iter().filter(|(_, kinds)| kinds.intersects(opened));
        let folders: BTreeSet<PathBuf> = libraries
            .filter_map(|(path, _)| path.canonicalize().ok()?.parent().map(Into::into))
            .chain(folders_of(policy))
            .collect();
        let lacking = |folder: &PathBuf| {
            let error = questions.group().watch_folder(folder).err()?;
            Some(format!("{} ({error})", folder.display()))
        };
        let folders_lacking = folders.iter().filter_map(lacking).collect();
        let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new().name(name.into()).stack_size(256 * 1024).spawn(run)
        };
        // Without these nobody gets in again should the agent die early.
        let group = questions.group();
        for path in preflight::places_in_use() {
            work.by_path(&group, &path, None);
        }
        let listed = Arc::clone(&work);
        thread(
            "listed",
            Box::new(move || {
                yield_to_everybody();
                for (path, _) in places {
                    listed.by_path(&group, &path, None);
                }
            }),
        )?;
        let (late, waiting) = sync_channel::<(PathBuf, u32, u64)>(MAX_LATE);
        let (refused, group) = (Arc::clone(&work), questions.group());
        thread(
            "late",
            Box::new(move || {
                for (path, device, inode) in waiting {
                    refused.by_path(&group, &path, Some((device, inode)));
                }
            }),
        )?;
        Ok(Self { questions, work, folders_lacking, late })
    }

    /// Completes the path of an event that has only names. A file that was refused because nobody
    /// had hashed it is hashed now, so that the next attempt is judged by the policy.
    pub fn complete(&self, event: &mut GateEvent) {
        let (device, inode) = (event.header.device, event.header.inode);
        if event.header.names == 1
            && let Ok(path) = &event.path
        {
            let within = Path::new(OsStr::from_bytes(path));
            let place = mountpoints::locate(device, within).map(PathBuf::into_os_string);
            if let Some(place) = place {
                event.path = Ok(place.into_vec());
            }
        }
        if event.reason == Reason::NotAppraised
            && let Ok(path) = &event.path
        {
            let path = PathBuf::from(OsStr::from_bytes(path));
            // A full queue loses the file until the next attempt.
            let _ = self.late.try_send((path, device, inode));
        }
    }

    /// Whether all is watched.
    #[must_use]
    pub fn check(&self) -> Check {
        let (id, title) = ("appraisal", "files are hashed before they are used");
        let lacking = [self.questions.unwatched(), self.folders_lacking.clone()].concat();
        if lacking.is_empty() {
            let hashed = self.work.hashed.load(Ordering::Relaxed);
            let marked = lock(&self.work.marked).len();
            return Check::ok(id, title, format!("{hashed} hashed, {marked} known and held"));
        }
        let found = format!("not on {}: what lies there is refused", lacking.join(", "));
        Check::bad(State::Warning, id, title, found, "use files of other filesystems")
    }
}

impl Answerer for Work {
    /// Always yes: the gates decide, by what is on the inode now.
    fn question(&self, group: &Group, question: &Question) -> bool {
        self.appraise(group, &question.file, question.purpose);
        true
    }

    fn written(&self, group: &Group, file: &File) {
        if let Err(error) = group.ask_again(file) {
            tracing::error!("a mark could not be taken back: {error}");
        }
        if let Some(identity) = identity(file) {
            lock(&self.marked).remove(&identity);
        }
    }
}

impl Work {
    /// Appraises what lies at a path now, if it is what is wanted (by the numbers of events).
    fn by_path(&self, group: &Group, path: &Path, wanted: Option<(u32, u64)>) {
        let opened = scripts::open(path);
        // What is not there is not used.
        let Ok(file) = opened else { return };
        let found = identity(&file).map(|(device, inode)| (kernel_device(device), inode));
        if wanted.is_none() || wanted == found {
            self.appraise(group, &file, Purpose::Exec);
        }
    }

    fn appraise(&self, group: &Group, file: &File, purpose: Purpose) {
        let Some(identity) = identity(file) else { return };
        if !self.is_worth_it(file) {
            return;
        }
        self.begin(identity);
        let done = if purpose == Purpose::Open && !begins_like_code(file) {
            // Opened for reading; whoever wants to run it opens it for that.
            Ok(Appraised::Known)
        } else {
            self.identify(file)
        };
        match done {
            Ok(Appraised::Known) => self.hold(group, file, identity, purpose),
            Ok(Appraised::Not) => {}
            Err(error) => tracing::error!("a digest could not be kept: {error}"),
        }
        self.end(identity);
    }

    fn is_worth_it(&self, file: &File) -> bool {
        let Ok(metadata) = file.metadata() else { return false };
        let Ok(magic) = filesystems::magic_of_file(file) else { return false };
        let untrusted = filesystems::UNTRUSTED.iter().any(|one| one.magic == magic)
            && !self.trusted.contains(&magic);
        // Once sealed it stays so; before, a digest would be of a content that may change unseen.
        let unsealed = metadata.dev() == self.memory
            && !fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
        metadata.is_file() && metadata.len() <= MAX_HASHED_BYTES && !untrusted && !unsealed
    }

    /// Puts the digest on the inode.
    fn identify(&self, file: &File) -> Result<Appraised, MapError> {
        if lock(&self.records).is_known(file)? {
            return Ok(Appraised::Known);
        }
        for _ in 0..ATTEMPTS {
            let claim = lock(&self.records).claim(file)?;
            if has_writers(file) {
                break;
            }
            let Ok((digest, _)) = digest::of_file(file, MAX_HASHED_BYTES) else { break };
            self.hashed.fetch_add(1, Ordering::Relaxed);
            if lock(&self.records).fulfil(file, claim, digest)? {
                return Ok(Appraised::Known);
            }
        }
        lock(&self.records).forget(file)?;
        Ok(Appraised::Not)
    }

    /// Has the kernel ask no more, and keep the inode. About a merged file of an overlay it goes on
    /// asking, as a write to a layer's file does not end such a mark.
    fn hold(&self, group: &Group, file: &File, identity: (u64, u64), purpose: Purpose) {
        if records::is_merged(file) {
            return;
        }
        {
            let mut marked = lock(&self.marked);
            if marked.len() >= MAX_MARKED && !marked.contains(&identity) {
                return;
            }
            marked.insert(identity);
        }
        let known = |file| lock(&self.records).is_known(file).unwrap_or(false);
        let done = group.ask_no_more(file, purpose).and_then(|()| {
            // Somebody may have opened it for writing before the mark was there.
            if purpose == Purpose::Exec && !known(file) { group.ask_again(file) } else { Ok(()) }
        });
        if let Err(error) = done {
            lock(&self.marked).remove(&identity);
            tracing::error!("a file could not be marked: {error}");
        }
    }

    /// Waits until no other thread works on the file.
    fn begin(&self, identity: (u64, u64)) {
        let mut busy = lock(&self.busy);
        while !busy.insert(identity) {
            busy = self.free.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self, identity: (u64, u64)) {
        lock(&self.busy).remove(&identity);
        self.free.notify_all();
    }
}

/// The file's identity while it is open.
fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether somebody has the file open for writing, or mapped so. The kernel gives a lease for
/// reading only if nobody has (`check_conflicting_open` in fs/locks.c); it is given back at once,
/// so that a writer who comes now waits for nothing.
pub(super) fn has_writers(file: &File) -> bool {
    // SAFETY: changes nothing but a lease of ours.
    let lease =
        |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } == 0;
    let given = lease(libc::F_RDLCK);
    if given {
        lease(libc::F_UNLCK);
    }
    !given
}

/// Whether the file could be mapped as code by a dynamic loader.
fn begins_like_code(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"\x7fELF"
}
