//! Rules as they can be found, and what becomes of them.

use std::fs;

use super::{here::Seen, language::Mistake, *};
use crate::usb::{
    Class,
    descriptors::tests::made,
    device::{Connect, Device},
    rules::{Rules, decide},
};

const NOTHING: Known<'_> = Known { here: &[], parents_as_ports: false };

fn imported(text: &str, known: Known<'_>) -> Result<UsbPart, ImportError> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.conf");
    fs::write(&file, text).expect("written");
    import(&[file], known)
}

fn carried_by(text: &str, known: Known<'_>) -> (Rules, Vec<(u32, String)>) {
    let part = imported(text, known).expect("readable");
    let policy = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{}", part.text);
    let source = Source::parse(Path::new("p.toml"), &policy).expect("good");
    let line = |left: &Left| {
        let (_, line) = left.place.rsplit_once(':').expect("a line");
        (line.parse().expect("a number"), left.why.clone())
    };
    (source.usb.expect("rules"), part.left.iter().map(line).collect())
}

fn carried(text: &str) -> (Rules, Vec<(u32, String)>) {
    carried_by(text, NOTHING)
}

fn device(id: (u16, u16), port: &str, interfaces: &[[u8; 3]]) -> Device {
    Device {
        port: port.into(),
        vendor: id.0,
        product: id.1,
        interfaces: interfaces.iter().copied().map(Class).collect(),
        interface_count: interfaces.len(),
        ..Device::default()
    }
}

fn decided(rules: &Rules, device: &Device) -> Action {
    decide(device, rules, |_| 0).action
}

const STICK: [u8; 3] = [8, 6, 0x50];
const UAS: [u8; 3] = [8, 6, 0x62];
const KEYBOARD: [u8; 3] = [3, 1, 1];

#[test]
fn sticks_only() {
    let (rules, left) = carried("# only sticks\n\nallow with-interface equals { 08:*:* }\n");
    assert!(left.is_empty(), "{left:?}");
    for (interfaces, action) in [
        (&[STICK][..], Action::Allow),
        (&[STICK, KEYBOARD], Action::Hold),
        // There are two, and one is asked for.
        (&[STICK, UAS], Action::Hold),
        (&[KEYBOARD], Action::Hold),
        (&[], Action::Hold),
    ] {
        assert_eq!(decided(&rules, &device((1, 2), "1-1", interfaces)), action, "{interfaces:?}");
    }
}

#[test]
fn the_first_rule_decides() {
    let (rules, left) = carried(
        "allow 1050:0011 serial \"0001234567\" name \"Yubico Yubikey II\" via-port \"1-2\" # mine\n\
         reject via-port \"1-2\"\nallow with-interface one-of { 03:00:01 03:01:01 }\n",
    );
    assert!(left.is_empty(), "{left:?}");
    let mut key = device((0x1050, 0x0011), "1-2", &[KEYBOARD]);
    assert_eq!(decided(&rules, &key), Action::Reject);
    key.serial = Some("0001234567".into());
    key.name = "Yubico Yubikey II".into();
    assert_eq!(decided(&rules, &key), Action::Allow);
    key.port = "1-3".into();
    assert_eq!(decided(&rules, &key), Action::Allow, "as a keyboard");
    assert_eq!(decided(&rules, &device((1, 2), "1-3", &[STICK])), Action::Hold);
}

#[test]
fn suspicious_combinations() {
    let (rules, left) = carried(
        "allow with-interface equals { 08:*:* }\n\
         reject with-interface all-of { 08:*:* 03:00:* }\n\
         reject with-interface all-of { 08:*:* 03:01:* }\n\
         reject with-interface all-of { 08:*:* e0:*:* }\n\
         block with-interface none-of { 03:*:* 08:*:* }\nallow\n",
    );
    assert!(left.is_empty(), "{left:?}");
    let action = |interfaces: &[[u8; 3]]| decided(&rules, &device((1, 2), "1-1", interfaces));
    assert_eq!(action(&[STICK, KEYBOARD]), Action::Reject);
    assert_eq!(action(&[STICK, [0xe0, 1, 1]]), Action::Reject);
    assert_eq!(action(&[[9, 0, 0]]), Action::Hold);
    assert_eq!(action(&[KEYBOARD]), Action::Allow);
    assert_eq!(rules.default, Action::Allow);
}

#[test]
fn sets_of_every_attribute() {
    let (rules, left) = carried(
        "allow id one-of { 0781:5581 0951:* } serial { \"A\" }\n\
         allow id 1209:* name one-of { \"Pump\" \"Valve\" } serial match-all { \"1\" \"2\" }\n\
         allow id all-of { 0403:* 0403:6001 } via-port one-of { \"1-2\" \"1-3\" }\n\
         allow with-connect-type one-of { \"hardwired\" \"not used\" } with-interface match-all { 03:*:* 09:00:* }\n",
    );
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(rules.rules.len(), 2 + 4 + 1 + 1);
    let mut one = device((0x0951, 0x1666), "2-1", &[STICK]);
    assert_eq!(decided(&rules, &one), Action::Hold);
    one.serial = Some("A".into());
    assert_eq!(decided(&rules, &one), Action::Allow);
    let mut pump = device((0x1209, 1), "2-1", &[STICK]);
    (pump.name, pump.serial) = ("Valve".into(), Some("2".into()));
    assert_eq!(decided(&rules, &pump), Action::Allow);
    pump.serial = Some("3".into());
    assert_eq!(decided(&rules, &pump), Action::Hold);
    assert_eq!(decided(&rules, &device((0x0403, 0x6001), "1-3", &[STICK])), Action::Allow);
    assert_eq!(decided(&rules, &device((0x0403, 0x6001), "1-3.1", &[STICK])), Action::Hold);
    let mut built_in = device((1, 1), "1-4", &[KEYBOARD]);
    assert_eq!(decided(&rules, &built_in), Action::Hold);
    built_in.connect = Connect::Internal;
    assert_eq!(decided(&rules, &built_in), Action::Allow);
}

#[test]
fn no_rule_that_lets_in_is_carried_over_without_what_it_asks() {
    for (rule, why) in [
        ("allow hash \"AbC=\"", "has the hash AbC=, which only USBGuard can compute"),
        ("allow id 1:2", ""),
        (
            "allow id 0001:0002 parent-hash \"x\"",
            "has a `parent-hash`, which no rule here has; --par",
        ),
        ("allow if localtime(08:00-17:00)", "has a condition (`if localtime(08:00-17:00)`)"),
        (
            "allow with-interface one-of { 03:00:01 03:01:01 } if !allowed-matches(with-interface one-of { 03:00:01 })",
            "has a condition (`if !allowed-matches(",
        ),
        ("allow id none-of { 0781:* }", "has `id none-of`"),
        ("allow serial none-of { \"A\" }", "has `serial none-of`"),
        (
            "allow with-interface equals-ordered { 03:01:01 03:00:00 }",
            "has `with-interface equals-ordered`",
        ),
        ("allow id 0781:ABCD", "has an id with capital letters"),
        ("allow id { 0781:5581 0781:5582 }", "asks for more than one `id`"),
        ("allow serial all-of { \"A\" \"B\" }", "asks for more than one `serial`"),
        ("allow name \"\\xff\"", "has a `name` that is no text"),
        ("allow via-port \"a-b\"", "has a `via-port` that no device is at"),
        ("allow with-connect-type \"\"", "has a `with-connect-type` that no device here has"),
    ] {
        if why.is_empty() {
            assert!(imported(rule, NOTHING).is_err(), "{rule}");
            continue;
        }
        let (rules, left) = carried(&format!("\n{rule}\nreject"));
        assert!(rules.rules.is_empty(), "{rule}: {rules:?}");
        assert_eq!(rules.default, Action::Reject);
        assert!(left.len() == 1 && left[0].0 == 2 && left[0].1.starts_with(why), "{left:?}");
    }
}

#[test]
fn what_keeps_devices_out_keeps_out_more_if_not_the_same() {
    let (rules, left) = carried(
        "block id 0781:5581 hash \"abc\"\nreject id 0781:5582 if localtime(08:00)\n\
         block with-interface equals-ordered { 03:01:01 03:00:00 }\n\
         block with-interface { 08:*:* 08:*:* }\nallow\n",
    );
    let lines: Vec<_> = left.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [1, 2], "{left:?}");
    assert!(left.iter().all(|(_, why)| why.ends_with("Without that it keeps out more")));
    let action = |id, interfaces: &[[u8; 3]]| decided(&rules, &device(id, "1-1", interfaces));
    assert_eq!(action((0x0781, 0x5581), &[STICK]), Action::Hold);
    assert_eq!(action((0x0781, 0x5582), &[STICK]), Action::Reject);
    assert_eq!(action((1, 1), &[[3, 0, 0], KEYBOARD]), Action::Hold);
    assert_eq!(action((1, 1), &[KEYBOARD]), Action::Allow);
    // To USBGuard each of its two kinds is there, and there are two.
    assert_eq!(action((1, 1), &[STICK, KEYBOARD]), Action::Hold);
}

#[test]
fn an_id_that_no_device_has_is_not_all_that_a_set_means() {
    let held = |rule: &str| {
        let (rules, _) = carried(&format!("{rule}\nallow\n"));
        decided(&rules, &device((0x0781, 0x5581), "1-1", &[STICK])) == Action::Hold
    };
    for (rule, expected) in [
        ("block id one-of { 0781:5581 095E:* }", true),
        ("block id match-all { 0781:5581 095E:* }", true),
        ("block id none-of { 095E:* }", true),
        ("block id none-of { 0781:5581 095E:* }", false),
        ("block id one-of { 0781:5582 095E:* }", false),
        ("block id all-of { 0781:5581 095E:* }", false),
        ("block id { 0781:5581 095E:* }", false),
        ("block id 095E:*", false),
    ] {
        // What cannot be said here keeps out more.
        assert!(held(rule) || !expected, "{rule} lets it in");
        assert!(!held(rule) || expected || rule.contains("none-of"), "{rule} keeps it out");
    }
}

#[test]
fn kinds_of_which_one_may_be_two_let_in_no_others() {
    let (rules, left) = carried("allow with-interface { 08:*:* 08:06:50 }\n");
    assert!(left.len() == 1 && left[0].1.starts_with("is carried over in part"), "{left:?}");
    let action = |interfaces: &[[u8; 3]]| decided(&rules, &device((1, 1), "1-1", interfaces));
    assert_eq!(action(&[STICK, UAS]), Action::Allow);
    assert_eq!(action(&[STICK, KEYBOARD]), Action::Hold);
    let (_, left) = carried("allow with-interface { 08:06:62 08:06:50 03:01:* }\n");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn nothing_comes_after_a_rule_that_might_mean_everything() {
    let (rules, left) = carried("reject hash \"abc\"\nallow id 0781:5581\nallow\n");
    assert!(rules.rules.is_empty());
    assert_eq!(rules.default, Action::Hold);
    let [(1, first), (2, second), (3, _)] = &left[..] else { panic!("{left:?}") };
    assert!(first.contains("nothing after it is carried over"), "{first}");
    assert!(second.starts_with("is never reached"), "{second}");
}

#[test]
fn rules_that_usbguard_has_generated() {
    let (descriptors, hub) = (made(0x0781, 0x5581, &[STICK]), made(0x1d6b, 2, &[[9, 0, 0]]));
    let stick = Device {
        name: "Ultra".into(),
        serial: Some("4C53".into()),
        descriptors: sha2::Sha256::digest(&descriptors).into(),
        ..device((0x0781, 0x5581), "1-4", &[STICK])
    };
    use sha2::Digest as _;
    let root = Device { name: "xHCI Host Controller".into(), ..device((0x1d6b, 2), "usb1", &[]) };
    let stick_seen = Seen::new(stick.clone(), &descriptors, 0);
    let root_seen = Seen::new(root, &hub, 4);
    let text = format!(
        "allow id 1d6b:0002 serial \"\" name \"xHCI Host Controller\" hash \"{0}\" parent-hash \"p\" \
         with-interface 09:00:00 with-connect-type \"\"\n\
         allow id 0781:5581 serial \"4C53\" name \"Ultra\" hash \"{1}\" parent-hash \"{0}\" \
         with-interface 08:06:50 with-connect-type \"unknown\" label \"a \\\"b\\\"\"\n",
        root_seen.hash, stick_seen.hash,
    );
    let here = [root_seen, stick_seen];
    let (rules, left) = carried_by(&text, Known { here: &here, parents_as_ports: false });
    assert!(rules.rules.is_empty() && left.len() == 1 && left[0].0 == 2, "{left:?}");

    let (rules, left) = carried_by(&text, Known { here: &here, parents_as_ports: true });
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(decided(&rules, &stick), Action::Allow);
    let elsewhere = Device { port: "2-1".into(), ..stick.clone() };
    let other = Device { descriptors: [7; 32], ..stick.clone() };
    let renamed = Device { name: "Ultra 2".into(), ..stick.clone() };
    for device in [elsewhere, other, renamed] {
        assert_eq!(decided(&rules, &device), Action::Hold, "{device:?}");
    }
    // The rule is of another device than the hash.
    let wrong = format!("allow id 0781:5582 hash \"{}\"", here[1].hash);
    let (rules, left) = carried_by(&wrong, Known { here: &here, parents_as_ports: true });
    assert!(rules.rules.is_empty() && left[0].1 == "means no device", "{left:?}");
    // One of two is here: to let in it is enough, and to keep out it is not.
    for (target, count, default) in [("allow", 1, Action::Reject), ("block", 0, Action::Hold)] {
        let text = format!("{target} hash one-of {{ \"{}\" \"gone\" }}\nreject", here[1].hash);
        let (rules, left) = carried_by(&text, Known { here: &here, parents_as_ports: false });
        assert_eq!((rules.rules.len(), rules.default), (count, default), "{target}: {left:?}");
        assert!(left[0].1.contains("gone"), "{left:?}");
    }
}

#[test]
fn a_line_that_cannot_be_read_is_named_and_ends_it() {
    for (line, column, why) in [
        ("deny", 5, "`deny` is none of"),
        ("allow id 1d6b", 10, "this is no `vendor:product`"),
        ("allow *:0001", 7, "a product of any vendor"),
        ("allow id 1d6b:0002 id 1d6b:0002", 20, "`id` is said twice"),
        ("allow 1d6b:0002 id 1d6b:0002", 17, "`id` is said twice"),
        ("allow serial \"a", 16, "the text has no end"),
        ("allow serial \"a\\q\"", 18, "in a text"),
        ("allow serial \"\\x4\"", 17, "`\\x` needs"),
        ("allow serial", 13, "a value is missing"),
        ("allow with-interface 8:6:50", 22, "this is no kind of interface"),
        ("allow with-interface 08:*:50", 22, "this is no kind of interface"),
        ("allow with-interface *:*:*", 22, "this is no kind of interface"),
        ("allow with-interface { }", 24, "this is no kind of interface"),
        ("allow with-interface one-of 08:*:*", 29, "a `{` is missing"),
        ("allow with-interface { 08:*:*", 30, "a blank or a `}` is missing"),
        ("allow if", 9, "a value is missing"),
        ("allow if localtime(08:00", 25, "the condition has no `)`"),
        ("allow color \"red\"", 12, "there is no attribute `color`"),
        ("allow serial \"a\"name \"b\"", 17, "a blank is missing"),
        ("\u{fc}", 1, "this is none of"),
    ] {
        let found = language::parse(line.as_bytes()).expect_err(line);
        let [Mistake { line: 1, column: at, why: said }] = &found[..] else { panic!("{found:?}") };
        assert!(*at == column && said.starts_with(why), "{line}: {at} {said}");
    }
    let found = imported("allow\ndeny\nallow x", NOTHING).expect_err("two").to_string();
    assert!(found.contains("rules.conf: line 2, column 5") && found.contains("line 3"), "{found}");
    assert!(import(&["/nowhere/rules.conf".into()], NOTHING).is_err());
}

#[test]
fn what_others_have_written_stays_in_its_place() {
    let text = "allow id 0781:5581 serial \"a\\\"\\x0a[usb]\\x0adefault = \\\"allow\\\"\" label \"x\\x0ay\"\n";
    let (rules, left) = carried(text);
    assert!(left.is_empty());
    assert_eq!(rules.default, Action::Hold);
    assert_eq!(rules.rules[0].serial.as_deref(), Some("a\"\n[usb]\ndefault = \"allow\""));
    let (rules, _) = carried("allow hash \"\\x0adefault\"\n");
    assert_eq!(rules.default, Action::Hold);
}

#[test]
fn too_many_of_one_rule_are_not_made() {
    let set =
        |what: &str| (0..300).map(|number| format!("\"{what}{number}\" ")).collect::<String>();
    let text = format!("allow serial one-of {{ {}}} name one-of {{ {}}}", set("s"), set("n"));
    let (rules, left) = carried(&text);
    assert!(rules.rules.is_empty() && left[0].1.starts_with("would become"), "{left:?}");
}
