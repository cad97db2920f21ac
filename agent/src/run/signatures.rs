//! Looks at the signatures that files carry themselves, before the files are used.
//!
//! * A program, and what its `#!` line or ELF header names, is looked at when it is opened for exec;
//!   the kernel waits for that. What a trusted signature says of the content's digest joins the
//!   rules in force, and the gate that comes afterwards judges by the digest, as always.
//! * Libraries and modules raise no such question. In folders that the policy names, and in those of
//!   the running kernel's modules, the opening of every file does. Elsewhere a file is looked at
//!   after it was refused, so that the next attempt is judged by its signature.
//! * Nothing waits twice: about a file that needs no (other) look nothing more is asked until it is
//!   written.

mod folders;
mod look;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread,
};

use portcullis_common::{Gate, Kinds, Outcome, Reason};
use tokio::sync::mpsc;

use self::{
    folders::{Folders, Tops},
    look::{Judging, Work},
};
use crate::{
    control::SignatureAnswer,
    event::{SignatureRejected, decode::GateEvent},
    kernel::{
        check::{Check, State},
        fanotify::{Group, Question},
        records::Records,
        vouched::Vouched,
    },
    policy::{Policy, signature::Unpack},
    run::{
        preflight::{self, InUse},
        questions::{Answerer, Questions, Scope},
        reappraise::yield_to_everybody,
        scripts::{Place, open},
    },
};

/// Files that wait to be looked at after they were refused.
const MAX_LATE: usize = 256;
/// Rejected signatures that wait to be told of.
const MAX_TOLD: usize = 256;

/// Room on a thread's stack: folders are followed some way down, and unpacking needs some.
const STACK: usize = 512 * 1024;

/// The threads that look.
pub struct Signatures {
    questions: Questions,
    work: Arc<Work>,
    folders: Arc<Folders>,
    late: SyncSender<(Place, Unpack)>,
}

/// A handle for other threads.
#[derive(Clone)]
pub struct Looking(Arc<Work>);

impl Signatures {
    /// Starts to look, if the policy has signers of files or modules.
    ///
    /// # Errors
    /// If the kernel asks no questions.
    pub fn start(
        vouched: Vouched,
        records: Records,
        policy: &Policy,
        tell: mpsc::Sender<SignatureRejected>,
    ) -> io::Result<Option<Self>> {
        if policy.room() == 0 {
            return Ok(None);
        }
        let work = Arc::new(Work::new(vouched, records, policy, tell));
        let answerer: Arc<dyn Answerer> = Arc::clone(&work) as _;
        let trusted = policy.trusted_filesystems.clone();
        let questions = Questions::start(Group::new()?, Scope::Mounted, trusted, answerer)?;
        let folders = Arc::<Folders>::default();
        let signatures =
            Self { late: late(&work, &questions, &folders)?, questions, work, folders };
        signatures.watch(policy)?;
        Ok(Some(signatures))
    }

    /// Has the kernel ask about the policy's folders, and looks at what lies there beforehand.
    fn watch(&self, policy: &Policy) -> io::Result<()> {
        if !self.folders.change(Some(Tops::of(policy))) {
            return Ok(());
        }
        self.folders.watch(&self.questions.group());
        let (work, folders) = (Arc::clone(&self.work), Arc::clone(&self.folders));
        start("signed", move || {
            yield_to_everybody();
            // What runs was loaded before, and may be loaded again.
            preflight::places_in_use().iter().for_each(|path| work.by_path(path));
            folders.files(|path| work.by_path(path));
        })
    }

    /// A file that was refused is looked at, so that the next attempt is judged by its signature.
    pub fn take(&self, event: &GateEvent) {
        let refused = matches!(event.outcome, Outcome::Deny | Outcome::WouldDeny);
        let may_help =
            matches!(event.reason, Reason::Unlisted | Reason::WrongKind | Reason::NotAppraised);
        if refused
            && may_help
            && let Some(place) = Place::of(event)
        {
            // A full queue loses the file until the next attempt.
            let unpack = match event.gate {
                Gate::Kernel => Unpack::Modules,
                _ => Unpack::Nothing,
            };
            let _ = self.late.try_send((place, unpack));
        }
    }

    /// Judges by another policy from now on, which is about to be put in force. A file about which
    /// nothing is asked any more, and which that policy refuses, is looked at after its refusal.
    pub fn judge_by(&self, policy: &Policy) {
        self.work.judge_by(policy);
        if let Err(error) = self.watch(policy) {
            tracing::error!("signed files in folders are not looked at beforehand: {error}");
        }
    }

    /// Whether the policy's signers have the keys by which files are judged now.
    #[must_use]
    pub fn judges_by(&self, policy: &Policy) -> bool {
        self.work.judges_by(policy)
    }

    /// A handle for other threads.
    #[must_use]
    pub fn looking(&self) -> Looking {
        Looking(Arc::clone(&self.work))
    }

    /// Whether all is watched.
    #[must_use]
    pub fn check(&self) -> Check {
        let (id, title) = ("signatures", "files' own signatures are looked at");
        let lacking = [self.questions.unwatched(), self.folders.unwatched()].concat();
        if lacking.is_empty() {
            return Check::ok(id, title, self.work.found());
        }
        let found = format!("not on {}: a first attempt there is refused", lacking.join(", "));
        Check::bad(State::Warning, id, title, found, "list these files, or use other folders")
    }
}

impl Looking {
    /// Looks at everything that is used, so that the rules in force are complete for it.
    pub fn at_what_runs(&self, in_use: &[InUse]) {
        in_use.iter().for_each(|one| self.0.by_path(&one.path));
    }

    /// What the signatures of a file are worth.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn explain(&self, path: &Path) -> io::Result<SignatureAnswer> {
        self.0.explain(&open(path)?)
    }
}

/// Takes those out that carry a signature that the policy trusts.
#[must_use]
pub fn without_signed(refused: Vec<InUse>, policy: &Policy) -> Vec<InUse> {
    if policy.room() == 0 {
        return refused;
    }
    let judging = Judging::by(policy);
    let is_signed = |one: &InUse| {
        let Ok(file) = open(&one.path) else { return false };
        let looked = judging.look_at(&file, None, Unpack::Nothing);
        looked.is_ok_and(|looked| {
            let kinds =
                looked.vouched.iter().fold(Kinds::NONE, |all, (kinds, _)| all.union(*kinds));
            let denied = one
                .digest
                .and_then(|digest| policy.rule(&digest))
                .is_some_and(|rule| rule.denied == 1);
            !denied && looked.digest == one.digest && kinds.intersects(one.kind)
        })
    };
    refused.into_iter().filter(|one| !is_signed(one)).collect()
}

/// The folders whose files are looked at when they are opened, with those in them.
#[must_use]
pub fn folders_of(policy: &Policy) -> Vec<PathBuf> {
    let folders = Folders::default();
    folders.change(Some(Tops::of(policy)));
    folders.all()
}

/// Where signatures are told that do not count.
#[must_use]
pub fn channel() -> (mpsc::Sender<SignatureRejected>, mpsc::Receiver<SignatureRejected>) {
    mpsc::channel(MAX_TOLD)
}

/// Starts the thread that looks at what was refused.
fn late(
    work: &Arc<Work>,
    questions: &Questions,
    folders: &Arc<Folders>,
) -> io::Result<SyncSender<(Place, Unpack)>> {
    let (late, waiting) = sync_channel::<(Place, Unpack)>(MAX_LATE);
    let (work, group, folders) = (Arc::clone(work), questions.group(), Arc::clone(folders));
    start("late", move || {
        for (place, unpack) in waiting {
            let Ok((file, path)) = place.open() else { continue };
            work.look(&file, unpack);
            folders.note(&group, path);
        }
    })?;
    Ok(late)
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.into()).stack_size(STACK).spawn(run).map(drop)
}

impl Answerer for Work {
    /// Always yes: the gates decide, by the rules as they are now.
    fn question(&self, group: &Group, question: &Question) -> bool {
        self.answer(group, &question.file, question.purpose);
        true
    }

    fn written(&self, group: &Group, file: &File) {
        self.ask_again(group, file);
    }
}
