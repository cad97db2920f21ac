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
}

impl Interfaces {
    /// Whether a device's interfaces are like that.
    #[must_use]
    pub fn matches(&self, found: &BTreeSet<Class>) -> bool {
        let has = |pattern: &Pattern| found.iter().any(|class| pattern.matches(*class));
        let holds = |wanted: &Option<Vec<Pattern>>, test: &dyn Fn(&[Pattern]) -> bool| {
            wanted.as_deref().is_none_or(test)
        };
        holds(&self.equals, &|wanted| {
            let is_meant = |class: &Class| wanted.iter().any(|pattern| pattern.matches(*class));
            !found.is_empty() && wanted.iter().all(has) && found.iter().all(is_meant)
        }) && holds(&self.all_of, &|wanted| wanted.iter().all(has))
            && holds(&self.one_of, &|wanted| wanted.iter().any(has))
            && holds(&self.none_of, &|wanted| !wanted.iter().any(has))
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
        let descriptors = self.descriptors.is_none_or(|digest| digest == device.descriptors);
        let port = self.port.is_empty() || self.port.iter().any(|port| port.matches(&device.port));
        let interfaces =
            self.interfaces.as_ref().is_none_or(|wanted| wanted.matches(&device.interfaces));
        let connect = self.connect.is_empty() || self.connect.contains(&device.connect);
        id && serial && descriptors && port && interfaces && connect
    }
}

/// What a policy says about USB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// What becomes of devices that no rule is about.
    pub default: Action,
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

/// Decides about a device. `in_use` says how many others a rule lets in now.
///
/// A rule that rejects beats one that holds, and that beats one that allows, wherever they stand.
#[must_use]
pub fn decide(device: &Device, rules: &Rules, in_use: impl Fn(usize) -> usize) -> Verdict {
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
        Some(index) => by(Action::Hold, "too-many", Some(index)),
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
mod tests {
    use super::*;

    /// A device at a port with these interfaces.
    fn device(id: (u16, u16), serial: &str, interfaces: &[[u8; 3]]) -> Device {
        Device {
            port: "1-2".into(),
            bus: 1,
            number: 3,
            vendor: id.0,
            product: id.1,
            serial: (!serial.is_empty()).then(|| serial.into()),
            interfaces: interfaces.iter().copied().map(Class).collect(),
            ..Device::default()
        }
    }

    fn patterns(written: &[&str]) -> Vec<Pattern> {
        written.iter().map(|text| Pattern::parse(text).expect("good")).collect()
    }

    const STICK: [u8; 3] = [8, 6, 0x50];
    const KEYBOARD: [u8; 3] = [3, 1, 1];

    #[test]
    fn a_stick_that_also_shows_a_keyboard_is_not_a_stick() {
        let equals = Interfaces { equals: Some(patterns(&["08:*:*"])), ..Interfaces::default() };
        let set = |classes: &[[u8; 3]]| classes.iter().copied().map(Class).collect();
        assert!(equals.matches(&set(&[STICK])));
        assert!(equals.matches(&set(&[STICK, [8, 6, 0x62]])));
        assert!(!equals.matches(&set(&[STICK, KEYBOARD])));
        assert!(!equals.matches(&set(&[])));
        let both =
            Interfaces { equals: Some(patterns(&["08:*:*", "03:01:01"])), ..Interfaces::default() };
        assert!(!both.matches(&set(&[STICK])), "half of what was listed");
    }

    #[test]
    fn operators_ask_for_all_one_and_none() {
        let set: BTreeSet<_> = [Class(STICK), Class(KEYBOARD)].into();
        let with = |field: fn(&mut Interfaces) -> &mut Option<Vec<Pattern>>, written: &[&str]| {
            let mut interfaces = Interfaces::default();
            *field(&mut interfaces) = Some(patterns(written));
            interfaces.matches(&set)
        };
        assert!(with(|i| &mut i.all_of, &["08:*:*"]));
        assert!(!with(|i| &mut i.all_of, &["08:*:*", "09:*:*"]));
        assert!(with(|i| &mut i.one_of, &["09:*:*", "03:*:*"]));
        assert!(!with(|i| &mut i.one_of, &["09:*:*"]));
        assert!(with(|i| &mut i.none_of, &["09:*:*"]));
        assert!(!with(|i| &mut i.none_of, &["*:*:01"]));
    }

    #[test]
    fn patterns_are_three_hexadecimal_bytes_or_stars() {
        for bad in ["08", "08:06", "8:6:50", "08:06:50:00", "gg:*:*", "", "+8:*:*", "**:*:*"] {
            assert_eq!(Pattern::parse(bad), None, "{bad}");
        }
    }

    fn allow(id: (u16, Option<u16>), serial: Option<&str>) -> Rule {
        Rule { id: Some(id), serial: serial.map(Into::into), ..Rule::new(Action::Allow, 5) }
    }

    #[test]
    fn another_serial_number_is_another_device() {
        let rules =
            Rules { default: Action::Hold, rules: vec![allow((0x0781, Some(0x5581)), Some("A1"))] };
        let decided = |serial| decide(&device((0x0781, 0x5581), serial, &[STICK]), &rules, |_| 0);
        assert_eq!(decided("A1").action, Action::Allow);
        for other in ["A2", "", "a1", "A1 "] {
            let verdict = decided(other);
            assert_eq!((verdict.action, verdict.reason), (Action::Hold, "unlisted"), "{other}");
        }
    }

    #[test]
    fn the_stricter_rule_wins_wherever_it_stands() {
        let mut rules = Rules {
            default: Action::Allow,
            rules: vec![
                allow((1, None), None),
                Rule { id: Some((1, Some(2))), ..Rule::new(Action::Hold, 6) },
                Rule { id: Some((1, Some(3))), ..Rule::new(Action::Reject, 7) },
                Rule { id: Some((1, Some(3))), ..Rule::new(Action::Hold, 8) },
            ],
        };
        let action = |rules: &Rules, id| decide(&device(id, "", &[STICK]), rules, |_| 0).action;
        assert_eq!(action(&rules, (1, 1)), Action::Allow);
        assert_eq!(action(&rules, (1, 2)), Action::Hold);
        assert_eq!(action(&rules, (1, 3)), Action::Reject);
        assert_eq!(action(&rules, (2, 1)), Action::Allow);
        rules.default = Action::Hold;
        assert_eq!(action(&rules, (2, 1)), Action::Hold);
    }

    #[test]
    fn a_rule_lets_in_so_many_at_a_time() {
        let rules = Rules {
            default: Action::Hold,
            rules: vec![Rule { at_most: Some(1), ..allow((1, None), None) }],
        };
        let one = device((1, 1), "", &[STICK]);
        assert_eq!(decide(&one, &rules, |_| 0).action, Action::Allow);
        let verdict = decide(&one, &rules, |_| 1);
        assert_eq!((verdict.action, verdict.reason), (Action::Hold, "too-many"));
    }

    #[test]
    fn what_cannot_be_read_is_let_in_by_nothing() {
        let rules = Rules { default: Action::Allow, rules: vec![allow((1, None), None)] };
        let mut bad = device((1, 1), "", &[STICK]);
        bad.flaw = Some("odd".into());
        let verdict = decide(&bad, &rules, |_| 0);
        assert_eq!((verdict.action, verdict.reason), (Action::Hold, "malformed"));
        assert_eq!(rule_for(&bad), None);
    }

    #[test]
    fn the_rule_to_add_lets_that_device_in_and_no_other() {
        use crate::policy::source::Source;
        let one = device((0x0781, 0x5581), "A\"\n1", &[STICK, KEYBOARD]);
        let text = rule_for(&one).expect("a rule");
        let policy = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n[usb]\n{text}");
        let source = Source::parse(std::path::Path::new("p.toml"), &policy).expect("good");
        let rules = source.usb.expect("rules");
        assert_eq!(decide(&one, &rules, |_| 0).action, Action::Allow);
        let other = device((0x0781, 0x5581), "A1", &[STICK, KEYBOARD]);
        assert_eq!(decide(&other, &rules, |_| 0).action, Action::Hold);
    }
}
