//! `portcullis events`

use std::{io::BufRead, process::ExitCode};

use clap::Subcommand;

use super::{
    OrExit, Outcome, UNAVAILABLE, events_verify,
    fleet::{self, Remote},
    output,
};
use crate::control::{Request, client};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Go on with new events until interrupted
    #[arg(short, long)]
    follow: bool,
    /// As JSON lines (docs/events.md)
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Subcommand)]
enum Verb {
    /// Say whether recorded events are all there, unchanged and in order; works on any machine
    Verify(events_verify::Args),
}

pub fn events(args: &Args) -> Outcome {
    if let Some(Verb::Verify(args)) = &args.verb {
        return events_verify::verify(args);
    }
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
