//! Reads again what runs, now and then, and compares it with the verdicts.
//!
//! A verdict stays on the inode while nobody opens the file for writing. What changes the content
//! without that, a raw write to the disk or a bug in the kernel that reaches the page cache, is not
//! seen by any hook: only by looking. One thread of the lowest priority looks, at a bounded rate,
//! and sleeps otherwise.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use portcullis_common::{Digest, Verdict};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::{
    artifact::digest,
    event::Body,
    kernel::{check::Check, filesystems, records::Records},
    run::preflight::executable_mapping,
};

/// How the pass is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes that are read in a second; 0 is off.
    pub rate: u64,
    /// Time from the end of a pass to the next.
    pub every: Duration,
}

/// What one pass saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// When it ended.
    pub ended: Timestamp,
    /// How long it took.
    pub seconds: u64,
    /// Files that are mapped as code and have a verdict, all of which were compared.
    pub files: u64,
    /// Of those, how many were also read from the disk, past the page cache.
    pub from_disk: u64,
    /// Files that are mapped as code and could not be compared: no verdict, a filesystem that is
    /// served by somebody, or an error while reading.
    pub skipped: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Files that differed.
    pub different: u64,
}

/// Where content was found to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In memory: what processes run.
    PageCache,
    /// Below it: what they will run when the memory has been needed for something else.
    Disk,
}

/// A file that is not what its verdict was made for.
#[derive(Clone, Debug)]
pub struct Difference {
    path: PathBuf,
    expected: Digest,
    found: Digest,
    place: Place,
}

/// What the thread tells the agent.
#[derive(Clone, Debug)]
pub enum Told {
    /// A file differs.
    Differs(Difference),
    /// A pass has ended.
    Ended(Pass),
}

/// The thread while it runs. Dropping it has the thread end at its next step; nobody waits for
/// that, as a disk may be slow.
pub struct Reappraiser {
    _ends_when_dropped: Sender<()>,
}

/// Starts the thread, unless it is switched off.
///
/// # Errors
/// If there is no thread to be had.
pub fn start(
    pace: Pace,
    records: Records,
    told: mpsc::Sender<Told>,
) -> io::Result<Option<Reappraiser>> {
    if pace.rate == 0 {
        return Ok(None);
    }
    let (ends, end) = channel();
    thread::Builder::new().name("reappraise".into()).stack_size(128 * 1024).spawn(move || {
        yield_to_everybody();
        // Ends with the agent, which drops its half.
        while let Err(RecvTimeoutError::Timeout) = end.recv_timeout(pace.every) {
            let mut look = Look::new(pace.rate, &end, &records, &told);
            if look.at_everything().is_err() {
                return;
            }
        }
    })?;
    Ok(Some(Reappraiser { _ends_when_dropped: ends }))
}

/// Runs only when nothing else wants the processor or the disk. Where that is refused, the rate is
/// bounded all the same.
pub(super) fn yield_to_everybody() {
    // linux/ioprio.h: of this thread, the idle class.
    const WHO_PROCESS: libc::c_int = 1;
    const CLASS_IDLE: libc::c_int = 3 << 13;
    let _ = rustix::process::setpriority_process(None, 19);
    // SAFETY: changes the priority of the calling thread and nothing else.
    unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, CLASS_IDLE) };
}

/// The agent has ended.
struct Over;

/// Bytes that are read at once: a multiple of every disk's block.
const CHUNK: usize = 128 * 1024;

/// What `O_DIRECT` wants addresses and offsets to be multiples of, on every filesystem.
const ALIGNMENT: usize = 4096;

/// Files that are remembered as seen; on a machine that runs more, some are read twice.
const MAX_SEEN: usize = 16 * 1024;

/// One pass.
struct Look<'a> {
    rate: u64,
    end: &'a Receiver<()>,
    records: &'a Records,
    told: &'a mpsc::Sender<Told>,
    seen: HashSet<(u64, u64)>,
    buffer: Vec<u8>,
    pass: Pass,
}

impl<'a> Look<'a> {
    fn new(
        rate: u64,
        end: &'a Receiver<()>,
        records: &'a Records,
        told: &'a mpsc::Sender<Told>,
    ) -> Self {
        let pass = Pass {
            ended: Timestamp::UNIX_EPOCH,
            seconds: 0,
            files: 0,
            from_disk: 0,
            skipped: 0,
            bytes: 0,
            different: 0,
        };
        let buffer = vec![0; CHUNK + ALIGNMENT];
        Self { rate, end, records, told, seen: HashSet::new(), buffer, pass }
    }

    fn at_everything(&mut self) -> Result<(), Over> {
        let start = Instant::now();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
                self.at_process(&entry.path())?;
            }
        }
        self.pass.ended = Timestamp::now();
        self.pass.seconds = start.elapsed().as_secs();
        self.tell(Told::Ended(self.pass.clone()))
    }

    /// A process may end meanwhile; what cannot be read any more does not run any more.
    fn at_process(&mut self, process: &Path) -> Result<(), Over> {
        let Ok(maps) = File::open(process.join("maps")) else { return Ok(()) };
        let mut maps = BufReader::new(maps);
        let mut line = Vec::new();
        while maps.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if let Some(mapping) = executable_mapping(line.trim_ascii_end()) {
                if self.seen.len() >= MAX_SEEN {
                    self.seen.clear();
                }
                if self.seen.insert(mapping.file) {
                    let file = process.join("map_files").join(&mapping.range);
                    self.at_file(&file, mapping.path)?;
                }
            }
            line.clear();
        }
        Ok(())
    }

    fn at_file(&mut self, file: &Path, path: PathBuf) -> Result<(), Over> {
        // Without asking the filesystem, which may be served by somebody who does not answer.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(place) = rustix::fs::open(file, flags, rustix::fs::Mode::empty()) else {
            return Ok(());
        };
        let verdict = self.verdict(&place);
        let is_local = || {
            let magic = filesystems::magic_of_file(&place)?;
            Ok::<_, io::Error>(!filesystems::UNTRUSTED.iter().any(|served| served.magic == magic))
        };
        let Some(verdict) = verdict.filter(|_| is_local().unwrap_or(false)) else {
            self.pass.skipped += 1;
            return Ok(());
        };
        let again = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
        let Ok(cached) = open(&again, libc::O_NOATIME) else {
            self.pass.skipped += 1;
            return Ok(());
        };
        let mut found = vec![(Place::PageCache, self.hash(&cached)?)];
        let is_in_memory = filesystems::is_in_memory(&place);
        if let Ok(direct) = open(&again, libc::O_NOATIME | libc::O_DIRECT)
            && !is_in_memory
        {
            found.push((Place::Disk, self.hash(&direct)?));
        }
        if found[0].1.is_none() {
            self.pass.skipped += 1;
            return Ok(());
        }
        self.pass.files += 1;
        self.pass.from_disk += u64::from(matches!(found.get(1), Some((_, Some(_)))));
        let differing: Vec<_> = found
            .into_iter()
            .filter_map(|(place, digest)| Some((place, digest?)))
            .filter(|(_, digest)| *digest != verdict.digest)
            .collect();
        // Whoever changes a file in an ordinary way has deleted the verdict with it.
        let stands = self
            .verdict(&place)
            .is_some_and(|now| now.stamp == verdict.stamp && now.digest == verdict.digest);
        if differing.is_empty() || !stands {
            return Ok(());
        }
        self.pass.different += 1;
        for (place, found) in differing {
            let path = path.clone();
            let difference = Difference { path, expected: verdict.digest, found, place };
            self.tell(Told::Differs(difference))?;
        }
        Ok(())
    }

    /// The verdict on an inode, if it was made from the content.
    fn verdict(&self, file: &impl AsRawFd) -> Option<Verdict> {
        self.records.get(file).ok().flatten().filter(|verdict| verdict.word.is_known())
    }

    /// Reads a whole file, at the rate. `None` if it cannot be read to its end.
    fn hash(&mut self, file: &File) -> Result<Option<Digest>, Over> {
        let Ok(size) = file.metadata().map(|metadata| metadata.len()) else { return Ok(None) };
        let mut hasher = Sha256::new();
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT);
        let mut offset = 0;
        loop {
            let chunk = &mut self.buffer[start..start + CHUNK];
            let length = match file.read_at(chunk, offset) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(None),
            };
            hasher.update(&chunk[..length]);
            offset += length as u64;
            self.pass.bytes += length as u64;
            // The end may not be where O_DIRECT can read from, so it is not asked for.
            if length == 0 || offset >= size {
                return Ok(Some(hasher.finalize().into()));
            }
            let rest = Duration::from_secs_f64(length as f64 / self.rate as f64);
            let Err(RecvTimeoutError::Timeout) = self.end.recv_timeout(rest) else {
                return Err(Over);
            };
        }
    }

    fn tell(&self, told: Told) -> Result<(), Over> {
        self.told.blocking_send(told).map_err(|_| Over)
    }
}

fn open(path: &Path, flags: libc::c_int) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// What the passes have found, as the agent knows it.
#[derive(Default)]
pub struct Findings {
    /// The latest pass that ended.
    pub latest: Option<Pass>,
    /// The first file that the present pass found to differ.
    first: Option<String>,
}

impl Findings {
    /// Takes in what the thread tells: an event to record, or the state of health after a pass.
    pub fn take(&mut self, told: Told) -> (Option<Body>, Option<Check>) {
        match told {
            Told::Differs(difference) => {
                let Difference { path, expected, found, place } = difference;
                let path = path.to_string_lossy().into_owned();
                let place = match place {
                    Place::PageCache => "page-cache",
                    Place::Disk => "disk",
                };
                self.first.get_or_insert_with(|| format!("{path} ({place})"));
                let body = Body::Reappraisal {
                    path,
                    expected: digest::format(&expected),
                    found: digest::format(&found),
                    place,
                };
                // At once: the pass may go on for minutes.
                (Some(body), Some(self.check()))
            }
            Told::Ended(pass) => {
                self.latest = Some(pass);
                let check = self.check();
                self.first = None;
                (None, Some(check))
            }
        }
    }

    /// The check as it stands.
    #[must_use]
    pub fn check(&self) -> Check {
        let (id, title) = ("content", "what runs is what was judged");
        match (&self.first, &self.latest) {
            (Some(first), _) => Check::failed(
                id,
                title,
                format!("{first} differs from its verdict, and nobody opened it for writing"),
                "restart the device; if it still differs, compare the file with its source, \
                 install it anew, and find out who can write to the disk itself",
            ),
            (None, None) => Check::ok(id, title, "no pass has ended yet"),
            (None, Some(pass)) => Check::ok(
                id,
                title,
                format!("{} files read again, none differs ({:.0})", pass.files, pass.ended),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass() -> Pass {
        Pass {
            ended: Timestamp::UNIX_EPOCH,
            seconds: 1,
            files: 2,
            from_disk: 1,
            skipped: 0,
            bytes: 10,
            different: 0,
        }
    }

    #[test]
    fn a_difference_is_told_at_once_and_stays_until_a_pass_without_one() {
        let mut findings = Findings::default();
        assert!(findings.check().mend.is_none());
        let difference = Difference {
            path: "/bin/a".into(),
            expected: [1; 32],
            found: [2; 32],
            place: Place::Disk,
        };
        let (body, check) = findings.take(Told::Differs(difference));
        assert!(matches!(body, Some(Body::Reappraisal { place: "disk", .. })));
        assert!(check.is_some_and(|check| check.found.starts_with("/bin/a (disk) differs")));
        let (body, check) = findings.take(Told::Ended(Pass { different: 1, ..pass() }));
        assert!(body.is_none() && check.is_some_and(|check| check.mend.is_some()));
        let (_, check) = findings.take(Told::Ended(pass()));
        assert!(check.is_some_and(|check| check.mend.is_none()));
    }
}
