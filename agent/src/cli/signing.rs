//! The key that a command signs with.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::{BAD_INPUT, Failure, OrExit, output};
use crate::trust::{
    certificate::Certificate,
    sign::{self, Content, PrivateKey},
};

#[derive(clap::Args)]
#[group(id = "signing")]
pub struct Args {
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
}

/// A signature, with how it was made.
pub struct Made {
    /// The signature.
    pub bytes: Vec<u8>,
    /// Whether it is CMS, or else raw.
    pub is_cms: bool,
    /// The key's kind, for people.
    pub key: String,
}

impl Args {
    /// Signs `content`; with a certificate, `place` says whether the signature holds it.
    pub fn sign(&self, content: &[u8], place: Content) -> Result<Made, Failure> {
        let key = PrivateKey::read(&load(&self.key)?);
        let key = key.map_err(|error| output::about(&self.key, &error, error.help()));
        let key = key.or_exit(BAD_INPUT)?;
        let made = match &self.certificate {
            None => sign::raw(&key, content).map(Vec::from),
            Some(path) => {
                let own = certificate(path)?;
                let between = self.intermediate.iter().map(|path| certificate(path));
                let between = between.collect::<Result<Vec<_>, Failure>>()?;
                sign::cms(&key, &own, &between, content, place)
            }
        };
        let bytes = made.map_err(|error| output::about(&self.key, &error, error.help()));
        Ok(Made {
            bytes: bytes.or_exit(BAD_INPUT)?,
            is_cms: self.certificate.is_some(),
            key: key.public().kind().to_string(),
        })
    }
}

/// Reads a file whole.
pub fn load(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).with_context(|| path.display().to_string()).or_exit(BAD_INPUT)
}

fn certificate(path: &Path) -> Result<Certificate, Failure> {
    let read = Certificate::read(&load(path)?);
    read.map_err(|error| output::about(path, &error, error.help())).or_exit(BAD_INPUT)
}
