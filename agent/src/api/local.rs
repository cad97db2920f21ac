//! The same API at a socket on the device, for the process that speaks with the fleet's servers: without
//! TLS, as the kernel says who is there, and for one user only.

use std::{
    convert::Infallible,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    time::sleep,
};

use super::{Running, Told, refusals::Refusals, routes::Routes, run, server::http};
use crate::{
    control::{
        caller::Caller,
        server::{self, Command},
    },
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
        Ok(Some(config)) => uid(&config.user).and_then(|uid| {
            let routes = Routes::new(folder, commands, Arc::new(Refusals::new(tell)));
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

/// The number of a user of this device.
fn uid(user: &str) -> Result<u32, String> {
    let path = "/etc/passwd";
    let text = fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let mut lines = text.lines().map(|line| line.split(':'));
    let found = lines.find_map(|mut fields| {
        (fields.next() == Some(user)).then(|| fields.nth(1).and_then(|uid| uid.parse().ok()))
    });
    found.flatten().ok_or_else(|| {
        let user = user.escape_debug();
        format!("there is no user \"{user}\" to run the link; the package makes portcullis-fleet")
    })
}

fn begin(socket: &Path, uid: u32, routes: Routes) -> io::Result<Running> {
    let listener = bind(socket)?;
    run("fleet", move || serve(listener, uid, Arc::new(routes)))
}

/// A socket where anybody can knock. Who is let in is asked of the kernel: the agent may not give its files
/// to others.
pub(crate) fn bind(socket: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    server::bind(socket, 0o666)
}

pub(crate) async fn serve(
    listener: std::os::unix::net::UnixListener,
    uid: u32,
    routes: Arc<Routes>,
) {
    let listener = match UnixListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the socket for the fleet's link is of no use: {error}");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(PLACES));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let peer = stream.peer_cred().ok().filter(|peer| peer.uid() == uid);
                // Others, and more than there are places for, are sent away without a word.
                let place = Arc::clone(&places).try_acquire_owned();
                let (Some(peer), Ok(place)) = (peer, place) else { continue };
                let pid = peer.pid().filter(|pid| *pid > 0);
                let by = Caller::Fleet { uid: peer.uid(), pid };
                let routes = Arc::clone(&routes);
                tokio::spawn(async move {
                    connection(stream, by, routes).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely; trying at once would spin.
                tracing::warn!("a connection was not accepted: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::uid;

    #[test]
    fn users_have_numbers() {
        assert_eq!(uid("root"), Ok(0));
        assert!(uid("nobody-of-this-name").expect_err("none").contains("there is no user"));
        assert!(uid("roo").is_err() && uid("").is_err());
    }
}
