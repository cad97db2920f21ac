//! The same API at a socket on the device, for the process that is the door to the network. What a stranger
//! has written does not come here: the door reads it and makes each request anew.
//!
//! Without `[api]` in the device's file there is no socket, no thread, and no cost.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{HeaderMap, HeaderName},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::mpsc};

use super::{
    Running, Told,
    claim::{ADDRESS, CERTIFICATES, Clients, MAX_HEAD, read},
    config::Config,
    heard::{self, Heard},
    refusals::Refusals,
    reply::{Reply, refused},
    routes::Routes,
    run,
    socket::{self, bind, http, uid},
    tls, upload, word,
};
use crate::{
    control::{
        caller::{Caller, Peer},
        server::Command,
    },
    event::AccessRefused,
    kernel::check::{Check, State},
};

/// Where the door asks.
pub const SOCKET: &str = "/run/portcullis/network.sock";

/// Connections at once: as many as the door lets in, and some for itself.
const PLACES: usize = 72;

/// What answers the door.
pub(crate) struct Network {
    clients: Arc<Clients>,
    routes: Routes,
    refusals: Arc<Refusals<AccessRefused>>,
    heard: Heard,
}

/// Starts it, if `file` asks for it. Bundles on their way lie in `folder`. What is wrong is a check, and
/// no reason not to run.
pub fn start(
    file: &Path,
    socket: &Path,
    folder: PathBuf,
    commands: mpsc::Sender<Command>,
    tell: mpsc::Sender<Told>,
) -> (Option<Running>, Option<Check>) {
    let started = match Config::read(file) {
        Ok(None) => return (None, None),
        Ok(Some(config)) => uid(&config.user, "the network's door").and_then(|uid| {
            let network = Network::new(config, folder, commands, tell)?;
            let listener =
                bind(socket).map_err(|error| format!("{}: {error}", socket.display()))?;
            run("network", move || Arc::new(network).serve(listener, uid))
                .map_err(|error| format!("its thread: {error}"))
        }),
        Err(error) => Err(error),
    };
    match started {
        Ok(running) => (Some(running), None),
        Err(error) => {
            let mend = "mend it and start the agent again; the gates and the local socket do not \
                        depend on it";
            (None, Some(Check::bad(State::Warning, heard::ID, heard::TITLE, error, mend)))
        }
    }
}

/// The one line of this name in a head.
fn only<'a>(head: &'a HeaderMap, name: &'static str) -> Option<&'a str> {
    let mut all = head.get_all(HeaderName::from_static(name)).iter();
    let one = all.next()?.to_str().ok()?;
    all.next().is_none().then_some(one)
}

impl Network {
    /// Reads whose certificates count. Bundles on their way lie in `folder`.
    ///
    /// # Errors
    /// If they cannot be used, with the file and the mend.
    pub fn new(
        config: Config,
        folder: PathBuf,
        commands: mpsc::Sender<Command>,
        tell: mpsc::Sender<Told>,
    ) -> Result<Self, String> {
        let refusals = Arc::new(Refusals::of_agent(tell.clone()));
        let clients = Arc::new(Clients::new(config)?);
        Ok(Self {
            routes: Routes::new(folder, commands, Arc::clone(&refusals)),
            heard: Heard::new(Arc::clone(&clients), Arc::clone(&refusals), tell),
            clients,
            refusals,
        })
    }

    /// Serves the door, which runs as this user, for ever.
    pub async fn serve(self: Arc<Self>, listener: std::os::unix::net::UnixListener, uid: u32) {
        let connection = |stream, _| Arc::clone(&self).connection(stream);
        tokio::join!(
            socket::accept(listener, uid, PLACES, connection),
            self.heard.watch(),
            self.refusals.go_on(),
        );
    }

    async fn connection(self: Arc<Self>, stream: UnixStream) {
        let network = &self;
        let service =
            service_fn(
                move |request| async move { Ok::<_, Infallible>(network.answer(request).await) },
            );
        let mut http = http();
        http.max_buf_size(MAX_HEAD);
        // A door that is gone, or talks nonsense, is its own fault.
        let _ = http.serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Reply> {
        if request.uri().path() == word::PATH {
            return self.heard.listen(request.into_body()).await;
        }
        match self.who(request.headers()) {
            Ok(peer) => {
                let by = Caller::Network(Box::new(peer));
                self.routes.answer(&by, request).await
            }
            Err((status, code, message)) => {
                upload::throw_away(request.into_body());
                refused(status, code, message)
            }
        }
    }

    /// Whom the door speaks for.
    fn who(&self, head: &HeaderMap) -> Result<Peer, upload::Rejected> {
        let address = only(head, ADDRESS).and_then(|text| text.parse::<SocketAddr>().ok());
        let chain = only(head, CERTIFICATES).and_then(read);
        let (Some(address), Some(chain)) = (address, chain) else {
            let message = "the door does not say for whom it asks";
            return Err((StatusCode::BAD_REQUEST, 2, message.into()));
        };
        self.clients.peer(&chain, address).map_err(|error| {
            let (reason, why) = tls::refusal(&error);
            let message = format!("the door brought a certificate that does not count: {why}");
            self.refusals.add(AccessRefused {
                reason,
                message: message.clone(),
                count: 1,
                address,
                by: None,
            });
            (StatusCode::FORBIDDEN, 3, message)
        })
    }
}
