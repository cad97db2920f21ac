//! Who is there, what the policy says about them, and seeing to it.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use portcullis_common::Mode;

use super::{
    UsbError,
    device::{Device, Folder, present},
    hold::{Hold, Places, patiently},
    rules::{Action, Rules, TOO_MANY, Verdict, decide},
    seen::{Actor, News},
    storage::make_read_only,
};

/// Where the kernel shows disks.
const DISKS: &str = "/sys/block";

/// What became of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Drivers may have it.
    Allowed,
    /// It is there, and drivers may not have it.
    Held,
    /// It was thrown off the bus.
    Rejected,
    /// Audit mode: drivers have it; it would be held.
    WouldHold,
    /// Audit mode: drivers have it; it would be thrown off the bus.
    WouldReject,
    /// It was unplugged, or came anew.
    Detached,
    /// The kernel would not do what was decided.
    Failed,
    /// It came and went before anybody looked; drivers had it only if it was let in already.
    Passed,
    /// Somebody let drivers have it.
    Authorized,
    /// Somebody took it away from drivers.
    Deauthorized,
    /// Somebody chose a configuration.
    Configured,
    /// Somebody took its configuration away.
    Unconfigured,
}

impl State {
    /// Whether it tells what somebody else did to a device, and not what became of it.
    #[must_use]
    pub fn is_by_others(self) -> bool {
        use State::{Authorized, Configured, Deauthorized, Unconfigured};
        matches!(self, Authorized | Deauthorized | Configured | Unconfigured)
    }

    /// The word for it in events and output.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Held => "held",
            Self::Rejected => "rejected",
            Self::WouldHold => "would-hold",
            Self::WouldReject => "would-reject",
            Self::Detached => "detached",
            Self::Failed => "failed",
            Self::Passed => "came-and-went",
            Self::Authorized => "authorized",
            Self::Deauthorized => "deauthorized",
            Self::Configured => "configured",
            Self::Unconfigured => "unconfigured",
        }
    }
}

/// A device that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it is.
    pub device: Device,
    /// What the policy says.
    pub verdict: Verdict,
    /// What became of it.
    pub state: State,
    /// Somebody let it in until it is unplugged.
    pub once: bool,
    /// What the kernel said, if it would not do what was decided.
    pub error: Option<String>,
    /// Who changed something, if it was told by whom.
    pub by: Option<Actor>,
    /// The configuration that it has, or had last.
    configured: Option<String>,
    /// Under which rules it was judged, counted by the keeper.
    generation: u64,
    /// In which mode.
    mode: Mode,
}

/// Judges devices, and has the kernel do what was decided.
pub struct Keeper {
    hold: Hold,
    rules: Arc<Rules>,
    generation: u64,
    known: BTreeMap<String, Known>,
    /// What the kernel said, if devices that come are not held as they should be.
    trouble: Option<String>,
}

impl Keeper {
    /// Takes over from an agent before this one, if there was one; nothing is changed yet.
    #[must_use]
    pub fn new(places: Places, rules: Arc<Rules>) -> Self {
        let (known, hold) = (BTreeMap::new(), Hold::new(places));
        Self { hold, rules, generation: 1, known, trouble: None }
    }

    /// Judges by other rules at the next look.
    pub fn judge_by(&mut self, rules: Arc<Rules>) {
        if self.rules != rules {
            self.rules = rules;
            self.generation += 1;
        }
    }

    /// By which rules is judged.
    #[must_use]
    pub fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    /// Every device that is there, as of the last look.
    pub fn known(&self) -> impl Iterator<Item = &Known> {
        self.known.values()
    }

    /// What keeps devices that come from being held, if anything does.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether the kernel holds devices from the beginning, before any agent runs.
    #[must_use]
    pub fn holds_early(&self) -> bool {
        self.hold.kernel_holds()
    }

    /// Looks who is there, judges who is new, and returns what has changed, those that went first.
    pub fn look(&mut self, mode: Mode) -> Vec<Known> {
        let switched = match mode {
            Mode::Enforce => self.hold.hold().map(drop),
            Mode::Audit => self.hold.release(),
        };
        self.trouble = switched.err().map(|error| error.to_string());
        let devices = self.hold.places().devices.clone();
        let ports = present(&devices).ports;
        let mut changed = Vec::new();
        self.known.retain(|port, known| {
            let stays = ports.contains(port);
            if !stays {
                changed.push(detached(known));
            }
            stays
        });
        for port in ports {
            // Whoever goes meanwhile is seen to be gone at the next look.
            let Ok(folder) = Folder::open(&devices, &port) else { continue };
            if self.is_settled(&port, &folder, mode) {
                continue;
            }
            let Ok(device) = folder.read() else { continue };
            let before = self.known.remove(&port);
            let before = match before {
                Some(known) if known.device.number != device.number => {
                    changed.push(detached(&known));
                    None
                }
                before => before,
            };
            let judged = self.judge(&folder, device, before.as_ref(), mode);
            let is_news = before.is_none_or(|before| {
                (before.state, before.verdict.reason, &before.error)
                    != (judged.state, judged.verdict.reason, &judged.error)
                    || before.configured != judged.configured && before.configured.is_some()
                    || before.device.authorized != judged.device.authorized
            });
            if is_news {
                changed.push(judged.clone());
            }
            self.known.insert(port, judged);
        }
        changed
    }

    /// Keeps disks from writes that the policy lets in to be read only. They come a while after their
    /// device was let in.
    pub fn protect_disks(&self) {
        for known in self.known.values() {
            let rule = known.verdict.rule.and_then(|rule| self.rules.rules.get(rule));
            let is_read_only = rule.is_some_and(|rule| rule.read_only);
            if known.mode == Mode::Enforce && known.state == State::Allowed && is_read_only {
                let done = make_read_only(Path::new(DISKS), &known.device.port);
                if let Err(error) = done {
                    tracing::error!("{error}");
                }
            }
        }
    }

    /// Lets a device in until it is unplugged, whatever the policy says. None if there is none.
    pub fn allow_once(&mut self, port: &str, mode: Mode) -> Option<Known> {
        let known = self.known.get_mut(port)?;
        known.once = true;
        // So that it is not settled.
        known.generation = 0;
        let changed = self.look(mode);
        changed
            .into_iter()
            .rfind(|known| known.device.port == port)
            .or_else(|| self.known.get(port).cloned())
    }

    /// Gives back everything as it was found.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn release(&mut self) -> Result<(), UsbError> {
        self.hold.release()
    }

    /// Whether nothing has changed about the device at this port since it was judged.
    fn is_settled(&self, port: &str, folder: &Folder, mode: Mode) -> bool {
        let Some(known) = self.known.get(port) else { return false };
        let same = |name, value: &str| folder.text(name).is_ok_and(|now| now == value);
        let number = known.device.number.to_string();
        let configuration = known.device.configuration.as_deref().unwrap_or_default();
        known.generation == self.generation
            && known.mode == mode
            && same(c"devnum", &number)
            && same(c"authorized", if known.device.authorized { "1" } else { "0" })
            && same(c"bConfigurationValue", configuration)
            // Another one may have gone, so that there is room for it.
            && (known.verdict.reason != TOO_MANY || self.decide(&known.device) == known.verdict)
    }

    fn judge(
        &self,
        folder: &Folder,
        mut device: Device,
        before: Option<&Known>,
        mode: Mode,
    ) -> Known {
        let mut verdict = self.decide(&device);
        let once = before.is_some_and(|before| before.once);
        if once {
            verdict = Verdict { action: Action::Allow, reason: "allowed-once", rule: None };
        }
        let (mut state, done) = match (mode, verdict.action) {
            (Mode::Enforce, Action::Allow) => {
                (State::Allowed, authorize(folder, &mut device, true))
            }
            (Mode::Enforce, Action::Hold) => (State::Held, authorize(folder, &mut device, false)),
            (Mode::Enforce, Action::Reject) => {
                let held = authorize(folder, &mut device, false);
                (State::Rejected, held.and_then(|()| folder.write(c"remove", "1")))
            }
            (Mode::Audit, action) => {
                let state = match action {
                    Action::Allow => State::Allowed,
                    Action::Hold => State::WouldHold,
                    Action::Reject => State::WouldReject,
                };
                // The kernel was told to hold devices, so that an agent can let them in. Once: who
                // holds them after that has other reasons.
                let is_ours = before.is_none_or(|before| before.mode != mode);
                let done = if is_ours && self.hold.kernel_holds() {
                    authorize(folder, &mut device, true)
                } else {
                    Ok(())
                };
                (state, done)
            }
        };
        let error = done.err().map(|error| error.to_string());
        if error.is_some() {
            state = State::Failed;
        }
        // What drivers have now, so that this is not taken for a change by others.
        if let Ok(configuration) = folder.text(c"bConfigurationValue") {
            device.configuration = Some(configuration).filter(|value| !value.is_empty());
        }
        // One that is unplugged loses its configuration before it goes, and so does one that somebody
        // takes it from, which the kernel programs tell: no verdict changes for that.
        let had = || before.and_then(|before| before.configured.clone());
        let configured = device.configuration.clone().or_else(had);
        let (by, generation) = (None, self.generation);
        Known { device, verdict, state, once, error, by, configured, generation, mode }
    }

    /// What is to be told of what the kernel saw, with what the policy says about the device.
    #[must_use]
    pub fn judge_seen(&self, news: News, mode: Mode) -> Known {
        let News { state, mut device, by } = news;
        let known = self.known.get(&device.port);
        let known = known.filter(|known| known.device.number == device.number);
        let verdict = match known {
            Some(known) => {
                device.connect = known.device.connect;
                known.verdict
            }
            None => self.decide(&device),
        };
        let (once, error, generation) = (false, None, self.generation);
        let configured = device.configuration.clone();
        Known { device, verdict, state, once, error, by, configured, generation, mode }
    }

    fn decide(&self, device: &Device) -> Verdict {
        let in_use = |rule| {
            let lets_in = |known: &&Known| {
                known.generation == self.generation
                    && known.verdict.action == Action::Allow
                    && known.verdict.rule == Some(rule)
            };
            self.known.values().filter(lets_in).count()
        };
        decide(device, &self.rules, in_use)
    }
}

fn authorize(folder: &Folder, device: &mut Device, allow: bool) -> Result<(), UsbError> {
    if device.authorized != allow {
        patiently(|| folder.write(c"authorized", if allow { "1" } else { "0" }))?;
        device.authorized = allow;
    }
    Ok(())
}

fn detached(known: &Known) -> Known {
    Known { state: State::Detached, ..known.clone() }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use super::*;
    use crate::usb::{
        hold::tests::Machine,
        rules::{Order, Rule},
    };

    /// A device as it was judged.
    pub fn known(device: Device, verdict: Verdict, state: State) -> Known {
        let (once, error, generation, mode) = (false, None, 1, Mode::Enforce);
        let configured = device.configuration.clone();
        Known { device, verdict, state, once, error, by: None, configured, generation, mode }
    }

    #[test]
    fn who_is_one_too_many_comes_in_when_another_goes() {
        let machine = Machine::new("0\n");
        for port in ["1-1", "1-2", "1-3"] {
            machine.device(port, "0");
        }
        let rule = Rule { id: Some((1, None)), at_most: Some(1), ..Rule::new(Action::Allow, 1) };
        let rules = Rules { default: Action::Hold, order: Order::First, rules: vec![rule] };
        let mut keeper = Keeper::new(machine.places(), Arc::new(rules));
        let mut look = || -> Vec<(String, State)> {
            let news = keeper.look(Mode::Enforce).into_iter();
            news.map(|known| (known.device.port, known.state)).collect()
        };
        let is = |port: &str, state| (port.to_owned(), state);
        let held = State::Held;
        assert_eq!(look(), [is("1-1", State::Allowed), is("1-2", held), is("1-3", held)]);
        assert_eq!(look(), []);
        fs::remove_dir_all(machine.places().devices.join("1-1")).expect("unplugged");
        assert_eq!(look(), [is("1-1", State::Detached), is("1-2", State::Allowed)]);
        assert_eq!(look(), []);
    }

    #[test]
    fn a_device_that_loses_its_configuration_is_no_news_and_another_one_is() {
        let machine = Machine::new("-1\n");
        machine.device("1-1", "1");
        let configuration = machine.places().devices.join("1-1/bConfigurationValue");
        let choose = |value: &str| fs::write(&configuration, value).expect("written");
        let rules = Rules { default: Action::Hold, order: Order::First, rules: vec![] };
        let mut keeper = Keeper::new(machine.places(), Arc::new(rules));
        let mut news = || keeper.look(Mode::Audit).len();
        choose("\n");
        assert_eq!(news(), 1);
        choose("1\n");
        assert_eq!(news(), 0, "the kernel has chosen its first");
        choose("\n");
        assert_eq!(news(), 0, "it is on its way out, or somebody took it away");
        choose("1\n");
        assert_eq!(news(), 0, "the same again");
        choose("2\n");
        assert_eq!(news(), 1);
    }
}
