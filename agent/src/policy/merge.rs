//! Rules from several places become one for each digest.

use std::{collections::BTreeMap, path::PathBuf};

use portcullis_common::{Choices, Digest, Kinds, Rule};

use super::{Policy, diagnostic::Diagnostic};
use crate::catalog::Catalog;

/// Rules before digests that are named more than once become one.
#[derive(Default)]
pub(super) struct Rules(Vec<(Digest, Rule)>);

impl Rules {
    pub(super) fn add(&mut self, digest: Digest, rule: Rule) {
        self.0.push((digest, rule));
    }

    /// Digests that are allowed twice get the kinds of both. One that is denied stays denied
    /// whatever others say, which is how one takes a file out of a scan; one that the policy file
    /// both allows and denies is a contradiction.
    pub(super) fn merge(
        mut self,
        sources: &[PathBuf],
        found: &mut Vec<Diagnostic>,
    ) -> Vec<(Digest, Rule)> {
        // Denials first, then by where they stand.
        self.0.sort_by_key(|(digest, rule)| (*digest, 1 - rule.denied, rule.source, rule.line));
        self.0.dedup_by(|(digest, rule), (kept_digest, kept)| {
            if digest != kept_digest {
                return false;
            }
            if kept.denied == rule.denied {
                kept.kinds = kept.kinds.union(rule.kinds);
            } else if kept.source == 0 && rule.source == 0 {
                let mut mistake = Diagnostic::whole_file(
                    &sources[0],
                    format!(
                        "digest {}… is denied here and allowed in line {}",
                        &crate::artifact::digest::format(digest)[..12],
                        rule.line
                    ),
                )
                .with_help("remove one of the two");
                (mistake.line, mistake.column) = (kept.line, 1);
                found.push(mistake);
            }
            true
        });
        self.0
    }
}

impl Policy {
    /// The policy with what its signers vouch for in catalogs.
    ///
    /// An entry counts as the kinds that its signers may vouch for, and is left out if none of
    /// them is. What a catalog takes back is not allowed any more as those kinds, whoever lists it;
    /// if nothing remains, it is denied.
    #[must_use]
    pub fn with_catalogs(&self, catalogs: &[Catalog]) -> Self {
        let mut rules = Rules(self.rules.clone());
        let mut policy = Self { rules: Vec::new(), ..self.clone() };
        let mut withdrawn = Vec::new();
        for catalog in catalogs {
            // The folder holds far fewer than that.
            let Ok(source) = u16::try_from(policy.sources.len()) else { break };
            policy.sources.push(catalog.path.clone());
            policy.signed.insert(source, catalog.by.clone());
            let trusted = catalog.kinds();
            for entry in &catalog.entries {
                let kinds = entry.kinds.intersection(trusted);
                if !kinds.is_empty() {
                    rules.add(entry.digest, Rule { kinds, denied: 0, source, line: entry.line });
                }
            }
            for (digest, line) in &catalog.withdrawn {
                withdrawn.push((*digest, trusted, source, *line));
            }
        }
        // None can contradict the policy file here: that would have been seen without catalogs.
        policy.rules = rules.merge(&policy.sources, &mut Vec::new());
        policy.withheld = withdraw(&mut policy.rules, &withdrawn);
        policy.choices = policy.choices.union(choices_of(&policy.rules));
        policy
    }
}

/// Takes digests back, and returns those of which something remains.
fn withdraw(
    rules: &mut Vec<(Digest, Rule)>,
    withdrawn: &[(Digest, Kinds, u16, u32)],
) -> BTreeMap<Digest, Kinds> {
    let mut new = Vec::new();
    let mut withheld: BTreeMap<Digest, Kinds> = BTreeMap::new();
    for (digest, kinds, source, line) in withdrawn {
        let denied = Rule { kinds: Kinds::NONE, denied: 1, source: *source, line: *line };
        match rules.binary_search_by(|(listed, _)| listed.cmp(digest)) {
            Err(_) => new.push((*digest, denied)),
            Ok(place) => {
                let rule = &mut rules[place].1;
                let rest = rule.kinds.without(*kinds);
                if rule.denied == 0 && rest.without(Kinds::MARKS).is_empty() {
                    *rule = denied;
                } else {
                    rule.kinds = rest;
                    let known = withheld.entry(*digest).or_default();
                    *known = known.union(*kinds);
                }
            }
        }
    }
    if !new.is_empty() {
        rules.append(&mut new);
        rules.sort_by_key(|(digest, _)| *digest);
        rules.dedup_by_key(|(digest, _)| *digest);
    }
    withheld
}

/// The choices that rules make by being there.
pub(super) fn choices_of(rules: &[(Digest, Rule)]) -> Choices {
    let mut choices = Choices::NONE;
    if rules.iter().any(|(_, rule)| rule.kinds.intersects(Kinds::INTERPRETER)) {
        choices = choices.union(Choices::INTERPRETERS);
    }
    let counts = |rule: &Rule| rule.denied == 1 || rule.kinds.intersects(Kinds::MARKS);
    if rules.iter().any(|(_, rule)| counts(rule)) {
        choices = choices.union(Choices::CONTENT_COUNTS);
    }
    choices
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::SignedBy, policy::manifest::Entry};

    fn catalog(kinds: Kinds, entries: &[(u8, Kinds)], withdrawn: &[u8]) -> Catalog {
        Catalog {
            path: "pump.catalog".into(),
            name: "pump".into(),
            version: 1,
            digest: [0; 32],
            by: vec![SignedBy {
                signer: "acme".into(),
                slot: "maker".into(),
                kinds,
                ..SignedBy::default()
            }],
            entries: (1..)
                .zip(entries)
                .map(|(line, (byte, kinds))| Entry { digest: [*byte; 32], kinds: *kinds, line })
                .collect(),
            withdrawn: withdrawn.iter().map(|byte| ([*byte; 32], 9)).collect(),
        }
    }

    fn base(rules: &[(u8, Kinds, u8)]) -> Policy {
        let rule = |kinds, denied| Rule { kinds, denied, source: 0, line: 1 };
        Policy {
            sources: vec!["p.toml".into()],
            rules: rules
                .iter()
                .map(|(byte, kinds, denied)| ([*byte; 32], rule(*kinds, *denied)))
                .collect(),
            ..Policy::empty()
        }
    }

    const BOTH: Kinds = Kinds(Kinds::EXECUTABLE.0 | Kinds::LIBRARY.0);

    #[test]
    fn entries_count_as_what_the_signer_may_vouch_for() {
        let catalogs =
            [catalog(Kinds::LIBRARY, &[(1, BOTH), (2, Kinds::EXECUTABLE), (3, BOTH)], &[])];
        let policy = base(&[(3, Kinds::NONE, 1)]).with_catalogs(&catalogs);
        assert_eq!(policy.rule(&[1; 32]).map(|rule| rule.kinds), Some(Kinds::LIBRARY));
        assert_eq!(policy.rule(&[1; 32]).map(|rule| (rule.source, rule.line)), Some((1, 1)));
        assert_eq!(policy.rule(&[2; 32]), None);
        assert_eq!(policy.rule(&[3; 32]).map(|rule| rule.denied), Some(1));
        assert_eq!(policy.signed[&1][0].signer, "acme");
    }

    #[test]
    fn what_is_taken_back_is_allowed_by_nobody() {
        let listed = base(&[(1, Kinds::EXECUTABLE, 0), (2, BOTH, 0)]);
        let catalogs = [
            catalog(Kinds::EXECUTABLE, &[(3, Kinds::EXECUTABLE)], &[]),
            catalog(Kinds::EXECUTABLE, &[], &[1, 2, 3, 4]),
        ];
        let policy = listed.with_catalogs(&catalogs);
        let denied = |byte: u8| policy.rule(&[byte; 32]).map(|rule| rule.denied);
        assert_eq!([1, 2, 3, 4].map(denied), [Some(1), Some(0), Some(1), Some(1)]);
        // Only what its signer may vouch for can it take back.
        assert_eq!(policy.rule(&[2; 32]).map(|rule| rule.kinds), Some(Kinds::LIBRARY));
        assert!(policy.choices.contains(Choices::CONTENT_COUNTS));
        // Nor does a signature on such a file bring back what was taken.
        assert_eq!(policy.withheld.get(&[2; 32]), Some(&Kinds::EXECUTABLE));
        let rules: Vec<_> = policy.rules.iter().map(|(digest, _)| digest[0]).collect();
        assert_eq!(rules, [1, 2, 3, 4]);
    }
}
