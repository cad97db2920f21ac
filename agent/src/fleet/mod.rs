//! Fleets on NATS: what devices shall do goes out through JetStream, and how they are comes back.
//!
//! The agent takes no part in it. A process without privilege, `portcullis fleet-link`, speaks with the
//! servers and asks the agent at a socket that is open to nobody else ([`crate::api::local`]). What comes
//! from the servers is a hint and a carrier: a policy counts for its own signatures, which the agent judges.
//!
//! A device reads by direct gets of exact subjects only, and has no consumer: the options of a consumer
//! are in its body, where no permission reaches, and its messages can be sent anywhere. `docs/fleet.md`
//! describes it for operators, with the servers' configuration.

pub mod chunks;
pub mod config;
pub mod connect;
mod direct;
pub mod link;
pub mod listing;
pub mod names;
pub mod permissions;
pub mod plant;
pub mod words;

use std::{fmt::Display, time::Duration};

use thiserror::Error;
use tokio::time::sleep;

/// How often the servers are asked for something: one of them may just have gone.
const ATTEMPTS: u32 = 6;

/// Why the servers have not done what they were asked for.
#[derive(Debug, Error)]
pub enum FleetError {
    /// What was asked has not come back.
    #[error("{what}: {why}")]
    Asked {
        /// What was asked.
        what: &'static str,
        /// What the client says.
        why: String,
    },
    /// What came back is not what it should be.
    #[error("{0}")]
    Broken(String),
    /// The disk does not take it.
    #[error("the disk: {0}")]
    Disk(#[from] std::io::Error),
}

impl FleetError {
    /// For `map_err`: what was asked, with what the client says.
    fn of<E: Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Asked { what, why: error.to_string() }
    }
}

/// Asks the servers until they do it, but not for ever.
async fn patiently<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &'static str,
    ask: impl Fn() -> F,
) -> Result<T, FleetError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match ask().await {
            Err(error) if attempt < ATTEMPTS => {
                tracing::debug!("{what}: {error}; trying again");
                sleep(Duration::from_millis(250) * (1 << attempt)).await;
            }
            asked => return asked.map_err(FleetError::of(what)),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
