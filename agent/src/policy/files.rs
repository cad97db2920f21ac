//! Where a policy's files come from: the disk, a bundle, or whoever reads the disk for this process.

use std::{
    borrow::Cow,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use super::{bundle::Bundle, diagnostic::Diagnostic};

/// The largest policy file or manifest that is read, in bytes: about two million entries.
const MAX_FILE: u64 = 256 << 20;

/// Gives the files of a policy: itself, its manifests, and its signers' keys and certificates.
pub trait Files {
    /// A whole file.
    ///
    /// # Errors
    /// If it cannot be read, is no file, or is too large.
    fn read(&self, file: &Path) -> Result<Cow<'_, [u8]>, Diagnostic>;
}

/// The disk.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, file: &Path) -> Result<Cow<'_, [u8]>, Diagnostic> {
        let fail = |what: String| Diagnostic::whole_file(file, what);
        // A FIFO must not hang us, and a device must not fill the memory.
        let metadata =
            std::fs::metadata(file).map_err(|error| fail(format!("cannot be read: {error}")))?;
        if !metadata.is_file() {
            return Err(fail("is not a file".into()));
        }
        if metadata.len() > MAX_FILE {
            let limit = MAX_FILE >> 20;
            return Err(fail(format!("is larger than {limit} MiB"))
                .with_help("split it into several manifests"));
        }
        let mut bytes = Vec::new();
        File::open(file)
            .and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(|error| fail(format!("cannot be read: {error}")))?;
        Ok(bytes.into())
    }
}

/// A bundle in memory, whose parts are called as if they lay in `folder`.
#[derive(Clone, Debug)]
pub struct InBundle<'a> {
    /// What has the parts.
    pub bundle: &'a Bundle,
    /// Where they are said to lie.
    pub folder: PathBuf,
}

impl Files for InBundle<'_> {
    fn read(&self, file: &Path) -> Result<Cow<'_, [u8]>, Diagnostic> {
        let name = file.strip_prefix(&self.folder).ok().and_then(Path::to_str);
        match name.and_then(|name| self.bundle.part(name)) {
            Some(part) => Ok(part.into()),
            None => Err(Diagnostic::whole_file(file, "is no part of the bundle")),
        }
    }
}
