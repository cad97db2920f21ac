//! USBGuard's rules: whatever they are, what is made of them lets in no device that they keep out. What
//! they mean is said here once more, as plainly as the manual does.

use std::path::Path;

use portcullis::{
    import::usbguard::{
        self, Known,
        language::{self, Id, Operator, Set, Target, Written},
    },
    policy::source::Source,
    usb::{
        Class,
        device::{Connect, Device, is_port},
        rules::{Action, Pattern, decide},
    },
};

/// Drives the import with a file of rules.
pub fn drive(data: &[u8]) {
    let Ok(rules) = language::parse(data) else { return };
    let known = Known { here: &[], parents_as_ports: false };
    let file = Path::new("rules.conf");
    let part = usbguard::carried(&[(file, rules.clone())], known).expect("a policy");
    assert_eq!(part.carried + part.left.len() == 0, rules.is_empty());
    let text = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{}", part.text);
    let ours = Source::parse(Path::new("p.toml"), &text).expect("a policy").usb.expect("rules");
    for device in devices(&rules) {
        if decide(&device, &ours, |_| 0).action == Action::Allow {
            assert!(lets_in(&rules, &device), "{device:?} by {}", part.text);
        }
    }
}

/// Devices that the rules may be about.
fn devices(rules: &[Written]) -> Vec<Device> {
    let mut devices = vec![Device { port: "1-1".into(), ..Device::default() }];
    for rule in rules.iter().take(8) {
        let mut device = Device { port: "1-2".into(), ..Device::default() };
        if let Some(id) = rule.id.as_ref().and_then(|set| set.values.first()) {
            device.vendor = id.vendor.unwrap_or(7);
            device.product = id.product.unwrap_or(7);
        }
        let text = |set: &Option<Set<Vec<u8>>>| {
            let value = set.as_ref().and_then(|set| set.values.last().cloned());
            value.and_then(|value| String::from_utf8(value).ok())
        };
        device.name = text(&rule.name).unwrap_or_default();
        device.serial = text(&rule.serial);
        device.port = text(&rule.port).filter(|port| is_port(port)).unwrap_or(device.port);
        device.connect = match text(&rule.connect).as_deref() {
            Some("hotplug") => Connect::External,
            Some("hardwired") => Connect::Internal,
            Some("not used") => Connect::Unused,
            _ => Connect::Unknown,
        };
        let kinds = rule.interfaces.iter().flat_map(|set| &set.values).take(8);
        let kinds: Vec<_> = kinds.map(|Pattern(it)| Class(it.map(|it| it.unwrap_or(9)))).collect();
        for take in 0..=kinds.len() {
            device.interfaces = kinds[..take].iter().copied().collect();
            // Two of the last, as far as anybody can tell who does not see them all.
            for count in [device.interfaces.len(), device.interfaces.len() + 1] {
                device.interface_count = count;
                devices.push(device.clone());
            }
        }
    }
    devices
}

/// Whether rules let a device in, whatever its hashes are and whether conditions are met or not.
fn lets_in(rules: &[Written], device: &Device) -> bool {
    for rule in rules {
        if !matches(rule, device) {
            continue;
        }
        let is_certain =
            rule.hash.is_none() && rule.parent_hash.is_none() && rule.conditions.is_none();
        match rule.target {
            Target::Allow if is_certain => return true,
            Target::Allow => {}
            Target::Block | Target::Reject => return false,
        }
    }
    false
}

fn matches(rule: &Written, device: &Device) -> bool {
    let text = |set: &Option<Set<Vec<u8>>>, value: &str| {
        let same = |one: &Vec<u8>, other: &Vec<u8>| one == other;
        set.as_ref().is_none_or(|set| holds(set, &[value.as_bytes().to_vec()], same))
    };
    let connect = match device.connect {
        Connect::External => "hotplug",
        Connect::Internal => "hardwired",
        Connect::Unused => "not used",
        Connect::Unknown => "unknown",
    };
    let is_id = |id: &Id, (vendor, product): &(u16, u16)| {
        !id.capitals
            && id.vendor.is_none_or(|it| it == *vendor)
            && id.product.is_none_or(|it| it == *product)
    };
    let mut kinds: Vec<_> = device.interfaces.iter().copied().collect();
    while kinds.len() < device.interface_count && !kinds.is_empty() {
        kinds.extend(kinds.last().copied());
    }
    text(&rule.name, &device.name)
        && text(&rule.serial, device.serial.as_deref().unwrap_or_default())
        && text(&rule.port, &device.port)
        && text(&rule.connect, connect)
        && can_hold(rule.hash.as_ref())
        && can_hold(rule.parent_hash.as_ref())
        && rule.id.as_ref().is_none_or(|set| holds(set, &[(device.vendor, device.product)], is_id))
        && rule.interfaces.as_ref().is_none_or(|set| {
            // The order of a device's interfaces is not known here.
            !(set.operator == Operator::EqualsOrdered && set.values.len() > 1)
                && holds(set, &kinds, |pattern, class| pattern.matches(*class))
        })
}

/// Whether a device can have a hash that the rule means. It has one, which is not known here.
fn can_hold(hashes: Option<&Set<Vec<u8>>>) -> bool {
    hashes.is_none_or(|set| {
        let holds_of =
            |hash: &Vec<u8>| holds(set, std::slice::from_ref(hash), |one, its| one == its);
        set.operator == Operator::NoneOf || set.values.iter().any(holds_of)
    })
}

fn holds<T, V>(set: &Set<T>, device: &[V], is: impl Fn(&T, &V) -> bool) -> bool {
    let Set { operator, values } = set;
    let has = |value: &T| device.iter().any(|its| is(value, its));
    match operator {
        Operator::AllOf => values.iter().all(has),
        Operator::OneOf => values.iter().any(has),
        Operator::NoneOf => !values.iter().any(has),
        Operator::Equals => values.len() == device.len() && values.iter().all(has),
        Operator::EqualsOrdered => {
            values.len() == device.len() && values.iter().zip(device).all(|(one, its)| is(one, its))
        }
        Operator::MatchAll => device.iter().all(|its| values.iter().any(|value| is(value, its))),
    }
}
