//! Keeps the catalogs here that the device shall have. The agent judges each; what it refuses is not tried
//! again before the list, or the policy that decides whose signatures count, is another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::sleep;

use super::{
    Link,
    changes::Changes,
    wanted::{ATTEMPTS, refused},
};
use crate::{
    api::{client::Ask, content::Content},
    catalog::shelf::{Kept, MAX_KEPT},
    control::TakenAnswer,
    event::PolicyId,
    fleet::{
        FleetError,
        chunks::{self, Kind},
        direct::{self, Found},
        listing::{Listed, Listing, OfCatalog, State},
        names::{Target, WANTED_STREAM},
        words::{Outcome, Stored},
    },
    sync::lock,
};

/// What the link must not forget of catalogs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Synced {
    /// When the servers took in the newest list that was seen, by the key of whom it is for.
    seen: BTreeMap<String, Timestamp>,
    /// The policy under which catalogs were refused.
    policy: Option<(String, u64)>,
    /// Catalogs that the agent does not take, or does not let go of.
    refused: Vec<OfCatalog>,
}

/// The agent's status as far as it is of interest here.
#[derive(Deserialize)]
struct Here {
    policy: PolicyId,
    #[serde(default)]
    kept: Vec<Kept>,
}

/// What the lists say together.
#[derive(Debug, Default)]
struct Together {
    /// Each catalog once, the newest versions first.
    wanted: Vec<(Target, Listed)>,
    /// Whether every list is known that there ever was, and there is one.
    is_complete: bool,
    /// Whether a list is an older one than was seen before: its server has fallen behind.
    is_behind: bool,
}

impl Synced {
    /// Takes in the lists that were read, and forgets what was refused if one of them is new.
    fn take_in(&mut self, found: &[(Target, Option<Found>)]) -> Together {
        let (mut together, mut is_any, mut is_missing) = (Together::default(), false, false);
        for (target, found) in found {
            let seen = self.seen.get(&target.key()).copied();
            let found = found.as_ref().filter(|found| !found.is_deleted);
            let Some(found) = found else {
                // One that was there is not taken for an empty one: servers may have been made anew.
                is_missing |= seen.is_some();
                continue;
            };
            if seen.is_some_and(|seen| found.time < seen) {
                together.is_behind = true;
                continue;
            }
            match Listing::read(&found.bytes) {
                Ok(listing) => {
                    is_any = true;
                    if seen != Some(found.time) {
                        self.seen.insert(target.key(), found.time);
                        self.refused.clear();
                    }
                    let here = listing.catalogs.into_iter().map(|one| (target.clone(), one));
                    together.wanted.extend(here);
                }
                Err(why) => {
                    tracing::warn!("the list of catalogs for {target} cannot be understood: {why}");
                    is_missing = true;
                }
            }
        }
        // Otherwise an older one would be taken first, and refused at once when it is asked for again.
        together.wanted.sort_by(|(_, a), (_, b)| (&a.name, b.version).cmp(&(&b.name, a.version)));
        together.wanted.dedup_by(|(_, a), (_, b)| a.sha256 == b.sha256);
        together.is_complete = is_any && !is_missing && !together.is_behind;
        together
    }

    fn why_not(&self, name: &str, sha256: &str) -> Option<&OfCatalog> {
        self.refused.iter().find(|no| no.name == name && no.sha256 == sha256)
    }

    fn refuse(&mut self, no: OfCatalog) -> OfCatalog {
        // A device is meant by few lists; hostile servers have many.
        if self.refused.len() < 4 * MAX_KEPT {
            self.refused.push(no.clone());
        }
        no
    }
}

impl Link {
    /// Keeps what the device shall have, for ever.
    pub(super) async fn keep_catalogs(&self) -> Result<(), FleetError> {
        let mut changes = Changes::of(self, Target::catalogs_changed).await?;
        let mut synced = self.kept.synced();
        let mut at_least = 0;
        loop {
            changes.looked();
            let again = match self.sync_catalogs(&mut synced, at_least).await {
                Ok(true) => self.pace.look,
                Ok(false) => self.pace.retry,
                Err(error) => {
                    tracing::warn!("which catalogs are wanted is not known: {error}");
                    self.pace.retry
                }
            };
            at_least = tokio::select! {
                said = changes.next(again) => said?.unwrap_or(0),
                () = self.other_policy.notified() => 0,
            };
        }
    }

    /// Brings what is missing, and takes away what is not wanted any more; says whether nothing is left to
    /// be tried again.
    async fn sync_catalogs(&self, synced: &mut Synced, at_least: u64) -> Result<bool, FleetError> {
        let found = self.lists(at_least).await?;
        let before = (synced.seen.clone(), synced.refused.clone());
        let Together { wanted, is_complete, is_behind } = synced.take_in(&found);
        let here = self.asking.ask_json::<Here>(&self.here, &Ask::Status).await;
        let Ok(Here { policy, kept }) = here else { return Ok(false) };
        let policy = Some((policy.name, policy.version));
        if synced.policy != policy {
            synced.refused.clear();
            synced.policy = policy;
        }
        let mut told = Vec::new();
        if is_complete {
            self.take_away(&kept, &wanted, synced, &mut told).await;
        }
        for (target, listed) in &wanted {
            let Listed { name, sha256, .. } = listed;
            let is_here = kept.iter().any(|kept| kept.name == *name && kept.sha256 == *sha256);
            told.push(if is_here {
                OfCatalog::new(name, sha256, State::Here)
            } else if let Some(no) = synced.why_not(name, sha256) {
                no.clone()
            } else {
                match self.bring(target, listed).await {
                    Ok(()) => OfCatalog::new(name, sha256, State::Here),
                    Err((Outcome::Refused, why)) => {
                        let no = OfCatalog::new(name, sha256, State::Refused).because(&why);
                        synced.refuse(no)
                    }
                    Err((_, why)) => {
                        tracing::warn!("catalog {name} is not here yet: {why}");
                        OfCatalog::new(name, sha256, State::Waiting).because(&why)
                    }
                }
            });
        }
        // A policy under which nothing was refused need not be remembered.
        if (&synced.seen, &synced.refused) != (&before.0, &before.1)
            && let Err(error) = self.kept.keep_synced(synced)
        {
            // After a restart the agent is asked once more, and says the same.
            tracing::error!("{}: {error}", self.folder.display());
        }
        let is_done = !is_behind && told.iter().all(|one| one.state != State::Waiting);
        let is_news = std::mem::replace(&mut *lock(&self.catalogs), told.clone()) != told;
        if is_news {
            self.news.notify_one();
        }
        Ok(is_done)
    }

    /// Every list for this device. It is known that there is one with at least this number.
    async fn lists(&self, at_least: u64) -> Result<Vec<(Target, Option<Found>)>, FleetError> {
        let mut attempt = 0;
        loop {
            let mut lists = Vec::new();
            for target in self.targets() {
                let (client, subject) = (&self.connection.client, target.catalogs_wanted());
                lists.push((target, direct::last(client, WANTED_STREAM, &subject).await?));
            }
            attempt += 1;
            let found = lists.iter().filter_map(|(_, found)| found.as_ref());
            let number = found.map(|found| found.sequence).max().unwrap_or_default();
            if number >= at_least || attempt == ATTEMPTS {
                return Ok(lists);
            }
            sleep(Duration::from_millis(100) * (1 << attempt)).await;
        }
    }

    /// Takes away what no list has.
    async fn take_away(
        &self,
        kept: &[Kept],
        wanted: &[(Target, Listed)],
        synced: &mut Synced,
        told: &mut Vec<OfCatalog>,
    ) {
        let names: BTreeSet<_> = wanted.iter().map(|(_, listed)| &listed.name).collect();
        for Kept { name, sha256 } in kept.iter().filter(|kept| !names.contains(&kept.name)) {
            if let Some(no) = synced.why_not(name, sha256) {
                told.push(no.clone());
                continue;
            }
            let ask = Ask::TakeCatalogAway { name: name.clone() };
            let answer = self.agent.ask_json::<Value>(&self.here, &ask).await;
            match answer.map_err(refused) {
                Ok(_) => {}
                Err((Outcome::Refused, why)) => {
                    let no = OfCatalog::new(name, sha256, State::Stays).because(&why);
                    told.push(synced.refuse(no));
                }
                Err((_, why)) => {
                    told.push(OfCatalog::new(name, sha256, State::Waiting).because(&why));
                }
            }
        }
    }

    /// Brings a catalog to the agent.
    async fn bring(&self, at: &Target, listed: &Listed) -> Result<(), (Outcome, String)> {
        let Listed { name, sha256, bytes, .. } = listed;
        let stored = Stored { at: at.clone(), sha256: sha256.clone(), bytes: *bytes };
        let client = &self.connection.client;
        let waiting = |why: String| (Outcome::Waiting, why);
        let file = chunks::fetch(client, Kind::Catalog, &stored, &self.folder).await;
        let file = file.map_err(|error| waiting(error.to_string()))?;
        let parcel = Content::file(file).map_err(|error| waiting(error.to_string()))?;
        let ask = Ask::TakeCatalog { parcel };
        let answer = self.agent.ask_json::<TakenAnswer>(&self.here, &ask).await;
        let TakenAnswer { kept, .. } = answer.map_err(refused)?;
        if kept.name != *name {
            // It would be brought again and again, as it is not found under the name of the list.
            let why = format!("the list calls it {name}, and it is {}", kept.name);
            return Err((Outcome::Refused, why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(second: i64, names: &[(&str, u64)]) -> Found {
        let listed = |(name, version): &(&str, u64)| Listed {
            name: (*name).into(),
            version: *version,
            sha256: format!("{version:064x}"),
            bytes: 1,
            digests: 0,
            withdrawn: 0,
        };
        let listing = Listing { catalogs: names.iter().map(listed).collect() };
        Found {
            sequence: 1,
            time: Timestamp::from_second(second).expect("a time"),
            is_deleted: false,
            bytes: listing.written().expect("written").into(),
        }
    }

    fn target(name: &str) -> Target {
        Target::Group(name.into())
    }

    fn names(together: &Together) -> Vec<(&str, u64)> {
        let wanted = together.wanted.iter();
        wanted.map(|(_, listed)| (listed.name.as_str(), listed.version)).collect()
    }

    #[test]
    fn lists_are_taken_together_and_never_backwards() {
        let mut synced = Synced::default();
        let nothing = synced.take_in(&[(target("a"), None), (target("b"), None)]);
        assert!(!nothing.is_complete, "nobody has ever said anything");
        let first = list(10, &[("pump", 1), ("motor", 2)]);
        let second = list(11, &[("pump", 3)]);
        let both = [(target("a"), Some(first)), (target("b"), Some(second.clone()))];
        let together = synced.take_in(&both);
        assert_eq!(names(&together), [("motor", 2), ("pump", 3), ("pump", 1)]);
        assert!(together.is_complete);

        // What is refused stays so until a list is another one.
        let no = OfCatalog::new("pump", &format!("{:064x}", 1), State::Refused);
        synced.refuse(no.clone());
        synced.take_in(&both);
        assert_eq!(synced.why_not("pump", &no.sha256), Some(&no));
        // A server that has fallen behind, one that was made anew, and nonsense take nothing away.
        let older = list(9, &[]);
        let together = synced.take_in(&[(target("a"), Some(older)), both[1].clone()]);
        assert!(together.is_behind && !together.is_complete);
        assert_eq!(names(&together), [("pump", 3)]);
        let gone = Found { is_deleted: true, ..list(12, &[]) };
        let nonsense = Found { bytes: "{".into(), ..list(13, &[]) };
        for found in [None, Some(gone), Some(nonsense)] {
            assert!(!synced.take_in(&[(target("a"), found), both[1].clone()]).is_complete);
        }
        assert_eq!(synced.why_not("pump", &no.sha256), Some(&no));
        let empty = synced.take_in(&[(target("a"), Some(list(14, &[]))), both[1].clone()]);
        assert!(empty.is_complete, "an empty list is one");
        assert_eq!(names(&empty), [("pump", 3)]);
        assert_eq!(synced.why_not("pump", &no.sha256), None);
    }
}
