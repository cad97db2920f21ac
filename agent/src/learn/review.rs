//! A review as a file: what is to be decided, a line each, grouped by where it comes from.
//!
//! ```text
//! # portcullis review 1
//! # == in /opt/pump, of no package
//! ask executable 0123…cdef  /opt/pump/pumpd
//! #   seen 3 times, last 2026-11-25T10:00:00Z, by bash below sshd (uid 0)
//! ```
//!
//! A person puts `accept` or `reject` in the place of `ask`. After the two words a line is as
//! `sha256sum` writes it. `executable/library` is a use as an executable of what is listed as a library:
//! rejecting that does not deny the digest.

use std::{
    io::{self, Write},
    path::Path,
};

use portcullis_common::Kinds;

use super::{Learned, Unlistable};
use crate::{
    event::human::Plain,
    policy::{
        diagnostic::{Diagnostic, Diagnostics, closest},
        manifest::{Found, digest_in, path_in, write_line},
    },
};

/// The first line.
const HEADER: &str = "# portcullis review 1";

const HELP: &str = "\
# Put accept or reject in the place of each ask, and then:
#   portcullis policy learn --review THIS_FILE -o learned.manifest
# What you accept may run; what you reject is denied by name. Lines that are taken out stay undecided.
";

/// Mistakes that are shown at once.
const MAX_MISTAKES: usize = 100;

/// What a person says about a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nothing yet.
    Ask,
    /// It may run.
    Accept,
    /// It may not.
    Reject,
}

const WORDS: [(&str, Word); 3] =
    [("ask", Word::Ask), ("accept", Word::Accept), ("reject", Word::Reject)];

/// A line of a review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reviewed {
    /// What was decided.
    pub word: Word,
    /// About what.
    pub found: Found,
    /// What it is listed as already.
    pub listed: Kinds,
    /// The line, counted from 1.
    pub line: u32,
}

/// Writes a review with these words before the candidates.
///
/// # Errors
/// If writing fails.
pub fn write(out: &mut impl Write, learned: &Learned, words: &[Word]) -> io::Result<()> {
    writeln!(out, "{HEADER}\n{HELP}#")?;
    let mut origin = None;
    for (candidate, word) in learned.candidates.iter().zip(words) {
        if origin != Some(&candidate.origin) {
            writeln!(out, "\n# == {}", candidate.origin)?;
            origin = Some(&candidate.origin);
        }
        let Found { kinds, path, digest } = &candidate.found;
        let word = WORDS.iter().find(|(_, one)| one == word).map_or("ask", |(word, _)| word);
        let words = |kinds: Kinds| kinds.words().collect::<Vec<_>>().join(",");
        write!(out, "{word} {}", words(*kinds))?;
        if !candidate.listed.is_empty() {
            write!(out, "/{}", words(candidate.listed))?;
        }
        out.write_all(b" ")?;
        write_line(out, digest, path)?;
        writeln!(out, "#   {}", Plain(&candidate.told))?;
    }
    if !learned.unlistable.is_empty() {
        writeln!(
            out,
            "\n# == has run, and cannot be listed (docs/limits.md says what can be done)"
        )?;
    }
    for Unlistable { path, told } in &learned.unlistable {
        writeln!(out, "# {} {}", Plain(&path.to_string_lossy()), Plain(told))?;
    }
    Ok(())
}

/// Reads a review.
///
/// # Errors
/// Every mistake, up to a hundred.
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<Reviewed>, Diagnostics> {
    let mut lines = (1..).zip(bytes.split(|byte| *byte == b'\n'));
    let mistake = |line: u32, column: usize, message: String| Diagnostic {
        file: file.to_owned(),
        line,
        column: u32::try_from(column).unwrap_or(u32::MAX),
        message,
        help: None,
    };
    let (mut reviewed, mut found) = (Vec::new(), Vec::new());
    if lines.next().is_none_or(|(_, line)| line.trim_ascii_end() != HEADER.as_bytes()) {
        let mistake = mistake(1, 1, "is not a review".into());
        let help =
            format!("its first line is `{HEADER}`; `portcullis policy learn --write-review`");
        Diagnostics::check(vec![mistake.with_help(help)])?;
    }
    for (number, line) in lines {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        match entry(line, |column, message| mistake(number, column, message)) {
            Ok((word, found, listed)) => {
                reviewed.push(Reviewed { word, found, listed, line: number });
            }
            Err(mistake) => found.push(mistake),
        }
        if found.len() >= MAX_MISTAKES {
            break;
        }
    }
    Diagnostics::check(found)?;
    Ok(reviewed)
}

fn entry(
    line: &[u8],
    mistake: impl Fn(usize, String) -> Diagnostic,
) -> Result<(Word, Found, Kinds), Diagnostic> {
    const FORM: &str = "a line is `accept executable DIGEST  PATH`";
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let mut next = || words.next().map(String::from_utf8_lossy).unwrap_or_default().into_owned();
    let (first, second) = (next(), next());
    let Some((_, word)) = WORDS.iter().find(|(word, _)| *word == first) else {
        let known = WORDS.iter().map(|(word, _)| *word);
        let help = closest(&first, known).map_or_else(
            || "it can be ask, accept or reject".to_owned(),
            |meant| format!("did you mean `{meant}`?"),
        );
        return Err(mistake(1, format!("unknown word {first:?}")).with_help(help));
    };
    let column = 2 + first.len();
    let (wanted, listed) = second.split_once('/').unwrap_or((&second, ""));
    let known = |words: &str| {
        let kinds = Kinds::of_words(words.split(','));
        (kinds.words().count() == words.split(',').count()).then_some(kinds)
    };
    let listed = if listed.is_empty() { Some(Kinds::NONE) } else { known(listed) };
    let (Some(kinds), Some(listed)) = (known(wanted), listed) else {
        return Err(mistake(column, format!("{second:?} are no kinds")).with_help(FORM));
    };
    let column = column + 1 + second.len();
    let rest = line.get(column - 1..).unwrap_or_default();
    let digest = digest_in(rest, |at, message| mistake(column + at - 1, message))?;
    let path = path_in(rest)
        .ok_or_else(|| mistake(column, "no path after the digest".into()).with_help(FORM))?;
    Ok((*word, Found { kinds, path, digest }, listed))
}
