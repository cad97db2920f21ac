//! `portcullis fleet catalogs`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::anyhow;
use serde::Serialize;
use tokio::time::Instant;

use super::{For, Patience, Servers, name, staged, wait_for};
use crate::{
    catalog::parcel::{self, Packed},
    cli::{BAD_INPUT, Failure, NO, OrExit, Outcome, UNAVAILABLE, output},
    event::human::Plain,
    fleet::{
        FleetError,
        listing::{Listed, Listing, OfCatalog, State},
        names::Target,
        plant::{Plant, Statuses},
    },
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Have devices keep these catalogs, in the place of older ones of the same names; devices that are away
    /// take them when they come back
    Push(PushArgs),
    /// Show which catalogs devices shall have
    List(ListArgs),
    /// Have devices not keep catalogs any more; what takes digests back stays until a newer one replaces it
    Remove(RemoveArgs),
}

#[derive(clap::Args)]
pub struct PushArgs {
    /// Catalogs, as made by `portcullis catalog make` and `sign`; their signatures are looked for beside them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    target: For,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    servers: Servers,
}

#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    target: For,
    /// Show each catalog as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    servers: Servers,
}

#[derive(clap::Args)]
pub struct RemoveArgs {
    /// Names of catalogs, as in their first lines
    #[arg(required = true, value_name = "NAME", value_parser = name)]
    names: Vec<String>,
    #[command(flatten)]
    target: For,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    servers: Servers,
}

/// What became of a catalog on a device.
#[derive(Debug, Serialize)]
struct Line {
    device: String,
    catalog: String,
    /// `done`, `refused`, `stays`, `no-answer` or `away`.
    result: &'static str,
    message: Option<String>,
}

pub fn catalogs(verb: &Verb) -> Outcome {
    match verb {
        Verb::Push(args) => push(args),
        Verb::List(args) => list(args),
        Verb::Remove(args) => remove(args),
    }
}

fn push(args: &PushArgs) -> Outcome {
    let target = args.target.target()?;
    let mut packed: Vec<Packed> = Vec::new();
    for file in &args.files {
        let about = |why: String| anyhow!("{}: {why}", file.display());
        let one = parcel::pack(file).map_err(|(reason, why)| about(format!("{why} ({reason})")));
        let one = one.or_exit(BAD_INPUT)?;
        if packed.iter().any(|known| known.name == one.name) {
            return Err(about(format!("is called {}, as another one is", one.name)))
                .or_exit(BAD_INPUT);
        }
        packed.push(one);
    }
    let bar = output::progress(packed.len() as u64, "storing catalogs");
    let lines = wait_for(async {
        let plant = args.servers.plant().await?;
        let mut round = Round::begin(&plant, &target, &args.patience).await?;
        let mut new = Vec::new();
        for Packed { name, version, digests, withdrawn, bytes } in packed {
            let stored = plant.store_catalog(&target, bytes.into()).await?;
            let (sha256, bytes) = (stored.sha256, stored.bytes);
            new.push(Listed { name, version, sha256, bytes, digests, withdrawn });
            bar.inc(1);
        }
        plant.list_catalogs(&target, &new).await?;
        bar.set_message("waiting for devices");
        let asked: Vec<_> = new.iter().map(|one| Asked::Have(&one.name, &one.sha256)).collect();
        Ok::<_, FleetError>(round.answers(&asked, args.patience.timeout()).await)
    })??;
    bar.finish_and_clear();
    show(&lines, args.patience.json)
}

fn remove(args: &RemoveArgs) -> Outcome {
    let target = args.target.target()?;
    let lines = wait_for(async {
        let plant = args.servers.plant().await?;
        let before = plant.listing(&target).await?.unwrap_or_default();
        let is_listed = |name: &&String| before.catalogs.iter().any(|one| one.name == **name);
        if let Some(name) = args.names.iter().find(|name| !is_listed(name)) {
            let why = format!("{name} is none of the catalogs that {target} shall have");
            return Err(FleetError::Broken(why));
        }
        let mut round = Round::begin(&plant, &target, &args.patience).await?;
        plant.unlist_catalogs(&target, &args.names).await?;
        let asked: Vec<_> = args.names.iter().map(|name| Asked::NotHave(name)).collect();
        Ok::<_, FleetError>(round.answers(&asked, args.patience.timeout()).await)
    })??;
    show(&lines, args.patience.json)
}

fn list(args: &ListArgs) -> Outcome {
    let target = args.target.target()?;
    let listing = wait_for(async { args.servers.plant().await?.listing(&target).await })??;
    let Listing { catalogs } = listing.unwrap_or_default();
    let mut text = String::new();
    let mut table = output::table(&["catalog", "version", "digests", "taken back", "bytes"]);
    for listed in &catalogs {
        if args.json {
            text.push_str(&(serde_json::to_string(listed).or_exit(BAD_INPUT)? + "\n"));
        } else {
            let Listed { name, version, digests, withdrawn, bytes, .. } = listed;
            let numbers = [version.to_string(), digests.to_string(), withdrawn.to_string()];
            table.add_row([name.clone()].into_iter().chain(numbers).chain([bytes.to_string()]));
        }
    }
    if !args.json {
        text = match catalogs.len() {
            0 => format!("{target} shall have no catalogs\n"),
            _ => format!("{}\n", table.trim_fmt()),
        };
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What a device was asked for.
#[derive(Clone, Copy)]
enum Asked<'a> {
    /// To have this catalog, with this digest.
    Have(&'a str, &'a str),
    /// Not to have it.
    NotHave(&'a str),
}

impl Asked<'_> {
    const fn name(&self) -> &str {
        match self {
            Self::Have(name, _) | Self::NotHave(name) => name,
        }
    }

    /// What has become of it, by what a device says: none as long as it is not over.
    fn result(&self, said: &[OfCatalog]) -> Option<(&'static str, Option<String>)> {
        let found = said.iter().find(|one| match self {
            Self::Have(name, sha256) => one.name == *name && one.sha256 == *sha256,
            Self::NotHave(name) => one.name == *name,
        });
        let message = found.and_then(|one| one.message.clone());
        match (self, found.map(|one| one.state)) {
            (Self::Have(..), Some(State::Here)) | (Self::NotHave(_), None) => Some(("done", None)),
            (Self::Have(..), Some(State::Refused)) => Some(("refused", message)),
            (Self::NotHave(_), Some(State::Stays)) => Some(("stays", message)),
            _ => None,
        }
    }
}

/// Devices that are asked, and what they say.
struct Round {
    statuses: Statuses,
    present: Vec<String>,
    away: Vec<String>,
}

impl Round {
    async fn begin(
        plant: &Plant,
        target: &Target,
        patience: &Patience,
    ) -> Result<Self, FleetError> {
        let mut statuses = plant.statuses().await?;
        let asking = staged::who_is_there(plant, target, &mut statuses, patience.presence());
        let present = asking.await?;
        let mut away = staged::members(target, statuses.known());
        away.retain(|name| !present.contains(name));
        Ok(Self { statuses, present, away })
    }

    /// Waits for those that are there, and tells of all.
    async fn answers(&mut self, asked: &[Asked<'_>], patience: Duration) -> Vec<Line> {
        let end = Instant::now() + patience;
        while !self.present.iter().all(|name| asked.iter().all(|one| self.of(name, one).is_some()))
            && matches!(self.statuses.next(end).await, Ok(Some(_)))
        {}
        let mut lines = Vec::new();
        for device in &self.present {
            for one in asked {
                let why = || format!("nothing within {} s", patience.as_secs());
                let (result, message) =
                    self.of(device, one).unwrap_or_else(|| ("no-answer", Some(why())));
                let (device, catalog) = (device.clone(), one.name().to_owned());
                lines.push(Line { device, catalog, result, message });
            }
        }
        for device in &self.away {
            let message = Some("it does it when it comes back".to_owned());
            let (device, catalog) = (device.clone(), String::new());
            lines.push(Line { device, catalog, result: "away", message });
        }
        lines
    }

    fn of(&self, device: &str, asked: &Asked<'_>) -> Option<(&'static str, Option<String>)> {
        let report = self.statuses.known().get(device)?.report.as_ref().ok()?;
        asked.result(&report.catalogs)
    }
}

fn show(lines: &[Line], as_json: bool) -> Result<ExitCode, Failure> {
    let mut text = String::new();
    let mut table = output::table(&["device", "catalog", "result", "why"]);
    for line in lines {
        if as_json {
            text.push_str(&(serde_json::to_string(line).or_exit(BAD_INPUT)? + "\n"));
        } else {
            let Line { device, catalog, result, message } = line;
            let why = message.as_deref().unwrap_or_default();
            let cells = [device, catalog, &result.replace('-', " "), why];
            table.add_row(cells.map(|cell| Plain(cell).to_string()));
        }
    }
    if !as_json {
        text = match lines.len() {
            0 => "nobody is there; devices do it when they come\n".to_owned(),
            _ => format!("{}\n", table.trim_fmt()),
        };
    }
    output::print(&text)?;
    let any = |results: &[&str]| lines.iter().any(|line| results.contains(&line.result));
    Ok(if any(&["refused", "stays"]) {
        ExitCode::from(NO)
    } else if any(&["no-answer"]) {
        ExitCode::from(UNAVAILABLE)
    } else {
        ExitCode::SUCCESS
    })
}
