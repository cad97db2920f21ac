//! Syslog messages (RFC 5424) with structured data, and syslog servers on the device itself.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    os::unix::net::{UnixDatagram, UnixStream},
    path::PathBuf,
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Ready, Receiver,
    fields::{fields, kind, severity},
};

/// `authpriv`: what not everybody may read.
const FACILITY: u8 = 10;

/// The number after the name is the one that RFC 5612 keeps for examples: nobody has registered one for us.
const STRUCTURED_DATA: &str = "portcullis@32473";

/// How long a server that is busy is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// A record as a message, without framing.
#[must_use]
pub fn message(record: &Ready, host: &str) -> String {
    let Ready { event, body, .. } = record;
    let priority = FACILITY * 8 + severity(event) as u8;
    // The standard takes no more than microseconds.
    let time = event["time"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let time = time.map_or_else(|| "-".into(), |time| format!("{time:.6}"));
    let mut kind = kind(event);
    kind.retain(|character| character.is_ascii_graphic());
    kind.truncate(32);
    let host: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
    let host = if host.is_empty() { "-" } else { &host };
    let mut message =
        format!("<{priority}>1 {time} {host} portcullis {} {kind}", std::process::id());
    message.push_str(" [");
    message.push_str(STRUCTURED_DATA);
    for (name, value) in fields(event) {
        // Writing to a string does not fail.
        let _ = write!(message, " {name}=\"");
        for character in value.chars() {
            match character {
                '"' | '\\' | ']' => {
                    message.push('\\');
                    message.push(character);
                }
                // A server may end a message there.
                control if control.is_control() => {
                    let _ = write!(message, "\\\\u{{{:x}}}", u32::from(control));
                }
                other => message.push(other),
            }
        }
        message.push('"');
    }
    message.push_str("] ");
    message.push_str(body);
    message
}

enum Socket {
    Datagram(UnixDatagram),
    Stream(UnixStream),
}

/// A server on the device itself.
pub struct Syslog {
    path: PathBuf,
    host: String,
    socket: Option<Socket>,
}

impl Syslog {
    /// Nothing is opened yet.
    #[must_use]
    pub fn local(path: PathBuf) -> Self {
        Self { path, host: super::host(), socket: None }
    }

    fn open(&self) -> io::Result<Socket> {
        let datagram = UnixDatagram::unbound()?;
        match datagram.connect(&self.path) {
            Ok(()) => {
                datagram.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Datagram(datagram))
            }
            Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
                let stream = UnixStream::connect(&self.path)?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Socket::Stream(stream))
            }
            Err(error) => Err(error),
        }
    }
}

impl Receiver for Syslog {
    fn deliver(&mut self, records: &[Ready]) -> io::Result<()> {
        let about =
            |error: io::Error| io::Error::other(format!("{}: {error}", self.path.display()));
        if self.socket.is_none() {
            self.socket = Some(self.open().map_err(about)?);
        }
        for record in records {
            let message = message(record, &self.host);
            match &mut self.socket {
                Some(Socket::Datagram(socket)) => {
                    socket.send(message.as_bytes()).map_err(about)?;
                }
                Some(Socket::Stream(socket)) => {
                    socket.write_all(format!("{message}\n").as_bytes()).map_err(about)?;
                }
                None => {}
            }
        }
        Ok(())
    }

    fn hang_up(&mut self) {
        self.socket = None;
    }
}
