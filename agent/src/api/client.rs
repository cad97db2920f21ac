//! The operator's end: asks devices over the network.

use std::{
    error::Error as _, fmt, net::IpAddr, path::Path, str::FromStr, sync::Arc, time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{
    Method, Request as HttpRequest, Response, StatusCode,
    body::Incoming,
    client::conn::http1,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{PORT, VERSION, content::Content, tls};
use crate::control::Refusal;

/// How long a connection, and a handshake, may take.
const CONNECT: Duration = Duration::from_secs(10);

/// Bytes of an answer that is one object.
const MAX_ANSWER: usize = 8 << 20;

/// Bytes of a line of events.
const MAX_LINE: usize = 1 << 20;

/// A device as an operator writes it: `[NAME=]HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is called in answers.
    pub shown: String,
    /// The name that its certificate is for.
    name: ServerName<'static>,
    host: String,
    port: u16,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{}\" is no device; write HOST, HOST:PORT, [IPv6]:PORT, or NAME=HOST:PORT if its \
                 certificate is for NAME",
                text.escape_debug()
            )
        };
        let (name, place) = text.split_once('=').map_or((None, text), |(n, p)| (Some(n), p));
        let has_no_port = place.parse::<IpAddr>().is_ok() || place.ends_with(']');
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !has_no_port => {
                (host, port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?)
            }
            _ => (place, PORT),
        };
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let name = ServerName::try_from(name.unwrap_or(host).to_owned()).map_err(|_| wrong())?;
        ServerName::try_from(host).map_err(|_| wrong())?;
        Ok(Self { shown: text.to_owned(), name, host: host.to_owned(), port })
    }
}

/// Why a device has not done what it was asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AskError {
    /// Nobody answers there.
    #[error("not reachable: {0}")]
    Unreachable(String),
    /// It is not the device, or does not let us in.
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// It was reached, and has not answered as it should.
    #[error("no answer: {0}")]
    Broken(String),
    /// It says no.
    #[error("{}", .0.message)]
    Refused(Refusal),
}

impl AskError {
    /// The exit code: 1 if the device says no, 2 for bad input, 3 if it was not reached or does not permit it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::Unreachable(_) | Self::NotPermitted(_) | Self::Broken(_) => 3,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Ask {
    /// What holds now.
    Status,
    /// What happened.
    Events {
        /// Whether to go on with new ones.
        follow: bool,
        /// Whether as JSON, or else for people.
        json: bool,
    },
    /// Put a bundle in force.
    Push {
        /// The bundle.
        bundle: Content,
        /// Take it back unless it is confirmed within so many seconds.
        confirm_within: Option<u64>,
    },
    /// Keep a catalog, with its signatures in one file. Only of the agent on this device.
    TakeCatalog {
        /// That file.
        parcel: Content,
    },
    /// Take such a one away.
    TakeCatalogAway {
        /// Its name, which needs no quoting.
        name: String,
    },
    /// Keep what is tried.
    Confirm,
    /// Put in force what was before.
    Rollback {
        /// Why.
        because: String,
    },
}

impl Ask {
    fn request(&self, device: &Device) -> Result<HttpRequest<Content>, AskError> {
        let (method, path, kind, body) = match self {
            Self::Status => (Method::GET, "status".to_owned(), "", Content::default()),
            Self::Events { follow, json } => {
                let format = if *json { "json" } else { "text" };
                let path = format!("events?follow={follow}&format={format}");
                (Method::GET, path, "", Content::default())
            }
            Self::Push { bundle, confirm_within } => {
                let within = confirm_within.map(|seconds| format!("?confirm_within={seconds}"));
                let path = format!("push{}", within.unwrap_or_default());
                (Method::POST, path, "application/octet-stream", bundle.clone())
            }
            Self::TakeCatalog { parcel } => {
                let path = "catalog".to_owned();
                (Method::POST, path, "application/octet-stream", parcel.clone())
            }
            Self::TakeCatalogAway { name } => {
                (Method::DELETE, format!("catalog?name={name}"), "", Content::default())
            }
            Self::Confirm => (Method::POST, "confirm".into(), "", Content::default()),
            Self::Rollback { because } => {
                let body = serde_json::json!({ "because": because }).to_string();
                (Method::POST, "rollback".into(), "application/json", Bytes::from(body).into())
            }
        };
        let mut request = HttpRequest::builder()
            .method(method)
            .uri(format!("/{VERSION}/{path}"))
            .header(HOST, device.name.to_str().as_ref());
        if !kind.is_empty() {
            request = request.header(CONTENT_TYPE, kind);
        }
        request.body(body).map_err(|error| AskError::Broken(error.to_string()))
    }
}

/// Asks devices, with one certificate; or the agent on this one.
#[derive(Clone)]
pub struct Client {
    way: Way,
    patience: Duration,
}

/// How a device is reached.
#[derive(Clone)]
enum Way {
    Network(TlsConnector),
    /// At a socket, whichever device is named.
    Local(Arc<Path>),
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("patience", &self.patience).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Refused {
    refused: Refusal,
}

impl Client {
    /// Reads the certificate, its key, and the certificates that sign those of devices. An answer may take
    /// as long as `patience`.
    ///
    /// # Errors
    /// With the file and the mend.
    pub fn new(
        certificate: &Path,
        key: &Path,
        ca: &Path,
        patience: Duration,
    ) -> Result<Self, String> {
        let config = tls::client(certificate, key, ca)?;
        Ok(Self { way: Way::Network(TlsConnector::from(Arc::new(config))), patience })
    }

    /// Asks the agent on this device, at its socket for the fleet's link.
    #[must_use]
    pub fn local(socket: &Path, patience: Duration) -> Self {
        Self { way: Way::Local(socket.into()), patience }
    }

    /// Asks for one answer and returns its text.
    ///
    /// # Errors
    /// If the device is not reached, or says no.
    pub async fn ask_text(&self, device: &Device, ask: &Ask) -> Result<String, AskError> {
        let asking = async {
            let response = self.send(device, ask).await?;
            text(response).await
        };
        timeout(self.patience, asking).await.unwrap_or_else(|_| {
            let seconds = self.patience.as_secs();
            Err(AskError::Broken(format!(
                "it took longer than {seconds} s; --timeout gives it more"
            )))
        })
    }

    /// The same, and reads it.
    ///
    /// # Errors
    /// As for [`Self::ask_text`].
    pub async fn ask_json<T: for<'de> Deserialize<'de>>(
        &self,
        device: &Device,
        ask: &Ask,
    ) -> Result<T, AskError> {
        serde_json::from_str(&self.ask_text(device, ask).await?)
            .map_err(|error| AskError::Broken(error.to_string()))
    }

    /// Asks for lines, and hands each over until there are no more.
    ///
    /// # Errors
    /// As for [`Self::ask_text`].
    pub async fn lines(
        &self,
        device: &Device,
        ask: &Ask,
        mut each: impl FnMut(&str) -> Result<(), AskError>,
    ) -> Result<(), AskError> {
        let mut response = self.send(device, ask).await?;
        if response.status() != StatusCode::OK {
            return text(response).await.map(drop);
        }
        let mut waiting = Vec::new();
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.map_err(|error| because(&error))?;
            let Some(bytes) = frame.data_ref() else { continue };
            waiting.extend_from_slice(bytes);
            while let Some(end) = waiting.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = waiting.drain(..=end).collect();
                each(&String::from_utf8_lossy(&line[..end]))?;
            }
            if waiting.len() > MAX_LINE {
                return Err(AskError::Broken("a line is too long".into()));
            }
        }
        Ok(())
    }

    async fn send(&self, device: &Device, ask: &Ask) -> Result<Response<Incoming>, AskError> {
        let request = ask.request(device)?;
        let late =
            |_| AskError::Unreachable(format!("nobody answers within {} s", CONNECT.as_secs()));
        let connector = match &self.way {
            Way::Network(connector) => connector,
            Way::Local(socket) => {
                let stream = timeout(CONNECT, UnixStream::connect(socket)).await.map_err(late)?;
                let stream = stream.map_err(|error| AskError::Unreachable(error.to_string()))?;
                return exchange(stream, request).await;
            }
        };
        let connecting = TcpStream::connect((device.host.as_str(), device.port));
        let stream = timeout(CONNECT, connecting).await.map_err(late)?;
        let stream = stream.map_err(|error| AskError::Unreachable(error.to_string()))?;
        let _ = stream.set_nodelay(true);
        let greeting = connector.connect(device.name.clone(), stream);
        let stream = timeout(CONNECT, greeting).await.map_err(late)?;
        let stream = stream.map_err(|error| of_io(&error))?;
        exchange(stream, request).await
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: HttpRequest<Content>,
) -> Result<Response<Incoming>, AskError> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| because(&error))?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|error| because(&error))
}

/// What an answer says, if it is yes.
async fn text(response: Response<Incoming>) -> Result<String, AskError> {
    let status = response.status();
    let collected = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let bytes = collected.map_err(|error| AskError::Broken(error.to_string()))?.to_bytes();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match serde_json::from_str::<Refused>(&text) {
        Ok(Refused { refused }) if status == StatusCode::FORBIDDEN => {
            Err(AskError::NotPermitted(refused.message))
        }
        Ok(Refused { refused }) => Err(AskError::Refused(refused)),
        Err(_) if status == StatusCode::OK => Ok(text),
        Err(_) => Err(AskError::Broken(format!("it answers {status}; is it a portcullis agent?"))),
    }
}

/// What is behind an error of the HTTP library.
fn because(error: &hyper::Error) -> AskError {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return of_io(io);
        }
        source = inner.source();
    }
    AskError::Broken(error.to_string())
}

fn of_io(error: &std::io::Error) -> AskError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => AskError::NotPermitted(format!(
            "the device does not take this certificate ({alert:?}): has its client_ca signed it, and is \
             it in date?"
        )),
        Some(rustls::Error::InvalidCertificate(why)) => AskError::NotPermitted(format!(
            "the device's own certificate does not count: {why}; --ca names who signs those of devices, \
             and NAME=HOST another name"
        )),
        Some(other) => AskError::Broken(other.to_string()),
        None => AskError::Broken(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_in_many_ways() {
        let cases = [
            ("pump-3", "pump-3", "pump-3", PORT),
            ("pump-3.plant:9000", "pump-3.plant", "pump-3.plant", 9000),
            ("10.0.0.7", "10.0.0.7", "10.0.0.7", PORT),
            ("10.0.0.7:1", "10.0.0.7", "10.0.0.7", 1),
            ("pump-3=10.0.0.7:9000", "pump-3", "10.0.0.7", 9000),
            ("[fd00::7]:9000", "fd00::7", "fd00::7", 9000),
            ("fd00::7", "fd00::7", "fd00::7", PORT),
            ("pump-3=[fd00::7]", "pump-3", "fd00::7", PORT),
        ];
        for (text, name, host, port) in cases {
            let device: Device = text.parse().expect(text);
            let found = (device.name.to_str().into_owned(), device.host, device.port);
            assert_eq!(found, (name.to_owned(), host.to_owned(), port), "{text}");
        }
        for text in ["", "a b", "pump:0", "pump:70000", "pump:x", "=10.0.0.7", "pump=", "a/b", ":1"]
        {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
