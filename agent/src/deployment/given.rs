//! A copy of the policy file that was in force last: a device that has enforced is not left without gates, or
//! without an agent, because somebody has made a mistake in that file.
//!
//! It is as little signed as the file itself, and counts only where no bundle is in force.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;

use super::Store;
use crate::{
    durable,
    policy::{
        bundle::{Bundle, Options, build_from},
        files::Files,
    },
};

/// The copy, with everything that the file names.
const COPY: &str = "given.bundle";
/// The same, unpacked.
const UNPACKED: &str = "given";
/// Larger ones are not copied: the disk of a device is small, and the copy is made in memory.
const MAX_BYTES: u64 = 16 << 20;

/// Keeps a copy of a policy file, whose content comes from `sources`, if the one that is there is another.
///
/// # Errors
/// If there is none, with the reason for people.
pub fn keep(
    folder: &Path,
    files: &dyn Files,
    file: &Path,
    sources: &[String],
) -> Result<(), String> {
    let sizes = sources.iter().filter_map(|source| fs::metadata(source).ok());
    if sizes.map(|source| source.len()).sum::<u64>() > MAX_BYTES {
        return Err(format!("it is larger than {} MiB", MAX_BYTES >> 20));
    }
    let made = build_from(files, file, &Options::default(), &ProgressBar::hidden());
    let made = made.map_err(|error| error.to_string())?;
    let path = folder.join(COPY);
    // A flash memory wears out by writing.
    if fs::read(&path).is_ok_and(|known| known == made) {
        return Ok(());
    }
    durable::replace(&path, |out| out.write_all(&made))
        .map_err(|error| format!("{}: {error}", path.display()))
}

impl Store {
    /// Reads the copy and unpacks it. Returns its policy file; none if there is no copy.
    ///
    /// # Errors
    /// With what is wrong with it, for people.
    pub fn open_given(&self) -> Result<Option<PathBuf>, String> {
        let path = self.folder.join(COPY);
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let bundle =
            Bundle::read(&path).map_err(|(_, why)| format!("{}: {why}", path.display()))?;
        let folder = self.folder.join(UNPACKED);
        super::unpack(&bundle, &folder)
            .map(Some)
            .map_err(|error| format!("{}: {error}", folder.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::files::Disk;

    #[test]
    fn a_copy_is_what_the_file_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, kept) = (folder.path().join("policy.toml"), folder.path().join("bundles"));
        let store = Store::open(&kept).expect("empty");
        assert_eq!(store.open_given(), Ok(None));
        let text = "name = \"p\"\nversion = 4\nmode = \"enforce\"\ninclude = [\"list\"]\n";
        let list = format!(
            "# portcullis manifest 1\n# kinds: library\n{:064x}  /a\n# end: 1 entries\n",
            7
        );
        fs::write(&file, text).expect("written");
        fs::write(folder.path().join("list"), list).expect("written");
        let sources = [file.display().to_string()];
        keep(&kept, &Disk, &file, &sources).expect("kept");
        // A mistake is no copy, and takes none away.
        fs::write(&file, "name = ").expect("written");
        assert!(keep(&kept, &Disk, &file, &sources).is_err());
        for _ in 0..2 {
            let copy = store.open_given().expect("good").expect("there");
            assert_eq!(fs::read_to_string(&copy).expect("there"), text);
            assert!(copy.with_file_name("list").exists());
        }
        fs::File::create(&file).and_then(|file| file.set_len(1 << 30)).expect("written");
        assert!(keep(&kept, &Disk, &file, &sources).expect_err("huge").contains("16 MiB"));
        fs::write(kept.join(COPY), "no bundle").expect("written");
        assert!(store.open_given().is_err());
    }
}
