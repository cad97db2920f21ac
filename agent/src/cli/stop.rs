//! `portcullis stop`

use std::process::ExitCode;

use super::{Failure, Outcome, output};
use crate::{
    control::{
        Request,
        client::{self, ClientError},
    },
    run,
};

#[derive(clap::Args)]
pub struct Args {}

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
    output::print(&format!("{done}\n"))?;
    Ok(ExitCode::SUCCESS)
}
