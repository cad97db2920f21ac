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
    let (category, kinds): (&[&str], &[&str]) = match event["type"].as_str().unwrap_or_default() {
        "decision" => (
            category_of(event),
            match outcome {
                "deny" => &["denied"],
                _ => &["allowed"],
            },
        ),
        "usb" => (
            &["host"],
            match event["state"].as_str() {
                Some("allowed") => &["allowed"],
                Some("held" | "rejected") => &["denied"],
                _ => &["info"],
            },
        ),
        "mode-changed" | "policy-changed" | "bundle" | "catalog" | "break-glass" => {
            (&["configuration"], &["change"])
        }
        "access-refused" => (&["authentication"], &["denied"]),
        "agent-started" => (&["process"], &["start"]),
        "agent-stopped" => (&["process"], &["end"]),
        _ => (&["host"], &["info"]),
    };
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
            "type": kinds,
            "action": kind_of_record,
            "outcome": match outcome {
                "deny" => json!("failure"),
                "allow" | "report" | "would-deny" => json!("success"),
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

fn category_of(event: &Value) -> &'static [&'static str] {
    match event["gate"].as_str().unwrap_or_default() {
        "mapping" => &["library"],
        "kernel" => &["driver"],
        "device" | "usb" => &["file"],
        _ => &["process"],
    }
}
