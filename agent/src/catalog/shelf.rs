//! Catalogs that a fleet's servers have brought, each in a file of its own. The servers may be anybody's:
//! what they bring is judged as any catalog is, takes the place of an older one of that name only, and is
//! bounded; and what takes digests back they cannot take away.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use portcullis_common::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Catalog, SignedBy, accept,
    accept::Signed,
    folder,
    parcel::{self, MAX_PARCEL},
    versions::Versions,
};
use crate::{
    durable,
    policy::{manifest::is_name, trust::Why},
    reader::Unchecked,
};

/// Catalogs that are kept.
pub const MAX_KEPT: usize = 32;

/// Bytes that they may have in all.
pub const MAX_BYTES: u64 = 256 << 20;

const PREFIX: &str = "catalog-";
const SUFFIX: &str = ".parcel";

/// The folder.
#[derive(Clone, Debug)]
pub struct Shelf {
    folder: PathBuf,
}

/// A catalog that is kept, in force or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its name.
    pub name: String,
    /// SHA-256 of it with its signatures, as the servers carry it, in hexadecimal.
    pub sha256: String,
}

/// A catalog that was taken.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Where it lies now.
    pub path: PathBuf,
    /// What is kept.
    pub kept: Kept,
    /// Its maker's number for it.
    pub version: u64,
    /// SHA-256 of its text.
    pub digest: Digest,
    /// Who signed it.
    pub by: Vec<SignedBy>,
    /// How many digests it lists, and how many it takes back.
    pub counts: (usize, usize),
    /// Whether it was not there already.
    pub is_new: bool,
}

/// A catalog that the servers have taken away again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenAway {
    /// Where it lay.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
}

/// Why the disk does not do it, as [`Why`]: it is not the catalog's fault.
pub const DISK: &str = "disk";

fn on_disk(folder: &Path) -> impl Fn(io::Error) -> Why {
    move |error| (DISK, format!("{}: {error}", folder.display()))
}

/// What is known of a catalog that is to be replaced or taken away, whoever has signed it.
struct Before {
    sha256: String,
    /// None if it cannot be read, and so allows and denies nothing.
    says: Option<Says>,
}

struct Says {
    version: u64,
    withdrawn: usize,
    /// Who signed it, of those who are trusted now.
    signers: Vec<String>,
}

impl Shelf {
    /// In this folder, which need not be there.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{PREFIX}{name}{SUFFIX}"))
    }

    /// What is there, by name.
    fn list(&self) -> io::Result<Vec<(String, PathBuf)>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            let name = file.to_str().and_then(|file| file.strip_prefix(PREFIX));
            if let Some(name) = name.and_then(|name| name.strip_suffix(SUFFIX)) {
                found.push((name.to_owned(), self.folder.join(&file)));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Reads everything that is there; what can be read goes to `kept`, whether it counts or not.
    pub(super) fn read(
        &self,
        signed: &Signed<'_>,
        kept: &mut Vec<Kept>,
    ) -> Vec<(PathBuf, Result<Catalog, Why>)> {
        let listed = match self.list() {
            Ok(listed) => listed,
            Err(error) => {
                let why = ("unreadable", format!("what the fleet has brought: {error}"));
                return vec![(self.folder.clone(), Err(why))];
            }
        };
        let read = |(name, path): (String, PathBuf)| {
            let bytes = folder::read(&path, MAX_PARCEL).map_err(|why| ("unreadable", why));
            let opened = bytes.and_then(|bytes| {
                kept.push(Kept { name, sha256: hex::encode(Sha256::digest(&bytes)) });
                parcel::open(&path, &bytes, signed)
            });
            (path, opened)
        };
        listed.into_iter().take(MAX_KEPT).map(read).collect()
    }

    /// Takes a parcel, if it counts, and leaves an older one of that name.
    ///
    /// # Errors
    /// If it does not count, or may not take that place; then what was there is still there.
    pub fn take(
        &self,
        file: &Path,
        signed: &Signed<'_>,
        versions: &Versions,
    ) -> Result<Taken, Why> {
        let bytes = folder::read(file, MAX_PARCEL).map_err(|why| ("unreadable", why))?;
        let catalog = parcel::open(Path::new("catalog"), &bytes, signed)?;
        accept::check_version(&catalog, versions)?;
        let sha256 = hex::encode(Sha256::digest(&bytes));
        let path = self.path(&catalog.name);
        let before = self.before(&path, signed)?;
        let is_new = before.as_ref().is_none_or(|before| before.sha256 != sha256);
        let taken = Taken {
            path: path.clone(),
            kept: Kept { name: catalog.name.clone(), sha256 },
            version: catalog.version,
            digest: catalog.digest,
            counts: (catalog.entries.len(), catalog.withdrawn.len()),
            is_new,
            by: catalog.by,
        };
        if !is_new {
            return Ok(taken);
        }
        if let Some(says) = before.and_then(|before| before.says) {
            may_follow(&taken, &says)?;
        }
        self.check_room(&path, bytes.len() as u64)?;
        let written = durable::replace(&path, |out| out.write_all(&bytes));
        written.map_err(on_disk(&self.folder))?;
        Ok(taken)
    }

    /// Takes a catalog away; none if there is none of that name.
    ///
    /// # Errors
    /// If it takes digests back.
    pub fn take_away(&self, name: &str, signed: &Signed<'_>) -> Result<Option<TakenAway>, Why> {
        if !is_name(name) {
            return Err(("no-catalog", "no catalog can be called so".into()));
        }
        let path = self.path(name);
        let Some(Before { says, .. }) = self.before(&path, signed)? else { return Ok(None) };
        if let Some(Says { withdrawn: count @ 1.., version, .. }) = says {
            let message = format!(
                "version {version} of {name} takes {count} digests back, so it stays until a newer one of that \
                 name replaces it"
            );
            return Err(("withdraws", message));
        }
        let gone = fs::remove_file(&path).and_then(|()| File::open(&self.folder)?.sync_all());
        gone.map_err(on_disk(&self.folder))?;
        Ok(Some(TakenAway { path, name: name.to_owned() }))
    }

    fn before(&self, path: &Path, signed: &Signed<'_>) -> Result<Option<Before>, Why> {
        if !path.try_exists().map_err(on_disk(&self.folder))? {
            return Ok(None);
        }
        let Ok(bytes) = folder::read(path, MAX_PARCEL) else {
            return Ok(Some(Before { sha256: String::new(), says: None }));
        };
        // It was looked at before it was taken.
        let signed = Signed { check: &Unchecked, ..*signed };
        let by = parcel::open(path, &bytes, &signed).map(|catalog| catalog.by);
        let signers = by.unwrap_or_default().into_iter().map(|by| by.signer).collect();
        let says = parcel::text_of(&bytes).and_then(|text| {
            Some(Says { version: text.version?, withdrawn: text.withdrawn.len(), signers })
        });
        Ok(Some(Before { sha256: hex::encode(Sha256::digest(&bytes)), says }))
    }

    /// Whether there is room for so many bytes in the place of what is there.
    fn check_room(&self, path: &Path, bytes: u64) -> Result<(), Why> {
        let mut others = self.list().map_err(on_disk(&self.folder))?;
        others.retain(|(_, other)| other != path);
        if others.len() >= MAX_KEPT {
            let message =
                format!("{MAX_KEPT} catalogs are here already; join them, or take one away");
            return Err(("too-many", message));
        }
        let sizes = others.iter().filter_map(|(_, other)| fs::metadata(other).ok());
        if sizes.map(|other| other.len()).sum::<u64>() + bytes > MAX_BYTES {
            let message = format!("catalogs of a fleet may have {MAX_BYTES} bytes in all");
            return Err(("too-large", message));
        }
        Ok(())
    }
}

/// Whether a catalog may take the place of another one.
fn may_follow(taken: &Taken, before: &Says) -> Result<(), Why> {
    let (name, version) = (&taken.kept.name, taken.version);
    if version < before.version {
        let message = format!(
            "version {version} of {name} is older than version {}, which is here",
            before.version
        );
        return Err(("rollback", message));
    }
    if version == before.version {
        let message =
            format!("another catalog is here as version {version} of {name}; raise the version");
        return Err(("same-version", message));
    }
    let signs = |signer: &String| taken.by.iter().any(|by| by.signer == *signer);
    if let Some(missing) = before.signers.iter().find(|signer| !signs(signer)) {
        let message = format!(
            "{missing} signed the catalog {name} that is here, and has not signed this one; give it another \
             name"
        );
        return Err(("other-signer", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
