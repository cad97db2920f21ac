//! The agent over the network: a small HTTP API over mutual TLS, for those whose certificates have a
//! role in the device's file. Without `[api]` there, there is no port, no thread, and no cost.
//!
//! It runs in a thread of its own and does nothing itself: what may be asked is sent to the agent's
//! loop, as from the local socket, and a policy is judged by its signatures there. `docs/fleet-push.md`
//! describes it for operators.

pub mod client;
pub mod config;
pub mod content;
mod identity;
pub mod local;
mod places;
pub(crate) mod refusals;
mod reply;
pub(crate) mod routes;
mod server;
pub(crate) mod tls;
mod upload;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::sleep,
};

use crate::{
    control::server::Command,
    event::AccessRefused,
    kernel::check::{Check, State},
    trust::certificate::Certificate,
};

use config::Config;
pub use routes::asked;
pub use server::Server;

/// Version of what is asked and answered; the first part of every path.
pub const VERSION: &str = "v1";

/// The port, where none is said.
pub const PORT: u16 = 7443;

/// How long it waits before it tries again to listen.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// How often the certificate's end is looked at.
const DAILY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// How long before its end the certificate is told of.
const SOON: SignedDuration = SignedDuration::from_hours(30 * 24);

const ID: &str = "api";
const TITLE: &str = "operators reach the agent over the network";

/// What is told to the agent's loop.
#[derive(Debug)]
pub enum Told {
    /// Somebody was refused.
    Refused(Box<AccessRefused>),
    /// How the API itself is.
    Check(Check),
}

/// The API while it runs. It ends when this is dropped.
pub struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It ends at once; and if it has panicked, there is nothing more to do.
            let _ = thread.join();
        }
    }
}

fn warning(found: String, mend: &str) -> Check {
    Check::bad(State::Warning, ID, TITLE, found, mend)
}

/// Starts it, if `file` asks for it. Bundles on their way lie in `folder`. What is wrong is a check, and
/// no reason not to run.
pub fn start(
    file: &Path,
    folder: PathBuf,
    commands: mpsc::Sender<Command>,
    tell: mpsc::Sender<Told>,
) -> (Option<Running>, Option<Check>) {
    let mend =
        "mend it and start the agent again; the gates and the local socket do not depend on it";
    let started = match Config::read(file) {
        Ok(None) => return (None, None),
        Ok(Some(config)) => {
            Server::new(config, folder, commands, tell.clone()).and_then(|server| {
                let work = || listen(Arc::new(server), tell);
                run("api", work).map_err(|error| format!("its thread: {error}"))
            })
        }
        Err(error) => Err(error),
    };
    match started {
        Ok(running) => (Some(running), None),
        Err(error) => (None, Some(warning(error, mend))),
    }
}

/// Runs `work` in a thread of its own until that is let go of.
fn run<F: Future<Output = ()>>(
    name: &str,
    work: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<Running> {
    let (stop, stopped) = oneshot::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(2)
        .build()?;
    let thread = move || {
        // What reports and answers on the device comes first. Lowering a thread's own priority does not
        // fail.
        let _ = rustix::process::nice(5);
        runtime.block_on(async {
            tokio::select! {
                _ = stopped => {}
                () = work() => {}
            }
        });
        runtime.shutdown_background();
    };
    let thread = thread::Builder::new().name(name.into()).stack_size(512 << 10).spawn(thread)?;
    Ok(Running { stop: Some(stop), thread: Some(thread) })
}

/// Serves for ever. The address may come up after the agent.
async fn listen(server: Arc<Server>, tell: mpsc::Sender<Told>) {
    let address = server.config().listen;
    let tell = async |check: Check| {
        // The agent may be ending.
        let _ = tell.send(Told::Check(check)).await;
    };
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let found = format!("{address} cannot be listened at: {error}");
                let mend = "have the address there, and nobody else at the port; it is tried again";
                tell(warning(found, mend)).await;
            }
        }
        sleep(AGAIN).await;
    };
    let look = async {
        loop {
            tell(health(server.config())).await;
            sleep(DAILY).await;
        }
    };
    tokio::join!(look, Arc::clone(&server).serve(listener));
}

/// How it is, now that it listens.
fn health(config: &Config) -> Check {
    let Config { listen, certificate, clients, .. } = config;
    let end = tls::certificates(certificate)
        .ok()
        .and_then(|chain| Certificate::read(chain.first()?).ok())
        .map(|first| first.info().not_after);
    let mend = "put a new one there and start the agent again";
    match end {
        Some(end) if end <= Timestamp::now().saturating_add(SOON).unwrap_or(Timestamp::MAX) => {
            warning(format!("{}: is good until {end} only", certificate.display()), mend)
        }
        _ => Check::ok(ID, TITLE, format!("at {listen}, {} entries for clients", clients.len())),
    }
}

#[cfg(test)]
pub(crate) mod tests;
