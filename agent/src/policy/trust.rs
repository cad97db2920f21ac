//! Whom a policy trusts, for what, and what it has revoked.

use std::path::Path;

use jiff::Timestamp;
use portcullis_common::Kinds;

use super::{
    diagnostic::{Diagnostic, Text},
    files::{Disk, Files},
    manifest::kinds_words,
    source::{AnchorSource, Revoked, SignerSource, Signs, Source},
};
use crate::{
    catalog::SignedBy,
    trust::{
        HashAlgorithm, Rejected, Revocations, Trust, Verified,
        certificate::Certificate,
        cms, ima,
        key::PublicKey,
        raw,
        signer::{Anchor, Requirements, Signer, Slot},
    },
};

/// The signers of a policy.
#[derive(Clone, Debug, Default)]
pub struct PolicyTrust {
    /// Anchors and revocations. A signer with several anchors stands there several times.
    pub trust: Trust,
    /// Which kinds of signature count, for each of [`Trust::signers`].
    signs: Vec<Signs>,
    /// Names of catalogs, each with the first version that is trusted.
    revoked_catalogs: Vec<(String, u64)>,
}

/// Why a signature does not count: a stable word, and a line for people.
pub type Why = (&'static str, String);

/// What the first line of a change of keys is.
const ROTATION: &str = "# portcullis rotation 1";
/// What names the signer in it.
const ROTATED: &str = "# signer:";

impl PolicyTrust {
    /// Reads the keys and certificates that a policy names. Mistakes go to `found`.
    pub(super) fn load(
        files: &dyn Files,
        folder: &Path,
        source: &Source,
        (place, found): (&Text<'_>, &mut Vec<Diagnostic>),
    ) -> Self {
        let mut policy = Self::default();
        for signer in &source.signers {
            for (anchor, offset) in &signer.anchors {
                match anchor_of(files, folder, anchor) {
                    Ok(anchor) => policy.add(signer, anchor),
                    Err((message, help)) => {
                        found.push(place.at(*offset, message).with_optional_help(help));
                    }
                }
            }
        }
        for revoked in &source.revoked {
            let Revocations { certificates, keys, signers, .. } = &mut policy.trust.revoked;
            match revoked {
                Revoked::Certificate(print) => drop(certificates.insert(*print)),
                Revoked::Key(id) => drop(keys.insert(*id)),
                Revoked::Signer { name, offset } => {
                    if !source.signers.iter().any(|signer| signer.name == *name) {
                        let message = format!("no signer of this policy is called \"{name}\"");
                        found.push(place.at(*offset, message).with_help(
                            "a signer that is not there is not trusted; remove this, or mend the name",
                        ));
                    }
                    signers.insert(name.clone());
                }
                Revoked::Catalog { name, below } => {
                    policy.revoked_catalogs.push((name.clone(), *below));
                }
            }
        }
        policy
    }

    /// Trusts one public key, with everything.
    ///
    /// # Errors
    /// If the file holds none that is good enough.
    pub fn in_key(path: &Path) -> Result<Self, Diagnostic> {
        Self::in_anchor(path, &AnchorSource::Key(path.to_owned()))
    }

    /// Trusts one certificate, with everything.
    ///
    /// # Errors
    /// If the file holds none that is good enough.
    pub fn in_certificate(path: &Path) -> Result<Self, Diagnostic> {
        Self::in_anchor(path, &AnchorSource::Certificate(path.to_owned()))
    }

    fn in_anchor(path: &Path, anchor: &AnchorSource) -> Result<Self, Diagnostic> {
        let anchor = anchor_of(&Disk, Path::new(""), anchor).map_err(|(message, help)| {
            Diagnostic::whole_file(path, message).with_optional_help(help)
        })?;
        let signer = Signer {
            name: "given".into(),
            slot: Slot::Operator,
            kinds: Kinds(!0),
            anchor,
            valid_from: None,
            valid_until: None,
            requirements: Requirements::default(),
        };
        let trust = Trust { signers: vec![signer], ..Trust::default() };
        Ok(Self { trust, signs: vec![Signs::ALL], revoked_catalogs: Vec::new() })
    }

    fn add(&mut self, signer: &SignerSource, anchor: Anchor) {
        self.trust.signers.push(Signer {
            name: signer.name.clone(),
            slot: signer.slot,
            kinds: signer.kinds,
            anchor,
            valid_from: signer.valid.0,
            valid_until: signer.valid.1,
            requirements: signer.requirements.clone(),
        });
        self.signs.push(signer.signs);
    }

    /// Whether nobody is trusted, so that no signature needs to be looked at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.trust.signers.is_empty()
    }

    /// Whether anybody may sign policies.
    #[must_use]
    pub fn signs_policies(&self) -> bool {
        self.signs.iter().any(|signs| signs.contains(Signs::POLICY))
    }

    /// What all signers together may vouch for with this kind of signature.
    #[must_use]
    pub fn kinds(&self, with: Signs) -> Kinds {
        let signers = self.trust.signers.iter().zip(&self.signs);
        signers
            .filter(|(_, signs)| signs.contains(with))
            .fold(Kinds::NONE, |all, (signer, _)| all.union(signer.kinds))
    }

    /// Those who may sign files themselves, each once.
    #[must_use]
    pub(super) fn signers_of_files(&self) -> Vec<SignedBy> {
        let mut found: Vec<SignedBy> = Vec::new();
        for (signer, signs) in self.trust.signers.iter().zip(&self.signs) {
            let may = signs.contains(Signs::FILE) || signs.contains(Signs::MODULE);
            if may && !found.iter().any(|by| by.signer == signer.name) {
                found.push(SignedBy {
                    signer: signer.name.clone(),
                    slot: signer.slot.word().into(),
                    kinds: signer.kinds,
                    ..SignedBy::default()
                });
            }
        }
        found
    }

    /// What a signature that was verified under another policy is worth under this one; `None` if
    /// its signer, its key or a certificate in its chain is trusted no more.
    #[must_use]
    pub fn kinds_still(&self, by: &SignedBy) -> Option<Kinds> {
        let revoked = &self.trust.revoked;
        let is = |list: &std::collections::BTreeSet<[u8; 32]>, print: &String| {
            list.iter().any(|one| hex::encode(one) == *print)
        };
        let bad = revoked.signers.contains(&by.signer)
            || is(&revoked.keys, &by.key)
            || by
                .prints
                .iter()
                .chain(&by.other_prints)
                .any(|print| is(&revoked.certificates, print));
        if bad {
            return None;
        }
        // What it was verified by must be there still: the last of the chain, or the key itself, on
        // the same terms.
        let is_the_one = |signer: &Signer| {
            signer.name == by.signer
                && signer.requirements == by.requirements
                && match &signer.anchor {
                    Anchor::Key(key) => hex::encode(key.id()) == by.key,
                    Anchor::Certificate(one) => {
                        by.prints.contains(&hex::encode(one.fingerprint()))
                            || one.key().is_ok_and(|key| hex::encode(key.id()) == by.key)
                    }
                }
        };
        let mut kinds = None;
        for (signer, signs) in self.trust.signers.iter().zip(&self.signs) {
            if is_the_one(signer) && signs.contains(by.with) {
                kinds = Some(kinds.unwrap_or(Kinds::NONE).union(signer.kinds));
            }
        }
        kinds
    }

    /// The first version of a catalog that is trusted, if the policy revokes older ones.
    #[must_use]
    pub fn catalog_revoked_below(&self, name: &str) -> Option<u64> {
        let same = self.revoked_catalogs.iter().filter(|(revoked, _)| revoked == name);
        same.map(|(_, below)| *below).max()
    }

    /// Verifies a CMS signature beside its content.
    ///
    /// # Errors
    /// If one of its signatures is not good, or not trusted for that.
    pub fn verify_cms(
        &self,
        content: &[u8],
        signature: &[u8],
        with: Signs,
        now: Option<Timestamp>,
    ) -> Result<Vec<SignedBy>, Why> {
        let signed = cms::verify(&self.trust, Some(content), signature, now).map_err(why)?;
        self.counts(&signed.signers, with)
    }

    /// Verifies a CMS message that holds its content, and returns that.
    ///
    /// # Errors
    /// As [`Self::verify_cms`].
    pub fn open_message(
        &self,
        message: &[u8],
        with: Signs,
        now: Option<Timestamp>,
    ) -> Result<(Vec<u8>, Vec<SignedBy>), Why> {
        let signed = cms::verify(&self.trust, None, message, now).map_err(why)?;
        let by = self.counts(&signed.signers, with)?;
        Ok((signed.content.unwrap_or_default(), by))
    }

    /// Verifies a raw Ed25519 signature beside its content.
    ///
    /// # Errors
    /// As [`Self::verify_cms`].
    pub fn verify_raw(
        &self,
        content: &[u8],
        signature: &[u8],
        with: Signs,
        now: Option<Timestamp>,
    ) -> Result<Vec<SignedBy>, Why> {
        let verified = raw::verify(&self.trust, content, signature, now).map_err(why)?;
        self.counts(std::slice::from_ref(&verified), with)
    }

    /// Verifies a signature that a file carries beside its content.
    ///
    /// # Errors
    /// As [`Self::verify_cms`].
    pub fn verify_bare(
        &self,
        key_id: [u8; 4],
        hash: HashAlgorithm,
        digest: &[u8],
        signature: &[u8],
        now: Option<Timestamp>,
    ) -> Result<SignedBy, Why> {
        let bare = ima::Bare { key_id, hash, signature };
        let verified = ima::verify(&self.trust, bare, digest, now).map_err(|rejected| {
            let word = rejected.word();
            let help = match word {
                "bad-signature" => "the file was changed after it was signed; sign it again",
                "untrusted-signer" => {
                    "list the signer's own certificate or key: a chain cannot be followed from there"
                }
                _ => return why(rejected),
            };
            (word, format!("{rejected}; {help}"))
        })?;
        let mut by = self.counts(std::slice::from_ref(&verified), Signs::FILE)?;
        by.pop().ok_or_else(|| ("no-signer", "nobody signed".into()))
    }

    /// Verifies a signature at the end of a module, of which `hasher` hashes what is before it.
    ///
    /// # Errors
    /// As [`Self::verify_cms`].
    pub fn verify_module(
        &self,
        hasher: &cms::Hasher<'_>,
        signature: &[u8],
        now: Option<Timestamp>,
    ) -> Result<Vec<SignedBy>, Why> {
        let signed = cms::verify_hashed(&self.trust, hasher, signature, now).map_err(why)?;
        self.counts(&signed.signers, Signs::MODULE)
    }

    /// What was verified, if every signer's signature counts on such a thing.
    ///
    /// # Errors
    /// If the policy does not let a signer sign that.
    pub fn counts(&self, verified: &[Verified], with: Signs) -> Result<Vec<SignedBy>, Why> {
        verified
            .iter()
            .map(|one| {
                let signs = self.signs.get(one.signer).copied().unwrap_or_default();
                if !signs.contains(with) {
                    let message = format!(
                        "the policy lets signer {} sign {}, and not {}",
                        one.name,
                        signs.words(),
                        with.words(),
                    );
                    return Err(("not-for-this", message));
                }
                let signer = self.trust.signers.get(one.signer);
                let requirements = signer.map(|signer| signer.requirements.clone());
                let requirements = requirements.unwrap_or_default();
                Ok(SignedBy { with, requirements, ..SignedBy::from(one) })
            })
            .collect()
    }

    /// Takes in the change of a signer's key: a text that names the signer and holds the new key or
    /// certificate, signed with one that the signer has.
    ///
    /// # Errors
    /// If the text cannot be read, or somebody else signed it.
    pub fn rotate(&mut self, text: &[u8], by: &[SignedBy]) -> Result<(), Why> {
        let (name, new) = Self::rotated(text)?;
        if !by.iter().any(|by| by.signer == name) {
            let signers: Vec<_> = by.iter().map(|by| by.signer.as_str()).collect();
            let message = format!(
                "it changes the key of {name}, and {} signed it; only a signer's own key can",
                signers.join(" and ")
            );
            return Err(("untrusted-signer", message));
        }
        let anchor =
            Anchor::read(new.as_bytes()).map_err(|error| ("malformed", error.to_string()))?;
        let known = self.trust.signers.iter().position(|signer| signer.name == name);
        let Some(known) = known else { return Ok(()) };
        let successor = Signer { anchor, ..self.trust.signers[known].clone() };
        self.signs.push(self.signs.get(known).copied().unwrap_or_default());
        self.trust.signers.push(successor);
        Ok(())
    }

    /// Whose key a change of keys changes, and the text of the new one.
    ///
    /// # Errors
    /// If it is no change of keys.
    pub fn rotated(text: &[u8]) -> Result<(&str, &str), Why> {
        let malformed = |message: String| ("malformed", message);
        let form = "`portcullis key rotate` writes such a file";
        let written =
            std::str::from_utf8(text).map_err(|_| malformed(format!("not a text; {form}")))?;
        let mut lines = written.splitn(3, '\n');
        if lines.next() != Some(ROTATION) {
            return Err(malformed(format!("the first line is not `{ROTATION}`; {form}")));
        }
        let name = lines.next().and_then(|line| line.strip_prefix(ROTATED)).map(str::trim);
        let Some(name) = name else {
            return Err(malformed(format!("the second line is not `{ROTATED} NAME`; {form}")));
        };
        Ok((name, lines.next().unwrap_or_default()))
    }

    /// The text of a change of keys, to be signed with a key that the signer has.
    #[must_use]
    pub fn rotation(signer: &str, new: &str) -> String {
        format!("{ROTATION}\n{ROTATED} {signer}\n{new}")
    }
}

fn why(rejected: Rejected) -> Why {
    let message = match rejected.help() {
        Some(help) => format!("{rejected}; {help}"),
        None => rejected.to_string(),
    };
    (rejected.word(), message)
}

impl From<&Verified> for SignedBy {
    fn from(verified: &Verified) -> Self {
        Self {
            signer: verified.name.clone(),
            slot: verified.slot.word().into(),
            kinds: verified.kinds,
            algorithm: verified.algorithm.clone(),
            key: hex::encode(verified.key_id),
            chain: verified
                .chain
                .iter()
                .map(|one| {
                    format!("{} (serial {}, until {:.0})", one.subject, one.serial, one.not_after)
                })
                .collect(),
            other_prints: verified
                .chain
                .iter()
                .flat_map(|one| one.other_fingerprints.iter().cloned())
                .collect(),
            with: Signs::NONE,
            requirements: Requirements::default(),
            prints: verified.chain.iter().map(|one| one.fingerprint.clone()).collect(),
            warnings: verified.warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

type Mistake = (String, Option<String>);

fn anchor_of(files: &dyn Files, folder: &Path, anchor: &AnchorSource) -> Result<Anchor, Mistake> {
    let (AnchorSource::Certificate(path) | AnchorSource::Key(path)) = anchor;
    let path = folder.join(path);
    let shown = path.display();
    let bytes = files.read(&path).map_err(|mistake| {
        let help = "paths are relative to the policy file's folder".to_owned();
        (format!("{shown} {}", mistake.message), Some(help))
    })?;
    match anchor {
        AnchorSource::Certificate(_) => {
            let mistake = |error: crate::trust::certificate::CertificateError| {
                (format!("{shown}: {error}"), error.help())
            };
            Anchor::certificate(Certificate::read(&bytes).map_err(mistake)?).map_err(mistake)
        }
        AnchorSource::Key(_) => PublicKey::read(&bytes)
            .map(Anchor::Key)
            .map_err(|error| (format!("{shown}: {error}"), error.help())),
    }
}

/// The signers for people: `acme (maker): executable library`.
#[must_use]
pub fn describe(signers: &[Signer]) -> Vec<String> {
    let line = |signer: &Signer| {
        format!("{} ({}): {}", signer.name, signer.slot.word(), kinds_words(signer.kinds))
    };
    let mut lines: Vec<_> = signers.iter().map(line).collect();
    lines.dedup();
    lines
}

/// What [`Requirements`] a policy's words make.
pub(super) fn requirements(
    organization: Option<String>,
    organizational_unit: Option<String>,
    common_name: Option<String>,
    usage: Option<&str>,
) -> Option<Requirements> {
    let purpose = usage.map(str::parse).transpose().ok()?;
    Some(Requirements { organization, organizational_unit, common_name, purpose })
}

#[cfg(test)]
mod tests;
