//! Which catalogs of a folder are in force, and why the others are not.

use std::{
    collections::BTreeMap,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use portcullis_common::Digest;
use serde::Serialize;
use sha2::Digest as _;

use super::{
    Catalog, Refused, SignedBy,
    folder::{self, Document, Form, Kind, MAX_DOCUMENT, MAX_SIGNATURE},
    shelf::{Kept, Shelf},
    versions::{Seen, Versions},
};
use crate::{
    artifact::digest,
    policy::{
        manifest,
        source::Signs,
        trust::{PolicyTrust, Why},
    },
    reader::{self, Check, Task, Unchecked},
};

/// Everything that a folder holds.
#[derive(Debug, Default)]
pub struct Reading {
    /// In force, in the order of their names.
    pub catalogs: Vec<Catalog>,
    /// Not in force.
    pub refused: Vec<Refused>,
    /// What the fleet's servers have brought, in force or not.
    pub kept: Vec<Kept>,
}

/// By whom signatures count, and when. `now` is not given if the clock cannot be trusted.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// Whom the policy trusts.
    pub trust: &'a PolicyTrust,
    /// The time, if it is known.
    pub now: Option<Timestamp>,
    /// What looks at everything before it is read.
    pub check: &'a dyn Check,
}

impl Signed<'_> {
    /// Who signed a text with a signature beside it.
    pub(super) fn beside(
        &self,
        form: Form,
        text: &[u8],
        signature: &[u8],
    ) -> Result<Vec<SignedBy>, Why> {
        match form {
            Form::Attached => Ok(Vec::new()),
            Form::Detached => self.trust.verify_cms(text, signature, Signs::CATALOG, self.now),
            Form::Raw => self.trust.verify_raw(text, signature, Signs::CATALOG, self.now),
        }
    }
}

/// Reads every document of the folder, and what the fleet's servers have brought, and verifies it by
/// `trust`, to which the folder's changes of keys are added first. `now` is not given if the clock cannot be
/// trusted.
pub fn read_folder(
    folder: &Path,
    shelf: &Shelf,
    trust: &mut PolicyTrust,
    versions: &Versions,
    (check, now): (&dyn Check, Option<Timestamp>),
) -> Reading {
    let mut reading = Reading::default();
    let documents = match folder::list(folder) {
        Ok((documents, refused)) => {
            reading.refused = refused;
            documents
        }
        Err(error) => {
            reading.refused.push(Refused {
                path: folder.to_owned(),
                reason: "unreadable".into(),
                message: format!("the folder of catalogs cannot be read: {error}"),
            });
            Vec::new()
        }
    };
    let documents = rotate(documents, trust, (check, now), &mut reading.refused);
    let mut found = Vec::new();
    for document in documents {
        let read = open(&document, &Signed { trust, now, check });
        match read.and_then(|(text, by)| catalog(&document.path, &text, by, trust)) {
            Ok(catalog) => found.push(catalog),
            Err(why) => reading.refused.push(refusal(document.path, why)),
        }
    }
    // What lies there was looked at before it was taken, and nobody but the agent changes it. A catalog that
    // takes digests back must not depend on a process that others can end.
    let brought = shelf.read(&Signed { trust, now, check: &Unchecked }, &mut reading.kept);
    for (path, catalog) in brought {
        match catalog {
            Ok(catalog) => found.push(catalog),
            Err(why) => reading.refused.push(refusal(path, why)),
        }
    }
    for catalog in newest(found, &mut reading.refused) {
        match check_version(&catalog, versions) {
            Ok(()) => reading.catalogs.push(catalog),
            Err(why) => reading.refused.push(refusal(catalog.path, why)),
        }
    }
    reading
}

fn refusal(path: PathBuf, (reason, message): Why) -> Refused {
    Refused { path, reason: reason.into(), message }
}

/// Adds the changes of keys that lie in a folder to `trust`.
pub fn rotate_by(
    folder: &Path,
    trust: &mut PolicyTrust,
    (check, now): (&dyn Check, Option<Timestamp>),
) {
    if let Ok((documents, _)) = folder::list(folder) {
        // What is refused is told by who reads the folder.
        drop(rotate(documents, trust, (check, now), &mut Vec::new()));
    }
}

/// Takes in every change of a key, and returns the other documents. One may be signed with the key
/// that another one brings, whatever their names are.
fn rotate(
    documents: Vec<Document>,
    trust: &mut PolicyTrust,
    (check, now): (&dyn Check, Option<Timestamp>),
    refused: &mut Vec<Refused>,
) -> Vec<Document> {
    let (mut waiting, others): (Vec<_>, Vec<_>) =
        documents.into_iter().partition(|document| document.kind == Kind::Rotation);
    loop {
        let before = waiting.len();
        let mut failed = Vec::new();
        waiting.retain(|document| {
            let opened = open(document, &Signed { trust, now, check });
            let taken = opened.and_then(|(text, by)| trust.rotate(&text, &by));
            taken.map_err(|why| failed.push(refusal(document.path.clone(), why))).is_err()
        });
        if waiting.is_empty() || waiting.len() == before {
            refused.append(&mut failed);
            return others;
        }
    }
}

/// The document's text and who signed it, if every signature is good and trusted for that.
pub(super) fn open(
    document: &Document,
    signed: &Signed<'_>,
) -> Result<(Vec<u8>, Vec<SignedBy>), Why> {
    let read = |path: &Path, limit| folder::read(path, limit).map_err(|why| ("unreadable", why));
    let attached = document.signatures.get(&Form::Attached);
    let first = read(attached.unwrap_or(&document.path), MAX_DOCUMENT)?;
    let mut beside = Vec::new();
    for (form, path) in &document.signatures {
        if *form != Form::Attached {
            beside.push((*form, read(path, MAX_SIGNATURE)?));
        }
    }
    let form = check_document(document, &first, &beside, signed)?;
    let mut by = Vec::new();
    let text = match attached {
        Some(message) => {
            let (text, signers) = signed.trust.open_message(&first, Signs::CATALOG, signed.now)?;
            by.extend(signers);
            check_beside(message, &text)?;
            text
        }
        None => first,
    };
    for (form, signature) in &beside {
        by.extend(signed.beside(*form, &text, signature)?);
    }
    if by.is_empty() {
        let name = document.path.file_name().unwrap_or_default().to_string_lossy();
        return Err((
            "unsigned",
            format!(
                "there is no {name}.p7s or {name}.sig beside it; `portcullis catalog sign` makes one"
            ),
        ));
    }
    // Who may not sign it is told first.
    form?;
    Ok((text, by))
}

/// Has a document read before anything else is done with it. Returns what is wrong with its form.
fn check_document(
    document: &Document,
    first: &[u8],
    beside: &[(Form, Vec<u8>)],
    signed: &Signed<'_>,
) -> Result<reader::Form, Why> {
    let is_attached = document.signatures.contains_key(&Form::Attached);
    let mut pieces = vec![(if is_attached { "p7m" } else { "text" }, first)];
    for (form, signature) in beside {
        pieces.push((if *form == Form::Raw { "sig" } else { "p7s" }, signature));
    }
    let task = Task::Document {
        file: document.path.as_os_str().as_bytes().to_vec(),
        is_rotation: document.kind == Kind::Rotation,
    };
    signed.check.check(&task, &pieces, &signed.trust.trust)
}

/// A message holds its text; if the text lies beside it as well, it must be the same, or nobody could
/// tell which of the two counts.
fn check_beside(message: &Path, text: &[u8]) -> Result<(), Why> {
    let beside = message.with_extension("");
    let is_same = match beside.try_exists() {
        Ok(false) => true,
        _ => folder::read(&beside, MAX_DOCUMENT).is_ok_and(|beside| beside == text),
    };
    if is_same {
        return Ok(());
    }
    let name = beside.file_name().unwrap_or_default().to_string_lossy();
    Err(("content-differs", format!("{name} beside it is another text; remove one of the two")))
}

/// What a catalog holds, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Its maker's name for it; none if it is the change of a key.
    pub name: Option<String>,
    /// Its maker's number for it.
    pub version: Option<u64>,
    /// How many digests it lists.
    pub digests: usize,
    /// How many it takes back.
    pub withdrawn: usize,
}

/// Looks at one document as a device would that trusts `trust` and has seen no catalog yet.
///
/// # Errors
/// If the device would refuse it.
pub fn look_at(
    file: &Path,
    trust: &PolicyTrust,
    now: Option<Timestamp>,
) -> Result<(Looked, Vec<SignedBy>), Why> {
    let document = folder::one(file)?;
    let (text, by) = open(&document, &Signed { trust, now, check: &Unchecked })?;
    if document.kind == Kind::Rotation {
        trust.clone().rotate(&text, &by)?;
        return Ok((Looked { name: None, version: None, digests: 0, withdrawn: 0 }, by));
    }
    let read = catalog(file, &text, by, trust)?;
    let looked = Looked {
        name: Some(read.name),
        version: Some(read.version),
        digests: read.entries.len(),
        withdrawn: read.withdrawn.len(),
    };
    Ok((looked, read.by))
}

/// Reads the text of a catalog, whoever has signed it.
///
/// # Errors
/// If it is none.
pub fn read_text(path: &Path, text: &[u8]) -> Result<(), Why> {
    catalog(path, text, Vec::new(), &PolicyTrust::default()).map(drop)
}

pub(super) fn catalog(
    path: &Path,
    text: &[u8],
    by: Vec<SignedBy>,
    trust: &PolicyTrust,
) -> Result<Catalog, Why> {
    let read = manifest::parse(path, text, None).map_err(|error| {
        // The first mistake is enough in a log.
        let first = error.as_slice().first().map(ToString::to_string);
        ("malformed", first.unwrap_or_default())
    })?;
    let (Some(name), Some(version)) = (read.catalog, read.version) else {
        let message = "it is a plain manifest, without name and version; `portcullis catalog make` \
                       makes a catalog of it";
        return Err(("no-catalog", message.into()));
    };
    if let Some(below) = trust.catalog_revoked_below(&name)
        && version < below
    {
        let message =
            format!("the policy trusts {name} from version {below} on, and this is {version}");
        return Err(("revoked", message));
    }
    let digest: Digest = sha2::Sha256::digest(text).into();
    Ok(Catalog {
        path: path.to_owned(),
        name,
        version,
        digest,
        by,
        entries: read.entries,
        withdrawn: read.withdrawn,
    })
}

/// Whether a newer version, or another one of this version, was in force before.
pub(super) fn check_version(catalog: &Catalog, versions: &Versions) -> Result<(), Why> {
    let Catalog { name, version, .. } = catalog;
    for SignedBy { signer, .. } in &catalog.by {
        let Some(highest) = versions.highest(signer, name) else { continue };
        if catalog.version < highest.version {
            return Err((
                "rollback",
                format!(
                    "version {version} of {name} is older than version {}, which was in force here",
                    highest.version
                ),
            ));
        }
        if catalog.version == highest.version && highest.sha256 != digest::format(&catalog.digest) {
            return Err((
                "same-version",
                format!(
                    "another catalog was in force here as version {version} of {name}; raise the version"
                ),
            ));
        }
    }
    Ok(())
}

/// Of each catalog of each signer the newest.
fn newest(found: Vec<Catalog>, refused: &mut Vec<Refused>) -> Vec<Catalog> {
    let mut best: BTreeMap<(String, String), (u64, Digest, PathBuf)> = BTreeMap::new();
    for catalog in &found {
        for by in &catalog.by {
            let this = (catalog.version, catalog.digest, catalog.path.clone());
            let known = best
                .entry((by.signer.clone(), catalog.name.clone()))
                .or_insert_with(|| this.clone());
            if known.0 < this.0 {
                *known = this;
            }
        }
    }
    let mut kept = Vec::new();
    for catalog in found {
        let better = catalog.by.iter().find_map(|by| {
            let best = best.get(&(by.signer.clone(), catalog.name.clone()))?;
            (best.2 != catalog.path).then_some(best)
        });
        match better {
            None => kept.push(catalog),
            Some((version, digest, path)) => {
                let other = path.file_name().unwrap_or_default().to_string_lossy();
                let (reason, message) = if *version > catalog.version {
                    ("superseded", format!("{other} is version {version} of it"))
                } else if *digest == catalog.digest {
                    ("superseded", format!("{other} is the same"))
                } else {
                    ("same-version", format!("{other} is another version {version} of it"))
                };
                refused.push(Refused { path: catalog.path, reason: reason.into(), message });
            }
        }
    }
    kept
}

impl Reading {
    /// What was in force, to be remembered.
    pub fn remember(&self, versions: &mut Versions) -> bool {
        let mut news = false;
        for catalog in &self.catalogs {
            for by in &catalog.by {
                let sha256 = digest::format(&catalog.digest);
                let seen = Seen { version: catalog.version, sha256 };
                news |= versions.raise(&by.signer, &catalog.name, seen);
            }
        }
        news
    }
}

#[cfg(test)]
pub(in crate::catalog) mod tests;
