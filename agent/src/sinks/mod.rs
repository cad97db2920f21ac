//! Receivers outside: each sink has a thread, reads the spool at its own pace, and keeps on the disk how
//! far its receiver has got.

pub mod audit;
pub mod config;
pub mod fields;
pub mod file;
pub mod format;
pub mod journald;
pub mod stream;
pub mod syslog;

use std::{
    io,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    kernel::check::{Check, State},
    run::sink::SinkStatus,
    spool::{Spool, reader::Reader},
    sync::lock,
};
use config::{Config, SinkConfig};

/// Bytes of records that are handed to a receiver at once.
const BATCH: usize = 64 << 10;

/// How long a thread sleeps when there is nothing, at most.
const REST: Duration = Duration::from_secs(3600);

/// How soon a receiver that has not acknowledged everything is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// How soon a receiver that failed is tried again: first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// How long the end waits for receivers.
const PATIENCE: Duration = Duration::from_secs(2);

/// A record that is ready to be sent.
pub struct Ready {
    /// Its number.
    pub record: u64,
    /// What it says.
    pub event: Value,
    /// The same in the sink's form, without newline.
    pub body: String,
}

/// Where records go.
pub trait Receiver: Send {
    /// Hands records over, in their order.
    ///
    /// # Errors
    /// If it does not take them; then all that it has not acknowledged are handed over anew.
    fn deliver(&mut self, records: &[Ready]) -> io::Result<()>;

    /// The latest record of which it is known that the receiver has it; none if it has everything that was
    /// handed over.
    ///
    /// # Errors
    /// If it is gone.
    fn acknowledged(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    /// Forgets the connection.
    fn hang_up(&mut self);
}

#[derive(Default)]
struct Shared {
    written: u64,
    acknowledged: u64,
    trouble: Option<String>,
}

/// A sink that runs.
struct Running {
    name: String,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

/// All sinks of the device's file.
#[derive(Default)]
pub struct Sinks {
    running: Vec<Running>,
    /// What is wrong with the file.
    wrong: Option<String>,
}

impl Sinks {
    /// Starts what the device's file asks for. What is wrong is a check, and no reason not to run.
    #[must_use]
    pub fn start(config: Result<Config, String>, spool: &Spool) -> Self {
        match config {
            Ok(config) => {
                let started = config.sinks.into_iter().map(|sink| Running::start(sink, spool));
                Self { running: started.collect(), wrong: None }
            }
            Err(wrong) => Self { running: Vec::new(), wrong: Some(wrong) },
        }
    }

    /// How they are doing.
    #[must_use]
    pub fn status(&self, spool: &Spool) -> Vec<SinkStatus> {
        let latest = spool.status().latest;
        let status = |sink: &Running| {
            let shared = lock(&sink.shared);
            SinkStatus {
                name: sink.name.clone(),
                written: shared.written,
                lost: 0,
                failing: shared.trouble.is_some(),
                behind: Some(latest.saturating_sub(shared.acknowledged)),
            }
        };
        self.running.iter().map(status).collect()
    }

    /// Whether records arrive; none if there are no sinks.
    #[must_use]
    pub fn check(&self) -> Option<Check> {
        let (id, title) = ("sinks", "records arrive where they should");
        if let Some(wrong) = &self.wrong {
            let mend = "mend it and start the agent again; records wait in the spool meanwhile";
            return Some(Check::bad(State::Warning, id, title, wrong, mend));
        }
        if self.running.is_empty() {
            return None;
        }
        let told: Vec<_> = self
            .running
            .iter()
            .filter_map(|sink| {
                Some(format!("{}: {}", sink.name, lock(&sink.shared).trouble.as_ref()?))
            })
            .collect();
        Some(if told.is_empty() {
            Check::ok(id, title, format!("{} sinks", self.running.len()))
        } else {
            let mend =
                "see whether the receiver runs and can be reached; records wait in the spool";
            Check::bad(State::Warning, id, title, told.join("; "), mend)
        })
    }

    /// Waits until the receivers have everything, but not for one that is stuck. The spool must have been
    /// told to end.
    pub fn end(&mut self) {
        let end = Instant::now() + PATIENCE;
        for thread in self.running.iter_mut().filter_map(|sink| sink.thread.take()) {
            while !thread.is_finished() && Instant::now() < end {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Running {
    fn start(config: SinkConfig, spool: &Spool) -> Self {
        let shared = Arc::<Mutex<Shared>>::default();
        let name = config.name.clone();
        let (reader, theirs) = (spool.reader(&name), Arc::clone(&shared));
        lock(&shared).acknowledged = reader.acknowledged();
        let thread = thread::Builder::new()
            .name("sink".into())
            .stack_size(192 << 10)
            .spawn(move || {
                let receiver = config.receiver();
                Pump { config, reader, receiver, shared: theirs, host: host() }.run();
            })
            .map_err(|error| lock(&shared).trouble = Some(format!("its thread: {error}")))
            .ok();
        Self { name, shared, thread }
    }
}

/// The device's name in the network.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Brings records from the spool to a receiver.
struct Pump {
    config: SinkConfig,
    reader: Reader,
    receiver: Box<dyn Receiver>,
    shared: Arc<Mutex<Shared>>,
    host: String,
}

impl Pump {
    fn run(mut self) {
        let mut sent = self.reader.acknowledged();
        let mut backoff = BACKOFF.0;
        loop {
            let is_waiting = sent > self.reader.acknowledged();
            let patience = if is_waiting { ASK_AGAIN } else { REST };
            let ending = self.reader.is_ending();
            match self.step(&mut sent, patience) {
                Ok(count) => {
                    backoff = BACKOFF.0;
                    let is_done = count == 0 && sent == self.reader.acknowledged();
                    if ending && is_done {
                        break;
                    }
                    if ending && count == 0 {
                        // Nothing waits any more that would wake it up.
                        thread::sleep(ASK_AGAIN);
                    }
                }
                Err(error) => {
                    self.receiver.hang_up();
                    // What it may not have got is sent again.
                    sent = self.reader.acknowledged();
                    lock(&self.shared).trouble = Some(error.to_string());
                    if ending {
                        break;
                    }
                    self.reader.rest(backoff);
                    backoff = (backoff * 2).min(BACKOFF.1);
                }
            }
        }
        self.reader.keep();
    }

    /// Sends what there is, and notes what has arrived. Returns how many were sent.
    fn step(&mut self, sent: &mut u64, patience: Duration) -> io::Result<usize> {
        let records = self.reader.next(*sent, BATCH, patience)?;
        let ready: Vec<_> =
            records.iter().filter_map(|one| self.ready(one.record, &one.line)).collect();
        if !ready.is_empty() {
            self.receiver.deliver(&ready)?;
        }
        if let Some(last) = records.last() {
            *sent = last.record;
        }
        let arrived = match self.receiver.acknowledged()? {
            None => *sent,
            // What was not meant for it needs no word from it.
            Some(record) => record.min(*sent),
        };
        self.reader.acknowledge(arrived);
        let mut shared = lock(&self.shared);
        shared.written += ready.len() as u64;
        shared.acknowledged = self.reader.acknowledged();
        shared.trouble = None;
        Ok(records.len())
    }

    fn ready(&self, record: u64, line: &str) -> Option<Ready> {
        let event: Value = serde_json::from_str(line).ok()?;
        if self.config.alarms_only && !fields::is_alarm(&event) {
            return None;
        }
        let body = self.config.format.write(line, &event, &self.host);
        Some(Ready { record, event, body })
    }
}

#[cfg(test)]
mod tests;
