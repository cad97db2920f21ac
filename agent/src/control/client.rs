//! The commands' side of the socket.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
};

use serde::Deserialize;
use thiserror::Error;

use crate::{
    control::{Refusal, Request, SOCKET},
    run::lock,
};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No agent listens.
    #[error("no agent runs here; start one with `portcullis run --policy FILE`")]
    NoAgent,
    /// One has the lock, and does not listen.
    #[error("the agent (pid {0}) is starting or ending; ask again in a moment")]
    Changing(u32),
    /// The socket is closed to us.
    #[error("{SOCKET}: {0}; ask as root")]
    NotPermitted(io::Error),
    /// The agent ended meanwhile, or talks in another way.
    #[error("the agent did not answer: {0}")]
    Broken(String),
    /// The agent said no.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl ClientError {
    /// The exit code that a command should have.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::NoAgent | Self::Changing(_) | Self::NotPermitted(_) | Self::Broken(_) => 3,
        }
    }
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Asks, and returns the answer's lines.
///
/// # Errors
/// If there is no agent, or it cannot be asked.
pub fn ask(request: &Request) -> Result<impl BufRead + use<>, ClientError> {
    let mut stream = UnixStream::connect(SOCKET).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            lock::holder(Path::new(lock::RUNTIME))
                .map_or(ClientError::NoAgent, ClientError::Changing)
        }
        io::ErrorKind::PermissionDenied => ClientError::NotPermitted(error),
        _ => ClientError::Broken(error.to_string()),
    })?;
    let mut text =
        serde_json::to_vec(request).map_err(|error| ClientError::Broken(error.to_string()))?;
    text.push(b'\n');
    stream.write_all(&text)?;
    Ok(BufReader::new(stream))
}

#[derive(Deserialize)]
struct Refused {
    refused: Refusal,
}

/// Asks for one answer and returns its text.
///
/// # Errors
/// As for [`ask`], and if the agent says no.
pub fn ask_text(request: &Request) -> Result<String, ClientError> {
    let mut line = String::new();
    ask(request)?.read_line(&mut line)?;
    if line.is_empty() {
        return Err(ClientError::Broken("it closed the connection".into()));
    }
    check_refusal(&line)?;
    Ok(line)
}

/// `Err` if a line is the agent's no.
///
/// # Errors
/// With what the agent said.
pub fn check_refusal(line: &str) -> Result<(), ClientError> {
    match serde_json::from_str::<Refused>(line) {
        Ok(Refused { refused }) => Err(ClientError::Refused(refused)),
        Err(_) => Ok(()),
    }
}

/// Asks for one answer and reads it.
///
/// # Errors
/// As for [`ask_text`].
pub fn ask_json<T: for<'de> Deserialize<'de>>(request: &Request) -> Result<T, ClientError> {
    serde_json::from_str(&ask_text(request)?)
        .map_err(|error| ClientError::Broken(error.to_string()))
}
