//! Which policy an agent starts with.

use std::path::{Path, PathBuf};

use super::{Kept, Store};
use crate::kernel::check::Check;

/// What an agent starts with.
#[derive(Debug)]
pub struct AtStart {
    /// The bundles.
    pub store: Store,
    /// The policy file to read: that of a bundle, or the one that the agent is given.
    pub policy: PathBuf,
    /// What was tried when the agent before ended, and is not in force any more.
    pub reverted: Option<Kept>,
    /// Health of the bundles.
    pub check: Check,
}

const ID: &str = "bundles";
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

/// Finds what was confirmed; what was only tried is taken back, as nobody has confirmed it. What cannot
/// be read is passed over for what was confirmed before it, and at last for `given`.
#[must_use]
pub fn at_start(folder: &Path, given: &Path) -> AtStart {
    let mut store = match Store::open(folder) {
        Ok(store) => store,
        Err(error) => {
            let found = format!("{error}; the policy file {} is in force", given.display());
            let mend = format!("move {} away, and push the newest bundle again", folder.display());
            return AtStart {
                store: Store::damaged(folder),
                policy: given.to_owned(),
                reverted: None,
                check: Check::failed(ID, TITLE, found, mend),
            };
        }
    };
    let reverted = store.state.trial.take().map(|trial| trial.bundle);
    let mut why = Vec::new();
    if reverted.is_some()
        && let Err(error) = store.write()
    {
        why.push(error.to_string());
    }
    let candidates: Vec<_> =
        [&store.state.confirmed, &store.state.previous].into_iter().flatten().cloned().collect();
    let mut policy = given.to_owned();
    let mut in_force = None;
    for kept in candidates {
        match store.open_kept(&kept) {
            Ok(file) => {
                policy = file;
                in_force = Some(kept);
                break;
            }
            Err(error) => why.push(error),
        }
    }
    store.state.confirmed = in_force;
    let mut check = store.check(given);
    if !why.is_empty() {
        let found = format!("{}; in force instead: {}", why.join("; "), check.found);
        check = Check::failed(ID, TITLE, found, "push the newest bundle again");
    }
    AtStart { store, policy, reverted, check }
}
