//! The agent's loop: reads the ring, answers requests, watches over the gates.

mod break_glass;
mod fleet;
pub(crate) mod history;
mod metrics;
mod push;
pub(crate) mod reload;
mod requests;
mod shield;
mod switch;
mod usb;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use jiff::Timestamp;
use portcullis_common::{Choices, Counter, Gate, Mode};
use tokio::{
    io::{Interest, unix::AsyncFd},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};

use history::Keeping;
use push::Deployment;

use crate::{
    api,
    control::{
        SOCKET,
        server::{self, Command},
    },
    deployment::AtStart,
    event::{
        Body, SignatureRejected,
        decode::GateEvent,
        enrich::{Enricher, PolicyView, wall_time},
    },
    kernel::{check::Check, facts, gates::GatesError, memory_limit, mounts, pins::Pins, selftest},
    policy::{Policy, bundle::DEVICE_FILE, trust::describe},
    run::{
        RunError, Started, appraiser::Appraiser, backend::Backend, catalogs, health::Health,
        reappraise, recorder::Recorder, scripts::Scripts, service::ServiceManager,
        signatures::Signatures, system, warden::Watch,
    },
};

/// How often the gates are proved anew. The proof is one mapping of a file of a few bytes.
const PROOF_INTERVAL: Duration = Duration::from_secs(60);

/// Events that are taken from the ring before requests get their turn.
const BATCH: usize = 256;

/// How long the last answer may take to reach its reader.
const FAREWELL: Duration = Duration::from_millis(50);

/// Runs until a signal or a request ends it.
pub(super) async fn serve(started: Started) -> Result<(), RunError> {
    let Started {
        gates,
        ring,
        warden,
        policy,
        base,
        given,
        told,
        deployed: AtStart { store, reverted, passed_over, .. },
        only_audits,
        places,
        found,
        pins,
        checks,
        test,
        recorder,
        metrics,
        reappraise,
        appraiser,
        signatures,
        rejected: (tell_rejected, mut rejected),
        _lock,
    } = started;
    let mut ring = ring.map(watch).transpose().map_err(system("watching the ring of events"))?;
    let recorders = (recorder, tell_rejected);
    let deployment = Deployment::new(store, given, told, &policy);
    let mut agent = Agent::new(gates, &policy, pins, recorders, (deployment, places));
    agent.appraiser = appraiser;
    agent.signatures = signatures;
    let (tell, mut reappraised) = mpsc::channel(32);
    let (mut log, mut _reappraiser) = (None, None);
    if let Backend::BpfLsm(gates) = &mut agent.gates {
        log = Some(watch(gates.take_log()?).map_err(system("watching the programs' log"))?);
        _reappraiser = reappraise::start(reappraise, gates.records()?, tell.clone())
            .map_err(system("starting the re-appraisal"))?;
        if gates.scripts_need_appraisal() {
            let started = Scripts::start(&policy);
            agent.scripts = Some(started.map_err(system("starting the appraisal of scripts"))?);
        }
    }
    let mut answered = watch_answers(&mut agent, warden);
    let (prepare, mut prepared) = mpsc::channel(1);
    agent.watch_catalogs(&Arc::new(base));
    let usb_rules = policy.usb.clone();
    // The rules are in the kernel now; a million of them would be 40 MB here.
    drop(policy);
    super::memory::release();

    let (sender, mut commands) = mpsc::channel(32);
    agent.commands = Some(sender.clone());
    let (tell_api, mut told_by_api) = mpsc::channel(32);
    let bundles_on_their_way = agent.places.bundles();
    let device_file = Path::new(DEVICE_FILE);
    let (_local, local_check) = api::local::start(
        device_file,
        Path::new(api::local::SOCKET),
        bundles_on_their_way.clone(),
        sender.clone(),
        tell_api.clone(),
    );
    let (_network, network_check) = api::network::start(
        device_file,
        Path::new(api::network::SOCKET),
        bundles_on_their_way,
        sender.clone(),
        tell_api,
    );
    // Before anybody sees that the agent is there: a signal that comes while its handler is being put in
    // place is lost (signal-hook-registry has nothing to call yet).
    let on = |kind| signal(kind).map_err(system("watching for signals"));
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut hangup = on(SignalKind::hangup())?;
    let mut server = server::listen(Path::new(SOCKET), sender).map_err(|source| {
        RunError::System { what: "listening at /run/portcullis/agent.sock", source }
    })?;
    let mut mounts = watch_mounts().map_err(system("watching for filesystems that are mounted"))?;
    let mut proof = interval(PROOF_INTERVAL);
    proof.set_missed_tick_behavior(MissedTickBehavior::Delay);
    proof.reset();
    let mut numbers = interval(metrics::EVERY);
    numbers.set_missed_tick_behavior(MissedTickBehavior::Delay);

    agent.started();
    agent.take_found(found);
    agent.take_checks(checks);
    agent.take_checks(network_check.into_iter().chain(local_check).collect());
    agent.tell_reverted(reverted.as_ref());
    agent.tell_passed_over(passed_over);
    agent.tell_set_back();
    agent.check_history();
    agent.check_records();
    if agent.mode() == Mode::Enforce {
        agent.enforcement_begins();
    } else if !only_audits {
        agent.enforcement_ends();
    }
    agent.check_appraiser();
    agent.after_test(&test);
    let watched = agent.judge_usb_by(usb_rules.as_ref());
    watched.map_err(system("listening to the kernel for USB devices"))?;
    super::memory::release_code();
    let mut manager = ServiceManager::ready(agent.mode().word());

    let cause = loop {
        tokio::select! {
            ready = readable(&mut ring) => {
                let mut ready = ready.map_err(system("reading the ring of events"))?;
                if agent.drain(ready.get_inner_mut(), BATCH) < BATCH {
                    ready.clear_ready();
                    agent.count_lost()?;
                }
            }
            ready = readable(&mut log) => {
                let mut ready = ready.map_err(system("reading the programs' log"))?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
            Some(event) = next(&mut answered) => {
                agent.gate_event(event);
                agent.count_lost()?;
            }
            Some(rejected) = rejected.recv() => {
                agent.recorder.record(Body::Signature(Box::new(rejected)));
            }
            Some(command) = commands.recv() => {
                if let Some(cause) = agent.command(command) {
                    // Lets the answer out before everything ends.
                    tokio::time::sleep(FAREWELL).await;
                    break cause;
                }
            }
            Some(told) = reappraised.recv() => agent.reappraised(told),
            () = agent.recorder.due() => agent.recorder.tick(),
            Some(told) = told_by_api.recv() => agent.told_by_api(told),
            changed = mounts.ready_mut(Interest::PRIORITY) => {
                changed.map_err(system("watching for filesystems that are mounted"))?.clear_ready();
                agent.note_mounts();
                agent.refresh_devices()?;
            }
            told = usb::told(&mut agent.usb) => {
                let told = told.map_err(system("listening to the kernel for USB devices"))?;
                if told.usb || told.disk {
                    agent.look_at_usb();
                }
                agent.tell_usb_storms();
            }
            changed = changed(&mut agent.catalogs) => {
                changed.map_err(system("watching the folder of catalogs"))?;
                agent.read_catalogs(prepare.clone());
            }
            Some(done) = prepared.recv() => agent.take_prepared(done),
            () = agent.deployment.glass_over() => agent.mend_glass(),
            () = agent.deployment.over() => {
                agent.give_up_trial("nobody has confirmed it in time");
            }
            () = manager.wants_to_hear() => manager.beat(),
            _ = proof.tick() => {
                if let Some(catalogs) = &mut agent.catalogs {
                    catalogs.look_again(&agent.found.refused);
                }
                agent.prove(ring.as_mut().map(AsyncFd::get_mut))?;
                agent.keep_history();
            }
            _ = numbers.tick(), if metrics.is_some() => {
                if let Some(file) = &metrics {
                    agent.write_metrics(file);
                }
            }
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            // The terminal was closed, or somebody moved the event file away.
            _ = hangup.recv() => agent.recorder.sinks().iter().for_each(super::sink::Sink::reopen),
        }
    };
    manager.ends();
    if let Some(ring) = &mut ring {
        while agent.drain(ring.get_mut(), BATCH) == BATCH {}
    }
    if agent.stopped(cause) {
        server.stays();
    }
    agent.history.end();
    Ok(())
}

/// Waits for a ring buffer without polling it.
fn watch<T: AsRawFd + AsFd>(ring: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: aya's ring owns its descriptor, gives the same one at every call (`AsFd` borrows it
    // from the object) and closes it when it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}

/// Waits for a ring buffer, for ever if there is none.
async fn readable<T: AsRawFd>(
    ring: &mut Option<AsyncFd<T>>,
) -> io::Result<tokio::io::unix::AsyncFdReadyMutGuard<'_, T>> {
    match ring {
        Some(ring) => ring.readable_mut().await,
        None => std::future::pending().await,
    }
}

/// Waits for what another thread tells, for ever if there is none.
async fn next<T>(told: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match told {
        Some(told) => told.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits until the folder of catalogs has changed, for ever if there is none.
async fn changed(catalogs: &mut Option<catalogs::Watch>) -> io::Result<()> {
    match catalogs {
        Some(catalogs) => catalogs.changed().await,
        None => std::future::pending().await,
    }
}

/// Gives the agent what watches for fanotify, and returns where its answers come from.
fn watch_answers(
    agent: &mut Agent,
    warden: Option<(Watch, mpsc::Receiver<GateEvent>)>,
) -> Option<mpsc::Receiver<GateEvent>> {
    let (watch, answered) = warden?;
    agent.watch = Some(watch);
    Some(answered)
}

/// Is ready when a filesystem was mounted or unmounted.
fn watch_mounts() -> io::Result<AsyncFd<std::fs::File>> {
    // SAFETY: a file owns its descriptor and gives the same one at every call.
    Ok(unsafe { AsyncFd::register_with_interest(mounts::changes()?, Interest::PRIORITY) }?)
}

struct Agent {
    gates: Backend,
    /// What asks the warden, if there is one.
    watch: Option<Watch>,
    pins: Option<Pins>,
    /// The policy in force, and the one before it, under which the latest events may have been
    /// decided. Never empty.
    views: Vec<PolicyView>,
    /// Who may vouch for artifacts, in words.
    signers: Vec<String>,
    /// What the folder of catalogs holds.
    found: catalogs::Found,
    /// Bundles, and the policy file without one.
    deployment: Deployment,
    /// What has run.
    history: Keeping,
    /// Where catalogs are.
    places: catalogs::Places,
    /// What watches them, if the policy trusts signers.
    catalogs: Option<catalogs::Watch>,
    /// Whether one is being looked at that a fleet's servers have brought.
    takes_catalog: bool,
    /// Whether the policy trusts what it does not list: verified filesystems, or signed files.
    trusts_more: bool,
    /// Kinds of served filesystem that the policy trusts.
    trusted_filesystems: Vec<u64>,
    digests: usize,
    recorder: Recorder,
    enricher: Enricher,
    /// Who hashes, if the kernel does not.
    appraiser: Option<Appraiser>,
    /// Who looks at files' own signatures, if the policy trusts any.
    signatures: Option<Signatures>,
    /// Where it tells of those that do not count.
    tell_rejected: mpsc::Sender<SignatureRejected>,
    /// What watches over USB devices, if the policy says anything about them.
    usb: Option<usb::Usb>,
    health: Health,
    findings: reappraise::Findings,
    since: Timestamp,
    /// What self-tests have added to the gates' numbers.
    own: BTreeMap<(Gate, Counter), u64>,
    /// Lost events that have been told, by gate.
    lost: BTreeMap<Gate, u64>,
    /// On kernels where the interpreter gate cannot hash.
    scripts: Option<Scripts>,
    /// For what comes back from work in the background.
    commands: Option<mpsc::Sender<Command>>,
    /// Whether a request asked for the gates to be taken down.
    take_down: bool,
}

impl Agent {
    fn new(
        gates: Backend,
        policy: &Policy,
        pins: Option<Pins>,
        (recorder, tell_rejected): (Recorder, mpsc::Sender<SignatureRejected>),
        (deployment, places): (Deployment, catalogs::Places),
    ) -> Self {
        let view = switch::view_of(policy, gates.active().generation());
        Self {
            enricher: Enricher::new(gates.word()),
            watch: None,
            gates,
            pins,
            views: vec![view],
            signers: describe(&policy.trust.trust.signers),
            found: catalogs::Found::default(),
            deployment,
            history: Keeping::start(places.history()),
            places,
            catalogs: None,
            takes_catalog: false,
            trusts_more: switch::trusts_more(policy),
            trusted_filesystems: policy.trusted_filesystems.clone(),
            digests: policy.rules.len(),
            recorder,
            appraiser: None,
            signatures: None,
            tell_rejected,
            usb: None,
            health: Health::default(),
            findings: reappraise::Findings::default(),
            since: Timestamp::now(),
            own: BTreeMap::new(),
            lost: BTreeMap::new(),
            scripts: None,
            commands: None,
            take_down: false,
        }
    }

    /// The policy in force.
    fn view(&self) -> &PolicyView {
        &self.views[0]
    }

    fn mode(&self) -> Mode {
        self.gates.active().mode()
    }

    fn started(&mut self) {
        let body = Body::AgentStarted {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            backend: self.gates.word(),
            mode: self.mode().word(),
            policy: self.view().id.clone(),
            digests: self.digests,
        };
        self.recorder.record(body);
    }

    /// Audit ends with the agent, as nothing is left to report to. Enforcement goes on. Returns whether the
    /// gates stay.
    fn stopped(&mut self, cause: &'static str) -> bool {
        let gates_stay = self.mode() == Mode::Enforce && self.pins.is_some() && !self.take_down;
        self.tell_usb_rest();
        // While the gate still lets the agent do it.
        if !gates_stay {
            self.leave_usb_alone();
        }
        if let Some(pins) = self.pins.as_ref().filter(|_| !gates_stay)
            && let Err(error) = pins.remove()
        {
            tracing::error!("the gates could not be unpinned: {error}");
        }
        self.recorder.record(Body::AgentStopped { cause, gates_stay });
        gates_stay
    }

    /// Takes up to `limit` events from the ring, and returns how many there were.
    fn drain(&mut self, ring: &mut RingBuf<MapData>, limit: usize) -> usize {
        for taken in 0..limit {
            let Some(item) = ring.next() else { return taken };
            match GateEvent::decode(&item) {
                Ok(event) => {
                    // Lets the kernel have the room before anything slow is done.
                    drop(item);
                    self.gate_event(event);
                }
                Err(error) => tracing::error!("{error}"),
            }
        }
        limit
    }

    fn check_appraiser(&mut self) {
        if let Some(watch) = &self.watch {
            let check = watch.check();
            self.take_checks(vec![check]);
        }
        if let Some(appraiser) = &self.appraiser {
            let check = appraiser.check();
            self.take_checks(vec![check]);
        }
        if let Some(signatures) = &self.signatures {
            let check = signatures.check();
            self.take_checks(vec![check]);
        }
    }

    fn check_records(&mut self) {
        let checks = self.recorder.checks();
        self.take_checks(checks);
    }

    fn gate_event(&mut self, mut event: GateEvent) {
        if let Some(appraiser) = &self.appraiser {
            appraiser.complete(&mut event);
        }
        if let Some(signatures) = &self.signatures {
            signatures.take(&event);
        }
        if let Some(scripts) = &self.scripts {
            if event.gate == Gate::Mapping && event.header.pid == std::process::id() {
                self.own_counts(selftest::counted(&event));
                return;
            }
            scripts.take(&event);
        }
        let decision = self.enricher.decision(&event, &self.views);
        let time = wall_time(event.header.boot_ns);
        self.history.note(time, &decision);
        self.recorder.record_at(time, Body::Decision(Box::new(decision)));
    }

    /// Tells the gates which devices the policy closes now.
    fn note_mounts(&mut self) {
        self.close_mounted_devices();
        self.guard_mounts();
        // Mounting an overlay for the first time loads its module.
        if let Backend::BpfLsm(gates) = &mut self.gates
            && !gates.knows_overlay()
        {
            let check = super::find_overlay(gates);
            self.take_checks(vec![check]);
        }
    }

    /// Tells the gates which devices the policy closes now. What was closed stays so if that cannot be found
    /// out.
    fn close_mounted_devices(&mut self) {
        let choices = self.gates.active().choices();
        if !choices.contains(Choices::MOUNTED_DEVICES_CLOSED) {
            let _ = self.gates.set_mounted_devices(&BTreeSet::new());
            return;
        }
        let (id, title) = ("mounted-devices", "devices that carry filesystems are closed");
        let closed = mounts::closed_devices(choices).map_err(GatesError::Mounts);
        let told = closed.and_then(|closed| {
            self.gates.set_mounted_devices(&closed)?;
            Ok(closed.len())
        });
        let check = match told {
            Ok(count) => Check::ok(id, title, format!("{count} of them")),
            Err(error) => Check::failed(
                id,
                title,
                format!("one that was mounted since may be open: {error}"),
                "give the agent more descriptors and memory; it tries again each minute",
            ),
        };
        self.take_checks(vec![check]);
    }

    fn count_lost(&mut self) -> Result<(), RunError> {
        for gate in Gate::ALL {
            let now = self.gates.counter(*gate, Counter::Lost)?;
            let told = self.lost.insert(*gate, now).unwrap_or_default();
            if now > told {
                self.recorder.record(Body::Lost { gate: gate.word(), count: now - told });
            }
        }
        Ok(())
    }

    fn take_checks(&mut self, checks: Vec<Check>) {
        for Check { id, state, found, mend, .. } in self.health.update(checks) {
            self.recorder.record(Body::Health { check: id, state: state.word(), found, mend });
        }
        self.give_up_harmful_trial();
    }

    /// Takes in how the API is, and who was refused there.
    fn told_by_api(&mut self, told: api::Told) {
        match told {
            api::Told::Check(check) => self.take_checks(vec![check]),
            api::Told::Refused(refused) => self.recorder.record(Body::AccessRefused(refused)),
        }
    }

    /// Looks anew which mounted filesystems are verified against a root hash of the policy.
    fn refresh_devices(&mut self) -> Result<(), RunError> {
        let check = self.gates.refresh_devices()?;
        self.take_checks(check.into_iter().collect());
        Ok(())
    }

    /// Takes in what the pass over what runs has found.
    fn reappraised(&mut self, told: reappraise::Told) {
        let (body, check) = self.findings.take(told);
        if let Some(body) = body {
            self.recorder.record(body);
        }
        self.take_checks(check.into_iter().collect());
    }

    /// Looks whether the gates are still called.
    fn prove(&mut self, ring: Option<&mut RingBuf<MapData>>) -> Result<(), RunError> {
        if let Some(ring) = ring {
            while self.drain(ring, BATCH) == BATCH {}
            if let Backend::BpfLsm(gates) = &self.gates {
                let test = selftest::mapping_again(gates, ring)?;
                self.after_test(&test);
                self.take_checks(test.checks);
                self.take_checks(vec![facts::ftrace(), memory_limit::check()]);
            }
        }
        self.recorder.tick();
        self.check_records();
        self.check_appraiser();
        self.look_at_usb();
        // Other mount namespaces tell nobody.
        self.note_mounts();
        self.refresh_devices()?;
        self.count_lost()
    }

    /// Tells what others did during a self-test, and remembers what the test itself did.
    fn after_test(&mut self, test: &selftest::SelfTest) {
        for event in &test.others {
            self.gate_event(event.clone());
        }
        self.own_counts(test.own.iter().copied());
    }

    fn own_counts(&mut self, counts: impl Iterator<Item = (Gate, Counter, u64)>) {
        for (gate, counter, amount) in counts {
            *self.own.entry((gate, counter)).or_default() += amount;
        }
    }

    /// One of a gate's numbers, without the agent's own tests.
    fn counter(&self, gate: Gate, counter: Counter) -> Option<u64> {
        let own = self.own.get(&(gate, counter)).copied().unwrap_or_default();
        self.gates.counter(gate, counter).ok().map(|all| all.saturating_sub(own))
    }
}
