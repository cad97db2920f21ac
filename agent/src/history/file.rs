//! The history as a file: JSON lines, a head, one for each artifact, and the digest of them all, as a byte
//! that a disk has changed may leave good JSON.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{History, MAX_ARTIFACTS};
use crate::{artifact::digest, durable};

/// The file in the agent's folder for state.
pub const FILE: &str = "history.jsonl";

/// Version of the form.
const FORMAT: u32 = 2;

/// The version before, which had no digest at its end.
const WITHOUT_DIGEST: u32 = 1;

/// Bytes of a line: a path of 4,096 bytes, each escaped and once more in hexadecimal, and some names.
const MAX_LINE: u64 = 64 << 10;

/// Why a history cannot be read.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{}:{line}: {why}; `portcullis history -o FILE` writes it anew", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where, counted from 1.
        line: u64,
        /// What is wrong.
        why: String,
    },
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    portcullis_history: u32,
    #[serde(default)]
    since: Option<Timestamp>,
    written: Timestamp,
    forgotten: u64,
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct Tail {
    /// SHA-256 of all lines before, in hexadecimal.
    sha256: String,
}

/// What only the last line begins with.
const TAIL: &[u8] = br#"{"sha256""#;

impl History {
    /// Reads a history.
    ///
    /// # Errors
    /// If the file cannot be read, or is not what was written.
    pub fn read(path: &Path) -> Result<Self, HistoryError> {
        let fail = |source| HistoryError::File { path: path.to_owned(), source };
        let file = File::open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(io::Error::other("is not a file")));
        }
        let reader = BufReader::new(file);
        let mut lines = Lines { path, reader, number: 0 };
        let mut hasher = Sha256::new();
        let Some(line) = lines.next()? else {
            return Err(lines.damaged("is empty"));
        };
        let head: Head = lines.parse(&line)?;
        let format = head.portcullis_history;
        if !(WITHOUT_DIGEST..=FORMAT).contains(&format) {
            let why = format!("format {format} is not known here, only up to {FORMAT}");
            return Err(lines.damaged(why));
        }
        hasher.update(&line);
        let mut history = Self { since: head.since, forgotten: head.forgotten, ..Self::default() };
        while let Some(line) = lines.next()? {
            if line.starts_with(TAIL) {
                let tail: Tail = lines.parse(&line)?;
                if tail.sha256 != digest::format(&hasher.finalize().into()) {
                    return Err(
                        lines.damaged("its digest is another one: bytes before have changed")
                    );
                }
                return match lines.next()? {
                    Some(_) => Err(lines.damaged("something follows the digest")),
                    None => Ok(history),
                };
            }
            let artifact = lines.parse(&line)?;
            if history.len() >= MAX_ARTIFACTS {
                return Err(lines.damaged(format!("more than {MAX_ARTIFACTS} artifacts")));
            }
            history.insert(artifact);
            hasher.update(&line);
        }
        if format == WITHOUT_DIGEST {
            return Ok(history);
        }
        Err(lines.damaged("the digest is missing, with which it ends"))
    }

    /// The history as it is written, which is then not changed any more.
    pub fn take_text(&mut self) -> Vec<u8> {
        (self.changed, self.has_news) = (false, false);
        let mut text = Vec::new();
        // Writing to memory does not fail, and every member can be written as JSON.
        let _ = self.write_to(&mut text);
        let tail = Tail { sha256: digest::format(&Sha256::digest(&text).into()) };
        let _ = serde_json::to_writer(&mut text, &tail);
        text.push(b'\n');
        text
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let head = Head {
            portcullis_history: FORMAT,
            since: self.since,
            written: Timestamp::now(),
            forgotten: self.forgotten,
        };
        serde_json::to_writer(&mut *out, &head)?;
        out.write_all(b"\n")?;
        for artifact in self.artifacts() {
            serde_json::to_writer(&mut *out, artifact)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// Writes a history durably, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    durable::replace(path, |out| out.write_all(text))
}

struct Lines<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    number: u64,
}

impl Lines<'_> {
    /// The next line, with its end.
    fn next(&mut self) -> Result<Option<Vec<u8>>, HistoryError> {
        let mut line = Vec::new();
        self.number += 1;
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line);
        let read =
            read.map_err(|source| HistoryError::File { path: self.path.to_owned(), source })?;
        if read == 0 {
            return Ok(None);
        }
        if line.last() != Some(&b'\n') {
            return Err(self.damaged("was cut short, or is longer than any line that was written"));
        }
        Ok(Some(line))
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, line: &[u8]) -> Result<T, HistoryError> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        serde_json::from_slice(line).map_err(|error| self.damaged(error))
    }

    fn damaged(&self, why: impl ToString) -> HistoryError {
        HistoryError::Damaged {
            path: self.path.to_owned(),
            line: self.number,
            why: why.to_string(),
        }
    }
}
