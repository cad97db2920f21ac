//! The device's door to the network: the process without privilege that operators' connections end in.
//!
//! It listens, does mutual TLS, bounds who may be there and for how long, reads requests and makes each anew
//! for the agent, which it asks at a socket that is open to nobody else ([`crate::api::network`]). The agent
//! judges the certificates once more and decides what their holders may do. `docs/fleet-push.md` describes it
//! for operators.

mod forward;
pub mod permit;
mod places;
mod server;
mod tell;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{net::TcpListener, time::sleep};

use crate::api::{
    config::Config,
    word::{KeptBy, Word},
};

pub use server::Server;
pub use tell::{Telling, telling};

/// How long it waits before it tries again to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// What is wrong with the files that it needs.
type Unusable = String;

/// Opens the door as the device's file says, for the agent at this socket, and serves for ever. It tells the
/// agent how it is, and tries again what does not work.
///
/// Once its files are read, it is `confined`. Returns if the device's file asks for no door, at the beginning
/// or after it was mended.
pub async fn run(file: &Path, socket: &Path, confined: impl FnOnce(&Config)) {
    let (telling, ear) = telling(socket.to_owned());
    let served = async {
        let Some(server) = usable(file, socket, &telling).await else { return };
        confined(server.config());
        let listener = listen(&server, &telling).await;
        Arc::new(server).serve(listener).await;
    };
    tokio::select! {
        () = ear.go_on() => {}
        () = served => {}
    }
}

/// Reads what it needs until that can be used; none if there is nothing to do.
async fn usable(file: &Path, socket: &Path, telling: &Telling) -> Option<Server> {
    let mut told = None;
    loop {
        match server(file, socket.to_owned(), telling.clone()) {
            Ok(server) => return server,
            Err(why) => {
                if told.as_ref() != Some(&why) {
                    tracing::error!("{why}; it is tried again");
                    telling.say(Word::CannotListen { kept_by: KeptBy::Files, why: why.clone() });
                    told = Some(why);
                }
            }
        }
        sleep(AGAIN).await;
    }
}

fn server(file: &Path, socket: PathBuf, telling: Telling) -> Result<Option<Server>, Unusable> {
    let Some(config) = Config::read(file)? else { return Ok(None) };
    Server::new(config, socket, telling).map(Some)
}

/// Listens; the address may come up after the door.
async fn listen(server: &Server, telling: &Telling) -> TcpListener {
    let address = server.config().listen;
    let mut is_told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                telling.say(Word::Listening { address, good_until: server.good_until() });
                return listener;
            }
            Err(error) => {
                let why = format!("{address} cannot be listened at: {error}");
                if !is_told {
                    tracing::error!("{why}; it is tried again");
                    telling.say(Word::CannotListen { kept_by: KeptBy::Address, why });
                    is_told = true;
                }
            }
        }
        sleep(AGAIN).await;
    }
}
