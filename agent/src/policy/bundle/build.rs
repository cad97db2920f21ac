//! Makes a bundle of a policy file and everything that it names.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use jiff::Timestamp;
use portcullis_common::Digest;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{
    MAX_BUNDLE, POLICY, encode,
    manifest::{Manifest, Part, Target, is_inside},
};
use crate::{
    artifact::digest,
    policy::{
        Policy,
        diagnostic::Diagnostics,
        files::{Disk, Files},
        manifest::is_name,
        source::{AnchorSource, Source},
    },
};

/// What a policy file does not say itself.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The devices that it is for; none is every device.
    pub targets: Vec<Target>,
    /// Counts deliberate downgrades.
    pub epoch: u64,
    /// When it may come into force.
    pub not_before: Option<Timestamp>,
    /// Until when it is meant to be used.
    pub expires: Option<Timestamp>,
    /// Whether it comes into force even if it stops what runs.
    pub skip_preflight: bool,
}

/// Why there is no bundle.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The policy has mistakes.
    #[error(transparent)]
    Policy(#[from] Diagnostics),
    /// A file that the policy names lies elsewhere.
    #[error(
        "{}: names {}, which lies outside of its folder; copy it there, and name it by its \
         short name",
        policy.display(), path.display()
    )]
    Outside {
        /// The policy file.
        policy: PathBuf,
        /// The file as the policy names it.
        path: PathBuf,
    },
    /// The policy's name cannot be that of a bundle.
    #[error("{}: the name \"{}\" is not one for bundles; use letters, digits, `-`, `_` and `.`", policy.display(), name.escape_debug())]
    Name {
        /// The policy file.
        policy: PathBuf,
        /// Its name.
        name: String,
    },
    /// It would be too large.
    #[error("the bundle would be larger than {} MiB; list less", MAX_BUNDLE >> 20)]
    TooLarge,
    /// A file cannot be read, or its name is too long.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the bytes of an unsigned bundle: the same for the same input. `progress` counts bytes.
///
/// # Errors
/// If the policy has mistakes, or names files elsewhere.
pub fn build(
    file: &Path,
    options: &Options,
    progress: &ProgressBar,
) -> Result<Vec<u8>, BuildError> {
    build_from(&Disk, file, options, progress)
}

/// The same from wherever its files come from.
///
/// # Errors
/// As [`build`].
pub fn build_from(
    files: &dyn Files,
    file: &Path,
    options: &Options,
    progress: &ProgressBar,
) -> Result<Vec<u8>, BuildError> {
    let policy = Policy::load_from(files, file, progress)?;
    if !is_name(&policy.name) {
        return Err(BuildError::Name { policy: file.to_owned(), name: policy.name });
    }
    let read = |path: &Path| Ok::<_, Diagnostics>(files.read(path)?.into_owned());
    let bytes = read(file)?;
    let source = Source::parse(file, &String::from_utf8_lossy(&bytes))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let anchors = source.signers.iter().flat_map(|signer| &signer.anchors);
    let anchors = anchors.map(|(anchor, _)| match anchor {
        AnchorSource::Certificate(path) | AnchorSource::Key(path) => path,
    });
    let mut parts = BTreeMap::from([(POLICY.to_owned(), bytes)]);
    for path in source.include.iter().map(|include| &include.path).chain(anchors) {
        let name = path.to_str().filter(|name| is_inside(name) && *name != POLICY);
        let Some(name) = name else {
            return Err(BuildError::Outside { policy: file.to_owned(), path: path.clone() });
        };
        if !parts.contains_key(name) {
            parts.insert(name.to_owned(), read(&folder.join(path))?);
        }
    }
    let manifest = Manifest {
        portcullis_bundle: Manifest::FORM,
        policy: policy.name,
        version: policy.version,
        epoch: options.epoch,
        targets: match &options.targets[..] {
            [] => vec![Target::All],
            targets => targets.to_vec(),
        },
        not_before: options.not_before,
        expires: options.expires,
        skip_preflight: options.skip_preflight,
        parts: parts.iter().map(|(path, content)| part(path, content)).collect(),
    };
    let contents = parts.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
    let made = encode(&manifest.text(), contents, &[])
        .map_err(|source| BuildError::File { path: file.to_owned(), source })?;
    if made.len() as u64 > MAX_BUNDLE {
        return Err(BuildError::TooLarge);
    }
    Ok(made)
}

fn part(path: &str, content: &[u8]) -> Part {
    let sha256: Digest = Sha256::digest(content).into();
    let sha256 = digest::format(&sha256);
    Part { path: path.to_owned(), size: content.len() as u64, sha256 }
}
