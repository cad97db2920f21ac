//! Bundles while the agent runs: pushed, tried, confirmed, taken back.
//!
//! The order in which things reach the disk decides what a power cut leaves. The bundle itself comes
//! first, then the state that names it, then the kernel switches: whoever starts next finds either the
//! state before, or a whole bundle. A trial is never in force after a restart.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use portcullis_common::Mode;
use tokio::time::Instant;

use super::{
    Agent,
    reload::{self, refused_first},
};
use crate::{
    catalog::SignedBy,
    control::{
        BundleStatus, PushAnswer, Refusal, Request,
        caller::Caller,
        server::{Answer, Asker, FoundOut, json},
    },
    deployment::{Kept, PassedOver, Store},
    event::{Body, BundleChange, PolicyId},
    kernel::check::Check,
    policy::{
        Policy,
        bundle::{self, Bundle, DEVICE_FILE, Device, Head},
        files::{Disk, InBundle},
        trust::{PolicyTrust, Why},
    },
    reader,
    run::{catalogs, handover},
};

/// The longest trial.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What the agent knows of bundles.
pub(super) struct Deployment {
    store: Store,
    /// The policy file that the agent was given.
    given: PathBuf,
    /// The mode that it was told to have, whatever policies say.
    told: Option<Mode>,
    /// Whose signatures the next bundle needs, and how many.
    operators: (PolicyTrust, usize),
    trial: Option<Running>,
    /// A token that lifts enforcement.
    pub(super) glass: Option<Glass>,
    /// Whether a bundle is being looked at. One at a time, or two could each be the newest.
    busy: bool,
}

/// Enforcement that is lifted.
pub(super) struct Glass {
    /// Until when.
    pub(super) until: Instant,
    /// The mode from then on.
    pub(super) then: Mode,
}

/// A trial that runs.
struct Running {
    until: Instant,
    /// What was, before it.
    mode: Mode,
    /// Checks that had failed then.
    failed: Vec<&'static str>,
}

/// A bundle that was read and found good.
pub struct Offer {
    kept: Kept,
    signed: Vec<SignedBy>,
    warnings: Vec<String>,
}

/// What is needed to look at a bundle, in another thread.
struct Look {
    store: Store,
    operators: (PolicyTrust, usize),
    told: Option<Mode>,
    reading: reload::Reading,
}

impl Deployment {
    pub(super) fn new(store: Store, given: PathBuf, told: Option<Mode>, policy: &Policy) -> Self {
        let operators = operators_of(policy);
        Self { store, given, told, operators, trial: None, glass: None, busy: false }
    }

    /// When what is tried is taken back; never if nothing is.
    pub(super) async fn over(&self) {
        match &self.trial {
            Some(trial) => tokio::time::sleep_until(trial.until).await,
            None => std::future::pending().await,
        }
    }

    /// When enforcement is in force again; never if no token lifts it.
    pub(super) async fn glass_over(&self) {
        match &self.glass {
            Some(glass) => tokio::time::sleep_until(glass.until).await,
            None => std::future::pending().await,
        }
    }

    /// Whose signatures count, and how many are needed.
    pub(super) fn operators(&self) -> &(PolicyTrust, usize) {
        &self.operators
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    pub(super) fn set_store(&mut self, store: Store) {
        self.store = store;
    }

    /// The policy file that the agent was given.
    pub(super) fn given(&self) -> &Path {
        &self.given
    }

    /// The policy file by hand is not in force, so that it cannot be read anew.
    pub(super) fn refuse_reload(&self) -> Result<(), Refusal> {
        match self.store.in_force() {
            None => Ok(()),
            Some(kept) => Err(no(format!(
                "policy {kept} came in a signed bundle, and so must the next; `portcullis policy push`"
            ))),
        }
    }

    pub(super) fn status(&self) -> Option<BundleStatus> {
        let kept = self.store.in_force()?;
        let trial = self.store.state.trial.as_ref();
        Some(BundleStatus {
            policy: kept.policy.clone(),
            version: kept.version,
            epoch: kept.epoch,
            sha256: kept.sha256.clone(),
            until: trial.map(|trial| trial.until),
        })
    }
}

fn operators_of(policy: &Policy) -> (PolicyTrust, usize) {
    (policy.trust.clone(), policy.policy_signatures)
}

fn no(message: impl Into<String>) -> Refusal {
    Refusal { code: 1, message: message.into() }
}

/// A refusal that says by its word why.
pub(super) fn because((reason, message): Why) -> Refusal {
    no(format!("refused ({reason}): {message}; the policy before stays in force"))
}

fn stays(error: &dyn std::fmt::Display) -> Refusal {
    Refusal { code: 3, message: format!("{error}; the policy before stays in force") }
}

/// Reads a bundle, finds out whether it may come into force, and takes a copy of it.
fn look(path: &Path, look: &Look) -> Result<reload::Candidate, Refusal> {
    let Look { store, operators: (trust, needed), told, reading } = look;
    let now = catalogs::now();
    // What nobody has signed is not read into memory.
    let bytes = read_signed(path, |head| head.verify(trust, *needed, now).map(drop), trust)?;
    reader::bundle(&bytes, &trust.trust).map_err(|why| refused_first(why, because))?;
    let bundle = Bundle::parse(bytes).map_err(because)?;
    let signed = bundle.verify(trust, *needed, now).map_err(because)?;
    let device = Device::read(Path::new(DEVICE_FILE)).map_err(|error| stays(&error))?;
    let warnings = bundle.check_device(&device, now).map_err(because)?;
    let kept = Kept::of(&bundle);
    store.check_age(&kept).map_err(because)?;
    let file = store.keep(&bundle).map_err(|error| stays(&error))?;
    let may_stop = bundle.manifest().skip_preflight;
    let folder = file.parent().unwrap_or(Path::new("")).to_owned();
    let read = || {
        // From memory: on the disk it could be another one by now.
        let files = InBundle { bundle: &bundle, folder };
        let mut candidate = reading.read(&files, &file, |policy| {
            !may_stop && told.unwrap_or(policy.mode) == Mode::Enforce
        })?;
        let policy = candidate.policy();
        if (&policy.name, policy.version) != (&kept.policy, kept.version) {
            let message =
                format!("its manifest says {kept}, and its policy another name or version");
            return Err(because(("malformed", message)));
        }
        if !may_stop && !policy.trust.signs_policies() {
            let message = "its policy names nobody who signs policies ([[signer]] with signs = \
                           [\"policy\"]), so that no bundle could follow it; name one, or build it with \
                           --skip-preflight";
            return Err(because(("no-successor", message.into())));
        }
        candidate.offer = Some(Offer { kept: kept.clone(), signed, warnings });
        Ok(candidate)
    };
    let read = read();
    if read.is_err() {
        store.clean();
    }
    read
}

/// Reads a bundle into memory, if its head counts; that is read by a process of its own first.
fn read_signed(
    path: &Path,
    counts: impl FnOnce(&Head) -> Result<(), Why>,
    trust: &PolicyTrust,
) -> Result<Vec<u8>, Refusal> {
    let (file, length) = bundle::open(path).map_err(because)?;
    let head = reader::head(&file, length, &trust.trust).map_err(because)?;
    counts(&head).map_err(because)?;
    drop(head);
    bundle::read_opened(path, (file, length)).map_err(because)
}

impl Agent {
    /// Reads a bundle in another thread, and sends the request again with what it holds.
    pub(super) fn read_bundle(&mut self, path: String, confirm_within: Option<u64>, asker: Asker) {
        if confirm_within.is_some_and(|seconds| seconds == 0 || seconds > LONGEST.as_secs()) {
            let message = "a trial takes from one second to seven days".into();
            asker.tell(Answer::Refused(Refusal { code: 2, message }));
            return;
        }
        let request = Request::Push { path: path.clone(), confirm_within };
        let wanted = self.look();
        self.in_background(request, asker, move || look(Path::new(&path), &wanted));
    }

    /// Reads what was in force before in another thread, and sends the request again with it.
    pub(super) fn read_before(&mut self, cause: String, asker: Asker) {
        let Some(next) = self.deployment.store.taken_back() else {
            let message =
                "the policy file that the agent was given is in force; there is nothing before";
            asker.tell(Answer::Refused(no(message)));
            return;
        };
        let given = self.deployment.given.clone();
        let reading = self.reading();
        self.in_background(Request::Rollback { cause }, asker, move || {
            let file = match next.in_force() {
                Some(kept) => next.open_kept(kept).map_err(|error| stays(&error))?.0,
                None => given,
            };
            // It was read before it came into force.
            reading.read(&Disk, &file, |_| false)
        });
    }

    fn look(&self) -> Look {
        Look {
            store: self.deployment.store.clone(),
            operators: self.deployment.operators.clone(),
            told: self.deployment.told,
            reading: self.reading(),
        }
    }

    fn in_background(
        &mut self,
        request: Request,
        asker: Asker,
        work: impl FnOnce() -> Result<reload::Candidate, Refusal> + Send + 'static,
    ) {
        let Some(commands) = self.commands.clone() else { return };
        if self.deployment.busy {
            let message = "another policy is being put in force; try again when that is done";
            asker.tell(Answer::Refused(no(message)));
            return;
        }
        self.deployment.busy = true;
        tokio::spawn(async move {
            let read = match tokio::task::spawn_blocking(work).await {
                Ok(read) => read.map(Box::new),
                Err(error) => Err(stays(&error)),
            };
            // The agent may be ending.
            let _ = commands.send(asker.again(request, FoundOut::Policy(read))).await;
        });
    }

    /// Puts a bundle in force, or says why not; then nothing has changed.
    pub(super) fn push(
        &mut self,
        read: Result<Box<reload::Candidate>, Refusal>,
        confirm_within: Option<u64>,
        by: Option<&Caller>,
    ) -> Answer {
        self.deployment.busy = false;
        let done = read.and_then(|candidate| self.take_offer(*candidate, confirm_within, by));
        match done {
            Ok(answer) => json(&answer),
            Err(refusal) => {
                // A copy may be there already.
                self.deployment.store.clean();
                let message = refusal.message.clone();
                self.tell_bundle(("refused", by), None, Vec::new(), Some(message), None);
                Answer::Refused(refusal)
            }
        }
    }

    fn take_offer(
        &mut self,
        mut candidate: reload::Candidate,
        confirm_within: Option<u64>,
        by: Option<&Caller>,
    ) -> Result<PushAnswer, Refusal> {
        let Some(Offer { kept, signed, warnings }) = candidate.offer.take() else {
            return Err(no("no bundle was read"));
        };
        let until = confirm_within
            .map(|seconds| {
                let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                Timestamp::now().checked_add(span).map_err(|error| stays(&error))
            })
            .transpose()?;
        let mode = self.deployment.told.unwrap_or(candidate.policy().mode);
        self.check_candidate(&candidate, mode)?;
        let (before, failed) = (self.mode(), self.failed());
        let next = self.deployment.store.with(kept.clone(), until);
        self.switch_to(candidate, next, mode, ("policy push", by))?;
        self.deployment.trial = confirm_within.map(|seconds| Running {
            until: Instant::now() + Duration::from_secs(seconds),
            mode: before,
            failed,
        });
        let state = if until.is_some() { "trial" } else { "in-force" };
        self.tell_bundle((state, by), Some(&kept), signed, None, until);
        // What the switch itself has brought about.
        self.give_up_harmful_trial();
        let (policy, digests) = (self.view().id.clone(), self.digests);
        Ok(PushAnswer { policy, digests, mode: self.mode().word().into(), until, warnings })
    }

    /// Writes what is in force from now on, and then lets the kernel switch.
    fn switch_to(
        &mut self,
        candidate: reload::Candidate,
        next: Store,
        mode: Mode,
        (cause, by): (&'static str, Option<&Caller>),
    ) -> Result<PolicyId, Refusal> {
        let operators = operators_of(candidate.policy());
        // Or a check that fails meanwhile would take back what is not tried any more.
        let tried = self.deployment.trial.take();
        self.set_authority(handover::authority_between(&self.deployment.store, &next));
        let written = next.write().map_err(|error| stays(&error));
        // After the state, or a power cut between them would look like an older state that was put back.
        let known = |store: &Store| (store.state.newest.clone(), store.state.set_back.clone());
        let is_newer = written.is_ok() && known(&next) != known(&self.deployment.store);
        let troubles = if is_newer { next.set_marks() } else { Vec::new() };
        if let Err(refusal) =
            written.and_then(|()| self.put_candidate_in_force(candidate, cause, by))
        {
            self.set_authority(handover::authority(&self.deployment.store));
            if let Err(error) = self.deployment.store.write() {
                tracing::error!("a policy that is not in force would be after a restart: {error}");
            }
            for trouble in self.deployment.store.set_marks() {
                tracing::error!("what is not in force would count as accepted: {trouble}");
            }
            self.deployment.trial = tried;
            return Err(refusal);
        }
        self.deployment.store = next;
        self.set_authority(handover::authority(&self.deployment.store));
        self.deployment.store.clean();
        self.deployment.operators = operators;
        match &mut self.deployment.glass {
            // Whoever lifted enforcement stands in front of the device and needs the rest of the time.
            Some(glass) => glass.then = mode,
            None => self.change_mode(mode, by),
        }
        if is_newer {
            self.marks_are_set(&troubles);
        }
        let check = self.deployment.store.check(self.deployment.given());
        self.take_checks(vec![check]);
        Ok(self.view().id.clone())
    }

    /// Keeps what is tried.
    pub(super) fn confirm(&mut self, by: Option<&Caller>) -> Answer {
        if self.deployment.busy {
            return Answer::Refused(no("it is being replaced or taken back now"));
        }
        let Some(next) = self.deployment.store.confirmed() else {
            return Answer::Refused(no("nothing is tried, so there is nothing to confirm"));
        };
        if let Err(error) = next.write() {
            let message = format!("{error}; it is still a trial");
            return Answer::Refused(Refusal { code: 3, message });
        }
        self.deployment.store = next;
        self.set_authority(handover::authority(&self.deployment.store));
        self.deployment.store.clean();
        self.deployment.trial = None;
        let kept = self.deployment.store.in_force().cloned();
        self.tell_bundle(("confirmed", by), kept.as_ref(), Vec::new(), None, None);
        json(&serde_json::json!({ "policy": self.view().id }))
    }

    /// Puts in force what was before, whatever it would stop: it was in force.
    pub(super) fn roll_back(
        &mut self,
        read: Result<Box<reload::Candidate>, Refusal>,
        cause: String,
        by: Option<&Caller>,
    ) -> Answer {
        self.deployment.busy = false;
        let done = read.and_then(|candidate| {
            let Some(next) = self.deployment.store.taken_back() else {
                return Err(no("nothing is in force that could be taken back"));
            };
            let left = self.deployment.store.in_force().cloned();
            let mode = match &self.deployment.trial {
                Some(trial) => trial.mode,
                None => self.deployment.told.unwrap_or(candidate.policy().mode),
            };
            self.may_roll_back(mode, by)?;
            self.switch_to(*candidate, next, mode, ("policy rollback", by))?;
            self.tell_bundle(("reverted", by), left.as_ref(), Vec::new(), Some(cause), None);
            Ok(serde_json::json!({ "policy": self.view().id, "mode": self.mode().word() }))
        });
        match done {
            Ok(answer) => json(&answer),
            Err(refusal) => {
                tracing::error!("{}", refusal.message);
                let message = Some(refusal.message.clone());
                self.tell_bundle(("refused", by), None, Vec::new(), message, None);
                Answer::Refused(refusal)
            }
        }
    }

    /// Nothing lifts enforcement over the network but what is signed; the end of a trial does by itself.
    fn may_roll_back(&self, then: Mode, by: Option<&Caller>) -> Result<(), Refusal> {
        let is_lifted = self.mode() == Mode::Enforce && then == Mode::Audit;
        let is_remote = by.is_some_and(Caller::is_remote);
        let to_the_file =
            self.deployment.store.taken_back().is_some_and(|next| next.in_force().is_none());
        // The end of a trial goes back to it by itself, and operators are known over the network: by their
        // own certificates, not through a fleet's link, whose socket root can reach as well.
        let is_known = matches!(by, Some(Caller::Network(_)));
        if by.is_some()
            && !is_known
            && to_the_file
            && self.deployment.trial.is_none()
            && self.mode() == Mode::Enforce
        {
            let message = "what was before is a policy file that nobody has signed, and a signed bundle is in \
                           force; push a bundle, build with a higher --epoch to go back to older rules";
            return Err(no(message));
        }
        if is_remote && is_lifted && self.deployment.trial.is_none() {
            let message = "what was before only audits, and nothing lifts enforcement over the network but \
                           what is signed; push a policy with mode = \"audit\", or say it on the device";
            return Err(no(message));
        }
        Ok(())
    }

    /// Takes back what is tried, because nobody has confirmed it or because it does harm.
    pub(super) fn give_up_trial(&mut self, cause: &str) {
        // Not again before this has come out; and if it cannot be done now, in a minute.
        if let Some(trial) = &mut self.deployment.trial {
            trial.until = Instant::now() + Duration::from_secs(60);
        }
        self.read_before(cause.into(), Asker::nobody());
    }

    fn failed(&self) -> Vec<&'static str> {
        self.health.failed().iter().map(|check| check.id).collect()
    }

    /// Takes back what is tried if something has failed since then that had not before.
    pub(super) fn give_up_harmful_trial(&mut self) {
        let Some(trial) = &self.deployment.trial else { return };
        let failed = self.health.failed();
        let harm = failed.into_iter().find(|check| !trial.failed.contains(&check.id));
        if let Some(Check { id, found, .. }) = harm {
            let cause = format!("a health check has failed since it is tried: {id}: {found}");
            self.give_up_trial(&cause);
        }
    }

    /// The policy file that the agent was given is in force, as it is now.
    pub(super) fn given_again(&mut self) {
        if self.deployment.store.given_again() {
            let check = self.deployment.store.check(self.deployment.given());
            self.take_checks(vec![check]);
        }
        self.keep_given();
    }

    /// Tells of what was tried when the agent before ended.
    pub(super) fn tell_reverted(&mut self, kept: Option<&Kept>) {
        if kept.is_some() {
            let cause = "the agent was started again before it was confirmed".to_owned();
            self.tell_bundle(("reverted", None), kept, Vec::new(), Some(cause), None);
        }
    }

    /// Tells of what could not be put in force when this agent started.
    pub(super) fn tell_passed_over(&mut self, passed_over: Vec<PassedOver>) {
        for PassedOver { kept, why } in passed_over {
            self.tell_bundle(("passed-over", None), kept.as_ref(), Vec::new(), Some(why), None);
        }
    }

    /// Tells of a state that was put back from an older copy.
    pub(super) fn tell_set_back(&mut self) {
        let store = &self.deployment.store;
        if let (Some(newer), Some(check)) = (store.state.set_back.clone(), store.check_marks(&[])) {
            self.tell_bundle(("set-back", None), Some(&newer), Vec::new(), Some(check.found), None);
        }
    }

    fn tell_bundle(
        &mut self,
        (state, by): (&'static str, Option<&Caller>),
        kept: Option<&Kept>,
        signed: Vec<SignedBy>,
        message: Option<String>,
        until: Option<Timestamp>,
    ) {
        let bundle = kept.cloned();
        self.recorder.record(Body::Bundle(Box::new(BundleChange {
            state,
            bundle,
            signed,
            message,
            until,
            by: by.cloned(),
        })));
    }
}
