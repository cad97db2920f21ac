//! `[usb]`: which USB devices come alive.

use toml::de::DeTable;

use super::{Reader, Value, whole_number, words};
use crate::{
    artifact::digest,
    usb::{
        device::{Connect, is_port},
        rules::{Action, Interfaces, Order, Pattern, Port, Rule, Rules},
    },
};

const USB_KEYS: [&str; 5] = ["default", "order", "allow", "hold", "reject"];
const RULE_KEYS: [&str; 8] =
    ["id", "serial", "name", "descriptors", "port", "interfaces", "connect", "comment"];
const ALLOW_KEYS: [&str; 10] = [
    "id",
    "serial",
    "name",
    "descriptors",
    "port",
    "interfaces",
    "connect",
    "at_most",
    "storage",
    "comment",
];
const INTERFACES_KEYS: [&str; 6] = ["equals", "all_of", "one_of", "none_of", "only", "count"];
/// What a rule must say about interfaces that is to let in every kind of device.
const ANY: &str = "any";
/// What disks of an allowed device can be used for.
const STORAGE: [(&str, bool); 2] = [("read-write", false), ("read-only", true)];

impl Reader<'_> {
    /// What the policy says about USB.
    pub(super) fn usb(&mut self, value: &Value<'_>) -> Option<Rules> {
        let table = self.table(value, &USB_KEYS, "[usb]")?;
        let default = match table.get("default") {
            None => Some(Action::Hold),
            Some(value) => self.word(value, "default", Action::WORDS.into_iter()),
        };
        let order = match table.get("order") {
            None => Some(Order::default()),
            Some(value) => self.word(value, "order", Order::WORDS.into_iter()),
        };
        let mut rules = Vec::new();
        for (key, what, read) in [
            ("allow", "[[usb.allow]]", Self::usb_allow as fn(&mut Self, &Value<'_>) -> _),
            ("hold", "[[usb.hold]]", |reader, value| reader.usb_rule(value, Action::Hold)),
            ("reject", "[[usb.reject]]", |reader, value| reader.usb_rule(value, Action::Reject)),
        ] {
            if let Some(value) = table.get(key) {
                rules.extend(self.list(value, what, read));
            }
        }
        rules.sort_by_key(|rule: &Rule| rule.line);
        Some(Rules { default: default?, order: order?, rules })
    }

    fn usb_allow(&mut self, value: &Value<'_>) -> Option<Rule> {
        let rule = self.usb_rule(value, Action::Allow);
        let table = value.get_ref().as_table()?;
        let at_most = match table.get("at_most") {
            None => Some(None),
            Some(value) => self
                .count(value, "at_most", "how many devices at a time the rule lets in")
                .map(Some),
        };
        let read_only = match table.get("storage") {
            None => Some(false),
            Some(value) => self.word(value, "storage", STORAGE.into_iter()),
        };
        if table.get("interfaces").is_none() && table.get("descriptors").is_none() {
            self.report_help(
                value.span().start,
                "`interfaces` is missing in [[usb.allow]]",
                "say what the device may be, as a stick that also shows a keyboard is not a stick: \
                 interfaces = [\"08:06:50\"], or \"any\"; `portcullis usb list` shows what devices have",
            );
            return None;
        }
        Some(Rule { at_most: at_most?, read_only: read_only?, ..rule? })
    }

    fn count(&mut self, value: &Value<'_>, key: &str, what: &str) -> Option<usize> {
        let number = whole_number(value).and_then(|number| usize::try_from(number).ok());
        if number.is_none() {
            let found = value.get_ref().type_str();
            self.report_help(
                value.span().start,
                format!("`{key}` must be a whole number from 1, not this {found}"),
                format!("write {what}: {key} = 1"),
            );
        }
        number
    }

    fn usb_rule(&mut self, value: &Value<'_>, action: Action) -> Option<Rule> {
        let (keys, what): (&[&str], _) = match action {
            Action::Allow => (&ALLOW_KEYS, "[[usb.allow]]"),
            Action::Hold => (&RULE_KEYS, "[[usb.hold]]"),
            Action::Reject => (&RULE_KEYS, "[[usb.reject]]"),
        };
        let table = self.table(value, keys, what)?;
        self.comments(table);
        let offset = value.span().start;
        let mut rule = Rule::new(action, self.text.line(offset));
        let mut good = true;
        if let Some(value) = table.get("id") {
            rule.id = self.usb_id(value);
            good &= rule.id.is_some();
        }
        if let Some(value) = table.get("serial") {
            rule.serial = self.string(value, "serial").map(Into::into);
            good &= rule.serial.is_some();
        }
        if let Some(value) = table.get("name") {
            rule.name = self.string(value, "name").map(Into::into);
            good &= rule.name.is_some();
        }
        if let Some(value) = table.get("descriptors") {
            rule.descriptors = self.usb_descriptors(value);
            good &= rule.descriptors.is_some();
        }
        if let Some(value) = table.get("port") {
            let ports = self.one_or_more(value, "port", Self::usb_port);
            good &= !ports.is_empty();
            rule.port = ports;
        }
        if let Some(value) = table.get("connect") {
            let connect = self.one_or_more(value, "connect", Self::usb_connect);
            good &= !connect.is_empty();
            rule.connect = connect;
        }
        match table.get("interfaces") {
            Some(value) if value.get_ref().as_str() == Some(ANY) => {}
            Some(value) => {
                rule.interfaces = self.interfaces(value);
                good &= rule.interfaces.is_some();
            }
            None => {}
        }
        if action != Action::Allow && is_about_everything(table) {
            self.report_help(
                offset,
                format!("{what} says nothing about which devices it means"),
                "add `id`, `interfaces`, `port` or another; for all devices write [usb] default = …",
            );
            return None;
        }
        good.then_some(rule)
    }

    /// Vendor and product: `0781:5581`, `0781:*`.
    fn usb_id(&mut self, value: &Value<'_>) -> Option<(u16, Option<u16>)> {
        let written = self.string(value, "id")?;
        let hex = |text: &str| {
            let is_hex = text.len() == 4 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u16::from_str_radix(text, 16).ok()).flatten()
        };
        let id = written.split_once(':').and_then(|(vendor, product)| match product {
            "*" => Some((hex(vendor)?, None)),
            product => Some((hex(vendor)?, Some(hex(product)?))),
        });
        if id.is_none() {
            self.report_help(
                value.span().start,
                format!("\"{written}\" is no vendor and product"),
                "write both with four hexadecimal digits, as lsusb does: id = \"0781:5581\", or \
                 \"0781:*\" for every product",
            );
        }
        id
    }

    fn usb_descriptors(&mut self, value: &Value<'_>) -> Option<portcullis_common::Digest> {
        let written = self.string(value, "descriptors")?;
        match digest::parse(written) {
            Ok(digest) => Some(digest),
            Err(error) => {
                self.report_help(
                    value.span().start,
                    format!("not a digest of descriptors: {error}"),
                    "copy it as `portcullis usb explain` prints it: 64 digits",
                );
                None
            }
        }
    }

    /// One string or a list of them; empty if any has a mistake.
    fn one_or_more<T>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        read: fn(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(elements) = value.get_ref().as_array() else {
            return read(self, value).into_iter().collect();
        };
        if elements.is_empty() {
            self.report_help(
                value.span().start,
                format!("`{key}` is empty, so the rule would mean no device"),
                "name at least one, or remove the line",
            );
        }
        let read: Option<Vec<_>> = elements.iter().map(|element| read(self, element)).collect();
        read.unwrap_or_default()
    }

    fn usb_port(&mut self, value: &Value<'_>) -> Option<Port> {
        let written = self.string(value, "port")?;
        let is_good = match written.strip_suffix('*') {
            Some(start) => start.bytes().all(|byte| byte.is_ascii_digit() || b"-.".contains(&byte)),
            None => is_port(written),
        };
        if !is_good {
            self.report_help(
                value.span().start,
                format!("\"{written}\" is no port"),
                "write it as `portcullis usb list` shows it: port = \"1-2.3\", or \"1-*\" for a whole bus",
            );
            return None;
        }
        Some(Port(written.into()))
    }

    fn usb_connect(&mut self, value: &Value<'_>) -> Option<Connect> {
        self.word(value, "connect", Connect::WORDS.into_iter())
    }

    /// A list, which means these and no others, or a table of operators.
    fn interfaces(&mut self, value: &Value<'_>) -> Option<Interfaces> {
        if value.get_ref().is_array() {
            let equals = self.patterns(value)?;
            return Some(Interfaces { equals: Some(equals), ..Interfaces::default() });
        }
        if !value.get_ref().is_table() {
            self.report_help(
                value.span().start,
                "`interfaces` must be a list or a table",
                "write interfaces = [\"08:06:50\"], which means these and no others, or interfaces = { \
                 all_of = [\"08:*:*\"], none_of = [\"03:*:*\"] }",
            );
            return None;
        }
        let table = self.table(value, &INTERFACES_KEYS, "interfaces")?;
        let mut read = |key| match table.get(key) {
            None => Some(None),
            Some(value) => self.patterns(value).map(Some),
        };
        let found = [read("equals"), read("all_of"), read("one_of"), read("none_of"), read("only")];
        let count = match table.get("count") {
            None => Some(None),
            Some(value) => self.count(value, "count", "how many interfaces it has").map(Some),
        };
        let [equals, all_of, one_of, none_of, only] = found;
        let found = Interfaces {
            equals: equals?,
            all_of: all_of?,
            one_of: one_of?,
            none_of: none_of?,
            only: only?,
            count: count?,
        };
        if found == Interfaces::default() {
            self.report_help(
                value.span().start,
                "`interfaces` is empty",
                format!("use {}", words(INTERFACES_KEYS.into_iter())),
            );
            return None;
        }
        Some(found)
    }

    fn patterns(&mut self, value: &Value<'_>) -> Option<Vec<Pattern>> {
        let patterns = self.one_or_more(value, "interfaces", |reader, value| {
            let written = reader.string(value, "interfaces")?;
            let pattern = Pattern::parse(written);
            if pattern.is_none() {
                reader.report_help(
                    value.span().start,
                    format!("\"{written}\" is no kind of interface"),
                    "write class, subclass and protocol with two hexadecimal digits each, or * for \
                     any: \"08:06:50\", \"03:*:*\"",
                );
            }
            pattern
        });
        (!patterns.is_empty()).then_some(patterns)
    }
}

fn is_about_everything(table: &DeTable<'_>) -> bool {
    table.keys().all(|key| key.get_ref().as_ref() == "comment")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::Source;
    use crate::usb::{
        device::Connect,
        rules::{Action, Order, Rules},
    };

    fn parse(usb: &str) -> Result<Option<Rules>, String> {
        let text = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{usb}");
        Source::parse(Path::new("p.toml"), &text)
            .map(|source| source.usb)
            .map_err(|found| found.to_string())
    }

    #[test]
    fn a_policy_without_a_word_about_it_leaves_usb_alone() {
        assert_eq!(parse(""), Ok(None));
        let rules = parse("[usb]\n").expect("good").expect("rules");
        assert_eq!((rules.default, rules.rules.len()), (Action::Hold, 0));
    }

    #[test]
    fn everything_that_can_be_said_is_read() {
        let rules = parse(
            "[usb]\ndefault = \"reject\"\norder = \"first\"\n\
             [[usb.hold]]\ninterfaces = { one_of = \"03:*:*\" }\n\
             [[usb.allow]]\nid = \"0781:5581\"\nserial = \"A\"\nport = [\"1-2\", \"2-*\"]\n\
             interfaces = [\"08:06:50\"]\nconnect = \"external\"\nat_most = 1\n\
             storage = \"read-only\"\ncomment = \"c\"\n\
             [[usb.allow]]\nid = \"1d6b:*\"\ninterfaces = \"any\"\n\
             [[usb.allow]]\nname = \"Pump\"\ninterfaces = { only = \"08:*:*\", count = 2 }\n",
        );
        let rules = rules.expect("good").expect("rules");
        assert_eq!((rules.default, rules.order), (Action::Reject, Order::First));
        let [hold, stick, any, named] = &rules.rules[..] else { panic!("{rules:?}") };
        assert_eq!((hold.action, hold.line), (Action::Hold, 7));
        assert_eq!((stick.id, stick.at_most), (Some((0x0781, Some(0x5581))), Some(1)));
        assert_eq!((stick.connect.as_slice(), stick.read_only), (&[Connect::External][..], true));
        assert!(stick.port[1].matches("2-1.4") && !stick.port[1].matches("1-1"));
        assert_eq!((any.id, any.interfaces.clone()), (Some((0x1d6b, None)), None));
        let asked = named.interfaces.as_ref().expect("asked for");
        assert_eq!((named.name.as_deref(), asked.count), (Some("Pump"), Some(2)));
        assert_eq!(asked.only.as_ref().map(Vec::len), Some(1));
    }

    #[test]
    fn every_mistake_is_told_with_its_mend() {
        for (written, told) in [
            ("usb = 1", "[usb] must be a table"),
            ("[usb]\ndefault = \"block\"", "unknown default \"block\"; it can be `allow`"),
            ("[[usb.allow]]\nid = \"0781:5581\"", "`interfaces` is missing in [[usb.allow]]"),
            ("[[usb.allow]]\nid = \"781:5581\"\ninterfaces = \"any\"", "is no vendor and product"),
            ("[[usb.allow]]\ninterfaces = [\"8:6:50\"]", "is no kind of interface"),
            ("[[usb.allow]]\ninterfaces = []", "is empty"),
            ("[[usb.allow]]\ninterfaces = {}", "`interfaces` is empty"),
            ("[usb]\norder = \"last\"", "unknown order \"last\"; it can be `strictest`"),
            ("[[usb.allow]]\ninterfaces = { count = 0 }", "`count` must be a whole number"),
            ("[[usb.allow]]\ninterfaces = 3", "must be a list or a table"),
            ("[[usb.allow]]\ninterfaces = \"any\"\nat_most = 0", "`at_most` must be"),
            ("[[usb.allow]]\ninterfaces = \"any\"\nport = \"usb1\"", "is no port"),
            ("[[usb.allow]]\ninterfaces = \"any\"\nconnect = \"inside\"", "unknown connect"),
            ("[[usb.allow]]\ndescriptors = \"aa\"", "not a digest of descriptors"),
            ("[[usb.hold]]\nat_most = 1", "unknown key `at_most` in [[usb.hold]]"),
            ("[[usb.reject]]\ncomment = \"x\"", "says nothing about which devices it means"),
        ] {
            let found = parse(written).expect_err(written);
            assert!(found.contains(told), "{written}: {found}");
        }
    }
}
