//! How verdicts are enforced: by the kernel's own gates, or, on kernels without them, by answers to
//! fanotify's questions.

use std::{collections::BTreeSet, sync::Arc};

use clap::ValueEnum;
use portcullis_common::{Active, Counter, Digest, Gate, Kinds, Mode, Rule};

use crate::{
    kernel::{
        check::{Check, State, first_failure},
        fanotify::Group,
        gates::{Gates, GatesError},
    },
    run::{RunError, warden::Warden},
};

/// What a user may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// The kernel's gates where they can be had; else fanotify, degraded
    #[default]
    Auto,
    /// The kernel's gates, or nothing
    BpfLsm,
    /// Degraded on purpose: exec only, and only while the agent runs
    Fanotify,
}

/// What is to be used.
pub enum Chosen {
    /// The kernel's gates.
    BpfLsm,
    /// fanotify, with what the status page says about it.
    Fanotify(Check),
}

/// Rows of `doctor` that no setting of a running kernel mends: it has to be booted otherwise, or
/// be another one. With the others a wrong switch is no reason to protect less.
const NOT_TO_BE_HAD: [&str; 5] = ["kernel", "bpf-lsm", "btf", "busy", "lockdown"];

/// What holds of this kernel for the choice.
///
/// # Errors
/// If what is asked for cannot be had.
pub fn choose(choice: Choice, checks: &[Check]) -> Result<Chosen, RunError> {
    let failure = first_failure(checks);
    let degraded = match (choice, failure) {
        (Choice::Auto | Choice::BpfLsm, None) => return Ok(Chosen::BpfLsm),
        (Choice::Auto, Some(failure)) if NOT_TO_BE_HAD.contains(&failure.id) => degraded(failure),
        (Choice::Auto | Choice::BpfLsm, Some(failure)) => {
            return Err(RunError::Kernel(failure.clone()));
        }
        (Choice::Fanotify, Some(failure)) => degraded(failure),
        (Choice::Fanotify, None) => {
            let mend = "start the agent without --backend fanotify";
            row("as --backend fanotify asks for", mend)
        }
    };
    match Group::new() {
        Ok(_) => Ok(Chosen::Fanotify(degraded)),
        // The way to the real thing is the better mend.
        Err(error) => Err(RunError::Kernel(failure.cloned().unwrap_or_else(|| {
            Check::failed(
                "fanotify",
                "kernel asks before files are opened",
                error.to_string(),
                "run it as root, on a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y",
            )
        }))),
    }
}

fn degraded(failure: &Check) -> Check {
    let why = format!("{}: {}", failure.title, failure.found);
    row(&why, failure.mend.as_deref().unwrap_or_default())
}

fn row(why: &str, mend: &str) -> Check {
    Check::bad(
        State::Warning,
        "backend",
        "the kernel's own gates stand",
        format!(
            "degraded to fanotify: only exec is judged, no library, module or memory, and nothing \
             when the agent does not run ({why})"
        ),
        mend,
    )
}

/// What enforces.
pub enum Backend {
    /// The kernel's gates.
    BpfLsm(Box<Gates>),
    /// Answers to fanotify.
    Fanotify(Arc<Warden>),
}

impl Backend {
    /// The word for it in events and status.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::BpfLsm(_) => "bpf-lsm",
            Self::Fanotify(_) => "fanotify",
        }
    }

    /// Whether less holds than the kernel's gates would give.
    #[must_use]
    pub fn is_degraded(&self) -> bool {
        matches!(self, Self::Fanotify(_))
    }

    /// What is in force.
    #[must_use]
    pub fn active(&self) -> Active {
        match self {
            Self::BpfLsm(gates) => gates.active(),
            Self::Fanotify(warden) => warden.active(),
        }
    }

    /// Changes the mode of the policy in force.
    pub fn set_mode(&self, mode: Mode) {
        match self {
            Self::BpfLsm(gates) => drop(gates.set_mode(mode)),
            Self::Fanotify(warden) => warden.set_mode(mode),
        }
    }

    /// One of a gate's numbers.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counter(&self, gate: Gate, counter: Counter) -> Result<u64, GatesError> {
        match self {
            Self::BpfLsm(gates) => gates.counter(gate, counter),
            Self::Fanotify(warden) => Ok(warden.counter(gate, counter)),
        }
    }

    /// The rule of the policy in force for a digest.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn rule(&self, digest: &Digest) -> Result<Option<Rule>, GatesError> {
        match self {
            Self::BpfLsm(gates) => gates.rule(digest),
            Self::Fanotify(warden) => Ok(warden.rule(digest)),
        }
    }

    /// Whether the policy asks for this gate.
    #[must_use]
    pub fn is_asked_for(&self, gate: Gate) -> bool {
        match self {
            Self::BpfLsm(gates) => gates.is_asked_for(gate),
            // What does not stand is to be seen.
            Self::Fanotify(_) => true,
        }
    }

    /// Whether the gate stands.
    #[must_use]
    pub fn stands(&self, gate: Gate) -> bool {
        match self {
            Self::BpfLsm(gates) => gates.stands(gate),
            Self::Fanotify(_) => gate == Gate::Exec,
        }
    }

    /// Whether it would outlive the agent.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        match self {
            Self::BpfLsm(gates) => gates.is_pinned(),
            Self::Fanotify(_) => false,
        }
    }

    /// Which block devices are to be closed for writing.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_mounted_devices(&mut self, devices: &BTreeSet<u32>) -> Result<(), GatesError> {
        match self {
            Self::BpfLsm(gates) => gates.set_mounted_devices(devices),
            Self::Fanotify(_) => Ok(()),
        }
    }

    /// Looks which devices are verified.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn refresh_devices(&mut self) -> Result<Option<Check>, GatesError> {
        match self {
            Self::BpfLsm(gates) => gates.refresh_devices(),
            Self::Fanotify(_) => Ok(None),
        }
    }

    /// What files may be used as because their device is verified.
    #[must_use]
    pub fn verified_kinds(&self, device: u64) -> Kinds {
        match self {
            Self::BpfLsm(gates) => gates.verified_kinds(device),
            Self::Fanotify(_) => Kinds::NONE,
        }
    }
}
