//! `portcullis events`

use std::{io::BufRead, process::ExitCode};

use super::{
    OrExit, Outcome, UNAVAILABLE,
    fleet::{self, Remote},
    output,
};
use crate::control::{Request, client};

#[derive(clap::Args)]
pub struct Args {
    /// Go on with new events until interrupted
    #[arg(short, long)]
    follow: bool,
    /// As JSON lines (docs/events.md)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

pub fn events(args: &Args) -> Outcome {
    if let Some(fleet) = args.remote.fleet()? {
        return fleet::events(&fleet, args.follow, args.json);
    }
    let lines = client::ask(&Request::Events { follow: args.follow, json: args.json })?;
    for (index, line) in lines.lines().enumerate() {
        let line = line.or_exit(UNAVAILABLE)?;
        if index == 0 {
            client::check_refusal(&line)?;
        }
        output::print(&format!("{line}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}
