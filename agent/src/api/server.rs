//! Who is let in: connections, from the first byte to a certificate with a role.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{interval, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    Told, identity,
    places::{Place, Places},
    refusals::{self, Refusals},
    routes::Routes,
    tls,
};
use crate::{
    api::config::Config,
    control::{
        caller::{Caller, Peer},
        server::Command,
    },
    event::AccessRefused,
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);

/// Bytes of the head of a request.
const MAX_HEAD: usize = 16 << 10;

/// Lines of the head of a request.
const MAX_HEADERS: usize = 32;

/// How long somebody may take nothing of what is sent, or be gone without a word.
const SILENCE: Duration = Duration::from_secs(30);

/// How long somebody who was refused may go on talking, so that they can read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What serves one device.
pub struct Server {
    config: Config,
    acceptor: TlsAcceptor,
    routes: Arc<Routes>,
    places: Places,
    refusals: Arc<Refusals>,
}

impl Server {
    /// Reads the certificates. Bundles on their way lie in `folder`.
    ///
    /// # Errors
    /// If they cannot be used, with the file and the mend.
    pub fn new(
        config: Config,
        folder: PathBuf,
        commands: mpsc::Sender<Command>,
        tell: mpsc::Sender<Told>,
    ) -> Result<Self, String> {
        let tls = tls::server(&config.certificate, &config.key, &config.client_ca)?;
        let refusals = Arc::new(Refusals::new(tell));
        Ok(Self {
            config,
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            routes: Arc::new(Routes::new(folder, commands, Arc::clone(&refusals))),
            places: Places::default(),
            refusals,
        })
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Serves those who come, for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let refusals = Arc::clone(&self.refusals);
        let tell = async {
            let mut ticks = interval(refusals::LOOK);
            loop {
                ticks.tick().await;
                refusals.tell();
            }
        };
        let accept = async {
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
        };
        tokio::join!(tell, accept);
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
        peer: Option<&Peer>,
    ) {
        let by = peer.map(|peer| Caller::Network(Box::new(peer.clone())));
        self.refusals.add(AccessRefused { reason, message: message.into(), count: 1, address, by });
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
        let Some(peer) = self.peer(&stream, address) else { return };
        let Some(_place) = place.known(&peer.fingerprint) else {
            self.refuse("too-many", "too many connections at once", address, Some(&peer));
            return;
        };
        let routes = Arc::clone(&self.routes);
        let by = Arc::new(Caller::Network(Box::new(peer)));
        let service = service_fn(move |request| {
            let (routes, by) = (Arc::clone(&routes), Arc::clone(&by));
            async move { Ok::<_, Infallible>(routes.answer(&by, request).await) }
        });
        // A peer that is gone, or talks nonsense, is its own fault.
        let _ = http().serve_connection(TokioIo::new(stream), service).await;
    }

    fn peer(&self, stream: &TlsStream<TcpStream>, address: SocketAddr) -> Option<Peer> {
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates()?.first()?;
        Some(identity::peer(certificate, address, &self.config))
    }
}

/// How requests are read.
pub(super) fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        // One request: whoever is idle has no place.
        .keep_alive(false);
    http
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
