//! The device's end: does what is wanted, and says how the device is.

mod catalogs;
mod changes;
mod events;
mod report;
mod state;
mod wanted;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, atomic::AtomicBool},
    time::Duration,
};

use async_nats::jetstream::{self, Context};
use tokio::sync::Notify;

use super::{
    FleetError,
    config::Config,
    connect::{Connection, Waiting, connect},
    listing::OfCatalog,
    names::Target,
    words::Answered,
};
use crate::{
    api::client::{Client, Device},
    sync::lock,
};
pub use state::Kept;

/// How often the link does what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Looks for what is wanted although nobody said that it has changed.
    pub look: Duration,
    /// Tries again what could not be done.
    pub retry: Duration,
    /// Asks the agent how it is.
    pub poll: Duration,
    /// Says how the device is although nothing has changed.
    pub heartbeat: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            look: Duration::from_secs(300),
            retry: Duration::from_secs(30),
            poll: Duration::from_secs(10),
            heartbeat: HEARTBEAT,
        }
    }
}

/// How often a device says how it is although nothing has changed.
const HEARTBEAT: Duration = Duration::from_secs(300);

/// How long the agent may take to answer: it reads and judges a whole bundle.
const AGENT: Duration = Duration::from_secs(600);

/// How long it may take to say how it is.
const BRIEFLY: Duration = Duration::from_secs(20);

/// The link of one device.
pub struct Link {
    device: String,
    groups: Vec<String>,
    events: bool,
    connection: Connection,
    context: Context,
    agent: Client,
    /// The same, for what does not take long.
    asking: Client,
    /// What the agent's client wants to be told, and does not need at a socket.
    here: Device,
    /// Where it keeps what it must not forget, and bundles on their way.
    folder: PathBuf,
    /// What became of what was wanted last.
    answered: Mutex<Option<Answered>>,
    /// What is wanted now and could not be done so far.
    waiting: Mutex<Option<Answered>>,
    /// What became of the catalogs that the device shall have.
    catalogs: Mutex<Vec<OfCatalog>>,
    /// Another policy is in force, under which other signatures may count.
    other_policy: Notify,
    kept: Kept,
    /// There is news to report.
    news: Notify,
    /// A report is asked for, also if there is none.
    is_asked: AtomicBool,
    pace: Pace,
}

impl Link {
    /// The link of the device that `config` names, to the agent that answers at `socket`. It keeps what it
    /// must not forget in `folder`.
    ///
    /// # Errors
    /// If a certificate or the folder is of no use. Servers that are not there are waited for.
    pub async fn new(
        config: Config,
        socket: &Path,
        folder: &Path,
        pace: Pace,
    ) -> Result<Self, FleetError> {
        let Config { device, groups, servers, files, events, .. } = config;
        let connection = connect(&servers, &files, &device, Waiting::ForEver).await?;
        let here = "agent".parse().map_err(FleetError::Broken)?;
        let kept = Kept::new(folder)?;
        Ok(Self {
            device,
            groups,
            events,
            context: jetstream::new(connection.client.clone()),
            connection,
            agent: Client::local(socket, AGENT),
            asking: Client::local(socket, BRIEFLY),
            here,
            folder: folder.to_owned(),
            answered: Mutex::new(kept.answered()),
            waiting: Mutex::new(None),
            catalogs: Mutex::default(),
            other_policy: Notify::new(),
            kept,
            news: Notify::new(),
            is_asked: AtomicBool::new(false),
            pace,
        })
    }

    /// Works for ever.
    ///
    /// # Errors
    /// If it cannot listen to the servers at all.
    pub async fn run(&self) -> Result<(), FleetError> {
        let events = async {
            if self.events {
                self.send_events().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = self.do_what_is_wanted() => ended,
            ended = self.keep_catalogs() => ended,
            () = self.say_how_it_is() => Ok(()),
            () = events => Ok(()),
        }
    }

    /// Those for whom something may be wanted that is meant for this device.
    fn targets(&self) -> Vec<Target> {
        let own = Target::Device(self.device.clone());
        [own].into_iter().chain(self.groups.iter().cloned().map(Target::Group)).collect()
    }

    /// What became of something that was wanted. It is on the disk before it is told.
    fn answer(&self, answered: Answered) {
        if let Err(error) = self.kept.keep(&answered) {
            // After a restart it would be done again, which does no more than doing it once.
            tracing::error!("{}: {error}", self.folder.display());
        }
        *lock(&self.answered) = Some(answered);
        *lock(&self.waiting) = None;
        self.news.notify_one();
    }
}
