//! What a bundle says of itself, as JSON.

use std::{fmt, path::Component, path::Path, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::POLICY;
use crate::policy::manifest::is_name;

/// Version of the form.
const FORM: u32 = 1;

/// What a bundle says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this form.
    pub portcullis_bundle: u32,
    /// The policy's name.
    pub policy: String,
    /// The policy's number, at least 1.
    pub version: u64,
    /// Counts deliberate downgrades: a higher one is newer, whatever the version.
    pub epoch: u64,
    /// The devices that it is for.
    pub targets: Vec<Target>,
    /// When it may come into force.
    pub not_before: Option<Timestamp>,
    /// Until when it was meant to be used. Afterwards it warns.
    pub expires: Option<Timestamp>,
    /// Whether it comes into force even if it stops what runs.
    pub skip_preflight: bool,
    /// Its files, sorted by path.
    pub parts: Vec<Part>,
}

/// A file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Relative to the policy.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
}

/// Devices that a bundle is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// Every device whose policy trusts the signers.
    All,
    /// The device with this name.
    Device(String),
    /// The devices of this group.
    Group(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Device(name) => write!(f, "device:{name}"),
            Self::Group(name) => write!(f, "group:{name}"),
        }
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = match text.split_once(':') {
            None if text == "*" => Some(Self::All),
            Some(("device", name)) if is_name(name) => Some(Self::Device(name.to_owned())),
            Some(("group", name)) if is_name(name) => Some(Self::Group(name.to_owned())),
            _ => None,
        };
        known.ok_or_else(|| {
            format!("\"{}\" is neither device:NAME nor group:NAME nor *", text.escape_debug())
        })
    }
}

impl Manifest {
    /// Version of the form that is written.
    pub const FORM: u32 = FORM;

    /// Reads it.
    ///
    /// # Errors
    /// With what is wrong, for people.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("its manifest: {error}"))?;
        if manifest.portcullis_bundle != FORM {
            return Err(format!(
                "it has form {}, and this reads {FORM}",
                manifest.portcullis_bundle
            ));
        }
        if manifest.version == 0 || !is_name(&manifest.policy) {
            return Err("its manifest: a policy has a name, and a version from 1".into());
        }
        if manifest.targets.is_empty() {
            return Err("its manifest: it is for no device".into());
        }
        if !manifest.parts.is_sorted_by(|a, b| a.path < b.path) {
            return Err("its manifest: parts are not in their order".into());
        }
        if let Some(part) = manifest.parts.iter().find(|part| !is_inside(&part.path)) {
            let path = part.path.escape_debug();
            return Err(format!("its manifest: {path} is not a path within the policy's folder"));
        }
        if !manifest.parts.iter().any(|part| part.path == POLICY) {
            return Err(format!("its manifest: there is no {POLICY}"));
        }
        Ok(manifest)
    }

    /// Its text: always the same for the same content.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        // Serialising strings and numbers to memory does not fail.
        let mut text = serde_json::to_vec_pretty(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// Whether a path stays within the folder that it is relative to, and is written in one way only.
pub fn is_inside(path: &str) -> bool {
    let steps: Vec<_> = Path::new(path).components().collect();
    let plain = steps.iter().all(|step| matches!(step, Component::Normal(_)));
    let again: std::path::PathBuf = steps.iter().collect();
    plain && !steps.is_empty() && again.as_os_str() == path && !path.contains(['\0', '\n'])
}
