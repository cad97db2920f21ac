//! The agent over the network: a small HTTP API over mutual TLS, for those whose certificates have a
//! role in the device's file.
//!
//! Nothing that comes from the network is read in the agent. A process without privilege, the door
//! ([`crate::door`]), listens, does TLS, reads requests and makes them anew at a socket of the agent
//! ([`network`]); the fleet's link has another ([`local`]). Each is served by a thread of its own, which does
//! nothing itself: what may be asked is sent to the agent's loop, as from the local socket, and a policy is
//! judged by its signatures there. `docs/fleet-push.md` describes it for operators.

pub mod claim;
pub mod client;
pub mod config;
pub mod content;
mod heard;
mod identity;
pub mod local;
pub mod network;
pub(crate) mod refusals;
pub(crate) mod reply;
pub(crate) mod routes;
pub(crate) mod socket;
pub(crate) mod tls;
pub(crate) mod upload;
pub mod word;

use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

use crate::{event::AccessRefused, kernel::check::Check};

pub use routes::{asked, written};

/// Version of what is asked and answered; the first part of every path.
pub const VERSION: &str = "v1";

/// The port, where none is said.
pub const PORT: u16 = 7443;

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

#[cfg(test)]
pub(crate) mod tests;
