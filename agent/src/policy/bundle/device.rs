//! Which device this is.

use std::{fmt, fs, io, path::Path};

use serde::Deserialize;

use super::Target;
use crate::policy::manifest::is_name;

/// Where the device's name and groups stand.
pub const DEVICE_FILE: &str = "/etc/portcullis/device.toml";

/// A device as bundles name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its name.
    pub name: Option<String>,
    /// The groups that it belongs to.
    #[serde(default)]
    pub groups: Vec<String>,
}

impl Device {
    /// Reads the file; without one the device has no name and no group.
    ///
    /// # Errors
    /// If it is there and cannot be understood, for people.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            text => text.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        let help = "write name = \"pump-3\" and groups = [\"plant-7\"]";
        let device: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                text.as_bytes()[..span.start.min(text.len())]
                    .iter()
                    .filter(|b| **b == b'\n')
                    .count()
                    + 1
            });
            format!("{}:{line}: {}; {help}", path.display(), error.message())
        })?;
        let mut names = device.name.iter().chain(&device.groups);
        match names.find(|name| !is_name(name)) {
            None => Ok(device),
            Some(name) => Err(format!(
                "{}: \"{}\" is no name; use letters, digits, `-`, `_` and `.`",
                path.display(),
                name.escape_debug()
            )),
        }
    }

    /// Whether a bundle for `target` is for this device.
    #[must_use]
    pub fn is(&self, target: &Target) -> bool {
        match target {
            Target::All => true,
            Target::Device(name) => self.name.as_ref() == Some(name),
            Target::Group(name) => self.groups.contains(name),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{}", Target::Device(name.clone()))?,
            None => write!(f, "a device without a name ({DEVICE_FILE})")?,
        }
        self.groups.iter().try_for_each(|group| write!(f, " {}", Target::Group(group.clone())))
    }
}
