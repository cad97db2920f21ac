//! Bundles: a policy with everything that it refers to, for named devices, signed, in one file.
//!
//! The file is a tar archive in one form only: what [`archive`] would not write itself is not read. The
//! signatures are over the manifest, and the manifest has the digest of every part.

mod archive;
mod build;
mod device;
mod head;
mod manifest;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Seek as _, Write as _},
    ops::Range,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use portcullis_common::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    artifact::digest,
    catalog::{SignedBy, folder},
    policy::{
        source::Signs,
        trust::{PolicyTrust, Why},
    },
};

pub use build::{BuildError, Options, build, build_from};
pub use device::{DEVICE_FILE, Device, parse_device_file, placed, read_device_file};
pub use head::Head;
pub use manifest::{Manifest, Part, Target};

/// Bytes of a bundle: a policy of two million digests.
pub const MAX_BUNDLE: u64 = 256 << 20;

/// Signatures that a bundle may carry.
const MAX_SIGNATURES: usize = 16;

/// Bytes of a signature. A chain of eight RSA certificates has 15,000.
const MAX_SIGNATURE: usize = 64 << 10;

/// The first entry.
const MANIFEST: &str = "manifest.json";
/// What the names of parts begin with.
const PARTS: &str = "parts/";
/// What the names of signatures begin with.
const SIGNATURES: &str = "signatures/";
/// The part that is the policy itself.
pub(crate) const POLICY: &str = "policy.toml";

/// How a signature is made, with the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// CMS.
    Cms,
    /// Raw Ed25519.
    Raw,
}

impl Form {
    /// What a signature is that is CMS, or else raw.
    #[must_use]
    pub const fn of(is_cms: bool) -> Self {
        if is_cms { Self::Cms } else { Self::Raw }
    }
}

const FORMS: [(&str, Form); 2] = [(".p7s", Form::Cms), (".sig", Form::Raw)];

/// A bundle that was read. Its parts are what its manifest says; who signed it is for
/// [`Self::verify`] to find out.
#[derive(Debug)]
pub struct Bundle {
    bytes: Vec<u8>,
    manifest: Manifest,
    signed: Range<usize>,
    parts: Vec<(String, Range<usize>)>,
    signatures: Vec<(Form, Range<usize>)>,
}

/// Opens what begins as a bundle and is no larger than one may be, with its length: whatever else it is does
/// not have to fit into memory.
///
/// # Errors
/// If it is something else.
pub fn open(path: &Path) -> Result<(File, u64), Why> {
    let (mut file, length) = folder::open(path).map_err(unreadable(path))?;
    let start = folder::start_of(&file, MANIFEST.len()).map_err(unreadable(path))?;
    if start != MANIFEST.as_bytes() {
        return Err(malformed("it is no bundle"));
    }
    if length > MAX_BUNDLE {
        return Err(unreadable(path)(format!("is larger than {MAX_BUNDLE} bytes")));
    }
    file.rewind().map_err(|error| unreadable(path)(error.to_string()))?;
    Ok((file, length))
}

/// Reads all of what was opened.
///
/// # Errors
/// If it cannot be read, or has become too large.
pub fn read_opened(path: &Path, opened: (File, u64)) -> Result<Vec<u8>, Why> {
    folder::read_open(opened, MAX_BUNDLE).map_err(unreadable(path))
}

fn unreadable(path: &Path) -> impl Fn(String) -> Why {
    move |message| ("unreadable", format!("{} {message}", path.display()))
}

fn malformed(what: impl std::fmt::Display) -> Why {
    ("malformed", format!("{what}; make it anew with `portcullis policy build`"))
}

impl Bundle {
    /// Reads a bundle, and compares every part with the manifest.
    ///
    /// # Errors
    /// If it is not exactly what `policy build` and `policy sign` write.
    pub fn read(path: &Path) -> Result<Self, Why> {
        Self::parse(read_opened(path, open(path)?)?)
    }

    /// The same from memory.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Why> {
        let mut entries = archive::entries(&bytes)?.into_iter();
        let (name, signed) = entries.next().ok_or_else(|| malformed("it holds nothing"))?;
        if name != MANIFEST {
            return Err(malformed(format!("it begins with {}", name.escape_debug())));
        }
        let manifest = Manifest::parse(&bytes[signed.clone()]).map_err(malformed)?;
        let (mut parts, mut signatures) = (Vec::new(), Vec::new());
        let mut expected = manifest.parts.iter();
        for (name, range) in entries {
            if let Some(name) = name.strip_prefix(PARTS) {
                let part = expected.next().filter(|part| part.path == name);
                let Some(part) = part.filter(|_| signatures.is_empty()) else {
                    return Err(malformed(format!("{} is not in its place", name.escape_debug())));
                };
                let content = &bytes[range.clone()];
                let found: Digest = Sha256::digest(content).into();
                if content.len() as u64 != part.size || digest::format(&found) != part.sha256 {
                    let message = format!(
                        "{} is not what the manifest says; copy the bundle again",
                        name.escape_debug()
                    );
                    return Err(("part-differs", message));
                }
                parts.push((name.to_owned(), range));
            } else if let Some(name) = name.strip_prefix(SIGNATURES) {
                let form = signature_form(name, &bytes[range.clone()])?;
                signatures.push((form, range));
            } else {
                return Err(malformed(format!("{} does not belong there", name.escape_debug())));
            }
        }
        if let Some(part) = expected.next() {
            return Err(malformed(format!("{} is missing", part.path.escape_debug())));
        }
        if signatures.len() > MAX_SIGNATURES {
            return Err(malformed(format!("it has more than {MAX_SIGNATURES} signatures")));
        }
        Ok(Self { bytes, manifest, signed, parts, signatures })
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The file as it is.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One of its parts, by the name that the manifest gives it.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&[u8]> {
        let (_, range) = self.parts.iter().find(|(known, _)| known == name)?;
        Some(&self.bytes[range.clone()])
    }

    /// The signatures that it carries.
    pub fn each_signature(&self) -> impl Iterator<Item = (Form, &[u8])> {
        self.signatures.iter().map(|(form, range)| (*form, &self.bytes[range.clone()]))
    }

    /// What signatures are over.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.bytes[self.signed.clone()]
    }

    /// SHA-256 of the manifest: its identity, whoever signs it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.signed_bytes()).into()
    }

    /// How many signatures it carries.
    #[must_use]
    pub fn signatures(&self) -> usize {
        self.signatures.len()
    }

    /// The file with one more signature. The same signature twice is one.
    ///
    /// # Errors
    /// If it has too many, or the signature is too large.
    pub fn with_signature(&self, form: Form, signature: &[u8]) -> Result<Vec<u8>, Why> {
        let mut all: Vec<(Form, &[u8])> = self
            .signatures
            .iter()
            .map(|(form, range)| (*form, &self.bytes[range.clone()]))
            .filter(|known| *known != (form, signature))
            .collect();
        if all.len() == MAX_SIGNATURES || signature.len() > MAX_SIGNATURE {
            return Err(malformed(format!(
                "it can have {MAX_SIGNATURES} signatures of {MAX_SIGNATURE} bytes"
            )));
        }
        all.push((form, signature));
        let parts =
            self.parts.iter().map(|(name, range)| (name.as_str(), &self.bytes[range.clone()]));
        encode(self.signed_bytes(), parts, &all)
            .map_err(|error| malformed(format!("it cannot be written: {error}")))
    }

    /// Who signed it, if that is enough: `needed` different signers who may sign policies.
    ///
    /// # Errors
    /// If it is not, with what is wrong with the first signature that does not count.
    pub fn verify(
        &self,
        trust: &PolicyTrust,
        needed: usize,
        now: Option<Timestamp>,
    ) -> Result<Vec<SignedBy>, Why> {
        let signatures: Vec<_> = self.each_signature().collect();
        verify_signatures(trust, needed, self.signed_bytes(), &signatures, now)
    }

    /// Whether it is for this device and this time. Returns what is odd and no reason to refuse it.
    ///
    /// # Errors
    /// If it is for other devices, or for later.
    pub fn check_device(
        &self,
        device: &Device,
        now: Option<Timestamp>,
    ) -> Result<Vec<String>, Why> {
        let Manifest { targets, not_before, expires, .. } = &self.manifest;
        if !targets.iter().any(|target| device.is(target)) {
            let list: Vec<_> = targets.iter().map(ToString::to_string).collect();
            let message = format!("it is for {}, and this is {device}", list.join(", "));
            return Err(("other-device", message));
        }
        let mut warnings = Vec::new();
        match (now, not_before) {
            (Some(now), Some(from)) if now < *from => {
                return Err(("not-yet", format!("it is not to be used before {from}")));
            }
            (None, Some(from)) => warnings.push(format!(
                "the clock is not set, so that nobody can tell whether it is {from} yet"
            )),
            _ => {}
        }
        if let (Some(now), Some(until)) = (now, expires)
            && now >= *until
        {
            warnings.push(format!("it was to be used until {until}; ask for a newer one"));
        }
        Ok(warnings)
    }

    /// Its policy file in a folder, if everything lies there as [`Self::unpack`] writes it.
    #[must_use]
    pub fn unpacked(&self, folder: &Path) -> Option<PathBuf> {
        let is_same = |name: &str, range: &Range<usize>| {
            let content = &self.bytes[range.clone()];
            folder::read(&folder.join(name), content.len() as u64)
                .is_ok_and(|found| found == content)
        };
        let is_whole = self.parts.iter().all(|(name, range)| is_same(name, range));
        is_whole.then(|| folder.join(POLICY))
    }

    /// Writes its parts below a folder that is there and empty, and returns the policy file.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn unpack(&self, folder: &Path) -> io::Result<PathBuf> {
        for (name, range) in &self.parts {
            let path = folder.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = File::create_new(&path)?;
            file.write_all(&self.bytes[range.clone()])?;
            file.sync_all()?;
        }
        File::open(folder)?.sync_all()?;
        Ok(folder.join(POLICY))
    }
}

/// Who signed this, if that is enough: `needed` different signers who may sign policies.
///
/// # Errors
/// If it is not, with what is wrong with the first signature that does not count.
pub fn verify_signatures(
    trust: &PolicyTrust,
    needed: usize,
    content: &[u8],
    signatures: &[(Form, &[u8])],
    now: Option<Timestamp>,
) -> Result<Vec<SignedBy>, Why> {
    if !trust.signs_policies() {
        let message = "the policy in force lets nobody sign policies; name somebody in it with \
                       [[signer]] and signs = [\"policy\"]";
        return Err(("no-signers", message.into()));
    }
    let (mut good, mut bad) = (Vec::new(), None);
    for (form, signature) in signatures {
        let verified = match form {
            Form::Cms => trust.verify_cms(content, signature, Signs::POLICY, now),
            Form::Raw => trust.verify_raw(content, signature, Signs::POLICY, now),
        };
        match verified {
            Ok(by) => good.extend(by),
            Err(why) => bad = bad.or(Some(why)),
        }
    }
    // Two keys of one signer are one, and so is one key that the policy has under two names.
    let (mut names, mut keys, mut signers) = (BTreeSet::new(), BTreeSet::new(), 0);
    for SignedBy { signer, key, .. } in &good {
        let is_new_name = names.insert(signer.as_str());
        signers += usize::from(keys.insert(key.as_str()) && is_new_name);
    }
    if signers >= needed {
        return Ok(good);
    }
    match bad {
        Some(why) if good.is_empty() => Err(why),
        _ if signatures.is_empty() => {
            let message = "nobody has signed it; `portcullis policy sign` does";
            Err(("unsigned", message.into()))
        }
        _ => Err((
            "too-few-signatures",
            format!("{signers} of the {needed} signers that the policy asks for have signed it"),
        )),
    }
}

fn signature_form(name: &str, signature: &[u8]) -> Result<Form, Why> {
    let known = FORMS.iter().find_map(|(suffix, form)| Some((name.strip_suffix(suffix)?, *form)));
    let sha256: Digest = Sha256::digest(signature).into();
    match known {
        Some((stem, form))
            if stem == digest::format(&sha256) && signature.len() <= MAX_SIGNATURE =>
        {
            Ok(form)
        }
        _ => Err(malformed(format!("signature {} has another name", name.escape_debug()))),
    }
}

/// The file of a manifest, the parts that it names, and signatures in any order.
fn encode<'a>(
    manifest: &[u8],
    parts: impl Iterator<Item = (&'a str, &'a [u8])>,
    signatures: &[(Form, &[u8])],
) -> io::Result<Vec<u8>> {
    let mut archive = archive::Writer::new();
    archive.add(MANIFEST, manifest)?;
    for (name, content) in parts {
        archive.add(&format!("{PARTS}{name}"), content)?;
    }
    let mut named: Vec<_> = signatures
        .iter()
        .map(|(form, signature)| {
            let sha256: Digest = Sha256::digest(signature).into();
            let suffix = if *form == Form::Cms { ".p7s" } else { ".sig" };
            (format!("{SIGNATURES}{}{suffix}", digest::format(&sha256)), *signature)
        })
        .collect();
    named.sort();
    for (name, signature) in named {
        archive.add(&name, signature)?;
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests;
