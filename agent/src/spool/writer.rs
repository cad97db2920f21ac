//! The thread that brings records to the disk.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    Bounds, Dropped, Shared, State, Waiting,
    chain::{Chain, Place},
    segments::{Lane, NewLine, Segment},
};
use crate::sync::lock;

/// How often the disk is waited for at most: flash memory wears out by it. A power cut costs what came
/// since.
const SYNC: Duration = Duration::from_secs(1);

/// How soon a disk that did not take records is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Records that are written at once.
const BATCH: usize = 256;

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) folder: PathBuf,
    pub(super) bounds: Bounds,
    /// None if the folder could not be read.
    pub(super) lanes: Option<[Lane; 2]>,
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut synced: Option<Instant> = None;
        loop {
            let is_dirty = self.lanes.iter().flatten().any(Lane::is_dirty);
            let (batch, ending) = self.wait(is_dirty, synced);
            let written = self.write(&batch);
            let mut failed = written.is_err();
            self.written(&batch, written);
            let is_due = ending || synced.is_none_or(|synced| synced.elapsed() >= SYNC);
            if is_due && self.lanes.iter().flatten().any(Lane::is_dirty) {
                failed |= !self.sync(failed);
                synced = Some(Instant::now());
            }
            // At the end nobody would tell of it any more; the next agent does.
            if !ending {
                self.bound();
            }
            if ending && (failed || batch.len() < BATCH) {
                lock(&self.shared.state).ended = true;
                self.shared.news.notify_all();
                return;
            }
            if failed {
                self.rest();
            }
        }
    }

    /// Waits until there is something to do. Returns what is to be written, and whether it is the end.
    fn wait(&self, is_dirty: bool, synced: Option<Instant>) -> (Vec<Waiting>, bool) {
        let mut state = lock(&self.shared.state);
        loop {
            let is_due = is_dirty && synced.is_none_or(|synced| synced.elapsed() >= SYNC);
            if !state.waiting.is_empty() || state.ending || is_due {
                break;
            }
            state = match synced.filter(|_| is_dirty) {
                Some(synced) => self.wait_for(state, SYNC.saturating_sub(synced.elapsed())),
                None => self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
        let batch: Vec<_> = state.waiting.iter().take(BATCH).cloned().collect();
        state.writing = batch.len();
        (batch, state.ending)
    }

    fn wait_for<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        let waited = self.shared.work.wait_timeout(state, time);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits before a disk is tried again that did not take records.
    fn rest(&self) {
        let end = Instant::now() + AGAIN;
        let mut state = lock(&self.shared.state);
        while !state.ending && Instant::now() < end {
            state = self.wait_for(state, end.saturating_duration_since(Instant::now()));
        }
    }

    /// Writes to the files.
    fn write(&mut self, batch: &[Waiting]) -> io::Result<()> {
        if self.lanes.is_none() {
            let (lanes, end, _) = super::read(&self.folder, self.bounds)?;
            if end.record > 0 {
                // They would be taken for one chain.
                let why = "it was not there when the agent started, and holds other records; start \
                           the agent again";
                return Err(io::Error::other(why));
            }
            self.lanes = Some(lanes);
        }
        let Some(lanes) = &mut self.lanes else { return Ok(()) };
        for (lane, chain) in lanes.iter_mut().zip(Chain::ALL) {
            // What is written already, before the other chain's file failed.
            let known = lane.segments().last().map_or(0, |newest| newest.last_record);
            let new = batch.iter().filter(|one| one.place.chain == chain);
            let new = new.filter(|one| one.place.record > known);
            let lines: Vec<_> =
                new.map(|one| NewLine { place: one.place, text: &one.text }).collect();
            let files = lane.segments().len();
            lane.append(&lines)?;
            if files > 0 && lane.segments().len() > files {
                lock(&self.shared.state).rotated = true;
            }
        }
        Ok(())
    }

    /// Takes what is written out of memory.
    fn written(&self, batch: &[Waiting], written: io::Result<()>) {
        let mut state = lock(&self.shared.state);
        state.writing = 0;
        match written {
            Ok(()) => {
                // Both under one lock: who reads must not miss what is in neither.
                for _ in batch {
                    if let Some(one) = state.waiting.pop_front() {
                        state.waiting_bytes -= one.text.len();
                        state.written_bytes += one.text.len();
                        state.written.push_back(one);
                    }
                }
                state.forget_written(self.bounds.memory);
                if !batch.is_empty() && !self.lanes.iter().flatten().any(Lane::is_dirty) {
                    state.trouble = None;
                }
            }
            Err(error) => {
                state.trouble = Some(format!("{}: {error}", self.folder.display()));
                state.changes += 1;
                state.make_room(self.bounds.memory);
            }
        }
        drop(state);
        self.shared.news.notify_all();
    }

    /// Waits for the disk, and lets sinks read what it has. Returns whether it has everything that was
    /// written; what it has not is written again.
    fn sync(&mut self, write_failed: bool) -> bool {
        let Some(lanes) = &mut self.lanes else { return true };
        let mut failed = None;
        for lane in lanes.iter_mut() {
            if let Err(error) = lane.sync() {
                lane.roll_back();
                failed = Some(error);
            }
        }
        let mut state = lock(&self.shared.state);
        state.changes += 1;
        state.readable = lanes.each_ref().map(|lane| lane.segments().to_vec());
        state.synced = lanes.each_ref().map(Lane::synced);
        let is_kept = failed.is_none();
        match failed {
            Some(error) => {
                state.trouble = Some(format!("{}: {error}", self.folder.display()));
                state.take_back();
                state.make_room(self.bounds.memory);
            }
            None if !write_failed => state.trouble = None,
            None => {}
        }
        state.forget_written(self.bounds.memory);
        drop(state);
        self.shared.news.notify_all();
        is_kept
    }

    /// Makes room on the disk: what was allowed goes first, then the oldest.
    fn bound(&mut self) {
        let Some(lanes) = &mut self.lanes else { return };
        while lanes.iter().map(Lane::bytes).sum::<u64>() > self.bounds.disk {
            let Some(index) = [1, 0].into_iter().find(|index| lanes[*index].oldest().is_some())
            else {
                return;
            };
            let lane = &mut lanes[index];
            let Some(oldest) = lane.oldest().cloned() else { return };
            // Before it is gone.
            let cursors = lock(&self.shared.state).cursors.clone();
            let lost = lost_with(&oldest, &cursors);
            if let Err(error) = lane.remove_oldest() {
                tracing::error!("{} cannot be removed: {error}", oldest.path.display());
                return;
            }
            let mut state = lock(&self.shared.state);
            state.readable[index].retain(|segment| segment.path != oldest.path);
            for dropped in lost {
                state.tell_dropped(dropped);
            }
        }
    }
}

/// What sinks have not got yet of a file.
fn lost_with(segment: &Segment, cursors: &BTreeMap<String, u64>) -> Vec<Dropped> {
    let behind = cursors.iter().filter(|(_, cursor)| **cursor < segment.last_record);
    let behind: Vec<_> = behind.collect();
    if behind.is_empty() {
        return Vec::new();
    }
    let text = std::fs::read_to_string(&segment.path).unwrap_or_default();
    let places: Vec<_> = text.lines().filter_map(|line| Place::read(line).ok()).collect();
    let lost = behind.into_iter().filter_map(|(sink, cursor)| {
        let mut missed = places.iter().filter(|place| place.record > *cursor);
        let first = missed.next()?;
        let (count, last) =
            missed.fold((1, first.link), |(count, _), place| (count + 1, place.link));
        Some(Dropped {
            stage: "spool",
            sink: Some(sink.clone()),
            chain: first.chain,
            first: first.link,
            last,
            count,
            prev: first.prev,
        })
    });
    lost.collect()
}
