//! Devices, rules, and what is decided.

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

#[test]
fn only_and_count_ask_for_no_more_than_that() {
    let set: BTreeSet<_> = [Class(STICK), Class(KEYBOARD)].into();
    let only =
        |written: &[&str]| Interfaces { only: Some(patterns(written)), ..Interfaces::default() };
    assert!(only(&["08:*:*", "03:*:*", "09:*:*"]).matches(&set, 2));
    assert!(!only(&["08:*:*", "09:*:*"]).matches(&set, 2));
    let two = Interfaces { count: Some(2), ..Interfaces::default() };
    assert!(two.matches(&set, 2) && !two.matches(&set, 3));
}

#[test]
fn the_first_rule_decides_if_the_policy_says_so() {
    let rules = Rules {
        default: Action::Hold,
        order: Order::First,
        rules: vec![
            Rule { at_most: Some(1), ..allow((1, Some(2)), None) },
            Rule { id: Some((1, None)), ..Rule::new(Action::Reject, 6) },
            allow((2, None), None),
        ],
    };
    let decided = |id, used| {
        let verdict = decide(&device(id, "", &[STICK]), &rules, |_| used);
        (verdict.action, verdict.reason)
    };
    assert_eq!(decided((1, 2), 0), (Action::Allow, "listed"));
    assert_eq!(decided((1, 2), 1), (Action::Reject, "denied"));
    assert_eq!(decided((1, 3), 0), (Action::Reject, "denied"));
    assert_eq!(decided((2, 1), 0), (Action::Allow, "listed"));
    assert_eq!(decided((3, 1), 0), (Action::Hold, "unlisted"));
    let mut bad = device((2, 1), "", &[STICK]);
    bad.flaw = Some("odd".into());
    assert_eq!(decide(&bad, &rules, |_| 0).reason, "malformed");
}

#[test]
fn a_name_is_matched_exactly() {
    let named = |name: &str| Rule { name: Some(name.into()), ..allow((1, None), None) };
    let mut one = device((1, 1), "", &[STICK]);
    assert!(named("").matches(&one) && !named("Pump").matches(&one));
    one.name = "Pump".into();
    assert!(named("Pump").matches(&one) && !named("pump").matches(&one));
}

const STICK: [u8; 3] = [8, 6, 0x50];
const KEYBOARD: [u8; 3] = [3, 1, 1];

#[test]
fn a_stick_that_also_shows_a_keyboard_is_not_a_stick() {
    let equals = Interfaces { equals: Some(patterns(&["08:*:*"])), ..Interfaces::default() };
    let set = |classes: &[[u8; 3]]| classes.iter().copied().map(Class).collect();
    assert!(equals.matches(&set(&[STICK]), 1));
    assert!(equals.matches(&set(&[STICK, [8, 6, 0x62]]), 2));
    assert!(!equals.matches(&set(&[STICK, KEYBOARD]), 2));
    assert!(!equals.matches(&set(&[]), 0));
    let both =
        Interfaces { equals: Some(patterns(&["08:*:*", "03:01:01"])), ..Interfaces::default() };
    assert!(!both.matches(&set(&[STICK]), 1), "half of what was listed");
}

#[test]
fn operators_ask_for_all_one_and_none() {
    let set: BTreeSet<_> = [Class(STICK), Class(KEYBOARD)].into();
    let with = |field: fn(&mut Interfaces) -> &mut Option<Vec<Pattern>>, written: &[&str]| {
        let mut interfaces = Interfaces::default();
        *field(&mut interfaces) = Some(patterns(written));
        interfaces.matches(&set, 2)
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
    let rules = Rules {
        default: Action::Hold,
        order: Order::Strictest,
        rules: vec![allow((0x0781, Some(0x5581)), Some("A1"))],
    };
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
        order: Order::Strictest,
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
        order: Order::Strictest,
        rules: vec![Rule { at_most: Some(1), ..allow((1, None), None) }],
    };
    let one = device((1, 1), "", &[STICK]);
    assert_eq!(decide(&one, &rules, |_| 0).action, Action::Allow);
    let verdict = decide(&one, &rules, |_| 1);
    assert_eq!((verdict.action, verdict.reason), (Action::Hold, "too-many"));
}

#[test]
fn what_cannot_be_read_is_let_in_by_nothing() {
    let rules = Rules {
        default: Action::Allow,
        order: Order::Strictest,
        rules: vec![allow((1, None), None)],
    };
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
