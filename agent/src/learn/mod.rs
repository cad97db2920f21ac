//! From what has run to what may run: candidates for a policy, to be accepted or rejected by a person.

mod origin;
pub mod review;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use portcullis_common::{Digest, Kinds, Rule};

pub use origin::Origin;

use crate::{
    artifact::digest,
    event::human::Plain,
    history::{Artifact, History, Use},
    policy::manifest::{Found, kinds_words},
    run::preflight::InUse,
    scan,
};

/// Something that has run and that the policy says nothing about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What would be listed.
    pub found: Found,
    /// What the policy lists it as already, so that its digest cannot be denied.
    pub listed: Kinds,
    /// Where it comes from.
    pub origin: Origin,
    /// When and by whom it was used, for people.
    pub told: String,
}

/// Something that has run, and that no list can allow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlistable {
    /// Where it lay.
    pub path: PathBuf,
    /// Why, when and by whom, for people.
    pub told: String,
}

/// What can be learned.
#[derive(Debug, Default)]
pub struct Learned {
    /// What can be listed, what comes from nobody knows where first.
    pub candidates: Vec<Candidate>,
    /// What cannot.
    pub unlistable: Vec<Unlistable>,
}

/// Whether the files lie on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// They do, so that it can be told where they come from.
    Here,
    /// They are on another machine.
    Elsewhere,
}

/// What was seen of one content.
struct Seen {
    path: PathBuf,
    kinds: Kinds,
    listed: Kinds,
    told: String,
}

/// What has run, or runs, and `rule` says nothing about.
pub fn learn(
    history: &History,
    in_use: &[InUse],
    rule: impl Fn(&Digest) -> Option<Rule>,
    files: Files,
) -> Learned {
    let mut learned = Learned::default();
    let mut seen: BTreeMap<Digest, Seen> = BTreeMap::new();
    let mut add = |digest: Digest, path: &Path, kinds: Kinds, told: &dyn Fn() -> String| {
        let rule = rule(&digest).unwrap_or_default();
        if rule.denied == 1 || rule.kinds.intersects(kinds) {
            return;
        }
        let one = seen.entry(digest).or_insert_with(|| Seen {
            path: path.to_owned(),
            kinds: Kinds::NONE,
            listed: rule.kinds,
            told: told(),
        });
        one.kinds = one.kinds.union(kinds);
    };
    for artifact in history.artifacts() {
        let (path, digest) = (artifact.exact_path(), artifact.content());
        for one in artifact.uses.iter().filter(|one| one.last_ran.is_some()) {
            match digest {
                Some(digest) => add(digest, &path, one.kinds, &|| artifact.told()),
                // Somebody has decided that it shall be refused.
                None if one.settled => {}
                None => learned.unlistable.push(unlistable(artifact, &path, one)),
            }
        }
    }
    for one in in_use {
        if let Some(digest) = one.digest {
            add(digest, &one.path, one.kind, &|| one.told.clone());
        }
    }
    learned.candidates = candidates(seen, files);
    learned
}

fn unlistable(artifact: &Artifact, path: &Path, one: &Use) -> Unlistable {
    let reason = one.reason.as_deref().unwrap_or("no digest");
    let told = format!("as {}: {reason}, {}", kinds_words(one.kinds), artifact.told());
    Unlistable { path: path.to_owned(), told }
}

fn candidates(seen: BTreeMap<Digest, Seen>, files: Files) -> Vec<Candidate> {
    let paths: BTreeSet<_> = seen.values().map(|one| one.path.clone()).collect();
    let owners = match files {
        Files::Here => crate::import::dpkg::owners(&paths),
        Files::Elsewhere => BTreeMap::new(),
    };
    let mut all: Vec<_> = seen
        .into_iter()
        .map(|(digest, Seen { path, kinds, listed, told })| {
            let (kinds, origin) = match files {
                Files::Elsewhere => (kinds, Origin::elsewhere(&path)),
                Files::Here => match content(&path, &digest) {
                    Some(looked) => (used_as(kinds, looked), Origin::of(&path, owners.get(&path))),
                    None => (kinds, Origin::Gone),
                },
            };
            Candidate { found: Found { kinds, path, digest }, listed, origin, told }
        })
        .collect();
    all.sort_by(|a, b| (&a.origin, &a.found).cmp(&(&b.origin, &b.found)));
    all
}

/// What the file can be used as, if it still has this content.
fn content(path: &Path, expected: &Digest) -> Option<Kinds> {
    let file = scan::open(path).ok()?;
    let (kinds, digest) = scan::look(&file, path).ok()??;
    (digest == *expected).then_some(kinds)
}

/// A gate asks for any of several kinds; the content says which of them it is. Marks are not content.
fn used_as(wanted: Kinds, looked: Kinds) -> Kinds {
    let marks = wanted.intersection(Kinds::MARKS);
    match wanted.intersection(looked).union(marks) {
        Kinds::NONE => wanted,
        kinds => kinds,
    }
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Found { kinds, path, digest } = &self.found;
        let digest = digest::format(digest);
        let (path, kinds) = (path.to_string_lossy(), kinds_words(*kinds));
        write!(f, "{} as {kinds}", Plain(&path))?;
        if !self.listed.is_empty() {
            write!(f, " (listed as {} only)", kinds_words(self.listed))?;
        }
        write!(f, " (sha256 {}…), {}", &digest[..12], Plain(&self.told))
    }
}

#[cfg(test)]
mod tests;
