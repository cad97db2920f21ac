//! What receivers of all kinds want to know of a record, by short names.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// How bad it is, as syslog numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Severity {
    /// Somebody should act now.
    Alert = 1,
    /// Something is seriously wrong.
    Critical = 2,
    /// Something does not work.
    Error = 3,
    /// Something was refused, or is not as it should be.
    Warning = 4,
    /// Somebody changed something, or it would have been refused.
    Notice = 5,
    /// As usual.
    Info = 6,
}

/// What kind of record it is: its type, and for decisions the outcome.
#[must_use]
pub fn kind(event: &Value) -> String {
    let word = |member: &str| event[member].as_str().unwrap_or("unknown").to_owned();
    match event["type"].as_str() {
        Some("decision") => format!("decision-{}", word("outcome")),
        _ => word("type"),
    }
}

/// How bad it is.
#[must_use]
pub fn severity(event: &Value) -> Severity {
    let state = event["state"].as_str().unwrap_or_default();
    match (kind(event).as_str(), state) {
        ("break-glass", "lifted") => Severity::Alert,
        ("reappraisal", _) | ("health", "failed") => Severity::Critical,
        ("lost" | "dropped", _) => Severity::Error,
        ("decision-deny" | "access-refused" | "signature", _)
        | ("catalog" | "bundle" | "break-glass", "refused")
        | ("usb", "held" | "rejected" | "failed" | "came-and-went")
        | ("health", "warning" | "unknown") => Severity::Warning,
        ("decision-allow" | "checkpoint", _)
        | ("health", "ok")
        | ("usb", "allowed" | "detached") => Severity::Info,
        _ => Severity::Notice,
    }
}

/// Whether it is about something that was or would be refused, or went wrong.
#[must_use]
pub fn is_alarm(event: &Value) -> bool {
    let kind = kind(event);
    severity(event) <= Severity::Warning
        || kind == "decision-would-deny"
        || kind == "decision-report"
}

/// The journal's `MESSAGE_ID` of a kind: the first 16 bytes of SHA-256 over `portcullis event KIND`, so
/// that kinds to come have one too.
#[must_use]
pub fn message_id(kind: &str) -> String {
    let digest = Sha256::digest(format!("portcullis event {kind}"));
    hex::encode(&digest[..16])
}

/// The text for people.
#[must_use]
pub fn text(event: &Value) -> &str {
    event["text"].as_str().unwrap_or_default()
}

/// What is worth a field of its own, with short names. Names from outside may hold anything.
#[must_use]
pub fn fields(event: &Value) -> Vec<(&'static str, String)> {
    const WANTED: &[(&str, &str)] = &[
        ("record", "/record"),
        ("chain", "/chain"),
        ("type", "/type"),
        ("outcome", "/outcome"),
        ("gate", "/gate"),
        ("reason", "/reason"),
        ("mode", "/mode"),
        ("policy", "/policy/name"),
        ("version", "/policy/version"),
        ("path", "/artifact/path"),
        ("sha256", "/artifact/digest"),
        ("pid", "/process/pid"),
        ("uid", "/process/uid"),
        ("comm", "/process/comm"),
        ("parent", "/process/ancestors/0/comm"),
        ("bpf", "/bpf/type"),
        ("bpfattach", "/bpf/attach"),
        ("bpfname", "/bpf/name"),
        ("count", "/count"),
        ("state", "/state"),
        ("check", "/check"),
        ("cause", "/cause"),
        ("file", "/file"),
        ("bundle", "/bundle/sha256"),
        ("device", "/device/id"),
        ("port", "/device/port"),
        ("serial", "/device/serial"),
        ("by", "/by/name"),
        ("byuid", "/by/uid"),
        ("stage", "/stage"),
        ("sink", "/sink"),
        ("expected", "/expected"),
        ("found", "/found"),
    ];
    let field = |(name, pointer): &(&'static str, &str)| {
        let value = match event.pointer(pointer)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(yes) => yes.to_string(),
            _ => return None,
        };
        Some((*name, value))
    };
    WANTED.iter().filter_map(field).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_has_the_message_id_that_is_documented() {
        let documented = include_str!("../../../docs/events.md");
        let rows: Vec<_> =
            documented.lines().filter(|line| line.starts_with("| `") && line.len() < 80).collect();
        for word in ["decision-deny", "decision-allow", "usb", "checkpoint", "dropped", "lost"] {
            let row = format!("| `{word}` | `{}` |", message_id(word));
            assert!(rows.contains(&row.as_str()), "{row}");
        }
    }

    #[test]
    fn alarms_are_what_somebody_should_see() {
        let deny = json!({ "type": "decision", "outcome": "deny" });
        let would = json!({ "type": "decision", "outcome": "would-deny" });
        let allow = json!({ "type": "decision", "outcome": "allow" });
        let lifted = json!({ "type": "break-glass", "state": "lifted" });
        assert_eq!(severity(&deny), Severity::Warning);
        assert_eq!(severity(&lifted), Severity::Alert);
        assert!(is_alarm(&deny) && is_alarm(&would) && is_alarm(&lifted) && !is_alarm(&allow));
        assert!(!is_alarm(&json!({ "type": "health", "state": "ok" })));
    }
}
