//! Policies: what operators write, and what it compiles to.

pub mod diagnostic;
pub mod manifest;
pub mod places;
pub mod source;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use portcullis_common::{Choices, Digest, Kinds, Mode, Rule, fsverity_key};

use diagnostic::{Diagnostic, Diagnostics, Text};
use source::{Source, VerifiedFilesystem};

/// The largest policy file or manifest that is read, in bytes: about two million entries.
const MAX_FILE: u64 = 256 << 20;

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
    /// One rule for each digest, sorted by digest.
    pub rules: Vec<(Digest, Rule)>,
    /// Kinds of filesystem that are trusted although somebody else serves their content, by magic
    /// number.
    pub trusted_filesystems: Vec<u64>,
    /// Filesystems that are trusted as a whole, because they are verified as they are read.
    pub verified_filesystems: Vec<VerifiedFilesystem>,
    /// What it chooses besides rules.
    pub choices: Choices,
}

impl Policy {
    /// Reads a policy file and its manifests. `progress` counts bytes.
    ///
    /// # Errors
    /// Every mistake in the policy file; or, if that has none, every mistake in its manifests and
    /// every contradiction.
    pub fn load(file: &Path, progress: &ProgressBar) -> Result<Self, Diagnostics> {
        let bytes = read(file, progress)?;
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
            let entries = read(&path, progress)
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
                Ok(entries) => {
                    for entry in entries {
                        let rule =
                            Rule { kinds: entry.kinds, denied: 0, source: index, line: entry.line };
                        rules.add(entry.digest, rule);
                    }
                }
                Err(mistakes) => found.extend_from_slice(mistakes.as_slice()),
            }
            sources.push(path);
        }
        let rules = rules.merge(&sources, &mut found);
        Diagnostics::check(found)?;
        let mut choices = source.choices;
        if rules.iter().any(|(_, rule)| rule.kinds.intersects(Kinds::INTERPRETER)) {
            choices = choices.union(Choices::INTERPRETERS);
        }
        if source.allow.iter().any(|allow| allow.fsverity) {
            choices = choices.union(Choices::FSVERITY);
        }
        let counts = |rule: &Rule| rule.denied == 1 || rule.kinds.intersects(Kinds::MARKS);
        if rules.iter().any(|(_, rule)| counts(rule)) {
            choices = choices.union(Choices::CONTENT_COUNTS);
        }
        Ok(Self {
            name: source.name,
            version: source.version,
            mode: source.mode,
            sources,
            rules,
            trusted_filesystems: source.trusted_filesystems,
            verified_filesystems: source.verified_filesystems,
            choices,
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
            rules: Vec::new(),
            trusted_filesystems: Vec::new(),
            verified_filesystems: Vec::new(),
            choices: Choices::NONE,
        }
    }

    /// Whether nothing is allowed, so that enforcing it would stop everything.
    #[must_use]
    pub fn allows_nothing(&self) -> bool {
        self.verified_filesystems.is_empty() && self.rules.iter().all(|(_, rule)| rule.denied == 1)
    }

    /// The rule for a digest.
    #[must_use]
    pub fn rule(&self, digest: &Digest) -> Option<Rule> {
        let index = self.rules.binary_search_by(|(listed, _)| listed.cmp(digest)).ok()?;
        Some(self.rules[index].1)
    }
}

/// Rules before digests that are named more than once become one.
#[derive(Default)]
struct Rules(Vec<(Digest, Rule)>);

impl Rules {
    fn add(&mut self, digest: Digest, rule: Rule) {
        self.0.push((digest, rule));
    }

    /// Digests that are allowed twice get the kinds of both. One that is denied in the policy file
    /// stays denied whatever a manifest says, which is how one takes a file out of a scan; one
    /// that the policy file both allows and denies is a contradiction.
    fn merge(mut self, sources: &[PathBuf], found: &mut Vec<Diagnostic>) -> Vec<(Digest, Rule)> {
        // Denials first, then by where they stand.
        self.0.sort_by_key(|(digest, rule)| (*digest, 1 - rule.denied, rule.source, rule.line));
        self.0.dedup_by(|(digest, rule), (kept_digest, kept)| {
            if digest != kept_digest {
                return false;
            }
            if kept.denied == rule.denied {
                kept.kinds = kept.kinds.union(rule.kinds);
            } else if rule.source == 0 {
                let mut mistake = Diagnostic::whole_file(
                    &sources[0],
                    format!(
                        "digest {}… is denied here and allowed in line {}",
                        &crate::artifact::digest::format(digest)[..12],
                        rule.line
                    ),
                )
                .with_help("remove one of the two");
                (mistake.line, mistake.column) = (kept.line, 1);
                found.push(mistake);
            }
            true
        });
        self.0
    }
}

/// Reads a whole file, if it is one and not too large.
fn read(file: &Path, progress: &ProgressBar) -> Result<Vec<u8>, Diagnostic> {
    let fail = |what: String| Diagnostic::whole_file(file, what);
    // A FIFO must not hang us, and a device must not fill the memory.
    let metadata =
        std::fs::metadata(file).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(fail("is not a file".into()));
    }
    if metadata.len() > MAX_FILE {
        let limit = MAX_FILE >> 20;
        return Err(fail(format!("is larger than {limit} MiB"))
            .with_help("split it into several manifests"));
    }
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|opened| opened.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| fail(format!("cannot be read: {error}")))?;
    progress.inc(bytes.len() as u64);
    Ok(bytes)
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
