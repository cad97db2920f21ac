//! The agent's side of the socket.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{
        Semaphore,
        broadcast::{self, error::RecvError},
        mpsc, oneshot,
    },
    time::timeout,
};

use crate::{
    catalog::shelf::{Taken, TakenAway},
    control::{MAX_REQUEST, Refusal, Request, caller::Caller},
    durable,
    policy::trust::Why,
    run::{agent::reload::Candidate, preflight::InUse, sink::Line},
};

/// Connections that are served at the same time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;

/// How long a client may take to send its request, or to take a line.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request on its way to the agent's loop.
pub struct Command {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
    /// What had to be found out first, which takes long.
    pub found_out: Option<FoundOut>,
    /// Who asks; none if it is the agent itself.
    pub by: Option<Caller>,
}

/// Where the answer to a request goes, and who gets it.
pub struct Asker {
    /// Where the answer goes.
    pub answer: oneshot::Sender<Answer>,
    /// Who asks; none if it is the agent itself.
    pub by: Option<Caller>,
}

impl Asker {
    /// The agent itself, which needs no answer.
    pub fn nobody() -> Self {
        Self { answer: oneshot::channel().0, by: None }
    }

    /// Answers; the asker may have gone.
    pub fn tell(self, answer: Answer) {
        let _ = self.answer.send(answer);
    }

    /// The request again, with what had to be found out.
    pub fn again(self, request: Request, found_out: FoundOut) -> Command {
        let Self { answer, by } = self;
        Command { request, answer, found_out: Some(found_out), by }
    }
}

/// What is found out in another thread before a request is done.
pub enum FoundOut {
    /// What runs now.
    InUse(Vec<InUse>),
    /// What the policy file says now.
    Policy(Result<Box<Candidate>, Refusal>),
    /// What became of a catalog that a fleet's servers have brought.
    Taken(Result<Box<Taken>, Why>),
    /// Whether a token can be read.
    Token(Result<(), Why>),
    /// What became of one that they take away: none if there is none.
    TakenAway(Result<Option<TakenAway>, Why>),
}

/// What the agent answers.
pub enum Answer {
    /// One JSON object.
    Json(String),
    /// Not done.
    Refused(Refusal),
    /// Lines of text.
    Lines(Lines),
}

/// Records as lines of text.
pub struct Lines {
    /// Those that exist.
    past: VecDeque<Line>,
    /// Those to come, if they are wanted.
    to_come: Option<broadcast::Receiver<Line>>,
    /// Whether in JSON.
    json: bool,
}

impl Lines {
    /// Those that exist, and those to come, if they are wanted.
    pub fn new(past: Vec<Line>, to_come: Option<broadcast::Receiver<Line>>, json: bool) -> Self {
        Self { past: past.into(), to_come, json }
    }

    /// Whether they are in JSON.
    pub const fn are_json(&self) -> bool {
        self.json
    }

    /// The next one; waits for it if more are wanted.
    pub async fn next(&mut self) -> Option<Arc<str>> {
        let json = self.json;
        let text = |line: Line| if json { line.json } else { line.human };
        if let Some(line) = self.past.pop_front() {
            return Some(text(line));
        }
        let to_come = self.to_come.as_mut()?;
        match to_come.recv().await {
            Ok(line) => Some(text(line)),
            Err(RecvError::Lagged(count)) => Some(if json {
                format!("{{\"type\":\"lost\",\"stage\":\"follower\",\"count\":{count}}}").into()
            } else {
                format!("lost {count} events: this follower was too slow").into()
            }),
            Err(RecvError::Closed) => None,
        }
    }
}

/// An answer with `value`.
pub fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_string(value) {
        Ok(text) => Answer::Json(text),
        Err(error) => Answer::Refused(Refusal { code: 3, message: error.to_string() }),
    }
}

/// Removes the socket when the agent ends.
pub struct Listening {
    path: PathBuf,
    stays: bool,
}

impl Listening {
    /// Leaves the socket where it is, for gates that stay guard it: nobody can put another one in its
    /// place before the next agent does.
    pub fn stays(&mut self) {
        self.stays = true;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes a socket with these permissions at `path`. What was there before, which is a dead agent's as the
/// lock is ours, is replaced at once, so that nobody else can be the first to come to a free place.
///
/// # Errors
/// If it cannot be made; then what was there is still there.
pub fn bind(path: &Path, permissions: u32) -> io::Result<std::os::unix::net::UnixListener> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let new = tempfile::Builder::new()
        .prefix(durable::TEMPORARY)
        .make_in(folder, |path| std::os::unix::net::UnixListener::bind(path))?;
    fs::set_permissions(new.path(), fs::Permissions::from_mode(permissions))?;
    new.as_file().set_nonblocking(true)?;
    Ok(new.persist(path)?)
}

/// Listens at `path`, which only root can open. Requests go to `commands`.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen(path: &Path, commands: mpsc::Sender<Command>) -> io::Result<Listening> {
    let listener = UnixListener::from_std(bind(path, 0o600)?)?;
    tokio::spawn(accept(listener, commands));
    Ok(Listening { path: path.to_owned(), stays: false })
}

async fn accept(listener: UnixListener, commands: mpsc::Sender<Command>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let commands = commands.clone();
                tokio::spawn(async move {
                    // A client that is gone or too slow is its own fault.
                    let _ = serve(stream, commands).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; trying at once would spin.
                tracing::warn!("a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let peer = stream.peer_cred()?;
    let (read, mut write) = stream.into_split();
    if peer.uid() != 0 {
        return refuse(&mut write, 3, "only root may ask the agent").await;
    }
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(MAX_REQUEST));
    match timeout(PATIENCE, reader.read_line(&mut line)).await {
        Ok(Ok(_)) if line.ends_with('\n') => {}
        Ok(Ok(_)) => return refuse(&mut write, 2, "a request is one line of at most 64 KiB").await,
        Ok(Err(error)) => return Err(error),
        Err(_) => return refuse(&mut write, 2, "no request came within 10 seconds").await,
    }
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return refuse(&mut write, 2, &format!("not a request: {error}")).await,
    };
    let pid = peer.pid().filter(|pid| *pid > 0);
    let by = Caller::Local { uid: peer.uid(), pid };
    match ask(&commands, request, by).await? {
        Answer::Json(text) => write_line(&mut write, &text).await,
        Answer::Refused(refusal) => refuse(&mut write, refusal.code, &refusal.message).await,
        Answer::Lines(mut lines) => {
            while let Some(line) = lines.next().await {
                write_line(&mut write, &line).await?;
            }
            Ok(())
        }
    }
}

/// Has the agent's loop do a request.
///
/// # Errors
/// If the agent is ending.
pub async fn ask(
    commands: &mpsc::Sender<Command>,
    request: Request,
    by: Caller,
) -> io::Result<Answer> {
    let (answer, reply) = oneshot::channel();
    let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
    let command = Command { request, answer, found_out: None, by: Some(by) };
    commands.send(command).await.map_err(|_| gone())?;
    reply.await.map_err(|_| gone())
}

async fn refuse(write: &mut OwnedWriteHalf, code: u8, message: &str) -> io::Result<()> {
    let refusal = Refusal { code, message: message.to_owned() };
    let text = serde_json::to_string(&serde_json::json!({ "refused": refusal }))?;
    write_line(write, &text).await
}

async fn write_line(write: &mut OwnedWriteHalf, text: &str) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(text.len() + 1);
    buffer.put_slice(text.as_bytes());
    buffer.put_u8(b'\n');
    timeout(PATIENCE, write.write_all(&buffer)).await?
}
