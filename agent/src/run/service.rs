//! What a service manager is told (sd_notify): that the gates stand, and that the agent still answers.
//! Without a service manager nothing is told to anybody.

use std::{future, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The service manager, if one has started this agent.
pub(super) struct ServiceManager {
    /// When it wants to hear next; never if it does not watch.
    beat: Option<Interval>,
}

impl ServiceManager {
    /// Tells it that everything stands, in this mode.
    pub fn ready(mode: &str) -> Self {
        let status = format!("gates stand, {mode} mode");
        tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
        // Twice within the time, so that one late beat is no death.
        let half = sd_notify::watchdog_enabled().map(|within| within / 2);
        let beat = half.filter(|half| *half > Duration::ZERO).map(|half| {
            let mut beat = interval(half);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            beat
        });
        Self { beat }
    }

    /// Waits until it wants to hear from the agent, for ever if it does not.
    pub async fn wants_to_hear(&mut self) {
        match &mut self.beat {
            Some(beat) => {
                beat.tick().await;
            }
            None => future::pending().await,
        }
    }

    /// The agent still does its work.
    pub fn beat(&self) {
        tell(&[NotifyState::Watchdog]);
    }

    /// The agent ends.
    pub fn ends(&self) {
        tell(&[NotifyState::Stopping]);
    }
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::warn!("the service manager cannot be told: {error}");
    }
}
