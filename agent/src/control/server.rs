//! The agent's side of the socket.

use std::{
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
    control::{MAX_REQUEST, Refusal, Request},
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
}

/// What is found out in another thread before a request is done.
pub enum FoundOut {
    /// What runs now.
    InUse(Vec<InUse>),
    /// What the policy file says now.
    Policy(Result<Box<Candidate>, Refusal>),
}

/// What the agent answers.
pub enum Answer {
    /// One JSON object.
    Json(String),
    /// Not done.
    Refused(Refusal),
    /// Lines of text.
    Lines {
        /// Those that exist.
        past: Vec<Line>,
        /// Those to come, if they are wanted.
        to_come: Option<broadcast::Receiver<Line>>,
        /// Whether in JSON.
        json: bool,
    },
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
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens at `path`, which only root can open. Requests go to `commands`.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen(path: &Path, commands: mpsc::Sender<Command>) -> io::Result<Listening> {
    // The lock is ours, so a socket that exists is a dead agent's.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The folder is open to root only, so there is no moment in which others could connect.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    tokio::spawn(accept(listener, commands));
    Ok(Listening { path: path.to_owned() })
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
    let (answer, reply) = oneshot::channel();
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    commands.send(Command { request, answer, found_out: None }).await.map_err(|_| gone(()))?;
    match reply.await.map_err(|_| gone(()))? {
        Answer::Json(text) => write_line(&mut write, &text).await,
        Answer::Refused(refusal) => refuse(&mut write, refusal.code, &refusal.message).await,
        Answer::Lines { past, to_come, json } => {
            let text = |line: &Line| Arc::clone(if json { &line.json } else { &line.human });
            for line in &past {
                write_line(&mut write, &text(line)).await?;
            }
            let Some(mut to_come) = to_come else { return Ok(()) };
            loop {
                match to_come.recv().await {
                    Ok(line) => write_line(&mut write, &text(&line)).await?,
                    Err(RecvError::Lagged(count)) => {
                        let told = if json {
                            format!(
                                "{{\"type\":\"lost\",\"stage\":\"follower\",\"count\":{count}}}"
                            )
                        } else {
                            format!("lost {count} events: this follower was too slow")
                        };
                        write_line(&mut write, &told).await?;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                }
            }
        }
    }
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
