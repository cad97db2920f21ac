//! Gives every event its number and its place in the chain, and hands it to everybody who wants it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::{
    event::{Body, Event, Repeated, SCHEMA, human, json},
    kernel::check::{Check, State},
    policy::bundle::DEVICE_FILE,
    run::{
        catalogs::Places,
        latest::Latest,
        sink::{Line, Sink, SinkStatus},
        storms::{Folded, Storms},
    },
    sinks::{Sinks, config::Config},
    spool::{
        Bounds, Opened, Spool, SpoolStatus,
        chain::{Chain, End},
        key::DeviceKey,
        seal::Seal,
    },
};

/// Records that a follower may fall behind before it is told that it lost some.
const FOLLOWER_QUEUE: usize = 1024;

/// Records after which the device signs where the chains are.
const SEAL_AFTER: u64 = 1000;

/// How long a record stays unsigned.
const SEAL_EVERY: Duration = Duration::from_secs(600);

/// The way of every record.
pub struct Recorder {
    seq: u64,
    end: End,
    spool: Spool,
    key: Result<DeviceKey, String>,
    /// Records that no checkpoint covers, and since when there are any.
    unsealed: (u64, Option<Instant>),
    storms: Storms,
    remembered: Latest,
    followers: broadcast::Sender<Line>,
    sinks: Vec<Sink>,
    /// Those that read the spool.
    receivers: Sinks,
    /// What was found when the spool was opened.
    found: Option<String>,
    /// Whether records were missing then that had been on the disk.
    has_lost: bool,
}

impl Recorder {
    /// A recorder that goes on where the agent before has ended, and writes to `sinks`.
    #[must_use]
    pub fn open(places: &Places, sinks: Vec<Sink>) -> Self {
        let opened = Spool::open(&places.spool(), Bounds::default());
        let mut recorder = Self::new(opened, DeviceKey::open(&places.state), sinks);
        let config = Config::read(Path::new(DEVICE_FILE));
        // A log on another disk may have what the spool's never got, and would take what has the same number
        // for the same.
        let known = config.as_ref().map_or(0, Config::latest_in_files);
        recorder.end.record = recorder.end.record.max(known);
        recorder.receivers = Sinks::start(config, &recorder.spool);
        recorder
    }

    /// The same with a spool that is open, and the key to seal with.
    fn new(opened: Opened, key: Result<DeviceKey, String>, sinks: Vec<Sink>) -> Self {
        let (followers, _) = broadcast::channel(FOLLOWER_QUEUE);
        let Opened { spool, end, trouble, has_lost } = opened;
        Self {
            seq: 0,
            end,
            spool,
            key,
            found: trouble,
            has_lost,
            unsealed: (0, None),
            storms: Storms::default(),
            remembered: Latest::default(),
            followers,
            sinks,
            receivers: Sinks::default(),
        }
    }

    /// Records something that happens now.
    pub fn record(&mut self, body: Body) {
        self.record_at(Timestamp::now(), body);
    }

    /// Records something that happened at `time`.
    pub fn record_at(&mut self, time: Timestamp, body: Body) {
        match body {
            Body::Decision(decision) => {
                if let Some(decision) = self.storms.take(Instant::now(), time, decision) {
                    self.write(time, Body::Decision(decision), None);
                }
            }
            body => {
                let is_start = matches!(body, Body::AgentStarted { .. });
                let is_end = matches!(body, Body::AgentStopped { .. });
                if is_end {
                    let all = self.storms.all();
                    self.tell_folded(all);
                }
                self.write(time, body, None);
                if is_start || is_end {
                    self.seal();
                }
            }
        }
        self.keep_up();
    }

    /// Waits until there is something to do for [`Self::tick`].
    pub async fn due(&self) {
        let unsealed = self.unsealed.1.filter(|_| self.key.is_ok());
        let seal = unsealed.map(|since| since + SEAL_EVERY);
        match self.storms.due().into_iter().chain(seal).min() {
            Some(due) => tokio::time::sleep_until(due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Tells of storms, and seals what was not sealed for long.
    pub fn tick(&mut self) {
        let over = self.storms.over(Instant::now());
        self.tell_folded(over);
        self.keep_up();
        if self.unsealed.1.is_some_and(|since| since.elapsed() >= SEAL_EVERY) {
            self.seal();
        }
    }

    fn tell_folded(&mut self, folded: Vec<Folded>) {
        for one in folded {
            self.write(one.repeated.last, Body::Decision(one.decision), Some(one.repeated));
        }
    }

    /// Tells what had to make room, and seals if it is time.
    fn keep_up(&mut self) {
        for dropped in self.spool.take_dropped() {
            self.write(Timestamp::now(), Body::Dropped(Box::new(dropped)), None);
        }
        if self.unsealed.0 >= SEAL_AFTER || self.spool.take_rotated() {
            self.seal();
        }
    }

    fn seal(&mut self) {
        let Some(seal) = self.key.as_ref().ok().and_then(|key| Seal::sign(&self.end, key)) else {
            return;
        };
        self.write(Timestamp::now(), Body::Checkpoint(Box::new(seal)), None);
        self.unsealed = (0, None);
    }

    fn write(&mut self, time: Timestamp, body: Body, repeated: Option<Repeated>) {
        self.seq += 1;
        let chain = Chain::of(&body);
        let event = Event { schema: SCHEMA, seq: self.seq, time, body, repeated };
        let written = json::line(&event).unwrap_or_else(|error| {
            // Not reached: every member of an event can be written as JSON.
            tracing::error!("record {} cannot be written: {error}", self.seq);
            format!("{{\"schema\":{SCHEMA},\"seq\":{}}}", self.seq)
        });
        let human = human::Line(&event).to_string();
        let text = human.split_once(' ').map_or("", |(_, text)| text);
        let (place, json) = self.end.link(chain, &written, text);
        self.unsealed.0 += 1;
        self.unsealed.1.get_or_insert_with(Instant::now);
        let line = Line { json: json.into(), human: human.into() };
        self.spool.push(place, line.json.clone());
        for sink in &self.sinks {
            sink.send(&line);
        }
        // Nobody may be following.
        let _ = self.followers.send(line.clone());
        self.remembered.push(line);
    }

    /// Number of the latest record.
    #[must_use]
    pub fn latest(&self) -> u64 {
        self.seq
    }

    /// The remembered records, and those to come.
    #[must_use]
    pub fn follow(&self) -> (Vec<Line>, broadcast::Receiver<Line>) {
        (self.remembered.iter().cloned().collect(), self.followers.subscribe())
    }

    /// Where records go at once.
    #[must_use]
    pub fn sinks(&self) -> &[Sink] {
        &self.sinks
    }

    /// How the spool is doing.
    #[must_use]
    pub fn spool_status(&self) -> SpoolStatus {
        self.spool.status()
    }

    /// How everything is doing that records go to.
    #[must_use]
    pub fn status(&self) -> Vec<SinkStatus> {
        let at_once = self.sinks.iter().map(Sink::status);
        at_once.chain(self.receivers.status(&self.spool)).collect()
    }

    /// Whether records are kept and sealed.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let (id, title) = ("spool", "records are kept until they have arrived");
        let SpoolStatus { bytes, waiting, trouble, dropped, .. } = self.spool.status();
        let lost: u64 = dropped.iter().sum();
        let mend = "make room and let root write there, or choose another folder with --state";
        let spool = match (trouble, &self.found) {
            (Some(trouble), _) => {
                let found = format!("{trouble}; {waiting} wait in memory, {lost} had to make room");
                Check::bad(State::Warning, id, title, found, mend)
            }
            (None, Some(found)) if self.has_lost => {
                let mend = "look after the disk; what receivers have got is not lost";
                Check::bad(State::Warning, id, title, found, mend)
            }
            (None, Some(found)) if bytes == 0 => Check::ok(id, title, found),
            (None, Some(found)) => Check::ok(id, title, format!("{} KiB; {found}", bytes >> 10)),
            (None, None) => Check::ok(id, title, format!("{} KiB", bytes >> 10)),
        };
        let (id, title) = ("device-key", "records are sealed by the device's key");
        let key = match &self.key {
            Ok(key) => match key.replaced() {
                None => Check::ok(id, title, format!("key {}", hex::encode(key.public().id()))),
                Some(told) => {
                    let mend = "what was recorded before is proved by the old one; start the agent \
                                again when receivers have the new one";
                    Check::bad(State::Warning, id, title, told, mend)
                }
            },
            Err(error) => {
                let mend = "let root write there; restore a damaged key, or remove it to have another \
                            one made; and start the agent again";
                Check::bad(State::Warning, id, title, error, mend)
            }
        };
        let mut checks = vec![spool, key];
        checks.extend(self.receivers.check());
        checks
    }
}

impl Drop for Recorder {
    /// Lets everything reach the disk, and receivers that take it.
    fn drop(&mut self) {
        self.spool.finish();
        self.receivers.end();
    }
}
