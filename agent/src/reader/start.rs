//! Starts a reading process, gives it what it asks for, and finds out how it ended.

use std::{
    fs,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::{
            net::UnixStream,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Once,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    VERB,
    give::{Gift, Give},
    process::MISTAKES,
    words::{Given, Task, Word, hear, say},
};
use crate::policy::trust::Why;

/// How long it may do nothing at all: neither ask nor use the processor. It waits for nothing but the agent.
const SILENCE: Duration = Duration::from_secs(20);

/// How long it may take in all. Its processor time is bounded as well.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// How often is looked whether it does anything.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes of what it says while it dies.
const LAST_WORDS: u64 = 400;

/// Bytes of a message that is shown.
const MAX_MESSAGE: usize = 32 << 10;

/// What reading alone can find wrong. Whatever else it says is the first of these.
const REASONS: [&str; 6] =
    ["malformed", "unreadable", "truncated", "part-differs", "no-catalog", MISTAKES];

/// The reason of what no process could be started for.
pub const NO_READER: &str = "no-reader";

/// Why nobody knows whether it can be read.
#[derive(Debug, Error)]
pub enum Trouble {
    /// There is no process to read it.
    #[error("the process that reads it first cannot be started: {0}")]
    Start(io::Error),
    /// It has ended before it had read it.
    #[error("the process that reads it first {}{}", ending(*status), last_words(said))]
    Ended {
        /// How.
        status: ExitStatus,
        /// What it said on standard error.
        said: String,
    },
    /// It did nothing any more.
    #[error("the process that reads it first did nothing for {} seconds", .0.as_secs())]
    Silent(Duration),
    /// It did not come to an end.
    #[error("the process that reads it first was not done after {} seconds", .0.as_secs())]
    Long(Duration),
    /// Nobody waits for it any more.
    #[error("the agent ends, and the process that reads it first with it")]
    Ending,
    /// What it said is no answer.
    #[error("the process that reads it first talks nonsense: {0}")]
    Nonsense(String),
}

impl Trouble {
    /// The stable word for it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Start(_) => NO_READER,
            _ => "reader-failed",
        }
    }
}

fn ending(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(libc::SIGABRT), _) => "has given up (SIGABRT)".into(),
        (Some(libc::SIGSEGV), _) => "used memory that it has not (SIGSEGV)".into(),
        (Some(libc::SIGSYS), _) => "asked the kernel for what it may not have (SIGSYS)".into(),
        (Some(libc::SIGXCPU), _) => "used the processor for too long (SIGXCPU)".into(),
        (Some(libc::SIGKILL), _) => {
            "was killed: by somebody, or for want of memory (SIGKILL)".into()
        }
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, Some(code)) => format!("ended with code {code}"),
        (None, None) => "ended".into(),
    }
}

fn last_words(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

/// How reading processes are started.
#[derive(Clone, Debug)]
pub struct Start {
    /// What is started.
    pub program: PathBuf,
    /// With these arguments.
    pub arguments: Vec<String>,
    /// How long they may do nothing.
    pub silence: Duration,
    /// How long they may take.
    pub longest: Duration,
    /// Whether the agent ends, so that all of them do.
    pub ending: &'static AtomicBool,
}

/// Whether this agent ends.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Ends all processes that read, and those that are started from now on, at the next look: the agent ends, and
/// waits for whoever waits for them.
pub fn end_all() {
    ENDING.store(true, Ordering::Relaxed);
}

impl Default for Start {
    fn default() -> Self {
        Self {
            // What this process runs, whatever lies in its place by now.
            program: "/proc/self/exe".into(),
            arguments: vec![VERB.into()],
            silence: SILENCE,
            longest: LONGEST,
            ending: &ENDING,
        }
    }
}

impl Start {
    /// Has a process read something. Returns what is wrong with it, if it was read to the end.
    ///
    /// # Errors
    /// If it was not.
    pub fn read(&self, task: &Task, give: &mut dyn Give) -> Result<Result<(), Why>, Trouble> {
        let (socket, its) = UnixStream::pair().map_err(Trouble::Start)?;
        socket.set_nonblocking(true).map_err(Trouble::Start)?;
        let child = Command::new(&self.program)
            .arg0("portcullis")
            .args(&self.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Trouble::Start)?;
        let now = Instant::now();
        let mut running =
            Running { start: self, socket, child, began: now, active: now, ticks: 0, late: None };
        let told = running.talk(task, give);
        running.end(told)
    }
}

/// A process that reads.
struct Running<'a> {
    start: &'a Start,
    socket: UnixStream,
    child: Child,
    began: Instant,
    /// When it did something last.
    active: Instant,
    /// Its processor time then.
    ticks: u64,
    /// Why nobody waits for it any more.
    late: Option<Trouble>,
}

impl Running<'_> {
    fn talk(&mut self, task: &Task, give: &mut dyn Give) -> io::Result<Result<(), Why>> {
        match hear(self)? {
            // Nothing is given before.
            Word::Alone { how } => tell_once(&how),
            word => return Err(io::Error::other(format!("{word:?} comes first"))),
        }
        say(self, task)?;
        loop {
            let gift = match hear(self)? {
                Word::Give { name } => give.give(&name),
                Word::Block { number } => give.block(number),
                Word::Read => return Ok(Ok(())),
                Word::Refused { reason, message } => {
                    let known = REASONS.into_iter().find(|known| *known == reason);
                    return Ok(Err((known.unwrap_or(REASONS[0]), shown(&message))));
                }
                word @ Word::Alone { .. } => {
                    return Err(io::Error::other(format!("{word:?} comes twice")));
                }
            };
            match gift {
                Gift::Bytes(bytes) => {
                    say(self, &Given::Bytes(bytes.len() as u64))?;
                    self.write_all(&bytes)?;
                }
                Gift::Nothing => say(self, &Given::Nothing)?,
                Gift::Cannot(message, help) => say(self, &Given::Cannot(message, help))?,
            }
        }
    }

    /// Waits for its end, which nobody can put off.
    fn end(mut self, told: io::Result<Result<(), Why>>) -> Result<Result<(), Why>, Trouble> {
        // Its socket closes when it ends, and before it says nothing more.
        let is_closed = |error: &io::Error| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        };
        let is_gone = match &told {
            Ok(_) => self.read(&mut [0]).map_or_else(|error| is_closed(&error), |read| read == 0),
            Err(error) => is_closed(error),
        };
        let status = if is_gone { self.reaped() } else { None };
        if status.is_none() {
            let _ = self.child.kill();
            self.child.wait().map_err(Trouble::Start)?;
        }
        if let Some(late) = self.late.take() {
            return Err(late);
        }
        match (told, status) {
            (Ok(told), Some(status)) if status.success() => Ok(told),
            (_, Some(status)) if !status.success() => {
                Err(Trouble::Ended { status, said: self.said() })
            }
            (Err(error), _) => Err(Trouble::Nonsense(shown(&error.to_string()))),
            (Ok(_), _) => Err(Trouble::Nonsense("it does not end".into())),
        }
    }

    /// How it ended, once its socket is closed; none if it does not.
    fn reaped(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + self.start.silence;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(status) => return status,
                Err(_) => return None,
            }
        }
    }

    /// What it said while it died.
    fn said(&mut self) -> String {
        let mut said = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            // It is dead, and nobody else has the other end.
            let _ = stderr.take(LAST_WORDS).read_to_end(&mut said);
        }
        let said = String::from_utf8_lossy(&said);
        shown(said.trim()).replace('\n', " ")
    }

    /// Waits until something can be read or written.
    fn wait(&mut self, what: rustix::event::PollFlags) -> io::Result<()> {
        use rustix::event::{PollFd, Timespec, poll};
        loop {
            let mut ready = [PollFd::new(&self.socket, what)];
            let look = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
            match poll(&mut ready, Some(&look)) {
                Ok(0) => self.look()?,
                Err(rustix::io::Errno::INTR) => {}
                done => {
                    done?;
                    self.active = Instant::now();
                    return self.check_longest();
                }
            }
        }
    }

    /// Whether it still does something.
    fn look(&mut self) -> io::Result<()> {
        if self.start.ending.load(Ordering::Relaxed) {
            self.late = Some(Trouble::Ending);
            return Err(io::ErrorKind::TimedOut.into());
        }
        let ticks = ticks_of(self.child.id()).unwrap_or(self.ticks);
        if ticks != self.ticks {
            (self.ticks, self.active) = (ticks, Instant::now());
        }
        if self.active.elapsed() > self.start.silence {
            self.late = Some(Trouble::Silent(self.start.silence));
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.check_longest()
    }

    fn check_longest(&mut self) -> io::Result<()> {
        if self.began.elapsed() <= self.start.longest {
            return Ok(());
        }
        self.late = Some(Trouble::Long(self.start.longest));
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Read for Running<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(rustix::event::PollFlags::IN)?;
                }
                read => return read,
            }
        }
    }
}

impl Write for Running<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.socket).write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(rustix::event::PollFlags::OUT)?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Processor time of a process, in ticks of the clock: the 14th and the 15th field (proc_pid_stat(5)).
fn ticks_of(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, which is the second field, may have anything in it.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// What it says may be anybody's: no control characters, and not too much.
fn shown(message: &str) -> String {
    let plain = |one: char| if one.is_control() && one != '\n' { '\u{fffd}' } else { one };
    message.chars().take(MAX_MESSAGE).map(plain).collect()
}

/// What was taken from reading processes is the same for all.
fn tell_once(how: &str) {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| tracing::info!("policies are read first by a process {}", shown(how)));
}

#[cfg(test)]
mod tests;
