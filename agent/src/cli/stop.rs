//! `portcullis stop`

use std::{
    path::PathBuf,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Failure, OrExit, Outcome, UNAVAILABLE, break_glass, output};
use crate::{
    control::{
        Request,
        client::{self, ClientError},
    },
    kernel::hooks,
    run,
    usb::hold,
};

#[derive(clap::Args)]
pub struct Args {
    /// A signed token that allows it, where the policy came in a signed bundle
    #[arg(long, value_name = "TOKEN")]
    authorized: Option<PathBuf>,
}

/// How long the kernel may take to detach the programs: each waits until nobody runs it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long an agent may take to start before it can be asked to stop, and to end.
const STARTING: Duration = Duration::from_secs(60);

pub fn stop(args: &Args) -> Outcome {
    let token = args.authorized.as_deref().map(break_glass::read).transpose()?;
    let token = token.map(|(text, _)| text);
    let request = Request::Stop { token };
    let end = Instant::now() + STARTING;
    let done = loop {
        match client::ask_text(&request) {
            Ok(_) => break "the agent has ended and the gates are down",
            // Its gates would stand a moment after it was said that none do.
            Err(ClientError::Changing(_)) if Instant::now() < end => {
                sleep(Duration::from_millis(50));
            }
            Err(ClientError::NoAgent) => {
                let count = run::handover::take_down_orphans()
                    .map_err(|error| Failure { code: error.exit_code(), error: error.into() })?;
                break match count {
                    0 => "no agent runs and no gates stand",
                    _ => "no agent ran; the gates that it had left are down",
                };
            }
            Err(error) => return Err(error.into()),
        }
    };
    let end = Instant::now() + PATIENCE;
    while hooks::are_loaded() {
        if Instant::now() > end {
            output::note("the kernel has not let go of all gates yet");
            break;
        }
        sleep(Duration::from_millis(20));
    }
    // Of an agent that has died; one that ran has done it itself.
    hold::release_orphans().or_exit(UNAVAILABLE)?;
    output::print(&format!("{done}\n"))?;
    Ok(ExitCode::SUCCESS)
}
