//! Puts the policy in force that the folder of catalogs has made.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::Agent;
use crate::{
    artifact::digest,
    catalog::{Catalog, Refused},
    control::{CatalogStatus, caller::Caller},
    event::{Body, CatalogChange, PolicyId, enrich::PolicyView},
    kernel::{
        allowlist::Allowlist,
        check::{Check, State},
        gates::GatesError,
        mounts,
    },
    policy::{Policy, trust::describe},
    run::{
        backend::Backend,
        catalogs::{Found, Prepared, Watch, prepare},
    },
};

/// What another thread has made of a policy and the folder of catalogs.
pub(super) struct Made {
    base: Arc<Policy>,
    prepared: Result<Prepared, GatesError>,
}

/// What events are explained with while a policy is in force.
pub(super) fn view_of(policy: &Policy, generation: u64) -> PolicyView {
    PolicyView {
        id: PolicyId { name: policy.name.clone(), version: policy.version, generation },
        sources: policy.sources.iter().map(|source| source.display().to_string()).collect(),
        signed: policy.signed.clone(),
    }
}

impl Agent {
    /// Watches the folder, if the policy trusts signers; `base` is the policy without catalogs.
    pub(super) fn watch_catalogs(&mut self, base: &Arc<Policy>) {
        let trusts = !base.trust.is_empty();
        self.catalogs = trusts.then(|| Watch::start(Arc::clone(base), self.places.clone()));
    }

    /// Has the folder read in another thread, which sends what it has made.
    pub(super) fn read_catalogs(&mut self, done: mpsc::Sender<Made>) {
        let in_kernel = matches!(self.gates, Backend::BpfLsm(_));
        let Some(catalogs) = &mut self.catalogs else { return };
        let (base, places) = catalogs.work();
        tokio::task::spawn_blocking(move || {
            let prepared = prepare(&base, &places, in_kernel);
            // The agent may be ending.
            let _ = done.blocking_send(Made { base, prepared });
        });
    }

    /// Puts a policy in force, if it is another one, and tells what has changed.
    pub(super) fn take_prepared(&mut self, made: Made) {
        let Some(catalogs) = &mut self.catalogs else { return };
        catalogs.busy = false;
        // The policy was read anew meanwhile, and the folder with it.
        if !catalogs.is_of(&made.base) {
            return;
        }
        let switched = made.prepared.and_then(|Prepared { policy, rules, found }| {
            let signatures = self.signatures.as_ref();
            let same_keys = signatures.is_none_or(|signatures| signatures.judges_by(&policy));
            if !same_keys || !is_same(&found.catalogs, &self.found.catalogs) {
                self.put_in_force(&policy, rules, "catalogs", None)?;
            }
            Ok(found)
        });
        match switched {
            Ok(found) => self.take_found(found),
            Err(error) => self.take_checks(vec![Check::bad(
                State::Warning,
                "catalogs",
                "catalogs are good and in date",
                format!("they cannot be put in force, and what was before stays: {error}"),
                "give the device more memory, or list less",
            )]),
        }
        crate::run::memory::release();
    }

    /// Puts a policy in force, in the mode that is.
    pub(super) fn put_in_force(
        &mut self,
        policy: &Policy,
        rules: Option<Allowlist>,
        cause: &'static str,
        by: Option<&Caller>,
    ) -> Result<(), GatesError> {
        // What the policy closes is closed when it comes into force; what it opens, after that.
        let closed = mounts::closed_devices(policy.choices.union(self.gates.active().choices()));
        let closed = closed.map_err(GatesError::Mounts)?;
        self.gates.set_mounted_devices(&closed)?;
        let mode = self.mode();
        if let Some(signatures) = &self.signatures {
            signatures.judge_by(policy);
        }
        let active = match (&mut self.gates, rules) {
            (Backend::BpfLsm(gates), Some(rules)) => gates.switch(policy, rules, mode)?,
            (Backend::BpfLsm(_), None) => return Err(GatesError::Missing("PCULLIS_POLICIES")),
            (Backend::Fanotify(warden), _) => warden.switch(policy),
        };
        self.views.insert(0, view_of(policy, active.generation()));
        self.views.truncate(2);
        self.digests = policy.rules.len();
        self.signers = describe(&policy.trust.trust.signers);
        self.trusts_more = trusts_more(policy);
        self.trusted_filesystems.clone_from(&policy.trusted_filesystems);
        let (id, digests, by) = (self.view().id.clone(), self.digests, by.cloned());
        self.recorder.record(Body::PolicyChanged { policy: id, digests, cause, by });
        if let Err(error) = self.judge_usb_by(policy.usb.as_ref()) {
            tracing::error!("USB devices are not watched: {error}");
        }
        Ok(())
    }

    /// Takes in what the folder holds now, and tells what has changed.
    pub(super) fn take_found(&mut self, mut found: Found) {
        let before = std::mem::take(&mut self.found);
        for catalog in &before.catalogs {
            let stays = found.catalogs.iter().any(|now| is_one(now, catalog));
            if !stays {
                self.tell(change_of("removed", catalog, (0, 0)));
            }
        }
        for (catalog, counts) in found.catalogs.iter().zip(&found.counts) {
            let was_there = before.catalogs.iter().any(|before| is_one(before, catalog));
            if !was_there {
                self.tell(change_of("in-force", catalog, *counts));
            }
        }
        for refused in &found.refused {
            if !before.refused.contains(refused) {
                self.tell(refusal_of(refused));
            }
        }
        let checks = std::mem::take(&mut found.checks);
        self.found = found;
        self.take_checks(checks);
    }

    pub(super) fn tell(&mut self, change: CatalogChange) {
        self.recorder.record(Body::Catalog(Box::new(change)));
    }

    pub(super) fn catalogs_status(&self) -> Vec<CatalogStatus> {
        let catalogs = self.found.catalogs.iter().zip(&self.found.counts);
        catalogs
            .map(|(catalog, (digests, withdrawn))| CatalogStatus {
                file: catalog.path.display().to_string(),
                name: catalog.name.clone(),
                version: catalog.version,
                digests: *digests,
                withdrawn: *withdrawn,
                signed: catalog.by.clone(),
            })
            .collect()
    }
}

/// Whether something may run that the policy does not list.
pub(super) fn trusts_more(policy: &Policy) -> bool {
    !policy.verified_filesystems.is_empty() || policy.room() > 0
}

fn is_one(a: &Catalog, b: &Catalog) -> bool {
    a.path == b.path && a.digest == b.digest && a.kinds() == b.kinds()
}

fn is_same(a: &[Catalog], b: &[Catalog]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_one(a, b))
}

fn change_of(state: &'static str, catalog: &Catalog, counts: (usize, usize)) -> CatalogChange {
    CatalogChange {
        state,
        file: catalog.path.display().to_string(),
        name: Some(catalog.name.clone()),
        version: Some(catalog.version),
        digest: Some(digest::format(&catalog.digest)),
        signed: catalog.by.clone(),
        digests: counts.0,
        withdrawn: counts.1,
        reason: None,
        message: None,
        by: None,
    }
}

fn refusal_of(refused: &Refused) -> CatalogChange {
    CatalogChange {
        state: "refused",
        file: refused.path.display().to_string(),
        name: None,
        version: None,
        digest: None,
        signed: Vec::new(),
        digests: 0,
        withdrawn: 0,
        reason: Some(refused.reason.clone()),
        message: Some(refused.message.clone()),
        by: None,
    }
}
