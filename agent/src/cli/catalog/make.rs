//! `portcullis catalog make`

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, anyhow, bail};
use portcullis_common::Digest;

use super::read;
use crate::{
    artifact::digest,
    cli::{BAD_INPUT, OrExit, Outcome, output, scan::write_file},
    policy::manifest::{self, Catalog, Found, NAME_MAX, is_name, path_in},
};

#[derive(clap::Args)]
pub struct Args {
    /// A manifest; may be given several times
    #[arg(long, value_name = "MANIFEST", required = true)]
    from: Vec<PathBuf>,
    /// The catalog's name, the same for every version
    #[arg(long)]
    name: String,
    /// The catalog's version, higher than the one before
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    version: u64,
    /// Take back what this older catalog lists and the new one does not
    #[arg(long, value_name = "CATALOG")]
    withdraw_from: Vec<PathBuf>,
    /// Take back this digest; may be given several times
    #[arg(long, value_name = "SHA256")]
    withdraw: Vec<String>,
    /// The catalog to write, which must end in .catalog
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub fn make(args: &Args) -> Outcome {
    check(args).or_exit(BAD_INPUT)?;
    let mut artifacts = Vec::new();
    for file in &args.from {
        artifacts.extend(found(file)?);
    }
    artifacts.sort();
    artifacts.dedup();
    let listed = |digest: &Digest| artifacts.iter().any(|found| found.digest == *digest);
    let mut withdrawn = Vec::new();
    for written in &args.withdraw {
        let digest = digest::parse(written)
            .map_err(|error| anyhow!("--withdraw: {error}; {}", error.help()))
            .or_exit(BAD_INPUT)?;
        withdrawn.push((digest, PathBuf::from("(by digest)")));
    }
    if let Some((digest, _)) = withdrawn.iter().find(|(digest, _)| listed(digest)) {
        let shown = digest::format(digest);
        return Err(anyhow!("{shown} is taken back and listed; remove one of the two"))
            .or_exit(BAD_INPUT);
    }
    for file in &args.withdraw_from {
        let old = found(file)?.into_iter();
        withdrawn.extend(old.filter(|old| !listed(&old.digest)).map(|old| (old.digest, old.path)));
    }
    withdrawn.sort();
    withdrawn.dedup_by_key(|(digest, _)| *digest);
    let (entries, taken_back) = (artifacts.len(), withdrawn.len());
    let catalog = Catalog { name: args.name.clone(), version: args.version, withdrawn };
    write_file(&args.output, |out| manifest::write(out, artifacts, Some(&catalog)))
        .with_context(|| format!("cannot write {}", args.output.display()))
        .or_exit(BAD_INPUT)?;
    output::note(&format!(
        "{}: {} v{}, {entries} entries, {taken_back} taken back; sign it with `portcullis catalog \
         sign` or `openssl cms -sign -binary -outform DER`",
        args.output.display(),
        args.name,
        args.version,
    ));
    Ok(ExitCode::SUCCESS)
}

fn check(args: &Args) -> anyhow::Result<()> {
    if !is_name(&args.name) {
        bail!("--name: use 1 to {NAME_MAX} of the characters A-Z a-z 0-9 . _ -");
    }
    if args.output.extension().is_none_or(|extension| extension != "catalog") {
        bail!(
            "{}: the agent knows it by its name, which must end in .catalog",
            args.output.display()
        );
    }
    Ok(())
}

/// Every entry of a manifest, with its path.
fn found(file: &std::path::Path) -> Result<Vec<Found>, crate::cli::Failure> {
    let (bytes, read) = read(file)?;
    let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    let of = |entry: &manifest::Entry| {
        let line = lines.get(entry.line as usize - 1).copied().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let path = path_in(line).unwrap_or_default();
        Found { kinds: entry.kinds, digest: entry.digest, path }
    };
    Ok(read.entries.iter().map(of).collect())
}
