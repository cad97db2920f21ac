//! `portcullis history`

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;

use super::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, output, scan::write_file};
use crate::{
    control::{HistoryAnswer, Request, client},
    event::human::Plain,
    history::{Artifact, History},
};

#[derive(clap::Args)]
pub struct Args {
    /// Only what was, or would have been, refused
    #[arg(long)]
    refused: bool,
    /// As JSON lines (docs/events.md)
    #[arg(long)]
    json: bool,
    /// Write all of it to a file, for `policy learn` and `policy test` on another machine
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["refused", "json"])]
    output: Option<PathBuf>,
    /// What ran from this path without the policy's leave shall be refused: it does not stand in the way of
    /// enforcement any more (for what cannot be denied by its digest)
    #[arg(long, value_name = "PATH", exclusive = true)]
    expect_denied: Option<String>,
}

pub fn history(args: &Args) -> Outcome {
    if let Some(path) = &args.expect_denied {
        client::ask_text(&Request::ExpectDenied { path: path.clone() })?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = written()?;
    if let Some(to) = &args.output {
        let text = fs::read(&file).with_context(|| file.display().to_string());
        let text = text.or_exit(UNAVAILABLE)?;
        write_file(to, |out| std::io::Write::write_all(out, &text))
            .with_context(|| format!("cannot write {}", to.display()))
            .or_exit(BAD_INPUT)?;
        return Ok(ExitCode::SUCCESS);
    }
    let history = History::read(&file).or_exit(UNAVAILABLE)?;
    let was_refused =
        |artifact: &Artifact| artifact.uses.iter().any(|one| one.would_deny + one.denied > 0);
    let shown: Vec<_> = history
        .artifacts()
        .into_iter()
        .filter(|artifact| !args.refused || was_refused(artifact))
        .collect();
    let mut text = String::new();
    for artifact in &shown {
        if args.json {
            text.push_str(&serde_json::to_string(artifact).or_exit(UNAVAILABLE)?);
        } else {
            text.push_str(&line(artifact));
        }
        text.push('\n');
    }
    output::print(&text)?;
    if !args.json {
        output::note(&summary(&history, shown.len()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Has the agent write its history, and returns where.
pub(super) fn written() -> Result<PathBuf, Failure> {
    let HistoryAnswer { file } = client::ask_json(&Request::History)?;
    Ok(file)
}

/// The history of this device, or what was exported.
pub(super) fn read(exported: Option<&Path>) -> Result<History, Failure> {
    match exported {
        Some(file) => History::read(file).or_exit(BAD_INPUT),
        None => History::read(&written()?).or_exit(UNAVAILABLE),
    }
}

fn line(artifact: &Artifact) -> String {
    let digest = artifact.digest.as_deref().map_or("no digest", |digest| &digest[..12]);
    let sum = |count: fn(&crate::history::Use) -> u64| artifact.uses.iter().map(count).sum::<u64>();
    let numbers = [
        (sum(|one| one.allowed), "allowed"),
        (sum(|one| one.would_deny), "would be denied"),
        (sum(|one| one.denied), "denied"),
    ];
    let numbers = numbers.iter().filter(|(count, _)| *count > 0);
    let numbers: Vec<_> = numbers.map(|(count, what)| format!("{count} {what}")).collect();
    let told = artifact.told();
    format!("{digest}  {}  {}; {}", Plain(&artifact.path), numbers.join(", "), Plain(&told))
}

fn summary(history: &History, shown: usize) -> String {
    let since = history.since().map_or_else(String::new, |since| format!(" since {since:.0}"));
    let forgotten = match history.forgotten() {
        0 => String::new(),
        forgotten => {
            format!("; {forgotten} had to make room for others and are not known any more")
        }
    };
    format!("{shown} of {} artifacts{since}{forgotten}", history.len())
}
