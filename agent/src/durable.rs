//! Files that are whole after a power cut.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Replaces a file, and makes its folder if there is none: whoever reads it finds what was there before
/// or all of the new content, also after the power went at any moment. When this returns, the new
/// content is on the disk.
///
/// # Errors
/// If it cannot be written; then what was there is still there.
pub fn replace(
    path: &Path,
    content: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    content(&mut new)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    File::open(folder)?.sync_all()
}
