//! The policy file as operators write it (TOML).

mod agent;
mod choices;
mod filesystem;
mod signer;
mod usb;

use std::path::{Path, PathBuf};

use portcullis_common::{Choices, Digest, Kinds, Mode};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use filesystem::Trusted;
pub use filesystem::VerifiedFilesystem;
pub use signer::{AnchorSource, Revoked, SignerSource, Signs};

use crate::{
    artifact::digest,
    policy::{
        diagnostic::{Diagnostic, Diagnostics, Text, closest},
        manifest::{NAME_MAX, is_name},
    },
    usb::rules::Rules,
};

/// What a policy file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The operator's name for the policy.
    pub name: String,
    /// The operator's number for it, at least 1.
    pub version: u64,
    /// The mode it asks for.
    pub mode: Mode,
    /// Manifests that belong to it.
    pub include: Vec<Include>,
    /// Digests allowed in the file itself.
    pub allow: Vec<Allow>,
    /// Digests denied.
    pub deny: Vec<Deny>,
    /// Kinds of filesystem that are trusted although somebody else serves their content, by magic
    /// number.
    pub trusted_filesystems: Vec<u64>,
    /// Filesystems that are trusted as a whole, because they are verified as they are read.
    pub verified_filesystems: Vec<VerifiedFilesystem>,
    /// What it chooses besides rules.
    pub choices: Choices,
    /// Who may vouch for artifacts.
    pub signers: Vec<SignerSource>,
    /// What is trusted no more.
    pub revoked: Vec<Revoked>,
    /// Folders in which files are looked at when they are opened, because they may be signed.
    pub signed: Vec<PathBuf>,
    /// How many different signers a bundle needs to replace the policy.
    pub policy_signatures: usize,
    /// Which USB devices come alive; none if the policy leaves that alone.
    pub usb: Option<Rules>,
    /// Binaries of the agent that may take over from the one that runs.
    pub agent_binaries: Vec<Digest>,
}

/// A manifest that belongs to a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Include {
    /// As written; relative to the policy file's folder.
    pub path: PathBuf,
    /// Kinds of the entries, for lists that do not say themselves.
    pub kinds: Option<Kinds>,
    /// Where the policy names it.
    pub offset: usize,
}

/// One `[[allow]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allow {
    /// The artifact.
    pub digest: Digest,
    /// Whether that is its fs-verity digest, and not its content's.
    pub fsverity: bool,
    /// What it may be used as.
    pub kinds: Kinds,
    /// Line of the digest.
    pub line: u32,
}

/// One `[[deny]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deny {
    /// The artifact.
    pub digest: Digest,
    /// Line of the digest.
    pub line: u32,
}

const TOP_KEYS: [&str; 16] = [
    "name",
    "version",
    "mode",
    "anonymous_memory",
    "mounted_devices",
    "other_bpf",
    "include",
    "filesystem",
    "allow",
    "deny",
    "signer",
    "revoke",
    "signed",
    "policy_signatures",
    "usb",
    "agent",
];
const ALLOW_KEYS: [&str; 5] = ["digest", "fsverity", "kinds", "path", "comment"];
const DENY_KEYS: [&str; 3] = ["digest", "path", "comment"];
const INCLUDE_KEYS: [&str; 2] = ["path", "kinds"];

impl Source {
    /// Reads the text of a policy file. `file` is used in messages only.
    ///
    /// # Errors
    /// Every mistake that the text has.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Diagnostics> {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Reader { text: Text::new(file, text), found: Vec::new() };
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            reader.report(offset, format!("not valid TOML: {message}"));
        }
        let source = reader.policy(&table);
        Diagnostics::check(reader.found)?;
        Ok(source)
    }
}

type Value<'a> = Spanned<DeValue<'a>>;

/// Collects mistakes while it reads, so that one run shows all of them.
struct Reader<'a> {
    text: Text<'a>,
    found: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn report(&mut self, offset: usize, message: impl Into<String>) {
        let mistake = self.text.at(offset, message);
        self.found.push(mistake);
    }

    fn report_help(&mut self, offset: usize, message: impl Into<String>, help: impl Into<String>) {
        let mistake = self.text.at(offset, message).with_help(help);
        self.found.push(mistake);
    }

    fn policy(&mut self, table: &Spanned<DeTable<'_>>) -> Source {
        self.check_keys(table.get_ref(), &TOP_KEYS, "a policy");
        let get = |key| table.get_ref().get(key);

        let name = match get("name") {
            None => self.missing("name", "name = \"plant-7\""),
            Some(value) => self.string(value, "name").and_then(|name| self.name(value, name)),
        };
        let version = match get("version") {
            None => self.missing("version", "version = 1"),
            Some(value) => self.version(value),
        };
        let mode = match get("mode") {
            None => self.missing("mode", "mode = \"audit\""),
            Some(value) => self.word(value, "mode", Mode::ALL.iter().map(|m| (m.word(), *m))),
        };
        let include = get("include").map(|value| self.list(value, "include", Self::include));
        let allow = get("allow").map(|value| self.list(value, "[[allow]]", Self::allow));
        let deny = get("deny").map(|value| self.list(value, "[[deny]]", Self::deny));
        let filesystems =
            get("filesystem").map(|value| self.list(value, "[[filesystem]]", Self::filesystem));
        let (mut served, mut verified) = (Vec::new(), Vec::new());
        for trusted in filesystems.unwrap_or_default() {
            match trusted {
                Trusted::Served(magic) => served.push(magic),
                Trusted::Verified(filesystem) => verified.push(filesystem),
            }
        }
        let signers = get("signer").map(|value| self.list(value, "[[signer]]", Self::signer));
        let signers = self.without_namesakes(signers.unwrap_or_default());
        let revoked = get("revoke").map(|value| self.list(value, "[[revoke]]", Self::revoke));
        let signed = get("signed").map(|value| self.signed(value, &signers)).unwrap_or_default();
        let policy_signatures = get("policy_signatures")
            .and_then(|value| self.policy_signatures(value, &signers))
            .unwrap_or(1);
        let agent_binaries = get("agent").map(|value| self.agent(value)).unwrap_or_default();
        let usb = get("usb").and_then(|value| self.usb(value));
        let from_usb = if usb.is_some() { Choices::USB } else { Choices::NONE };
        let choices = self.choices(table.get_ref()).union(from_usb);
        Source {
            // A missing value is a mistake already, so the default is never used.
            name: name.unwrap_or_default(),
            version: version.unwrap_or_default(),
            mode: mode.unwrap_or(Mode::Audit),
            include: include.unwrap_or_default(),
            allow: allow.unwrap_or_default(),
            deny: deny.unwrap_or_default(),
            trusted_filesystems: served,
            verified_filesystems: verified,
            choices,
            signers,
            revoked: revoked.unwrap_or_default(),
            signed,
            policy_signatures,
            usb,
            agent_binaries,
        }
    }

    fn missing<T>(&mut self, key: &str, example: &str) -> Option<T> {
        self.report_help(0, format!("`{key}` is missing"), format!("add a line such as {example}"));
        None
    }

    fn check_keys(&mut self, table: &DeTable<'_>, known: &[&str], what: &str) {
        for key in table.keys() {
            let written = key.get_ref().as_ref();
            if known.contains(&written) {
                continue;
            }
            let help = match (written, closest(written, known.iter().copied())) {
                // The commonest slip of all: a denied digest is denied as every kind.
                ("kinds" | "kind", _) if !known.contains(&"kinds") => {
                    "a denied digest is denied as every kind".to_owned()
                }
                (_, Some(meant)) => format!("did you mean `{meant}`?"),
                (_, None) => format!("it has {}", words(known.iter().copied())),
            };
            self.report_help(key.span().start, format!("unknown key `{written}` in {what}"), help);
        }
    }

    fn name(&mut self, value: &Value<'_>, name: &str) -> Option<String> {
        if !is_name(name) {
            self.report_help(
                value.span().start,
                "`name` is not usable",
                format!("use 1 to {NAME_MAX} of the characters A-Z a-z 0-9 . _ -"),
            );
            return None;
        }
        Some(name.to_owned())
    }

    fn version(&mut self, value: &Value<'_>) -> Option<u64> {
        let number = whole_number(value);
        if number.is_none() {
            let what = value.get_ref().type_str();
            self.report_help(
                value.span().start,
                format!("`version` must be a whole number from 1, not this {what}"),
                "write it without quotes and raise it with every change: version = 1",
            );
        }
        number
    }

    fn string<'v>(&mut self, value: &'v Value<'_>, key: &str) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            let what = value.get_ref().type_str();
            self.report_help(
                value.span().start,
                format!("`{key}` must be a string, not this {what}"),
                "put it in double quotes",
            );
        }
        text
    }

    fn word<'w, T>(
        &mut self,
        value: &Value<'_>,
        key: &str,
        known: impl Iterator<Item = (&'w str, T)> + Clone,
    ) -> Option<T> {
        let written = self.string(value, key)?;
        if let Some((_, found)) = known.clone().find(|(word, _)| *word == written) {
            return Some(found);
        }
        let help = match closest(written, known.clone().map(|(word, _)| word)) {
            Some(meant) => format!("did you mean \"{meant}\"?"),
            None => format!("it can be {}", words(known.map(|(word, _)| word))),
        };
        self.report_help(value.span().start, format!("unknown {key} \"{written}\""), help);
        None
    }

    /// Reads each element of an array with `read`; those with mistakes are left out.
    fn list<T>(
        &mut self,
        value: &Value<'_>,
        what: &str,
        read: fn(&mut Self, &Value<'_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(elements) = value.get_ref().as_array() else {
            let written = value.get_ref().type_str();
            let help = if what.starts_with('[') {
                format!("write {what} with double brackets")
            } else {
                format!("write {what} = [\"…\"]")
            };
            self.report_help(
                value.span().start,
                format!("{what} must be a list, not this {written}"),
                help,
            );
            return Vec::new();
        };
        elements.iter().filter_map(|element| read(self, element)).collect()
    }

    fn table<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        keys: &[&str],
        what: &str,
    ) -> Option<&'v DeTable<'i>> {
        match value.get_ref().as_table() {
            Some(table) => {
                self.check_keys(table, keys, what);
                Some(table)
            }
            None => {
                let written = value.get_ref().type_str();
                self.report_help(
                    value.span().start,
                    format!("{what} must be a table, not this {written}"),
                    format!("it has {}", words(keys.iter().copied())),
                );
                None
            }
        }
    }

    fn allow(&mut self, value: &Value<'_>) -> Option<Allow> {
        let table = self.table(value, &ALLOW_KEYS, "[[allow]]")?;
        let fsverity = table.get("fsverity");
        let digest = match (fsverity, table.get("digest")) {
            (Some(_), Some(digest)) => {
                self.report_help(
                    digest.span().start,
                    "`digest` and `fsverity` in one [[allow]]",
                    "write two: each allows the file by itself",
                );
                None
            }
            (Some(written), None) => self.digest_at(written, "fsverity"),
            (None, _) => self.digest(value, table, "[[allow]]"),
        };
        let kinds = match table.get("kinds") {
            Some(kinds) => self.kinds(kinds),
            None => {
                self.report_help(
                    value.span().start,
                    "`kinds` is missing in [[allow]]",
                    "add what it may be used as, such as kinds = [\"executable\"]",
                );
                None
            }
        };
        self.comments(table);
        let (digest, line) = digest?;
        Some(Allow { digest, fsverity: fsverity.is_some(), kinds: kinds?, line })
    }

    fn deny(&mut self, value: &Value<'_>) -> Option<Deny> {
        let table = self.table(value, &DENY_KEYS, "[[deny]]")?;
        let digest = self.digest(value, table, "[[deny]]");
        self.comments(table);
        let (digest, line) = digest?;
        Some(Deny { digest, line })
    }

    fn include(&mut self, value: &Value<'_>) -> Option<Include> {
        let offset = value.span().start;
        let (path, kinds) = if value.get_ref().is_table() {
            let table = self.table(value, &INCLUDE_KEYS, "an included manifest")?;
            let Some(path) = table.get("path") else {
                self.report(offset, "`path` is missing in an included manifest");
                return None;
            };
            let kinds = match table.get("kinds") {
                Some(kinds) => Some(self.kinds(kinds)?),
                None => None,
            };
            (self.string(path, "path")?, kinds)
        } else {
            (self.string(value, "include")?, None)
        };
        if path.is_empty() || path.contains('\0') {
            self.report_help(offset, "an included manifest has no usable path", "name a file");
            return None;
        }
        Some(Include { path: PathBuf::from(path), kinds, offset })
    }

    /// Paths and comments decide nothing, but they are checked to be text.
    fn comments(&mut self, table: &DeTable<'_>) {
        for key in ["path", "comment"] {
            if let Some(value) = table.get(key) {
                self.string(value, key);
            }
        }
    }

    fn digest(
        &mut self,
        parent: &Value<'_>,
        table: &DeTable<'_>,
        what: &str,
    ) -> Option<(Digest, u32)> {
        let Some(value) = table.get("digest") else {
            self.report_help(
                parent.span().start,
                format!("`digest` is missing in {what}"),
                "add the file's SHA-256, as sha256sum prints it",
            );
            return None;
        };
        self.digest_at(value, "digest")
    }

    fn digest_at(&mut self, value: &Value<'_>, key: &str) -> Option<(Digest, u32)> {
        let written = self.string(value, key)?;
        match digest::parse(written) {
            Ok(digest) => Some((digest, self.text.line(value.span().start))),
            Err(error) => {
                let help = match key {
                    "fsverity" => {
                        "copy it as `fsverity digest` prints it: sha256 and 64 digits".into()
                    }
                    _ => error.help(),
                };
                self.report_help(value.span().start, error.to_string(), help);
                None
            }
        }
    }

    fn kinds(&mut self, value: &Value<'_>) -> Option<Kinds> {
        let Some(elements) = value.get_ref().as_array() else {
            let help = match value.get_ref().as_str() {
                Some(kind) => format!("write kinds = [\"{kind}\"]"),
                None => "write kinds = [\"executable\"]".to_owned(),
            };
            self.report_help(value.span().start, "`kinds` must be a list", help);
            return None;
        };
        if elements.is_empty() {
            self.report_help(
                value.span().start,
                "`kinds` is empty, so nothing would be allowed",
                format!("name at least one of {}", words(kind_words().map(|(word, _)| word))),
            );
            return None;
        }
        let mut kinds = Some(Kinds::NONE);
        for element in elements.iter() {
            let kind = self.word(element, "kind", kind_words());
            kinds = kinds.zip(kind).map(|(kinds, kind)| kinds.union(kind));
        }
        kinds
    }
}

/// A version: from 1, and no larger than other tools can write.
fn whole_number(value: &Value<'_>) -> Option<u64> {
    let integer = value.get_ref().as_integer()?;
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok()?;
    (1..=u64::MAX >> 1).contains(&number).then_some(number)
}

fn kind_words() -> impl Iterator<Item = (&'static str, Kinds)> + Clone {
    Kinds::WORDS.iter().map(|(kind, word)| (*word, *kind))
}

fn words<'a>(known: impl Iterator<Item = &'a str>) -> String {
    known.map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
