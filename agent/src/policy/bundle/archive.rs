//! Tar archives in one form: what is not exactly as written here is not read, so that nothing can hide
//! between the lines of a header.

use std::{
    io::{self, Read},
    ops::Range,
};

use tar::{Archive, Entry, EntryType, Header};

use super::malformed;
use crate::policy::trust::Why;

const BLOCK: usize = 512;

/// What an archive ends with.
const END: usize = 2 * BLOCK;

/// More than any policy includes.
const MAX_ENTRIES: usize = 4096;

fn header(name: &str, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK)
}

/// Writes an archive to memory.
pub struct Writer(Vec<u8>);

impl Writer {
    /// An archive with nothing in it.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Appends a file.
    ///
    /// # Errors
    /// If the name is too long for a header.
    pub fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(header(name, content.len() as u64)?.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(padded(self.0.len()), 0);
        Ok(())
    }

    /// The archive with its end.
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + END, 0);
        self.0
    }
}

/// The name of an entry whose header stands at `position` as it is written here, and where the next one
/// stands.
///
/// # Errors
/// If it stands elsewhere, or is written otherwise.
pub fn check_header(entry: &Entry<'_, impl Read>, position: u64) -> Result<(String, u64), Why> {
    let name = String::from_utf8(entry.path_bytes().into_owned())
        .map_err(|_| malformed("the name of an entry is not UTF-8"))?;
    let odd =
        || malformed(format!("the header of {} is not as it is written here", name.escape_debug()));
    let expected = header(&name, entry.size()).map_err(|_| odd())?;
    let is_next = entry.raw_header_position() == position;
    if !is_next || entry.header().as_bytes() != expected.as_bytes() {
        return Err(odd());
    }
    let content = entry.size().checked_next_multiple_of(BLOCK as u64);
    let end = content.and_then(|content| position.checked_add(content)?.checked_add(BLOCK as u64));
    Ok((name.clone(), end.ok_or_else(odd)?))
}

/// Names of the files in an archive, in its order, and where their content is.
///
/// # Errors
/// If the archive is not as [`Writer`] makes it.
pub fn entries(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>, Why> {
    let broken = |error: io::Error| malformed(format!("it is no tar archive: {error}"));
    let mut found: Vec<(String, Range<usize>)> = Vec::new();
    let mut position = 0;
    let mut archive = Archive::new(bytes);
    for entry in archive.entries().map_err(broken)?.raw(true) {
        let entry = entry.map_err(broken)?;
        let (name, _) = check_header(&entry, position as u64)?;
        let shown = name.escape_debug();
        let start = position + BLOCK;
        let size = usize::try_from(entry.size()).ok();
        let end = size.and_then(|size| start.checked_add(size)).filter(|end| *end <= bytes.len());
        let Some(end) = end else {
            return Err(("truncated", format!("it ends within {shown}; copy it again")));
        };
        position = padded(end);
        if !bytes.get(end..position).is_some_and(is_zero) {
            return Err(malformed(format!("there is something behind {shown}")));
        }
        if found.iter().any(|(known, _)| *known == name) || found.len() == MAX_ENTRIES {
            return Err(malformed(format!("{shown} comes twice, or there are too many entries")));
        }
        found.push((name, start..end));
    }
    let rest = bytes.get(position..).unwrap_or_default();
    if rest.len() < END && is_zero(rest) && position > 0 {
        return Err(("truncated", "its end is missing; copy it again".into()));
    }
    if rest.len() != END || !is_zero(rest) {
        return Err(malformed("it does not end where an archive ends"));
    }
    Ok(found)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
