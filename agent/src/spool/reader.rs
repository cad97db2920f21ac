//! How sinks read the spool: both chains in one, in the order in which things happened.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Shared, State, Waiting,
    chain::{Chain, record_of},
    cursor,
    segments::Segment,
};
use crate::sync::lock;

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

/// How often it is kept on the disk how far the sink has got.
const KEEP: Duration = Duration::from_secs(2);

/// A record as it is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub record: u64,
    /// Its line, without newline.
    pub line: String,
}

/// Reads for one sink.
pub struct Reader {
    shared: Arc<Shared>,
    folder: PathBuf,
    sink: String,
    /// Where each chain was left: the file, the offset in it, and the latest record before it.
    left: [Option<(PathBuf, u64, u64)>; 2],
    acknowledged: u64,
    kept: Option<(Instant, u64)>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, folder: &Path, sink: &str) -> Self {
        let mut state = lock(&shared.state);
        let known = cursor::read(folder, sink);
        // A sink that is new gets what there is, and has missed nothing.
        let first = state.readable.iter().filter_map(|lane| lane.first());
        let oldest =
            first.map(|segment| segment.first_record).min().map(|first| first.saturating_sub(1));
        let acknowledged = known.or(oldest).unwrap_or_default();
        state.cursors.insert(sink.to_owned(), acknowledged);
        drop(state);
        let (folder, sink) = (folder.to_owned(), sink.to_owned());
        Self { shared, folder, sink, left: [None, None], acknowledged, kept: None }
    }

    /// What the sink's receiver has got.
    #[must_use]
    pub const fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether the agent ends.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        lock(&self.shared.state).ended
    }

    /// Records after a number, about `bytes` at most, and at least one if there is any. Waits for the
    /// first of them up to `patience`.
    ///
    /// # Errors
    /// If they cannot be read from the disk and are not in memory. They are not passed over.
    pub fn next(
        &mut self,
        after: u64,
        bytes: usize,
        patience: Duration,
    ) -> io::Result<Vec<Record>> {
        let end = Instant::now() + patience;
        loop {
            let changes = lock(&self.shared.state).changes;
            let records = self.read(after, bytes)?;
            if !records.is_empty() {
                return Ok(records);
            }
            let state = lock(&self.shared.state);
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() || state.ended {
                return Ok(records);
            }
            if state.changes != changes {
                continue;
            }
            let waited = self.shared.news.wait_timeout(state, rest);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn read(&mut self, after: u64, bytes: usize) -> io::Result<Vec<Record>> {
        let state = lock(&self.shared.state);
        let lanes = state.readable.clone();
        let in_memory = state.trouble.as_ref().map(|_| first_in_memory(&state, after));
        drop(state);
        let [mut main, mut allowed] = Chain::ALL.map(|chain| {
            let left = self.left[chain as usize].take();
            Lines::start(&lanes[chain as usize], left, after)
        });
        let (mut records, mut size): (Vec<Record>, _) = (Vec::new(), 0);
        let failed = loop {
            if size >= bytes {
                break None;
            }
            let next = match (main.peek(), allowed.peek()) {
                (Err(error), _) | (_, Err(error)) => break Some(error),
                (Ok(None), Ok(None)) => break None,
                (Ok(Some(one)), Ok(Some(other))) if other < one => &mut allowed,
                (Ok(None), Ok(Some(_))) => &mut allowed,
                _ => &mut main,
            };
            match next.take() {
                Ok(Some(record)) => {
                    size += record.line.len();
                    records.push(record);
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let is_at_end = size < bytes;
        self.left = [main.leave(), allowed.leave()];
        let latest = records.last().map_or(after, |record| record.record);
        if let Some(error) = failed {
            let state = lock(&self.shared.state);
            if state.is_in_memory(latest) {
                records.extend(first_in_memory(&state, latest));
            } else if records.is_empty() {
                return Err(error);
            }
        } else if is_at_end && let Some(in_memory) = in_memory {
            records.extend(in_memory.into_iter().filter(|one| one.record > latest));
        }
        Ok(records)
    }

    /// Waits before a receiver is tried again, but not when the agent ends.
    pub fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut state = lock(&self.shared.state);
        while !state.ended && Instant::now() < end {
            let rest = end.saturating_duration_since(Instant::now());
            let waited = self.shared.news.wait_timeout(state, rest);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes that the receiver has everything up to a record.
    pub fn acknowledge(&mut self, record: u64) {
        if record > self.acknowledged {
            self.acknowledged = record;
            lock(&self.shared.state).cursors.insert(self.sink.clone(), record);
        }
        if self.kept.is_none_or(|(time, _)| time.elapsed() >= KEEP) {
            self.keep();
        }
    }

    /// Brings to the disk how far the sink has got.
    pub fn keep(&mut self) {
        if self.kept.is_none_or(|(_, kept)| kept != self.acknowledged) {
            self.kept = Some((Instant::now(), self.acknowledged));
            // Otherwise some are sent twice, and the spool's own trouble is told anyway.
            let _ = cursor::write(&self.folder, &self.sink, self.acknowledged);
        }
    }
}

/// Some records in memory after a number.
fn first_in_memory(state: &State, after: u64) -> Vec<Record> {
    /// Waiting records are few but while the disk does not take them.
    const AT_ONCE: usize = 64;
    let record = |one: &Waiting| Record { record: one.place.record, line: one.text.to_string() };
    state.in_memory(after).take(AT_ONCE).map(record).collect()
}

/// Lines of one chain after a record.
struct Lines<'a> {
    segments: &'a [Segment],
    after: u64,
    /// Which file, and where in it.
    current: usize,
    offset: u64,
    file: Option<File>,
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer.
    at: usize,
    /// The latest record before `offset`.
    before: u64,
}

impl<'a> Lines<'a> {
    fn start(segments: &'a [Segment], left: Option<(PathBuf, u64, u64)>, after: u64) -> Self {
        let current = segments.iter().position(|one| one.last_record > after);
        let current = current.unwrap_or(segments.len());
        let left = left.filter(|(path, _, before)| {
            *before <= after && segments.get(current).is_some_and(|one| one.path == *path)
        });
        let (offset, before) = left.map_or((0, 0), |(_, offset, before)| (offset, before));
        let (file, buffer) = (None, Vec::new());
        Self { segments, after, current, offset, file, buffer, at: 0, before }
    }

    /// Number of the next record.
    fn peek(&mut self) -> io::Result<Option<u64>> {
        while let Some(line) = self.line()? {
            match record_of(&self.buffer[self.at..self.at + line]) {
                Some(record) if record > self.after => return Ok(Some(record)),
                record => self.skip(line, record),
            }
        }
        Ok(None)
    }

    fn take(&mut self) -> io::Result<Option<Record>> {
        let (Some(record), Some(length)) = (self.peek()?, self.line()?) else { return Ok(None) };
        let line = &self.buffer[self.at..self.at + length];
        let line = String::from_utf8_lossy(line).into_owned();
        self.skip(length, Some(record));
        Ok(Some(Record { record, line }))
    }

    fn skip(&mut self, length: usize, record: Option<u64>) {
        self.at += length + 1;
        self.offset += length as u64 + 1;
        self.before = record.unwrap_or(self.before);
    }

    /// Length of the line at `at`, which is in the buffer then.
    fn line(&mut self) -> io::Result<Option<usize>> {
        loop {
            let rest = &self.buffer[self.at..];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(length));
            }
            let Some(segment) = self.segments.get(self.current) else { return Ok(None) };
            match self.fill(segment) {
                Ok(true) => {}
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // It made room in the meantime, or was read to its end.
                Ok(false) | Err(_) => {
                    (self.current, self.offset, self.at) = (self.current + 1, 0, 0);
                    self.buffer.clear();
                    self.file = None;
                }
            }
        }
    }

    /// Reads more of a file. Returns whether there was more.
    fn fill(&mut self, segment: &Segment) -> io::Result<bool> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let from = self.offset + self.buffer.len() as u64;
        let rest = usize::try_from(segment.bytes.saturating_sub(from)).unwrap_or(usize::MAX);
        if rest == 0 {
            return Ok(false);
        }
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(File::open(&segment.path)?),
        };
        let had = self.buffer.len();
        self.buffer.resize(had + rest.min(CHUNK), 0);
        let read = file.read_at(&mut self.buffer[had..], from)?;
        self.buffer.truncate(had + read);
        Ok(read > 0)
    }

    fn leave(self) -> Option<(PathBuf, u64, u64)> {
        let segment = self.segments.get(self.current)?;
        Some((segment.path.clone(), self.offset, self.before))
    }
}
