//! The latest records in memory, for whoever asks.

use std::collections::VecDeque;

use crate::run::sink::Line;

/// Records that are remembered. About 1.5 MB when full.
const REMEMBERED: usize = 1000;

/// The latest records.
#[derive(Default)]
pub struct Latest(VecDeque<Line>);

impl Latest {
    /// Remembers a record, and forgets the oldest if there are too many.
    pub fn push(&mut self, line: Line) {
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(line);
    }

    /// Oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Line> {
        self.0.iter()
    }
}
