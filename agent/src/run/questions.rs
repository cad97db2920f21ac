//! Answers the kernel's questions before files are opened, in threads of their own.
//!
//! Whoever opens a file waits meanwhile, so every question is answered whatever happens: the thread
//! that takes them opens nothing itself, so that it never waits for its own answer, and if one of
//! the threads fails the process ends, which lets everybody pass who waits.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};

use crate::{
    kernel::{
        fanotify::{Event, Group, Question},
        filesystems, mountpoints, mounts, selftest,
    },
    sync::lock,
};

/// Who decides what is answered.
pub trait Answerer: Send + Sync + 'static {
    /// Whether the open may go on.
    fn question(&self, group: &Group, question: &Question) -> bool;
    /// A file that was marked with [`Group::ask_no_more`] was open for writing.
    fn written(&self, group: &Group, file: &File);
}

/// Kinds of filesystem that hold no file which could be run; the kernel refuses to watch some.
const WITHOUT_PROGRAMS: [&str; 16] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "efivarfs",
    "fusectl",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "securityfs",
    "sysfs",
];

/// Which filesystems the questions are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those whose content only this kernel changes.
    Local,
    /// The same without files in memory.
    Mounted,
    /// Those that are served by somebody, who could keep whoever opens a file there waiting: also
    /// the kernel, when it hands us the question.
    Served,
}

/// Threads that answer. A large file that is hashed by one does not hold up the others.
const THREADS: usize = 4;

/// Room on a thread's stack: a hash and its buffer are on the heap.
const STACK: usize = 256 * 1024;

/// How long to wait after the kernel could not hand over a question, for example because the
/// process has too many descriptors.
const PAUSE: Duration = Duration::from_millis(10);

/// The threads, and what they could not watch.
pub struct Questions {
    group: Arc<Group>,
    unwatched: Arc<Mutex<BTreeSet<String>>>,
}

impl Questions {
    /// Starts to answer questions about every exec, on every filesystem of the scope that is
    /// mounted now or later. Those that are `trusted` count as local.
    ///
    /// # Errors
    /// If the kernel asks no questions, or a thread cannot be started.
    pub fn start(
        group: Group,
        scope: Scope,
        trusted: Vec<u64>,
        answerer: Arc<dyn Answerer>,
    ) -> io::Result<Self> {
        let group = Arc::new(group);
        let unwatched = Arc::<Mutex<BTreeSet<String>>>::default();
        let (sender, receiver) = channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..THREADS {
            let (receiver, group) = (Arc::clone(&receiver), Arc::clone(&group));
            let answerer = Arc::clone(&answerer);
            start("answers", move || answer(&receiver, &group, &*answerer))?;
        }
        let taken = Arc::clone(&group);
        start("questions", move || take(&taken, &sender))?;

        let mut watch = Watch {
            group: Arc::clone(&group),
            unwatched: Arc::clone(&unwatched),
            scope,
            trusted,
            watched: BTreeSet::new(),
        };
        // memfds live on a filesystem that is mounted nowhere; newer kernels do not let it be
        // watched.
        if scope == Scope::Local
            && let Err(error) = selftest::memory_file()
                .map_err(io::Error::from)
                .and_then(|file| watch.group.watch_filesystem_of(&file))
        {
            watch.lacks(format!("memory files ({error})"));
        }
        let list = mounts::changes()?;
        if scope != Scope::Served {
            watch.everything();
        }
        start("mounts", move || watch.follow(&list))?;
        Ok(Self { group, unwatched })
    }

    /// The group, to mark more.
    #[must_use]
    pub fn group(&self) -> Arc<Group> {
        Arc::clone(&self.group)
    }

    /// The filesystems that cannot be watched, with why.
    #[must_use]
    pub fn unwatched(&self) -> Vec<String> {
        lock(&self.unwatched).iter().cloned().collect()
    }
}

/// Starts a thread without which nobody would be answered. Should it panic, the release build
/// aborts, and the kernel lets everybody pass who waits.
fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(STACK).spawn(run).map(drop)
}

/// Takes what the kernel has and hands it on, without ever waiting for anything else.
fn take(group: &Group, sender: &Sender<Event>) {
    let own = std::process::id();
    loop {
        let mut ready = [PollFd::new(group, PollFlags::IN)];
        // An interrupted wait is none.
        let _ = poll(&mut ready, None);
        let events = group.read().unwrap_or_else(|error| {
            tracing::error!("the kernel could not hand over a question: {error}");
            thread::sleep(PAUSE);
            Vec::new()
        });
        for event in events {
            match event {
                // The agent itself: it opens files to look at them, and starts none.
                Event::Question(question) if question.pid == own => reply(group, &question, true),
                // The answering threads live as long as the process.
                event => drop(sender.send(event)),
            }
        }
    }
}

fn answer(receiver: &Mutex<Receiver<Event>>, group: &Group, answerer: &dyn Answerer) {
    loop {
        let next = lock(receiver).recv();
        match next {
            Ok(Event::Question(question)) => {
                let allow = answerer.question(group, &question);
                reply(group, &question, allow);
            }
            Ok(Event::Written(file)) => answerer.written(group, &file),
            Err(_) => return,
        }
    }
}

fn reply(group: &Group, question: &Question, allow: bool) {
    if let Err(error) = group.answer(question, allow) {
        tracing::error!("a question could not be answered: {error}");
    }
}

/// Watches filesystems, also those to come.
struct Watch {
    group: Arc<Group>,
    unwatched: Arc<Mutex<BTreeSet<String>>>,
    scope: Scope,
    /// Filesystems that are served by somebody else and that the policy trusts.
    trusted: Vec<u64>,
    watched: BTreeSet<u64>,
}

impl Watch {
    fn follow(&mut self, list: &File) {
        loop {
            self.everything();
            let mut changed = [PollFd::new(list, PollFlags::PRI)];
            let _ = poll(&mut changed, None);
        }
    }

    fn everything(&mut self) {
        let mounts = mountpoints::all().unwrap_or_else(|error| {
            self.lacks(format!("all that is mounted ({error})"));
            Vec::new()
        });
        let mounted: BTreeSet<_> = mounts.iter().map(|mount| mount.device).collect();
        // The number of what was unmounted may come back for something else.
        self.watched.retain(|device| mounted.contains(device));
        for mount in mounts {
            if self.is_served(&mount.kind) != (self.scope == Scope::Served)
                || WITHOUT_PROGRAMS.contains(&mount.kind.as_str())
                || self.watched.contains(&mount.device)
            {
                continue;
            }
            match self.group.watch_filesystem(&mount.place) {
                Ok(()) => {
                    self.watched.insert(mount.device);
                }
                // Something else is mounted over it, or it has gone.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.lacks(format!("{} ({error})", mount.place.display())),
            }
        }
    }

    /// Whether whoever serves the filesystem could make us wait.
    fn is_served(&self, kind: &str) -> bool {
        // «fuse.sshfs» is a kind of fuse.
        let kind = kind.split('.').next().unwrap_or(kind);
        let kind = match kind {
            "fuseblk" => "fuse",
            "nfs4" => "nfs",
            kind => kind,
        };
        filesystems::UNTRUSTED
            .iter()
            .any(|one| one.name == kind && !self.trusted.contains(&one.magic))
    }

    fn lacks(&self, what: String) {
        lock(&self.unwatched).insert(what);
    }
}

/// Where the file lies, as its path was when it was opened.
#[must_use]
pub fn path_of(file: &File) -> Option<Vec<u8>> {
    use std::os::{fd::AsRawFd, unix::ffi::OsStringExt};
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::read_link(link).ok().map(|path| path.into_os_string().into_vec())
}
