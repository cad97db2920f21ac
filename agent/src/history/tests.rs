use std::fs;

use portcullis_common::Rule;

use super::*;
use crate::event::{AncestorInfo, PolicyId};

const PUMP: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("in range")
}

fn decision(outcome: &'static str, path: &str, digest: Option<&str>) -> Decision {
    Decision {
        backend: "bpf-lsm",
        gate: "exec",
        outcome,
        reason: if outcome == "allow" { "listed" } else { "unlisted" },
        mode: "audit",
        policy: PolicyId { name: "p".into(), version: 1, generation: 1 },
        rule: None,
        wanted: vec!["executable"],
        artifact: Some(ArtifactInfo {
            path: path.into(),
            path_hex: None,
            digest: digest.map(str::to_owned),
            size: 7,
            filesystem: "ext4".into(),
            device: "8:1".into(),
            inode: 3,
            hash_status: None,
        }),
        process: ProcessInfo {
            pid: 7,
            tid: 7,
            uid: 0,
            gid: 0,
            comm: "bash".into(),
            cgroup: None,
            cgroup_id: 0,
            ancestors: vec![AncestorInfo { pid: 1, comm: "sshd".into() }],
        },
        cached: false,
        bpf: None,
    }
}

fn unlisted(_: &Digest) -> Option<Rule> {
    None
}

fn listed(kinds: Kinds) -> impl Fn(&Digest) -> Option<Rule> {
    move |_| Some(Rule { kinds, ..Rule::default() })
}

#[test]
fn an_artifact_is_kept_once_with_its_numbers() {
    let mut history = History::default();
    history.note(at(0), &decision("would-deny", "/opt/pump", Some(PUMP)));
    history.note(at(9), &decision("would-deny", "/opt/copy", Some(PUMP)));
    let mut other = decision("allow", "/opt/pump", Some(PUMP));
    other.process.comm = "cron".into();
    history.note(at(20), &other);
    let all = history.artifacts();
    let [pump] = all[..] else { panic!("{all:?}") };
    assert_eq!((pump.path.as_str(), pump.count(), pump.uses.len()), ("/opt/pump", 3, 1));
    assert_eq!((pump.first_seen, pump.last_seen), (at(0), at(20)));
    assert_eq!((pump.uses[0].would_deny, pump.uses[0].allowed), (2, 1));
    assert_eq!((pump.by[0].count, pump.by[1].comm.as_str()), (2, "cron"));
    assert_eq!(
        pump.told(),
        "seen 3 times, last 2027-01-15T08:00:20Z, by bash below sshd (uid 0) and others"
    );
}

#[test]
fn what_is_no_use_as_code_is_not_kept() {
    let mut history = History::default();
    history.note(at(0), &decision("report", "/opt/pump", Some(PUMP)));
    history.note(at(0), &Decision { wanted: Vec::new(), ..decision("deny", "/dev/sda", None) });
    history.note(at(0), &Decision { artifact: None, ..decision("deny", "", None) });
    assert!(history.is_empty());
}

#[test]
fn what_runs_and_is_not_listed_is_suspect() {
    let mut history = History::default();
    history.note(at(0), &decision("would-deny", "/opt/pump", Some(PUMP)));
    let found = history.suspects(at(60), unlisted);
    let [pump] = &found[..] else { panic!("{found:?}") };
    assert_eq!(pump.path.to_str(), Some("/opt/pump"));
    assert!(pump.is_recent && pump.digest == Some([0xaa; 32]) && pump.kinds == Kinds::EXECUTABLE);
    // Another kind is not what was asked for.
    assert_eq!(history.suspects(at(60), listed(Kinds::LIBRARY)).len(), 1);
    assert_eq!(history.suspects(at(60), listed(Kinds::EXECUTABLE)), []);
    let denied = |_: &Digest| Some(Rule { denied: 1, ..Rule::default() });
    assert_eq!(history.suspects(at(60), denied), [], "somebody has decided about it");
    let later = at(8 * 24 * 3600);
    assert!(!history.suspects(later, unlisted)[0].is_recent);
    assert!(history.suspects(at(-3600), unlisted)[0].is_recent, "the clock was set back");
}

#[test]
fn what_was_refused_did_not_run() {
    let mut history = History::default();
    history.note(at(0), &decision("deny", "/tmp/evil", Some(PUMP)));
    assert_eq!(history.suspects(at(1), unlisted), []);
}

#[test]
fn what_is_refused_by_decision_stands_in_nobodys_way() {
    let mut history = History::default();
    history.note(at(0), &decision("would-deny", "/tmp/evil", Some(PUMP)));
    history.note(at(0), &decision("would-deny", "/memfd:evil", None));
    history.settle(unlisted);
    assert_eq!(history.suspects(at(1), unlisted), []);
    // It runs once more.
    history.note(at(2), &decision("would-deny", "/tmp/evil", Some(PUMP)));
    history.note(at(2), &decision("would-deny", "/memfd:evil", None));
    let found = history.suspects(at(3), unlisted);
    let told: Vec<_> = found.iter().map(|one| one.told.contains("--expect-denied")).collect();
    assert_eq!(told, [true, false], "{found:?}");
    assert_eq!(history.expect_denied("/memfd:evil"), 1);
    assert_eq!(history.suspects(at(3), unlisted).len(), 1);
    assert_eq!(history.expect_denied("/tmp/evil"), 1);
    assert_eq!(history.suspects(at(3), unlisted), []);
    // What the policy allows stays what a later policy must not refuse.
    history.note(at(4), &decision("allow", "/tmp/evil", Some(PUMP)));
    history.settle(unlisted);
    assert_eq!(history.suspects(at(5), unlisted).len(), 1);
}

#[test]
fn what_a_policy_dropped_is_asked_about_once() {
    let mut history = History::default();
    history.note(at(0), &decision("allow", "/opt/pump", Some(PUMP)));
    let other = "b".repeat(64);
    let verified =
        Decision { reason: "verified-filesystem", ..decision("allow", "/v", Some(&other)) };
    history.note(at(0), &verified);
    assert_eq!(history.suspects(at(1), unlisted).len(), 2);
    // Put in force all the same.
    history.settle_dropped(unlisted);
    let left = history.suspects(at(1), unlisted);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].path.to_str(), Some("/v"), "no rule says whether it is refused");
    // A policy that lists it came back, and it ran.
    history.note(at(2), &decision("allow", "/opt/pump", Some(PUMP)));
    assert_eq!(history.suspects(at(3), unlisted).len(), 2);
}

#[test]
fn what_no_list_mends_is_suspect_until_it_is_allowed() {
    let mut history = History::default();
    let refused = Decision { reason: "filesystem", ..decision("would-deny", "/mnt/x", Some(PUMP)) };
    history.note(at(0), &refused);
    let found = history.suspects(at(1), listed(Kinds::EXECUTABLE));
    assert!(found[0].told.ends_with("(filesystem)"), "{found:?}");
    history.note(at(2), &decision("allow", "/mnt/x", Some(PUMP)));
    assert_eq!(history.suspects(at(3), listed(Kinds::EXECUTABLE)), []);
}

#[test]
fn is_read_as_it_was_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join(FILE);
    let mut history = History::default();
    history.note(at(0), &decision("would-deny", "/opt/a\n\u{202e}b", Some(PUMP)));
    let mut binary = decision("would-deny", "/opt/\u{fffd}", None);
    binary.artifact.as_mut().expect("one").path_hex = Some("2f6f70742fff".into());
    history.note(at(1), &binary);
    assert_eq!(history.is_changed(), (true, true));
    write(&file, &history.take_text()).expect("written");
    assert_eq!(history.is_changed(), (false, false));
    let read = History::read(&file).expect("whole");
    assert_eq!(read.artifacts(), history.artifacts());
    assert_eq!(read.since(), Some(at(0)));
    let suspects = read.suspects(at(2), unlisted);
    use std::os::unix::ffi::OsStrExt as _;
    assert!(suspects.iter().any(|one| one.path.as_os_str().as_bytes() == b"/opt/\xff"));

    let text = fs::read_to_string(&file).expect("text");
    let damage = |from: &str, to: &str| {
        fs::write(&file, text.replacen(from, to, 1)).expect("written");
        History::read(&file).expect_err("damaged").to_string()
    };
    let (name, shown) =
        (file.display().to_string(), |text: &str, name: &str| text.replace(name, "F"));
    let found = shown(&damage("\"portcullis_history\":2", "\"portcullis_history\":3"), &name);
    assert!(found.starts_with("F:1: format 3 is not known here, only up to 2"), "{found}");
    let found = shown(&damage("executable", "executioner"), &name);
    assert!(found.starts_with("F:2: a kind that is not known"), "{found}");
    let found = shown(&damage(PUMP, &PUMP.replacen('a', "4", 1)), &name);
    assert!(found.starts_with("F:4: its digest is another one"), "{found}");
    let found = shown(&damage("{\"sha256\"", "{\"digest\""), &name);
    assert!(found.starts_with("F:4: "), "{found}");
    let read_end = |end: &str| {
        fs::write(&file, end).expect("written");
        shown(&History::read(&file).expect_err("damaged").to_string(), &name)
    };
    let lines = text.trim_end().rfind('\n').expect("a last line") + 1;
    let found = read_end(&text[..lines]);
    assert!(found.starts_with("F:4: the digest is missing"), "{found}");
    let found = read_end(&text[..lines - 5]);
    assert!(found.starts_with("F:3: was cut short"), "{found}");
    let found = read_end(&format!("{text}{{}}\n"));
    assert!(found.starts_with("F:5: something follows"), "{found}");
    // As the version before has written it.
    let old = text[..lines].replacen("\"portcullis_history\":2", "\"portcullis_history\":1", 1);
    fs::write(&file, old).expect("written");
    assert_eq!(History::read(&file).expect("whole").artifacts(), history.artifacts());
    fs::write(&file, "").expect("written");
    assert!(History::read(&file).expect_err("empty").to_string().contains(":1: is empty"));
}

#[test]
fn a_flood_makes_what_ran_go_last() {
    let mut history = History::default();
    history.note(at(0), &decision("allow", "/opt/pump", Some(PUMP)));
    for number in 0..MAX_ARTIFACTS + 10 {
        let digest = format!("{number:064x}");
        let second = i64::try_from(number).expect("small") + 1;
        history.note(at(second), &decision("deny", "/tmp/evil", Some(&digest)));
    }
    assert_eq!((history.len(), history.forgotten()), (MAX_ARTIFACTS, 11));
    assert!(history.artifacts().iter().any(|artifact| artifact.path == "/opt/pump"));
}
