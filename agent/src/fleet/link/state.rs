//! What the link must not forget over restarts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::catalogs::Synced;
use crate::{durable, fleet::words::Answered};

/// The link's files.
#[derive(Debug)]
pub struct Kept {
    answered: PathBuf,
    catalogs: PathBuf,
    cursor: PathBuf,
}

/// Up to which record events were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The record's number.
    pub record: u64,
    /// When that happened.
    pub time: Option<Timestamp>,
}

impl Kept {
    /// In this folder, which must be there.
    ///
    /// # Errors
    /// If nothing can be kept there.
    pub fn new(folder: &Path) -> io::Result<Self> {
        tempfile::tempfile_in(folder).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", folder.display()))
        })?;
        Ok(Self {
            answered: folder.join("answered.json"),
            catalogs: folder.join("catalogs.json"),
            cursor: folder.join("events.json"),
        })
    }

    /// What became of what was wanted last.
    #[must_use]
    pub fn answered(&self) -> Option<Answered> {
        read(&self.answered)
    }

    /// Keeps that.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn keep(&self, answered: &Answered) -> io::Result<()> {
        write(&self.answered, answered)
    }

    /// What is known of catalogs.
    #[must_use]
    pub(super) fn synced(&self) -> Synced {
        read(&self.catalogs).unwrap_or_default()
    }

    /// Keeps that.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub(super) fn keep_synced(&self, synced: &Synced) -> io::Result<()> {
        write(&self.catalogs, synced)
    }

    /// Up to which record events were sent.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        read(&self.cursor).unwrap_or_default()
    }

    /// Keeps that.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn keep_cursor(&self, cursor: Cursor) -> io::Result<()> {
        write(&self.cursor, &cursor)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read(path).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!("{}: {error}; begun anew", path.display()))
        .ok()
}

fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(value)?;
    durable::replace(path, |file| file.write_all(&text))
}
