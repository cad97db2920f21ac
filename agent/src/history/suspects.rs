//! What has run and a policy would refuse.

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use portcullis_common::{Digest, Kinds, Rule};

use super::{Artifact, History, Use};

/// How long a use that the policy did not allow stands in the way of enforcement, even if the file is
/// gone since: seven days.
pub const RECENT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// Why something would be refused that no list can change, and that is so at each use.
const LASTING: [&str; 6] =
    ["filesystem", "too-large", "hash-failed", "wrong-algorithm", "not-a-file", "unsealed"];

/// Why something is allowed that no rule names.
pub(super) const VERIFIED: &str = "verified-filesystem";

/// Something that has run and would be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Where it lay.
    pub path: PathBuf,
    /// What it was; none if that could not be told.
    pub digest: Option<Digest>,
    /// What it was used as: any of these kinds would do.
    pub kinds: Kinds,
    /// Whether it ran without the policy's leave within [`RECENT`].
    pub is_recent: bool,
    /// When and by whom, for people.
    pub told: String,
}

impl History {
    /// What has run and would be refused by `rule`. What a rule denies by name is left out: somebody has
    /// decided that.
    ///
    /// Whether it could run again is for the caller to find out: the file may be another one since.
    pub fn suspects(&self, now: Timestamp, rule: impl Fn(&Digest) -> Option<Rule>) -> Vec<Suspect> {
        let mut found = Vec::new();
        for artifact in self.artifacts() {
            let digest = artifact.content();
            let rule = digest.as_ref().and_then(&rule).unwrap_or_default();
            if rule.denied == 1 {
                continue;
            }
            let uses = artifact.uses.iter().filter(|one| one.last_ran.is_some() && !one.settled);
            for one in
                uses.filter(|one| !rule.kinds.intersects(one.kinds) || one.is_refused_for_good())
            {
                found.push(Suspect {
                    path: artifact.exact_path(),
                    digest,
                    kinds: one.kinds,
                    is_recent: one.is_recent(now),
                    told: told(artifact, one),
                });
            }
        }
        found
    }

    /// A policy is enforced from now on. What ran without the policy's leave until now, and is refused by
    /// `rule`, is so by decision, and stands in nobody's way any more.
    pub fn settle(&mut self, rule: impl Fn(&Digest) -> Option<Rule>) {
        self.settle_those(rule, |one| one.last_ran == one.last_would_deny);
    }

    /// Another policy is enforced from now on. What ran by leave of the one before, and is refused by `rule`,
    /// is so by decision as well: otherwise every policy after this one would be asked about it.
    pub fn settle_dropped(&mut self, rule: impl Fn(&Digest) -> Option<Rule>) {
        // What a verified filesystem lets run is in no rule.
        self.settle_those(rule, |one| one.reason.as_deref() != Some(VERIFIED));
    }

    fn settle_those(
        &mut self,
        rule: impl Fn(&Digest) -> Option<Rule>,
        which: impl Fn(&Use) -> bool,
    ) {
        for artifact in self.artifacts.values_mut() {
            let digest = artifact.content();
            let rule = digest.as_ref().and_then(&rule).unwrap_or_default();
            for one in artifact.uses.iter_mut().filter(|one| one.last_ran.is_some()) {
                let is_refused = !rule.kinds.intersects(one.kinds) || one.is_refused_for_good();
                if is_refused && which(one) {
                    one.settled = true;
                    self.changed = true;
                }
            }
        }
    }

    /// Somebody has decided that what ran from `path` without the policy's leave shall be refused. Returns how
    /// many uses that were.
    pub fn expect_denied(&mut self, path: &str) -> usize {
        let mut count = 0;
        let there = self.artifacts.values_mut().filter(|one| one.path == path);
        for one in there.flat_map(|one| &mut one.uses) {
            if one.last_would_deny.is_some() && one.last_ran == one.last_would_deny && !one.settled
            {
                one.settled = true;
                count += 1;
            }
        }
        self.changed |= count > 0;
        count
    }
}

impl Use {
    /// Whether it ran without the policy's leave lately. A clock that was set back makes nothing old.
    fn is_recent(&self, now: Timestamp) -> bool {
        self.last_would_deny.is_some_and(|last| now.duration_since(last) <= RECENT)
    }

    /// Whether the last use would have been refused for something that listing does not change.
    fn is_refused_for_good(&self) -> bool {
        self.last_would_deny.is_some()
            && self.last_would_deny == self.last_ran
            && self.reason.as_deref().is_some_and(|reason| LASTING.contains(&reason))
    }
}

fn told(artifact: &Artifact, one: &Use) -> String {
    let reason = one.reason.as_deref().filter(|reason| LASTING.contains(reason));
    let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
    let mend = match artifact.digest {
        Some(_) => String::new(),
        None => format!(
            "; no list can allow it: `portcullis history --expect-denied {}` if it shall be refused",
            artifact.path.escape_debug()
        ),
    };
    format!("{}{reason}{mend}", artifact.told())
}
