//! What a policy says about USB devices, and the one place where it is decided.

use std::collections::BTreeSet;

use portcullis_common::Digest;

use super::{
    Class,
    device::{Connect, Device},
};
use crate::policy::quoted;

/// What becomes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Drivers may have it.
    Allow,
    /// It stays as it is, without a driver, until somebody lets it in or it is unplugged.
    Hold,
    /// It is thrown off the bus until it is plugged again.
    Reject,
}

impl Action {
    /// Every one with the word that policies use.
    pub const WORDS: [(&'static str, Self); 3] =
        [("allow", Self::Allow), ("hold", Self::Hold), ("reject", Self::Reject)];

    /// The word that policies use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Hold => "hold",
            Self::Reject => "reject",
        }
    }
}

/// A kind of interface, or many: `08:06:50`, `08:*:*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pattern(pub [Option<u8>; 3]);

impl Pattern {
    /// Reads it as it is written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let mut next = || match parts.next()? {
            "*" => Some(None),
            hex if hex.len() == 2 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u8::from_str_radix(hex, 16).ok().map(Some)
            }
            _ => None,
        };
        let pattern = Self([next()?, next()?, next()?]);
        parts.next().is_none().then_some(pattern)
    }

    /// Whether an interface is one of those that are meant.
    #[must_use]
    pub fn matches(self, class: Class) -> bool {
        self.0.iter().zip(class.0).all(|(wanted, is)| wanted.is_none_or(|wanted| wanted == is))
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, part) in self.0.iter().enumerate() {
            let colon = if at == 0 { "" } else { ":" };
            match part {
                Some(value) => write!(f, "{colon}{value:02x}")?,
                None => write!(f, "{colon}*")?,
            }
        }
        Ok(())
    }
}

/// What a device's interfaces must be, all that it can show in any configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    /// These and no others: each of the device's is meant by one of them, and each of them means one of
    /// the device's.
    pub equals: Option<Vec<Pattern>>,
    /// Each of these; there may be others.
    pub all_of: Option<Vec<Pattern>>,
    /// At least one of these; there may be others.
    pub one_of: Option<Vec<Pattern>>,
    /// Not one of these.
    pub none_of: Option<Vec<Pattern>>,
    /// Nothing but these, of which any may be missing.
    pub only: Option<Vec<Pattern>>,
    /// So many, each with its alternate settings, in all configurations.
    pub count: Option<usize>,
}

impl Interfaces {
    /// Whether a device's interfaces are like that, of which it has so many.
    #[must_use]
    pub fn matches(&self, found: &BTreeSet<Class>, count: usize) -> bool {
        let has = |pattern: &Pattern| found.iter().any(|class| pattern.matches(*class));
        let holds = |wanted: &Option<Vec<Pattern>>, test: &dyn Fn(&[Pattern]) -> bool| {
            wanted.as_deref().is_none_or(test)
        };
        let are_meant = |wanted: &[Pattern]| {
            found.iter().all(|class| wanted.iter().any(|pattern| pattern.matches(*class)))
        };
        holds(&self.equals, &|wanted| {
            !found.is_empty() && wanted.iter().all(has) && are_meant(wanted)
        }) && holds(&self.all_of, &|wanted| wanted.iter().all(has))
            && holds(&self.one_of, &|wanted| wanted.iter().any(has))
            && holds(&self.none_of, &|wanted| !wanted.iter().any(has))
            && holds(&self.only, &are_meant)
            && self.count.is_none_or(|wanted| wanted == count)
    }
}

/// Where a device is plugged: a port, or with `*` at the end every port whose name begins so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port(pub String);

impl Port {
    /// Whether it is this one.
    #[must_use]
    pub fn matches(&self, port: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => port.starts_with(start),
            None => port == self.0,
        }
    }
}

/// One `[[usb.allow]]`, `[[usb.hold]]` or `[[usb.reject]]`. What is not said matches every device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// Vendor, and product if it is not any.
    pub id: Option<(u16, Option<u16>)>,
    /// The serial number, exactly; an empty one means that there is none.
    pub serial: Option<String>,
    /// What it calls itself, exactly; an empty one means that it does not.
    pub name: Option<String>,
    /// SHA-256 of the descriptors.
    pub descriptors: Option<Digest>,
    /// Ports, of which one must be the device's.
    pub port: Vec<Port>,
    /// What interfaces it has.
    pub interfaces: Option<Interfaces>,
    /// How it is connected, of which one must be true.
    pub connect: Vec<Connect>,
    /// How many devices the rule lets in at a time.
    pub at_most: Option<usize>,
    /// Whether disks of the device can only be read.
    pub read_only: bool,
    /// Line of the policy file.
    pub line: u32,
}

impl Rule {
    /// A rule that matches every device.
    #[must_use]
    pub fn new(action: Action, line: u32) -> Self {
        Self {
            action,
            id: None,
            serial: None,
            name: None,
            descriptors: None,
            port: Vec::new(),
            interfaces: None,
            connect: Vec::new(),
            at_most: None,
            read_only: false,
            line,
        }
    }

    /// Whether it is about this device.
    #[must_use]
    pub fn matches(&self, device: &Device) -> bool {
        let id = self.id.is_none_or(|(vendor, product)| {
            vendor == device.vendor && product.is_none_or(|product| product == device.product)
        });
        let own = device.serial.as_deref().unwrap_or_default();
        let serial = self.serial.as_deref().is_none_or(|serial| serial == own);
        let name = self.name.as_deref().is_none_or(|name| name == device.name);
        let descriptors = self.descriptors.is_none_or(|digest| digest == device.descriptors);
        let port = self.port.is_empty() || self.port.iter().any(|port| port.matches(&device.port));
        let interfaces = self
            .interfaces
            .as_ref()
            .is_none_or(|wanted| wanted.matches(&device.interfaces, device.interface_count));
        let connect = self.connect.is_empty() || self.connect.contains(&device.connect);
        id && serial && name && descriptors && port && interfaces && connect
    }
}

/// Which of the rules decides that are about a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// One that rejects before one that holds, and that before one that allows, wherever they stand.
    #[default]
    Strictest,
    /// The first in the file, as in USBGuard.
    First,
}

impl Order {
    /// Every one with the word that policies use.
    pub const WORDS: [(&'static str, Self); 2] =
        [("strictest", Self::Strictest), ("first", Self::First)];

    /// The word that policies use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Strictest => "strictest",
            Self::First => "first",
        }
    }
}

/// What a policy says about USB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What becomes of devices that no rule is about.
    pub default: Action,
    /// Which rule decides if more than one is about a device.
    pub order: Order,
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What becomes of the device.
    pub action: Action,
    /// Why, as a stable word.
    pub reason: &'static str,
    /// Index of the rule that decided.
    pub rule: Option<usize>,
}

/// The reason for which a device is held that a rule would let in, but not as one more.
pub const TOO_MANY: &str = "too-many";

/// Decides about a device. `in_use` says how many others a rule lets in now.
///
/// A device with a flaw is let in by nothing, and a rule that is full leaves it to others to let in more.
#[must_use]
pub fn decide(device: &Device, rules: &Rules, in_use: impl Fn(usize) -> usize) -> Verdict {
    match rules.order {
        Order::Strictest => by_strictest(device, rules, in_use),
        Order::First => by_first(device, rules, in_use),
    }
}

fn by_first(device: &Device, rules: &Rules, in_use: impl Fn(usize) -> usize) -> Verdict {
    let by = |action, reason, rule| Verdict { action, reason, rule };
    let mut full = None;
    for (index, rule) in rules.rules.iter().enumerate().filter(|(_, rule)| rule.matches(device)) {
        match rule.action {
            Action::Reject => return by(Action::Reject, "denied", Some(index)),
            _ if device.flaw.is_some() => break,
            Action::Hold => return by(Action::Hold, "denied", Some(index)),
            Action::Allow if rule.at_most.is_none_or(|most| in_use(index) < most) => {
                return by(Action::Allow, "listed", Some(index));
            }
            Action::Allow => full = full.or(Some(index)),
        }
    }
    match full {
        _ if device.flaw.is_some() => by(Action::Hold, "malformed", None),
        Some(index) => by(Action::Hold, TOO_MANY, Some(index)),
        None => by(rules.default, "unlisted", None),
    }
}

fn by_strictest(device: &Device, rules: &Rules, in_use: impl Fn(usize) -> usize) -> Verdict {
    let matching = |action: Action| {
        let numbered = rules.rules.iter().enumerate();
        numbered.filter(move |(_, rule)| rule.action == action && rule.matches(device))
    };
    let by = |action, reason, rule| Verdict { action, reason, rule };
    if let Some((index, _)) = matching(Action::Reject).next() {
        return by(Action::Reject, "denied", Some(index));
    }
    if device.flaw.is_some() {
        return by(Action::Hold, "malformed", None);
    }
    if let Some((index, _)) = matching(Action::Hold).next() {
        return by(Action::Hold, "denied", Some(index));
    }
    let mut full = None;
    for (index, rule) in matching(Action::Allow) {
        if rule.at_most.is_none_or(|most| in_use(index) < most) {
            return by(Action::Allow, "listed", Some(index));
        }
        full = full.or(Some(index));
    }
    match full {
        Some(index) => by(Action::Hold, TOO_MANY, Some(index)),
        None => by(rules.default, "unlisted", None),
    }
}

/// The rule that would let this very device in, as lines of a policy file. None if none can.
#[must_use]
pub fn rule_for(device: &Device) -> Option<String> {
    if device.flaw.is_some() || device.interfaces.is_empty() {
        return None;
    }
    let classes: Vec<_> = device.interfaces.iter().map(|class| format!("\"{class}\"")).collect();
    let serial = quoted(device.serial.as_deref().unwrap_or_default());
    Some(format!(
        "[[usb.allow]]\nid = \"{}\"\nserial = {serial}\ninterfaces = [{}]\n",
        device.id(),
        classes.join(", ")
    ))
}

#[cfg(test)]
mod tests;
