//! A record of every kind that the agent can write, with everything that can be in it.

use jiff::Timestamp;
use portcullis_common::{BpfLoad, Gate, Outcome, Reason};
use serde_json::{Value, json};

use super::{
    AccessRefused, AncestorInfo, ArtifactInfo, Body, BundleChange, CatalogChange, Decision, Event,
    GlassChange, PolicyId, ProcessInfo, Repeated, RulePlace, SCHEMA, SignatureRejected,
    bpf::BpfInfo,
    usb::{UsbChange, UsbDevice},
};
use crate::{
    catalog::SignedBy,
    control::caller::Caller,
    deployment::Kept,
    spool::{
        Dropped,
        chain::{Chain, Heads},
        seal::Seal,
    },
    usb::{seen::Actor, storm::Untold},
};

fn policy() -> PolicyId {
    PolicyId { name: "plant-7".into(), version: 12, generation: 3 }
}

fn by() -> Caller {
    Caller::Local { uid: 0, pid: Some(4711) }
}

fn digest() -> String {
    "ab".repeat(32)
}

fn signed() -> Vec<SignedBy> {
    vec![SignedBy { signer: "maker".into(), slot: "maker".into(), ..SignedBy::default() }]
}

/// A decision. What is no file has no artifact; memory knows no digest.
fn decision(gate: Gate, outcome: Outcome, reason: Reason) -> Decision {
    let is_file = reason != Reason::NoFile;
    let artifact = ArtifactInfo {
        path: "/opt/plant/bin/pump \u{1b}".into(),
        path_hex: Some("2f6f7074ff".into()),
        digest: (gate != Gate::Memory).then(digest),
        size: 48_153,
        filesystem: "ext4".into(),
        device: "8:1".into(),
        inode: u64::MAX,
        hash_status: Some(-5),
    };
    Decision {
        backend: "bpf-lsm",
        gate: gate.word(),
        outcome: outcome.word(),
        reason: reason.word(),
        mode: "enforce",
        policy: policy(),
        rule: (outcome == Outcome::Allow).then(|| RulePlace {
            file: "catalog.txt".into(),
            line: 7,
            kinds: vec!["executable"],
            signers: vec!["maker".into()],
        }),
        wanted: vec!["executable"],
        artifact: is_file.then_some(artifact),
        process: ProcessInfo {
            pid: 812,
            tid: 813,
            uid: 1000,
            gid: 1000,
            comm: "bash".into(),
            cgroup: Some("/user.slice".into()),
            cgroup_id: 412,
            // Of the first process there are none.
            ancestors: if is_file {
                vec![AncestorInfo { pid: 790, comm: "sshd".into() }]
            } else {
                vec![]
            },
        },
        cached: false,
        bpf: (reason == Reason::OtherBpf).then(|| {
            BpfInfo::of(&BpfLoad { kind: 29, attach: 27, name: *b"others\0\0\0\0\0\0\0\0\0\0" })
        }),
    }
}

/// Every combination of gate and outcome, and every reason.
fn decisions() -> impl Iterator<Item = Body> {
    let combined = Gate::ALL.iter().flat_map(|gate| {
        Outcome::ALL.iter().map(|outcome| decision(*gate, *outcome, Reason::Unlisted))
    });
    let reasons = Reason::ALL.iter().map(|reason| decision(Gate::Exec, Outcome::Deny, *reason));
    let no_file = Gate::ALL.iter().map(|gate| decision(*gate, Outcome::WouldDeny, Reason::NoFile));
    combined.chain(reasons).chain(no_file).map(|decision| Body::Decision(Box::new(decision)))
}

fn usb(state: &str) -> Body {
    Body::Usb(Box::new(UsbChange {
        state: state.into(),
        reason: "listed".into(),
        line: Some(3),
        error: Some("EIO".into()),
        by: Some(Actor { pid: 9, comm: "sh".into() }),
        to_allow: Some("allow".into()),
        untold: Some(Untold { judged: 1, detached: 2, changed: 3 }),
        policy: policy(),
        device: UsbDevice {
            port: "1-2".into(),
            bus: 1,
            number: 4,
            id: "0781:5581".into(),
            manufacturer: "SanDisk".into(),
            name: "Ultra".into(),
            serial: Some("4C53".into()),
            class: Some("00:00:00".into()),
            interfaces: vec!["08:06:50".into()],
            kinds: "disk".into(),
            descriptors: digest(),
            connect: "external".into(),
            speed: "480".into(),
            configuration: Some("1".into()),
            authorized: true,
            flaw: Some("too long".into()),
        },
    }))
}

fn catalog(state: &'static str) -> Body {
    let is_refused = state == "refused";
    Body::Catalog(Box::new(CatalogChange {
        state,
        file: "/etc/portcullis/catalogs.d/pump.catalog".into(),
        name: Some("pump".into()),
        version: Some(2),
        digest: Some(digest()),
        signed: signed(),
        digests: 5,
        withdrawn: 1,
        reason: is_refused.then(|| "signature".into()),
        message: is_refused.then(|| "nobody whom the policy names has signed it".into()),
        by: is_refused.then(by),
    }))
}

fn bundle(state: &'static str) -> Body {
    let kept = Kept { sha256: digest(), policy: "plant-7".into(), version: 12, epoch: 0 };
    Body::Bundle(Box::new(BundleChange {
        state,
        bundle: (state != "refused").then_some(kept),
        signed: signed(),
        message: Some("why".into()),
        until: Some(Timestamp::UNIX_EPOCH),
        by: Some(by()),
    }))
}

fn glass(state: &'static str) -> Body {
    Body::BreakGlass(Box::new(GlassChange {
        state,
        signed: signed(),
        until: Some(Timestamp::UNIX_EPOCH),
        message: Some("why".into()),
        by: Some(by()),
    }))
}

fn health(state: &'static str) -> Body {
    Body::Health { check: "pins", state, found: "gone".into(), mend: Some("start".into()) }
}

fn reappraisal(place: &'static str) -> Body {
    Body::Reappraisal {
        path: "/usr/bin/true".into(),
        expected: digest(),
        found: "cd".repeat(32),
        place,
    }
}

/// The kinds that are there once, and the first of the others. A new one does not compile until it is here.
fn follows(body: Option<&Body>) -> Option<Body> {
    Some(match body {
        None => Body::Decision(Box::new(decision(Gate::Exec, Outcome::Deny, Reason::Denied))),
        Some(Body::Decision(_)) => Body::Lost { gate: "exec", count: 3 },
        Some(Body::Lost { .. }) => Body::AgentStarted {
            pid: 77,
            version: "1.2.3",
            backend: "bpf-lsm",
            mode: "enforce",
            policy: policy(),
            digests: 9,
        },
        Some(Body::AgentStarted { .. }) => {
            Body::ModeChanged { mode: "audit", policy: policy(), by: Some(by()) }
        }
        Some(Body::ModeChanged { .. }) => catalog("in-force"),
        Some(Body::Catalog(_)) => bundle("in-force"),
        Some(Body::Bundle(_)) => glass("lifted"),
        Some(Body::BreakGlass(_)) => usb("allowed"),
        Some(Body::Usb(_)) => Body::AccessRefused(Box::new(AccessRefused {
            reason: "role",
            message: "may not".into(),
            count: 2,
            address: ([192, 0, 2, 1], 4711).into(),
            by: Some(by()),
        })),
        Some(Body::AccessRefused(_)) => Body::Signature(Box::new(SignatureRejected {
            path: "/usr/bin/true".into(),
            path_hex: Some("2fff".into()),
            digest: Some(digest()),
            reason: "unknown-key",
            message: "nobody knows the key".into(),
        })),
        Some(Body::Signature(_)) => {
            Body::PolicyChanged { policy: policy(), digests: 9, cause: "catalogs", by: Some(by()) }
        }
        Some(Body::PolicyChanged { .. }) => health("ok"),
        Some(Body::Health { .. }) => reappraisal("page-cache"),
        Some(Body::Reappraisal { .. }) => Body::Dropped(Box::new(Dropped {
            stage: "spool",
            sink: Some("siem".into()),
            chain: Chain::Main,
            first: 1,
            last: 4,
            count: 4,
            prev: [7; 32],
        })),
        Some(Body::Dropped(_)) => Body::Checkpoint(Box::new(Seal {
            sealed: 12,
            heads: Heads::default(),
            key: digest(),
            signature: digest(),
        })),
        Some(Body::Checkpoint(_)) => Body::AgentStopped { cause: "stop", gates_stay: true },
        Some(Body::AgentStopped { .. }) => return None,
    })
}

/// A record of every kind, as sinks get it.
pub fn every() -> Vec<Value> {
    let mut bodies: Vec<Body> = Vec::new();
    let mut one = follows(None);
    while let Some(body) = one {
        one = follows(Some(&body));
        bodies.push(body);
    }
    bodies.extend(decisions());
    bodies.extend(["removed", "refused"].map(catalog));
    bodies.extend(
        ["trial", "confirmed", "reverted", "passed-over", "set-back", "refused"].map(bundle),
    );
    bodies.extend(["over", "stop", "refused"].map(glass));
    bodies.extend(["warning", "failed", "unknown"].map(health));
    bodies.push(reappraisal("disk"));
    let states = [
        "held",
        "rejected",
        "would-hold",
        "would-reject",
        "detached",
        "failed",
        "came-and-went",
        "authorized",
        "deauthorized",
        "configured",
        "unconfigured",
    ];
    bodies.extend(states.map(usb));
    let mut records: Vec<_> =
        bodies.into_iter().zip(1..).map(|(body, seq)| record(seq, body, None)).collect();
    let many = decision(Gate::Mapping, Outcome::Deny, Reason::Unlisted);
    let (first, last) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
    records.push(record(
        0,
        Body::Decision(Box::new(many)),
        Some(Repeated { count: 250, first, last }),
    ));
    records
}

fn record(seq: u64, body: Body, repeated: Option<Repeated>) -> Value {
    let time = "2026-11-24T03:48:00.724123456Z".parse().expect("a time");
    let event = Event { schema: SCHEMA, seq, time, body, repeated };
    let mut record = serde_json::to_value(event).expect("JSON");
    let place = json!({ "record": seq + 100, "chain": "main", "link": seq, "prev": digest(),
                        "text": "what happened" });
    record
        .as_object_mut()
        .expect("an object")
        .extend(place.as_object().expect("an object").clone());
    record
}
