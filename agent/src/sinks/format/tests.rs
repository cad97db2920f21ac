//! Each form of a refusal, a change and a loss.

use serde_json::{Value, json};

use super::Format;

fn refusal() -> Value {
    json!({
        "record": 12, "chain": "main", "link": 3, "prev": "00", "schema": 1, "seq": 4,
        "time": "2026-11-24T03:48:00.724123456Z", "type": "decision", "backend": "bpf-lsm",
        "gate": "exec", "outcome": "deny", "reason": "unlisted", "mode": "enforce",
        "policy": { "name": "plant-7", "version": 12, "generation": 1 }, "rule": null,
        "wanted": ["executable"],
        "artifact": { "path": "/tmp/x", "digest": "ab", "size": 5, "filesystem": "tmpfs",
                      "device": "0:28", "inode": 7 },
        "process": { "pid": 812, "tid": 812, "uid": 1000, "gid": 1000, "comm": "bash",
                     "cgroup": null, "cgroup_id": 1, "ancestors": [{ "pid": 790, "comm": "sshd" }] },
        "cached": false, "text": "denied exec of /tmp/x",
    })
}

fn written(format: Format, event: &Value) -> Value {
    serde_json::from_str(&format.write("", event, "pump-3")).expect("JSON")
}

#[test]
fn ecs_has_its_fields() {
    let ecs = written(Format::Ecs, &refusal());
    for (pointer, expected) in [
        ("/@timestamp", json!("2026-11-24T03:48:00.724123456Z")),
        ("/event/kind", json!("alert")),
        ("/event/category", json!(["process", "intrusion_detection"])),
        ("/event/type", json!(["start", "denied"])),
        ("/event/outcome", json!("failure")),
        ("/event/sequence", json!(12)),
        ("/file/hash/sha256", json!("ab")),
        ("/process/parent/name", json!("sshd")),
        ("/user/id", json!("1000")),
        ("/portcullis/link", json!(3)),
    ] {
        assert_eq!(ecs.pointer(pointer), Some(&expected), "{pointer}");
    }
    let other = json!({ "type": "lost", "record": 1, "time": "2026-11-24T03:48:00Z", "count": 3 });
    let ecs = written(Format::Ecs, &other);
    assert_eq!(
        (ecs.get("file"), ecs.get("process"), &ecs["event"]["action"]),
        (None, None, &json!("lost"))
    );
}

#[test]
fn ocsf_has_what_its_classes_require() {
    let ocsf = written(Format::Ocsf, &refusal());
    for (pointer, expected) in [
        ("/class_uid", json!(1007)),
        ("/type_uid", json!(100_701)),
        ("/time", json!(1_795_492_080_724_u64)),
        ("/disposition_id", json!(2)),
        ("/severity_id", json!(3)),
        ("/actor/process/pid", json!(812)),
        ("/process/file/hashes/0/value", json!("ab")),
        ("/device/hostname", json!("pump-3")),
        ("/metadata/product/vendor_name", json!("Portcullis")),
    ] {
        assert_eq!(ocsf.pointer(pointer), Some(&expected), "{pointer}");
    }
    for (gate, class, member) in [("mapping", 1005, "module"), ("kernel", 1002, "driver")] {
        let mut event = refusal();
        event["gate"] = gate.into();
        let ocsf = written(Format::Ocsf, &event);
        assert_eq!(ocsf["class_uid"], class);
        assert_eq!(ocsf[member]["file"]["path"], "/tmp/x");
    }
    let other = json!({ "type": "lost", "record": 1, "time": "2026-11-24T03:48:00Z", "count": 3 });
    let ocsf = written(Format::Ocsf, &other);
    assert_eq!((&ocsf["class_uid"], &ocsf["type_uid"]), (&json!(0), &json!(99)));
}
