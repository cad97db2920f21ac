//! One chain on the disk: files of JSON lines, each named after its first link, the oldest first.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::{
    chain::{Chain, Head, Place},
    look::look,
};

/// A file of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The file.
    pub path: PathBuf,
    /// Its first record's number in the chain.
    pub first_link: u64,
    /// Its first record.
    pub first_record: u64,
    /// Its last record.
    pub last_record: u64,
    /// Bytes of whole lines.
    pub bytes: u64,
}

/// One chain on the disk.
#[derive(Debug)]
pub struct Lane {
    folder: PathBuf,
    chain: Chain,
    segments: Vec<Segment>,
    /// The newest, if it takes more.
    open: Option<File>,
    max_bytes: u64,
    /// Whether the disk may not have all of it.
    dirty: bool,
    /// Whether a file was made that its folder may not know yet.
    made: bool,
    /// The newest file as the disk has promised to keep it.
    synced: Option<Segment>,
}

/// A line to be written.
pub struct NewLine<'a> {
    /// Where it belongs.
    pub place: Place,
    /// Its text, without newline.
    pub text: &'a str,
}

/// What was found of a chain.
pub struct Found {
    /// The chain.
    pub lane: Lane,
    /// Its end, and the number of the latest record.
    pub end: (Head, u64),
    /// What is wrong with it.
    pub damage: Damage,
}

/// What was found that is not as it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Bytes at the end of files that were no whole record: what a power cut leaves.
    torn: u64,
    /// Whole lines among them, which no power cut makes, and files in which nothing is.
    spoilt: Vec<String>,
    /// Newest files in which nothing is, which a power cut makes too.
    empty: Vec<String>,
    /// Records that are not there between two that are.
    missing: Vec<String>,
}

impl Damage {
    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.torn += other.torn;
        self.spoilt.extend(other.spoilt);
        self.empty.extend(other.empty);
        self.missing.extend(other.missing);
        self
    }

    /// Whether records are lost that were on the disk.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        !self.spoilt.is_empty() || !self.missing.is_empty()
    }

    /// For people; none if all is well.
    #[must_use]
    pub fn told(&self) -> Option<String> {
        /// More would make the line unreadable.
        const SHOWN: usize = 3;
        let torn = (self.torn > 0)
            .then(|| format!("{} bytes that were no whole record were cut off its end", self.torn));
        let list = |what: &str, all: &[String]| {
            let more = all.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown = &all[..all.len().min(SHOWN)];
            (!all.is_empty()).then(|| format!("{what} {}{more}", shown.join(", ")))
        };
        let all = [
            list("records are missing:", &self.missing),
            list("damaged:", &self.spoilt),
            list("nothing is in", &self.empty),
            torn,
        ];
        let all: Vec<_> = all.into_iter().flatten().collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl Lane {
    /// Looks what there is. Files that were cut short are mended.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn open(folder: &Path, chain: Chain, max_bytes: u64) -> io::Result<Found> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if first_link(&path, chain).is_some() {
                paths.push(path);
            }
        }
        // Numbers have the same width.
        paths.sort();
        let mut segments: Vec<Segment> = Vec::new();
        let (mut end, mut damage) = ((Head::default(), 0), Damage::default());
        let count = paths.len();
        for (index, path) in paths.into_iter().enumerate() {
            let looked = look(&path, index + 1 == count, &damaged(folder, chain))?;
            damage.torn += looked.torn;
            if looked.segment.is_none() && looked.torn == 0 && index + 1 == count {
                damage.empty.push(path.display().to_string());
            } else if looked.is_spoilt {
                damage.spoilt.push(path.display().to_string());
            }
            match looked.segment {
                Some((segment, head)) => {
                    let expected = end.0.link + 1;
                    if !segments.is_empty() && segment.first_link > expected {
                        let (word, last) = (chain.word(), segment.first_link - 1);
                        damage.missing.push(format!("{word} {expected} to {last}"));
                    }
                    end = (head, segment.last_record);
                    segments.push(segment);
                }
                None => {
                    // Nothing whole is in it. It may stay if the disk cannot be written.
                    let _ = if looked.is_spoilt {
                        fs::rename(&path, damaged(folder, chain))
                    } else {
                        fs::remove_file(&path)
                    };
                }
            }
        }
        let lane = Self {
            folder: folder.to_owned(),
            chain,
            synced: segments.last().cloned(),
            segments,
            open: None,
            max_bytes,
            dirty: false,
            made: false,
        };
        Ok(Found { lane, end, damage })
    }

    /// Appends lines: all of them or none. They are on the disk after [`Self::sync`].
    ///
    /// # Errors
    /// If they could not be written.
    pub fn append(&mut self, lines: &[NewLine<'_>]) -> io::Result<()> {
        let (Some(first), Some(last)) = (lines.first(), lines.last()) else { return Ok(()) };
        let mut text = Vec::with_capacity(lines.iter().map(|line| line.text.len() + 1).sum());
        for line in lines {
            text.extend_from_slice(line.text.as_bytes());
            text.push(b'\n');
        }
        let is_full = self.segments.last().is_none_or(|newest| newest.bytes >= self.max_bytes);
        if is_full {
            self.sync()?;
            let name = format!("{}-{:020}.jsonl", self.chain.word(), first.place.link);
            let path = self.folder.join(name);
            let mut file = append_to(&path, true)?;
            if let Err(error) = file.write_all(&text) {
                let _ = fs::remove_file(&path);
                return Err(error);
            }
            self.made = true;
            self.open = Some(file);
            self.segments.push(Segment {
                path,
                first_link: first.place.link,
                first_record: first.place.record,
                last_record: last.place.record,
                bytes: text.len() as u64,
            });
        } else if let Some(newest) = self.segments.last_mut() {
            let file = match &mut self.open {
                Some(file) => file,
                closed => closed.insert(append_to(&newest.path, false)?),
            };
            // A full disk may have taken part of a line before, and one that was read-only then has kept it.
            if file.metadata()?.len() != newest.bytes {
                file.set_len(newest.bytes)?;
            }
            if let Err(error) = file.write_all(&text) {
                let _ = file.set_len(newest.bytes);
                return Err(error);
            }
            newest.bytes += text.len() as u64;
            newest.last_record = last.place.record;
        }
        self.dirty = true;
        Ok(())
    }

    /// Waits until the disk has everything.
    ///
    /// # Errors
    /// If it does not take it.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.dirty
            && let Some(file) = &self.open
        {
            file.sync_data()?;
        }
        self.dirty = false;
        if self.made {
            File::open(&self.folder)?.sync_all()?;
            self.made = false;
        }
        self.synced = self.segments.last().cloned();
        Ok(())
    }

    /// The latest record that the disk has promised to keep; 0 if there is none.
    #[must_use]
    pub fn synced(&self) -> u64 {
        self.synced.as_ref().map_or(0, |newest| newest.last_record)
    }

    /// Goes back to what the disk has promised to keep; everything else is to be appended again. A disk that
    /// has failed to write says so once, and does not try again what it has failed at.
    pub fn roll_back(&mut self) {
        let kept = self.synced.as_ref().map_or(0, |newest| newest.first_link);
        while let Some(made) = self.segments.pop_if(|newest| newest.first_link > kept) {
            // One that stays is emptied when it is made again.
            let _ = fs::remove_file(&made.path);
        }
        if let (Some(newest), Some(synced)) = (self.segments.last_mut(), &self.synced) {
            // What is behind that is cut off before it is written to.
            newest.clone_from(synced);
        }
        (self.open, self.dirty, self.made) = (None, false, false);
    }

    /// Whether the disk may not have all of it.
    #[must_use]
    pub const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Its files.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// The oldest file, unless it is the newest too: the chain's end is known from that.
    #[must_use]
    pub fn oldest(&self) -> Option<&Segment> {
        self.segments.first().filter(|_| self.segments.len() > 1)
    }

    /// Removes the oldest file.
    ///
    /// # Errors
    /// If it stays.
    pub fn remove_oldest(&mut self) -> io::Result<()> {
        if self.segments.len() > 1 {
            match fs::remove_file(&self.segments[0].path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => drop(self.segments.remove(0)),
            }
        }
        Ok(())
    }
}

fn append_to(path: &Path, new: bool) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(new).mode(0o600).open(path)?;
    if new {
        // What is there has not come to its first whole line, and could not be removed.
        file.set_len(0)?;
    }
    Ok(file)
}

/// The number in a file's name, if it is one of this chain.
fn first_link(path: &Path, chain: Chain) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let number = name.strip_prefix(chain.word())?.strip_prefix('-')?.strip_suffix(".jsonl")?;
    (number.len() == 20).then(|| number.parse().ok()).flatten()
}

/// Where the latest damaged file of a chain is kept.
fn damaged(folder: &Path, chain: Chain) -> PathBuf {
    folder.join(format!("{}.damaged", chain.word()))
}
