//! The policy that an agent starts with: what was confirmed, or what was in force before it where that
//! cannot be put in force.
//!
//! A device that has enforced before is not left without gates because something is wrong. Whoever could
//! start a program before the agent could otherwise keep it from starting at all. So what runs unlisted by
//! then is told, and enforcement begins all the same; only without its first process, its shell or the
//! agent a device could not be repaired. Then what was in force before is tried, and at last the device
//! audits.

use std::path::Path;

use indicatif::ProgressBar;
use portcullis_common::Mode;

use super::{Options, RunError, catalogs, enforced, preflight, preflight::InUse};
use crate::{
    deployment::{self, AtStart, Candidate, HighWater},
    kernel::{
        check::{Check, State},
        pins,
    },
    policy::{Policy, bundle::DEVICE_FILE},
    reader::Checked,
    usb::{
        device::{DEVICES, Device},
        preflight as preflight_usb,
    },
};

/// The check that tells what runs and would not be allowed to start again.
const ID: &str = "ran-before";

/// All checks that come from here.
pub(super) const IDS: [&str; 3] = [ID, deployment::ID, deployment::SET_BACK];

/// More would make one line of health unreadable.
const SHOWN: usize = 5;

type Progress<'a> = &'a dyn Fn(u64, &'static str) -> ProgressBar;

/// What the agent starts with.
pub(super) struct First {
    /// The policy without its catalogs.
    pub base: Policy,
    /// With them.
    pub policy: Policy,
    /// What the folder of catalogs held.
    pub found: catalogs::Found,
    /// The mode to start in.
    pub mode: Mode,
    /// The bundles.
    pub deployed: AtStart,
    /// What people should know.
    pub checks: Vec<Check>,
    candidate: Candidate,
    /// Whether this device has enforced a policy before.
    has_enforced: bool,
    /// The first that could be read, and could not be enforced.
    readable: Option<Candidate>,
}

impl First {
    /// Reads what was confirmed, or else what was in force before it.
    ///
    /// # Errors
    /// If no policy can be read, or nothing would be allowed where nothing was enforced before.
    pub fn read(options: &Options, progress: Progress) -> Result<Self, RunError> {
        let marks = HighWater::read(Path::new(DEVICE_FILE));
        let bundles = options.catalogs.bundles();
        let mut deployed = deployment::at_start(&bundles, &options.policy, marks);
        let state = &deployed.store.state;
        // Of a state that was put back nobody can tell.
        let has_enforced = state.confirmed.is_some()
            || state.set_back.is_some()
            || enforced::was(&options.catalogs.enforced());
        if has_enforced {
            deployed.allow_copy();
        }
        // With nothing before and after it, its own words are the clearest.
        let mut alone = None;
        loop {
            let Some(candidate) = deployed.next_to_try() else {
                let error =
                    alone.filter(|_| deployed.passed_over.len() == 1).unwrap_or_else(|| {
                        RunError::NothingHolds(deployed.check(&options.policy, false).found)
                    });
                // They have not been touched.
                return Err(if pinned() { RunError::GatesStay(Box::new(error)) } else { error });
            };
            match load(&candidate, options, progress) {
                Ok((base, policy, found, mode)) => {
                    let checks = Vec::new();
                    let readable = None;
                    let first = Self {
                        base,
                        policy,
                        found,
                        mode,
                        deployed,
                        checks,
                        candidate,
                        has_enforced,
                        readable,
                    };
                    return first.unless_empty(options, progress);
                }
                Err(error) => {
                    let is_first = deployed.passed_over.is_empty() && candidate.kept.is_none();
                    deployed.pass_over(&candidate, error.to_string());
                    alone = Some(error).filter(|_| is_first);
                }
            }
        }
    }

    fn unless_empty(mut self, options: &Options, progress: Progress) -> Result<Self, RunError> {
        while self.mode == Mode::Enforce && self.policy.allows_nothing() {
            let error = RunError::EmptyPolicy(self.candidate.policy.clone());
            self.step_down(error, options, progress)?;
        }
        Ok(self)
    }

    /// Finds out what the policy would stop, and takes another one if this one would leave the device
    /// beyond repair.
    ///
    /// # Errors
    /// If it would stop what runs, and nothing was enforced before.
    pub fn pass_preflight(
        &mut self,
        options: &Options,
        progress: Progress,
    ) -> Result<(), RunError> {
        while self.mode == Mode::Enforce
            && !options.skip_preflight
            && !self.candidate.skip_preflight
        {
            let mut refused = preflight::would_refuse(&self.policy, Vec::new());
            if self.has_enforced {
                let told = refused.clone();
                refused.retain(|one| one.is_vital);
                if refused.is_empty() {
                    self.checks.push(ran_before(&told));
                    return Ok(());
                }
            }
            if refused.is_empty() {
                return refuse_to_lock_out(&self.policy);
            }
            self.step_down(RunError::Preflight(refused), options, progress)?;
        }
        Ok(())
    }

    /// Takes what was in force before this one, which cannot be enforced.
    fn step_down(
        &mut self,
        error: RunError,
        options: &Options,
        progress: Progress,
    ) -> Result<(), RunError> {
        if !self.has_enforced {
            return Err(error);
        }
        let mut why = error.to_string();
        loop {
            tracing::error!("{} cannot be enforced: {why}", self.candidate.policy.display());
            self.deployed.pass_over(&self.candidate, why);
            self.readable.get_or_insert_with(|| self.candidate.clone());
            let Some(next) = self.deployed.next_to_try() else { break };
            self.candidate = next;
            match self.take(options, progress) {
                Ok(()) => return Ok(()),
                Err(error) => why = error.to_string(),
            }
        }
        // Gates that enforce are better than new ones that only watch.
        let Some(readable) = self.readable.clone().filter(|_| !pinned()) else {
            let why = self.deployed.check(&options.policy, false).found;
            let message =
                format!("no policy can be enforced, and the gates of the agent before stay: {why}");
            return Err(RunError::NothingHolds(message));
        };
        self.deployed.come_back_to(&readable);
        self.candidate = readable;
        self.take(options, progress)?;
        self.mode = Mode::Audit;
        tracing::error!("NO POLICY CAN BE ENFORCED, SO NOTHING IS REFUSED: this agent only audits");
        Ok(())
    }

    fn take(&mut self, options: &Options, progress: Progress) -> Result<(), RunError> {
        let read = load(&self.candidate, options, progress)?;
        (self.base, self.policy, self.found, self.mode) = read;
        Ok(())
    }

    /// Which policy is in force, and whether it is an older one than it was, as checks.
    pub fn checks(&mut self, given: &Path) -> Vec<Check> {
        let mut checks = vec![self.deployed.check(given, self.only_audits())];
        checks.extend(self.deployed.check_marks());
        checks.append(&mut self.checks);
        checks
    }

    /// Whether nothing could be enforced, so that the agent only audits.
    pub fn only_audits(&self) -> bool {
        self.readable.as_ref() == Some(&self.candidate)
    }
}

/// Whether an agent has left its gates.
fn pinned() -> bool {
    pins::all().is_ok_and(|folders| !folders.is_empty())
}

fn load(
    candidate: &Candidate,
    options: &Options,
    progress: Progress,
) -> Result<(Policy, Policy, catalogs::Found, Mode), RunError> {
    let reading = progress(0, "reading the policy");
    let base = Policy::load(&candidate.policy, &reading);
    reading.finish_and_clear();
    let base = base?;
    let (policy, found) = catalogs::read(&base, &options.catalogs, Checked { at_start: true });
    let mode = options.mode.unwrap_or(policy.mode);
    Ok((base, policy, found, mode))
}

/// What runs, and would not be allowed to start again.
fn ran_before(refused: &[InUse]) -> Check {
    let title = "what ran before the gates stood is allowed";
    if refused.is_empty() {
        return Check::ok(ID, title, "all of it is");
    }
    let shown: Vec<_> = refused.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = match refused.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let found = format!("{} would not be: {}{more}", refused.len(), shown.join("; "));
    let mend = "find out who started it; if it shall run, add it to the policy, or else end it";
    Check::bad(State::Warning, ID, title, found, mend)
}

/// A keyboard that works must not be taken away without a word. Other devices that nobody lists are no
/// reason to have no gates at all; that they are held is told.
fn refuse_to_lock_out(policy: &Policy) -> Result<(), RunError> {
    let Some(rules) = &policy.usb else { return Ok(()) };
    let mut lost = preflight_usb::lost(Path::new(DEVICES), rules);
    lost.retain(Device::may_be_keyboard);
    if lost.is_empty() {
        Ok(())
    } else {
        Err(RunError::UsbPreflight(preflight_usb::refusal(&lost)))
    }
}
