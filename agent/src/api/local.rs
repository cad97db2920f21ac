//! The same API at a socket on the device, for the process that speaks with the fleet's servers: without
//! TLS, as the kernel says who is there, and for one user only.

use std::{
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::mpsc};

pub(crate) use super::socket::bind;
use super::{
    Running, Told,
    refusals::Refusals,
    routes::Routes,
    run,
    socket::{self, http, uid},
};
use crate::{
    control::{caller::Caller, server::Command},
    fleet::config::Config,
    kernel::check::{Check, State},
};

/// Where the link asks.
pub const SOCKET: &str = "/run/portcullis/fleet.sock";

/// Connections at once.
const PLACES: usize = 8;

const ID: &str = "fleet";
const TITLE: &str = "the fleet's link reaches the agent";

/// Starts it, if `file` names a fleet's servers. Bundles on their way lie in `folder`. What is wrong is a
/// check, and no reason not to run.
pub fn start(
    file: &Path,
    socket: &Path,
    folder: PathBuf,
    commands: mpsc::Sender<Command>,
    tell: mpsc::Sender<Told>,
) -> (Option<Running>, Option<Check>) {
    let started = match Config::read(file) {
        Ok(None) => return (None, None),
        Ok(Some(config)) => uid(&config.user, "the link").and_then(|uid| {
            let routes = Routes::new(folder, commands, Arc::new(Refusals::of_agent(tell)));
            begin(socket, uid, routes)
                .map(|running| (running, config.user))
                .map_err(|error| format!("{}: {error}", socket.display()))
        }),
        Err(error) => Err(error),
    };
    match started {
        Ok((running, user)) => {
            let found = format!("at {}, for the user {user}", socket.display());
            (Some(running), Some(Check::ok(ID, TITLE, found)))
        }
        Err(error) => {
            let mend = "mend it and start the agent again; the gates do not depend on it";
            (None, Some(Check::bad(State::Warning, ID, TITLE, error, mend)))
        }
    }
}

fn begin(socket: &Path, uid: u32, routes: Routes) -> io::Result<Running> {
    let listener = bind(socket)?;
    run("fleet", move || serve(listener, uid, Arc::new(routes)))
}

pub(crate) async fn serve(
    listener: std::os::unix::net::UnixListener,
    uid: u32,
    routes: Arc<Routes>,
) {
    let connection =
        |stream, pid| connection(stream, Caller::Fleet { uid, pid }, Arc::clone(&routes));
    socket::accept(listener, uid, PLACES, connection).await;
}

async fn connection(stream: UnixStream, by: Caller, routes: Arc<Routes>) {
    let by = Arc::new(by);
    let service = service_fn(move |request| {
        let (routes, by) = (Arc::clone(&routes), Arc::clone(&by));
        async move { Ok::<_, Infallible>(routes.answer(&by, request).await) }
    });
    // A peer that is gone, or talks nonsense, is its own fault.
    let _ = http().serve_connection(TokioIo::new(stream), service).await;
}
