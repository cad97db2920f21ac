//! Which versions of catalogs were in force, so that an old one does not come back.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::durable;

/// A catalog that was in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its version.
    pub version: u64,
    /// SHA-256 of its text, in hexadecimal.
    pub sha256: String,
}

/// The highest version of each catalog that was in force, by `SIGNER/CATALOG`.
#[derive(Debug, Default)]
pub struct Versions {
    file: PathBuf,
    seen: BTreeMap<String, Seen>,
    /// What is wrong with the file, if this comes from its second copy.
    pub recovered: Option<String>,
}

/// Why what was seen is not known or cannot be kept.
#[derive(Debug, Error)]
pub enum VersionsError {
    /// The file is there and cannot be read or written.
    #[error("{}: {source}", file.display())]
    File {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{}: is damaged: {source}", file.display())]
    Damaged {
        /// Which.
        file: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
}

impl Versions {
    /// Reads the file; one that is not there knows nothing.
    ///
    /// # Errors
    /// If it is there and says nothing that can be understood.
    pub fn load(file: &Path) -> Result<Self, VersionsError> {
        let parse = |bytes: &[u8]| {
            serde_json::from_slice(bytes)
                .map_err(|source| VersionsError::Damaged { file: file.to_owned(), source })
        };
        let unreadable = |source| VersionsError::File { file: file.to_owned(), source };
        let (seen, recovered) = durable::read_either(file, parse, unreadable)?;
        let mut versions = Self { file: file.to_owned(), seen, recovered };
        versions.take_in(durable::read_copy(file, parse).unwrap_or_default());
        Ok(versions)
    }

    /// What the second copy knows. As versions only rise and the file is written first, it never knows more,
    /// unless bytes of the file have changed to something that can be read all the same.
    fn take_in(&mut self, copy: BTreeMap<String, Seen>) {
        let mut is_behind = false;
        for (key, seen) in copy {
            is_behind |= self.raise_key(key, seen);
        }
        if is_behind {
            let file = self.file.display();
            self.recovered.get_or_insert_with(|| format!("{file}: its copy knows more"));
        }
    }

    /// Knows nothing, and will be kept in `file`.
    #[must_use]
    pub fn none(file: &Path) -> Self {
        Self { file: file.to_owned(), seen: BTreeMap::new(), recovered: None }
    }

    /// The highest version that was in force.
    #[must_use]
    pub fn highest(&self, signer: &str, catalog: &str) -> Option<&Seen> {
        self.seen.get(&key(signer, catalog))
    }

    /// Takes a version in. Returns whether that is news.
    pub fn raise(&mut self, signer: &str, catalog: &str, now: Seen) -> bool {
        self.raise_key(key(signer, catalog), now)
    }

    fn raise_key(&mut self, key: String, now: Seen) -> bool {
        let is_news = self.seen.get(&key).is_none_or(|known| known.version < now.version);
        if is_news {
            self.seen.insert(key, now);
        }
        is_news
    }

    /// Keeps what is known: whole or not at all, also through a power cut.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn store(&self) -> Result<(), VersionsError> {
        let stored = durable::replace_both(&self.file, |out| {
            serde_json::to_writer_pretty(&mut *out, &self.seen)?;
            out.write_all(b"\n")
        });
        stored.map_err(|source| VersionsError::File { file: self.file.clone(), source })
    }
}

/// Names have no slash, so this is one to one.
fn key(signer: &str, catalog: &str) -> String {
    format!("{signer}/{catalog}")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn seen(version: u64) -> Seen {
        Seen { version, sha256: "aa".into() }
    }

    #[test]
    fn only_rises_and_survives() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state/catalogs.json");
        let mut versions = Versions::load(&file).expect("nothing yet");
        assert!(versions.raise("acme", "pump", seen(3)));
        assert!(!versions.raise("acme", "pump", seen(3)));
        assert!(!versions.raise("acme", "pump", seen(2)));
        assert!(versions.raise("other", "pump", seen(1)));
        versions.store().expect("written");
        let again = Versions::load(&file).expect("readable");
        assert_eq!(again.highest("acme", "pump"), Some(&seen(3)));
        assert_eq!(again.highest("acme", "motor"), None);
        fs::write(&file, "{").expect("written");
        let copied = Versions::load(&file).expect("its copy is good");
        assert_eq!(copied.highest("acme", "pump"), Some(&seen(3)));
        assert!(copied.recovered.is_some());
        // Bytes that have changed, and are JSON all the same.
        let text = fs::read_to_string(file.with_extension("json.copy")).expect("readable");
        fs::write(&file, text.replace("acme/", "abme/")).expect("written");
        let more = Versions::load(&file).expect("both are good");
        assert_eq!(more.highest("acme", "pump"), Some(&seen(3)));
        assert!(more.recovered.is_some_and(|why| why.ends_with("its copy knows more")));
        fs::write(&file, "{").expect("written");
        fs::write(file.with_extension("json.copy"), "{").expect("written");
        let error = Versions::load(&file).expect_err("damaged").to_string();
        assert!(error.contains("catalogs.json: is damaged"), "{error}");
    }
}
