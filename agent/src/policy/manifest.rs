//! Manifests: lists of digests with kinds, which `sha256sum -c` can check.
//!
//! ```text
//! # portcullis manifest 1
//! # kinds: executable
//! 0123…cdef  /usr/bin/pump
//! # kinds: library script
//! …
//! # end: 2 entries
//! ```
//!
//! `sha256sum` ignores the comments. Without the first line it is a plain list of digests, and
//! the policy that includes it says the kinds. A name with a backslash, newline or carriage
//! return is written as `sha256sum` does: escaped, with a backslash before the digest.

use std::{
    borrow::Cow,
    io::{self, Write},
    path::{Path, PathBuf},
};

use portcullis_common::{Digest, Kinds};

use crate::{
    artifact::digest,
    policy::diagnostic::{Diagnostic, Diagnostics, closest},
};

/// The first line's beginning; the format's number follows.
const HEADER: &str = "# portcullis manifest ";
/// The only format there is.
const FORMAT: &str = "1";
/// What begins the lines that say what the entries after them may be used as.
pub(super) const KINDS: &str = "# kinds:";
const END: &str = "# end:";

/// How many mistakes are collected before the file is taken for something else altogether.
const MAX_MISTAKES: usize = 100;

/// A line that names an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The artifact.
    pub digest: Digest,
    /// What it may be used as.
    pub kinds: Kinds,
    /// Its line, counted from 1.
    pub line: u32,
}

/// Reads a manifest, or a plain list of which every entry has `kinds`.
///
/// # Errors
/// Every mistake, up to a hundred.
pub fn parse(file: &Path, bytes: &[u8], kinds: Option<Kinds>) -> Result<Vec<Entry>, Diagnostics> {
    let mut reader = Reader { file, kinds, is_ours: false, ended: false, entries: Vec::new() };
    let mut found = Vec::new();
    if bytes.is_empty() {
        found.push(Diagnostic::whole_file(file, "is empty").with_help("scan again"));
    }
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if let Err(mistake) = reader.line(number, line) {
            found.push(mistake);
            if found.len() >= MAX_MISTAKES {
                break;
            }
        }
    }
    if found.is_empty() && reader.is_ours && !reader.ended {
        let message = format!("ends after {} entries without an end line", reader.entries.len());
        found.push(
            Diagnostic::whole_file(file, message)
                .with_help("it was cut short; scan or copy it again"),
        );
    }
    Diagnostics::check(found)?;
    Ok(reader.entries)
}

struct Reader<'a> {
    file: &'a Path,
    kinds: Option<Kinds>,
    is_ours: bool,
    ended: bool,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    fn line(&mut self, number: u32, line: &[u8]) -> Result<(), Diagnostic> {
        let mistake = |column: usize, message: String| Diagnostic {
            file: self.file.to_owned(),
            line: number,
            column: u32::try_from(column).unwrap_or(u32::MAX),
            message,
            help: None,
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return Ok(());
        }
        if let Some(comment) = line.strip_prefix(b"#") {
            let comment = String::from_utf8_lossy(comment);
            return self.comment(number, &format!("#{comment}"), mistake);
        }
        if self.ended {
            return Err(mistake(1, "an entry after the end line".into())
                .with_help("make one manifest for each scan and include them both"));
        }
        let escaped = line.first() == Some(&b'\\');
        let digits = &line[usize::from(escaped)..];
        let (digits, rest) =
            digits.split_at(digits.iter().position(|b| *b == b' ').unwrap_or(digits.len()));
        let column = 1 + usize::from(escaped);
        let text = std::str::from_utf8(digits)
            .map_err(|_| mistake(column, "not a digest but binary data".into()))?;
        let digest = digest::parse(text).map_err(|error| {
            mistake(column, error.to_string())
                .with_help("each line is what sha256sum prints: digest, two blanks, path")
        })?;
        // Text mode has two blanks, binary mode a blank and an asterisk.
        if !(rest.starts_with(b"  ") || rest.starts_with(b" *")) || rest.len() < 3 {
            return Err(mistake(column + digits.len(), "no path after the digest".into())
                .with_help("each line is what sha256sum prints: digest, two blanks, path"));
        }
        let Some(kinds) = self.kinds else {
            let help = if self.is_ours {
                "a line such as `# kinds: executable` goes before the entries".to_owned()
            } else {
                format!(
                    "say them where the policy includes it: {{ path = {:?}, kinds = [\"executable\"] }}",
                    self.file.display().to_string()
                )
            };
            return Err(
                mistake(1, "the list does not say what kinds these are".into()).with_help(help)
            );
        };
        self.entries.push(Entry { digest, kinds, line: number });
        Ok(())
    }

    fn comment(
        &mut self,
        number: u32,
        comment: &str,
        mistake: impl Fn(usize, String) -> Diagnostic,
    ) -> Result<(), Diagnostic> {
        if let Some(format) = comment.strip_prefix(HEADER) {
            if format.trim() != FORMAT {
                return Err(mistake(
                    HEADER.len() + 1,
                    format!("format {} is not known here", format.trim()),
                )
                .with_help(format!("this version reads format {FORMAT}; scan with it or update")));
            }
            if number != 1 {
                return Err(mistake(1, "a second manifest begins here".into())
                    .with_help("keep one manifest in a file and include them both"));
            }
            self.is_ours = true;
        } else if let Some(words) = comment.strip_prefix(KINDS) {
            let mut kinds = Kinds::NONE;
            for word in words.split_whitespace() {
                let known = Kinds::WORDS.iter().find(|(_, known)| *known == word);
                let Some((kind, _)) = known else {
                    let meant = closest(word, Kinds::WORDS.iter().map(|(_, word)| *word));
                    let wrong = mistake(KINDS.len() + 1, format!("unknown kind `{word}`"));
                    return Err(match meant {
                        Some(meant) => wrong.with_help(format!("did you mean `{meant}`?")),
                        None => wrong,
                    });
                };
                kinds = kinds.union(*kind);
            }
            if kinds.is_empty() {
                return Err(mistake(1, "no kind after `kinds:`".into()));
            }
            self.kinds = Some(kinds);
        } else if let Some(count) = comment.strip_prefix(END).filter(|_| self.is_ours) {
            let count = count.split_whitespace().next().unwrap_or_default();
            if count != self.entries.len().to_string() {
                let message =
                    format!("{} entries, but the end line says {count}", self.entries.len());
                return Err(mistake(1, message)
                    .with_help("lines were lost or added by hand; scan or copy it again"));
            }
            self.ended = true;
        }
        Ok(())
    }
}

/// An artifact with the name under which it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Found {
    /// What it can be used as.
    pub kinds: Kinds,
    /// Where it lies; any bytes but zero.
    pub path: PathBuf,
    /// What it is.
    pub digest: Digest,
}

/// Writes a manifest: sorted by kinds and path, so that the same artifacts give the same bytes.
///
/// # Errors
/// If writing fails.
pub fn write(out: &mut impl Write, mut artifacts: Vec<Found>) -> io::Result<()> {
    artifacts.sort();
    writeln!(out, "{HEADER}{FORMAT}")?;
    let mut kinds = Kinds::NONE;
    for artifact in &artifacts {
        if artifact.kinds != kinds {
            kinds = artifact.kinds;
            writeln!(out, "{KINDS} {}", kinds_words(kinds))?;
        }
        write_line(out, artifact)?;
    }
    writeln!(out, "{END} {} entries", artifacts.len())
}

fn write_line(out: &mut impl Write, artifact: &Found) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = artifact.path.as_os_str().as_bytes();
    let escaped = escape(name);
    if matches!(escaped, Cow::Owned(_)) {
        out.write_all(b"\\")?;
    }
    write!(out, "{}  ", digest::format(&artifact.digest))?;
    out.write_all(&escaped)?;
    out.write_all(b"\n")
}

/// A name as `sha256sum` writes it.
fn escape(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r')) {
        return Cow::Borrowed(name);
    }
    let mut escaped = Vec::with_capacity(name.len() + 8);
    for byte in name {
        match byte {
            b'\\' => escaped.extend(b"\\\\"),
            b'\n' => escaped.extend(b"\\n"),
            b'\r' => escaped.extend(b"\\r"),
            other => escaped.push(*other),
        }
    }
    Cow::Owned(escaped)
}

/// The kinds as words, separated by blanks.
#[must_use]
pub fn kinds_words(kinds: Kinds) -> String {
    let words = Kinds::WORDS.iter().filter(|(kind, _)| kinds.intersects(*kind));
    words.map(|(_, word)| *word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    use super::*;

    fn found(path: &[u8], kinds: Kinds, byte: u8) -> Found {
        Found { kinds, path: OsStr::from_bytes(path).into(), digest: [byte; 32] }
    }

    fn mistake(text: &str, kinds: Option<Kinds>) -> String {
        parse(Path::new("m"), text.as_bytes(), kinds).expect_err("a mistake").to_string()
    }

    #[test]
    fn reads_back_what_it_writes() {
        let artifacts = vec![
            found(b"/lib/a.so", Kinds::LIBRARY, 2),
            found(b"/bin/a", Kinds::EXECUTABLE, 1),
            found(b"/bin/new\nline\\\xff", Kinds::EXECUTABLE, 3),
        ];
        let mut bytes = Vec::new();
        write(&mut bytes, artifacts).expect("memory");
        let entries = parse(Path::new("m"), &bytes, None).expect("own format");
        let seen: Vec<_> =
            entries.iter().map(|entry| (entry.digest[0], entry.kinds, entry.line)).collect();
        let (executable, library) = (Kinds::EXECUTABLE, Kinds::LIBRARY);
        assert_eq!(seen, [(1, executable, 3), (3, executable, 4), (2, library, 6)]);
        assert!(bytes.windows(11).any(|bytes| bytes == b"new\\nline\\\\"));
    }

    #[test]
    fn a_plain_list_needs_kinds_from_the_policy() {
        let line = format!("{}  /bin/a\n{} */bin/b\n", "a".repeat(64), "b".repeat(64));
        let entries =
            parse(Path::new("m"), line.as_bytes(), Some(Kinds::EXECUTABLE)).expect("plain");
        assert_eq!(entries.len(), 2);
        assert!(mistake(&line, None).contains("m:1:1: the list does not say what kinds"));
    }

    #[test]
    fn mistakes_are_named() {
        let digest = "a".repeat(64);
        let head = "# portcullis manifest 1\n# kinds: executable\n";
        let cases = [
            (String::new(), "m: is empty"),
            (format!("{head}{digest}  /a\n"), "m: ends after 1 entries without an end line"),
            (
                format!("{head}{digest}  /a\n# end: 2 entries\n"),
                "m:4:1: 1 entries, but the end line says 2",
            ),
            (format!("{head}{digest}\n# end: 1\n"), "m:3:65: no path after the digest"),
            (format!("{head}abc  /a\n"), "m:3:1: a digest of 3 digits"),
            ("# portcullis manifest 9\n".into(), "m:1:23: format 9 is not known here"),
            (
                "# portcullis manifest 1\n# kinds: libary\n".into(),
                "m:2:9: unknown kind `libary`; did you mean `library`?",
            ),
            (
                format!("# portcullis manifest 1\n{digest}  /a\n"),
                "m:2:1: the list does not say what kinds",
            ),
            ("\u{0}\u{1}ELF".into(), "m:1:1: `\u{0}` is not a hexadecimal digit"),
        ];
        for (text, expected) in cases {
            let mistake = mistake(&text, None);
            assert!(mistake.contains(expected), "{mistake:?} lacks {expected:?}");
        }
    }
}
