//! `portcullis policy test`: would a policy refuse what has run?

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use jiff::Timestamp;
use serde::Serialize;

use super::{Failure, NO, OrExit, Outcome, UNAVAILABLE, history, output, policy_diff::Side};
use crate::{
    artifact::digest,
    event::human::Plain,
    policy::manifest::kinds_words,
    run::preflight::{self, InUse},
};

#[derive(clap::Args)]
pub struct Args {
    /// The policy or bundle
    policy: PathBuf,
    /// What has run on another device, as `portcullis history -o FILE` wrote it there (default: what has
    /// run, and what runs now, on this one)
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What would be refused.
#[derive(Serialize)]
struct Line {
    path: String,
    digest: Option<String>,
    /// Any of these would do.
    kinds: String,
    told: String,
}

pub fn test(args: &Args) -> Outcome {
    let side = Side::read(&args.policy)?;
    let refused = refused(&side, args.history.as_deref())?;
    let lines: Vec<_> = refused.iter().map(line).collect();
    let mut text = String::new();
    if args.json {
        text = serde_json::to_string_pretty(&lines).or_exit(UNAVAILABLE)? + "\n";
    } else {
        for Line { path, digest, kinds, told } in &lines {
            let digest = digest.as_deref().unwrap_or("no digest");
            text.push_str(&format!("{}  as {kinds}  {digest}  {}\n", Plain(path), Plain(told)));
        }
        let name = side.name();
        text.push_str(&match lines.len() {
            0 => format!("{name} would refuse nothing of what has run\n"),
            count => format!("{name} would refuse {count} of what has run\n"),
        });
    }
    output::print(&text)?;
    Ok(if lines.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn refused(side: &Side, exported: Option<&Path>) -> Result<Vec<InUse>, Failure> {
    let known = history::read(exported)?;
    let policy = &side.policy;
    let suspects = known.suspects(Timestamp::now(), |digest| policy.rule(digest));
    if exported.is_some() {
        // Nothing here says whether the files are still there.
        let in_use = suspects.into_iter().map(|suspect| InUse {
            path: suspect.path,
            kind: suspect.kinds,
            digest: suspect.digest,
            device: 0,
            fsverity: None,
            told: suspect.told,
            is_vital: false,
        });
        return Ok(in_use.collect());
    }
    Ok(preflight::would_refuse(policy, suspects))
}

fn line(one: &InUse) -> Line {
    Line {
        path: one.path.to_string_lossy().into_owned(),
        digest: one.digest.as_ref().map(digest::format),
        kinds: kinds_words(one.kind),
        told: one.told.clone(),
    }
}
