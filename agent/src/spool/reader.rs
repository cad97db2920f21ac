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
    Shared,
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
    pub fn next(&mut self, after: u64, bytes: usize, patience: Duration) -> Vec<Record> {
        let end = Instant::now() + patience;
        loop {
            let changes = lock(&self.shared.state).changes;
            let records = self.read(after, bytes);
            if !records.is_empty() {
                return records;
            }
            let state = lock(&self.shared.state);
            let rest = end.saturating_duration_since(Instant::now());
            if rest.is_zero() || state.ended {
                return records;
            }
            if state.changes != changes {
                continue;
            }
            let waited = self.shared.news.wait_timeout(state, rest);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn read(&mut self, after: u64, bytes: usize) -> Vec<Record> {
        let state = lock(&self.shared.state);
        let lanes = state.readable.clone();
        let in_memory: Vec<_> = match &state.trouble {
            None => Vec::new(),
            Some(_) => {
                let later = state.waiting.iter().filter(|one| one.place.record > after);
                later.map(|one| (one.place.record, Arc::clone(&one.text))).take(64).collect()
            }
        };
        drop(state);
        let [mut main, mut allowed] = Chain::ALL.map(|chain| {
            let left = self.left[chain as usize].take();
            Lines::start(&lanes[chain as usize], left, after)
        });
        let (mut records, mut size) = (Vec::new(), 0);
        while size < bytes {
            let next = match (main.peek(), allowed.peek()) {
                (None, None) => break,
                (Some(one), Some(other)) if other < one => &mut allowed,
                (None, Some(_)) => &mut allowed,
                _ => &mut main,
            };
            let Some(record) = next.take() else { break };
            size += record.line.len();
            records.push(record);
        }
        let is_at_end = main.peek().is_none() && allowed.peek().is_none();
        self.left = [main.leave(), allowed.leave()];
        if is_at_end {
            let latest = records.last().map_or(after, |record: &Record| record.record);
            let more = in_memory.iter().filter(|(record, _)| *record > latest);
            records.extend(
                more.map(|(record, text)| Record { record: *record, line: text.to_string() }),
            );
        }
        records
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
    fn peek(&mut self) -> Option<u64> {
        loop {
            let line = self.line()?;
            match record_of(&self.buffer[self.at..self.at + line]) {
                Some(record) if record > self.after => return Some(record),
                record => self.skip(line, record),
            }
        }
    }

    fn take(&mut self) -> Option<Record> {
        let record = self.peek()?;
        let length = self.line()?;
        let line = &self.buffer[self.at..self.at + length];
        let line = String::from_utf8_lossy(line).into_owned();
        self.skip(length, Some(record));
        Some(Record { record, line })
    }

    fn skip(&mut self, length: usize, record: Option<u64>) {
        self.at += length + 1;
        self.offset += length as u64 + 1;
        self.before = record.unwrap_or(self.before);
    }

    /// Length of the line at `at`, which is in the buffer then.
    fn line(&mut self) -> Option<usize> {
        loop {
            let rest = &self.buffer[self.at..];
            if let Some(length) = rest.iter().position(|byte| *byte == b'\n') {
                return Some(length);
            }
            let segment = self.segments.get(self.current)?;
            match self.fill(segment) {
                Ok(true) => {}
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
