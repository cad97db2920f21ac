//! The agent's part in what becomes of USB devices.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use portcullis_common::{Counter, Gate, Mode};
use tokio::io::{Interest, unix::AsyncFd};

use super::Agent;
use crate::{
    control::{
        Refusal, UsbAnswer, UsbStatus,
        server::{Answer, json},
    },
    event::{Body, usb::UsbChange},
    kernel::{
        check::{Check, State},
        usb_seen::UsbSeen,
    },
    run::backend::Backend,
    usb::{
        hold::Places,
        keeper::{self, Keeper, Known},
        preflight,
        rules::Rules,
        seen::{Ledger, Seen, boot_ns},
        storm::{Calm, Untold},
        uevents::{Told, Uevents},
    },
};

const HELD: &str = "usb";
const HELD_TITLE: &str = "USB devices are held until the policy lets them in";
const GUARD: &str = "usb-guard";
const GUARD_TITLE: &str = "nobody but the agent lets USB devices in";
const SEEN: &str = "usb-seen";
const SEEN_TITLE: &str = "USB devices are seen in the kernel as they come and go";
const EARLY: &str = "usb-early";
const EARLY_TITLE: &str = "USB devices are held before the agent starts";

/// What watches over USB devices, if the policy says anything about them.
pub(super) struct Usb {
    keeper: Keeper,
    /// Where the kernel tells that devices come and go.
    uevents: AsyncFd<Uevents>,
    /// What is told of a storm.
    calm: Calm,
    /// What the kernel has told since the beginning.
    counted: Told,
    /// The programs that see every device in the kernel itself, or why there are none.
    seen: Result<UsbSeen, String>,
    /// What they have told and a look has found.
    ledger: Ledger,
}

/// Records that are taken from the ring before the agent does something else; it holds fewer.
const RECORDS: usize = 1024;

impl Usb {
    /// Looks who is there, and takes what the kernel programs have told meanwhile.
    fn look(&mut self, mode: Mode) -> Vec<Known> {
        let looked_at = boot_ns();
        let mut changed = self.keeper.look(mode);
        let Ok(seen) = &mut self.seen else { return changed };
        if let Err(error) = seen.find_layout() {
            self.seen = Err(error.to_string());
            return changed;
        }
        let mut told = Vec::new();
        while told.len() < RECORDS
            && let Some(item) = seen.ring.next()
        {
            told.extend(Seen::decode(&item));
        }
        let now = Instant::now();
        changed.retain(|known| !self.ledger.has_told(known, now));
        let news = self.ledger.take(&changed, looked_at, told, std::process::id(), now);
        changed.extend(news.into_iter().map(|news| self.keeper.judge_seen(news, mode)));
        changed
    }
}

/// Waits until the kernel has told of devices or a storm is to be told, for ever if nobody asks.
pub(super) async fn told(usb: &mut Option<Usb>) -> std::io::Result<Told> {
    let Some(usb) = usb else { return std::future::pending().await };
    let due = usb.calm.due_at().map(|at| at.saturating_duration_since(Instant::now()));
    let mut ready = tokio::select! {
        ready = usb.uevents.readable_mut() => ready?,
        () = tokio::time::sleep(due.unwrap_or(Duration::MAX)), if due.is_some() => {
            return Ok(Told::default());
        }
    };
    let (told, more) = ready.get_inner().read()?;
    if !more {
        ready.clear_ready();
    }
    usb.counted.attached += told.attached;
    usb.counted.detached += told.detached;
    usb.counted.overruns += told.overruns;
    Ok(told)
}

impl Agent {
    /// Begins to watch over USB devices, goes on by other rules, or leaves them alone from now on.
    pub(super) fn judge_usb_by(&mut self, rules: Option<&Arc<Rules>>) -> std::io::Result<()> {
        match (rules, &mut self.usb) {
            (Some(rules), Some(usb)) => usb.keeper.judge_by(Arc::clone(rules)),
            (Some(rules), None) => {
                // SAFETY: the socket owns its descriptor and gives the same one at every call.
                let uevents = unsafe {
                    AsyncFd::register_with_interest(Uevents::listen()?, Interest::READABLE)
                }?;
                let keeper = Keeper::new(Places::default(), Arc::clone(rules));
                let seen = match &mut self.gates {
                    Backend::BpfLsm(gates) => gates.see_usb(),
                    Backend::Fanotify(_) => Err("this needs the kernel's own gates".into()),
                };
                let (calm, counted) = (Calm::default(), Told::default());
                let ledger = Ledger::default();
                self.usb = Some(Usb { keeper, uevents, calm, counted, seen, ledger });
            }
            (None, _) => {
                self.leave_usb_alone();
                self.take_checks(vec![Check::ok(HELD, HELD_TITLE, NOT_ASKED)]);
                return Ok(());
            }
        }
        self.look_at_usb();
        Ok(())
    }

    /// Gives USB back as it was found.
    pub(super) fn leave_usb_alone(&mut self) {
        self.tell_usb_rest();
        if let Some(mut usb) = self.usb.take()
            && let Err(error) = usb.keeper.release()
        {
            tracing::error!("USB is not as it was found: {error}");
        }
    }

    /// Looks who is there, and tells what has changed.
    pub(super) fn look_at_usb(&mut self) {
        let mode = self.mode();
        let Some(usb) = &mut self.usb else { return };
        let changed = usb.look(mode);
        usb.keeper.protect_disks();
        self.tell_usb(&changed);
        let checks = self.usb_checks();
        self.take_checks(checks);
    }

    fn tell_usb(&mut self, changed: &[Known]) {
        let Some(usb) = &mut self.usb else { return };
        let rules = Arc::clone(usb.keeper.rules());
        let now = Instant::now();
        let told: Vec<_> = changed.iter().filter(|known| usb.calm.tells(known, now)).collect();
        for known in told {
            let change = UsbChange::of(known, &rules, &self.view().id);
            self.recorder.record(Body::Usb(Box::new(change)));
        }
    }

    /// Tells of storms whose span is over.
    pub(super) fn tell_usb_storms(&mut self) {
        let due = self.usb.as_mut().map(|usb| usb.calm.due(Instant::now()));
        self.tell_counted(due.unwrap_or_default());
    }

    /// Tells of storms that are not over, as the agent will not see their end.
    pub(super) fn tell_usb_rest(&mut self) {
        // What came and went meanwhile.
        let mode = self.mode();
        let last = self.usb.as_mut().map(|usb| usb.look(mode));
        self.tell_usb(&last.unwrap_or_default());
        let rest = self.usb.as_mut().map(|usb| usb.calm.rest());
        self.tell_counted(rest.unwrap_or_default());
    }

    fn tell_counted(&mut self, counted: Vec<(Known, Untold)>) {
        for (known, untold) in counted {
            let Some(usb) = &self.usb else { return };
            let change = UsbChange::of(&known, usb.keeper.rules(), &self.view().id);
            let change = UsbChange { untold: Some(untold), ..change };
            self.recorder.record(Body::Usb(Box::new(change)));
        }
    }

    fn usb_checks(&self) -> Vec<Check> {
        let Some(usb) = &self.usb else { return Vec::new() };
        if self.mode() == Mode::Audit {
            let ok = |id, title| Check::ok(id, title, "the mode is audit: it is only reported");
            let held = [ok(HELD, HELD_TITLE), ok(GUARD, GUARD_TITLE), ok(EARLY, EARLY_TITLE)];
            return held.into_iter().chain([seen_check(usb)]).collect();
        }
        let held = match usb.keeper.trouble() {
            None => Check::ok(HELD, HELD_TITLE, "the root hubs of all controllers hold them"),
            Some(trouble) => {
                let mend = "report it with the kernel's version and configuration";
                Check::failed(HELD, HELD_TITLE, trouble, mend)
            }
        };
        let early = if usb.keeper.holds_early() {
            Check::ok(EARLY, EARLY_TITLE, "by the kernel's command line")
        } else {
            Check::bad(
                State::Warning,
                EARLY,
                EARLY_TITLE,
                "what is plugged in when the machine starts comes alive until the agent judges it",
                "add usbcore.authorized_default=0 to the kernel's command line",
            )
        };
        vec![held, self.usb_guard(), early, seen_check(usb)]
    }

    /// Whether the gate stands. It is asked whenever the agent itself lets a device in.
    fn usb_guard(&self) -> Check {
        let found = match &self.gates {
            Backend::Fanotify(_) => "this needs the kernel's own gates",
            Backend::BpfLsm(gates) if gates.stands(Gate::Usb) => {
                return Check::ok(GUARD, GUARD_TITLE, "the gate stands");
            }
            Backend::BpfLsm(gates) => gates.usb_refused().unwrap_or("this kernel has no such gate"),
        };
        Check::bad(
            State::Warning,
            GUARD,
            GUARD_TITLE,
            format!("whoever is root can let devices in: {found}"),
            "use Linux 6.1 or later, with BPF among its security modules",
        )
    }

    /// Why enforcing would take devices away that are in use, if it would.
    pub(super) fn usb_refusal(&self) -> Option<String> {
        let usb = self.usb.as_ref().filter(|_| self.mode() == Mode::Audit)?;
        preflight::refusal_by(usb.keeper.rules())
    }

    /// What the status page says.
    pub(super) fn usb_status(&self) -> Option<UsbStatus> {
        let usb = self.usb.as_ref()?;
        let count = |states: &[keeper::State]| {
            usb.keeper.known().filter(|known| states.contains(&known.state)).count()
        };
        use keeper::State::{Allowed, Failed, Held, Rejected, WouldHold, WouldReject};
        let seen = usb.seen.as_ref().ok().filter(|seen| seen.is_known());
        let seen = seen.and_then(|seen| seen.counts().ok());
        let (attached, detached) = match seen {
            Some(seen) => (seen.attached, seen.detached),
            None => (usb.counted.attached, usb.counted.detached),
        };
        Some(UsbStatus {
            rules: usb.keeper.rules().rules.len(),
            allowed: count(&[Allowed]),
            held: count(&[Held, Rejected, Failed]),
            would_hold: count(&[WouldHold, WouldReject]),
            refused: self.counter(Gate::Usb, Counter::Denied).unwrap_or_default(),
            attached,
            detached,
            overruns: usb.counted.overruns,
            lost_attached: seen.map(|seen| seen.lost_attached),
            lost: seen.map(|seen| seen.lost),
        })
    }

    /// Every device, for `portcullis usb`.
    pub(super) fn usb_devices(&mut self) -> Answer {
        self.look_at_usb();
        let (mode, policy) = (self.mode().word().to_owned(), self.view().id.clone());
        let Some(usb) = &self.usb else {
            return json(&UsbAnswer { mode, policy, judged: false, devices: Vec::new() });
        };
        let rules = usb.keeper.rules();
        let change = |known: &Known| UsbChange::of(known, rules, &policy);
        let devices = usb.keeper.known().map(change).collect();
        json(&UsbAnswer { mode, policy: policy.clone(), judged: true, devices })
    }

    /// Lets a device in until it is unplugged.
    pub(super) fn allow_usb_once(&mut self, port: &str) -> Answer {
        let refuse = |code, message: String| Answer::Refused(Refusal { code, message });
        if let Err(refusal) = self.may_lift() {
            return Answer::Refused(refusal);
        }
        let mode = self.mode();
        let Some(usb) = &mut self.usb else {
            return refuse(1, "the policy says nothing about USB, so that nothing is held".into());
        };
        // One that came just now.
        let new = usb.look(mode);
        self.tell_usb(&new);
        let Some(usb) = &mut self.usb else { return refuse(3, "the agent is ending".into()) };
        let Some(known) = usb.keeper.allow_once(port, mode) else {
            let message = format!(
                "no USB device at {}; `portcullis usb list` shows those that are there",
                port.escape_debug()
            );
            return refuse(2, message);
        };
        self.tell_usb(std::slice::from_ref(&known));
        let Some(usb) = &self.usb else { return refuse(3, "the agent is ending".into()) };
        json(&UsbChange::of(&known, usb.keeper.rules(), &self.view().id))
    }
}

/// Whether the kernel programs see devices.
fn seen_check(usb: &Usb) -> Check {
    match &usb.seen {
        Ok(seen) if seen.is_known() => Check::ok(SEEN, SEEN_TITLE, "by the driver core"),
        Ok(_) => Check::ok(SEEN, SEEN_TITLE, "the kernel has no USB until usbcore is loaded"),
        Err(why) => Check::bad(
            State::Warning,
            SEEN,
            SEEN_TITLE,
            format!("{why}; one that goes before the agent has looked is counted and not told"),
            "use a kernel with type information (BTF) for itself and its modules, without \
             lockdown=confidentiality, and start the agent again",
        ),
    }
}

const NOT_ASKED: &str = "the policy says nothing about USB, and it is left alone";
