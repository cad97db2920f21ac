//! The agent: puts the gates up and stays with them.

pub(crate) mod agent;
mod appraiser;
pub mod backend;
pub mod catalogs;
pub mod enforced;
mod first;
pub mod handover;
mod health;
pub mod latest;
pub mod lock;
mod memory;
pub mod preflight;
pub mod questions;
pub mod reappraise;
pub mod recorder;
mod scripts;
mod service;
pub mod signatures;
pub mod sink;
mod storms;
mod warden;

use std::{
    io,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use portcullis_common::{Choices, Kinds, Mode};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::{
    artifact::MAX_HASHED_BYTES,
    deployment::AtStart,
    event::{SignatureRejected, decode::GateEvent},
    kernel::{
        allowlist::Allowlist,
        check::{Check, State, first_failure},
        facts,
        gates::{Gates, GatesError, Settings},
        layout::{Hashing, Layout},
        memory_limit, mounts, overlay,
        pins::{self, Pins},
        selftest,
        shield::HandoverError,
    },
    policy::{Policy, diagnostic::Diagnostics, source::Signs},
};

use appraiser::Appraiser;
use backend::{Backend, Choice, Chosen};
use first::First;
use lock::{Lock, LockError};
pub use memory::resident_kib;
use memory::{keep_small, release};
use preflight::InUse;
use recorder::Recorder;
use signatures::Signatures;
use sink::Sink;
use warden::Warden;

/// How the agent is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy file.
    pub policy: PathBuf,
    /// The mode, if not the policy's own.
    pub mode: Option<Mode>,
    /// A file for JSON lines, besides standard output.
    pub events: Option<PathBuf>,
    /// A file for numbers.
    pub metrics: Option<PathBuf>,
    /// Level of the kernel programs' own log, as aya-log numbers them; 0 is off.
    pub log_level: u8,
    /// How verdicts are to be enforced.
    pub backend: Choice,
    /// Whether to enforce a policy that would stop what runs now.
    pub skip_preflight: bool,
    /// How what runs is read again.
    pub reappraise: reappraise::Pace,
    /// Where catalogs are.
    pub catalogs: catalogs::Places,
}

/// Why the agent does not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The policy has mistakes.
    #[error(transparent)]
    Policy(#[from] Diagnostics),
    /// Another agent runs, or there is no place for the lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The kernel lacks something.
    #[error("{}: {}; {}", .0.title, .0.found, .0.mend.as_deref().unwrap_or_default())]
    Kernel(Check),
    /// The programs could not be loaded or attached.
    #[error(transparent)]
    Gates(#[from] GatesError),
    /// Another agent's gates stand, and this one may not take over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// Nothing could be allowed.
    #[error(
        "policy {0} lists no digest, so enforcing it would stop everything; run it in audit mode first"
    )]
    EmptyPolicy(PathBuf),
    /// A keyboard that is in use would be held.
    #[error("{0}")]
    UsbPreflight(String),
    /// What runs now would be stopped.
    #[error("{}", crate::control::preflight_refusal(.0).message)]
    Preflight(Vec<InUse>),
    /// Nothing that was in force can be put in force again.
    #[error("{0}")]
    NothingHolds(String),
    /// What would enforce could not change the gates that stand.
    #[error(
        "gates of an earlier agent are in force, and this one could not change them: {}; {}",
        .0.found, .0.mend.as_deref().unwrap_or_default()
    )]
    OtherBackend(Check),
    /// No policy can be read, and an earlier agent's gates go on by theirs.
    #[error("{0}\nthe gates of the agent before stay in force")]
    GatesStay(Box<RunError>),
    /// The file for events cannot be opened.
    #[error("event file {path}: {source}")]
    Events {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused something that it should not.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl RunError {
    /// The exit code: 1 for an answer that is no, 2 for bad input, 3 for what is not available.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::EmptyPolicy(_)
            | Self::Preflight(_)
            | Self::UsbPreflight(_)
            | Self::NothingHolds(_)
            | Self::Handover(_) => 1,
            Self::GatesStay(error) => error.exit_code(),
            Self::Policy(_) | Self::Events { .. } => 2,
            Self::Lock(_)
            | Self::OtherBackend(_)
            | Self::Kernel(_)
            | Self::Gates(_)
            | Self::System { .. } => 3,
        }
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// Everything that an agent needs to run, put up in an order in which a failure leaves nothing
/// behind.
struct Started {
    gates: Backend,
    ring: Option<aya::maps::RingBuf<aya::maps::MapData>>,
    /// What asks, and what was answered, without kernel programs.
    warden: Option<(warden::Watch, mpsc::Receiver<GateEvent>)>,
    /// The policy with its catalogs.
    policy: Policy,
    /// The policy without them.
    base: Policy,
    /// The policy file that the agent was given.
    given: PathBuf,
    /// The mode that it was told to have, whatever policies say.
    told: Option<Mode>,
    /// What it starts with instead, if a bundle was confirmed.
    deployed: AtStart,
    /// Whether it should enforce, and no policy can be.
    only_audits: bool,
    /// Where catalogs are.
    places: catalogs::Places,
    /// What they are now.
    found: catalogs::Found,
    pins: Option<Pins>,
    checks: Vec<Check>,
    /// What the self-test came across, and has counted itself.
    test: selftest::SelfTest,
    recorder: Recorder,
    /// A file for numbers.
    metrics: Option<PathBuf>,
    reappraise: reappraise::Pace,
    /// Who hashes, if the kernel does not.
    appraiser: Option<Appraiser>,
    /// Who looks at files' own signatures, if the policy trusts any.
    signatures: Option<Signatures>,
    /// Where signatures are told that do not count.
    rejected: (mpsc::Sender<SignatureRejected>, mpsc::Receiver<SignatureRejected>),
    _lock: Lock,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// If it cannot start; nothing is changed then.
pub fn run(
    options: &Options,
    progress: &dyn Fn(u64, &'static str) -> ProgressBar,
) -> Result<(), RunError> {
    keep_small();
    let started = start(options, progress)?;
    release();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(system("starting the runtime"))?;
    let served = runtime.block_on(agent::serve(started));
    // The runtime waits for whoever waits for them.
    crate::reader::end_all();
    served
}

fn start(
    options: &Options,
    progress: &dyn Fn(u64, &'static str) -> ProgressBar,
) -> Result<Started, RunError> {
    // What the kernel or the lack of privilege forbids is said before anything is touched.
    let layout = Layout::of_running_kernel();
    let mut checks = facts::checks(&layout);
    let chosen = backend::choose(options.backend, &checks)?;
    let lock = Lock::take(Path::new(lock::RUNTIME))?;
    let told_to_audit = options.mode == Some(Mode::Audit);
    handover::enter(&options.catalogs.bundles(), told_to_audit)?;
    lock.sign();
    if let Chosen::Fanotify(degraded) = &chosen
        && handover::enforced_already()?
    {
        return Err(RunError::OtherBackend(degraded.clone()));
    }
    handover::sweep(&options.catalogs);
    let mut first = First::read(options, progress)?;
    first.pass_preflight(options, progress)?;
    let passed_over = first.deployed.passed_over.iter().map(|one| one.why.clone());
    handover::check(&first.deployed.store, told_to_audit)
        .map_err(|refused| handover::because(refused, &passed_over.collect::<Vec<_>>()))?;
    checks.append(&mut first.checks(&options.policy));
    let only_audits = first.only_audits();
    let First { base, policy, found, mode, deployed, .. } = first;
    let mut sinks = vec![Sink::stdout()];
    if let Some(path) = &options.events {
        let opened = Sink::file(path);
        sinks.push(opened.map_err(|source| RunError::Events { path: path.clone(), source })?);
    }
    // Under the lock: two agents must not write to one spool.
    let recorder = Recorder::open(&options.catalogs, sinks);

    if let Chosen::Fanotify(degraded) = chosen {
        let mend = degraded.mend.as_deref().unwrap_or_default();
        tracing::warn!("{}; {mend}", degraded.found);
        let (warden, watch, answered) = Warden::start(&policy)
            .map_err(system("having the kernel ask before files are opened"))?;
        checks.retain(|check| first::IDS.contains(&check.id));
        checks.extend([degraded, warden.prove()]);
        if let Some(failure) = first_failure(&checks) {
            return Err(RunError::Kernel(failure.clone()));
        }
        warden.set_mode(mode);
        return Ok(Started {
            gates: Backend::Fanotify(warden),
            ring: None,
            warden: Some((watch, answered)),
            policy,
            base,
            given: options.policy.clone(),
            told: options.mode,
            deployed,
            only_audits,
            places: options.catalogs.clone(),
            found,
            pins: None,
            checks,
            test: selftest::SelfTest::default(),
            recorder,
            metrics: options.metrics.clone(),
            reappraise: options.reappraise,
            appraiser: None,
            signatures: None,
            rejected: signatures::channel(),
            _lock: lock,
        });
    }
    let layout = layout.map_err(|error| {
        RunError::Kernel(Check::failed(
            "btf",
            "kernel type information",
            error.to_string(),
            "report it",
        ))
    })?;
    checks.push(memory_limit::check());
    if policy.choices.contains(Choices::FSVERITY) && !layout.has_fsverity {
        checks.push(Check::bad(
            State::Warning,
            "fs-verity",
            "files listed by their fs-verity digests",
            "this kernel does not show the digests, so these rules allow nothing",
            "list the files by the SHA-256 of their content as well",
        ));
    }
    if policy.choices.contains(Choices::INTERPRETERS) && !layout.can_judge_scripts {
        checks.push(Check::bad(
            State::Warning,
            "interpreters",
            "scripts of marked interpreters are judged",
            "this kernel cannot do it, so the mark does nothing",
            "use Linux 6.1 or later, with IMA",
        ));
    }

    let settings = Settings {
        max_hashed_bytes: MAX_HASHED_BYTES,
        memfd_device: selftest::memfd_device().map_err(system("making a memfd"))?,
        watch_devices: !policy.verified_filesystems.is_empty(),
        may_read_kernel: facts::may_read_kernel(),
        interpreters: policy.choices.contains(Choices::INTERPRETERS)
            || policy.trust.kinds(Signs::CATALOG).intersects(Kinds::INTERPRETER),
        usb: policy.usb.is_some(),
        state_devices: handover::state_devices(&options.catalogs, deployed.store.high_water()),
        log_level: options.log_level,
    };
    let mut gates = Gates::load(&layout, &settings)?;
    gates.shield().set_own(handover::own_digest()?);
    gates.shield().set_authority(handover::authority(&deployed.store))?;
    let marks = deployed.store.high_water();
    checks.push(handover::guard_state(gates.shield(), &options.catalogs, marks));
    let mut ring = gates.take_events()?;
    let filling = progress(policy.rules.len() as u64, "filling the allowlist");
    // Nothing is refused before the gates are known to work.
    let rules = Allowlist::fill(&policy.rules, policy.room(), &filling);
    filling.finish_and_clear();
    gates.switch(&policy, rules?, Mode::Audit)?;
    let closed = mounts::closed_devices(policy.choices).map_err(GatesError::Mounts)?;
    gates.set_mounted_devices(&closed)?;
    checks.push(find_overlay(&mut gates));
    let appraiser = match gates.hashing() {
        Hashing::Kernel => None,
        Hashing::Agent => {
            let started = Appraiser::start(gates.records()?, &policy);
            Some(started.map_err(system("having the kernel ask before files are opened"))?)
        }
    };
    // Before the gates stand, so that nothing signed is refused in between.
    let rejected = signatures::channel();
    let signatures =
        Signatures::start(gates.vouched(), gates.records()?, &policy, rejected.0.clone())
            .map_err(system("having the kernel ask before signed files are opened"))?;
    gates.attach()?;

    // Gates of a predecessor may refuse what the self-test tries, so they must go first if there
    // are any; ours already stand beside them, and enforce from before that.
    let pins = pin(&mut gates, &mut checks);
    let predecessors = pins.as_ref().map_or(Ok(Vec::new()), Pins::predecessors);
    let predecessors = predecessors.map_err(system("looking for an earlier agent's gates"))?;
    checks.push(gates.shield().guard_mounts()?);
    gates.adopt_devices(&predecessors)?;
    checks.extend(gates.refresh_devices()?);
    let test = if predecessors.is_empty() {
        let test = prove(&mut gates, &mut ring);
        gates.set_mode(mode);
        test
    } else {
        gates.set_mode(mode);
        for folder in &predecessors {
            pins::remove(folder).map_err(system("taking an earlier agent's gates down"))?;
        }
        prove(&mut gates, &mut ring)
    };
    let mut test = match test {
        Ok(test) => test,
        Err(error) => {
            // Unproved gates are not left behind.
            if let Some(pins) = pins.filter(|_| predecessors.is_empty()) {
                let _ = pins.remove();
            }
            return Err(error);
        }
    };
    checks.append(&mut test.checks);
    Ok(Started {
        gates: Backend::BpfLsm(Box::new(gates)),
        ring: Some(ring),
        warden: None,
        policy,
        base,
        given: options.policy.clone(),
        told: options.mode,
        deployed,
        only_audits,
        places: options.catalogs.clone(),
        found,
        pins,
        checks,
        test,
        recorder,
        metrics: options.metrics.clone(),
        reappraise: options.reappraise,
        appraiser,
        signatures,
        rejected,
        _lock: lock,
    })
}

/// Pins the programs. That they cannot be pinned is a gap with a name, not a reason to have no
/// gates at all.
fn pin(gates: &mut Gates, checks: &mut Vec<Check>) -> Option<Pins> {
    let (id, title) = ("pinned", "gates outlive the agent");
    let mend = "mount -t bpf bpf /sys/fs/bpf, and start the agent again";
    let pinned =
        Pins::create().map_err(|error| error.to_string()).and_then(|pins| match gates.pin(&pins) {
            Ok(()) => Ok(pins),
            Err(error) => {
                let _ = pins.remove();
                Err(error.to_string())
            }
        });
    match pinned {
        Ok(pins) => {
            checks.push(Check::ok(id, title, "links are pinned in /sys/fs/bpf/portcullis"));
            Some(pins)
        }
        Err(why) => {
            let found = format!("they end with it: {why}");
            checks.push(Check::bad(State::Warning, id, title, found, mend));
            None
        }
    }
}

/// Tells the gates how overlay filesystems are laid out, if there can be any by now.
fn find_overlay(gates: &mut Gates) -> Check {
    let (id, title) = ("overlay", "files on overlay filesystems can be identified");
    let found = overlay::layout().map_err(|error| error.to_string()).and_then(|layout| {
        layout
            .map(|layout| gates.set_overlay_layout(layout).map_err(|error| error.to_string()))
            .transpose()
    });
    match found {
        Ok(Some(())) => Check::ok(id, title, "their layers are known"),
        Ok(None) => Check::ok(id, title, "there are none yet"),
        Err(error) => Check::bad(
            State::Warning,
            id,
            title,
            format!("{error}: they are refused"),
            "report it with the kernel's version and configuration",
        ),
    }
}

/// Runs the self-test; a gate that is not called is an error.
fn prove(
    gates: &mut Gates,
    ring: &mut aya::maps::RingBuf<aya::maps::MapData>,
) -> Result<selftest::SelfTest, RunError> {
    let test = selftest::run(gates, ring, Path::new(lock::RUNTIME))?;
    match first_failure(&test.checks) {
        Some(failure) => Err(RunError::Kernel(failure.clone())),
        None => Ok(test),
    }
}
