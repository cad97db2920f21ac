//! What is said through the servers: what a device shall do, and how it is.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{listing::OfCatalog, names::Target};
use crate::{event::PolicyId, policy::bundle::MAX_BUNDLE};

/// Bytes of what is wanted.
pub const MAX_WANTED: usize = 8 << 10;

/// Bytes of a report.
pub const MAX_REPORT: usize = 32 << 10;

/// Characters of a text in a report.
const MAX_TEXT: usize = 500;

/// Checks in a report.
const MAX_CHECKS: usize = 16;

/// Catalogs in a report: more than a device can have, as some are refused.
const MAX_CATALOGS: usize = 64;

/// What a device or a group shall do. It replaces what was wanted before; doing it twice does no more
/// than doing it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Names it in answers.
    pub id: String,
    /// What it is.
    #[serde(flatten)]
    pub what: What,
}

/// What a device shall do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum What {
    /// Put a bundle in force.
    Push {
        /// Where it is.
        bundle: Stored,
        /// Take it back unless it is confirmed within so many seconds.
        confirm_within: Option<u64>,
        /// Whether it is.
        confirmed: bool,
    },
    /// Put in force what was before something that was wanted earlier.
    Rollback {
        /// The id of that; a device that has not done it does nothing.
        of: String,
        /// Why.
        because: String,
    },
}

/// A bundle among the servers' bundles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// For whom it was stored.
    pub at: Target,
    /// SHA-256 of it, in hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

impl Wanted {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be understood, for people.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_WANTED {
            return Err(format!("it has more than {MAX_WANTED} bytes"));
        }
        let wanted: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if !is_id(&wanted.id) {
            return Err("its id is none".into());
        }
        if let What::Push { bundle: Stored { sha256, bytes, .. }, .. } = &wanted.what {
            if crate::artifact::digest::parse(sha256).is_err() {
                return Err("its bundle's sha256 is none".into());
            }
            if !(1..=MAX_BUNDLE).contains(bytes) {
                return Err(format!("its bundle has {bytes} bytes, which none has"));
            }
        }
        Ok(wanted)
    }
}

/// A new id.
///
/// # Errors
/// If the system gives no random numbers.
pub fn new_id() -> std::io::Result<String> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(hex::encode(bytes))
}

fn is_id(id: &str) -> bool {
    id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What became of what was wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The id of that.
    pub id: String,
    /// When the servers took it in, which puts all that was ever wanted in an order.
    pub wanted_at: Timestamp,
    /// What became of it.
    pub result: Outcome,
    /// Whether it was confirmed.
    pub confirmed: bool,
    /// When it is taken back unless it is confirmed.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// The policy that it put in force.
    #[serde(default)]
    pub policy: Option<PolicyId>,
    /// For people.
    #[serde(default)]
    pub message: Option<String>,
}

/// What became of what was wanted, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It is done.
    Done,
    /// The device says no, and does not try it again.
    Refused,
    /// It could not be done so far, and is tried again.
    Waiting,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its name.
    pub device: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// `ok`, `warning`, `failed`, or `no-agent`.
    pub health: String,
    /// What is wrong.
    #[serde(default)]
    pub checks: Vec<Finding>,
    /// The mode in force.
    #[serde(default)]
    pub mode: Option<String>,
    /// The policy in force.
    #[serde(default)]
    pub policy: Option<PolicyId>,
    /// The agent's version.
    #[serde(default)]
    pub version: Option<String>,
    /// What became of what was wanted last.
    #[serde(default)]
    pub answered: Option<Answered>,
    /// What became of the catalogs that it shall have.
    #[serde(default)]
    pub catalogs: Vec<OfCatalog>,
}

/// Something that is wrong with a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was checked.
    pub title: String,
    /// `warning` or `failed`.
    pub state: String,
    /// What was found.
    pub found: String,
}

/// A text that is not too long to be sent.
#[must_use]
pub fn short(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

impl Report {
    /// Reads what a device has said.
    ///
    /// # Errors
    /// If it cannot be understood, for people, or is not about this device.
    pub fn read(device: &str, bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_REPORT {
            return Err(format!("it has more than {MAX_REPORT} bytes"));
        }
        let report: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if report.device != device {
            return Err("it is about another device".into());
        }
        Ok(report)
    }

    /// It as it is sent.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn written(mut self) -> serde_json::Result<Vec<u8>> {
        self.checks.truncate(MAX_CHECKS);
        for Finding { title, found, .. } in &mut self.checks {
            (*title, *found) = (short(title), short(found));
        }
        if let Some(Answered { message: Some(message), .. }) = &mut self.answered {
            *message = short(message);
        }
        self.catalogs.truncate(MAX_CATALOGS);
        let bytes = serde_json::to_vec(&self)?;
        if bytes.len() <= MAX_REPORT {
            return Ok(bytes);
        }
        // Control characters become long in JSON, and many reasons are long as well.
        for catalog in &mut self.catalogs {
            catalog.message = None;
        }
        let bytes = serde_json::to_vec(&self)?;
        if bytes.len() <= MAX_REPORT {
            return Ok(bytes);
        }
        self.checks.clear();
        if let Some(answered) = &mut self.answered {
            answered.message = None;
        }
        serde_json::to_vec(&self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::listing::State;

    fn push(bytes: u64, sha256: &str) -> Wanted {
        let bundle = Stored { at: Target::Group("plant-7".into()), sha256: sha256.into(), bytes };
        let what = What::Push { bundle, confirm_within: Some(300), confirmed: false };
        Wanted { id: "0123456789abcdef".into(), what }
    }

    fn read(wanted: &Wanted) -> Result<Wanted, String> {
        Wanted::read(&serde_json::to_vec(wanted).expect("written"))
    }

    #[test]
    fn what_is_wanted_is_read_as_it_was_written_or_not_at_all() {
        let digest = "ab".repeat(32);
        let good = push(1000, &digest);
        assert_eq!(read(&good), Ok(good.clone()));
        let back = What::Rollback { of: good.id.clone(), because: "a test".into() };
        let back = Wanted { what: back, ..good.clone() };
        assert_eq!(read(&back), Ok(back));
        let other = Wanted { id: "../x".into(), ..good };
        for bad in [push(0, &digest), push(MAX_BUNDLE + 1, &digest), push(1, "ab"), other] {
            assert!(read(&bad).is_err(), "{bad:?}");
        }
        for bad in ["", "{}", "[]", "{\"id\":\"0123456789abcdef\",\"do\":\"stop\"}"] {
            assert!(Wanted::read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Wanted::read(&vec![b' '; MAX_WANTED + 1]).is_err());
    }

    #[test]
    fn a_report_fits() {
        let finding = Finding {
            title: "\u{1}".repeat(10_000),
            state: "warning".into(),
            found: "\u{1}".repeat(10_000),
        };
        let catalog = OfCatalog::new(&"n".repeat(64), &"ab".repeat(32), State::Refused);
        let catalog = catalog.because(&"\u{1}".repeat(10_000));
        let report = Report {
            device: "pump-3".into(),
            groups: Vec::new(),
            health: "warning".into(),
            checks: vec![finding; 100],
            mode: None,
            policy: None,
            version: None,
            answered: None,
            catalogs: vec![catalog; 100],
        };
        let written = report.written().expect("written");
        let read = Report::read("pump-3", &written).expect("fits");
        assert_eq!((read.health.as_str(), read.catalogs.len()), ("warning", MAX_CATALOGS));
        assert!(Report::read("pump-4", &written).is_err(), "another's report");
    }
}
