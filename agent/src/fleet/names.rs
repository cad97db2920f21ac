//! Names of streams and subjects, and what may stand in them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::policy::manifest::is_name;

/// The bucket with what devices and groups shall do.
pub const WANTED: &str = "portcullis-wanted";

/// The stream behind it.
pub const WANTED_STREAM: &str = "KV_portcullis-wanted";

/// The bucket with how devices are.
pub const STATUS: &str = "portcullis-status";

/// The stream behind it.
pub const STATUS_STREAM: &str = "KV_portcullis-status";

/// The stream with bundles in chunks.
pub const BUNDLES: &str = "portcullis-bundles";

/// The stream with catalogs in chunks.
pub const CATALOGS: &str = "portcullis-catalogs";

/// The stream with events.
pub const EVENTS: &str = "portcullis-events";

/// Groups that a device may be in to be reached by them.
pub const MAX_GROUPS: usize = 32;

/// Whom something is for: `device.NAME` or `group.NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    /// One device.
    Device(String),
    /// All devices of a group.
    Group(String),
}

/// A name as one token of a subject, where a `.` would separate two.
#[must_use]
pub fn token(name: &str) -> String {
    name.replace('.', "/")
}

/// The name that a token stands for; none if it stands for none.
#[must_use]
pub fn name_of(token: &str) -> Option<String> {
    let name = token.replace('/', ".");
    (is_name(&name) && !token.contains('.')).then_some(name)
}

impl Target {
    /// Its key in the bucket, which is also the end of its subjects.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Device(name) => format!("device.{}", token(name)),
            Self::Group(name) => format!("group.{}", token(name)),
        }
    }

    /// Where what it shall do is stored.
    #[must_use]
    pub fn wanted(&self) -> String {
        format!("$KV.{WANTED}.{}", self.key())
    }

    /// Where it is told that this has changed.
    #[must_use]
    pub fn changed(&self) -> String {
        format!("portcullis.changed.{}", self.key())
    }

    /// The key of the catalogs that it shall have.
    #[must_use]
    pub fn catalogs_key(&self) -> String {
        format!("catalogs.{}", self.key())
    }

    /// Where these are listed.
    #[must_use]
    pub fn catalogs_wanted(&self) -> String {
        format!("$KV.{WANTED}.{}", self.catalogs_key())
    }

    /// Where it is told that this has changed.
    #[must_use]
    pub fn catalogs_changed(&self) -> String {
        format!("portcullis.changed.{}", self.catalogs_key())
    }

    /// Where the chunks of its catalogs are stored.
    #[must_use]
    pub fn catalogs(&self) -> String {
        format!("portcullis.catalog.{}", self.key())
    }

    /// Where the chunks of its bundles are stored.
    #[must_use]
    pub fn bundles(&self) -> String {
        format!("portcullis.bundle.{}", self.key())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(key: &str) -> Result<Self, String> {
        let found = key.split_once('.').and_then(|(kind, token)| match kind {
            "device" => name_of(token).map(Self::Device),
            "group" => name_of(token).map(Self::Group),
            _ => None,
        });
        found.ok_or_else(|| format!("\"{}\" is no device and no group", key.escape_debug()))
    }
}

impl TryFrom<String> for Target {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        key.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.key()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(name) => write!(f, "device {name}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// Where a device says how it is.
#[must_use]
pub fn status(device: &str) -> String {
    format!("$KV.{STATUS}.{}", token(device))
}

/// Where a device's events go.
#[must_use]
pub fn events(device: &str) -> String {
    format!("portcullis.events.{}", token(device))
}

/// What a client's answers come back under.
#[must_use]
pub fn inbox(name: &str) -> String {
    format!("_INBOX.{}", token(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_token_of_a_subject() {
        for name in ["pump-3", "pump-3.plant.example", "a_b"] {
            let target = Target::Device(name.into());
            assert_eq!(target.key().split('.').count(), 2, "{name}");
            assert_eq!(target.key().parse::<Target>(), Ok(target));
        }
        for key in ["device.a.b", "device.*", "group.>", "device.", "pump", "x.y", "group.a b", ""]
        {
            assert!(key.parse::<Target>().is_err(), "{key}");
        }
    }
}
