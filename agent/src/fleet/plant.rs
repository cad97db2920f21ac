//! The operators' end: says what is wanted, and hears how devices are.

mod catalogs;

use std::{collections::BTreeMap, time::Duration};

use async_nats::{
    ServerAddr,
    jetstream::{
        self, Context,
        kv::{Operation, Store, Watch},
        stream::{Config, DiscardPolicy, Republish},
    },
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::{
    FleetError,
    chunks::{self, Kind},
    connect::{Connection, Files, Waiting, connect},
    direct,
    listing::MAX_LIST,
    names::{
        BUNDLES, CATALOGS, EVENTS, STATUS, STATUS_STREAM, Target, WANTED, WANTED_STREAM, name_of,
    },
    patiently,
    words::{MAX_REPORT, MAX_WANTED, Report, Stored, Wanted, What},
};

/// Earlier words to a device or a group that the servers keep.
const HISTORY: i64 = 16;

/// Events of one device that the servers keep, so that none fills the room of all.
const EVENTS_OF_ONE: i64 = 10_000;

/// What the servers keep.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// On how many servers of the cluster each message is.
    pub replicas: usize,
    /// Bytes of bundles.
    pub bundles: u64,
    /// Bytes of catalogs.
    pub catalogs: u64,
    /// Bytes of events.
    pub events: u64,
}

/// A device as the servers know it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How it is; else why that cannot be understood.
    pub report: Result<Report, String>,
    /// When it said so.
    pub at: Timestamp,
    /// The number of what it said.
    pub revision: u64,
}

/// A connection of an operator.
#[derive(Clone, Debug)]
pub struct Plant {
    connection: Connection,
    context: Context,
}

impl Plant {
    /// Connects.
    ///
    /// # Errors
    /// If a file is wrong, or no server answers.
    pub async fn connect(servers: &[ServerAddr], files: &Files) -> Result<Self, FleetError> {
        let connection = connect(servers, files, "operator", Waiting::Not).await?;
        let context = jetstream::new(connection.client.clone());
        Ok(Self { connection, context })
    }

    /// Makes what a fleet needs on the servers, or changes it to this.
    ///
    /// # Errors
    /// If they do not do it.
    pub async fn prepare(&self, room: Room) -> Result<(), FleetError> {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let wanted = Config {
            name: WANTED_STREAM.into(),
            subjects: vec![format!("$KV.{WANTED}.>")],
            max_messages_per_subject: HISTORY,
            max_message_size: i32::try_from(MAX_WANTED.max(MAX_LIST)).unwrap_or(i32::MAX),
            republish: Some(Republish {
                source: format!("$KV.{WANTED}.>"),
                destination: "portcullis.changed.>".into(),
                headers_only: true,
            }),
            ..Config::default()
        };
        let status = Config {
            name: STATUS_STREAM.into(),
            subjects: vec![format!("$KV.{STATUS}.*")],
            max_messages_per_subject: 1,
            max_message_size: i32::try_from(MAX_REPORT).unwrap_or(i32::MAX),
            ..Config::default()
        };
        let chunks = |name: &str, subject: &str, room: u64| Config {
            name: name.into(),
            subjects: vec![subject.into()],
            max_messages_per_subject: 1,
            max_bytes: bytes(room),
            // A full store is told to who stores; nothing is dropped while it is wanted.
            discard: DiscardPolicy::New,
            ..Config::default()
        };
        let bundles = chunks(BUNDLES, "portcullis.bundle.>", room.bundles);
        let catalogs = chunks(CATALOGS, "portcullis.catalog.>", room.catalogs);
        let events = Config {
            name: EVENTS.into(),
            subjects: vec!["portcullis.events.*".into()],
            max_messages_per_subject: EVENTS_OF_ONE,
            max_bytes: bytes(room.events),
            duplicate_window: Duration::from_secs(120),
            ..Config::default()
        };
        for stream in [wanted, status, bundles, catalogs, events] {
            let stream = Config {
                num_replicas: room.replicas,
                allow_direct: true,
                deny_delete: true,
                // One device could replace what all have said with a header.
                allow_rollup: false,
                ..stream
            };
            let made = self.context.create_or_update_stream(stream).await;
            made.map_err(FleetError::of("making the streams"))?;
        }
        Ok(())
    }

    /// What is wanted of somebody.
    ///
    /// # Errors
    /// If the servers do not say, or it cannot be understood.
    pub async fn wanted(&self, target: &Target) -> Result<Option<Wanted>, FleetError> {
        let client = &self.connection.client;
        let found = direct::last(client, WANTED_STREAM, &target.wanted()).await?;
        let found = found.filter(|found| !found.is_deleted);
        found.map(|found| Wanted::read(&found.bytes)).transpose().map_err(FleetError::Broken)
    }

    /// Says what is wanted of somebody.
    ///
    /// # Errors
    /// If the servers do not take it.
    pub async fn want(&self, target: &Target, wanted: &Wanted) -> Result<(), FleetError> {
        let what = "saying what is wanted";
        let bytes = Bytes::from(serde_json::to_vec(wanted).map_err(FleetError::of(what))?);
        // Saying it twice is saying it once.
        let say = || async {
            self.context.publish(target.wanted(), bytes.clone()).await?.await.map(drop)
        };
        patiently(what, say).await
    }

    /// Stores a bundle for somebody.
    ///
    /// # Errors
    /// If the servers do not take it.
    pub async fn store(&self, target: &Target, bundle: Bytes) -> Result<Stored, FleetError> {
        chunks::store(&self.context, Kind::Bundle, target.clone(), bundle).await
    }

    /// Forgets the bundles that were wanted of somebody, but for these.
    ///
    /// # Errors
    /// If the servers do not do it.
    pub async fn forget_others(&self, target: &Target, keep: &[String]) -> Result<(), FleetError> {
        let what = "removing old bundles";
        let store = patiently(what, || self.context.get_key_value(WANTED)).await?;
        let history = patiently(what, || store.history(target.key())).await?;
        let history: Vec<_> = history.try_collect().await.map_err(FleetError::of(what))?;
        for entry in history {
            let Ok(Wanted { what: What::Push { bundle, .. }, .. }) = Wanted::read(&entry.value)
            else {
                continue;
            };
            if bundle.at == *target && !keep.contains(&bundle.sha256) {
                self.forget(Kind::Bundle, target, &bundle.sha256).await?;
            }
        }
        Ok(())
    }

    async fn forget(&self, kind: Kind, target: &Target, sha256: &str) -> Result<(), FleetError> {
        let what = "removing what is not wanted any more";
        let stream = self.context.get_stream_no_info(kind.stream()).await;
        let stream = stream.map_err(FleetError::of(what))?;
        let filter = format!("{}.>", kind.prefix(target, sha256));
        let purge = || stream.purge().filter(filter.clone()).into_future();
        patiently(what, purge).await.map(drop)
    }

    /// Asks devices to say how they are.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub async fn ask_for_reports(&self, targets: &[Target]) -> Result<(), FleetError> {
        let what = "asking devices";
        for target in targets {
            let asked = self.connection.client.publish(target.changed(), Bytes::new()).await;
            asked.map_err(FleetError::of(what))?;
        }
        self.connection.client.flush().await.map_err(FleetError::of(what))
    }

    /// What devices say, from now on and before.
    ///
    /// # Errors
    /// If the servers do not say.
    pub async fn statuses(&self) -> Result<Statuses, FleetError> {
        let what =
            "asking for the devices' reports; `portcullis fleet prepare` makes the place for them";
        let store = patiently(what, || self.context.get_key_value(STATUS)).await?;
        let is_empty = patiently(what, || store.status()).await?.values() == 0;
        let watch = watch(&store).await?;
        let mut statuses = Statuses { store, watch, known: BTreeMap::new() };
        if !is_empty {
            let end = Instant::now() + super::connect::PATIENCE;
            while statuses.next(end).await?.is_some_and(|is_latest| !is_latest) {}
        }
        Ok(statuses)
    }

    /// Events of a device, or of all: those that are stored, or those to come.
    ///
    /// # Errors
    /// If the servers do not say.
    pub async fn events(
        &self,
        device: Option<&str>,
        follow: bool,
        mut each: impl FnMut(&str, &[u8]) -> bool,
    ) -> Result<(), FleetError> {
        use jetstream::consumer::{DeliverPolicy, push::OrderedConfig};
        let what = "asking for events";
        let config = OrderedConfig {
            deliver_subject: self.connection.client.new_inbox(),
            filter_subject: device
                .map_or_else(|| "portcullis.events.*".to_owned(), super::names::events),
            deliver_policy: if follow { DeliverPolicy::New } else { DeliverPolicy::All },
            ..OrderedConfig::default()
        };
        let consumer = self.context.create_consumer_on_stream(config, EVENTS).await;
        let consumer = consumer.map_err(FleetError::of(what))?;
        if !follow && consumer.cached_info().num_pending == 0 {
            return Ok(());
        }
        let mut messages = consumer.messages().await.map_err(FleetError::of(what))?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(FleetError::of(what))?;
            let pending = message.info().map_or(0, |info| info.pending);
            let name = message.subject.strip_prefix("portcullis.events.").and_then(name_of);
            let goes_on = name.is_none_or(|name| each(&name, &message.payload));
            if !goes_on || (!follow && pending == 0) {
                break;
            }
        }
        Ok(())
    }
}

async fn watch(store: &Store) -> Result<Watch, FleetError> {
    patiently("listening to the devices' reports", || store.watch_with_history(">")).await
}

/// What devices say.
pub struct Statuses {
    store: Store,
    watch: Watch,
    known: BTreeMap<String, Seen>,
}

impl Statuses {
    /// Every device that has ever said something.
    #[must_use]
    pub const fn known(&self) -> &BTreeMap<String, Seen> {
        &self.known
    }

    /// Takes in the next report, and says whether it is the latest that there is; none if none comes until
    /// then.
    ///
    /// # Errors
    /// If the servers cannot be listened to any more.
    pub async fn next(&mut self, end: Instant) -> Result<Option<bool>, FleetError> {
        loop {
            let Ok(entry) = timeout_at(end, self.watch.next()).await else { return Ok(None) };
            let Some(Ok(entry)) = entry else {
                // Its server has gone, and the client has not found another one by itself.
                tokio::time::sleep(Duration::from_millis(500)).await;
                if let Ok(watch) = watch(&self.store).await {
                    self.watch = watch;
                } else if Instant::now() >= end {
                    return Ok(None);
                }
                continue;
            };
            let is_latest = entry.seen_current;
            if let Some(name) = name_of(&entry.key) {
                if entry.operation == Operation::Put {
                    let report = Report::read(&name, &entry.value);
                    let nanoseconds = entry.created.unix_timestamp_nanos();
                    let at = Timestamp::from_nanosecond(nanoseconds).unwrap_or_default();
                    self.known.insert(name, Seen { report, at, revision: entry.revision });
                } else {
                    self.known.remove(&name);
                }
            }
            return Ok(Some(is_latest));
        }
    }
}
