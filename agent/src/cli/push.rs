//! `portcullis policy push`, `confirm` and `rollback`: bundles on this device, or on others.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow};
use jiff::SignedDuration;
use serde::Deserialize;

use super::{
    BAD_INPUT, OrExit, Outcome,
    fleet::{self, Plan, Remote},
    output,
};
use crate::{
    api::client::Ask,
    control::{PushAnswer, Request, client},
    event::{PolicyId, human::Named},
};

#[derive(clap::Args)]
pub struct PushArgs {
    /// The bundle, as made by `portcullis policy build` and `sign`
    bundle: PathBuf,
    #[command(flatten)]
    plan: Plan,
    /// Show the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
pub struct ConfirmArgs {
    /// Show the answers of devices as JSON lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Args)]
pub struct RollbackArgs {
    /// Why, for the event
    #[arg(long, value_name = "TEXT", default_value = "policy rollback")]
    because: String,
    /// Show the answers of devices as JSON lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

/// A time for people in seconds.
pub fn seconds(text: &str) -> Result<u64, String> {
    let parsed = text.parse::<SignedDuration>().ok();
    let seconds = parsed.and_then(|time| u64::try_from(time.as_secs()).ok());
    seconds.filter(|seconds| *seconds > 0).ok_or_else(|| "write a time as 90s, 5m or 2h".to_owned())
}

pub fn push(args: &PushArgs) -> Outcome {
    if let Some(fleet) = args.remote.fleet()? {
        return fleet::push(&fleet, &args.bundle, &args.plan, args.json);
    }
    let Plan { confirm_within, ref stages, settle, confirm } = args.plan;
    if stages.is_some() || settle.is_some() || confirm {
        let error = anyhow!("--stage, --settle and --confirm are for devices; --device names one");
        return Err(error).or_exit(BAD_INPUT);
    }
    // The agent reads it itself, from its own folder.
    let full = std::fs::canonicalize(&args.bundle)
        .with_context(|| format!("cannot read {}", args.bundle.display()))
        .or_exit(BAD_INPUT)?;
    let path = full
        .to_str()
        .ok_or_else(|| anyhow!("{}: is not UTF-8; give it another name", full.display()))
        .or_exit(BAD_INPUT)?;
    let request = Request::Push { path: path.to_owned(), confirm_within };
    let answer: PushAnswer = client::ask_json(&request)?;
    if args.json {
        output::print(&(serde_json::to_string(&answer).or_exit(BAD_INPUT)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let PushAnswer { policy, digests, mode, until, warnings } = answer;
    for warning in &warnings {
        output::note(&format!("warning: {warning}"));
    }
    let mut text = format!("policy {} is in force: {digests} digests, {mode}\n", Named(&policy));
    if let Some(until) = until {
        text.push_str(&format!(
            "it is taken back at {until:.0}; to keep it: portcullis policy confirm\n"
        ));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The policy in force after the change.
#[derive(Deserialize)]
struct Answer {
    policy: PolicyId,
}

pub fn confirm(args: &ConfirmArgs) -> Outcome {
    if let Some(fleet) = args.remote.fleet()? {
        return fleet::ask_all(&fleet, "confirming", &Ask::Confirm, args.json);
    }
    let Answer { policy } = client::ask_json(&Request::Confirm)?;
    output::print(&format!("policy {} stays in force\n", Named(&policy)))?;
    Ok(ExitCode::SUCCESS)
}

pub fn rollback(args: &RollbackArgs) -> Outcome {
    if let Some(fleet) = args.remote.fleet()? {
        let ask = Ask::Rollback { because: args.because.clone() };
        return fleet::ask_all(&fleet, "rolling back", &ask, args.json);
    }
    let request = Request::Rollback { cause: args.because.clone() };
    let Answer { policy } = client::ask_json(&request)?;
    output::print(&format!("policy {} is in force again\n", Named(&policy)))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn times_are_for_people() {
        let cases =
            [("90s", Some(90)), ("5m", Some(300)), ("2h", Some(7200)), ("1h30m", Some(5400))];
        for (text, expected) in cases {
            assert_eq!(seconds(text).ok(), expected, "{text}");
        }
        for text in ["", "5", "0s", "-5m", "soon", "99999999999999999999h"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
