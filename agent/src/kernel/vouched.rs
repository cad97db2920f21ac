//! Digests that are allowed because the file itself is signed: rules that join those of the policy
//! in force when such a file is first seen, and go along when another policy comes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use aya::maps::MapError;
use portcullis_common::{Digest, Kinds, Rule};

use super::{allowlist::Allowlist, gates_error::GatesError};
use crate::catalog::SignedBy;

/// How many signed files are remembered. Each takes 40 bytes of the kernel's memory, and about 100
/// of the agent's.
pub const MAX_VOUCHED: usize = 65_536;

/// What is known of a signed file.
#[derive(Clone, Debug)]
pub struct Vouch {
    /// What the signer may vouch for.
    pub kinds: Kinds,
    /// Index of the signer among the policy's sources.
    pub source: u16,
    /// Who signed, and how that is known. Shared by the files of one signer.
    pub by: Arc<SignedBy>,
}

/// A handle for the threads that look at files' signatures.
#[derive(Clone, Default)]
pub struct Vouched(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// The rules that are in force.
    rules: Option<Allowlist>,
    /// What the policy itself says of digests is not repeated here.
    known: HashMap<Digest, Vouch>,
    /// As what digests are taken back that may be used as something else.
    withheld: BTreeMap<Digest, Kinds>,
}

impl Vouched {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allows a digest. It counts when this returns, also where a gate has refused it before.
    /// Returns `false` if there is no more room, or the policy denies the digest.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn allow(&self, digest: Digest, vouch: Vouch) -> Result<bool, MapError> {
        let mut state = self.lock();
        if state.known.len() >= MAX_VOUCHED && !state.known.contains_key(&digest) {
            return Ok(false);
        }
        let State { rules: Some(rules), withheld, .. } = &mut *state else { return Ok(false) };
        let allowed = join(rules, withheld, &digest, &vouch)?;
        if allowed {
            state.known.insert(digest, vouch);
        }
        Ok(allowed)
    }

    /// The rule in force for a digest, whoever it comes from.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn rule(&self, digest: &Digest) -> Result<Option<Rule>, MapError> {
        self.lock().rules.as_ref().map_or(Ok(None), |rules| rules.get(digest))
    }

    /// Who vouches for a digest.
    #[must_use]
    pub fn by(&self, digest: &Digest) -> Option<Arc<SignedBy>> {
        self.lock().known.get(digest).map(|vouch| Arc::clone(&vouch.by))
    }

    /// How many signed files are known.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().known.len()
    }

    /// Takes along what is known into the rules of the next policy, which `put` puts in force.
    /// `still` says what a signer may vouch for there, and `withheld` what signatures do not bring back.
    pub(super) fn switch<T>(
        &self,
        mut next: Allowlist,
        still: impl Fn(&Vouch) -> Option<Vouch>,
        withheld: &BTreeMap<Digest, Kinds>,
        put: impl FnOnce(Allowlist) -> Result<T, GatesError>,
    ) -> Result<T, GatesError> {
        // Held until the switch: a file that is vouched for meanwhile must not be lost.
        let mut state = self.lock();
        let mut kept = HashMap::with_capacity(state.known.len());
        for (digest, vouch) in &state.known {
            if let Some(vouch) = still(vouch)
                && join(&mut next, withheld, digest, &vouch)?
            {
                kept.insert(*digest, vouch);
            }
        }
        let again = next.try_clone()?;
        let done = put(next)?;
        state.rules = Some(again);
        state.known = kept;
        state.withheld.clone_from(withheld);
        Ok(done)
    }
}

/// Adds to what the policy says of the digest. Deny beats allow.
fn join(
    rules: &mut Allowlist,
    withheld: &BTreeMap<Digest, Kinds>,
    digest: &Digest,
    vouch: &Vouch,
) -> Result<bool, MapError> {
    let kinds = vouch.kinds.without(withheld.get(digest).copied().unwrap_or_default());
    let rule = match rules.get(digest)? {
        Some(rule) if rule.denied == 1 => return Ok(false),
        _ if kinds.is_empty() => return Ok(false),
        Some(rule) => Rule { kinds: rule.kinds.union(kinds), ..rule },
        None => Rule { kinds, denied: 0, source: vouch.source, line: 0 },
    };
    rules.set(digest, rule)?;
    Ok(true)
}
