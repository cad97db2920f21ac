//! `[[signer]]`: who may vouch for artifacts, and `[[revoke]]`: what is trusted no more.

use std::path::PathBuf;

use jiff::Timestamp;
use portcullis_common::{Digest, Kinds};
use toml::de::{DeTable, DeValue};

use super::{Reader, Value, whole_number, words};
use crate::{
    policy::{
        manifest::{NAME_MAX, is_name},
        trust::requirements,
    },
    trust::signer::{Requirements, Slot},
};

const SIGNER_KEYS: [&str; 11] = [
    "name",
    "slot",
    "certificate",
    "key",
    "kinds",
    "signs",
    "subject",
    "usage",
    "valid_from",
    "valid_until",
    "comment",
];
const SUBJECT_KEYS: [&str; 3] = ["organization", "organizational_unit", "common_name"];
const REVOKE_KEYS: [&str; 6] = ["certificate", "key", "signer", "catalog", "below", "comment"];

/// Kinds of signature, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Signs(u8);

impl Signs {
    /// No kind.
    pub const NONE: Self = Self(0);
    /// On a catalog.
    pub const CATALOG: Self = Self(1);
    /// In the attribute `security.ima` of a file.
    pub const FILE: Self = Self(1 << 1);
    /// At the end of a kernel module.
    pub const MODULE: Self = Self(1 << 2);
    /// On a bundle, which replaces the policy.
    pub const POLICY: Self = Self(1 << 3);
    /// Every kind that vouches for artifacts. Who may replace the policy is always said.
    pub const ALL: Self = Self(0b111);

    /// The kinds of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The kinds in words.
    #[must_use]
    pub fn words(self) -> String {
        let words = SIGNS.iter().filter(|(_, kind)| self.contains(*kind));
        let plural = |word: &str| match word.strip_suffix('y') {
            Some(stem) => format!("{stem}ies"),
            None => format!("{word}s"),
        };
        words.map(|(word, _)| plural(word)).collect::<Vec<_>>().join(" and ")
    }

    /// Whether all of `other` are in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What trust in a signer begins with: a PEM file, as written, relative to the policy's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnchorSource {
    /// A certificate: of the signer, or of an authority that issues to signers.
    Certificate(PathBuf),
    /// A public key.
    Key(PathBuf),
}

/// One `[[signer]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignerSource {
    /// The operator's name for it, unique in the policy.
    pub name: String,
    /// Whose signer it is.
    pub slot: Slot,
    /// What trust begins with, each with where the policy names it. Several are keys of one
    /// signer, of which the older ones are on their way out.
    pub anchors: Vec<(AnchorSource, usize)>,
    /// What it may vouch for.
    pub kinds: Kinds,
    /// Which kinds of signature count.
    pub signs: Signs,
    /// What the signer's certificate must say.
    pub requirements: Requirements,
    /// From when on, and until when, it is expected to sign.
    pub valid: (Option<Timestamp>, Option<Timestamp>),
    /// Where the policy names it.
    pub offset: usize,
}

/// One `[[revoke]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// A certificate, by SHA-256 of its DER form.
    Certificate(Digest),
    /// A key, by SHA-256 of its public half's DER form.
    Key(Digest),
    /// Everything that a signer of the policy vouches for.
    Signer {
        /// The signer's name.
        name: String,
        /// Where the policy names it.
        offset: usize,
    },
    /// Catalogs of this name, below this version.
    Catalog {
        /// The catalog's name.
        name: String,
        /// The first version that is still trusted.
        below: u64,
    },
}

const SIGNS: [(&str, Signs); 4] = [
    ("catalog", Signs::CATALOG),
    ("file", Signs::FILE),
    ("module", Signs::MODULE),
    ("policy", Signs::POLICY),
];

impl Reader<'_> {
    pub(super) fn signer(&mut self, value: &Value<'_>) -> Option<SignerSource> {
        let table = self.table(value, &SIGNER_KEYS, "[[signer]]")?;
        let start = value.span().start;
        self.comments(table);
        let name = match table.get("name") {
            None => self.lacking(start, "name", "what you call the signer: name = \"acme\""),
            Some(written) => self.usable_name(written, "name"),
        };
        let slot = match table.get("slot") {
            None => self.lacking(start, "slot", "whose it is: slot = \"maker\" or \"operator\""),
            Some(written) => {
                self.word(written, "slot", Slot::ALL.iter().map(|slot| (slot.word(), *slot)))
            }
        };
        let signs = match table.get("signs") {
            None => Some(Signs::ALL),
            Some(written) => self.signs(written),
        };
        if let (Some(Slot::Maker), Some(written)) = (slot, table.get("signs"))
            && signs.is_some_and(|signs| signs.contains(Signs::POLICY))
        {
            self.report_help(
                written.span().start,
                "a maker cannot sign policies",
                "say slot = \"operator\" if the signer may decide what runs on the device",
            );
        }
        let kinds = match table.get("kinds") {
            // Who signs nothing but policies vouches for no artifact.
            None if signs == Some(Signs::POLICY) => Some(Kinds::NONE),
            None => self.lacking(start, "kinds", "what it may vouch for: kinds = [\"executable\"]"),
            Some(written) => self.kinds(written),
        };
        let anchors = match (table.get("certificate"), table.get("key")) {
            (Some(written), None) => {
                self.anchors(written, "certificate", AnchorSource::Certificate)
            }
            (None, Some(written)) => self.anchors(written, "key", AnchorSource::Key),
            (None, None) => self.lacking(
                start,
                "certificate",
                "a PEM file, relative to this one: certificate = \"acme.pem\", or key = \"…\" for \
                 a public key",
            ),
            (Some(_), Some(second)) => {
                self.report_help(
                    second.span().start,
                    "`certificate` and `key` in one [[signer]]",
                    "write two: each is trusted by itself",
                );
                None
            }
        };
        let requirements = self.requirements(table);
        let valid_from = table.get("valid_from").map(|written| self.instant(written, "valid_from"));
        let valid_until =
            table.get("valid_until").map(|written| self.instant(written, "valid_until"));
        let valid = (valid_from.flatten(), valid_until.flatten());
        if let ((Some(from), Some(until)), Some(written)) = (valid, table.get("valid_until"))
            && from >= until
        {
            let message = "`valid_until` is not after `valid_from`";
            self.report_help(written.span().start, message, "exchange them, or mend one");
        }
        let anchors = anchors?;
        let is_key = |(anchor, _): &(AnchorSource, _)| matches!(anchor, AnchorSource::Key(_));
        if anchors.iter().any(is_key) {
            for key in ["subject", "usage"] {
                let Some(written) = table.get(key) else { continue };
                self.report_help(
                    written.span().start,
                    format!("`{key}` says what a certificate must say, and this signer is a key"),
                    "remove it, or name a certificate",
                );
            }
        }
        Some(SignerSource {
            name: name?,
            slot: slot?,
            anchors,
            kinds: kinds?,
            signs: signs?,
            requirements,
            valid,
            offset: start,
        })
    }

    /// Two signers of one name could not be told apart in events and revocations.
    pub(super) fn without_namesakes(&mut self, signers: Vec<SignerSource>) -> Vec<SignerSource> {
        let mut kept: Vec<SignerSource> = Vec::with_capacity(signers.len());
        for signer in signers {
            if kept.iter().any(|other| other.name == signer.name) {
                let message = format!("a second signer is called \"{}\"", signer.name);
                self.report_help(signer.offset, message, "give each a name of its own");
            } else {
                kept.push(signer);
            }
        }
        kept
    }

    pub(super) fn revoke(&mut self, value: &Value<'_>) -> Option<Revoked> {
        let table = self.table(value, &REVOKE_KEYS, "[[revoke]]")?;
        let start = value.span().start;
        self.comments(table);
        let subjects = ["certificate", "key", "signer", "catalog"];
        let named: Vec<_> =
            subjects.iter().filter_map(|key| Some((*key, table.get(*key)?))).collect();
        let [(key, written)] = named[..] else {
            let help = format!("name one of {}", words(subjects.into_iter()));
            self.report_help(start, "[[revoke]] must name one thing that is revoked", help);
            return None;
        };
        if let (Some(below), true) = (table.get("below"), key != "catalog") {
            self.report(below.span().start, "`below` goes with `catalog` only");
        }
        match key {
            "certificate" => {
                let (print, _) = self.digest_at(&without_colons(written), key)?;
                Some(Revoked::Certificate(print))
            }
            "key" => Some(Revoked::Key(self.digest_at(&without_colons(written), key)?.0)),
            "signer" => {
                let (name, offset) = (self.usable_name(written, key)?, written.span().start);
                Some(Revoked::Signer { name, offset })
            }
            _ => {
                let name = self.usable_name(written, key);
                let Some(below) = table.get("below") else {
                    return self.lacking(
                        start,
                        "below",
                        "the first version that is good: below = 13",
                    );
                };
                let below = self.first_version(below);
                Some(Revoked::Catalog { name: name?, below: below? })
            }
        }
    }

    fn first_version(&mut self, written: &Value<'_>) -> Option<u64> {
        let version = whole_number(written);
        if version.is_none() {
            self.report_help(
                written.span().start,
                "`below` must be a whole number from 1",
                "write the first version that is good, without quotes: below = 13",
            );
        }
        version
    }

    /// How many different signers a bundle needs.
    pub(super) fn policy_signatures(
        &mut self,
        value: &Value<'_>,
        signers: &[SignerSource],
    ) -> Option<usize> {
        let may = signers.iter().filter(|signer| signer.signs.contains(Signs::POLICY)).count();
        let number = whole_number(value).and_then(|number| usize::try_from(number).ok());
        let number = number.filter(|number| (1..=may.max(1)).contains(number));
        if number.is_none() {
            self.report_help(
                value.span().start,
                "`policy_signatures` must be from 1 to the number of those who sign policies",
                format!("{may} [[signer]] have signs = [\"policy\"]; add one, or ask for fewer"),
            );
        }
        number
    }

    /// Folders whose files are looked at when they are opened.
    pub(super) fn signed(&mut self, value: &Value<'_>, signers: &[SignerSource]) -> Vec<PathBuf> {
        let folders = self.list(value, "signed", Self::signed_folder);
        let may = |with| signers.iter().any(|signer| signer.signs.contains(with));
        if !may(Signs::FILE) && !may(Signs::MODULE) {
            self.report_help(
                value.span().start,
                "`signed` names folders, and no signer signs files or modules",
                "add a [[signer]] with signs = [\"file\"], or remove this",
            );
        }
        folders
    }

    fn signed_folder(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let written = self.string(value, "signed")?;
        let path = PathBuf::from(written);
        let steps_back = path.components().any(|step| step == std::path::Component::ParentDir);
        if !path.is_absolute() || steps_back || path.parent().is_none() || written.contains('\0') {
            self.report_help(
                value.span().start,
                format!("`signed` cannot be the folder \"{}\"", written.escape_debug()),
                "write an absolute path without `..`, and not all of `/`: signed = [\"/opt/app\"]",
            );
            return None;
        }
        Some(path)
    }

    fn lacking<T>(&mut self, offset: usize, key: &str, help: &str) -> Option<T> {
        self.report_help(offset, format!("`{key}` is missing"), format!("add {help}"));
        None
    }

    fn usable_name(&mut self, written: &Value<'_>, key: &str) -> Option<String> {
        let name = self.string(written, key)?;
        if is_name(name) {
            return Some(name.to_owned());
        }
        self.report_help(
            written.span().start,
            format!("`{key}` is not usable"),
            format!("use 1 to {NAME_MAX} of the characters A-Z a-z 0-9 . _ -"),
        );
        None
    }

    /// One path, or a list of them.
    fn anchors(
        &mut self,
        written: &Value<'_>,
        key: &str,
        make: fn(PathBuf) -> AnchorSource,
    ) -> Option<Vec<(AnchorSource, usize)>> {
        let each: Vec<&Value<'_>> = match written.get_ref().as_array() {
            Some(elements) => elements.iter().collect(),
            None => vec![written],
        };
        if each.is_empty() {
            self.report_help(written.span().start, format!("`{key}` names no file"), "name one");
            return None;
        }
        let mut found = Vec::with_capacity(each.len());
        // Each is looked at, also after one with a mistake.
        for written in &each {
            let Some(path) = self.string(written, key) else { continue };
            let start = written.span().start;
            if path.is_empty() || path.contains('\0') {
                self.report_help(start, format!("`{key}` has no usable path"), "name a file");
                continue;
            }
            found.push((make(path.into()), start));
        }
        (found.len() == each.len()).then_some(found)
    }

    fn signs(&mut self, written: &Value<'_>) -> Option<Signs> {
        let Some(elements) = written.get_ref().as_array().filter(|elements| !elements.is_empty())
        else {
            self.report_help(
                written.span().start,
                "`signs` must be a list that is not empty",
                "write signs = [\"catalog\"]",
            );
            return None;
        };
        let mut signs = Some(Signs::NONE);
        for element in elements.iter() {
            let one = self.word(element, "signature", SIGNS.iter().copied());
            signs = signs.zip(one).map(|(signs, one)| signs.union(one));
        }
        signs
    }

    fn requirements(&mut self, table: &DeTable<'_>) -> Requirements {
        let usage =
            table.get("usage").and_then(|written| Some((written, self.string(written, "usage")?)));
        let subject = table
            .get("subject")
            .and_then(|written| self.table(written, &SUBJECT_KEYS, "`subject`"));
        let mut get =
            |key| subject?.get(key).and_then(|value| self.string(value, key)).map(str::to_owned);
        let (o, ou, cn) = (get("organization"), get("organizational_unit"), get("common_name"));
        let made = requirements(o, ou, cn, usage.map(|(_, figures)| figures));
        if let (None, Some((written, _))) = (&made, usage) {
            self.report_help(
                written.span().start,
                "`usage` is not an object identifier",
                "write an extended key usage in figures, such as \"1.3.6.1.5.5.7.3.3\" (code signing)",
            );
        }
        made.unwrap_or_default()
    }

    fn instant(&mut self, written: &Value<'_>, key: &str) -> Option<Timestamp> {
        let text = match written.get_ref() {
            DeValue::Datetime(instant) => instant.to_string(),
            DeValue::String(text) => text.clone().into_owned(),
            _ => String::new(),
        };
        // A date alone means its beginning.
        let parsed = text.parse::<Timestamp>().or_else(|_| format!("{text}T00:00:00Z").parse());
        if parsed.is_err() {
            self.report_help(
                written.span().start,
                format!("`{key}` is not a point in time"),
                format!("write it with its offset: {key} = 2027-01-31T00:00:00Z"),
            );
        }
        parsed.ok()
    }
}

/// Fingerprints as `openssl x509 -fingerprint -sha256` prints them have colons.
fn without_colons<'i>(written: &Value<'i>) -> Value<'i> {
    let plain = match written.get_ref() {
        DeValue::String(text) => {
            let digits = text.strip_prefix("sha256:").unwrap_or(text);
            DeValue::String(digits.replace(':', "").to_ascii_lowercase().into())
        }
        other => other.clone(),
    };
    Value::new(written.span(), plain)
}

#[cfg(test)]
mod tests;
