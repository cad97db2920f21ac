//! What is told of a port at which devices come and go all the time: the first changes, and how many more
//! there were.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use portcullis_common::Digest;
use serde::{Deserialize, Serialize};

use super::keeper::{Known, State};

/// Changes of one port that are told in a [`SPAN`]. Nobody plugs by hand more often than that.
pub const TOLD: u32 = 20;

/// How long changes are only counted after that.
pub const SPAN: Duration = Duration::from_secs(60);

/// Changes that were not told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untold {
    /// Devices that came and were judged, or judged anew.
    pub judged: u64,
    /// Devices that went.
    pub detached: u64,
    /// Changes that others made to one.
    #[serde(default)]
    pub changed: u64,
}

struct Port {
    since: Instant,
    told: u32,
    untold: Untold,
    /// The latest change that was not told.
    latest: Option<Known>,
    /// Which device was let in and told last.
    let_in: Option<Identity>,
}

/// What makes it another device to people.
type Identity = (u16, u16, Option<String>, Digest);

/// Decides what is told. It remembers a port for a [`SPAN`], and the kernel has only so many ports.
#[derive(Default)]
pub struct Calm {
    ports: BTreeMap<String, Port>,
}

impl Calm {
    /// Whether a change is told now; otherwise it is counted. A device that is let in and is another than
    /// the one before, or that the kernel would not hold, is always told: nobody hides it in a storm.
    pub fn tells(&mut self, known: &Known, now: Instant) -> bool {
        let device = &known.device;
        let fresh =
            || Port { since: now, told: 0, untold: Untold::default(), latest: None, let_in: None };
        let port = self.ports.entry(device.port.clone()).or_insert_with(fresh);
        let identity =
            || (device.vendor, device.product, device.serial.clone(), device.descriptors);
        let is_new_inside = known.state == State::Allowed
            && port.let_in.as_ref().is_none_or(|before| *before != identity());
        if is_new_inside {
            port.let_in = Some(identity());
        }
        if port.told < TOLD || is_new_inside || known.state == State::Failed {
            port.told = port.told.saturating_add(1);
            return true;
        }
        match known.state {
            State::Detached => port.untold.detached += 1,
            State::Passed => {
                port.untold.judged += 1;
                port.untold.detached += 1;
            }
            state if state.is_by_others() => port.untold.changed += 1,
            _ => port.untold.judged += 1,
        }
        port.latest = Some(known.clone());
        false
    }

    /// When there is something to be told of changes that were only counted.
    #[must_use]
    pub fn due_at(&self) -> Option<Instant> {
        self.ports.values().map(|port| port.since + SPAN).min()
    }

    /// Forgets ports whose span is over, and returns the latest change of each that was not told, with
    /// how many there were.
    pub fn due(&mut self, now: Instant) -> Vec<(Known, Untold)> {
        let mut due = Vec::new();
        self.ports.retain(|_, port| {
            let is_over = now.saturating_duration_since(port.since) >= SPAN;
            if is_over && let Some(latest) = port.latest.take() {
                due.push((latest, port.untold));
            }
            !is_over
        });
        due
    }

    /// All that is not told yet, as nothing will be told later.
    pub fn rest(&mut self) -> Vec<(Known, Untold)> {
        let ports = std::mem::take(&mut self.ports).into_values();
        ports.filter_map(|port| Some((port.latest?, port.untold))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usb::{
        device::Device,
        keeper::tests::known,
        rules::{Action, Verdict},
    };

    fn change(port: &str, serial: &str, state: State) -> Known {
        let device = Device { port: port.into(), serial: Some(serial.into()), ..Device::default() };
        let verdict = Verdict { action: Action::Hold, reason: "unlisted", rule: None };
        known(device, verdict, state)
    }

    #[test]
    fn a_storm_is_told_by_its_begin_and_its_count() {
        let (mut calm, start) = (Calm::default(), Instant::now());
        let mut told = 0;
        for round in 0..200u64 {
            let now = start + Duration::from_millis(round * 100);
            for state in [State::Held, State::Detached] {
                told += u32::from(calm.tells(&change("1-1", "A", state), now));
            }
        }
        assert_eq!(told, TOLD);
        assert!(calm.tells(&change("1-2", "A", State::Held), start), "another port");
        assert_eq!(calm.due_at(), Some(start + SPAN));
        assert_eq!(calm.due(start + SPAN - Duration::from_millis(1)), []);
        let [(latest, untold)] = &calm.due(start + SPAN)[..] else { panic!("one port") };
        assert_eq!((latest.state, latest.device.port.as_str()), (State::Detached, "1-1"));
        assert_eq!(*untold, Untold { judged: 190, detached: 190, changed: 0 });
        assert_eq!(calm.due_at(), None);
        assert!(calm.tells(&change("1-1", "A", State::Held), start + SPAN));
    }

    #[test]
    fn nobody_who_is_let_in_hides_in_a_storm() {
        let (mut calm, now) = (Calm::default(), Instant::now());
        for _ in 0..=TOLD {
            calm.tells(&change("1-1", "A", State::Held), now);
        }
        assert!(!calm.tells(&change("1-1", "A", State::Held), now));
        assert!(calm.tells(&change("1-1", "B", State::Allowed), now));
        assert!(!calm.tells(&change("1-1", "B", State::Allowed), now), "the same again");
        assert!(calm.tells(&change("1-1", "C", State::Allowed), now));
        assert!(calm.tells(&change("1-1", "A", State::Failed), now));
        let rest = calm.rest();
        assert_eq!((rest.len(), calm.due_at()), (1, None));
    }
}
