//! Asking a person at a terminal, one origin after the other.

use std::io::{self, BufRead, Write};

use crate::learn::{Candidate, Learned, review::Word};

/// Candidates of one origin that are shown before the question.
const SHOWN: usize = 20;

/// Asks about everything that is not decided. Returns whether to write what was decided: the person may
/// also end it without.
pub fn ask(
    learned: &Learned,
    words: &mut [Word],
    answers: &mut impl BufRead,
    out: &mut impl Write,
) -> io::Result<bool> {
    let groups = learned.candidates.chunk_by(|a, b| a.origin == b.origin);
    let mut first = 0;
    for group in groups {
        let words = &mut words[first..first + group.len()];
        first += group.len();
        if words.contains(&Word::Ask) && !ask_group(group, words, answers, out)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ask_group(
    group: &[Candidate],
    words: &mut [Word],
    answers: &mut impl BufRead,
    out: &mut impl Write,
) -> io::Result<bool> {
    writeln!(out, "\n{} {}:", group.len(), group[0].origin)?;
    for candidate in group.iter().take(SHOWN) {
        show(candidate, out)?;
    }
    if group.len() > SHOWN {
        writeln!(out, "  … and {} more", group.len() - SHOWN)?;
    }
    loop {
        let question = "a: accept all, r: reject all, o: one by one, l: leave for later, q: end and write \
                        nothing";
        match answer(question, answers, out)? {
            Some('a') => words.fill(Word::Accept),
            Some('r') => words.fill(Word::Reject),
            Some('l') => {}
            Some('o') => {
                for (candidate, word) in group.iter().zip(words.iter_mut()) {
                    show(candidate, out)?;
                    let Some(decided) = ask_one(answers, out)? else { return Ok(false) };
                    *word = decided;
                }
            }
            Some('q') | None => return Ok(false),
            Some(_) => continue,
        }
        return Ok(true);
    }
}

fn ask_one(answers: &mut impl BufRead, out: &mut impl Write) -> io::Result<Option<Word>> {
    loop {
        match answer(
            "a: accept, r: reject, l: leave for later, q: end and write nothing",
            answers,
            out,
        )? {
            Some('a') => return Ok(Some(Word::Accept)),
            Some('r') => return Ok(Some(Word::Reject)),
            Some('l') => return Ok(Some(Word::Ask)),
            Some('q') | None => return Ok(None),
            Some(_) => {}
        }
    }
}

/// The first letter of an answer; none if there are no more answers.
fn answer(
    question: &str,
    answers: &mut impl BufRead,
    out: &mut impl Write,
) -> io::Result<Option<char>> {
    write!(out, "{question}? ")?;
    out.flush()?;
    let mut line = String::new();
    if answers.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim().chars().next().unwrap_or(' ')))
}

fn show(candidate: &Candidate, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "  {candidate}")
}

#[cfg(test)]
mod tests {
    use portcullis_common::Kinds;

    use super::*;
    use crate::{learn::Origin, policy::manifest::Found};

    fn learned() -> Learned {
        let one = |path: &str, origin: Origin, byte| Candidate {
            found: Found { kinds: Kinds::EXECUTABLE, path: path.into(), digest: [byte; 32] },
            listed: Kinds::NONE,
            origin,
            told: "seen once".into(),
        };
        let open = || Origin::Open { folder: "/tmp".into() };
        let candidates = vec![
            one("/tmp/a\u{1b}[2J", open(), 1),
            one("/tmp/b", open(), 2),
            one("/usr/bin/pump", Origin::Package { package: "pump".into() }, 3),
        ];
        Learned { candidates, unlistable: Vec::new() }
    }

    fn asked(answers: &str) -> (bool, [Word; 3], String) {
        let (mut words, mut out) = ([Word::Ask; 3], Vec::new());
        let done = ask(&learned(), &mut words, &mut answers.as_bytes(), &mut out).expect("memory");
        (done, words, String::from_utf8(out).expect("text"))
    }

    #[test]
    fn whole_origins_and_single_files_are_decided() {
        let (done, words, out) = asked("what\nr\na\n");
        assert!(done && words == [Word::Reject, Word::Reject, Word::Accept], "{out}");
        assert!(out.contains("2 in /tmp, where others than root can put files:"), "{out}");
        assert!(!out.contains('\u{1b}'), "{out}");
        let (done, words, _) = asked("o\na\nx\nl\nl\n");
        assert!(done && words == [Word::Accept, Word::Ask, Word::Ask]);
    }

    #[test]
    fn ending_is_no_decision() {
        assert!(!asked("a\nq\n").0);
        assert!(!asked("o\na\n").0, "the answers have ended");
    }
}
