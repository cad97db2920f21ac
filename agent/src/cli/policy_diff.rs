//! `portcullis policy diff`: what would newly run, and what not any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use portcullis_common::{Choices, Digest, Kinds, Rule};
use serde::Serialize;

use super::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, catalog::Lines, output};
use crate::{
    artifact::digest,
    control::{Request, client},
    event::human::Plain,
    policy::{Policy, bundle::Bundle, manifest::kinds_words, trust::describe},
};

#[derive(clap::Args)]
pub struct Args {
    /// The policy or bundle before (default: what is in force on this device), and the one after
    #[arg(required = true, num_args = 1..=2, value_names = ["OLD", "NEW"])]
    policies: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A digest, and where the policy has it from.
#[derive(Serialize)]
struct Line {
    digest: String,
    /// What changes; all kinds if the digest is denied.
    kinds: String,
    /// The path that it is listed under, if the list says.
    path: String,
    file: String,
    line: u32,
}

/// What differs.
#[derive(Serialize)]
struct Difference {
    old: String,
    new: String,
    /// Runs newly.
    allowed: Vec<Line>,
    /// Does not run any more, because nobody lists it.
    unlisted: Vec<Line>,
    /// Does not run any more, or could not be listed any more, because it is denied.
    denied: Vec<Line>,
    /// What the policy chooses besides digests.
    settings_added: Vec<String>,
    settings_removed: Vec<String>,
}

/// A policy with the texts that its lines are in.
pub(super) struct Side {
    pub(super) policy: Policy,
    texts: BTreeMap<u16, Vec<u8>>,
    /// The folder that the files are named relative to.
    folder: PathBuf,
}

impl Side {
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let is_policy = path.extension().is_some_and(|extension| extension == "toml");
        if is_policy {
            return Self::load(path);
        }
        let bundle = Bundle::read(path).map_err(|(_, why)| {
            anyhow!("{}: {why}; a policy's name ends in .toml", path.display())
        });
        let bundle = bundle.or_exit(BAD_INPUT)?;
        let folder = tempfile::tempdir().context("a temporary folder").or_exit(UNAVAILABLE)?;
        let file = bundle.unpack(folder.path()).context("unpacking").or_exit(UNAVAILABLE)?;
        Self::load(&file)
    }

    pub(super) fn load(file: &Path) -> Result<Self, Failure> {
        let bar = output::progress(0, "reading");
        let policy = Policy::load(file, &bar);
        bar.finish_and_clear();
        let policy = policy.or_exit(BAD_INPUT)?;
        let mut texts = BTreeMap::new();
        for (number, source) in (0..).zip(&policy.sources) {
            // Signers of files stand among the sources, and are none.
            if let Ok(text) = fs::read(source) {
                texts.insert(number, text);
            }
        }
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { policy, texts, folder })
    }

    pub(super) fn name(&self) -> String {
        format!("{} v{}", self.policy.name, self.policy.version)
    }

    fn allowed(&self, digest: &Digest) -> Kinds {
        let rule = self.policy.rule(digest).filter(|rule| rule.denied == 0);
        rule.map_or(Kinds::NONE, |rule| rule.kinds)
    }

    /// What the policy chooses besides digests, a line each.
    fn settings(&self) -> BTreeSet<String> {
        let Policy { mode, choices, policy_signatures, .. } = &self.policy;
        let mut lines = BTreeSet::from([
            format!("mode {}", mode.word()),
            format!("policy_signatures {policy_signatures}"),
        ]);
        let chosen = [
            (Choices::MEMORY_ALLOWED, "anonymous_memory allow"),
            (Choices::MEMORY_DENIED, "anonymous_memory deny"),
            (Choices::MOUNTED_DEVICES_CLOSED, "mounted_devices closed"),
        ];
        for (choice, line) in chosen {
            if choices.contains(choice) {
                lines.insert(line.into());
            }
        }
        let signers = describe(&self.policy.trust.trust.signers);
        lines.extend(signers.into_iter().map(|signer| format!("signer {signer}")));
        for magic in &self.policy.trusted_filesystems {
            lines.insert(format!("filesystem of type {magic:#x}"));
        }
        for verified in &self.policy.verified_filesystems {
            let kinds = kinds_words(verified.kinds);
            lines.insert(format!(
                "filesystem verified by {}: {kinds}",
                digest::format(&verified.root)
            ));
        }
        for folder in &self.policy.signed_folders {
            lines.insert(format!("signed files in {}", folder.display()));
        }
        lines
    }
}

/// Finds the paths of many lines without splitting a text anew for each.
struct Places<'a> {
    side: &'a Side,
    lines: BTreeMap<u16, Lines<'a>>,
}

impl<'a> Places<'a> {
    fn of(side: &'a Side) -> Self {
        let lines = side.texts.iter().map(|(source, text)| (*source, Lines::of(text))).collect();
        Self { side, lines }
    }

    fn line(&self, digest: &Digest, rule: &Rule, kinds: Kinds) -> Line {
        // The policy file itself is no list.
        let list = self.lines.get(&rule.source).filter(|_| rule.source > 0);
        let path = list.map(|lines| lines.path(rule.line)).unwrap_or_default();
        let file = self.side.policy.sources.get(usize::from(rule.source));
        let file = file.map(|file| file.strip_prefix(&self.side.folder).unwrap_or(file));
        Line {
            digest: digest::format(digest),
            kinds: kinds_words(kinds),
            path,
            file: file.unwrap_or(Path::new("")).display().to_string(),
            line: rule.line,
        }
    }
}

/// The policy file that is in force on this device, of which catalogs are no part.
pub(super) fn in_force() -> Result<PathBuf, Failure> {
    #[derive(serde::Deserialize)]
    struct Status {
        sources: Vec<PathBuf>,
    }
    let Status { sources } = client::ask_json(&Request::Status)?;
    let first = sources.into_iter().next();
    first.context("the agent does not say which policy file is in force").or_exit(UNAVAILABLE)
}

fn difference(old: &Side, new: &Side) -> Difference {
    let (before, after) = (Places::of(old), Places::of(new));
    let (mut allowed, mut denied, mut unlisted) = (Vec::new(), Vec::new(), Vec::new());
    for (digest, rule) in &new.policy.rules {
        if rule.denied == 1 {
            let is_news = old.policy.rule(digest).is_none_or(|rule| rule.denied == 0);
            if is_news {
                denied.push(after.line(digest, rule, old.allowed(digest)));
            }
        } else {
            let more = rule.kinds.without(old.allowed(digest));
            if !more.is_empty() {
                allowed.push(after.line(digest, rule, more));
            }
        }
    }
    for (digest, rule) in &old.policy.rules {
        let is_denied = new.policy.rule(digest).is_some_and(|rule| rule.denied == 1);
        let less = old.allowed(digest).without(new.allowed(digest));
        if !is_denied && !less.is_empty() {
            unlisted.push(before.line(digest, rule, less));
        }
    }
    let (settings_old, settings_new) = (old.settings(), new.settings());
    Difference {
        old: old.name(),
        new: new.name(),
        allowed,
        unlisted,
        denied,
        settings_added: settings_new.difference(&settings_old).cloned().collect(),
        settings_removed: settings_old.difference(&settings_new).cloned().collect(),
    }
}

pub fn diff(args: &Args) -> Outcome {
    let (old, new) = match &args.policies[..] {
        [old, new] => (Side::read(old)?, Side::read(new)?),
        [new] => (Side::load(&in_force()?)?, Side::read(new)?),
        _ => return Err(anyhow!("one or two policies")).or_exit(BAD_INPUT),
    };
    let difference = difference(&old, &new);
    let text = if args.json {
        serde_json::to_string_pretty(&difference).or_exit(UNAVAILABLE)? + "\n"
    } else {
        show(&difference)
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn show(difference: &Difference) -> String {
    let mut text = format!("{} to {}\n", difference.old, difference.new);
    // Writing to a string does not fail.
    for (mark, lines) in
        [("+", &difference.allowed), ("-", &difference.unlisted), ("!", &difference.denied)]
    {
        for Line { digest, kinds, path, file, line } in lines {
            let _ = writeln!(
                text,
                "{mark} {digest}  {kinds}  {}  ({}:{line})",
                Plain(path),
                Plain(file)
            );
        }
    }
    for (mark, lines) in [("+", &difference.settings_added), ("-", &difference.settings_removed)] {
        for line in lines {
            let _ = writeln!(text, "{mark} {line}");
        }
    }
    let _ = writeln!(
        text,
        "{} newly allowed, {} not listed any more, {} newly denied, {} other changes",
        difference.allowed.len(),
        difference.unlisted.len(),
        difference.denied.len(),
        difference.settings_added.len().max(difference.settings_removed.len()),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_told_with_its_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: String| {
            let file = folder.path().join(name);
            fs::write(&file, text).expect("written");
            file
        };
        let digest = |digit: &str| digit.repeat(64);
        let list = format!("{}  /opt/stays\n{}  /opt/goes\n", digest("a"), digest("b"));
        write("old.list", list);
        write("new.list", format!("{}  /opt/stays\n{}  /opt/comes\n", digest("a"), digest("c")));
        let policy = |version: u32, list: &str, kinds: &str, rest: &str| {
            format!(
                "name = \"p\"\nversion = {version}\nmode = \"audit\"\n\
                 include = [{{ path = \"{list}\", kinds = [{kinds}] }}]\n{rest}"
            )
        };
        let allow = format!("[[allow]]\ndigest = \"{}\"\nkinds = [\"script\"]\n", digest("d"));
        let deny = format!("[[deny]]\ndigest = \"{}\"\n", digest("d"));
        let old = write("old.toml", policy(1, "old.list", "\"executable\"", &allow));
        let kinds = "\"executable\", \"library\"";
        let new = policy(2, "new.list", kinds, &deny).replace("\"audit\"", "\"enforce\"");
        let new = write("new.toml", new);
        let side = |file: &Path| Side::read(file).ok().expect("good");
        let found = difference(&side(&old), &side(&new));
        let shown = |lines: &[Line]| -> Vec<String> {
            let show = |line: &Line| {
                let Line { digest, kinds, path, file, line } = line;
                format!("{} {kinds} {path} {file}:{line}", &digest[..1])
            };
            lines.iter().map(show).collect()
        };
        let expected =
            ["a library /opt/stays new.list:1", "c executable library /opt/comes new.list:2"];
        assert_eq!(shown(&found.allowed), expected);
        assert_eq!(shown(&found.unlisted), ["b executable /opt/goes old.list:2"]);
        assert_eq!(shown(&found.denied), ["d script  new.toml:6"]);
        assert_eq!(found.settings_added, ["mode enforce"]);
        assert_eq!(found.settings_removed, ["mode audit"]);
        let same = difference(&side(&old), &side(&old));
        assert!(show(&same).ends_with(
            "0 newly allowed, 0 not listed any more, 0 newly denied, 0 other changes\n"
        ));
    }
}
