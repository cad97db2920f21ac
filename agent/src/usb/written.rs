//! Rules about USB devices as a policy has them.

use std::fmt::Write;

use super::rules::{Action, Interfaces, Pattern, Rule};
use crate::{artifact::digest, policy::quoted};

/// What a rule says, key by key, with the values as they are written.
fn said(rule: &Rule) -> Vec<(&'static str, String)> {
    let mut said = Vec::new();
    if let Some((vendor, product)) = rule.id {
        let product = product.map_or("*".into(), |product| format!("{product:04x}"));
        said.push(("id", format!("\"{vendor:04x}:{product}\"")));
    }
    if let Some(serial) = &rule.serial {
        said.push(("serial", quoted(serial)));
    }
    if let Some(name) = &rule.name {
        said.push(("name", quoted(name)));
    }
    if let Some(descriptors) = &rule.descriptors {
        said.push(("descriptors", quoted(&digest::format(descriptors))));
    }
    if !rule.port.is_empty() {
        said.push(("port", list(rule.port.iter().map(|port| quoted(&port.0)))));
    }
    if !rule.connect.is_empty() {
        said.push(("connect", list(rule.connect.iter().map(|connect| quoted(connect.word())))));
    }
    match &rule.interfaces {
        Some(wanted) => said.push(("interfaces", interfaces(wanted))),
        None if rule.action == Action::Allow && rule.descriptors.is_none() => {
            said.push(("interfaces", quoted("any")));
        }
        None => {}
    }
    if let Some(most) = rule.at_most {
        said.push(("at_most", most.to_string()));
    }
    if rule.read_only {
        said.push(("storage", quoted("read-only")));
    }
    said
}

/// A rule as lines of a policy.
#[must_use]
pub fn text_of(rule: &Rule) -> String {
    let mut text = format!("[[usb.{}]]\n", rule.action.word());
    for (key, value) in said(rule) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{key} = {value}");
    }
    text
}

/// A rule in one line.
#[must_use]
pub fn line_of(rule: &Rule) -> String {
    let said: Vec<_> = said(rule).iter().map(|(key, value)| format!("{key} = {value}")).collect();
    format!("usb {} {}", rule.action.word(), said.join(", "))
}

fn list(values: impl Iterator<Item = String>) -> String {
    format!("[{}]", values.collect::<Vec<_>>().join(", "))
}

fn interfaces(interfaces: &Interfaces) -> String {
    let Interfaces { equals, all_of, one_of, none_of, only, count } = interfaces;
    let lists = [
        ("equals", equals),
        ("all_of", all_of),
        ("one_of", one_of),
        ("none_of", none_of),
        ("only", only),
    ];
    let patterns =
        |patterns: &Vec<Pattern>| list(patterns.iter().map(|one| quoted(&one.to_string())));
    let mut said: Vec<_> = lists
        .into_iter()
        .filter_map(|(key, wanted)| Some(format!("{key} = {}", patterns(wanted.as_ref()?))))
        .collect();
    said.extend(count.map(|count| format!("count = {count}")));
    format!("{{ {} }}", said.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::policy::source::Source;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        let text = "[[usb.allow]]\nid = \"0781:*\"\nserial = \"a\\n\\\"b\"\nname = \"\"\nport = \
                    [\"1-*\", \"2-1.4\"]\nconnect = [\"internal\", \"unused\"]\ninterfaces = { equals = \
                    [\"08:*:*\"], one_of = [\"08:06:50\"], none_of = [\"03:*:*\"], only = [\"08:*:*\"], count \
                    = 2 }\nat_most = 3\nstorage = \"read-only\"\n[[usb.allow]]\nid = \
                    \"1d6b:0002\"\ninterfaces = \"any\"\n[[usb.reject]]\ninterfaces = { all_of = \
                    [\"03:*:*\"] }\n";
        let read = |text: &str| {
            let text = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n[usb]\n{text}");
            let source = Source::parse(Path::new("p.toml"), &text).expect("good");
            source.usb.expect("rules").rules
        };
        let rules = read(text);
        let written: String = rules.iter().map(text_of).collect();
        assert_eq!(written, text);
        assert_eq!(read(&written), rules);
        assert_eq!(line_of(&rules[2]), "usb reject interfaces = { all_of = [\"03:*:*\"] }");
    }
}
