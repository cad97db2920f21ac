//! Says how the device is.

use std::sync::atomic::Ordering::Relaxed;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::Link;
use crate::{
    api::client::Ask,
    event::PolicyId,
    fleet::{
        connect::by_chance,
        names,
        words::{Answered, Finding, Report},
    },
    sync::lock,
};

/// The agent's status as far as it is told.
#[derive(Deserialize)]
struct Status {
    health: String,
    mode: String,
    policy: PolicyId,
    version: String,
    checks: Vec<Finding>,
}

impl Link {
    /// Says it whenever something has changed, and now and then, for ever.
    pub(super) async fn say_how_it_is(&self) {
        let mut connected = self.connection.connected.clone();
        let (mut said, mut when, mut policy) = (None, Instant::now(), None);
        let mut heartbeat = by_chance(self.pace.heartbeat);
        loop {
            let report = self.report().await;
            let now = report.policy.as_ref().map(|now| (now.name.clone(), now.version));
            if now.is_some() && std::mem::replace(&mut policy, now.clone()) != now {
                self.other_policy.notify_one();
            }
            if said.as_ref() != Some(&report) || when.elapsed() >= heartbeat {
                match self.say(report.clone()).await {
                    Ok(()) => {
                        (said, when) = (Some(report), Instant::now());
                        heartbeat = by_chance(self.pace.heartbeat);
                    }
                    Err(error) => tracing::warn!("how the device is was not told: {error}"),
                }
            }
            tokio::select! {
                () = self.news.notified() => {
                    if self.is_asked.swap(false, Relaxed) {
                        said = None;
                    }
                }
                // They may have forgotten.
                _ = connected.changed() => said = None,
                () = sleep(self.pace.poll) => {}
            }
        }
    }

    /// Tells of something that is tried again, and is not kept.
    pub(super) fn say_waiting(&self, waiting: Answered) {
        tracing::warn!("not done yet: {}", waiting.message.as_deref().unwrap_or_default());
        *lock(&self.waiting) = Some(waiting);
        self.news.notify_one();
    }

    async fn say(&self, report: Report) -> Result<(), String> {
        let bytes = report.written().map_err(|error| error.to_string())?;
        let sent = self.context.publish(names::status(&self.device), bytes.into()).await;
        let taken = sent.map_err(|error| error.to_string())?.await;
        taken.map(drop).map_err(|error| error.to_string())
    }

    async fn report(&self) -> Report {
        let status = self.asking.ask_json::<Status>(&self.here, &Ask::Status).await;
        let answered = lock(&self.waiting).clone().or_else(|| lock(&self.answered).clone());
        let report = Report {
            device: self.device.clone(),
            groups: self.groups.clone(),
            health: "no-agent".into(),
            checks: Vec::new(),
            mode: None,
            policy: None,
            version: None,
            answered,
            catalogs: lock(&self.catalogs).clone(),
        };
        match status {
            Ok(Status { health, mode, policy, version, checks }) => {
                let checks = checks.into_iter().filter(|check| check.state != "ok").collect();
                let (mode, policy, version) = (Some(mode), Some(policy), Some(version));
                Report { health, checks, mode, policy, version, ..report }
            }
            Err(error) => {
                let title = "the agent answers the fleet's link".to_owned();
                let finding = Finding { title, state: "failed".into(), found: error.to_string() };
                Report { checks: vec![finding], ..report }
            }
        }
    }
}
