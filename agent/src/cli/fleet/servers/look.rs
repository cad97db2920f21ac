//! `portcullis fleet status` and `portcullis fleet events`

use std::{io, process::ExitCode};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Servers, name, wait_for};
use crate::{
    cli::{BAD_INPUT, Failure, NO, OrExit, Outcome, output},
    event::human::{Named, Plain},
    fleet::{
        FleetError,
        listing::{OfCatalog, State},
        plant::Seen,
        words::{Outcome as Result_, Report},
    },
};

#[derive(clap::Args)]
pub struct StatusArgs {
    /// Show each device as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    servers: Servers,
}

#[derive(clap::Args)]
pub struct EventsArgs {
    /// Those of this device only
    #[arg(long, value_name = "NAME", value_parser = name)]
    device: Option<String>,
    /// Go on with new ones instead of showing those that are kept
    #[arg(long)]
    follow: bool,
    /// Show them as JSON lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    servers: Servers,
}

/// A device in a line.
#[derive(Serialize)]
struct Line<'a> {
    device: &'a str,
    said: Timestamp,
    #[serde(flatten)]
    report: Option<&'a Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

pub fn status(args: &StatusArgs) -> Outcome {
    // Only this leaves the runtime: what listens cannot end without one.
    let known = wait_for(async {
        let statuses = args.servers.plant().await?.statuses().await?;
        Ok::<_, FleetError>(statuses.known().clone())
    })??;
    let mut text = String::new();
    let mut table = output::table(&[
        "device",
        "health",
        "mode",
        "policy",
        "agent",
        "said",
        "asked for",
        "catalogs",
        "why",
    ]);
    for (device, seen) in &known {
        if args.json {
            let Seen { report, at, .. } = seen;
            let (report, error) = (report.as_ref().ok(), report.as_ref().err());
            let line = Line { device, said: *at, report, error: error.map(String::as_str) };
            text.push_str(&(serde_json::to_string(&line).or_exit(BAD_INPUT)? + "\n"));
        } else {
            let cells = cells(seen).map(|cell| Plain(&cell).to_string());
            table.add_row([device.clone()].into_iter().chain(cells));
        }
    }
    if !args.json {
        text = format!("{}\n", table.trim_fmt());
    }
    output::print(&text)?;
    let is_bad = |seen: &Seen| {
        seen.report.as_ref().is_ok_and(|report| !["ok", "warning"].contains(&&*report.health))
    };
    Ok(if known.values().any(is_bad) { ExitCode::from(NO) } else { ExitCode::SUCCESS })
}

fn cells(seen: &Seen) -> [String; 8] {
    let said = format!("{:.0}", seen.at);
    let report = match &seen.report {
        Ok(report) => report,
        Err(why) => return ["?", "", "", "", &said, "", "", why].map(str::to_owned),
    };
    let Report { health, mode, policy, version, answered, checks, catalogs, .. } = report;
    let policy = policy.as_ref().map(|policy| Named(policy).to_string());
    let asked = answered.as_ref().map(|answered| match (answered.result, answered.confirmed) {
        (Result_::Done, true) => "done",
        (Result_::Done, false) => "done, not confirmed",
        (Result_::Refused, _) => "refused",
        (Result_::Waiting, _) => "waiting",
    });
    let message = answered.iter().filter_map(|answered| answered.message.clone());
    let bad = |one: &&OfCatalog| one.state != State::Here;
    let bad = catalogs
        .iter()
        .filter(bad)
        .map(|one| format!("catalog {}: {}", one.name, one.message.as_deref().unwrap_or_default()));
    let here = catalogs.iter().filter(|one| one.state == State::Here).count();
    let here = match catalogs.len() {
        0 => String::new(),
        all if all == here => here.to_string(),
        all => format!("{here} of {all}"),
    };
    let found = checks.iter().map(|check| format!("{}: {}", check.title, check.found));
    [
        health.clone(),
        mode.clone().unwrap_or_default(),
        policy.unwrap_or_default(),
        version.clone().unwrap_or_default(),
        said,
        asked.unwrap_or_default().to_owned(),
        here,
        message.chain(bad).chain(found).collect::<Vec<_>>().join("; "),
    ]
}

/// An event as far as it is shown to people.
#[derive(Deserialize)]
struct Told {
    time: Option<Timestamp>,
    text: Option<String>,
}

#[derive(Serialize)]
struct EventLine<'a> {
    device: &'a str,
    event: &'a RawValue,
}

pub fn events(args: &EventsArgs) -> Outcome {
    let mut failed = None;
    let shown = wait_for(async {
        let plant = args.servers.plant().await?;
        let device = args.device.as_deref();
        let each = |device: &str, bytes: &[u8]| match event(device, bytes, args.json) {
            Ok(()) => true,
            Err(failure) => {
                failed = Some(failure);
                false
            }
        };
        plant.events(device, args.follow, each).await
    })?;
    shown?;
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}

fn event(device: &str, bytes: &[u8], as_json: bool) -> Result<(), Failure> {
    let Ok(raw) = serde_json::from_slice::<&RawValue>(bytes) else {
        output::note(&format!("{device}: something that is no event"));
        return Ok(());
    };
    if as_json {
        let line = serde_json::to_string(&EventLine { device, event: raw });
        return output::print(&(line.map_err(io::Error::from).or_exit(BAD_INPUT)? + "\n"));
    }
    let told = serde_json::from_str(raw.get()).unwrap_or(Told { time: None, text: None });
    let time = told.time.map_or_else(String::new, |time| format!("{time:.0} "));
    let text = told.text.unwrap_or_else(|| raw.get().to_owned());
    output::print(&format!("{device}: {time}{}\n", Plain(&text)))
}
