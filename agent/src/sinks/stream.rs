//! Syslog servers elsewhere: TCP (RFC 6587, octet counting) and TLS (RFC 5425).
//!
//! Syslog has no acknowledgement. What a server's kernel has acknowledged, on a connection that has
//! stood for a second since, counts as arrived; everything else is sent again when the connection is new.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConnection, pki_types::ServerName};

use super::{Ready, Receiver, config::resolve, syslog::message};
use crate::api::tls;

/// How long a server is waited for: to answer, and to take more.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a connection must have stood after a record was acknowledged.
const SETTLED: Duration = Duration::from_secs(1);

/// How a server is known, and how it knows the device.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority that has signed the server's certificate, in PEM.
    pub ca: PathBuf,
    /// The device's own certificate and key in PEM, if the server asks for one.
    pub own: Option<(PathBuf, PathBuf)>,
    /// The server's name in its certificate.
    pub server_name: String,
}

/// A socket that knows how many bytes were given to it.
struct Counted {
    socket: TcpStream,
    written: u64,
}

impl Read for Counted {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.read(bytes)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.socket.write(bytes)?;
        self.written += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

struct Connection {
    socket: Counted,
    tls: Option<Box<ClientConnection>>,
    /// The last record of each batch, the bytes on the wire up to its end, and when that was sent.
    sent: VecDeque<(u64, u64, Instant)>,
}

/// A server.
pub struct Stream {
    address: String,
    tls: Option<Tls>,
    host: String,
    connection: Option<Connection>,
    acknowledged: u64,
}

impl Stream {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(address: String, tls: Option<Tls>) -> Self {
        Self { address, tls, host: super::host(), connection: None, acknowledged: 0 }
    }

    fn about(&self, error: impl std::fmt::Display) -> io::Error {
        io::Error::other(format!("{}: {error}", self.address))
    }

    fn connect(&self) -> io::Result<Connection> {
        let mut latest = io::Error::other("no such host");
        for address in resolve(&self.address)? {
            match self.connect_to(&address) {
                Ok(connection) => return Ok(connection),
                Err(error) => latest = error,
            }
        }
        Err(latest)
    }

    fn connect_to(&self, address: &SocketAddr) -> io::Result<Connection> {
        let socket = TcpStream::connect_timeout(address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        rustix::net::sockopt::set_socket_keepalive(&socket, true)?;
        let mut socket = Counted { socket, written: 0 };
        let tls = match &self.tls {
            None => None,
            Some(tls) => {
                let name =
                    ServerName::try_from(tls.server_name.clone()).map_err(io::Error::other)?;
                let config = tls::to_server(&tls.ca, tls.own.as_ref()).map_err(io::Error::other)?;
                let mut connection =
                    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
                while connection.is_handshaking() {
                    connection.complete_io(&mut socket)?;
                }
                Some(Box::new(connection))
            }
        };
        Ok(Connection { socket, tls, sent: VecDeque::new() })
    }
}

impl Connection {
    fn send(&mut self, record: u64, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.socket.write_all(bytes)?,
            Some(tls) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    // It takes what its buffer holds.
                    let taken = tls.writer().write(rest)?;
                    rest = &rest[taken..];
                    while tls.wants_write() {
                        tls.write_tls(&mut self.socket)?;
                    }
                }
            }
        }
        self.sent.push_back((record, self.socket.written, Instant::now()));
        Ok(())
    }

    /// Fails if the other side has ended the connection. What it says is not of interest.
    fn is_alive(&mut self) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::ConnectionAborted, "the server hung up");
        self.socket.socket.set_nonblocking(true)?;
        let looked = loop {
            let read = match &mut self.tls {
                None => self.socket.read(&mut [0; 256]),
                Some(tls) => tls.read_tls(&mut self.socket).and_then(|read| {
                    let state = tls.process_new_packets().map_err(io::Error::other)?;
                    if state.peer_has_closed() { Ok(0) } else { Ok(read) }
                }),
            };
            match read {
                Ok(0) => break Err(ended()),
                Ok(_) => {
                    if let Some(tls) = &mut self.tls {
                        // Otherwise what a server says would stay in memory.
                        let _ = tls.reader().read(&mut [0; 4096]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.socket.socket.set_nonblocking(false)?;
        looked
    }

    /// Bytes that the other side's kernel has acknowledged.
    fn arrived(&self) -> io::Result<u64> {
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int to where the pointer leads, which lives here.
        let done =
            unsafe { libc::ioctl(self.socket.socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(self.socket.written.saturating_sub(queued.unsigned_abs().into()))
    }
}

impl Receiver for Stream {
    fn deliver(&mut self, records: &[Ready]) -> io::Result<()> {
        if self.connection.is_none() {
            self.connection = Some(self.connect().map_err(|error| self.about(error))?);
        }
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let mut bytes = Vec::new();
        for record in records {
            let message = message(record, &self.host);
            bytes.extend_from_slice(format!("{} {message}", message.len()).as_bytes());
        }
        let last = records.last().map_or(0, |record| record.record);
        let sent = connection.is_alive().and_then(|()| connection.send(last, &bytes));
        sent.map_err(|error| self.about(error))
    }

    fn acknowledged(&mut self) -> io::Result<Option<u64>> {
        // What was on its way when a connection broke is handed over anew.
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let arrived = connection.is_alive().and_then(|()| connection.arrived());
        match arrived {
            Ok(arrived) => {
                while let Some((record, end, time)) = connection.sent.front()
                    && *end <= arrived
                    && time.elapsed() >= SETTLED
                {
                    self.acknowledged = *record;
                    connection.sent.pop_front();
                }
                if connection.sent.is_empty() { Ok(None) } else { Ok(Some(self.acknowledged)) }
            }
            Err(error) => Err(self.about(error)),
        }
    }

    fn hang_up(&mut self) {
        self.connection = None;
    }
}
