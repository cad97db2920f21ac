//! Records in the Elastic Common Schema, version 8.

use serde_json::{Value, json};

use super::{
    super::fields::{kind, severity, text},
    without_nulls,
};

/// A record in ECS, with the record itself under `portcullis`, which ECS leaves to us.
pub(super) fn of(event: &Value, host: &str) -> Value {
    let kind_of_record = kind(event);
    let outcome = event["outcome"].as_str().unwrap_or_default();
    let (category, types) = class(event, outcome);
    let artifact = &event["artifact"];
    let process = &event["process"];
    let parent = &process["ancestors"][0];
    let is_alert = matches!(outcome, "deny" | "would-deny") || event["type"] == "reappraisal";
    let mut record = event.clone();
    if let Value::Object(members) = &mut record {
        members.remove("text");
    }
    without_nulls(json!({
        "@timestamp": event["time"],
        "ecs": { "version": "8.11.0" },
        "message": text(event),
        "event": {
            "kind": if is_alert { "alert" } else { "event" },
            "category": category,
            "type": types,
            "action": kind_of_record,
            "outcome": match (outcome, event["type"].as_str()) {
                ("deny", _) | (_, Some("access-refused")) => json!("failure"),
                ("allow" | "report" | "would-deny", _) => json!("success"),
                _ => Value::Null,
            },
            "reason": event["reason"],
            "sequence": event["record"],
            "severity": severity(event) as u8,
            "module": "portcullis",
            "dataset": "portcullis.event",
        },
        "host": { "hostname": host },
        "observer": { "vendor": "Portcullis", "product": "portcullis", "type": "hids" },
        "rule": { "name": event["rule"]["file"], "ruleset": event["policy"]["name"],
                  "version": event["policy"]["version"].as_u64().map(|version| version.to_string()) },
        "file": {
            "path": artifact["path"],
            "size": artifact["size"],
            "inode": artifact["inode"].as_u64().map(|inode| inode.to_string()),
            "hash": { "sha256": artifact["digest"] },
        },
        "process": {
            "pid": process["pid"],
            "name": process["comm"],
            "thread": { "id": process["tid"] },
            "parent": { "pid": parent["pid"], "name": parent["comm"] },
        },
        "user": { "id": process["uid"].as_u64().map(|uid| uid.to_string()) },
        "portcullis": record,
    }))
}

/// Categories, and the types of each. Who refuses is an intrusion detection system: only those and networks
/// have types for it.
fn class(event: &Value, outcome: &str) -> (&'static [&'static str], &'static [&'static str]) {
    let state = event["state"].as_str().unwrap_or_default();
    match event["type"].as_str().unwrap_or_default() {
        "decision" => {
            let is_refused = outcome == "deny";
            match event["gate"].as_str().unwrap_or_default() {
                "mapping" => (&["library", "intrusion_detection"], began(is_refused)),
                "kernel" => (&["driver", "intrusion_detection"], began(is_refused)),
                "device" | "usb" => (&["file", "intrusion_detection"], changed(is_refused)),
                "exec" | "interpreter" => (&["process", "intrusion_detection"], began(is_refused)),
                _ => (&["process", "intrusion_detection"], changed(is_refused)),
            }
        }
        "usb" => match state {
            "allowed" => (&["host", "intrusion_detection"], &["info", "allowed"]),
            "held" | "rejected" => (&["host", "intrusion_detection"], &["info", "denied"]),
            _ => (&["host"], &["info"]),
        },
        "mode-changed" | "policy-changed" | "bundle" | "catalog" | "break-glass" => {
            (&["configuration"], &["change"])
        }
        "access-refused" => (&["authentication", "intrusion_detection"], &["start", "denied"]),
        "agent-started" => (&["process"], &["start"]),
        "agent-stopped" => (&["process"], &["end"]),
        _ => (&["host"], &["info"]),
    }
}

const fn began(is_refused: bool) -> &'static [&'static str] {
    if is_refused { &["start", "denied"] } else { &["start", "allowed"] }
}

const fn changed(is_refused: bool) -> &'static [&'static str] {
    if is_refused { &["change", "denied"] } else { &["change", "allowed"] }
}
