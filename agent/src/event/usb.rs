//! What became of a USB device.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{PolicyId, human::Plain};
use crate::{
    artifact::digest,
    usb::{
        device::Device,
        keeper::{Known, State},
        rules::{Action, Rules, rule_for},
        seen::Actor,
        storm::Untold,
    },
};

/// What a device is. All that is said of it is what it says itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsbDevice {
    /// Bus, and ports from hub to hub: `1-2.3`.
    pub port: String,
    /// The kernel's number for the bus.
    pub bus: u32,
    /// The kernel's number on that bus.
    pub number: u32,
    /// Vendor and product: `0781:5581`.
    pub id: String,
    /// What the device calls its maker.
    pub manufacturer: String,
    /// What the device calls itself.
    pub name: String,
    /// Its serial number; none if it has none.
    pub serial: Option<String>,
    /// The device's own class; none if its descriptors cannot be read.
    pub class: Option<String>,
    /// Every kind of interface that it can show.
    pub interfaces: Vec<String>,
    /// What these are for, in words.
    pub kinds: String,
    /// SHA-256 of its descriptors.
    pub descriptors: String,
    /// `internal`, `external`, `unused` or `unknown`.
    pub connect: String,
    /// Millions of bits in a second.
    pub speed: String,
    /// The configuration that is chosen; none while it is held.
    pub configuration: Option<String>,
    /// Whether the kernel lets drivers have it.
    pub authorized: bool,
    /// What is wrong with what it says.
    pub flaw: Option<String>,
}

impl From<&Device> for UsbDevice {
    fn from(device: &Device) -> Self {
        Self {
            port: device.port.clone(),
            bus: device.bus,
            number: device.number,
            id: device.id(),
            manufacturer: device.manufacturer.clone(),
            name: device.name.clone(),
            serial: device.serial.clone(),
            class: device.class.map(|class| class.to_string()),
            interfaces: device.interfaces.iter().map(ToString::to_string).collect(),
            kinds: device.kinds(),
            descriptors: digest::format(&device.descriptors),
            connect: device.connect.word().into(),
            speed: device.speed.clone(),
            configuration: device.configuration.clone(),
            authorized: device.authorized,
            flaw: device.flaw.clone(),
        }
    }
}

/// What became of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsbChange {
    /// `allowed`, `held`, `rejected`, `would-hold`, `would-reject`, `detached` or `failed`; or what the
    /// kernel saw that nobody else would: `came-and-went`, `authorized`, `deauthorized`, `configured` or
    /// `unconfigured`.
    pub state: String,
    /// Why, as a stable word.
    pub reason: String,
    /// The line of the policy file whose rule decided.
    pub line: Option<u32>,
    /// What the kernel said, if it would not do what was decided.
    pub error: Option<String>,
    /// Who did it, if the kernel saw a process do it.
    #[serde(default)]
    pub by: Option<Actor>,
    /// The rule that would let this device in, if it is not let in and one can.
    pub to_allow: Option<String>,
    /// How many changes at the port before this one were only counted, as there were too many; none if all
    /// were told.
    #[serde(default)]
    pub untold: Option<Untold>,
    /// The policy that decided.
    pub policy: PolicyId,
    /// The device.
    pub device: UsbDevice,
}

impl UsbChange {
    /// Says what became of a device under a policy.
    #[must_use]
    pub fn of(known: &Known, rules: &Rules, policy: &PolicyId) -> Self {
        let is_in = matches!(known.state, State::Allowed | State::Detached)
            || known.state.is_by_others()
            || known.state == State::Passed && known.verdict.action == Action::Allow;
        let to_allow = if is_in { None } else { rule_for(&known.device) };
        Self {
            state: known.state.word().into(),
            reason: known.verdict.reason.into(),
            line: known.verdict.rule.and_then(|rule| Some(rules.rules.get(rule)?.line)),
            error: known.error.clone(),
            by: known.by.clone(),
            to_allow,
            untold: None,
            policy: policy.clone(),
            device: (&known.device).into(),
        }
    }

    /// The reason in words.
    #[must_use]
    pub fn why(&self) -> String {
        let line = self.line.map(|line| format!(" (line {line})")).unwrap_or_default();
        match self.reason.as_str() {
            "listed" => format!("the policy lists it{line}"),
            "unlisted" if self.state == "allowed" => {
                "the policy lets in what it does not list".into()
            }
            "unlisted" => "the policy does not list it".into(),
            "denied" => format!("a rule of the policy keeps it out{line}"),
            "too-many" => format!("as many devices are in as the rule allows{line}"),
            "malformed" => self.device.flaw.clone().unwrap_or_default(),
            "allowed-once" => "somebody let it in until it is unplugged".into(),
            other => other.into(),
        }
    }
}

impl fmt::Display for UsbChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = &self.device;
        let did = match self.state.as_str() {
            "would-hold" => "would hold",
            "would-reject" => "would reject",
            "came-and-went" => "came and went:",
            other => other,
        };
        write!(f, "usb {did} {} at {}", device.id, device.port)?;
        let named =
            [&device.manufacturer, &device.name].map(|text| Plain(text).to_string()).join(" ");
        if !named.trim().is_empty() {
            write!(f, " \"{}\"", named.trim())?;
        }
        if let Some(serial) = &device.serial {
            write!(f, ", serial {}", Plain(serial))?;
        }
        write!(f, " ({}: {})", device.kinds, device.interfaces.join(" "))?;
        if let Some(Actor { pid, comm }) = &self.by {
            write!(f, ", by {} (pid {pid})", Plain(comm))?;
        }
        if let Some(Untold { judged, detached, .. }) = self.untold {
            write!(
                f,
                ", the last of a storm: {judged} times more something came there or was judged, and {detached} \
                 times it went"
            )?;
        }
        if self.state == "detached" {
            return Ok(());
        }
        write!(f, ": {}", Plain(&self.why()))?;
        if let Some(error) = &self.error {
            write!(f, "; {}", Plain(error))?;
        }
        match &self.to_allow {
            Some(rule) => write!(f, "; to allow: {}", rule.trim_end().replace('\n', "  ")),
            None => Ok(()),
        }
    }
}
