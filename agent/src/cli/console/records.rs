//! Records as lines that fit a page of 80 columns.

use std::collections::VecDeque;

use serde_json::Value;

use crate::{
    event::{human::Plain, usb::UsbChange},
    sinks::fields::{Severity, is_alarm, severity, text},
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
        _ => text(record).to_owned(),
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
    let said = |pointer| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let did = match said("/outcome") {
        "deny" => "REFUSED",
        "would-deny" => "would refuse",
        "report" => "noticed",
        "allow" => "ran",
        other => other,
    };
    let what = match said("/artifact/path") {
        "" => "what is no file",
        path => path,
    };
    let process = &record["process"];
    let times = record["count"].as_u64().map(|count| format!(" {count} times")).unwrap_or_default();
    format!(
        "{did}{times} {what} ({}), {} by {}, pid {}, uid {}",
        said("/reason"),
        said("/gate"),
        said("/process/comm"),
        process["pid"],
        process["uid"],
    )
}

fn usb(record: &Value) -> String {
    let change: Result<UsbChange, _> = serde_json::from_value(record.clone());
    change.map_or_else(
        |_| text(record).to_owned(),
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
