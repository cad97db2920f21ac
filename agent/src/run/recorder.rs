//! Gives every event its number and hands it to everybody who wants it.

use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::{
    event::{Body, Event, SCHEMA, human},
    run::{
        latest::Latest,
        sink::{Line, Sink},
    },
};

/// Records that a follower may fall behind before it is told that it lost some.
const FOLLOWER_QUEUE: usize = 1024;

/// The way of every record.
pub struct Recorder {
    seq: u64,
    remembered: Latest,
    followers: broadcast::Sender<Line>,
    sinks: Vec<Sink>,
}

impl Recorder {
    /// A recorder that writes to `sinks`.
    #[must_use]
    pub fn new(sinks: Vec<Sink>) -> Self {
        let (followers, _) = broadcast::channel(FOLLOWER_QUEUE);
        Self { seq: 0, remembered: Latest::default(), followers, sinks }
    }

    /// Records something that happens now.
    pub fn record(&mut self, body: Body) {
        self.record_at(Timestamp::now(), body);
    }

    /// Records something that happened at `time`.
    pub fn record_at(&mut self, time: Timestamp, body: Body) {
        self.seq += 1;
        let event = Event { schema: SCHEMA, seq: self.seq, time, body };
        let json = serde_json::to_string(&event).unwrap_or_else(|error| {
            // Not reached: every member of an event can be written as JSON.
            tracing::error!("record {} cannot be written: {error}", self.seq);
            format!("{{\"schema\":{SCHEMA},\"seq\":{}}}", self.seq)
        });
        let line = Line { json: json.into(), human: human::Line(&event).to_string().into() };
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

    /// Where records go.
    #[must_use]
    pub fn sinks(&self) -> &[Sink] {
        &self.sinks
    }
}
