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
//! A catalog is a manifest with a name and a version, which is signed; it can also take digests back:
//!
//! ```text
//! # portcullis manifest 1
//! # catalog: pump-firmware
//! # version: 12
//! # withdrawn: 4567…89ab  /usr/bin/pump
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
const CATALOG: &str = "# catalog:";
const VERSION: &str = "# version:";
const WITHDRAWN: &str = "# withdrawn:";
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

/// What a manifest says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    /// Name of the catalog, if it is one.
    pub catalog: Option<String>,
    /// Version of the catalog, if it is one.
    pub version: Option<u64>,
    /// What may be used.
    pub entries: Vec<Entry>,
    /// What may not be used any more: digest and line.
    pub withdrawn: Vec<(Digest, u32)>,
}

/// Reads a manifest, or a plain list of which every entry has `kinds`.
///
/// # Errors
/// Every mistake, up to a hundred.
pub fn parse(file: &Path, bytes: &[u8], kinds: Option<Kinds>) -> Result<Manifest, Diagnostics> {
    let read = Manifest::default();
    let mut reader = Reader { file, kinds, is_ours: false, ended: false, read };
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
        let message =
            format!("ends after {} entries without an end line", reader.read.entries.len());
        found.push(
            Diagnostic::whole_file(file, message)
                .with_help("it was cut short; scan or copy it again"),
        );
    }
    if found.is_empty() && reader.read.catalog.is_some() != reader.read.version.is_some() {
        let lacks = if reader.read.version.is_some() { "catalog: NAME" } else { "version: 1" };
        found.push(
            Diagnostic::whole_file(file, "a catalog has both a name and a version")
                .with_help(format!("add a line `# {lacks}`")),
        );
    }
    Diagnostics::check(found)?;
    Ok(reader.read)
}

struct Reader<'a> {
    file: &'a Path,
    kinds: Option<Kinds>,
    is_ours: bool,
    ended: bool,
    read: Manifest,
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
        let digest = digest_in(line, mistake)?;
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
        self.read.entries.push(Entry { digest, kinds, line: number });
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
        } else if !self.is_ours {
            // In a list of somebody else's, a comment is a comment.
        } else if let Some(name) = comment.strip_prefix(CATALOG) {
            let name = name.trim();
            if !is_name(name) {
                return Err(mistake(CATALOG.len() + 1, "the catalog's name is not usable".into())
                    .with_help(format!(
                        "use 1 to {NAME_MAX} of the characters A-Z a-z 0-9 . _ -"
                    )));
            }
            if self.read.catalog.replace(name.to_owned()).is_some() {
                return Err(mistake(1, "a second name of the catalog".into()));
            }
        } else if let Some(version) = comment.strip_prefix(VERSION) {
            let number = version.trim().parse().ok().filter(|number| *number > 0);
            let Some(number) = number else {
                return Err(mistake(VERSION.len() + 1, "not a version".into())
                    .with_help("it is a whole number from 1: `# version: 1`"));
            };
            if self.read.version.replace(number).is_some() {
                return Err(mistake(1, "a second version".into()));
            }
        } else if let Some(line) = comment.strip_prefix(WITHDRAWN) {
            let digest = digest_in(line.trim_start().as_bytes(), &mistake)?;
            self.read.withdrawn.push((digest, number));
        } else if let Some(count) = comment.strip_prefix(END) {
            let count = count.split_whitespace().next().unwrap_or_default();
            let entries = self.read.entries.len();
            if count != entries.to_string() {
                let message = format!("{entries} entries, but the end line says {count}");
                return Err(mistake(1, message)
                    .with_help("lines were lost or added by hand; scan or copy it again"));
            }
            self.ended = true;
        }
        Ok(())
    }
}

/// The digest that a line of `sha256sum` begins with.
///
/// # Errors
/// What is wrong with the line, at a column.
pub fn digest_in(
    line: &[u8],
    mistake: impl Fn(usize, String) -> Diagnostic,
) -> Result<Digest, Diagnostic> {
    const FORM: &str = "each line is what sha256sum prints: digest, two blanks, path";
    let escaped = line.first() == Some(&b'\\');
    let digits = &line[usize::from(escaped)..];
    let (digits, rest) =
        digits.split_at(digits.iter().position(|b| *b == b' ').unwrap_or(digits.len()));
    let column = 1 + usize::from(escaped);
    let text = std::str::from_utf8(digits)
        .map_err(|_| mistake(column, "not a digest but binary data".into()))?;
    let digest =
        digest::parse(text).map_err(|error| mistake(column, error.to_string()).with_help(FORM))?;
    // Text mode has two blanks, binary mode a blank and an asterisk.
    if !(rest.starts_with(b"  ") || rest.starts_with(b" *")) || rest.len() < 3 {
        let column = column + digits.len();
        return Err(mistake(column, "no path after the digest".into()).with_help(FORM));
    }
    Ok(digest)
}

/// How long a policy's or catalog's name may be, in bytes: it stands in every line of log.
pub const NAME_MAX: usize = 64;

/// Whether a policy, catalog or signer can be called so.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(allowed)
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

/// What makes a manifest a catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// Its maker's name for it.
    pub name: String,
    /// Its maker's number for it, at least 1.
    pub version: u64,
    /// Digests that it takes back, each with the path that it was listed under.
    pub withdrawn: Vec<(Digest, PathBuf)>,
}

/// Writes a manifest: sorted by kinds and path, so that the same artifacts give the same bytes.
///
/// # Errors
/// If writing fails.
pub fn write(
    out: &mut impl Write,
    artifacts: Vec<Found>,
    catalog: Option<&Catalog>,
) -> io::Result<()> {
    writeln!(out, "{HEADER}{FORMAT}")?;
    let withdrawn = catalog.map_or(&[][..], |catalog| &catalog.withdrawn);
    if let Some(Catalog { name, version, .. }) = catalog {
        writeln!(out, "{CATALOG} {name}\n{VERSION} {version}")?;
    }
    write_entries(out, artifacts, withdrawn)
}

/// Writes a manifest that also says what may not be used.
///
/// # Errors
/// If writing fails.
pub fn write_decided(
    out: &mut impl Write,
    artifacts: Vec<Found>,
    withdrawn: &[(Digest, PathBuf)],
) -> io::Result<()> {
    writeln!(out, "{HEADER}{FORMAT}")?;
    write_entries(out, artifacts, withdrawn)
}

fn write_entries(
    out: &mut impl Write,
    mut artifacts: Vec<Found>,
    withdrawn: &[(Digest, PathBuf)],
) -> io::Result<()> {
    artifacts.sort();
    artifacts.dedup();
    let mut withdrawn: Vec<_> = withdrawn.iter().collect();
    withdrawn.sort();
    withdrawn.dedup();
    for (digest, path) in withdrawn {
        write!(out, "{WITHDRAWN} ")?;
        write_line(out, digest, path)?;
    }
    let mut kinds = Kinds::NONE;
    for artifact in &artifacts {
        if artifact.kinds != kinds {
            kinds = artifact.kinds;
            writeln!(out, "{KINDS} {}", kinds_words(kinds))?;
        }
        write_line(out, &artifact.digest, &artifact.path)?;
    }
    writeln!(out, "{END} {} entries", artifacts.len())
}

/// What a manifest allows and takes back, with the paths.
pub type Decided = (Vec<Found>, Vec<(Digest, PathBuf)>);

/// Reads a manifest with its paths.
///
/// # Errors
/// As for [`parse`].
pub fn parse_decided(file: &Path, bytes: &[u8]) -> Result<Decided, Diagnostics> {
    let manifest = parse(file, bytes, None)?;
    let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    let path = |line: u32, prefix: &str| {
        let index = usize::try_from(line).ok()?.checked_sub(1)?;
        let line = lines.get(index)?.strip_prefix(prefix.as_bytes())?.trim_ascii_start();
        path_in(line.strip_suffix(b"\r").unwrap_or(line))
    };
    let entries = manifest.entries.iter().map(|entry| Found {
        kinds: entry.kinds,
        path: path(entry.line, "").unwrap_or_default(),
        digest: entry.digest,
    });
    let withdrawn = manifest.withdrawn.iter();
    let withdrawn =
        withdrawn.map(|(digest, line)| (*digest, path(*line, WITHDRAWN).unwrap_or_default()));
    Ok((entries.collect(), withdrawn.collect()))
}

/// Writes an entry as `sha256sum` does.
///
/// # Errors
/// If writing fails.
pub fn write_line(out: &mut impl Write, digest: &Digest, path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let name = path.as_os_str().as_bytes();
    let escaped = escape(name);
    if matches!(escaped, Cow::Owned(_)) {
        out.write_all(b"\\")?;
    }
    write!(out, "{}  ", digest::format(digest))?;
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

/// The path in an entry, without the escapes that `sha256sum` writes.
#[must_use]
pub fn path_in(line: &[u8]) -> Option<PathBuf> {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    let escaped = line.first() == Some(&b'\\');
    let line = &line[usize::from(escaped)..];
    let blank = line.iter().position(|byte| *byte == b' ')?;
    let path = line.get(blank + 2..).filter(|_| !line.starts_with(b"#"))?;
    if !escaped {
        return Some(OsString::from_vec(path.to_vec()).into());
    }
    let mut plain = Vec::with_capacity(path.len());
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b'r' => b'\r',
                other => other,
            },
            byte => byte,
        });
    }
    Some(OsString::from_vec(plain).into())
}

/// The kinds as words, separated by blanks.
#[must_use]
pub fn kinds_words(kinds: Kinds) -> String {
    kinds.words().collect::<Vec<_>>().join(" ")
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
        write(&mut bytes, artifacts, None).expect("memory");
        let entries = parse(Path::new("m"), &bytes, None).expect("own format").entries;
        let seen: Vec<_> =
            entries.iter().map(|entry| (entry.digest[0], entry.kinds, entry.line)).collect();
        let (executable, library) = (Kinds::EXECUTABLE, Kinds::LIBRARY);
        assert_eq!(seen, [(1, executable, 3), (3, executable, 4), (2, library, 6)]);
        assert!(bytes.windows(11).any(|bytes| bytes == b"new\\nline\\\\"));
    }

    #[test]
    fn a_plain_list_needs_kinds_from_the_policy() {
        let line = format!("{}  /bin/a\n{} */bin/b\n", "a".repeat(64), "b".repeat(64));
        let read = parse(Path::new("m"), line.as_bytes(), Some(Kinds::EXECUTABLE)).expect("plain");
        assert_eq!(read.entries.len(), 2);
        assert!(mistake(&line, None).contains("m:1:1: the list does not say what kinds"));
    }

    #[test]
    fn a_catalog_reads_back_what_it_writes() {
        let catalog = Catalog {
            name: "pump".into(),
            version: 12,
            withdrawn: vec![([9; 32], "/bin/old\n".into())],
        };
        let mut bytes = Vec::new();
        let artifacts = vec![found(b"/bin/a", Kinds::EXECUTABLE, 1)];
        write(&mut bytes, artifacts, Some(&catalog)).expect("memory");
        let read = parse(Path::new("m"), &bytes, None).expect("own format");
        assert_eq!((read.catalog.as_deref(), read.version), (Some("pump"), Some(12)));
        assert_eq!(read.withdrawn, [([9; 32], 4)]);
        assert_eq!(read.entries.len(), 1);
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
            (
                "# portcullis manifest 1\n# catalog: a b\n".into(),
                "m:2:11: the catalog's name is not usable",
            ),
            ("# portcullis manifest 1\n# version: 0\n".into(), "m:2:11: not a version"),
            (
                "# portcullis manifest 1\n# catalog: a\n# end: 0\n".into(),
                "m: a catalog has both a name and a version; add a line `# version: 1`",
            ),
            ("# portcullis manifest 1\n# withdrawn: 12\n".into(), "m:2:1: a digest of 2 digits"),
            ("\u{0}\u{1}ELF".into(), "m:1:1: `\u{0}` is not a hexadecimal digit"),
        ];
        for (text, expected) in cases {
            let mistake = mistake(&text, None);
            assert!(mistake.contains(expected), "{mistake:?} lacks {expected:?}");
        }
    }
}
