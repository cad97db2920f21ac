//! When to look again at what is wanted: somebody says that it has changed, a server is connected anew, or
//! it was not looked at for a while.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::{
    StreamExt,
    stream::{SelectAll, select_all},
};
use tokio::{sync::watch, time::sleep};

use super::Link;
use crate::fleet::{FleetError, connect::by_chance, names::Target};

/// What is said of changes.
pub(super) struct Changes {
    said: SelectAll<Subscriber>,
    connected: watch::Receiver<u64>,
}

impl Changes {
    /// Listens at this subject of everybody for whom something may be wanted that is meant for this device.
    ///
    /// # Errors
    /// If it cannot be listened to the servers at all.
    pub(super) async fn of(
        link: &Link,
        subject: impl Fn(&Target) -> String,
    ) -> Result<Self, FleetError> {
        let mut said = Vec::new();
        for target in link.targets() {
            // The client says it again to every server that it is connected to.
            let subscribed = link.connection.client.subscribe(subject(&target)).await;
            said.push(subscribed.map_err(FleetError::of("listening to the servers"))?);
        }
        Ok(Self { said: select_all(said), connected: link.connection.connected.clone() })
    }

    /// It is looked now: servers that were connected so far are no reason to look again.
    pub(super) fn looked(&mut self) {
        self.connected.mark_unchanged();
    }

    /// Waits until it should be looked again, about so long at most. Gives the number of what has changed, if
    /// somebody has said so: 0 if the servers did not say it.
    ///
    /// # Errors
    /// If the client has ended.
    pub(super) async fn next(&mut self, longest: Duration) -> Result<Option<u64>, FleetError> {
        tokio::select! {
            change = self.said.next() => match change {
                Some(change) => Ok(Some(number_of(&change))),
                None => Err(FleetError::Broken("the client has ended".into())),
            },
            _ = self.connected.changed() => Ok(None),
            () = sleep(by_chance(longest)) => Ok(None),
        }
    }
}

/// The number of what has changed, if the servers say it.
fn number_of(change: &Message) -> u64 {
    let number = change.headers.as_ref().and_then(|all| all.get("Nats-Sequence"));
    number.and_then(|text| text.as_str().parse().ok()).unwrap_or(0)
}
