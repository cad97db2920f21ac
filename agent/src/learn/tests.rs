use super::{
    review::{Reviewed, Word},
    *,
};

fn candidate(path: &str, origin: Origin, byte: u8) -> Candidate {
    let kinds = Kinds::EXECUTABLE.union(Kinds::LIBRARY);
    let found = Found { kinds, path: path.into(), digest: [byte; 32] };
    Candidate { found, listed: Kinds(byte & 4), origin, told: "seen once, by sh\nx".into() }
}

#[test]
fn a_review_is_read_as_it_was_written() {
    let learned = Learned {
        candidates: vec![
            candidate("/tmp/a\nb\\c", Origin::Gone, 1),
            candidate("/opt/pump", Origin::Folder { folder: "/opt".into() }, 4),
        ],
        unlistable: vec![Unlistable { path: "/mnt/x\ny".into(), told: "as executable".into() }],
    };
    let mut text = Vec::new();
    review::write(&mut text, &learned, &[Word::Reject, Word::Ask]).expect("memory");
    let read = review::parse(Path::new("r"), &text).expect("good");
    let expected: Vec<_> = learned.candidates.iter().map(|one| one.found.clone()).collect();
    let found: Vec<_> = read.iter().map(|one: &Reviewed| one.found.clone()).collect();
    assert_eq!(found, expected);
    assert_eq!((read[0].word, read[1].word), (Word::Reject, Word::Ask));
    assert_eq!((read[0].listed, read[1].listed), (Kinds::NONE, Kinds::SCRIPT));
}

#[test]
fn mistakes_in_a_review_are_placed() {
    let line = format!("accept executable {}  /opt/pump\n", "a".repeat(64));
    let mistakes = |text: &str| {
        let text = format!("# portcullis review 1\n{text}");
        review::parse(Path::new("r"), text.as_bytes()).expect_err("a mistake").to_string()
    };
    assert!(
        mistakes(&line.replace("accept", "acept")).starts_with("r:2:1: unknown word \"acept\"")
    );
    assert!(
        mistakes(&line.replace("executable", "exe")).starts_with("r:2:8: \"exe\" are no kinds")
    );
    assert!(
        mistakes(&line.replace("aaaa", "aaxa")).starts_with("r:2:19: `x` is not"),
        "{}",
        mistakes(&line.replace("aaaa", "aaxa"))
    );
    assert!(mistakes(&line.replace("  /opt/pump", "")).contains("no path"));
    let found = review::parse(Path::new("r"), b"pick 1\n").expect_err("another file").to_string();
    assert!(found.starts_with("r:1:1: is not a review"), "{found}");
}

#[test]
fn what_runs_here_and_is_not_listed_is_a_candidate() {
    let in_use = preflight_of_this_test();
    let learned = learn(&History::default(), &in_use, |_| None, Files::Here);
    let own = std::fs::read_link("/proc/self/exe").expect("own binary");
    let found = learned.candidates.iter().find(|one| one.found.path == own);
    let found = found.expect("this very program");
    assert!(found.found.kinds.intersects(Kinds::EXECUTABLE), "{found:?}");
    assert!(!found.origin.is_package(), "{found:?}");
    let everything = |_: &_| Some(Rule { kinds: Kinds(!0), ..Rule::default() });
    let learned = learn(&History::default(), &in_use, everything, Files::Here);
    assert_eq!(learned.candidates, []);
}

fn preflight_of_this_test() -> Vec<InUse> {
    let own = std::fs::read_link("/proc/self/exe").expect("own binary");
    let mut all = crate::run::preflight::in_use();
    all.retain(|one| one.path == own);
    all
}

#[test]
fn content_says_which_of_the_kinds_it_is() {
    let wanted = Kinds::EXECUTABLE.union(Kinds::SCRIPT);
    assert_eq!(used_as(wanted, Kinds::SCRIPT), Kinds::SCRIPT);
    assert_eq!(used_as(Kinds::JIT, Kinds::EXECUTABLE), Kinds::JIT);
    assert_eq!(used_as(wanted, Kinds::MODULE), wanted);
}
