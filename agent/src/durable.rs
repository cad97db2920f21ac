//! Files that are whole after a power cut.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use tempfile::{PersistError, TempPath};

use crate::sync::lock;

/// What a file's name begins with until it has its own.
pub const TEMPORARY: &str = ".tmp";

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
    if let Err(error) = content(&mut new).and_then(|()| new.as_file().sync_all()) {
        give_up(new.into_temp_path());
        return Err(error);
    }
    if let Err(PersistError { error, file }) = new.persist(path) {
        give_up(file.into_temp_path());
        return Err(error);
    }
    File::open(folder)?.sync_all()
}

/// Files that were to replace others, and could not be removed either: the filesystem had become read-only.
static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// More are left for [`sweep`].
const MAX_LEFT: usize = 64;

fn give_up(new: TempPath) {
    let path = new.to_path_buf();
    if new.close().is_err() {
        let mut left = lock(&LEFT);
        if left.len() < MAX_LEFT {
            left.push(path);
        }
    }
}

/// Whether [`tidy`] has something to do.
pub fn is_untidy() -> bool {
    !lock(&LEFT).is_empty()
}

/// Removes what this process could not remove when it could not replace a file.
pub fn tidy() {
    lock(&LEFT).retain(|path| match fs::remove_file(path) {
        Ok(()) => false,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    });
}

/// Removes what a process that was killed while it replaced a file has left in a folder. Only for folders
/// in which nobody replaces anything now.
pub fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_socket());
        if is_ours && entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            // What cannot be removed is tried again the next time.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The second copy of a file, for the case that a fault of the disk strikes the first.
fn second(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".copy");
    name.into()
}

/// Replaces a file and its second copy, one after the other.
///
/// # Errors
/// If the file cannot be written. Without the copy it is as good, so that this is only logged.
pub fn replace_both(
    path: &Path,
    content: impl Fn(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    replace(path, &content)?;
    let copy = second(path);
    if let Err(error) = replace(&copy, &content) {
        tracing::warn!("{} is not what it should be: {error}", copy.display());
    }
    Ok(())
}

/// Writes the second copy of a file anew if it is another one. For a file that was read and is whole.
pub fn mend_copy(path: &Path) {
    let (copy, content) = (second(path), fs::read(path));
    let Ok(content) = content else { return };
    if fs::read(&copy).is_ok_and(|known| known == content) {
        return;
    }
    if let Err(error) = replace(&copy, |out| out.write_all(&content)) {
        tracing::warn!("{} is not what it should be: {error}", copy.display());
    }
}

/// What the second copy of a file says, if it can be understood.
pub fn read_copy<T, E>(path: &Path, parse: impl Fn(&[u8]) -> Result<T, E>) -> Option<T> {
    parse(&fs::read(second(path)).ok()?).ok()
}

/// Reads what [`replace_both`] has written: the file, or its second copy if it is damaged or lost, and what
/// is wrong with the file then. The default if neither is there.
///
/// # Errors
/// If neither can be used; what is wrong with the file.
pub fn read_either<T: Default, E: std::fmt::Display>(
    path: &Path,
    parse: impl Fn(&[u8]) -> Result<T, E>,
    unreadable: impl Fn(io::Error) -> E,
) -> Result<(T, Option<String>), E> {
    let read = |path: &Path| fs::read(path).map(|bytes| parse(&bytes));
    let error = match read(path) {
        Ok(Ok(content)) => return Ok((content, None)),
        Ok(Err(error)) => Some(error),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(unreadable(error)),
    };
    match (read(&second(path)), error) {
        (Ok(Ok(content)), Some(error)) => Ok((content, Some(error.to_string()))),
        (Ok(Ok(content)), None) => Ok((content, Some(format!("{} is lost", path.display())))),
        (_, Some(error)) | (Ok(Err(error)), None) => Err(error),
        (Err(_), None) => Ok((T::default(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(path: &Path) -> Result<(u64, Option<String>), String> {
        let parse = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.parse().map_err(|error: std::num::ParseIntError| error.to_string())
        };
        read_either(path, parse, |error| error.to_string())
    }

    #[test]
    fn a_second_copy_stands_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("number");
        assert_eq!(number(&path), Ok((0, None)));
        replace_both(&path, |out| out.write_all(b"7")).expect("written");
        assert_eq!(number(&path), Ok((7, None)));
        for damage in [&b""[..], b"x", b"\xff"] {
            fs::write(&path, damage).expect("written");
            assert!(matches!(number(&path), Ok((7, Some(_)))));
        }
        fs::remove_file(&path).expect("removed");
        assert!(matches!(number(&path), Ok((7, Some(why))) if why.ends_with("is lost")));
        fs::write(second(&path), "").expect("written");
        assert!(number(&path).is_err());
        fs::write(&path, "8").expect("written");
        assert_eq!(number(&path), Ok((8, None)));
        mend_copy(&path);
        assert_eq!(fs::read(second(&path)).expect("written"), b"8");
    }

    #[test]
    fn what_could_not_be_removed_is_removed_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, within) = (folder.path().join("number"), folder.path().join("within"));
        fs::create_dir(&within).expect("made");
        // Nothing can be removed from where it has gone meanwhile.
        let moved = replace(&path, |_| {
            for entry in fs::read_dir(folder.path())?.flatten() {
                if entry.file_type()?.is_file() {
                    fs::rename(entry.path(), within.join(entry.file_name()))?;
                    fs::create_dir(entry.path())?;
                }
            }
            Err(io::Error::other("no room"))
        });
        assert!(moved.is_err());
        let left: Vec<_> = fs::read_dir(&within).expect("there").flatten().collect();
        let place = folder.path().join(left[0].file_name());
        assert!(place.exists() && lock(&LEFT).contains(&place));
        fs::remove_dir(&place).expect("empty");
        fs::write(&place, "left").expect("written");
        tidy();
        assert!(!place.exists() && !lock(&LEFT).contains(&place));
    }

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
