//! Puts the policy in force that the folder of catalogs has made.

use portcullis_common::Active;
use tokio::sync::mpsc;

use super::Agent;
use crate::{
    artifact::digest,
    catalog::{Catalog, Refused},
    control::CatalogStatus,
    event::{Body, CatalogChange, PolicyId, enrich::PolicyView},
    kernel::gates::GatesError,
    policy::{Policy, trust::describe},
    run::{
        backend::Backend,
        catalogs::{Found, Prepared, Watch, prepare},
    },
};

/// Has the folder read in another thread, which sends what it has made.
pub(super) fn read(
    catalogs: &mut Watch,
    without_kernel: bool,
    done: mpsc::Sender<Result<Prepared, GatesError>>,
) {
    let (base, places) = catalogs.work();
    tokio::task::spawn_blocking(move || {
        // The agent may be ending.
        let _ = done.blocking_send(prepare(&base, &places, !without_kernel));
    });
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
    /// Puts a policy in force, if it is another one, and tells what has changed.
    pub(super) fn take_prepared(&mut self, prepared: Result<Prepared, GatesError>) {
        let switched = prepared.and_then(|prepared| {
            let Prepared { policy, rules, found } = prepared;
            if !is_same(&found.catalogs, &self.found.catalogs) {
                let mode = self.mode();
                let active = match (&mut self.gates, rules) {
                    (Backend::BpfLsm(gates), Some(rules)) => gates.switch(&policy, rules, mode)?,
                    (Backend::BpfLsm(_), None) => return Ok(found),
                    (Backend::Fanotify(warden), _) => warden.switch(&policy),
                };
                self.now_in_force(&policy, active);
            }
            Ok(found)
        });
        match switched {
            Ok(found) => self.take_found(found),
            Err(error) => tracing::error!("the policy before stays in force: {error}"),
        }
        crate::run::release_memory();
    }

    fn now_in_force(&mut self, policy: &Policy, active: Active) {
        self.views.insert(0, view_of(policy, active.generation()));
        self.views.truncate(2);
        self.digests = policy.rules.len();
        self.signers = describe(&policy.trust.trust.signers);
        let (policy, digests) = (self.view().id.clone(), self.digests);
        self.recorder.record(Body::PolicyChanged { policy, digests, cause: "catalogs" });
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

    fn tell(&mut self, change: CatalogChange) {
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
    }
}
