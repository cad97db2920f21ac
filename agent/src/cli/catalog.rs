//! `portcullis catalog`

mod diff;
mod make;
mod sign;
mod verify;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

pub(super) use diff::Lines;

use super::{BAD_INPUT, Failure, OrExit, Outcome};
use crate::policy::manifest::{self, Manifest};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a catalog of one or more manifests, as `portcullis scan` writes them
    Make(make::Args),
    /// Sign a catalog, or the change of a key
    Sign(sign::Args),
    /// Look whether a catalog is signed by somebody who is trusted
    Verify(verify::Args),
    /// Show what a catalog holds
    Show(ShowArgs),
    /// Show what would newly be allowed, and what not any more
    Diff(diff::Args),
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// The catalog
    file: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn catalog(verb: &Verb) -> Outcome {
    match verb {
        Verb::Make(args) => make::make(args),
        Verb::Sign(args) => sign::sign(args),
        Verb::Verify(args) => verify::verify(args),
        Verb::Show(args) => diff::show(&args.file, args.json),
        Verb::Diff(args) => diff::diff(args),
    }
}

/// A catalog's or manifest's bytes and what they say.
fn read(file: &Path) -> Result<(Vec<u8>, Manifest), Failure> {
    let bytes = fs::read(file).with_context(|| file.display().to_string()).or_exit(BAD_INPUT)?;
    let read = manifest::parse(file, &bytes, None).or_exit(BAD_INPUT)?;
    Ok((bytes, read))
}

/// The same of a file that must be a catalog: with its name and version.
fn read_catalog(file: &Path) -> Result<(Vec<u8>, Manifest, String, u64), Failure> {
    let (bytes, read) = read(file)?;
    match (read.catalog.clone(), read.version) {
        (Some(name), Some(version)) => Ok((bytes, read, name, version)),
        _ => {
            let message = "is a plain manifest; `portcullis catalog make` makes a catalog of it";
            Err(Failure { code: BAD_INPUT, error: anyhow!("{} {message}", file.display()) })
        }
    }
}
