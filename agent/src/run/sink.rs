//! Where records go: each sink has a thread and a bounded queue of its own, so that a slow or
//! broken one slows nothing else. What does not fit is counted.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// A record in both of its forms.
#[derive(Clone, Debug)]
pub struct Line {
    /// One JSON object without a newline.
    pub json: Arc<str>,
    /// One line for people, without a newline.
    pub human: Arc<str>,
}

/// Records that a sink holds back at most.
const QUEUE: usize = 4096;

/// How long the end waits for a sink.
const PATIENCE: Duration = Duration::from_secs(2);

/// State of a sink, for the status page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// Which it is.
    pub name: String,
    /// Records written.
    pub written: u64,
    /// Records lost: the queue was full, or writing failed.
    pub lost: u64,
    /// Whether the last attempt to write failed.
    pub failing: bool,
    /// Records that wait for it in the spool; none if it does not read from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behind: Option<u64>,
}

#[derive(Default)]
struct Shared {
    written: AtomicU64,
    lost: AtomicU64,
    failing: AtomicBool,
    reopen: AtomicBool,
}

/// A sink that runs.
pub struct Sink {
    name: String,
    queue: Option<SyncSender<Line>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Standard output: for people if it is a terminal, else JSON lines. Ends when nobody reads
    /// any more.
    #[must_use]
    pub fn stdout() -> Self {
        let human = io::stdout().is_terminal();
        Self::start("stdout".into(), move |queue, shared| {
            for line in queue {
                let text = if human { &line.human } else { &line.json };
                let mut out = io::stdout().lock();
                let written = writeln!(out, "{text}").and_then(|()| out.flush());
                shared.count(written.is_ok());
            }
        })
    }

    /// A file to which JSON lines are appended.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let mut file = AppendFile::open(path)?;
        Ok(Self::start(format!("file {}", path.display()), move |queue, shared| {
            for line in queue {
                if shared.reopen.swap(false, Ordering::Relaxed) {
                    // The old file is kept if the new one cannot be opened.
                    if let Ok(again) = AppendFile::open(&file.path) {
                        file = again;
                    }
                }
                shared.count(file.append(&line.json).is_ok());
            }
        }))
    }

    fn start(name: String, run: impl FnOnce(Receiver<Line>, &Shared) + Send + 'static) -> Self {
        let (queue, receiver) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("sink".into())
            .stack_size(128 * 1024)
            .spawn(move || run(receiver, &theirs))
            .ok();
        Self { name, queue: Some(queue), shared, thread }
    }

    /// Hands a record over without waiting.
    pub fn send(&self, line: &Line) {
        let accepted =
            self.queue.as_ref().is_some_and(|queue| queue.try_send(line.clone()).is_ok());
        if !accepted {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Asks a file to be opened anew, after somebody moved it away.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
    }

    /// How it is doing.
    #[must_use]
    pub fn status(&self) -> SinkStatus {
        SinkStatus {
            name: self.name.clone(),
            written: self.shared.written.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
            failing: self.shared.failing.load(Ordering::Relaxed),
            behind: None,
        }
    }
}

impl Drop for Sink {
    /// Lets the queue run out, but does not wait for a reader that is stuck.
    fn drop(&mut self) {
        self.queue = None;
        let Some(thread) = self.thread.take() else { return };
        let end = Instant::now() + PATIENCE;
        while !thread.is_finished() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Shared {
    fn count(&self, written: bool) {
        let number = if written { &self.written } else { &self.lost };
        number.fetch_add(1, Ordering::Relaxed);
        self.failing.store(!written, Ordering::Relaxed);
    }
}

/// A file that only ever holds whole lines.
struct AppendFile {
    path: PathBuf,
    file: File,
    /// Length up to which every line is whole, if the file is a regular one.
    whole: Option<u64>,
}

impl AppendFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            // A FIFO without a reader must be an error, not a wait.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        let whole = metadata.is_file().then_some(metadata.len());
        Ok(Self { path: path.to_owned(), file, whole })
    }

    fn append(&mut self, json: &str) -> io::Result<()> {
        let line = format!("{json}\n");
        match self.file.write_all(line.as_bytes()) {
            Ok(()) => {
                self.whole = self.whole.map(|length| length + line.len() as u64);
                Ok(())
            }
            Err(error) => {
                // A full disk may have taken part of the line.
                if let Some(length) = self.whole {
                    let _ = self.file.set_len(length);
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(text: &str) -> Line {
        Line { json: text.into(), human: text.into() }
    }

    #[test]
    fn a_file_gets_every_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.jsonl");
        let sink = Sink::file(&path).expect("opened");
        for number in 0..100 {
            sink.send(&line(&format!("{{\"n\":{number}}}")));
        }
        drop(sink);
        assert_eq!(fs::read_to_string(&path).expect("read").lines().count(), 100);
    }

    #[test]
    fn a_full_disk_is_counted_and_leaves_no_half_line() {
        // The kernel's own full disk.
        let sink = Sink::file(Path::new("/dev/full")).expect("opened");
        sink.send(&line("{}"));
        let shared = Arc::clone(&sink.shared);
        drop(sink);
        assert_eq!(shared.lost.load(Ordering::Relaxed), 1);
        assert!(shared.failing.load(Ordering::Relaxed));
    }

    #[test]
    fn a_fifo_that_nobody_reads_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("made");
        assert!(Sink::file(&path).is_err());
    }
}
