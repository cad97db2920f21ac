//! Policies: what operators write, and what it compiles to.

pub mod break_glass;
pub mod bundle;
pub mod diagnostic;
pub mod files;
pub mod manifest;
mod merge;
pub mod places;
pub mod signature;
pub mod source;
pub mod trust;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use indicatif::ProgressBar;
use portcullis_common::{Choices, Digest, Kinds, Mode, Rule, fsverity_key};

use crate::{
    catalog::SignedBy,
    kernel::vouched::{MAX_VOUCHED, Vouch},
    usb,
};
use diagnostic::{Diagnostics, Text};
use files::{Disk, Files};
use merge::{Rules, choices_of};
use source::{Signs, Source, VerifiedFilesystem};
use trust::PolicyTrust;

/// What stands for a signer among the sources, before its name.
const SIGNATURE_BY: &str = "signature by ";

/// A policy with everything that it includes, ready for the kernel.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The operator's name for it.
    pub name: String,
    /// The operator's number for it.
    pub version: u64,
    /// The mode it asks for.
    pub mode: Mode,
    /// The files it was read from: the policy file, then its manifests. [`Rule::source`] counts
    /// in this list.
    pub sources: Vec<PathBuf>,
    /// Who signed those of them that are catalogs, by [`Rule::source`].
    pub signed: BTreeMap<u16, Vec<SignedBy>>,
    /// As what catalogs take digests back that may be used as something else: signatures on files do
    /// not bring that back.
    pub withheld: BTreeMap<Digest, Kinds>,
    /// Who may vouch for artifacts.
    pub trust: PolicyTrust,
    /// One rule for each digest, sorted by digest.
    pub rules: Vec<(Digest, Rule)>,
    /// Kinds of filesystem that are trusted although somebody else serves their content, by magic
    /// number.
    pub trusted_filesystems: Vec<u64>,
    /// Filesystems that are trusted as a whole, because they are verified as they are read.
    pub verified_filesystems: Vec<VerifiedFilesystem>,
    /// What it chooses besides rules.
    pub choices: Choices,
    /// Folders in which files are looked at when they are opened, because they may be signed.
    pub signed_folders: Vec<PathBuf>,
    /// How many different signers a bundle needs to replace it.
    pub policy_signatures: usize,
    /// Which USB devices come alive; none if the policy leaves that alone.
    pub usb: Option<Arc<usb::rules::Rules>>,
    /// Binaries of the agent that may take over from the one that runs.
    pub agent_binaries: Vec<Digest>,
}

impl Policy {
    /// Reads a policy file and its manifests. `progress` counts bytes.
    ///
    /// # Errors
    /// Every mistake in the policy file; or, if that has none, every mistake in its manifests and
    /// every contradiction.
    pub fn load(file: &Path, progress: &ProgressBar) -> Result<Self, Diagnostics> {
        Self::load_from(&Disk, file, progress)
    }

    /// The same from wherever its files come from.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(
        files: &dyn Files,
        file: &Path,
        progress: &ProgressBar,
    ) -> Result<Self, Diagnostics> {
        let read = |path: &Path| files.read(path).inspect(|bytes| progress.inc(bytes.len() as u64));
        let bytes = read(file)?;
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            // What comes before is valid, so it can be counted in.
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            Text::new(file, &valid)
                .at(valid.len(), "not UTF-8 text")
                .with_help("a policy is a TOML file; write paths that are not UTF-8 in a manifest")
        })?;
        let source = Source::parse(file, text)?;
        let place = Text::new(file, text);

        let mut rules = Rules::default();
        for allow in &source.allow {
            let key = if allow.fsverity { fsverity_key(&allow.digest) } else { allow.digest };
            rules.add(key, Rule { kinds: allow.kinds, denied: 0, source: 0, line: allow.line });
        }
        for deny in &source.deny {
            rules.add(deny.digest, Rule { denied: 1, line: deny.line, ..Rule::default() });
        }
        let mut found = Vec::new();
        let mut sources = vec![file.to_owned()];
        let folder = file.parent().unwrap_or(Path::new(""));
        for include in &source.include {
            let path = folder.join(&include.path);
            let Ok(index) = u16::try_from(sources.len()) else {
                found.push(place.at(include.offset, "more than 65,535 included manifests"));
                break;
            };
            let entries = read(&path)
                .map_err(|mistake| {
                    let why = format!("includes {}, which {}", path.display(), mistake.message);
                    Diagnostics::from(
                        place
                            .at(include.offset, why)
                            .with_help("paths are relative to the policy file's folder"),
                    )
                })
                .and_then(|bytes| manifest::parse(&path, &bytes, include.kinds));
            match entries {
                Ok(manifest) => {
                    for entry in manifest.entries {
                        let rule =
                            Rule { kinds: entry.kinds, denied: 0, source: index, line: entry.line };
                        rules.add(entry.digest, rule);
                    }
                    for (digest, line) in manifest.withdrawn {
                        let denied = Rule { denied: 1, source: index, line, ..Rule::default() };
                        rules.add(digest, denied);
                    }
                }
                Err(mistakes) => found.extend_from_slice(mistakes.as_slice()),
            }
            sources.push(path);
        }
        let rules = rules.merge(&sources, &mut found);
        let mut signed = BTreeMap::new();
        let trust = PolicyTrust::load(files, folder, &source, (&place, &mut found));
        Diagnostics::check(found)?;
        for by in trust.signers_of_files() {
            let Ok(index) = u16::try_from(sources.len()) else { break };
            sources.push(format!("{SIGNATURE_BY}{}", by.signer).into());
            signed.insert(index, vec![by]);
        }
        let mut choices = source.choices.union(choices_of(&rules));
        if source.allow.iter().any(|allow| allow.fsverity) {
            choices = choices.union(Choices::FSVERITY);
        }
        Ok(Self {
            name: source.name,
            version: source.version,
            mode: source.mode,
            sources,
            signed,
            withheld: BTreeMap::new(),
            trust,
            rules,
            trusted_filesystems: source.trusted_filesystems,
            verified_filesystems: source.verified_filesystems,
            choices,
            signed_folders: source.signed,
            policy_signatures: source.policy_signatures,
            usb: source.usb.map(Arc::new),
            agent_binaries: source.agent_binaries,
        })
    }

    /// The policy that lists nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            name: String::new(),
            version: 0,
            mode: Mode::Audit,
            sources: Vec::new(),
            signed: BTreeMap::new(),
            withheld: BTreeMap::new(),
            trust: PolicyTrust::default(),
            rules: Vec::new(),
            trusted_filesystems: Vec::new(),
            verified_filesystems: Vec::new(),
            choices: Choices::NONE,
            signed_folders: Vec::new(),
            policy_signatures: 1,
            usb: None,
            agent_binaries: Vec::new(),
        }
    }

    /// Whether nothing is allowed, so that enforcing it would stop everything.
    #[must_use]
    pub fn allows_nothing(&self) -> bool {
        self.verified_filesystems.is_empty()
            && self.room() == 0
            && self.rules.iter().all(|(_, rule)| rule.denied == 1)
    }

    /// Index among the sources under which files count that a signer has signed itself.
    #[must_use]
    pub fn source_of_signer(&self, name: &str) -> Option<u16> {
        let place = format!("{SIGNATURE_BY}{name}");
        let index = self.sources.iter().position(|source| source.as_os_str() == place.as_str())?;
        u16::try_from(index).ok()
    }

    /// What a signed file that was seen under another policy is under this one, if its signer is
    /// still trusted. A key or certificate that is revoked now counts no more.
    #[must_use]
    pub fn still_vouched(&self, vouch: &Vouch) -> Option<Vouch> {
        let source = self.source_of_signer(&vouch.by.signer)?;
        let kinds = vouch.kinds.intersection(self.trust.kinds_still(&vouch.by)?);
        (!kinds.is_empty()).then(|| Vouch { kinds, source, by: Arc::clone(&vouch.by) })
    }

    /// Room for files that are signed themselves.
    #[must_use]
    pub fn room(&self) -> usize {
        let signs = self.trust.kinds(Signs::FILE).union(self.trust.kinds(Signs::MODULE));
        if signs.is_empty() { 0 } else { MAX_VOUCHED }
    }

    /// The rule for a digest.
    #[must_use]
    pub fn rule(&self, digest: &Digest) -> Option<Rule> {
        let index = self.rules.binary_search_by(|(listed, _)| listed.cmp(digest)).ok()?;
        Some(self.rules[index].1)
    }
}

/// A TOML string. JSON's escapes are a subset of TOML's.
#[must_use]
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn load(files: &[(&str, &str)]) -> Result<Policy, String> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            fs::write(folder.path().join(name), text).expect("written");
        }
        let policy = folder.path().join("p.toml");
        let shown = format!("{}/", folder.path().display());
        Policy::load(&policy, &ProgressBar::hidden())
            .map_err(|found| found.to_string().replace(&shown, ""))
    }

    fn policy(rest: &str) -> String {
        format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{rest}")
    }

    #[test]
    fn kinds_of_one_digest_add_up_over_all_sources() {
        let manifest =
            format!("# portcullis manifest 1\n# kinds: library\n{A}  /a\n# end: 1 entries\n");
        let text = policy(&format!(
            "include = [\"m\"]\n[[allow]]\ndigest = \"{A}\"\nkinds = [\"executable\"]\n"
        ));
        let policy = load(&[("p.toml", &text), ("m", &manifest)]).expect("good");
        let rule = policy.rule(&[0xaa; 32]).expect("listed");
        assert_eq!(rule.kinds, Kinds::EXECUTABLE.union(Kinds::LIBRARY));
        assert_eq!((policy.rules.len(), rule.source, rule.line), (1, 0, 6));
        assert_eq!(policy.rule(&[0xab; 32]), None);
    }

    #[test]
    fn a_denial_takes_a_digest_out_of_a_manifest() {
        let manifest = format!("{A}  /a\n");
        let text = policy(&format!(
            "include = [{{ path = \"m\", kinds = [\"library\"] }}]\n[[deny]]\ndigest = \"{A}\"\n"
        ));
        let policy = load(&[("p.toml", &text), ("m", &manifest)]).expect("good");
        assert_eq!(policy.rule(&[0xaa; 32]).expect("ruled").denied, 1);
    }

    #[test]
    fn a_policy_that_contradicts_itself_is_refused() {
        let text = policy(&format!(
            "[[allow]]\ndigest = \"{A}\"\nkinds = [\"library\"]\n[[deny]]\ndigest = \"{A}\"\n"
        ));
        let expected = "p.toml:8:1: digest aaaaaaaaaaaa… is denied here and allowed in line 5; remove one of the two";
        assert_eq!(load(&[("p.toml", &text)]).expect_err("contradiction"), expected);
    }

    #[test]
    fn a_missing_manifest_is_placed_in_the_policy() {
        let found = load(&[("p.toml", &policy("include = [\"gone\"]\n"))]).expect_err("missing");
        assert!(
            found.starts_with("p.toml:4:12: includes gone, which cannot be read: No such file"),
            "{found}"
        );
    }

    #[test]
    fn a_policy_that_is_no_text_is_placed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("p.toml");
        fs::write(&file, b"name = \"\xff\"").expect("written");
        let found = Policy::load(&file, &ProgressBar::hidden()).expect_err("binary").to_string();
        assert!(found.contains("p.toml:1:9: not UTF-8 text"), "{found}");
        let found = Policy::load(folder.path(), &ProgressBar::hidden()).expect_err("folder");
        assert!(found.to_string().contains("is not a file"));
    }
}
