//! What a kernel program writes into the ring: whatever it is, the record that comes of it is whole in
//! every form in which it leaves the device, and none of them can steer a terminal or end a line.

use jiff::Timestamp;
use portcullis::{
    event::{Body, Event, SCHEMA, decode::GateEvent, enrich::Enricher, human::Line, json},
    sinks::{Ready, format::Format, syslog},
};
use portcullis_common::Ancestor;
use serde_json::Value;

/// Drives the way of an event from the ring to the sinks.
pub fn drive(data: &[u8]) {
    let Ok(mut event) = GateEvent::decode(data) else { return };
    // What would be looked for on this machine.
    event.header.pid = 0;
    event.header.cgroup = 1;
    event.header.ancestors = event.header.ancestors.map(|ancestor| Ancestor { pid: 0, ..ancestor });
    let decision = Enricher::new("bpf-lsm").decision(&event, &[]);
    let record = Event {
        schema: SCHEMA,
        seq: 1,
        time: Timestamp::UNIX_EPOCH,
        body: Body::Decision(Box::new(decision)),
        repeated: None,
    };
    let line = json::line(&record).expect("a record is JSON");
    let read: Value = serde_json::from_str(&line).expect("and is read as such");
    if let Some(hex) = read["artifact"]["path_hex"].as_str() {
        assert_eq!(Some(hex), event.path.as_deref().ok().map(hex_of).as_deref());
    }
    one_line(&line);
    one_line(&Line(&record).to_string());
    for format in [Format::Ocsf, Format::Ecs] {
        let written = format.write(&line, &read, "host");
        one_line(&written);
        serde_json::from_str::<Value>(&written).expect("JSON");
    }
    let body = Format::Text.write(&line, &read, "host");
    one_line(&syslog::message(&Ready { record: 1, event: read, body }, "host"));
}

fn hex_of(path: &[u8]) -> String {
    path.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn one_line(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
