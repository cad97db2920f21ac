//! A file of JSON lines that is rotated: `events.jsonl`, `events.jsonl.1` (the one before), …

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{Ready, Receiver};
use crate::spool::chain::record_of;

/// A file and its older parts.
pub struct RotatedFile {
    path: PathBuf,
    max_bytes: u64,
    keep: u32,
    open: Option<Open>,
}

struct Open {
    file: File,
    /// Up to where every line is whole.
    bytes: u64,
    /// The latest record in it, so that none is in it twice after the agent was killed.
    latest: u64,
}

impl RotatedFile {
    /// Nothing is opened yet.
    #[must_use]
    pub const fn new(path: PathBuf, max_bytes: u64, keep: u32) -> Self {
        Self { path, max_bytes, keep, open: None }
    }

    fn part(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        if let Some(open) = self.open.take() {
            open.file.sync_all()?;
        }
        for number in (1..self.keep).rev() {
            match fs::rename(self.part(number), self.part(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.keep == 0 {
            fs::remove_file(&self.path)
        } else {
            fs::rename(&self.path, self.part(1))
        }
    }

    /// Number of the latest record in a log, whatever has become of the spool since; none if there is none.
    #[must_use]
    pub fn latest(path: &Path) -> Option<u64> {
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        let mut file = is_file.then(|| File::open(path).ok()).flatten()?;
        let length = file.metadata().ok()?.len();
        latest_of(&tail(&mut file, length).ok()?)
    }

    fn open(&mut self) -> io::Result<&mut Open> {
        match self.open {
            Some(ref mut open) => Ok(open),
            None => Ok(self.open.insert(Open::of(&self.path)?)),
        }
    }
}

impl Open {
    fn of(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .mode(0o600)
            // A FIFO without a reader must be an error, not a wait.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{} is not a file", path.display())));
        }
        let length = file.metadata()?.len();
        let tail = tail(&mut file, length)?;
        // What a power cut left of a line goes.
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let bytes = length - (tail.len() - whole) as u64;
        file.set_len(bytes)?;
        let latest = latest_of(&tail[..whole]).unwrap_or_default();
        Ok(Self { file, bytes, latest })
    }
}

/// The end of a log of this length.
fn tail(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    /// Longer than every record.
    const TAIL: u64 = 256 << 10;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail)
}

fn latest_of(lines: &[u8]) -> Option<u64> {
    lines.split(|byte| *byte == b'\n').filter_map(record_of).next_back()
}

impl Receiver for RotatedFile {
    fn deliver(&mut self, records: &[Ready]) -> io::Result<()> {
        for record in records {
            if self.open()?.bytes >= self.max_bytes {
                self.rotate()?;
            }
            let open = self.open()?;
            if record.record <= open.latest {
                continue;
            }
            let line = format!("{}\n", record.body);
            if let Err(error) = open.file.write_all(line.as_bytes()) {
                // A full disk may have taken part of it.
                let _ = open.file.set_len(open.bytes);
                return Err(error);
            }
            open.bytes += line.len() as u64;
            open.latest = record.record;
        }
        self.open()?.file.sync_data()
    }

    fn hang_up(&mut self) {
        self.open = None;
    }
}
