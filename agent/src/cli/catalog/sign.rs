//! `portcullis catalog sign`

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;

use super::read_catalog;
use crate::{
    cli::{
        BAD_INPUT, OrExit, Outcome, output,
        scan::write_file,
        signing::{self, load},
    },
    trust::sign::Content,
};

#[derive(clap::Args)]
pub struct Args {
    /// The catalog, or the change of a key (.rotation)
    file: PathBuf,
    #[command(flatten)]
    with: signing::Args,
    /// Put the catalog into the signature (.p7m) instead of beside it
    #[arg(long, requires = "certificate")]
    attached: bool,
    /// Where the signature goes (default: beside the file, with .sig, .p7s or .p7m added)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn sign(args: &Args) -> Outcome {
    let is_rotation = args.file.extension().is_some_and(|extension| extension == "rotation");
    let content = if is_rotation {
        load(&args.file)?
    } else {
        // What would be refused on a device is not signed.
        read_catalog(&args.file)?.0
    };
    let place = if args.attached { Content::Attached } else { Content::Detached };
    let made = args.with.sign(&content, place)?;
    let suffix = match (made.is_cms, args.attached) {
        (false, _) => ".sig",
        (true, false) => ".p7s",
        (true, true) => ".p7m",
    };
    let output = args.output.clone().unwrap_or_else(|| with_suffix(&args.file, suffix));
    write_file(&output, |out| out.write_all(&made.bytes))
        .with_context(|| format!("cannot write {}", output.display()))
        .or_exit(BAD_INPUT)?;
    output::note(&format!("{}: signed with {}", output.display(), made.key));
    Ok(ExitCode::SUCCESS)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
