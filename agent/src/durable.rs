//! Files that are whole after a power cut.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// What a file's name begins with until it has its own.
const TEMPORARY: &str = ".tmp";

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
    let mut new = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    content(&mut new)?;
    new.as_file().sync_all()?;
    new.persist(path)?;
    File::open(folder)?.sync_all()
}

/// Removes what a process that was killed while it replaced a file has left in a folder. Only for folders
/// in which nobody replaces anything now.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if is_file && entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            // What cannot be removed is tried again the next time.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_is_swept_away() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in [".tmpAbC123", "state.json", ".hidden"] {
            fs::write(at(name), "").expect("written");
        }
        fs::create_dir(at(".tmp")).expect("made");
        sweep(folder.path());
        assert!(!at(".tmpAbC123").exists());
        assert!(at("state.json").exists() && at(".hidden").exists() && at(".tmp").exists());
        sweep(&at("nowhere"));
    }
}
