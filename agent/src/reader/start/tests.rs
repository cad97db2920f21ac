use std::{collections::BTreeMap, fs, io::Write as _, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::reader::give::Pieces;

const NOTHING: Pieces<'static> = Pieces(&[], &[]);

/// A word as a script says it.
fn said(word: &Word) -> String {
    let text = serde_json::to_string(word).expect("JSON");
    let length = u32::try_from(text.len()).expect("short").to_le_bytes();
    let length: String = length.iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!("printf '{length}%s' '{text}' >&0\n")
}

/// A process that does what a script says, in the place of the one that reads.
fn start(script: &str) -> Start {
    Start {
        program: "/bin/sh".into(),
        arguments: vec!["-c".into(), script.into()],
        silence: Duration::from_secs(30),
        longest: Duration::from_secs(60),
        ..Start::default()
    }
}

fn read(script: &str) -> Result<Result<(), Why>, Trouble> {
    start(script).read(&Task::Token, &mut { NOTHING })
}

/// Begins as it should, and takes the task from the socket.
fn alone() -> String {
    let task = 4 + serde_json::to_string(&Task::Token).expect("JSON").len();
    said(&Word::Alone { how: "as a script".into() }) + &format!("head -c {task} >/dev/null\n")
}

#[test]
fn what_it_says_is_believed_when_it_has_ended_well() {
    let done = alone() + &said(&Word::Read);
    assert!(matches!(read(&done), Ok(Ok(()))));
    let refused = |reason: &str, message: &str| {
        let word = Word::Refused { reason: reason.into(), message: message.into() };
        read(&(alone() + &said(&word))).expect("read").expect_err("refused")
    };
    assert_eq!(refused("truncated", "it ends"), ("truncated", "it ends".into()));
    // Reasons are not its own to make, and it does not write to anybody's terminal.
    assert_eq!(refused("allowed", "a\x1b[2Jb"), ("malformed", "a\u{fffd}[2Jb".into()));
    let trouble = read(&(done + "exit 3")).expect_err("in the end");
    assert!(matches!(trouble, Trouble::Ended { status, .. } if status.code() == Some(3)));
}

#[test]
fn one_that_ends_otherwise_refuses() {
    for (script, expected) in [
        ("exit 0", "nonsense"),
        ("echo no memory >&2; exit 3", "ended with code 3: no memory"),
        ("kill -9 $$", "was killed"),
        ("kill -ABRT $$", "has given up"),
        ("kill -SYS $$", "asked the kernel for what it may not have"),
        ("kill -XCPU $$", "used the processor for too long"),
        ("kill -SEGV $$", "SIGSEGV"),
    ] {
        for before in [String::new(), alone()] {
            let trouble = read(&format!("ulimit -c 0; {before}{script}")).expect_err(script);
            assert!(trouble.to_string().contains(expected), "{script}: {trouble}");
            assert_eq!(trouble.reason(), "reader-failed", "{script}");
        }
    }
}

#[test]
fn one_that_says_anything_else_is_ended() {
    let long = u32::MAX.to_le_bytes().map(|byte| format!("\\{byte:03o}")).concat();
    let scripts = [
        said(&Word::Read),
        alone() + &alone(),
        "printf 'aaaaaaaa' >&0".to_owned(),
        format!("printf '{long}' >&0"),
        alone() + &said(&Word::Read) + "printf more >&0; sleep 30",
    ];
    for script in scripts {
        let trouble = read(&script).expect_err("nonsense");
        assert!(matches!(trouble, Trouble::Nonsense(_) | Trouble::Ended { .. }), "{trouble}");
    }
}

#[test]
fn one_that_does_nothing_or_goes_on_for_ever_is_ended() {
    let short = Duration::from_millis(1500);
    let start = |script: &str| Start { silence: short, ..start(script) };
    let read = |script: &str| start(script).read(&Task::Token, &mut { NOTHING });
    let trouble = read(&(alone() + "exec sleep 100")).expect_err("silent");
    assert!(matches!(trouble, Trouble::Silent(_)), "{trouble}");
    // Stopped by somebody, also while it is given something that it does not take.
    let ask = said(&Word::Give { name: b"token".to_vec() });
    let large = vec![0; 8 << 20];
    let pieces = [("token", &large[..])];
    let script = start(&(alone() + &ask + "kill -STOP $$"));
    let trouble = script.read(&Task::Token, &mut Pieces(&pieces, &[])).expect_err("stopped");
    assert!(matches!(trouble, Trouble::Silent(_)), "{trouble}");
    // Busy, which is no silence.
    let busy =
        Start { longest: Duration::from_secs(3), ..start(&(alone() + "while :; do :; done")) };
    let trouble = busy.read(&Task::Token, &mut { NOTHING }).expect_err("busy");
    assert!(matches!(trouble, Trouble::Long(_)), "{trouble}");
    // It has given its socket away.
    let trouble = read(&(alone() + "exec 0<&-; exec sleep 100")).expect_err("gone");
    assert!(matches!(trouble, Trouble::Nonsense(_)), "{trouble}");
}

#[test]
fn one_is_not_waited_for_when_the_agent_ends() {
    static ENDING: AtomicBool = AtomicBool::new(false);
    let script = alone() + "exec sleep 100";
    let start = Start { silence: Duration::from_secs(60), ending: &ENDING, ..start(&script) };
    let trouble = std::thread::scope(|scope| {
        let reading = scope.spawn(|| start.read(&Task::Token, &mut { NOTHING }));
        ENDING.store(true, Ordering::Relaxed);
        reading.join().expect("no panic").expect_err("ended")
    });
    assert!(matches!(trouble, Trouble::Ending), "{trouble}");
}

#[test]
fn one_that_cannot_be_started_has_a_reason_of_its_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("program");
    let start = Start { program: program.clone(), ..Start::default() };
    let mut pieces = NOTHING;
    let gone = start.read(&Task::Token, &mut pieces).expect_err("not there");
    fs::File::create(&program).and_then(|mut file| file.write_all(b"x")).expect("written");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).expect("set");
    let refused = start.read(&Task::Token, &mut pieces).expect_err("no program");
    for trouble in [gone, refused] {
        assert!(matches!(trouble, Trouble::Start(_)), "{trouble}");
        assert_eq!(trouble.reason(), "no-reader");
    }
}

#[test]
fn it_gets_what_it_asks_for_and_nothing_else() {
    let mut asked = BTreeMap::new();
    struct Counting<'a>(&'a mut BTreeMap<Vec<u8>, usize>);
    impl Give for Counting<'_> {
        fn give(&mut self, name: &[u8]) -> Gift<'_> {
            *self.0.entry(name.to_vec()).or_default() += 1;
            Gift::Nothing
        }
    }
    let ask = said(&Word::Give { name: b"token".to_vec() });
    let block = said(&Word::Block { number: u64::MAX });
    let script = alone() + &ask + &block + &said(&Word::Read);
    // It does not listen to what it is given.
    let _ = start(&(script + "cat <&0 >/dev/null & wait"))
        .read(&Task::Token, &mut Counting(&mut asked));
    assert_eq!(asked, BTreeMap::from([(b"token".to_vec(), 1)]));
}
