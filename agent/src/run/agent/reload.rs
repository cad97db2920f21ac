//! `portcullis policy reload`: puts the policy file in force as it is now.

use std::{path::Path, sync::Arc};

use indicatif::ProgressBar;
use jiff::Timestamp;
use portcullis_common::{Choices, Mode};

use super::{Agent, history::SharedHistory, push::Offer};
use crate::{
    control::{
        Refusal, ReloadAnswer, Request,
        caller::Caller,
        preflight_refusal,
        server::{Answer, Asker, FoundOut, json},
    },
    deployment::given,
    kernel::{gates::GatesError, layout::Hashing},
    policy::{Policy, files::Files, trust::Why},
    reader::{self, process::MISTAKES},
    run::{
        backend::Backend,
        catalogs::{self, Places, Prepared},
        preflight::{self, InUse},
        signatures::Signatures,
    },
    sync::lock,
    usb::preflight as usb_preflight,
};

/// A policy that was read, with all that takes long.
pub struct Candidate {
    /// Without catalogs.
    base: Arc<Policy>,
    /// With them.
    prepared: Prepared,
    /// What runs and would be refused, if that was asked for.
    refused: Vec<InUse>,
    /// Why it would take USB devices away that are in use, if that was asked for and it would.
    usb: Option<String>,
    /// The bundle that it came in, if it did.
    pub(super) offer: Option<Offer>,
}

impl Candidate {
    /// The policy with its catalogs.
    pub(super) fn policy(&self) -> &Policy {
        &self.prepared.policy
    }
}

fn refusal(code: u8, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into() }
}

/// The refusal of what a process of its own has read: mistakes are shown as they are.
pub(super) fn refused_first(
    (reason, message): Why,
    otherwise: impl FnOnce(Why) -> Refusal,
) -> Refusal {
    if reason == MISTAKES {
        return refusal(2, format!("{message}\nthe policy before stays in force"));
    }
    otherwise((reason, message))
}

fn no_reader(file: &Path, (reason, message): Why) -> Refusal {
    let file = file.display();
    refusal(3, format!("{file} is refused ({reason}): {message}; the policy before stays in force"))
}

/// What is needed to read a policy in another thread.
pub(super) struct Reading {
    places: Places,
    in_kernel: bool,
    history: SharedHistory,
}

impl Reading {
    /// Reads a policy file; what runs, and what has run, is asked for if `look` says so of the policy.
    pub(super) fn read(
        &self,
        files: &dyn Files,
        file: &Path,
        look: impl FnOnce(&Policy) -> bool,
    ) -> Result<Candidate, Refusal> {
        let read = Policy::load_from(files, file, &ProgressBar::hidden());
        let base = read.map_err(|mistakes| {
            refusal(2, format!("{mistakes}\nthe policy before stays in force"))
        })?;
        let prepared = catalogs::prepare(&base, &self.places, self.in_kernel)
            .map_err(|error| refusal(3, format!("{error}; the policy before stays in force")))?;
        let policy = &prepared.policy;
        let (mut refused, mut usb) = (Vec::new(), None);
        if look(policy) {
            usb = policy.usb.as_ref().and_then(|rules| usb_preflight::refusal_by(rules));
            let history = lock(&self.history);
            let suspects = history.suspects(Timestamp::now(), |digest| policy.rule(digest));
            // Not kept locked while everything that runs is read.
            drop(history);
            refused = preflight::would_refuse(policy, suspects);
        }
        Ok(Candidate { base: Arc::new(base), prepared, refused, usb, offer: None })
    }
}

impl Agent {
    pub(super) fn reading(&self) -> Reading {
        Reading {
            places: self.places.clone(),
            in_kernel: matches!(self.gates, Backend::BpfLsm(_)),
            history: self.history.shared(),
        }
    }

    /// Reads the policy file in another thread, and sends the request again with what it says.
    pub(super) fn read_policy(&self, skip_preflight: bool, asker: Asker) {
        let Some(commands) = self.commands.clone() else { return };
        let (file, reading) = (self.deployment.given().to_owned(), self.reading());
        let look = self.mode() == Mode::Enforce && !skip_preflight;
        tokio::spawn(async move {
            let work = move || {
                let files = reader::policy(&file);
                let files = files.map_err(|why| refused_first(why, |why| no_reader(&file, why)))?;
                reading.read(&files, &file, |_| look)
            };
            let Ok(read) = tokio::task::spawn_blocking(work).await else { return };
            let found_out = FoundOut::Policy(read.map(Box::new));
            // The agent may be ending.
            let request = Request::Reload { skip_preflight };
            let _ = commands.send(asker.again(request, found_out)).await;
        });
    }

    /// Puts it in force, or says why not; then nothing has changed.
    pub(super) fn reload(
        &mut self,
        read: Result<Box<Candidate>, Refusal>,
        by: Option<&Caller>,
    ) -> Answer {
        let done = read.and_then(|candidate| self.take_candidate(*candidate, by));
        match done {
            Ok(answer) => json(&answer),
            Err(refusal) => Answer::Refused(refusal),
        }
    }

    fn take_candidate(
        &mut self,
        candidate: Candidate,
        by: Option<&Caller>,
    ) -> Result<ReloadAnswer, Refusal> {
        self.deployment.refuse_reload()?;
        self.check_candidate(&candidate, self.mode())?;
        self.put_candidate_in_force(candidate, "policy reload", by)?;
        self.given_again();
        Ok(ReloadAnswer { policy: self.view().id.clone(), digests: self.digests })
    }

    /// Keeps a copy of the policy file while it is enforced, for a start at which it has mistakes.
    pub(super) fn keep_given(&self) {
        if self.mode() != Mode::Enforce || !self.deployment.store().is_given() {
            return;
        }
        let (folder, file) = (self.places.bundles(), self.deployment.given().to_owned());
        let sources = self.view().sources.clone();
        tokio::task::spawn_blocking(move || {
            // It may have been changed since it came into force.
            let files = reader::policy(&file).map_err(|(_, why)| why);
            let kept = files.and_then(|files| given::keep(&folder, &files, &file, &sources));
            if let Err(why) = kept {
                let file = file.display();
                tracing::warn!(
                    "no copy of {file} for the case that it has mistakes one day: {why}"
                );
            }
            // The policy was in memory once more.
            crate::run::memory::release();
        });
    }

    /// Whether a policy can be put in force now, in this mode.
    pub(super) fn check_candidate(&self, candidate: &Candidate, mode: Mode) -> Result<(), Refusal> {
        let policy = candidate.policy();
        if mode == Mode::Enforce && policy.allows_nothing() {
            let message = "the policy lists no digest, so enforcing it would stop everything";
            return Err(refusal(1, message));
        }
        if !candidate.refused.is_empty() {
            return Err(preflight_refusal(&candidate.refused));
        }
        if let Some(message) = &candidate.usb {
            return Err(refusal(1, message));
        }
        if let Some(what) = self.needs_restart(policy) {
            let message = format!("the policy {what} that this agent has not; start it again");
            return Err(refusal(3, message));
        }
        Ok(())
    }

    /// Lets the kernel switch to a policy that was checked.
    pub(super) fn put_candidate_in_force(
        &mut self,
        candidate: Candidate,
        cause: &'static str,
        by: Option<&Caller>,
    ) -> Result<(), Refusal> {
        let Candidate { base, prepared: Prepared { policy, rules, found }, .. } = candidate;
        self.look_at_signatures(&policy)
            .map_err(|error| refusal(3, format!("{error}; the policy before stays in force")))?;
        let switched = self.put_in_force(&policy, rules, cause, by);
        switched
            .map_err(|error| refusal(3, format!("{error}; the policy before stays in force")))?;
        self.settle_dropped();
        self.take_found(found);
        // Before the next look at the folder, which would put the policy before in force again.
        self.watch_catalogs(&base);
        crate::run::memory::release();
        Ok(())
    }

    /// Starts to look at files' own signatures, if the policy is the first to trust any.
    fn look_at_signatures(&mut self, policy: &Policy) -> Result<(), GatesError> {
        if let (Backend::BpfLsm(gates), None) = (&self.gates, &self.signatures) {
            let (vouched, records) = (gates.vouched(), gates.records()?);
            let started = Signatures::start(vouched, records, policy, self.tell_rejected.clone());
            self.signatures = started.map_err(GatesError::Records)?;
        }
        Ok(())
    }

    /// What the policy needs that is set up only when an agent starts.
    fn needs_restart(&self, policy: &Policy) -> Option<&'static str> {
        let filesystems = policy.trusted_filesystems != self.trusted_filesystems;
        match &self.gates {
            Backend::BpfLsm(gates) => {
                if policy.choices.contains(Choices::INTERPRETERS)
                    && !gates.active().choices().contains(Choices::INTERPRETERS)
                    && !gates.is_asked_for(portcullis_common::Gate::Interpreter)
                {
                    Some("marks interpreters, which needs gates")
                } else if policy.usb.is_some()
                    && !gates.is_asked_for(portcullis_common::Gate::Usb)
                    && gates.usb_refused().is_none()
                {
                    Some("says which USB devices come alive, which needs a gate")
                } else if !policy.verified_filesystems.is_empty() && !gates.watches_devices() {
                    Some("trusts verified filesystems, which needs a watch on devices")
                } else if filesystems
                    && (gates.hashing() == Hashing::Agent || self.signatures.is_some())
                {
                    Some("trusts other kinds of filesystem, which needs questions")
                } else {
                    None
                }
            }
            Backend::Fanotify(_) => {
                filesystems.then_some("trusts other kinds of filesystem, which needs questions")
            }
        }
    }
}
