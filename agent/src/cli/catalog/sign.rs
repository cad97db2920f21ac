//! `portcullis catalog sign`

use std::{
    ffi::OsString,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;

use super::read_catalog;
use crate::{
    cli::{BAD_INPUT, Failure, OrExit, Outcome, output, scan::write_file},
    trust::{
        certificate::Certificate,
        sign::{self, Content, PrivateKey, SignError},
    },
};

#[derive(clap::Args)]
pub struct Args {
    /// The catalog, or the change of a key (.rotation)
    file: PathBuf,
    /// The private key in PEM (PKCS#8, not encrypted). For a key in a token or an HSM:
    /// `openssl cms -sign` (docs/signing.md)
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// The key's certificate: makes a CMS signature. Without it the signature is a raw one, which
    /// only Ed25519 keys make
    #[arg(long, value_name = "PEM")]
    certificate: Option<PathBuf>,
    /// A certificate between that one and the one that policies list; may be given several times
    #[arg(long, value_name = "PEM", requires = "certificate")]
    intermediate: Vec<PathBuf>,
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
    let key = PrivateKey::read(&load(&args.key)?);
    let key = key.map_err(|error| explained(&args.key, &error)).or_exit(BAD_INPUT)?;
    let (signature, suffix) = match &args.certificate {
        None => {
            let made = sign::raw(&key, &content);
            (made.map(Vec::from), ".sig")
        }
        Some(path) => {
            let certificate = certificate(path)?;
            let between = args.intermediate.iter().map(|path| self::certificate(path));
            let between = between.collect::<Result<Vec<_>, Failure>>()?;
            let (place, suffix) = match args.attached {
                true => (Content::Attached, ".p7m"),
                false => (Content::Detached, ".p7s"),
            };
            (sign::cms(&key, &certificate, &between, &content, place), suffix)
        }
    };
    let signature = signature.map_err(|error| explained(&args.key, &error)).or_exit(BAD_INPUT)?;
    let output = args.output.clone().unwrap_or_else(|| with_suffix(&args.file, suffix));
    write_file(&output, |out| out.write_all(&signature))
        .with_context(|| format!("cannot write {}", output.display()))
        .or_exit(BAD_INPUT)?;
    output::note(&format!("{}: signed with {}", output.display(), key.public().kind()));
    Ok(ExitCode::SUCCESS)
}

/// Reads a file whole.
pub(in crate::cli) fn load(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).with_context(|| path.display().to_string()).or_exit(BAD_INPUT)
}

/// Reads a certificate.
pub(in crate::cli) fn certificate(path: &Path) -> Result<Certificate, Failure> {
    let read = Certificate::read(&load(path)?);
    read.map_err(|error| output::about(path, &error, error.help())).or_exit(BAD_INPUT)
}

/// An error with the file and the mend.
pub(in crate::cli) fn explained(path: &Path, error: &SignError) -> anyhow::Error {
    output::about(path, error, error.help())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
