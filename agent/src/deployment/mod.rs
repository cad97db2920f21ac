//! Bundles on the device: which one is in force, which was before, and how new the next must be.
//!
//! Everything that must survive a restart is one small file, [`STATE`], which is replaced whole; the
//! bundles that it names lie beside it. What is written before the kernel switches, and what after it,
//! is decided in `run::agent::push`.

pub mod given;
mod high_water;
mod start;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    artifact::digest,
    durable,
    policy::{
        bundle::{Bundle, Manifest},
        trust::Why,
    },
};

pub use high_water::{HighWater, MOST as MOST_MARKS, Place};
pub use start::{AtStart, Candidate, ID, PassedOver, SET_BACK, at_start};

/// The file that says what is in force.
const STATE: &str = "state.json";

/// A bundle that is kept on the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// SHA-256 of its manifest, in hexadecimal: its identity.
    pub sha256: String,
    /// The policy's name.
    pub policy: String,
    /// The policy's number.
    pub version: u64,
    /// Counts deliberate downgrades.
    pub epoch: u64,
}

impl Kept {
    /// What is kept of a bundle.
    #[must_use]
    pub fn of(bundle: &Bundle) -> Self {
        let Manifest { policy, version, epoch, .. } = bundle.manifest();
        let (policy, version, epoch) = (policy.clone(), *version, *epoch);
        Self { sha256: digest::format(&bundle.digest()), policy, version, epoch }
    }

    fn age(&self) -> (u64, u64) {
        (self.epoch, self.version)
    }
}

impl std::fmt::Display for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} v{}", self.policy.escape_debug(), self.version)?;
        if self.epoch > 0 { write!(f, " (epoch {})", self.epoch) } else { Ok(()) }
    }
}

/// A bundle that is tried: it counts until the agent ends, or until its time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Which.
    pub bundle: Kept,
    /// When it is taken back unless it is confirmed; for people, as the clock may be changed.
    pub until: Timestamp,
}

/// What survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The newest that was ever accepted. Nothing older is.
    pub newest: Option<Kept>,
    /// What is in force after a restart; none if that is the policy file that the agent is given.
    pub confirmed: Option<Kept>,
    /// What was, before that; none if that was the policy file.
    pub previous: Option<Kept>,
    /// What is tried now.
    pub trial: Option<Trial>,
    /// Tokens that were used here, by SHA-256 of what they claim, in hexadecimal. Never forgotten: a clock
    /// that is set forward and back would bring them back otherwise.
    #[serde(default)]
    pub used: Vec<String>,
    /// The newest that a high-water mark knew of when the rest was found to be older; until something
    /// comes into force that is as new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_back: Option<Kept>,
}

/// Why the state is not known or cannot be kept.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or folder cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{}: is damaged: {source}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

/// The folder of bundles with what is known of them.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
    /// What is known.
    pub state: State,
    /// What is wrong with the file, if this comes from its second copy.
    recovered: Option<String>,
    /// Whether what was known is lost, so that nobody can tell what is old.
    is_damaged: bool,
    /// What is in force in the place of what was confirmed and cannot be; none in it is the policy file.
    /// Never on the disk, so that the next start tries again.
    instead: Option<Option<Kept>>,
    /// Where else the newest, and used tokens, are kept.
    high_water: HighWater,
    /// Whether a copy is in force in the place of the policy file.
    is_copy: bool,
}

impl Store {
    /// Opens the folder; one that is not there is empty.
    ///
    /// # Errors
    /// If the state is there and cannot be understood.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let path = folder.join(STATE);
        let parse = |bytes: &[u8]| {
            serde_json::from_slice(bytes)
                .map_err(|source| StoreError::Damaged { path: path.clone(), source })
        };
        let unreadable = |source| StoreError::File { path: path.clone(), source };
        let (state, recovered) = durable::read_either(&path, parse, unreadable)?;
        Ok(Self { state, recovered, is_damaged: false, ..Self::damaged(folder) })
    }

    /// A store whose state cannot be read: it takes no bundle, as that may be an old one.
    #[must_use]
    pub fn damaged(folder: &Path) -> Self {
        let (folder, state) = (folder.to_owned(), State::default());
        let high_water = HighWater::default();
        Self {
            folder,
            state,
            recovered: None,
            is_damaged: true,
            instead: None,
            high_water,
            is_copy: false,
        }
    }

    /// What is in force now: what is tried, or what was confirmed; none if it is the policy file.
    #[must_use]
    pub fn in_force(&self) -> Option<&Kept> {
        match (&self.state.trial, &self.instead) {
            (Some(trial), _) => Some(&trial.bundle),
            (None, Some(instead)) => instead.as_ref(),
            (None, None) => self.state.confirmed.as_ref(),
        }
    }

    /// This is in force, whatever was confirmed.
    fn put_in_place(&mut self, kept: Option<Kept>) {
        self.is_copy = false;
        self.instead = (kept != self.state.confirmed).then_some(kept);
    }

    /// Whether the policy file that the agent was given is in force, and no copy of it.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.in_force().is_none() && !self.is_copy
    }

    /// The policy file was read anew and is in force. Whether that is all that should be.
    pub fn given_again(&mut self) -> bool {
        self.is_copy = false;
        self.state.confirmed.is_none()
    }

    /// Whether this bundle may come into force after all that were.
    ///
    /// # Errors
    /// If it is older than the newest, or another one of the same version.
    pub fn check_age(&self, bundle: &Kept) -> Result<(), Why> {
        self.check_damage()?;
        // What could not be read when the agent started may be there by now.
        let mark = self.high_water.look().highest;
        let known = [self.state.newest.as_ref(), mark.as_ref()];
        let Some(newest) = known.into_iter().flatten().max_by_key(|kept| kept.age()) else {
            return Ok(());
        };
        if bundle.age() < newest.age() {
            let message = format!(
                "{bundle} is older than {newest}, which was accepted here; raise the version, or go \
                 back deliberately with a higher `policy build --epoch`"
            );
            return Err(("rollback", message));
        }
        if bundle.age() == newest.age() && bundle.sha256 != newest.sha256 {
            let message =
                format!("another bundle was accepted here as {newest}; raise the version");
            return Err(("same-version", message));
        }
        Ok(())
    }

    fn check_damage(&self) -> Result<(), Why> {
        if self.is_damaged {
            let message = format!(
                "{} cannot be read, so that nobody can tell what is old; move it away to \
                 start anew",
                self.folder.join(STATE).display()
            );
            return Err(("state-damaged", message));
        }
        Ok(())
    }

    /// Keeps what is known: whole or not at all, also through a power cut.
    ///
    /// # Errors
    /// If the folder cannot be written; what is known on the disk is what it was.
    pub fn write(&self) -> Result<(), StoreError> {
        let path = self.folder.join(STATE);
        let written = durable::replace_both(&path, |out| {
            serde_json::to_writer_pretty(&mut *out, &self.state)?;
            out.write_all(b"\n")
        });
        written.map_err(|source| StoreError::File { path, source })
    }

    /// Has the high-water marks say what is the newest now, and which tokens were used; returns what went
    /// wrong. To be done after [`Self::write`], as marks that are ahead of the state mean that the state was
    /// put back.
    #[must_use]
    pub fn set_marks(&self) -> Vec<String> {
        self.high_water.set(&high_water::Mark::of(&self.state), true)
    }

    /// Where the newest, and used tokens, are kept besides.
    #[must_use]
    pub fn high_water(&self) -> &HighWater {
        &self.high_water
    }

    /// Takes a copy of a bundle that was read, so that it is still there after a restart, and returns
    /// its policy file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, bundle: &Bundle) -> Result<PathBuf, StoreError> {
        let path = self.path_of(&Kept::of(bundle));
        durable::replace(&path, |out| out.write_all(bundle.bytes()))
            .map_err(|source| StoreError::File { path, source })?;
        self.unpack(bundle)
    }

    /// Reads a bundle that is kept, and unpacks it unless that was done. Returns its policy file, and
    /// whether its signers want it enforced whatever it would stop.
    ///
    /// # Errors
    /// With what is wrong with it, for people.
    pub fn open_kept(&self, kept: &Kept) -> Result<(PathBuf, bool), String> {
        let path = self.path_of(kept);
        let bundle =
            Bundle::read(&path).map_err(|(_, why)| format!("{}: {why}", path.display()))?;
        if Kept::of(&bundle) != *kept {
            return Err(format!("{}: is another bundle than was kept", path.display()));
        }
        let policy = self.unpack(&bundle).map_err(|error| error.to_string())?;
        Ok((policy, bundle.manifest().skip_preflight))
    }

    fn unpack(&self, bundle: &Bundle) -> Result<PathBuf, StoreError> {
        let folder = self.folder.join(Kept::of(bundle).sha256);
        unpack(bundle, &folder).map_err(|source| StoreError::File { path: folder.clone(), source })
    }

    fn path_of(&self, kept: &Kept) -> PathBuf {
        self.folder.join(format!("{}.bundle", kept.sha256))
    }

    /// Removes bundles that nothing refers to. What cannot be removed is tried again the next time.
    pub fn clean(&self) {
        let State { newest, confirmed, previous, trial, .. } = &self.state;
        let trial = trial.as_ref().map(|trial| &trial.bundle);
        let needed: Vec<_> = [newest.as_ref(), confirmed.as_ref(), previous.as_ref(), trial]
            .into_iter()
            .flatten()
            .map(|kept| kept.sha256.as_str())
            .collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let stem = name.strip_suffix(".bundle").unwrap_or(&name);
            // Only what looks like one of ours.
            if digest::parse(stem).is_err() || needed.contains(&stem) {
                continue;
            }
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(entry.path()),
                _ => fs::remove_file(entry.path()),
            };
        }
    }

    /// The state with this bundle in force: for good, or until it is confirmed.
    #[must_use]
    pub fn with(&self, bundle: Kept, until: Option<Timestamp>) -> Self {
        let mut next = self.clone();
        next.state.newest = Some(bundle.clone());
        next.state.set_back = None;
        match until {
            Some(until) => next.state.trial = Some(Trial { bundle, until }),
            None => next.confirm(bundle),
        }
        next
    }

    /// The state with a token used.
    ///
    /// # Errors
    /// If it was used before, or nobody can tell.
    pub fn with_used(&self, token: String) -> Result<Self, Why> {
        self.check_damage()?;
        // What could not be read when the agent started may be there by now.
        if self.state.used.contains(&token) || self.high_water.look().used.contains(&token) {
            return Err(("used", "it was used here before; ask for another one".into()));
        }
        let mut next = self.clone();
        next.state.used.push(token);
        Ok(next)
    }

    /// The state with what is tried confirmed; none if nothing is tried.
    #[must_use]
    pub fn confirmed(&self) -> Option<Self> {
        let mut next = self.clone();
        let trial = next.state.trial.take()?;
        next.confirm(trial.bundle);
        Some(next)
    }

    fn confirm(&mut self, bundle: Kept) {
        self.state.trial = None;
        let instead = self.instead.take();
        // The same again is no change.
        if self.state.confirmed.as_ref() != Some(&bundle) {
            let confirmed = self.state.confirmed.replace(bundle);
            self.state.previous = instead.unwrap_or(confirmed);
        }
    }

    /// The state with what is in force taken back; none if that is the policy file already.
    #[must_use]
    pub fn taken_back(&self) -> Option<Self> {
        let mut next = self.clone();
        if next.state.trial.take().is_some() {
            return Some(next);
        }
        next.in_force()?;
        let before = next.state.previous.take();
        // What is in force in the place of another was before that one.
        next.state.confirmed = before.filter(|_| next.instead.take().is_none());
        Some(next)
    }
}

/// Unpacks a bundle, unless it lies there as it is: a device whose disk is full or read-only shall be able to
/// start with it too, and a flash memory wears out by writing.
fn unpack(bundle: &Bundle, folder: &Path) -> io::Result<PathBuf> {
    if let Some(policy) = bundle.unpacked(folder) {
        return Ok(policy);
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(folder)?;
    bundle.unpack(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Store {
        Store { is_damaged: false, ..Store::damaged(Path::new("/nowhere")) }
    }

    fn kept(epoch: u64, version: u64) -> Kept {
        let sha256 = format!("{epoch:032x}{version:032x}");
        Kept { sha256, policy: "p".into(), version, epoch }
    }

    /// What comes into force when what is in force is taken back.
    fn before(store: &Store) -> Option<Kept> {
        store.taken_back().and_then(|store| store.in_force().cloned())
    }

    fn until() -> Option<Timestamp> {
        Some(Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn nothing_older_than_the_newest_comes_into_force() {
        let store = empty().with(kept(1, 5), None);
        let reason = |bundle| store.check_age(&bundle).err().map(|(reason, _)| reason);
        assert_eq!(reason(kept(1, 6)), None);
        assert_eq!(reason(kept(2, 1)), None);
        assert_eq!(reason(kept(1, 5)), None);
        assert_eq!(reason(kept(1, 4)), Some("rollback"));
        assert_eq!(reason(kept(0, 9)), Some("rollback"));
        let other = Kept { policy: "other".into(), ..kept(1, 1) };
        assert_eq!(reason(other), Some("rollback"), "a name must not be a way round");
        let twin = Kept { sha256: "ff".into(), ..kept(1, 5) };
        assert_eq!(reason(twin), Some("same-version"));
    }

    #[test]
    fn a_trial_leaves_what_was_confirmed() {
        let store = empty().with(kept(0, 1), None);
        let trial = store.with(kept(0, 2), until());
        assert_eq!(trial.in_force(), Some(&kept(0, 2)));
        assert_eq!(before(&trial), Some(kept(0, 1)));
        let back = trial.taken_back().expect("there is a trial");
        assert_eq!(back.in_force(), Some(&kept(0, 1)));
        // It was accepted all the same, so what is older stays out.
        assert!(back.check_age(&kept(0, 1)).is_err());
        assert!(back.check_age(&kept(0, 2)).is_ok());
        let kept_on = trial.confirmed().expect("there is a trial");
        assert_eq!(kept_on.in_force(), Some(&kept(0, 2)));
        assert_eq!(before(&kept_on), Some(kept(0, 1)));
        assert!(kept_on.confirmed().is_none());
        // Twice back is the policy file, and three times is nothing.
        let twice = kept_on.taken_back().and_then(|store| store.taken_back()).expect("two");
        assert_eq!(twice.in_force(), None);
        assert!(twice.taken_back().is_none());
    }

    #[test]
    fn a_second_trial_goes_back_to_what_was_confirmed() {
        let store = empty().with(kept(0, 1), None);
        let second = store.with(kept(0, 2), until()).with(kept(0, 3), until());
        assert_eq!(before(&second), Some(kept(0, 1)));
        let kept_on = second.confirmed().expect("a trial");
        assert_eq!(before(&kept_on), Some(kept(0, 1)));
    }

    #[test]
    fn what_is_in_force_in_the_place_of_another_is_no_confirmation() {
        let mut store = empty().with(kept(0, 1), None).with(kept(0, 2), None);
        store.put_in_place(Some(kept(0, 1)));
        assert_eq!(store.in_force(), Some(&kept(0, 1)));
        // Whatever is written meanwhile.
        let written = store.with_used("token".into()).expect("new");
        assert_eq!(written.state.confirmed, Some(kept(0, 2)));
        assert_eq!(before(&store), None, "only the policy file was before it");
        let mended = store.with(kept(0, 3), None);
        assert_eq!((mended.in_force(), before(&mended)), (Some(&kept(0, 3)), Some(kept(0, 1))));
        assert_eq!(store.with(kept(0, 2), None).in_force(), Some(&kept(0, 2)), "pushed again");
        store.put_in_place(Some(kept(0, 2)));
        assert_eq!((store.in_force(), before(&store)), (Some(&kept(0, 2)), Some(kept(0, 1))));
        store.put_in_place(None);
        assert_eq!(store.in_force(), None);
        assert!(store.taken_back().is_none());
    }

    #[test]
    fn the_state_survives_and_damage_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().join("bundles");
        let store = Store::open(&folder).expect("empty").with(kept(0, 7), until());
        store.write().expect("written");
        assert_eq!(Store::open(&folder).expect("readable").state, store.state);
        fs::write(folder.join(STATE), b"{\"newest\":").expect("written");
        let copied = Store::open(&folder).expect("its copy is good");
        assert_eq!(copied.state, store.state);
        assert!(copied.recovered.is_some_and(|why| why.contains("state.json: is damaged")));
        fs::write(folder.join(format!("{STATE}.copy")), b"").expect("written");
        let error = Store::open(&folder).expect_err("damaged").to_string();
        assert!(error.contains("state.json: is damaged"), "{error}");
    }

    #[test]
    fn a_token_is_used_once() {
        let store = empty().with_used("a".into()).expect("new");
        assert_eq!(store.with_used("a".into()).expect_err("used").0, "used");
        let store = store.with_used("b".into()).expect("new");
        assert_eq!(store.with_used("a".into()).expect_err("used").0, "used");
        // Whatever becomes of policies.
        let later = store.with(kept(0, 1), until()).taken_back().expect("a trial");
        assert_eq!(later.with_used("b".into()).expect_err("used").0, "used");
        assert_eq!(
            Store::damaged(Path::new("/nowhere")).with_used("c".into()).expect_err("damaged").0,
            "state-damaged"
        );
    }

    #[test]
    fn only_what_nothing_refers_to_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(folder.path()).expect("empty").with(kept(0, 1), None);
        let (needed, old) = (kept(0, 1).sha256, kept(0, 9).sha256);
        for name in [&needed, &old] {
            fs::write(folder.path().join(format!("{name}.bundle")), b"x").expect("written");
            fs::create_dir(folder.path().join(name)).expect("made");
        }
        fs::write(folder.path().join("notes.txt"), b"mine").expect("written");
        store.clean();
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("a folder")
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, [needed.clone(), format!("{needed}.bundle"), "notes.txt".into()]);
    }
}
