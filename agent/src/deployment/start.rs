//! Which policies an agent can start with, and in which order.

use std::path::{Path, PathBuf};

use super::{HighWater, Kept, STATE, Store, high_water::Mark};
use crate::{
    durable,
    kernel::check::{Check, State},
};

/// A policy that an agent can start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The bundle that it came in; none if it is the policy file that the agent is given.
    pub kept: Option<Kept>,
    /// The policy file to read.
    pub policy: PathBuf,
    /// Whether its signers want it enforced whatever it would stop.
    pub skip_preflight: bool,
    /// Whether it is a copy of the policy file that the agent is given.
    pub is_copy: bool,
}

/// A bundle that was in force and could not be put in force again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Which; none if that is not known, or if it is the policy file.
    pub kept: Option<Kept>,
    /// Why, for people.
    pub why: String,
}

/// What an agent starts with.
#[derive(Debug)]
pub struct AtStart {
    /// The bundles.
    pub store: Store,
    /// What was tried when the agent before ended, and is not in force any more.
    pub reverted: Option<Kept>,
    /// What could not be put in force, in the order in which it was tried.
    pub passed_over: Vec<PassedOver>,
    /// What can still be tried, the best last.
    left: Vec<Kept>,
    /// The policy file that the agent is given, which comes after all bundles.
    given: Option<PathBuf>,
    /// Whether a copy of that file comes at last.
    may_copy: bool,
    /// What is wrong with the state itself.
    damage: Option<Check>,
    /// What is wrong with the high-water marks, for people.
    mark_troubles: Vec<String>,
}

/// The check that tells which policy is in force.
pub const ID: &str = "bundles";
const TITLE: &str = "the confirmed policy is in force";

/// The check that tells whether an older copy of the state would be noticed.
pub const SET_BACK: &str = "high-water";
const SET_BACK_TITLE: &str = "old bundles do not come back with a backup";

impl Store {
    /// What is in force, as a check that came out well.
    #[must_use]
    pub fn check(&self, given: &Path) -> Check {
        let found = match self.in_force() {
            None if self.is_copy => {
                format!("the policy file {} as it was in force before", given.display())
            }
            None => format!("the policy file {}", given.display()),
            Some(kept) if self.state.trial.is_some() => format!("bundle {kept}, on trial"),
            Some(kept) => format!("bundle {kept}"),
        };
        Check::ok(ID, TITLE, found)
    }

    /// Whether the state was put back, and what the high-water marks' `troubles` are; none if there are no
    /// marks.
    #[must_use]
    pub fn check_marks(&self, troubles: &[String]) -> Option<Check> {
        if let Some(newer) = &self.state.set_back {
            let found = format!(
                "the state was put back from an older copy: {newer} was accepted here, and {} is in force",
                self.in_force().map_or("the policy file".into(), ToString::to_string)
            );
            let mend = format!("push {newer} again, or a newer one; older ones are refused");
            return Some(Check::failed(SET_BACK, SET_BACK_TITLE, found, mend));
        }
        if !troubles.is_empty() {
            let mend =
                "mend it, and start the agent again; what the other places say counts all the same";
            let found = troubles.join("; ");
            return Some(Check::bad(State::Warning, SET_BACK, SET_BACK_TITLE, found, mend));
        }
        let newest = match &self.state.newest {
            None => "nothing was accepted yet".to_owned(),
            Some(newest) => format!("the newest is {newest}"),
        };
        (!self.high_water.is_empty()).then(|| Check::ok(SET_BACK, SET_BACK_TITLE, newest))
    }

    /// Compares with the high-water marks, and has both sides know the newest. Returns what is wrong with
    /// the marks.
    fn meet_marks(&mut self, high_water: HighWater) -> Vec<String> {
        let reading = high_water.look();
        let mut troubles = reading.troubles;
        self.high_water = high_water;
        let newest = self.state.newest.as_ref();
        let mut is_put_back = false;
        if let Some(highest) = reading.highest
            && newest.is_none_or(|newest| newest.age() < highest.age())
        {
            self.state.newest = Some(highest.clone());
            self.state.set_back = Some(highest);
            is_put_back = true;
        }
        let mut unknown = reading.used;
        unknown.retain(|token| !self.state.used.contains(token));
        if !unknown.is_empty() {
            troubles.push(format!(
                "the state was put back from an older copy: it did not know {} tokens that were used here",
                unknown.len()
            ));
            self.state.used.append(&mut unknown);
            is_put_back = true;
        }
        if is_put_back && let Err(error) = self.write() {
            troubles.push(error.to_string());
        }
        let mark = Mark::of(&self.state);
        if !mark.is_empty() {
            let missing = reading.empty.iter();
            troubles.extend(
                missing.map(|file| format!("{} was not there, and was made anew", file.display())),
            );
            troubles.extend(self.high_water.set(&mark, false));
        }
        troubles.extend(self.high_water.beside(&self.folder));
        troubles
    }
}

/// Finds what was confirmed; what was only tried is taken back, as nobody has confirmed it. After it
/// come what was confirmed before it, and at last `given`. `marks` are the high-water marks, or why they
/// are not known.
#[must_use]
pub fn at_start(folder: &Path, given: &Path, marks: Result<HighWater, String>) -> AtStart {
    let mut start = AtStart {
        store: Store::damaged(folder),
        reverted: None,
        passed_over: Vec::new(),
        left: Vec::new(),
        given: Some(given.to_owned()),
        may_copy: false,
        damage: None,
        mark_troubles: Vec::new(),
    };
    let (marks, unknown) = match marks {
        Ok(marks) => (marks, None),
        Err(why) => (HighWater::default(), Some(why)),
    };
    match Store::open(folder) {
        Ok(store) => start.store = store,
        Err(error) => {
            let found = format!("{error}; the policy file {} is in force", given.display());
            let mend = format!("move {} away, and push the newest bundle again", folder.display());
            start.damage = Some(Check::failed(ID, TITLE, found, mend));
            start.store.high_water = marks;
            return start;
        }
    }
    if start.store.recovered.is_none() {
        durable::mend_copy(&folder.join(STATE));
    } else if let Err(error) = start.store.write() {
        start.mark_troubles.push(error.to_string());
    }
    start.mark_troubles.extend(start.store.meet_marks(marks));
    start.mark_troubles.extend(unknown);
    start.reverted = start.store.state.trial.take().map(|trial| trial.bundle);
    if start.reverted.is_some()
        && let Err(error) = start.store.write()
    {
        start.passed_over.push(PassedOver { kept: None, why: error.to_string() });
    }
    let state = &start.store.state;
    start.left = [&state.previous, &state.confirmed].into_iter().flatten().cloned().collect();
    start
}

impl AtStart {
    /// The device has enforced before: rather than nothing it takes the policy file as it was.
    pub fn allow_copy(&mut self) {
        self.may_copy = true;
    }

    /// The next one to try, which is in force as far as the store knows from now on. A bundle that
    /// cannot be read is passed over.
    pub fn next_to_try(&mut self) -> Option<Candidate> {
        while let Some(kept) = self.left.pop() {
            match self.store.open_kept(&kept) {
                Ok((policy, skip_preflight)) => {
                    self.store.put_in_place(Some(kept.clone()));
                    return Some(Candidate {
                        kept: Some(kept),
                        policy,
                        skip_preflight,
                        is_copy: false,
                    });
                }
                Err(why) => self.passed_over.push(PassedOver { kept: Some(kept), why }),
            }
        }
        self.store.put_in_place(None);
        let is_copy = self.given.is_none();
        let policy = match self.given.take() {
            Some(given) => given,
            None if std::mem::take(&mut self.may_copy) => match self.store.open_given() {
                Ok(copy) => copy?,
                Err(why) => {
                    self.passed_over.push(PassedOver { kept: None, why });
                    return None;
                }
            },
            None => return None,
        };
        self.store.is_copy = is_copy;
        Some(Candidate { kept: None, policy, skip_preflight: false, is_copy })
    }

    /// This one could not be put in force.
    pub fn pass_over(&mut self, candidate: &Candidate, why: String) {
        self.passed_over.push(PassedOver { kept: candidate.kept.clone(), why });
    }

    /// This one is put in force after all, in audit mode.
    pub fn come_back_to(&mut self, candidate: &Candidate) {
        self.store.put_in_place(candidate.kept.clone());
        self.store.is_copy = candidate.is_copy;
    }

    /// Whether an older copy of the state was put back, as a check; none if nobody could tell.
    #[must_use]
    pub fn check_marks(&self) -> Option<Check> {
        self.store.check_marks(&self.mark_troubles)
    }

    /// Whether what was confirmed is in force, as a check; `audits` if nothing could be enforced.
    #[must_use]
    pub fn check(&self, given: &Path, audits: bool) -> Check {
        let ok = self.store.check(given);
        if let Some(damage) = &self.damage {
            return damage.clone();
        }
        if self.passed_over.is_empty() {
            return match &self.store.recovered {
                None => ok,
                Some(why) => {
                    let found = format!("{}; {why}, and its copy was used", ok.found);
                    let mend = "look after the disk; the next push is written to both again";
                    Check::bad(State::Warning, ID, TITLE, found, mend)
                }
            };
        }
        let why: Vec<_> = self.passed_over.iter().map(|one| one.why.as_str()).collect();
        let how = if audits { " IN AUDIT MODE: nothing is refused" } else { "" };
        let found = format!("{}; in force instead: {}{how}", why.join("; "), ok.found);
        let mend = if self.store.is_copy && self.passed_over.iter().all(|one| one.kept.is_none()) {
            "mend the policy file, and `portcullis policy reload`"
        } else {
            "push the newest bundle again, mended if need be"
        };
        Check::failed(ID, TITLE, found, mend)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kept(version: u64) -> Kept {
        Kept { sha256: format!("{version:064x}"), policy: "p".into(), version, epoch: 0 }
    }

    fn none() -> Result<HighWater, String> {
        Ok(HighWater::default())
    }

    #[test]
    fn an_older_state_is_noticed_until_something_as_new_comes() {
        let folder = tempfile::tempdir().expect("a folder");
        let (state, boot) = (folder.path().join("state"), folder.path().join("boot"));
        let given = Path::new("/etc/policy.toml");
        let device = folder.path().join("device.toml");
        fs::write(&device, format!("high_water = [{:?}]\n", boot)).expect("written");
        let start = || at_start(&state, given, HighWater::read(&device));
        let second = start().store.with(kept(2), None);
        second.write().expect("written");
        assert_eq!(second.set_marks(), [""; 0]);
        let backup = fs::read(state.join("state.json")).expect("written");
        let third = start().store.with(kept(3), None);
        third.write().expect("written");
        assert_eq!(third.set_marks(), [""; 0]);
        assert_eq!(start().store.state, third.state);

        fs::write(state.join("state.json"), backup).expect("put back");
        for _ in 0..2 {
            let set_back = start();
            assert_eq!(set_back.store.in_force(), Some(&kept(2)));
            let check = set_back.check_marks().expect("a check");
            assert!(check.state == State::Failed && check.found.contains("p v3 "), "{check:?}");
            assert_eq!(set_back.store.check_age(&kept(2)).map_err(|why| why.0), Err("rollback"));
            assert_eq!(set_back.store.check_age(&kept(3)), Ok(()));
        }
        let again = start().store.with(kept(3), None);
        assert_ne!(again.check_marks(&[]).map(|check| check.state), Some(State::Failed));
        // Without any state at all, and without a word in the device's file.
        fs::remove_dir_all(&state).expect("removed");
        assert!(start().store.check_age(&kept(2)).is_err());
        fs::write(&device, "").expect("written");
        assert!(start().check_marks().is_some(), "what was found stays until it is mended");
        fs::write(&device, "high_water = 1").expect("written");
        assert!(start().check_marks().is_some_and(|check| check.state == State::Failed));
    }

    #[test]
    fn a_token_stays_used_when_an_older_state_is_put_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let (state, boot) = (folder.path().join("state"), folder.path().join("boot"));
        let device = folder.path().join("device.toml");
        fs::write(&device, format!("high_water = [{:?}]\n", boot)).expect("written");
        let start = || at_start(&state, Path::new("/etc/policy.toml"), HighWater::read(&device));
        let use_token = |token: &str| {
            let store = start().store.with_used(token.into())?;
            store.write().expect("written");
            assert_eq!(store.set_marks(), [""; 0]);
            Ok::<_, crate::policy::trust::Why>(())
        };
        use_token("a").expect("new");
        let backup = fs::read(state.join("state.json")).expect("written");
        use_token("b").expect("new");
        fs::write(state.join("state.json"), backup).expect("put back");
        let set_back = start();
        let check = set_back.check_marks().expect("a check");
        assert!(check.state == State::Warning && check.found.contains("1 tokens"), "{check:?}");
        assert_eq!(use_token("b").map_err(|why| why.0), Err("used"));
        assert!(start().check_marks().is_some_and(|check| !check.found.contains("put back")));
        // Also where only the marks are left, and the agent learns of them after its start.
        let store = Store::open(&folder.path().join("other")).expect("empty");
        let marks = HighWater::read(&device).expect("good");
        let store = Store { high_water: marks, ..store };
        assert_eq!(store.with_used("a".into()).map(drop).map_err(|why| why.0), Err("used"));
    }

    #[test]
    fn without_bundles_there_is_the_given_policy_and_nothing_after_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let given = Path::new("/etc/policy.toml");
        let mut start = at_start(folder.path(), given, none());
        let candidate = start.next_to_try().expect("the given one");
        assert_eq!((candidate.policy.as_path(), candidate.kept.clone()), (given, None));
        assert!(start.check(given, false).found.contains("/etc/policy.toml"));
        start.pass_over(&candidate, "it does not parse".into());
        assert_eq!(start.next_to_try(), None);
        let check = start.check(given, true);
        assert!(check.found.contains("it does not parse"), "{check:?}");
        assert!(check.found.contains("AUDIT"), "{check:?}");
    }

    #[test]
    fn what_cannot_be_read_is_passed_over_and_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let store =
            Store::open(folder.path()).expect("empty").with(kept(1), None).with(kept(2), None);
        store.write().expect("written");
        // Neither is there.
        let given = Path::new("/etc/policy.toml");
        let mut start = at_start(folder.path(), given, none());
        assert_eq!(start.next_to_try().expect("the given one").kept, None);
        let passed: Vec<_> = start.passed_over.iter().map(|one| one.kept.clone()).collect();
        assert_eq!(passed, [Some(kept(2)), Some(kept(1))]);
        assert_eq!(start.store.in_force(), None);
        // What lies on the disk is as it was: the next start tries again.
        assert_eq!(Store::open(folder.path()).expect("readable").state, store.state);
    }

    #[test]
    fn damaged_state_is_told_whatever_is_in_force() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("state.json"), b"{").expect("written");
        let given = Path::new("/etc/policy.toml");
        let mut start = at_start(folder.path(), given, none());
        assert_eq!(start.next_to_try().expect("the given one").kept, None);
        assert!(start.check(given, false).found.contains("damaged"));
    }
}
