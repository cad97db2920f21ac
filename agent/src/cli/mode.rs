//! `portcullis mode`

use std::process::ExitCode;

use portcullis_common::Mode;
use serde::Deserialize;

use super::{Outcome, output, run::ModeArg};
use crate::control::{Request, client};

#[derive(clap::Args)]
pub struct Args {
    /// The mode to change to; without it, the mode is shown
    #[arg(value_enum)]
    mode: Option<ModeArg>,
    /// Enforce even if that stops what runs now
    #[arg(long)]
    skip_preflight: bool,
}

#[derive(Deserialize)]
struct Answer {
    mode: String,
}

pub fn mode(args: &Args) -> Outcome {
    let request = match args.mode {
        Some(mode) => Request::Mode {
            mode: Mode::from(mode).word().to_owned(),
            skip_preflight: args.skip_preflight,
        },
        None => Request::Status,
    };
    let Answer { mode } = client::ask_json(&request)?;
    output::print(&format!("{mode}\n"))?;
    Ok(ExitCode::SUCCESS)
}
