//! A connection to the servers of a cluster, which comes back by itself.

use std::{path::PathBuf, time::Duration};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;

use super::{FleetError, names};
use crate::api::tls;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection, with its handshake, may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The longest time between two attempts. A cluster that comes back is not asked by everybody at once.
const SLOWEST: Duration = Duration::from_secs(30);

/// Messages that wait to be sent, and that wait to be read, in one process.
const QUEUE: usize = 512;

/// Certificates and keys, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// One's own certificate, and those above it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs those of servers.
    pub ca: PathBuf,
}

/// How to wait for servers that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// For ever: a device.
    ForEver,
    /// Not at all, the first time: a person.
    Not,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The vendor's client.
    pub client: Client,
    /// How often it has been made so far.
    pub connected: watch::Receiver<u64>,
}

/// Connects as `name`, which answers come back under.
///
/// # Errors
/// If a file is wrong, with the mend; and if no server answers and that is not waited for.
pub async fn connect(
    servers: &[ServerAddr],
    files: &Files,
    name: &str,
    waiting: Waiting,
) -> Result<Connection, FleetError> {
    let config = tls::client(&files.certificate, &files.key, &files.ca);
    let (count, connected) = watch::channel(0);
    let options = ConnectOptions::new()
        .name(format!("portcullis {name}"))
        .tls_client_config(config.map_err(FleetError::Broken)?)
        .require_tls(true)
        // A cluster may tell of addresses that its certificates do not name.
        .ignore_discovered_servers()
        .custom_inbox_prefix(names::inbox(name))
        .connection_timeout(CONNECT)
        .request_timeout(Some(PATIENCE))
        .ping_interval(Duration::from_secs(30))
        .client_capacity(QUEUE)
        .subscription_capacity(QUEUE)
        .reconnect_delay_callback(delay)
        .event_callback(move |event| {
            match &event {
                Event::Connected => count.send_modify(|count| *count += 1),
                Event::Disconnected => tracing::warn!("no server is connected"),
                event => tracing::warn!("the servers: {event}"),
            }
            std::future::ready(())
        });
    let options = match waiting {
        Waiting::ForEver => options.retry_on_initial_connect(),
        Waiting::Not => options,
    };
    let client = options.connect(servers).await.map_err(|error| {
        // The library names the kind only.
        let mut why = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            why = format!("{why}: {inner}");
            source = inner.source();
        }
        FleetError::Asked { what: "connecting", why }
    })?;
    Ok(Connection { client, connected })
}

/// How long it waits before it tries again: a time by chance, up to one that doubles.
fn delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(10);
    by_chance(Duration::from_millis(200).saturating_mul(1 << exponent).min(SLOWEST))
}

/// A time between a quarter of this and all of it.
#[must_use]
pub fn by_chance(longest: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers it waits as long as it may.
    let part = getrandom::fill(&mut byte).map_or(u8::MAX, |()| byte[0]);
    longest / 4 + longest * 3 / 4 * u32::from(part) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_spread_and_never_far_apart() {
        for attempt in [0, 1, 2, 5, 10, 1000, usize::MAX] {
            let delay = delay(attempt);
            assert!(delay >= Duration::from_millis(50) && delay <= SLOWEST, "{delay:?}");
        }
    }
}
