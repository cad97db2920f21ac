//! What the agent gives a reading process, and remembers of it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use portcullis_common::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    blocks::{InBlocks, Source},
    words::BLOCK,
};
use crate::policy::{
    diagnostic::Diagnostic,
    files::{Disk, Files},
};

/// Bytes of a bundle's head: a manifest, signatures, and the headers of all parts.
const MAX_HEAD: usize = 8 << 20;

/// Files that a policy may name, each time that it names them.
const MAX_FILES: usize = 70_000;

/// What there is of what was asked for.
pub enum Gift<'a> {
    /// This.
    Bytes(Cow<'a, [u8]>),
    /// None of that name.
    Nothing,
    /// It cannot be read.
    Cannot(String, Option<String>),
}

/// Answers what a reading process asks.
pub trait Give {
    /// Something by name.
    fn give(&mut self, name: &[u8]) -> Gift<'_>;

    /// A block of a bundle.
    fn block(&mut self, _number: u64) -> Gift<'_> {
        Gift::Nothing
    }
}

/// Pieces that are in memory.
pub struct Pieces<'a>(pub &'a [(&'a str, &'a [u8])], pub &'a [&'a [u8]]);

impl Give for Pieces<'_> {
    fn give(&mut self, name: &[u8]) -> Gift<'_> {
        let piece = self.0.iter().find(|(known, _)| known.as_bytes() == name);
        match piece.map(|(_, bytes)| *bytes).or_else(|| anchor(self.1, name)) {
            Some(bytes) => Gift::Bytes(bytes.into()),
            None => Gift::Nothing,
        }
    }
}

fn anchor<'a>(anchors: &[&'a [u8]], name: &[u8]) -> Option<&'a [u8]> {
    let number = std::str::from_utf8(name).ok()?.strip_prefix("anchor ")?;
    anchors.get(number.parse::<usize>().ok()?).copied()
}

/// The files of a policy as a reading process has read them: others are refused.
#[derive(Debug, Default)]
pub struct Same {
    seen: BTreeSet<(PathBuf, Digest)>,
    given: usize,
}

impl Give for Same {
    fn give(&mut self, name: &[u8]) -> Gift<'_> {
        let file = Path::new(OsStr::from_bytes(name));
        self.given += 1;
        if self.given > MAX_FILES {
            return Gift::Cannot("is one of too many files".into(), None);
        }
        match Disk.read(file) {
            Ok(bytes) => {
                self.seen.insert((file.to_owned(), Sha256::digest(&bytes).into()));
                Gift::Bytes(bytes)
            }
            Err(Diagnostic { message, help, .. }) => Gift::Cannot(message, help),
        }
    }
}

impl Files for Same {
    fn read(&self, file: &Path) -> Result<Cow<'_, [u8]>, Diagnostic> {
        let bytes = Disk.read(file)?;
        if self.seen.contains(&(file.to_owned(), Sha256::digest(&bytes).into())) {
            return Ok(bytes);
        }
        Err(Diagnostic::whole_file(file, "was changed while it was read")
            .with_help("do it again when nobody writes it"))
    }
}

/// The blocks of a bundle that were asked for.
pub struct Blocks<'a> {
    file: &'a File,
    anchors: &'a [&'a [u8]],
    given: BTreeMap<u64, Vec<u8>>,
}

impl<'a> Blocks<'a> {
    /// Of this file.
    pub fn of(file: &'a File, anchors: &'a [&'a [u8]]) -> Self {
        Self { file, anchors, given: BTreeMap::new() }
    }

    /// What was given, as a file of this length of which nothing else can be read.
    pub fn given(self, length: u64) -> InBlocks<BTreeMap<u64, Vec<u8>>> {
        InBlocks::of(self.given, length)
    }

    fn read(&self, number: u64) -> io::Result<Vec<u8>> {
        let start = number.checked_mul(BLOCK as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let mut block = vec![0; BLOCK];
        let mut filled = 0;
        while filled < block.len() {
            match self.file.read_at(&mut block[filled..], start + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        block.truncate(filled);
        Ok(block)
    }
}

impl Give for Blocks<'_> {
    fn give(&mut self, name: &[u8]) -> Gift<'_> {
        match anchor(self.anchors, name) {
            Some(bytes) => Gift::Bytes(bytes.into()),
            None => Gift::Nothing,
        }
    }

    fn block(&mut self, number: u64) -> Gift<'_> {
        if self.given.contains_key(&number) {
            // The same again, whatever the file is by now.
            return Gift::Bytes(self.given[&number].as_slice().into());
        }
        if self.given.len() >= MAX_HEAD / BLOCK {
            return Gift::Cannot("is larger than a manifest with its signatures".into(), None);
        }
        match self.read(number) {
            Ok(block) => Gift::Bytes(self.given.entry(number).or_insert(block).as_slice().into()),
            Err(error) => Gift::Cannot(error.to_string(), None),
        }
    }
}

/// Some blocks of a file.
impl Source for BTreeMap<u64, Vec<u8>> {
    fn block(&mut self, number: u64) -> io::Result<&[u8]> {
        Ok(self.get(&number).ok_or(io::ErrorKind::NotFound)?)
    }
}
