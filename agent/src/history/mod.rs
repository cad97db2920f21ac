//! What was used as code on this device: every distinct artifact once, with how often, when and by
//! whom.
//!
//! A policy is learned from it, and a policy that would refuse what has run is not enforced. An
//! artifact is its content; only what cannot be identified goes by its path.

mod file;
pub mod suspects;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use jiff::Timestamp;
use portcullis_common::{Digest, Kinds};
use serde::{Deserialize, Serialize};

pub use file::{FILE, HistoryError, write};

use crate::{
    artifact::digest,
    event::{ArtifactInfo, Decision, ProcessInfo},
};

/// Artifacts that are remembered. About 3 MB when full.
pub const MAX_ARTIFACTS: usize = 8192;

/// Programs that are remembered for each artifact.
const MAX_RUNNERS: usize = 4;

/// Bytes of a path that is remembered. Longer ones exist, and can be looked up by the digest.
const MAX_PATH: usize = 4096;

/// What an artifact is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Content(Digest),
    /// What could not be identified; the exact bytes of its path.
    Path(Box<[u8]>),
}

/// Every distinct artifact once.
#[derive(Debug, Default)]
pub struct History {
    artifacts: HashMap<Key, Artifact>,
    /// Artifacts that had to make room for others.
    forgotten: u64,
    /// Since when it is kept.
    since: Option<Timestamp>,
    /// Whether something has changed since it was last written.
    changed: bool,
    /// Whether that is a new artifact, or a new use of one.
    has_news: bool,
}

/// What is known of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// SHA-256 of its content; none if it could not be made.
    pub digest: Option<String>,
    /// Where it was first seen; what is not UTF-8 is replaced.
    pub path: String,
    /// The exact bytes of the path in hexadecimal, if they are not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// Size in bytes when it was last seen.
    pub size: u64,
    /// Filesystem's kind when it was last seen.
    pub filesystem: String,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last seen.
    pub last_seen: Timestamp,
    /// What it was used as.
    pub uses: Vec<Use>,
    /// Who used it, the first few.
    pub by: Vec<Runner>,
    /// How often others did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub by_others: u64,
}

/// One way in which an artifact was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// What the gate was asked for: any of these kinds would have done.
    #[serde(rename = "as", with = "kind_words")]
    pub kinds: Kinds,
    /// How often the policy allowed it. A verdict that the kernel remembers is not told again, so that
    /// this is less than how often it ran.
    pub allowed: u64,
    /// How often it ran although the policy did not allow it, in audit mode.
    pub would_deny: u64,
    /// How often it was refused.
    pub denied: u64,
    /// When it last ran, allowed or not.
    pub last_ran: Option<Timestamp>,
    /// When it last ran although the policy did not allow it.
    pub last_would_deny: Option<Timestamp>,
    /// Why it was or would have been refused the last time, or that its filesystem is what was trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether it was decided since it last ran that it shall be refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
}

/// A program that used an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// Name of the task; at exec that of the program before.
    pub comm: String,
    /// Name of its parent.
    pub parent: String,
    /// Real user id.
    pub uid: u32,
    /// How often.
    pub count: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl History {
    /// Remembers what a gate decided at `time`.
    pub fn note(&mut self, time: Timestamp, decision: &Decision) {
        let kinds = Kinds::of_words(decision.wanted.iter().copied());
        // Writing to a device is no use as code, and what is only reported is no matter of listing.
        let (Some(artifact), false) = (&decision.artifact, kinds.is_empty()) else { return };
        if !matches!(decision.outcome, "allow" | "would-deny" | "deny") {
            return;
        }
        let Some(key) = Key::of(artifact) else { return };
        if !self.artifacts.contains_key(&key) {
            self.make_room();
            self.has_news = true;
        }
        self.since.get_or_insert(time);
        self.changed = true;
        let known = self.artifacts.entry(key).or_insert_with(|| Artifact::new(artifact, time));
        self.has_news |= known.note(time, artifact, decision, kinds);
    }

    /// Forgets one artifact if there is no room for another: first what was only ever refused, which
    /// anybody can make more of.
    fn make_room(&mut self) {
        if self.artifacts.len() < MAX_ARTIFACTS {
            return;
        }
        let oldest = self
            .artifacts
            .iter()
            .min_by_key(|(_, artifact)| (artifact.has_run(), artifact.last_seen))
            .map(|(key, _)| key.clone());
        if let Some(key) = oldest {
            self.artifacts.remove(&key);
            self.forgotten += 1;
        }
    }

    /// What is known, in the order of paths.
    #[must_use]
    pub fn artifacts(&self) -> Vec<&Artifact> {
        let sorted: BTreeMap<_, _> = self
            .artifacts
            .iter()
            .map(|(key, artifact)| ((&artifact.path, key), artifact))
            .collect();
        sorted.into_values().collect()
    }

    /// How many artifacts are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.artifacts.len()
    }

    /// Whether nothing was ever used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.artifacts.is_empty()
    }

    /// How many artifacts had to make room for others.
    #[must_use]
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Since when it is kept; none if it is empty.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// Whether it must be written, `has_news` being what must not be lost for long.
    #[must_use]
    pub fn is_changed(&self) -> (bool, bool) {
        (self.changed, self.has_news)
    }

    fn insert(&mut self, artifact: Artifact) {
        if let Some(key) = artifact.key()
            && self.artifacts.len() < MAX_ARTIFACTS
        {
            self.artifacts.insert(key, artifact);
        }
    }
}

impl Key {
    fn of(artifact: &ArtifactInfo) -> Option<Self> {
        let ArtifactInfo { path, path_hex, digest, .. } = artifact;
        Self::new(digest.as_deref(), path, path_hex.as_deref())
    }

    fn new(written: Option<&str>, path: &str, path_hex: Option<&str>) -> Option<Self> {
        match written {
            Some(written) => digest::parse(written).ok().map(Self::Content),
            None => Some(Self::Path(bytes_of_path(path, path_hex)?.into())),
        }
    }
}

/// The exact bytes of a path as events tell it.
fn bytes_of_path(path: &str, path_hex: Option<&str>) -> Option<Vec<u8>> {
    path_hex.map_or_else(|| Some(path.as_bytes().to_vec()), |written| hex::decode(written).ok())
}

impl Artifact {
    fn new(artifact: &ArtifactInfo, time: Timestamp) -> Self {
        let ArtifactInfo { path, path_hex, digest, .. } = artifact;
        let fits = path.len() <= MAX_PATH;
        Self {
            digest: digest.clone(),
            path: if fits { path.clone() } else { "(too long)".into() },
            path_hex: path_hex.clone().filter(|_| fits),
            size: 0,
            filesystem: String::new(),
            first_seen: time,
            last_seen: time,
            uses: Vec::new(),
            by: Vec::new(),
            by_others: 0,
        }
    }

    /// Returns whether that is a use that was not known.
    fn note(
        &mut self,
        time: Timestamp,
        artifact: &ArtifactInfo,
        decision: &Decision,
        kinds: Kinds,
    ) -> bool {
        self.last_seen = self.last_seen.max(time);
        self.size = artifact.size;
        if self.filesystem != artifact.filesystem {
            self.filesystem.clone_from(&artifact.filesystem);
        }
        self.note_runner(&decision.process);
        let known = self.uses.iter().position(|one| one.kinds == kinds);
        let index = known.unwrap_or_else(|| {
            self.uses.push(Use::new(kinds));
            self.uses.len() - 1
        });
        let one = &mut self.uses[index];
        match decision.outcome {
            "allow" => one.allowed += 1,
            "would-deny" => one.would_deny += 1,
            _ => one.denied += 1,
        }
        if decision.outcome != "deny" {
            one.last_ran = one.last_ran.max(Some(time));
            one.settled = false;
        }
        let is_first = one.last_would_deny.is_none() && decision.outcome == "would-deny";
        if decision.outcome == "would-deny" {
            one.last_would_deny = one.last_would_deny.max(Some(time));
        }
        let is_told = decision.outcome != "allow" || decision.reason == suspects::VERIFIED;
        if is_told && one.reason.as_deref() != Some(decision.reason) {
            one.reason = Some(decision.reason.into());
        }
        known.is_none() || is_first
    }

    fn note_runner(&mut self, process: &ProcessInfo) {
        let parent = process.ancestors.first().map_or("", |parent| &parent.comm);
        let is_it = |by: &Runner| {
            (&by.comm[..], &by.parent[..], by.uid) == (&process.comm, parent, process.uid)
        };
        if let Some(known) = self.by.iter().position(is_it) {
            self.by[known].count += 1;
        } else if self.by.len() < MAX_RUNNERS {
            let (comm, parent, uid) = (process.comm.clone(), parent.to_owned(), process.uid);
            self.by.push(Runner { comm, parent, uid, count: 1 });
        } else {
            self.by_others += 1;
        }
    }

    fn key(&self) -> Option<Key> {
        Key::new(self.digest.as_deref(), &self.path, self.path_hex.as_deref())
    }

    /// Whether it ever ran, allowed or not.
    #[must_use]
    pub fn has_run(&self) -> bool {
        self.uses.iter().any(|one| one.last_ran.is_some())
    }

    /// How often it was seen.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.uses.iter().map(|one| one.allowed + one.would_deny + one.denied).sum()
    }

    /// SHA-256 of its content; none if it could not be made.
    #[must_use]
    pub fn content(&self) -> Option<Digest> {
        self.digest.as_deref().and_then(|text| digest::parse(text).ok())
    }

    /// Where it was first seen, by the exact bytes; as it is shown, if they are not known.
    #[must_use]
    pub fn exact_path(&self) -> PathBuf {
        use std::{ffi::OsString, os::unix::ffi::OsStringExt};
        let bytes = bytes_of_path(&self.path, self.path_hex.as_deref());
        let bytes = bytes.filter(|bytes| bytes.starts_with(b"/"));
        bytes.map_or_else(|| self.path.clone().into(), |bytes| OsString::from_vec(bytes).into())
    }

    /// How often and by whom, for people.
    #[must_use]
    pub fn told(&self) -> String {
        let times = match self.count() {
            1 => "seen once".to_owned(),
            count => format!("seen {count} times"),
        };
        let by = self.by.first().map_or_else(String::new, |by| {
            let parent = if by.parent.is_empty() {
                String::new()
            } else {
                format!(" below {}", by.parent.escape_debug())
            };
            let more = if self.by.len() > 1 || self.by_others > 0 { " and others" } else { "" };
            format!(", by {}{parent} (uid {}){more}", by.comm.escape_debug(), by.uid)
        });
        format!("{times}, last {:.0}{by}", self.last_seen)
    }
}

impl Use {
    fn new(kinds: Kinds) -> Self {
        Self {
            kinds,
            allowed: 0,
            would_deny: 0,
            denied: 0,
            last_ran: None,
            last_would_deny: None,
            reason: None,
            settled: false,
        }
    }
}

/// Kinds as a list of words.
mod kind_words {
    use portcullis_common::Kinds;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    pub fn serialize<S: Serializer>(kinds: &Kinds, serializer: S) -> Result<S::Ok, S::Error> {
        kinds.words().collect::<Vec<_>>().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kinds, D::Error> {
        let words = Vec::<String>::deserialize(deserializer)?;
        let kinds = Kinds::of_words(words.iter().map(String::as_str));
        if kinds.words().count() != words.len() {
            return Err(D::Error::custom("a kind that is not known, or twice the same"));
        }
        Ok(kinds)
    }
}

#[cfg(test)]
mod tests;
