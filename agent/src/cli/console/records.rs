//! Records as lines that fit a page of 80 columns.

use std::collections::VecDeque;

use serde_json::Value;

use crate::{
    event::{human::Plain, usb::UsbChange},
    sinks::fields::{Severity, is_alarm, kind, severity},
};

/// How many of a sort are remembered.
const REMEMBERED: usize = 200;

/// A record in a line.
pub struct Row {
    /// The time of day, in UTC.
    pub time: String,
    /// What happened.
    pub text: String,
    /// How bad it is.
    pub severity: Severity,
}

/// What happened lately, the latest first.
#[derive(Default)]
pub struct Records {
    /// What came to run, or would have been refused and ran.
    pub runs: VecDeque<Row>,
    /// What was refused or went wrong.
    pub alarms: VecDeque<Row>,
    /// Everything else: changes of policy and mode, agents that started and ended.
    pub changes: VecDeque<Row>,
}

impl Records {
    /// Notes a record.
    pub fn add(&mut self, record: &Value) {
        let (is_decision, ran) = (record["type"] == "decision", record["outcome"] != "deny");
        if is_decision && ran {
            push(&mut self.runs, row(record));
        }
        if is_alarm(record) {
            push(&mut self.alarms, row(record));
        } else if !is_decision && record["type"] != "checkpoint" {
            push(&mut self.changes, row(record));
        }
    }
}

fn push(rows: &mut VecDeque<Row>, row: Row) {
    rows.truncate(REMEMBERED - 1);
    rows.push_front(row);
}

fn row(record: &Value) -> Row {
    let time = record["time"].as_str().unwrap_or_default();
    let time = time.get(11..19).unwrap_or("--:--:--").to_owned();
    let text = match record["type"].as_str() {
        Some("decision") => decision(record),
        Some("usb") => usb(record),
        _ => other(record),
    };
    // Names from outside may hold anything.
    Row {
        time: Plain(&time).to_string(),
        text: Plain(&text).to_string(),
        severity: severity(record),
    }
}

/// `REFUSED /tmp/evil (unlisted), exec by sh, pid 812, uid 0`
fn decision(record: &Value) -> String {
    let text = |pointer| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let did = match text("/outcome") {
        "deny" => "REFUSED",
        "would-deny" => "would refuse",
        "report" => "noticed",
        "allow" => "ran",
        other => other,
    };
    let what = match text("/artifact/path") {
        "" => "what is no file",
        path => path,
    };
    let process = &record["process"];
    let times = record["count"].as_u64().map(|count| format!(" {count} times")).unwrap_or_default();
    format!(
        "{did}{times} {what} ({}), {} by {}, pid {}, uid {}",
        text("/reason"),
        text("/gate"),
        text("/process/comm"),
        process["pid"],
        process["uid"],
    )
}

fn usb(record: &Value) -> String {
    let change: Result<UsbChange, _> = serde_json::from_value(record.clone());
    change.map_or_else(
        |_| other(record),
        |change| {
            let device = &change.device;
            format!(
                "usb {} {} at {} ({}): {}",
                change.state,
                device.id,
                device.port,
                device.kinds,
                change.why()
            )
        },
    )
}

/// The kind of the record, and what it says of itself.
fn other(record: &Value) -> String {
    const SAYING: [&str; 10] =
        ["check", "state", "mode", "gate", "count", "cause", "found", "path", "reason", "message"];
    let mut text = kind(record);
    for word in SAYING {
        match &record[word] {
            Value::String(said) => text.push_str(&format!(" {said}")),
            Value::Number(said) => text.push_str(&format!(" {said}")),
            _ => {}
        }
    }
    let policy = &record["policy"];
    if let Some(name) = policy["name"].as_str() {
        text.push_str(&format!(", policy {name} v{}", policy["version"]));
    }
    text
}
