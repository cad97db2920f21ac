//! `portcullis stop`

use std::{
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{Failure, OrExit, Outcome, UNAVAILABLE, output};
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
pub struct Args {}

/// How long the kernel may take to detach the programs: each waits until nobody runs it.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn stop(_: &Args) -> Outcome {
    let done = match client::ask_text(&Request::Stop) {
        Ok(_) => "the agent has ended and the gates are down".to_owned(),
        Err(ClientError::NoAgent) => {
            let count = run::take_down_orphans()
                .map_err(|error| Failure { code: error.exit_code(), error: error.into() })?;
            match count {
                0 => "no agent runs and no gates stand".to_owned(),
                _ => "no agent ran; the gates that it had left are down".to_owned(),
            }
        }
        Err(error) => return Err(error.into()),
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
