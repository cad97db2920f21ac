//! Looking at one file, and keeping what came of it.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use portcullis_common::{Digest, Kinds};
use tokio::sync::mpsc;

use crate::{
    artifact::{self, MAX_HASHED_BYTES, digest},
    catalog::SignedBy,
    control::{SignatureAnswer, SignatureRefused},
    event::SignatureRejected,
    kernel::{
        fanotify::{Group, Purpose},
        filesystems,
        records::Records,
        vouched::{Vouch, Vouched},
    },
    policy::{
        Policy,
        signature::{self, Looked, Unpack},
        trust::PolicyTrust,
    },
    run::{appraiser::has_writers, catalogs::now, questions::path_of, scripts, warden::is_settled},
    sync::lock,
    trust::Signer,
};

/// Files about which nothing more is asked: each keeps an inode in memory, of about a kilobyte.
/// Beyond it the kernel asks every time, which is slower and decides the same.
const MAX_MARKED: usize = 16_384;

/// Files whose signatures do not count, so that they are not hashed again and again.
const MAX_SEEN: usize = 8192;

/// How often a file is looked at anew because the policy was switched meanwhile.
const ATTEMPTS: u32 = 3;

/// A file in one state. Whoever changes content or signature changes `ctime`, which cannot be set
/// back.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp_of(state: &Metadata) -> Stamp {
    (state.dev(), state.ino(), state.len(), state.ctime(), state.ctime_nsec())
}

/// What files are judged by: of a policy, without its digests.
pub struct Judging {
    trust: PolicyTrust,
    /// Under which of the policy's sources a signer's files count.
    sources: HashMap<String, u16>,
}

impl Judging {
    pub fn by(policy: &Policy) -> Self {
        let names = policy.trust.trust.signers.iter().map(|signer| signer.name.clone());
        let sources = names.filter_map(|name| Some((policy.source_of_signer(&name)?, name)));
        Self {
            trust: policy.trust.clone(),
            sources: sources.map(|(source, name)| (name, source)).collect(),
        }
    }

    pub fn look_at(
        &self,
        file: &File,
        known: Option<Digest>,
        unpack: Unpack,
    ) -> io::Result<Looked> {
        signature::look_at(file, &self.trust, known, unpack, now())
    }
}

/// What came of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its signature counts, or the policy lists it: another look would change nothing.
    Settled,
    /// It may be signed later.
    Open,
}

/// What the threads share.
pub struct Work {
    vouched: Vouched,
    records: Mutex<Records>,
    judging: RwLock<Arc<Judging>>,
    /// Filesystems that are served by somebody else and that the policy trusts.
    trusted: Vec<u64>,
    /// Files whose signatures do not count, or are not there to count.
    seen: Mutex<HashSet<Stamp>>,
    marked: Mutex<HashSet<(u64, u64)>>,
    /// What was told already.
    told: Mutex<HashSet<(u64, u64, &'static str)>>,
    tell: mpsc::Sender<SignatureRejected>,
    rejected: AtomicU64,
}

impl Work {
    pub fn new(
        vouched: Vouched,
        records: Records,
        policy: &Policy,
        tell: mpsc::Sender<SignatureRejected>,
    ) -> Self {
        Self {
            vouched,
            records: Mutex::new(records),
            judging: RwLock::new(Arc::new(Judging::by(policy))),
            trusted: policy.trusted_filesystems.clone(),
            seen: Mutex::default(),
            marked: Mutex::default(),
            told: Mutex::default(),
            tell,
            rejected: AtomicU64::new(0),
        }
    }

    /// Whether the policy's signers have the same keys.
    pub fn judges_by(&self, policy: &Policy) -> bool {
        let keys = |trust: &PolicyTrust| -> Vec<(String, Option<[u8; 32]>)> {
            let signers = trust.trust.signers.iter();
            let key = |signer: &Signer| signer.anchor.key().map(|key| *key.id());
            signers.map(|signer| (signer.name.clone(), key(signer))).collect()
        };
        keys(&self.judging().trust) == keys(&policy.trust)
    }

    /// In words for a status page.
    pub fn found(&self) -> String {
        let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
        format!(
            "{} files vouched for, {} signatures rejected",
            self.vouched.count(),
            count(&self.rejected)
        )
    }

    pub fn judge_by(&self, policy: &Policy) {
        let next = Arc::new(Judging::by(policy));
        *self.judging.write().unwrap_or_else(PoisonError::into_inner) = next;
        lock(&self.seen).clear();
        lock(&self.told).clear();
    }

    fn judging(&self) -> Arc<Judging> {
        Arc::clone(&self.judging.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at a file that somebody waits for.
    pub fn answer(&self, group: &Group, file: &File, purpose: Purpose) {
        let Some(before) = self.worth_it(file) else { return };
        let unpack = match purpose {
            Purpose::Exec => Unpack::Nothing,
            Purpose::Open => Unpack::Modules,
        };
        let settled = self.look_once(file, before, unpack) == Outcome::Settled;
        // Opened for reading; whoever uses it all the same is refused once if it is signed later.
        let is_data = || purpose == Purpose::Open && matches!(artifact::identify(file), Ok(None));
        if settled || is_data() {
            self.hold(group, file, before, purpose);
        }
    }

    /// Looks at a file that nobody waits for.
    pub fn look(&self, file: &File, unpack: Unpack) {
        if let Some(before) = self.worth_it(file) {
            self.look_once(file, before, unpack);
        }
    }

    /// Looks at what lies at a path now.
    pub fn by_path(&self, path: &Path) {
        // What is not there is not used.
        if let Ok(file) = scripts::open(path) {
            self.look(&file, Unpack::Modules);
        }
    }

    /// What the file's signatures are worth. What counts is allowed from now on.
    pub fn explain(&self, file: &File) -> io::Result<SignatureAnswer> {
        if self.worth_it(file).is_none() {
            return Ok(SignatureAnswer::default());
        }
        let judging = self.judging();
        let looked = judging.look_at(file, None, Unpack::Modules)?;
        let answer = SignatureAnswer::from(&looked);
        self.vouch(&judging, &looked);
        Ok(answer)
    }

    /// The file's state, if a gate could allow it.
    fn worth_it(&self, file: &File) -> Option<Stamp> {
        let state = file.metadata().ok().filter(Metadata::is_file)?;
        let magic = filesystems::magic_of_file(file).ok()?;
        let untrusted = filesystems::UNTRUSTED.iter().any(|one| one.magic == magic)
            && !self.trusted.contains(&magic);
        (state.len() <= MAX_HASHED_BYTES && !untrusted).then(|| stamp_of(&state))
    }

    fn look_once(&self, file: &File, before: Stamp, unpack: Unpack) -> Outcome {
        if lock(&self.seen).contains(&before) {
            return Outcome::Open;
        }
        let known = self.known(file);
        for _ in 0..ATTEMPTS {
            let judging = self.judging();
            let looked = match judging.look_at(file, known, unpack) {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::debug!("a file cannot be looked at: {error}");
                    return Outcome::Open;
                }
            };
            if !looked.is_signed() {
                let listed = known.is_some_and(|digest| self.is_listed(&digest));
                return if listed { Outcome::Settled } else { Outcome::Open };
            }
            if !Arc::ptr_eq(&judging, &self.judging()) {
                continue;
            }
            self.reject(file, before, &looked);
            if self.vouch(&judging, &looked) {
                return Outcome::Settled;
            }
            self.remember(file, before);
            return Outcome::Open;
        }
        Outcome::Open
    }

    /// The digest that a gate, or the agent in its place, has found before. It is there as long as
    /// nobody has opened the file for writing.
    fn known(&self, file: &File) -> Option<Digest> {
        let records = lock(&self.records);
        let known = records.is_known(file).unwrap_or(false) && !has_writers(file);
        known.then(|| records.get(file).ok().flatten())?.map(|verdict| verdict.digest)
    }

    /// Whether the policy lists a digest as something that is run.
    fn is_listed(&self, digest: &Digest) -> bool {
        let rule = self.vouched.rule(digest).ok().flatten();
        rule.is_some_and(|rule| rule.denied == 0 && !rule.kinds.without(Kinds::MARKS).is_empty())
    }

    /// Allows what the signatures say, and returns whether anything is allowed by them.
    fn vouch(&self, judging: &Judging, looked: &Looked) -> bool {
        let Some(digest) = looked.digest else { return false };
        // One rule for each digest: the first signer is told of, the kinds are those of all.
        let kinds = looked.vouched.iter().fold(Kinds::NONE, |all, (kinds, _)| all.union(*kinds));
        let Some((_, by)) = looked.vouched.first() else { return false };
        let Some(source) = judging.sources.get(&by.signer) else { return false };
        let vouch = Vouch { kinds, source: *source, by: Arc::new(by.clone()) };
        self.vouched.allow(digest, vouch).unwrap_or_else(|error| {
            tracing::error!("a signed file could not be allowed: {error}");
            false
        })
    }

    /// Tells of signatures that do not count, each once.
    fn reject(&self, file: &File, (device, inode, ..): Stamp, looked: &Looked) {
        for (reason, message) in &looked.rejected {
            let mut told = lock(&self.told);
            if told.len() >= MAX_SEEN {
                told.clear();
            }
            if !told.insert((device, inode, reason)) {
                continue;
            }
            drop(told);
            self.rejected.fetch_add(1, Ordering::Relaxed);
            let path = path_of(file).unwrap_or_default();
            let rejected = SignatureRejected {
                path_hex: std::str::from_utf8(&path).is_err().then(|| hex::encode(&path)),
                path: String::from_utf8_lossy(&path).into_owned(),
                digest: looked.digest.as_ref().map(digest::format),
                reason,
                message: message.clone(),
            };
            // A full queue loses the record, and changes nothing about the file.
            let _ = self.tell.try_send(rejected);
        }
    }

    fn remember(&self, file: &File, before: Stamp) {
        let Ok(after) = file.metadata() else { return };
        if stamp_of(&after) != before || !is_settled(&after) {
            return;
        }
        let mut seen = lock(&self.seen);
        if seen.len() >= MAX_SEEN {
            seen.clear();
        }
        seen.insert(before);
    }

    /// Has the kernel ask no more.
    fn hold(&self, group: &Group, file: &File, before: Stamp, purpose: Purpose) {
        let identity = (before.0, before.1);
        {
            let mut marked = lock(&self.marked);
            if marked.len() >= MAX_MARKED && !marked.contains(&identity) {
                return;
            }
            marked.insert(identity);
        }
        let done = group.ask_no_more(file, purpose).and_then(|()| {
            // Somebody may have written to it, or signed it, before the mark was there.
            let after = file.metadata()?;
            let unchanged = stamp_of(&after) == before && !has_writers(file);
            if unchanged { Ok(()) } else { group.ask_again(file) }
        });
        if let Err(error) = done {
            lock(&self.marked).remove(&identity);
            tracing::error!("a file could not be marked: {error}");
        }
    }

    pub fn ask_again(&self, group: &Group, file: &File) {
        if let Err(error) = group.ask_again(file) {
            tracing::error!("a mark could not be taken back: {error}");
        }
        if let Ok(state) = file.metadata() {
            lock(&self.marked).remove(&(state.dev(), state.ino()));
        }
    }
}

impl From<&Looked> for SignatureAnswer {
    fn from(looked: &Looked) -> Self {
        let words = |kinds: Kinds| kinds.words().map(str::to_owned).collect();
        let kinds = looked.vouched.iter().fold(Kinds::NONE, |all, (kinds, _)| all.union(*kinds));
        let signed: Vec<SignedBy> = looked.vouched.iter().map(|(_, by)| by.clone()).collect();
        let refused = looked.rejected.iter().map(|(reason, message)| SignatureRefused {
            reason: (*reason).to_owned(),
            message: message.clone(),
        });
        Self { kinds: words(kinds), signed, refused: refused.collect() }
    }
}
