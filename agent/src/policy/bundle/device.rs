//! Which device this is.

use std::{fmt, fs, io, path::Path};

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::Target;
use crate::policy::manifest::is_name;

/// Where the device's name and groups stand.
pub const DEVICE_FILE: &str = "/etc/portcullis/device.toml";

/// A device as bundles name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: Option<String>,
    /// The groups that it belongs to.
    pub groups: Vec<String>,
}

/// The file. What else is in it is for others to understand, so that a mistake there does not keep
/// bundles away.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviceFile {
    name: Option<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(rename = "api")]
    _api: Option<IgnoredAny>,
    #[serde(rename = "sink")]
    _sinks: Option<IgnoredAny>,
    #[serde(rename = "fleet")]
    _fleet: Option<IgnoredAny>,
    #[serde(rename = "high_water")]
    _high_water: Option<IgnoredAny>,
}

/// A mistake in a TOML file, with its line.
#[must_use]
pub fn placed(path: &Path, text: &str, offset: usize, message: &str) -> String {
    let before = text.as_bytes().iter().take(offset);
    let line = before.filter(|byte| **byte == b'\n').count() + 1;
    format!("{}:{line}: {message}", path.display())
}

/// Reads the device's file; none if there is none.
///
/// # Errors
/// If it is there and cannot be read, for people.
pub fn read_device_file(path: &Path) -> Result<Option<String>, String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(|error| format!("{}: {error}", path.display())),
    }
}

/// Understands the device's file as far as somebody cares; `help` is what to write there.
///
/// # Errors
/// If it cannot be understood, with the line, for people.
pub fn parse_device_file<T: DeserializeOwned>(
    path: &Path,
    text: &str,
    help: &str,
) -> Result<T, String> {
    toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start);
        placed(path, text, offset, &format!("{}; {help}", error.message()))
    })
}

impl Device {
    /// Reads the file; without one the device has no name and no group.
    ///
    /// # Errors
    /// If it is there and cannot be understood, for people.
    pub fn read(path: &Path) -> Result<Self, String> {
        let Some(text) = read_device_file(path)? else { return Ok(Self::default()) };
        Self::parse(path, &text)
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// If it cannot be understood, for people.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let help = "write name = \"pump-3\" and groups = [\"plant-7\"]";
        let DeviceFile { name, groups, .. } = parse_device_file(path, text, help)?;
        let device = Self { name, groups };
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
