//! The spool: every record on the disk, bounded, until each sink has it.
//!
//! The recorder hands records over without waiting. A thread of the spool writes them to the disk, and
//! each sink reads them from there at its own pace, from where its receiver has acknowledged. While the
//! disk does not take them they wait in memory, bounded too. What the disk has not promised to keep stays
//! in memory as well, as some filesystems give nothing back once they could not write. What has to make
//! room is counted, and told as an event.

pub mod chain;
pub mod cursor;
pub mod key;
mod look;
pub mod reader;
pub mod seal;
pub mod segments;
pub mod verify;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use portcullis_common::Digest;
use serde::Serialize;

use crate::sync::lock;
use chain::{Chain, End, Place};
use segments::{Damage, Lane, Segment};

/// Bytes of records that wait for the disk at most.
const MAX_WAITING: usize = 1 << 20;

/// How long the end waits for the disk.
const PATIENCE: Duration = Duration::from_secs(2);

/// How large the spool may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes on the disk.
    pub disk: u64,
    /// Bytes in memory, while the disk does not take them.
    pub memory: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { disk: 8 << 20, memory: MAX_WAITING }
    }
}

impl Bounds {
    /// Bytes of a file: small against the whole, as whole files make room.
    fn segment(&self) -> u64 {
        (self.disk / 16).clamp(16 << 10, 1 << 20)
    }
}

/// Records that had to make room before everybody had them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// `memory`: the disk did not take them. `spool`: they were the oldest on the disk.
    pub stage: &'static str,
    /// The sink that has not got them; none if they are not on the disk either.
    pub sink: Option<String>,
    /// Their chain.
    #[serde(rename = "of")]
    pub chain: Chain,
    /// Number of the first in the chain.
    pub first: u64,
    /// Number of the last in the chain.
    pub last: u64,
    /// How many they were.
    pub count: u64,
    /// The hash that the first one carried of the one before it.
    #[serde(with = "hex", rename = "before")]
    pub prev: Digest,
}

impl Dropped {
    /// Adds one that follows at once. Returns whether it does.
    fn extend(&mut self, next: &Self) -> bool {
        let follows = (self.stage, &self.sink, self.chain) == (next.stage, &next.sink, next.chain)
            && self.last + 1 == next.first;
        if follows {
            self.last = next.last;
            self.count += next.count;
        }
        follows
    }
}

/// A record on its way to the disk.
#[derive(Clone, Debug)]
struct Waiting {
    place: Place,
    text: Arc<str>,
}

#[derive(Default)]
struct State {
    /// What is not on the disk yet, oldest first.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// The latest that are written, oldest first, without a hole: everything that the disk has not promised
    /// to keep, and more as far as there is room.
    written: VecDeque<Waiting>,
    written_bytes: usize,
    /// The latest record of each chain that the disk has promised to keep.
    synced: [u64; 2],
    /// How many of the waiting are being written just now, so that they cannot make room.
    writing: usize,
    /// What can be read, of each chain.
    readable: [Vec<Segment>; 2],
    /// Why the disk does not take records.
    trouble: Option<String>,
    /// What each sink has got.
    cursors: BTreeMap<String, u64>,
    /// What is to be told.
    dropped: Vec<Dropped>,
    /// How many records had to make room since the start, by chain.
    dropped_total: [u64; 2],
    /// Whether a file is full, so that it should be sealed.
    rotated: bool,
    /// Number of the latest record.
    latest: u64,
    /// Counts what sinks may want to look at.
    changes: u64,
    /// No more records come.
    ending: bool,
    /// And the disk has them all, or does not take them.
    ended: bool,
}

impl State {
    fn tell_dropped(&mut self, dropped: Dropped) {
        if dropped.stage == "memory" {
            self.dropped_total[dropped.chain as usize] += dropped.count;
        }
        if !self.dropped.iter_mut().any(|told| told.extend(&dropped)) {
            self.dropped.push(dropped);
        }
    }

    /// Forgets what is written, as far as memory is needed and the disk has promised to keep it.
    fn forget_written(&mut self, limit: usize) {
        while self.waiting_bytes + self.written_bytes > limit
            && let Some(oldest) = self.written.front()
            && oldest.place.record <= self.synced[oldest.place.chain as usize]
        {
            self.written_bytes -= oldest.text.len();
            self.written.pop_front();
        }
    }

    /// Has everything written anew that the disk has not promised to keep, as it could not keep it.
    fn take_back(&mut self) {
        let (synced, written) = (self.synced, std::mem::take(&mut self.written));
        let is_kept = |one: &Waiting| one.place.record <= synced[one.place.chain as usize];
        let (kept, lost): (VecDeque<_>, VecDeque<_>) = written.into_iter().partition(is_kept);
        self.written_bytes = kept.iter().map(|one| one.text.len()).sum();
        self.waiting_bytes += lost.iter().map(|one| one.text.len()).sum::<usize>();
        self.written = kept;
        for one in lost.into_iter().rev() {
            self.waiting.push_front(one);
        }
    }

    /// Records in memory after a number.
    fn in_memory(&self, after: u64) -> impl Iterator<Item = &Waiting> {
        let all = self.written.iter().chain(&self.waiting);
        all.filter(move |one| one.place.record > after)
    }

    /// Whether everything after a record is in memory, but for what was told to have made room there.
    fn is_in_memory(&self, after: u64) -> bool {
        let newest = self.readable.iter().filter_map(|lane| lane.last()?.last_record.into()).max();
        let oldest = self.written.front().or(self.waiting.front());
        newest.is_none_or(|newest| after >= newest)
            || oldest.is_some_and(|oldest| oldest.place.record <= after + 1)
    }

    /// Makes room in memory: what was allowed goes first, then the oldest.
    fn make_room(&mut self, limit: usize) {
        while self.waiting_bytes > limit {
            let free = self.waiting.iter().enumerate().skip(self.writing);
            let mut of_chain = free.clone().filter(|(_, one)| one.place.chain == Chain::Allowed);
            let found = of_chain.next().or_else(|| free.clone().next()).map(|(index, _)| index);
            let Some(one) = found.and_then(|index| self.waiting.remove(index)) else { return };
            self.waiting_bytes -= one.text.len();
            let Place { chain, link, prev, .. } = one.place;
            let stage = "memory";
            self.tell_dropped(Dropped {
                stage,
                sink: None,
                chain,
                first: link,
                last: link,
                count: 1,
                prev,
            });
        }
    }
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    work: Condvar,
    /// There is something to read.
    news: Condvar,
}

/// How the spool is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpoolStatus {
    /// Bytes on the disk.
    pub bytes: u64,
    /// Number of the latest record.
    pub latest: u64,
    /// Records that wait for the disk.
    pub waiting: usize,
    /// Why it does not take them.
    pub trouble: Option<String>,
    /// Records that the disk never got, by chain.
    pub dropped: [u64; 2],
}

/// The spool.
pub struct Spool {
    shared: Arc<Shared>,
    bounds: Bounds,
    folder: PathBuf,
    thread: Option<JoinHandle<()>>,
}

/// A spool, and where it goes on.
pub struct Opened {
    /// The spool.
    pub spool: Spool,
    /// The end of what it holds.
    pub end: End,
    /// What is not as it should be, for people.
    pub trouble: Option<String>,
    /// Whether records are missing, and not only what a power cut costs.
    pub has_lost: bool,
}

impl Spool {
    /// Opens what an agent before has left in a folder, or begins anew. What cannot be read or written is
    /// no reason not to run: records then stay in memory.
    #[must_use]
    pub fn open(folder: &Path, bounds: Bounds) -> Opened {
        let (lanes, end, trouble, has_lost) = match read(folder, bounds) {
            Ok((lanes, end, damage)) => (Some(lanes), end, damage.told(), damage.has_lost()),
            Err(error) => {
                (None, End::default(), Some(format!("{}: {error}", folder.display())), false)
            }
        };
        let mut state = State { latest: end.record, ..State::default() };
        if let Some(lanes) = &lanes {
            state.readable = lanes.each_ref().map(|lane| lane.segments().to_vec());
            state.synced = lanes.each_ref().map(Lane::synced);
        } else {
            state.trouble.clone_from(&trouble);
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            news: Condvar::new(),
        });
        let writer = writer::Writer {
            shared: Arc::clone(&shared),
            folder: folder.to_owned(),
            bounds,
            lanes,
        };
        let thread = thread::Builder::new()
            .name("spool".into())
            .stack_size(128 << 10)
            .spawn(move || writer.run())
            .ok();
        let spool = Self { shared, bounds, folder: folder.to_owned(), thread };
        Opened { spool, end, trouble, has_lost }
    }

    /// Hands a record over without waiting for the disk.
    pub fn push(&self, place: Place, text: Arc<str>) {
        let mut state = lock(&self.shared.state);
        state.waiting_bytes += text.len();
        state.latest = place.record;
        state.waiting.push_back(Waiting { place, text });
        state.make_room(self.bounds.memory);
        state.forget_written(self.bounds.memory);
        let is_read_from_here = state.trouble.is_some();
        state.changes += u64::from(is_read_from_here);
        drop(state);
        self.shared.work.notify_one();
        if is_read_from_here {
            self.shared.news.notify_all();
        }
    }

    /// What had to make room and was not told yet.
    #[must_use]
    pub fn take_dropped(&self) -> Vec<Dropped> {
        std::mem::take(&mut lock(&self.shared.state).dropped)
    }

    /// Whether a file has become full since the last call.
    #[must_use]
    pub fn take_rotated(&self) -> bool {
        std::mem::take(&mut lock(&self.shared.state).rotated)
    }

    /// A reader for a sink, which goes on where that sink has got to.
    #[must_use]
    pub fn reader(&self, sink: &str) -> reader::Reader {
        reader::Reader::new(Arc::clone(&self.shared), &self.folder, sink)
    }

    /// Tells everybody that no more records come.
    pub fn finish(&self) {
        lock(&self.shared.state).ending = true;
        self.shared.work.notify_all();
        self.shared.news.notify_all();
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> SpoolStatus {
        let state = lock(&self.shared.state);
        SpoolStatus {
            bytes: state.readable.iter().flatten().map(|segment| segment.bytes).sum(),
            latest: state.latest,
            waiting: state.waiting.len(),
            trouble: state.trouble.clone(),
            dropped: state.dropped_total,
        }
    }
}

impl Drop for Spool {
    /// Lets everything reach the disk, but does not wait for one that is stuck.
    fn drop(&mut self) {
        self.finish();
        let Some(thread) = self.thread.take() else { return };
        let end = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Reads what is there. Returns the chains, their end, and what is wrong.
fn read(folder: &Path, bounds: Bounds) -> io::Result<([Lane; 2], End, Damage)> {
    if !folder.is_dir() {
        if let Some(above) = folder.parent() {
            fs::create_dir_all(above)?;
        }
        DirBuilder::new().mode(0o700).create(folder)?;
    }
    let [main, allowed] = Chain::ALL.map(|chain| Lane::open(folder, chain, bounds.segment()));
    let (main, allowed) = (main?, allowed?);
    let mut end = End::default();
    (end.heads.main, end.heads.allowed) = (main.end.0, allowed.end.0);
    // What was allowed may have had to make room altogether.
    if let Some(sealed) = seal::latest(&main.lane)
        && sealed.allowed.link > end.heads.allowed.link
    {
        end.heads.allowed = sealed.allowed;
    }
    // A sink may have got what the disk never had.
    let acknowledged = cursor::highest(folder);
    end.record = main.end.1.max(allowed.end.1).max(acknowledged);
    Ok(([main.lane, allowed.lane], end, main.damage.and(allowed.damage)))
}

#[cfg(test)]
mod tests;
