//! Records in the Open Cybersecurity Schema Framework, version 1.3.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    super::fields::{Severity, kind, severity, text},
    without_nulls,
};

/// A record in OCSF: what a gate decided as activity of the system, and everything else as a base event.
/// The record itself is under `unmapped`.
pub(super) fn of(event: &Value, host: &str) -> Value {
    let (class, category) = class(event);
    // Nothing is launched, nor anything else that a process activity has a number for.
    let is_memory = class != 0 && event["gate"] == "memory";
    let (activity, name) = match (class, is_memory) {
        (0, _) => (99, json!(kind(event))),
        (_, true) => (99, json!("Make memory executable")),
        _ => (1, Value::Null),
    };
    let time = event["time"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let mut record = event.clone();
    if let Value::Object(members) = &mut record {
        members.remove("text");
    }
    let device = device(host);
    let mut shown = json!({
        "class_uid": class,
        "category_uid": category,
        "activity_id": activity,
        "activity_name": name,
        "type_uid": class * 100 + activity,
        "time": time.map(Timestamp::as_millisecond),
        "severity_id": severity_id(severity(event)),
        "message": text(event),
        "metadata": {
            "version": "1.3.0",
            "profiles": if class == 0 { json!([]) } else { json!(["host", "security_control"]) },
            "product": { "name": "portcullis", "vendor_name": "Portcullis",
                         "version": env!("CARGO_PKG_VERSION") },
            "uid": event["record"].as_u64().map(|record| record.to_string()),
            "sequence": event["record"],
            "event_code": kind(event),
            // A base event has no device of its own.
            "loggers": [{ "name": "portcullis", "device": device }],
        },
        "count": event["count"],
        "start_time": millisecond(&event["first"]),
        "end_time": millisecond(&event["last"]),
        "unmapped": { "portcullis": record },
    });
    if class != 0 {
        shown["device"] = device;
        decision(event, class, &mut shown);
    }
    without_nulls(shown)
}

/// Class and category.
fn class(event: &Value) -> (u32, u32) {
    match (event["type"].as_str(), event["gate"].as_str()) {
        // Module, kernel extension and process activity.
        (Some("decision"), Some("mapping")) => (1005, 1),
        (Some("decision"), Some("kernel")) => (1002, 1),
        (Some("decision"), Some("exec" | "interpreter" | "memory")) => (1007, 1),
        _ => (0, 0),
    }
}

/// The device. A nodename that nobody has set is no host name.
fn device(host: &str) -> Value {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let member = if host.split('.').all(is_label) { "hostname" } else { "name" };
    json!({ member: host, "type_id": 0 })
}

fn decision(event: &Value, class: u32, shown: &mut Value) {
    let artifact = &event["artifact"];
    let path = artifact["path"].as_str().unwrap_or("(none)");
    let digest = &artifact["digest"];
    let file = json!({
        "name": path.rsplit('/').next(),
        "path": path,
        "type_id": 1,
        "size": artifact["size"],
        "hashes": if digest.is_null() {
            Value::Null
        } else {
            json!([{ "algorithm_id": 3, "algorithm": "SHA-256", "value": digest }])
        },
    });
    let process = &event["process"];
    let parent = &process["ancestors"][0];
    let actor = json!({
        "process": {
            "pid": process["pid"],
            "tid": process["tid"],
            "name": process["comm"],
            "user": { "uid": process["uid"].as_u64().map(|uid| uid.to_string()) },
            "parent_process": if parent.is_null() {
                Value::Null
            } else {
                json!({ "pid": parent["pid"], "name": parent["comm"] })
            },
        },
    });
    let refused = event["outcome"] == "deny";
    shown["actor"] = actor;
    shown["action_id"] = json!(if refused { 2 } else { 1 });
    shown["disposition_id"] = json!(match event["outcome"].as_str() {
        Some("deny") => 2,
        Some("would-deny") => 17,
        _ => 1,
    });
    shown["status_id"] = json!(if refused { 2 } else { 1 });
    shown["status_detail"] = event["reason"].clone();
    shown["authorizations"] = json!([{
        "decision": event["outcome"],
        "policy": {
            "name": event["policy"]["name"],
            "version": event["policy"]["version"].as_u64().map(|version| version.to_string()),
        },
    }]);
    match class {
        1005 => shown["module"] = json!({ "file": file, "load_type_id": 1 }),
        1002 => shown["driver"] = json!({ "file": file }),
        _ => {
            // What was to become this process.
            shown["process"] = json!({ "pid": process["pid"], "file": file });
        }
    }
}

fn millisecond(time: &Value) -> Option<i64> {
    Some(time.as_str()?.parse::<Timestamp>().ok()?.as_millisecond())
}

const fn severity_id(severity: Severity) -> u8 {
    match severity {
        Severity::Info => 1,
        Severity::Notice => 2,
        Severity::Warning => 3,
        Severity::Error => 4,
        Severity::Critical | Severity::Alert => 5,
    }
}
