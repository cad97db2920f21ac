//! Manifests from lists that others keep: each entry is carried over, or left with a reason.

pub mod dpkg;
mod fapolicyd;
mod sha256sum;
pub mod usbguard;

use std::{
    io,
    path::{Path, PathBuf},
};

use portcullis_common::{Digest, Kinds};
use serde::Serialize;
use thiserror::Error;

use crate::{artifact::digest, policy::manifest::Found, scan};

/// Bytes of a list: about two million entries.
const MAX_LIST: u64 = 256 << 20;

/// Bytes of a line; a path has at most 4,096.
const MAX_LINE: usize = 16 << 10;

/// What came of a list.
#[derive(Debug, Default)]
pub struct Imported {
    /// What goes into the manifest.
    pub carried: Vec<Found>,
    /// What does not.
    pub left: Vec<Left>,
}

/// An entry that is not carried over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Left {
    /// The list, with the line if it has lines: `FILE:LINE`.
    pub place: String,
    /// The file that it is about, if that could be read; what is not UTF-8 is replaced.
    pub path: Option<String>,
    /// Why, with what can be done.
    pub why: String,
}

/// Why a list cannot be imported at all.
#[derive(Debug, Error)]
#[error("{}: {why}", path.display())]
pub struct ImportError {
    path: PathBuf,
    why: String,
}

impl ImportError {
    fn new(path: &Path, why: impl ToString) -> Self {
        Self { path: path.to_owned(), why: why.to_string() }
    }
}

/// The form of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// What `sha256sum` and BSD's `sha256` write.
    Sha256sum,
    /// Trust files of fapolicyd.
    Fapolicyd,
}

/// One entry of a list: the file and its digest.
type Entry = (PathBuf, Digest, Option<u64>);

/// Reads a list. Files that are on this machine are compared with it, and show what they can be used
/// as; for the rest `kinds` says it.
///
/// # Errors
/// If the list cannot be read.
pub fn list(file: &Path, form: Form, kinds: Option<Kinds>) -> Result<Imported, ImportError> {
    let bytes = read(file)?;
    let mut imported = Imported::default();
    let is_escaped = bytes.starts_with(fapolicyd::ESCAPED);
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        let place = format!("{}:{number}", file.display());
        let entry = match form {
            _ if line.len() > MAX_LINE => Err(format!("a line of more than {MAX_LINE} bytes")),
            Form::Sha256sum => sha256sum::entry(line),
            Form::Fapolicyd => fapolicyd::entry(line, is_escaped),
        };
        match entry {
            Ok(entry) => imported.take(place, entry, kinds),
            Err(why) => imported.left.push(Left { place, path: None, why }),
        }
    }
    Ok(imported)
}

impl Imported {
    fn take(&mut self, place: String, (path, digest, size): Entry, kinds: Option<Kinds>) {
        match compare(&path, &digest, size, kinds) {
            Ok(kinds) => self.carried.push(Found { kinds, path, digest }),
            Err(why) => self.leave(place, &path, why),
        }
    }

    fn leave(&mut self, place: String, path: &Path, why: impl ToString) {
        let path = Some(path.to_string_lossy().into_owned());
        self.left.push(Left { place, path, why: why.to_string() });
    }
}

/// What a listed file can be used as, if it is what the list says.
fn compare(
    path: &Path,
    listed: &Digest,
    size: Option<u64>,
    kinds: Option<Kinds>,
) -> Result<Kinds, String> {
    let file = match (scan::open(path), kinds) {
        (Ok(file), _) => file,
        (Err(error), Some(kinds)) if error.kind() == io::ErrorKind::NotFound => return Ok(kinds),
        (Err(error), _) => {
            return Err(format!(
                "cannot be looked at: {error}; say what it is with --kinds, or import where it is \
                 installed"
            ));
        }
    };
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if let Some(size) = size.filter(|size| *size != length) {
        return Err(format!("has {length} bytes here, and {size} in the list"));
    }
    match scan::look(&file, path)? {
        None => Err("is no program, library, script or module, so that nothing asks for it".into()),
        Some((_, found)) if found != *listed => {
            Err(format!("is another file here: its digest is {}", digest::format(&found)))
        }
        Some((found, _)) => Ok(kinds.unwrap_or(found)),
    }
}

/// Reads a list whole, if it is a file and not too large.
fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    crate::catalog::folder::read(path, MAX_LIST).map_err(|why| ImportError::new(path, why))
}

#[cfg(test)]
mod tests;
