//! High-water marks: which bundle is the newest that was ever accepted here, and which tokens were used
//! last, kept where a restored backup of the agent's state does not bring back what was there before.
//!
//! A mark never lowers what the state knows, and one that cannot be read or written stops nothing: a device
//! that takes no policy any more is as bad as one that takes an old one. It is told.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{Kept, State};
use crate::{
    durable,
    kernel::filesystems::magic_of_file,
    policy::bundle::{parse_device_file, placed, read_device_file},
};

/// The file in a folder that is named as a place.
const FILE: &str = "newest.json";
/// The variable of the firmware.
const VARIABLE: &str =
    "/sys/firmware/efi/efivars/PortcullisNewest-5c2f4f0a-7d1e-4c0b-9a53-8e6f0d3b1c92";
/// What a file in efivarfs begins with: non-volatile, and to be reached at boot and from the system.
const ATTRIBUTES: [u8; 4] = [7, 0, 0, 0];
/// `EFIVARFS_MAGIC` (linux/magic.h).
const EFIVARFS: u64 = 0xde5e_81e4;
/// The gates guard files on so many filesystems besides that of the state.
pub const MOST: usize = 3;
/// A mark is some 1,300 bytes at most.
const MAX_BYTES: u64 = 4096;
/// So many used tokens are kept in a mark, as variables of firmwares are small. A token is for one visit, and
/// has a time after which it counts no more.
const MOST_TOKENS: usize = 16;

/// One place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder of its own, in which nothing else lies.
    Folder(PathBuf),
    /// A variable of the firmware, as a file in efivarfs.
    Variable(PathBuf),
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HighWater {
    places: Vec<Place>,
}

/// What one place keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The newest bundle that was ever accepted.
    newest: Option<Kept>,
    /// The tokens that were used last, as in [`State::used`].
    used: Vec<String>,
}

/// What the places say.
#[derive(Debug, Default)]
pub struct Reading {
    /// The newest of what could be read.
    pub highest: Option<Kept>,
    /// All tokens that any of them knows.
    pub used: Vec<String>,
    /// What is wrong, for people.
    pub troubles: Vec<String>,
    /// Places in which nothing is yet.
    pub empty: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct DeviceFile {
    #[serde(default)]
    high_water: Vec<Spanned<String>>,
}

impl HighWater {
    /// Reads which places the device's file names; without one there are none.
    ///
    /// # Errors
    /// If it is there and cannot be understood, for people.
    pub fn read(path: &Path) -> Result<Self, String> {
        match read_device_file(path)? {
            None => Ok(Self::default()),
            Some(text) => Self::parse(path, &text),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let wrong = |offset, message: &str| placed(path, text, offset, message);
        let help = "write high_water = [\"efi\", \"/boot/portcullis\"]";
        let file: DeviceFile = parse_device_file(path, text, help)?;
        if let Some(one) = file.high_water.get(MOST) {
            let message = format!("high_water names more than {MOST} places; take some out");
            return Err(wrong(one.span().start, &message));
        }
        let mut places = Vec::new();
        for one in file.high_water {
            let name = one.get_ref().as_str();
            let is_plain = Path::new(name).components().all(|part| part.as_os_str() != "..");
            places.push(match name {
                "efi" => Place::Variable(VARIABLE.into()),
                folder if folder.starts_with('/') && is_plain => Place::Folder(folder.into()),
                other => {
                    let message = format!(
                        "\"{}\" is no place; write \"efi\", or a folder from the root on",
                        other.escape_debug()
                    );
                    return Err(wrong(one.span().start, &message));
                }
            });
        }
        Ok(Self { places })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The places, and makes the folders that are not there: the gates guard what is.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().inspect(|place| place.make())
    }

    /// Reads every place.
    #[must_use]
    pub fn look(&self) -> Reading {
        let mut reading = Reading::default();
        for place in &self.places {
            match place.get() {
                Ok(Some(mark)) => reading.take(mark),
                Ok(None) => reading.empty.push(place.file()),
                Err(why) => {
                    reading
                        .troubles
                        .push(format!("{} cannot be read: {why}", place.file().display()));
                }
            }
        }
        reading
    }

    /// Writes this to every place that says anything else, or removes what is there if it is nothing;
    /// returns what went wrong. What cannot be read is left alone unless `over` says so. Tokens that only a
    /// place knows stay there.
    pub fn set(&self, mark: &Mark, over: bool) -> Vec<String> {
        let mut troubles = Vec::new();
        for place in &self.places {
            let known = match place.get() {
                Err(_) if !over => continue,
                known => known,
            };
            let wanted = match &known {
                Ok(Some(known)) => mark.clone().after(&known.used),
                _ => mark.clone(),
            };
            if known.is_ok_and(|known| known.unwrap_or_default() == wanted) {
                continue;
            }
            if let Err(error) = place.set(&wanted) {
                troubles.push(format!("{} cannot be written: {error}", place.file().display()));
            }
        }
        troubles
    }

    /// The places that a restored backup of this folder's filesystem takes back as well.
    #[must_use]
    pub fn beside(&self, folder: &Path) -> Vec<String> {
        let device = |path: &Path| fs::metadata(path).ok().map(|state| state.dev());
        let Some(own) = device(folder) else { return Vec::new() };
        let folders = self.places.iter().filter_map(|place| match place {
            Place::Folder(folder) => Some(folder),
            Place::Variable(_) => None,
        });
        let beside = folders.filter(|place| device(place) == Some(own));
        beside
            .map(|place| format!("{} lies on the filesystem of the state", place.display()))
            .collect()
    }
}

impl Reading {
    fn take(&mut self, mark: Mark) {
        if let Some(kept) = mark.newest
            && self.highest.as_ref().is_none_or(|known| known.age() < kept.age())
        {
            self.highest = Some(kept);
        }
        for token in mark.used {
            if !self.used.contains(&token) {
                self.used.push(token);
            }
        }
    }
}

impl Mark {
    /// What is to be kept of a state.
    #[must_use]
    pub fn of(state: &State) -> Self {
        Self { newest: state.newest.clone(), used: state.used.clone() }.after(&[])
    }

    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// With tokens that were used before those that are known, as far as there is room.
    fn after(mut self, used: &[String]) -> Self {
        let older = used.iter().filter(|token| !self.used.contains(token)).cloned();
        self.used = older.chain(self.used.iter().cloned()).collect();
        self.used.drain(..self.used.len().saturating_sub(MOST_TOKENS));
        self
    }

    /// The first marks were a bundle, and nothing else.
    fn parse(content: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(content).or_else(|error| match serde_json::from_slice(content) {
            Ok(newest) => Ok(Self { newest: Some(newest), used: Vec::new() }),
            Err(_) => Err(error),
        })
    }
}

impl Place {
    /// The file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        match self {
            Self::Folder(folder) => folder.join(FILE),
            Self::Variable(file) => file.clone(),
        }
    }

    /// Not the folders above it: below a mount point that nothing is mounted on it would be of no use.
    fn make(&self) {
        if let Self::Folder(folder) = self {
            // What went wrong shows when the file is written.
            let _ = fs::create_dir(folder);
        }
    }

    fn get(&self) -> Result<Option<Mark>, String> {
        let mut bytes = Vec::new();
        let read =
            File::open(self.file()).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
        match read {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| error.to_string())?,
        };
        let content = match self {
            Self::Folder(_) => &bytes[..],
            Self::Variable(_) => bytes.get(ATTRIBUTES.len()..).unwrap_or_default(),
        };
        Mark::parse(content).map(Some).map_err(|error| format!("is damaged: {error}"))
    }

    fn set(&self, mark: &Mark) -> io::Result<()> {
        let file = self.file();
        if mark.is_empty() {
            self.may_change(true)?;
            return fs::remove_file(&file);
        }
        let mut content = serde_json::to_vec(mark)?;
        match self {
            Self::Folder(_) => {
                self.make();
                // Makes no folders above, as it is there or cannot be.
                fs::metadata(file.parent().unwrap_or(Path::new("/")))?;
                durable::replace(&file, |out| out.write_all(&content))
            }
            Self::Variable(_) => {
                content.splice(..0, ATTRIBUTES);
                self.may_change(true)?;
                let mut out =
                    OpenOptions::new().write(true).create(true).truncate(false).open(&file)?;
                // One call is one change of the variable, whole or not at all.
                let written = out.write(&content)?;
                if written != content.len() {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                self.may_change(false)
            }
        }
    }

    /// efivarfs keeps most variables from being changed by accident.
    fn may_change(&self, may: bool) -> io::Result<()> {
        let file = match File::open(self.file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        if magic_of_file(&file)? != EFIVARFS {
            return Ok(());
        }
        let mut flags = ioctl_getflags(&file)?;
        flags.set(IFlags::IMMUTABLE, !may);
        Ok(ioctl_setflags(&file, flags)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(version: u64) -> Kept {
        Kept { sha256: format!("{version:064x}"), policy: "p".into(), version, epoch: 1 }
    }

    fn mark(version: u64) -> Mark {
        Mark { newest: Some(kept(version)), used: Vec::new() }
    }

    fn parse(text: &str) -> Result<Vec<Place>, String> {
        HighWater::parse(Path::new("device.toml"), text).map(|parsed| parsed.places)
    }

    #[test]
    fn the_device_file_names_places() {
        assert_eq!(parse("name = \"a\"\n[api]\nlisten = 1\n"), Ok(vec![]));
        let places = parse("high_water = [\"efi\", \"/boot/portcullis\"]\n").expect("good");
        assert_eq!(
            places,
            [Place::Variable(VARIABLE.into()), Place::Folder("/boot/portcullis".into())]
        );
        for (wrong, says) in [
            ("high_water = 1\n", "device.toml:1: "),
            ("\nhigh_water = [\"boot\"]\n", "device.toml:2: \"boot\" is no place"),
            ("high_water = [\"/boot/../etc\"]\n", "is no place"),
            (
                "high_water = [\"/a\", \"/b\", \"/c\",\n\"/d\"]\n",
                "device.toml:2: high_water names more",
            ),
        ] {
            let error = parse(wrong).expect_err(wrong);
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_highest_of_all_that_can_be_read_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let (boot, efi) = (folder.path().join("boot"), folder.path().join("variable"));
        let places = vec![Place::Folder(boot.clone()), Place::Variable(efi.clone())];
        let marks = HighWater { places };
        let reading = marks.look();
        assert_eq!((reading.highest, reading.empty.len()), (None, 2));
        assert_eq!(marks.set(&mark(3), false), [""; 0]);
        assert_eq!(marks.look().highest, Some(kept(3)));
        // As efivarfs has it.
        let variable = fs::read(&efi).expect("written");
        assert_eq!(variable[..5], [7, 0, 0, 0, b'{']);
        // One of them was put back.
        Place::Folder(boot.clone()).set(&mark(2)).expect("written");
        assert_eq!(marks.look().highest, Some(kept(3)));
        assert_eq!(marks.set(&mark(3), false), [""; 0]);
        assert_eq!(marks.places[0].get(), Ok(Some(mark(3))));
        // One is damaged, and stays until somebody knows better.
        fs::write(boot.join(FILE), "{").expect("written");
        assert_eq!(marks.set(&mark(3), false), [""; 0]);
        let reading = marks.look();
        assert_eq!(reading.highest, Some(kept(3)));
        assert!(reading.troubles[0].contains("is damaged"), "{reading:?}");
        assert_eq!(marks.set(&mark(4), true), [""; 0]);
        assert!(marks.look().troubles.is_empty());
        assert_eq!(marks.set(&Mark::default(), true), [""; 0]);
        assert_eq!(marks.look().empty.len(), 2);
        assert_eq!(marks.beside(folder.path()).len(), 1);
    }

    #[test]
    fn a_place_whose_filesystem_is_not_there_is_told_and_not_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let marks = HighWater { places: vec![Place::Folder(folder.path().join("not/mounted"))] };
        let troubles = marks.set(&mark(1), true);
        assert!(troubles[0].contains("cannot be written"), "{troubles:?}");
        assert!(!folder.path().join("not").exists());
    }

    #[test]
    fn the_tokens_used_last_are_kept_whoever_knows_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let [boot, other] = ["boot", "other"].map(|name| Place::Folder(folder.path().join(name)));
        let marks = HighWater { places: vec![boot.clone(), other.clone()] };
        // As they were at first.
        fs::create_dir(folder.path().join("boot")).expect("made");
        fs::write(boot.file(), serde_json::to_vec(&kept(3)).expect("JSON")).expect("written");
        assert_eq!(boot.get(), Ok(Some(mark(3))));
        let names =
            |numbers: std::ops::Range<usize>| numbers.map(|n| format!("{n:064x}")).collect();
        let state = |used| State { newest: Some(kept(3)), used, ..State::default() };
        assert_eq!(marks.set(&Mark::of(&state(names(0..2))), false), [""; 0]);
        assert_eq!(marks.look().used, names(0..2));
        // A state that does not know the first ones, and a place that has missed them.
        fs::remove_file(other.file()).expect("there");
        assert_eq!(marks.set(&Mark::of(&state(names(2..4))), false), [""; 0]);
        let used = |place: &Place| place.get().expect("readable").expect("there").used;
        assert_eq!((used(&boot), used(&other)), (names(0..4), names(2..4)));
        assert_eq!(marks.look().used, names(0..4));
        let many: Vec<String> = names(4..40);
        assert_eq!(marks.set(&Mark::of(&state(many)), false), [""; 0]);
        assert_eq!((used(&boot), used(&other)), (names(24..40), names(24..40)));
        let size = fs::metadata(boot.file()).expect("there").len();
        assert!(size < MAX_BYTES / 2, "{size}");
    }
}
