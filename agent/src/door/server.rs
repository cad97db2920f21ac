//! Who is let in: connections, from the first byte to a certificate of the device's authority.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::{header::HeaderValue, service::service_fn};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustix::net::sockopt;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Telling,
    forward::{self, Claim},
    places::{Place, Places},
};
use crate::{
    api::{claim, config::Config, socket::http, tls, word::TurnedAway},
    artifact::digest,
    trust::certificate::Certificate,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long somebody may take nothing of what is sent, or be gone without a word.
const SILENCE: Duration = Duration::from_secs(30);

/// How long somebody who was refused may go on talking, so that they can read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What serves one device.
pub struct Server {
    config: Config,
    /// Where the agent is asked.
    socket: PathBuf,
    acceptor: TlsAcceptor,
    places: Places,
    telling: Telling,
    /// When the device's certificate ends.
    good_until: Option<Timestamp>,
}

impl Server {
    /// Reads the certificates. The agent is asked at `socket`, and told of those who are refused.
    ///
    /// # Errors
    /// If they cannot be used, with the file and the mend.
    pub fn new(config: Config, socket: PathBuf, telling: Telling) -> Result<Self, String> {
        let tls = tls::server(&config.certificate, &config.key, &config.client_ca)?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let good_until = good_until(&config.certificate);
        Ok(Self { config, socket, acceptor, places: Places::default(), telling, good_until })
    }

    /// When the device's certificate ends.
    pub fn good_until(&self) -> Option<Timestamp> {
        self.good_until
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves those who come, for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => self.let_in(stream, address),
                Err(error) => {
                    // Out of descriptors, most likely; trying at once would spin.
                    tracing::warn!("a connection was not accepted: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn let_in(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) {
        let Some(place) = self.places.come(address.ip()) else {
            self.refuse("too-many", "too many connections at once", address, None);
            // Nothing of it stays behind, in the kernel either.
            let _ = stream.set_zero_linger();
            return;
        };
        let server = Arc::clone(self);
        tokio::spawn(async move { server.connection(stream, address, place).await });
    }

    fn refuse(
        &self,
        reason: &'static str,
        message: impl Into<String>,
        address: SocketAddr,
        certificates: Option<String>,
    ) {
        let (reason, message) = (reason.to_owned(), message.into());
        self.telling.refused(TurnedAway { reason, message, count: 1, address, certificates });
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr, place: Place) {
        let _ = stream.set_nodelay(true);
        // Without these a peer whose cable was pulled keeps its place for ever.
        let milliseconds = u32::try_from(SILENCE.as_millis()).unwrap_or(u32::MAX);
        let _ = sockopt::set_tcp_user_timeout(&stream, milliseconds);
        let _ = sockopt::set_socket_keepalive(&stream, true);
        let _ = sockopt::set_tcp_keepidle(&stream, SILENCE);
        let accepted = timeout(HANDSHAKE, self.acceptor.accept(stream).into_fallible()).await;
        let stream = match accepted {
            Ok(Ok(stream)) => stream,
            Ok(Err((error, stream))) => {
                let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
                // Whoever only looks whether the port is open says nothing.
                if let Some(error) = inner {
                    let (reason, message) = tls::refusal(error);
                    self.refuse(reason, message, address, None);
                    farewell(stream).await;
                }
                return;
            }
            Err(_) => {
                let message = format!("the handshake took longer than {} s", HANDSHAKE.as_secs());
                self.refuse("too-slow", message, address, None);
                return;
            }
        };
        let Some((certificates, fingerprint)) = shown(&stream) else {
            let message = "its certificates are too many or too large";
            self.refuse("wrong-certificate", message, address, None);
            return;
        };
        let Some(_place) = place.known(&fingerprint) else {
            let message = "too many connections at once";
            self.refuse("too-many", message, address, Some(certificates));
            return;
        };
        let line = |text: &str| HeaderValue::from_str(text).ok();
        let lines = (line(&certificates), line(&address.to_string()));
        let (Some(certificates), Some(address)) = lines else { return };
        let claim = Claim { certificates, address };
        let (socket, claim) = (&self.socket, &claim);
        let service = service_fn(move |request| async move {
            Ok::<_, Infallible>(forward::answer(socket, claim, request).await)
        });
        // A peer that is gone, or talks nonsense, is its own fault.
        let _ = http().serve_connection(TokioIo::new(stream), service).await;
    }
}

/// When the first certificate of a file ends.
fn good_until(certificate: &Path) -> Option<Timestamp> {
    let chain = tls::certificates(certificate).ok()?;
    Some(Certificate::read(chain.first()?).ok()?.info().not_after)
}

/// The certificates of whoever is there, as the agent is told them, and the SHA-256 of the first.
fn shown(stream: &TlsStream<TcpStream>) -> Option<(String, String)> {
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates()?;
    let own: portcullis_common::Digest = Sha256::digest(chain.first()?).into();
    Some((claim::written(chain)?, digest::format(&own)))
}

/// Lets the alert arrive: closing a connection with something unread takes it back.
async fn farewell(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut thrown_away = [0; 1024];
    let _ = timeout(FAREWELL, async {
        while stream.read(&mut thrown_away).await.is_ok_and(|read| read > 0) {}
    })
    .await;
}
