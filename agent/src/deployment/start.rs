//! Which policies an agent can start with, and in which order.

use std::path::{Path, PathBuf};

use super::{Kept, Store};
use crate::kernel::check::Check;

/// A policy that an agent can start with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The bundle that it came in; none if it is the policy file that the agent is given.
    pub kept: Option<Kept>,
    /// The policy file to read.
    pub policy: PathBuf,
    /// Whether its signers want it enforced whatever it would stop.
    pub skip_preflight: bool,
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
    /// What is wrong with the state itself.
    damage: Option<Check>,
}

/// The check that tells which policy is in force.
pub const ID: &str = "bundles";
const TITLE: &str = "the confirmed policy is in force";

impl Store {
    /// What is in force, as a check that came out well.
    #[must_use]
    pub fn check(&self, given: &Path) -> Check {
        let found = match self.in_force() {
            None => format!("the policy file {}", given.display()),
            Some(kept) if self.state.trial.is_some() => format!("bundle {kept}, on trial"),
            Some(kept) => format!("bundle {kept}"),
        };
        Check::ok(ID, TITLE, found)
    }
}

/// Finds what was confirmed; what was only tried is taken back, as nobody has confirmed it. After it
/// come what was confirmed before it, and at last `given`.
#[must_use]
pub fn at_start(folder: &Path, given: &Path) -> AtStart {
    let mut start = AtStart {
        store: Store::damaged(folder),
        reverted: None,
        passed_over: Vec::new(),
        left: Vec::new(),
        given: Some(given.to_owned()),
        damage: None,
    };
    match Store::open(folder) {
        Ok(store) => start.store = store,
        Err(error) => {
            let found = format!("{error}; the policy file {} is in force", given.display());
            let mend = format!("move {} away, and push the newest bundle again", folder.display());
            start.damage = Some(Check::failed(ID, TITLE, found, mend));
            return start;
        }
    }
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
    /// The next one to try, which is in force as far as the store knows from now on. A bundle that
    /// cannot be read is passed over.
    pub fn next_to_try(&mut self) -> Option<Candidate> {
        while let Some(kept) = self.left.pop() {
            match self.store.open_kept(&kept) {
                Ok((policy, skip_preflight)) => {
                    self.store.put_in_place(Some(kept.clone()));
                    return Some(Candidate { kept: Some(kept), policy, skip_preflight });
                }
                Err(why) => self.passed_over.push(PassedOver { kept: Some(kept), why }),
            }
        }
        self.store.put_in_place(None);
        let policy = self.given.take()?;
        Some(Candidate { kept: None, policy, skip_preflight: false })
    }

    /// This one could not be put in force.
    pub fn pass_over(&mut self, candidate: &Candidate, why: String) {
        self.passed_over.push(PassedOver { kept: candidate.kept.clone(), why });
    }

    /// This one is put in force after all, in audit mode.
    pub fn come_back_to(&mut self, candidate: &Candidate) {
        self.store.put_in_place(candidate.kept.clone());
    }

    /// Whether what was confirmed is in force, as a check; `audits` if nothing could be enforced.
    #[must_use]
    pub fn check(&self, given: &Path, audits: bool) -> Check {
        let ok = self.store.check(given);
        if let Some(damage) = &self.damage {
            return damage.clone();
        }
        if self.passed_over.is_empty() {
            return ok;
        }
        let why: Vec<_> = self.passed_over.iter().map(|one| one.why.as_str()).collect();
        let how = if audits { " IN AUDIT MODE: nothing is refused" } else { "" };
        let found = format!("{}; in force instead: {}{how}", why.join("; "), ok.found);
        Check::failed(ID, TITLE, found, "push the newest bundle again, mended if need be")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kept(version: u64) -> Kept {
        Kept { sha256: format!("{version:064x}"), policy: "p".into(), version, epoch: 0 }
    }

    #[test]
    fn without_bundles_there_is_the_given_policy_and_nothing_after_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let given = Path::new("/etc/policy.toml");
        let mut start = at_start(folder.path(), given);
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
        let mut start = at_start(folder.path(), given);
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
        let mut start = at_start(folder.path(), given);
        assert_eq!(start.next_to_try().expect("the given one").kept, None);
        assert!(start.check(given, false).found.contains("damaged"));
    }
}
