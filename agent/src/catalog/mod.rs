//! Catalogs: signed lists of digests, which join the policy while they lie in a folder.
//!
//! * `NAME.catalog` is a manifest with a name and a version ([`crate::policy::manifest`]).
//! * `NAME.catalog.p7s` is a CMS signature beside it (DER, detached), `NAME.catalog.sig` a raw
//!   Ed25519 signature of its bytes. If both are there, both must be good.
//! * `NAME.catalog.p7m` is a CMS message that holds the catalog (DER, attached).
//!
//! What a fleet's servers bring lies in a folder of its own, a catalog with its signatures in one file
//! ([`parcel`], [`shelf`]).
//!
//! What a file must be is decided by its name, and nothing about it can be switched off.

mod accept;
pub mod folder;
pub mod parcel;
pub mod shelf;
pub mod versions;

use std::path::PathBuf;

use portcullis_common::{Digest, Kinds};
use serde::{Deserialize, Serialize};

pub use accept::{Looked, Reading, Signed, look_at, read_folder, read_text, rotate_by};

use crate::{
    policy::{manifest::Entry, source::Signs},
    trust::Requirements,
};

/// A catalog whose signatures are good.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The file.
    pub path: PathBuf,
    /// Its maker's name for it.
    pub name: String,
    /// Its maker's number for it.
    pub version: u64,
    /// SHA-256 of its text.
    pub digest: Digest,
    /// Who signed it; at least one.
    pub by: Vec<SignedBy>,
    /// What it lists.
    pub entries: Vec<Entry>,
    /// What it takes back: digest and line.
    pub withdrawn: Vec<(Digest, u32)>,
}

impl Catalog {
    /// What its signers together may vouch for.
    #[must_use]
    pub fn kinds(&self) -> Kinds {
        self.by.iter().fold(Kinds::NONE, |all, by| all.union(by.kinds))
    }
}

/// Who vouches for something, and how that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBy {
    /// The policy's name for the signer.
    pub signer: String,
    /// `maker` or `operator`.
    pub slot: String,
    /// What the signer may vouch for.
    #[serde(skip)]
    pub kinds: Kinds,
    /// The algorithm, such as `RSA-PSS 3072 SHA-256`.
    pub algorithm: String,
    /// SHA-256 of the public key that made the signature, in hexadecimal.
    pub key: String,
    /// The certificates from the signer's to the one that the policy names; empty for a bare key.
    pub chain: Vec<String>,
    /// SHA-256 of each of those certificates, in hexadecimal.
    pub prints: Vec<String>,
    /// What those would be in the other form that ECDSA leaves.
    #[serde(skip)]
    pub other_prints: Vec<String>,
    /// Which kind of signature it is.
    #[serde(skip)]
    pub with: Signs,
    /// What the policy asked of the signer's certificate.
    #[serde(skip)]
    pub requirements: Requirements,
    /// What is not as it should be, and does not count against it: expiry.
    pub warnings: Vec<String>,
}

/// A file in the folder that is not in force, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// Why, as a stable word.
    pub reason: String,
    /// Why, in a line for people, with what to do.
    pub message: String,
}
