//! Decides about exec where the kernel has no gates: answers fanotify's question with the policy's
//! verdict. Degraded, and said to be so everywhere: docs/limits.md has what it does not stop.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use portcullis_common::{
    Active, Ancestor, COMM_LEN, Counter, Digest, EventHeader, Gate, Kinds, Mode, Outcome, Reason,
    Rule,
};
use rustix::{
    fs::{SealFlags, fcntl_get_seals},
    time::{ClockId, clock_gettime},
};
use tokio::sync::mpsc;

use crate::{
    artifact::{MAX_HASHED_BYTES, digest},
    event::decode::GateEvent,
    kernel::{
        check::{Check, State},
        fanotify::{Group, Question},
        filesystems,
        selftest::{self, kernel_device},
    },
    policy::Policy,
    run::{
        appraiser::has_writers,
        questions::{Answerer, Questions, Scope, path_of},
    },
    sync::lock,
};

/// Events that wait for the agent's loop.
const QUEUE: usize = 2048;

/// Digests that are remembered.
const MAX_KNOWN: usize = 8192;

/// A change within the clock's last tick does not show in the time of change. What was changed
/// longer ago than this was changed in an earlier tick.
const SETTLED: Duration = Duration::from_secs(2);

/// A file in one state. Whoever changes the content changes `ctime`, which cannot be set back.
type Stamp = (u64, u64, u64, i64, i64);

/// The policy in force, and what was decided by it.
pub struct Warden {
    active: AtomicU64,
    rules: RwLock<Vec<(Digest, Rule)>>,
    trusted: Vec<u64>,
    /// Device number of memfds, of which the kernel does not count the writers.
    memory: u64,
    known: Mutex<HashMap<Stamp, Digest>>,
    counters: Vec<AtomicU64>,
    /// Questions so far.
    asked: AtomicU64,
    events: mpsc::Sender<GateEvent>,
}

/// The warden with the threads that ask it.
pub struct Watch {
    /// Local filesystems.
    local: Questions,
    /// Those that are served by somebody, who could keep us waiting.
    served: Questions,
}

impl Watch {
    /// Whether all is watched.
    #[must_use]
    pub fn check(&self) -> Check {
        let (id, title) = ("watched", "every filesystem is watched");
        let lacking = [self.local.unwatched(), self.served.unwatched()].concat();
        if lacking.is_empty() {
            return Check::ok(id, title, "those of this mount namespace");
        }
        let found = format!("not {}: what lies there runs", lacking.join(", "));
        Check::bad(
            State::Warning,
            id,
            title,
            found,
            "mount them with noexec; for memory files: sysctl vm.memfd_noexec=2 (from Linux 6.3)",
        )
    }
}

impl Warden {
    /// Starts to answer, in audit mode.
    ///
    /// # Errors
    /// If the kernel asks no questions.
    pub fn start(policy: &Policy) -> io::Result<(Arc<Self>, Watch, mpsc::Receiver<GateEvent>)> {
        let (events, receiver) = mpsc::channel(QUEUE);
        let count = Gate::ALL.len() * Counter::ALL.len();
        let warden = Arc::new(Self {
            active: AtomicU64::new(Active::new(1, Mode::Audit, policy.choices).0),
            rules: RwLock::new(policy.rules.clone()),
            trusted: policy.trusted_filesystems.clone(),
            memory: File::from(selftest::memory_file()?).metadata()?.dev(),
            known: Mutex::default(),
            counters: (0..count).map(|_| AtomicU64::new(0)).collect(),
            asked: AtomicU64::new(0),
            events,
        });
        let start = |scope| {
            let answerer: Arc<dyn Answerer> = Arc::clone(&warden) as _;
            Questions::start(Group::new()?, scope, Vec::new(), answerer)
        };
        let watch = Watch { local: start(Scope::Local)?, served: start(Scope::Served)? };
        Ok((warden, watch, receiver))
    }

    /// Starts our own binary, to see that the question comes.
    #[must_use]
    pub fn prove(&self) -> Check {
        let (id, title) = ("exec-gate", "exec is judged");
        let asked = || self.asked.load(Ordering::Relaxed);
        let before = asked();
        match selftest::start_own_binary() {
            Err(error) => Check::failed(
                id,
                title,
                format!("the self-test could not be made: {error}"),
                "report it with the kernel's version and configuration",
            ),
            Ok(()) if asked() == before => Check::failed(
                id,
                title,
                "the kernel starts programs without asking",
                "report it with the kernel's version and configuration",
            ),
            Ok(()) => Check::ok(id, title, "the kernel asks"),
        }
    }

    /// What is in force.
    #[must_use]
    pub fn active(&self) -> Active {
        Active(self.active.load(Ordering::Acquire))
    }

    /// Changes the mode.
    pub fn set_mode(&self, mode: Mode) {
        self.active.store(self.active().in_mode(mode).0, Ordering::Release);
    }

    /// The rule for a digest.
    #[must_use]
    pub fn rule(&self, digest: &Digest) -> Option<Rule> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let index = rules.binary_search_by(|(listed, _)| listed.cmp(digest)).ok()?;
        Some(rules[index].1)
    }

    /// Puts a policy in force. An exec that is being decided is judged by the one or the other.
    pub fn switch(&self, policy: &Policy) -> Active {
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        rules.clone_from(&policy.rules);
        let active = self.active();
        let active = Active::new(active.generation() + 1, active.mode(), policy.choices);
        self.active.store(active.0, Ordering::Release);
        active
    }

    /// One of a gate's numbers.
    #[must_use]
    pub fn counter(&self, gate: Gate, counter: Counter) -> u64 {
        self.number(gate, counter).load(Ordering::Relaxed)
    }

    fn number(&self, gate: Gate, counter: Counter) -> &AtomicU64 {
        &self.counters[gate as usize * Counter::ALL.len() + counter as usize]
    }

    fn count(&self, counter: Counter, amount: u64) {
        self.number(Gate::Exec, counter).fetch_add(amount, Ordering::Relaxed);
    }

    /// The file's digest, and whether it was known, or why it cannot be made.
    fn identify(&self, file: &File) -> Result<(Digest, bool), Reason> {
        let before = file.metadata().map_err(|_| Reason::HashFailed)?;
        if !before.is_file() {
            return Err(Reason::NotAFile);
        }
        let magic = filesystems::magic_of_file(file).map_err(|_| Reason::HashFailed)?;
        if filesystems::UNTRUSTED.iter().any(|one| one.magic == magic)
            && !self.trusted.contains(&magic)
        {
            return Err(Reason::Filesystem);
        }
        if before.len() > MAX_HASHED_BYTES {
            return Err(Reason::TooLarge);
        }
        let is_sealed =
            || fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::WRITE));
        if before.dev() == self.memory && !is_sealed() {
            return Err(Reason::Unsealed);
        }
        if has_writers(file) {
            return Err(Reason::BeingWritten);
        }
        let stamp = |state: &fs::Metadata| {
            (state.dev(), state.ino(), state.len(), state.ctime(), state.ctime_nsec())
        };
        let state = stamp(&before);
        if let Some(digest) = lock(&self.known).get(&state) {
            return Ok((*digest, true));
        }
        let (digest, bytes) =
            digest::of_file(file, MAX_HASHED_BYTES).map_err(|_| Reason::HashFailed)?;
        self.count(Counter::Hashed, 1);
        self.count(Counter::HashedBytes, bytes);
        let after = file.metadata().map_err(|_| Reason::HashFailed)?;
        if has_writers(file) || stamp(&after) != state {
            return Err(Reason::Unstable);
        }
        if is_settled(&after) {
            let mut known = lock(&self.known);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
            known.insert(state, digest);
        }
        Ok((digest, false))
    }
}

impl Answerer for Warden {
    fn question(&self, _group: &Group, question: &Question) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        // The kernel asks for the ELF interpreter in the same way, and that is listed as a library.
        let wanted = Kinds::EXECUTABLE.union(Kinds::SCRIPT).union(Kinds::LIBRARY);
        let identified = self.identify(&question.file);
        let active = self.active();
        let rule = identified.ok().and_then(|(digest, _)| self.rule(&digest));
        let reason = match (identified, rule) {
            (Err(reason), _) => reason,
            (Ok(_), None) => Reason::Unlisted,
            (Ok(_), Some(rule)) if rule.denied == 1 => Reason::Denied,
            (Ok(_), Some(rule)) if rule.kinds.intersects(wanted) => Reason::Listed,
            (Ok(_), Some(_)) => Reason::WrongKind,
        };
        let (outcome, counter) = match (reason == Reason::Listed, active.enforces()) {
            (true, _) => (Outcome::Allow, Counter::Allowed),
            (false, false) => (Outcome::WouldDeny, Counter::WouldDeny),
            (false, true) => (Outcome::Deny, Counter::Denied),
        };
        let was_known = identified.is_ok_and(|(_, known)| known);
        if outcome == Outcome::Allow && was_known {
            return true;
        }
        self.count(counter, 1);
        if reason.cannot_decide() {
            self.count(Counter::CannotDecide, 1);
        }
        let mut header = header_of(question);
        (header.outcome, header.reason) = (outcome as u8, reason as u8);
        (header.wanted, header.rule) = (wanted, rule.unwrap_or_default());
        header.digest = identified.map(|(digest, _)| digest).unwrap_or_default();
        (header.generation, header.enforces) = (active.generation(), active.enforces().into());
        header.cached = was_known.into();
        let path = path_of(&question.file).ok_or(libc::ENOENT);
        let event = GateEvent { header, gate: Gate::Exec, outcome, reason, path, bpf: None };
        // The verdict waits for nobody.
        if self.events.try_send(event).is_err() {
            self.count(Counter::Lost, 1);
        }
        outcome != Outcome::Deny
    }

    fn written(&self, _group: &Group, _file: &File) {}
}

pub(super) fn is_settled(state: &fs::Metadata) -> bool {
    let changed = u64::try_from(state.ctime()).unwrap_or(u64::MAX);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(changed).saturating_add(SETTLED) < now
}

/// What is to be told of who waits and for what. The process waits, so that `/proc` tells of it as
/// it is.
fn header_of(question: &Question) -> EventHeader {
    let boot = clock_gettime(ClockId::Boottime);
    let boot =
        Duration::new(boot.tv_sec.unsigned_abs(), u32::try_from(boot.tv_nsec).unwrap_or_default());
    let state = question.file.metadata().ok();
    let magic = filesystems::magic_of_file(&question.file).unwrap_or_default();
    let process = Process::of(question.pid);
    let mut parent = process.parent;
    let ancestors = [(); portcullis_common::ANCESTORS].map(|()| {
        let ancestor = Process::of(parent);
        let told = Ancestor { pid: parent, comm: ancestor.comm };
        parent = ancestor.parent;
        told
    });
    EventHeader {
        boot_ns: u64::try_from(boot.as_nanos()).unwrap_or_default(),
        generation: 0,
        cgroup: cgroup(question.pid),
        inode: state.as_ref().map_or(0, MetadataExt::ino),
        size: state.as_ref().map_or(0, fs::Metadata::len),
        digest: Digest::default(),
        rule: Rule::default(),
        device: state.as_ref().map_or(0, |state| kernel_device(state.dev())),
        filesystem: u32::try_from(magic).unwrap_or_default(),
        pid: question.pid,
        tid: question.pid,
        uid: process.uid,
        gid: process.gid,
        hash_status: 0,
        path_status: 0,
        gate: Gate::Exec as u8,
        outcome: 0,
        reason: 0,
        wanted: Kinds::NONE,
        cached: 0,
        enforces: 0,
        names: 0,
        bpf: 0,
        comm: process.comm,
        ancestors,
    }
}

/// What `/proc` says of a process; zeros if it says nothing.
#[derive(Default)]
struct Process {
    parent: u32,
    uid: u32,
    gid: u32,
    comm: [u8; COMM_LEN],
}

impl Process {
    fn of(pid: u32) -> Self {
        let mut process = Self::default();
        if pid == 0 {
            return process;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        (process.parent, process.uid, process.gid) =
            (number("PPid:"), number("Uid:"), number("Gid:"));
        let comm = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        let comm = comm.trim_ascii_end();
        let length = comm.len().min(COMM_LEN - 1);
        process.comm[..length].copy_from_slice(&comm[..length]);
        process
    }
}

/// Id of the process's control group in the unified hierarchy; 0 if there is none.
fn cgroup(pid: u32) -> u64 {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    fs::metadata(format!("/sys/fs/cgroup{path}")).map_or(0, |state| state.ino())
}
