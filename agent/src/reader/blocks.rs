//! A file that is read by blocks, of which only those are fetched that are needed.

use std::io::{self, Read, Seek, SeekFrom};

use super::words::BLOCK;

/// Where blocks come from.
pub trait Source {
    /// A block, counted from 0; the last one may be shorter.
    ///
    /// # Errors
    /// If there is none.
    fn block(&mut self, number: u64) -> io::Result<&[u8]>;
}

/// A file in blocks.
#[derive(Debug)]
pub struct InBlocks<S> {
    source: S,
    length: u64,
    position: u64,
}

impl<S> InBlocks<S> {
    /// A file of this length.
    pub const fn of(source: S, length: u64) -> Self {
        Self { source, length, position: 0 }
    }
}

impl<S: Source> Read for InBlocks<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.length {
            return Ok(0);
        }
        let block = self.source.block(self.position / BLOCK as u64)?;
        // Less than a block.
        let within = usize::try_from(self.position % BLOCK as u64).unwrap_or_default();
        let rest = block.get(within..).unwrap_or_default();
        let taken = rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&rest[..taken]);
        self.position += taken as u64;
        Ok(taken)
    }
}

impl<S> Seek for InBlocks<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => Some(to),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}
