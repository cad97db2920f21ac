//! `portcullis explain`

mod signed;

use std::{
    fmt::Write,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use portcullis_common::{Digest, Kinds, Reason, fsverity_key};
use serde::Serialize;

use super::{BAD_INPUT, Failure, NO, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    artifact::{self, MAX_HASHED_BYTES, digest, fsverity},
    control::{Request, RuleAnswer, RuleFound, SignatureAnswer, client},
    event::human::Plain,
    kernel::filesystems,
    policy::{Policy, signature},
    run::{self, preflight},
};

#[derive(clap::Args)]
pub struct Args {
    /// The files in question
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Ask this policy file instead of the running agent
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What is known and decided about one file.
#[derive(Serialize)]
struct Explanation {
    path: String,
    digest: Option<String>,
    size: u64,
    filesystem: String,
    /// What the content can be used as.
    kinds: Vec<&'static str>,
    policy: String,
    mode: String,
    rule: Option<RuleFound>,
    /// What the signatures are worth that the file carries itself.
    signature: SignatureAnswer,
    /// One for each way in which it can become code.
    uses: Vec<Use>,
}

#[derive(Serialize)]
struct Use {
    kind: &'static str,
    outcome: &'static str,
    reason: &'static str,
    /// In words, with what to do.
    why: String,
}

/// Who is asked about digests.
enum Judge {
    Agent,
    File(Box<Policy>),
}

pub fn explain(args: &Args) -> Outcome {
    let judge = match &args.policy {
        None => Judge::Agent,
        Some(file) => {
            let bar = output::progress(0, "reading the policy");
            let policy = Policy::load(file, &bar);
            bar.finish_and_clear();
            Judge::File(Box::new(policy.or_exit(BAD_INPUT)?))
        }
    };
    let mut explanations = Vec::new();
    for path in &args.paths {
        explanations.push(judge.explain(path)?);
    }
    let text = if args.json {
        serde_json::to_string_pretty(&explanations).or_exit(UNAVAILABLE)? + "\n"
    } else {
        explanations.iter().map(show).collect::<Vec<_>>().join("\n")
    };
    output::print(&text)?;
    let all_allowed =
        explanations.iter().flat_map(|one| &one.uses).all(|one| one.outcome == "allow");
    Ok(if all_allowed { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

impl Judge {
    fn explain(&self, path: &Path) -> Result<Explanation, Failure> {
        let seen =
            look_at(path).with_context(|| path.display().to_string().escape_debug().to_string());
        let mut seen = seen.or_exit(BAD_INPUT)?;
        seen.verified = self.verified(seen.device)?;
        // First: what counts joins the rules.
        let signature = self.signature(path)?;
        let mut answer = self.rule(seen.digest.as_ref())?;
        if let Self::File(_) = self {
            signed::join(&mut answer.rule, &signature);
        }
        if let Some(single) = self.rule_by_fsverity(&seen, answer.rule.as_ref())? {
            answer.rule = Some(single);
        }
        let enforces = answer.mode == "enforce";
        let uses = Kinds::WORDS.iter().filter(|(kind, _)| seen.kinds.intersects(*kind));
        let uses =
            uses.map(|(kind, word)| judge_use(*kind, word, &seen, &answer, enforces)).collect();
        Ok(Explanation {
            path: path.display().to_string(),
            digest: seen.digest.as_ref().map(digest::format),
            size: seen.size,
            filesystem: seen.filesystem,
            kinds: words(seen.kinds),
            policy: answer.policy,
            mode: answer.mode,
            rule: answer.rule,
            signature,
            uses,
        })
    }

    /// What the signatures are worth that the file carries itself.
    fn signature(&self, path: &Path) -> Result<SignatureAnswer, Failure> {
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        // A name that is no text cannot be sent; the gates judge the file all the same.
        let Some(real) = fs::canonicalize(path).ok().filter(|_| is_file) else {
            return Ok(SignatureAnswer::default());
        };
        match (self, real.to_str()) {
            (Self::Agent, Some(path)) => {
                Ok(client::ask_json(&Request::Signature { path: path.into() })?)
            }
            (Self::Agent, None) => Ok(SignatureAnswer::default()),
            (Self::File(policy), _) => {
                let looked = fs::File::open(&real).and_then(|file| {
                    signature::look_at(
                        &file,
                        &policy.trust,
                        None,
                        signature::Unpack::Modules,
                        run::catalogs::now(),
                    )
                });
                Ok(SignatureAnswer::from(&looked.or_exit(BAD_INPUT)?))
            }
        }
    }

    /// What files on a device may be used as because it is verified.
    fn verified(&self, device: u64) -> Result<Kinds, Failure> {
        match self {
            Self::Agent => Ok(Kinds(client::ask_json(&Request::Verified { device })?)),
            Self::File(policy) => {
                Ok(preflight::verified_kinds(policy).get(&device).copied().unwrap_or_default())
            }
        }
    }

    /// The rule for the file's fs-verity digest, if there is one and the content's own rule does
    /// not decide.
    fn rule_by_fsverity(
        &self,
        seen: &Seen,
        own: Option<&RuleFound>,
    ) -> Result<Option<RuleFound>, Failure> {
        match seen.fsverity {
            Some(digest) if own.is_none() => {
                Ok(self.rule(Some(&fsverity_key(&digest)))?.rule.filter(|rule| !rule.denied))
            }
            _ => Ok(None),
        }
    }

    fn rule(&self, digest: Option<&Digest>) -> Result<RuleAnswer, Failure> {
        match self {
            // A digest that nothing has still brings the policy's name and mode.
            Self::Agent => {
                let digest = digest::format(digest.unwrap_or(&[0; 32]));
                Ok(client::ask_json(&Request::Rule { digest })?)
            }
            Self::File(policy) => {
                let rule = digest.and_then(|digest| policy.rule(digest));
                Ok(RuleAnswer {
                    mode: policy.mode.word().into(),
                    policy: format!("{} v{}", policy.name, policy.version),
                    rule: rule.map(|rule| RuleFound {
                        kinds: words(rule.kinds).into_iter().map(str::to_owned).collect(),
                        denied: rule.denied == 1,
                        file: policy.sources[usize::from(rule.source)].display().to_string(),
                        line: rule.line,
                        signed: policy.signed.get(&rule.source).cloned().unwrap_or_default(),
                    }),
                })
            }
        }
    }
}

fn words(kinds: Kinds) -> Vec<&'static str> {
    kinds.words().collect()
}

/// What can be told from the file alone.
struct Seen {
    digest: Option<Digest>,
    fsverity: Option<Digest>,
    device: u64,
    /// What it may be used as because of its filesystem.
    verified: Kinds,
    size: u64,
    filesystem: String,
    kinds: Kinds,
    /// Why a gate could not identify it, if so.
    trouble: Option<Reason>,
}

fn look_at(path: &Path) -> io::Result<Seen> {
    let metadata = fs::metadata(path)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "a folder; name the files in it"));
    }
    let magic = filesystems::magic_of(path)?;
    let filesystem = filesystems::name(magic);
    let mut seen = Seen {
        digest: None,
        fsverity: None,
        device: metadata.dev(),
        verified: Kinds::NONE,
        size: metadata.len(),
        filesystem,
        kinds: Kinds::NONE,
        trouble: None,
    };
    if kind.is_fifo() || kind.is_socket() || kind.is_char_device() || kind.is_block_device() {
        // /dev/zero can be mapped as code; nothing else here can become any.
        seen.kinds = Kinds::LIBRARY;
        seen.trouble = Some(Reason::NotAFile);
        return Ok(seen);
    }
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    seen.fsverity = fsverity::measured(&file);
    seen.kinds = artifact::identify(&file)?.unwrap_or(Kinds::NONE);
    if filesystems::UNTRUSTED.iter().any(|untrusted| untrusted.magic == magic) {
        seen.trouble = Some(Reason::Filesystem);
    } else if metadata.len() > MAX_HASHED_BYTES {
        seen.trouble = Some(Reason::TooLarge);
    } else {
        seen.digest = Some(digest::of_file(&file, MAX_HASHED_BYTES)?.0);
    }
    Ok(seen)
}

fn judge_use(
    kind: Kinds,
    word: &'static str,
    seen: &Seen,
    answer: &RuleAnswer,
    enforces: bool,
) -> Use {
    let place = |rule: &RuleFound| match rule.line {
        0 => Plain(&rule.file).to_string(),
        line => format!("{}:{line}", Plain(&rule.file)),
    };
    let exec = Kinds::EXECUTABLE.union(Kinds::SCRIPT);
    let verified =
        seen.verified.intersects(kind) || (exec.intersects(kind) && exec.intersects(seen.verified));
    let listed = |rule: &RuleFound| rule.kinds.iter().any(|word| as_good_as(word, kind));
    let add = format!("list this digest with kinds = [\"{word}\"]");
    let (reason, why) = match (seen.trouble, &answer.rule) {
        (Some(reason @ Reason::NotAFile), _) => (reason, "it is not a regular file".into()),
        (Some(reason @ Reason::TooLarge), _) => {
            (reason, format!("larger than the {} MiB that the gates hash", MAX_HASHED_BYTES >> 20))
        }
        (Some(reason), _) => {
            (reason, format!("content on {} can change between check and use", seen.filesystem))
        }
        (None, rule)
            if verified && !rule.as_ref().is_some_and(|rule| rule.denied || listed(rule)) =>
        {
            (Reason::VerifiedFilesystem, "the policy trusts its verified filesystem".into())
        }
        (None, None) => {
            (Reason::Unlisted, format!("not in policy {}; to allow: {add}", answer.policy))
        }
        (None, Some(rule)) if rule.denied => {
            (Reason::Denied, format!("denied at {}; to allow: remove that", place(rule)))
        }
        (None, Some(rule)) if !listed(rule) => (
            Reason::WrongKind,
            format!(
                "listed as {} at {}; to allow: add \"{word}\" there",
                rule.kinds.join(" and "),
                place(rule)
            ),
        ),
        (None, Some(rule)) => (Reason::Listed, format!("listed at {}", place(rule))),
    };
    let outcome = match (reason, enforces) {
        (Reason::Listed | Reason::VerifiedFilesystem, _) => "allow",
        (_, false) => "would-deny",
        (_, true) => "deny",
    };
    Use { kind: word, outcome, reason: reason.word(), why }
}

/// The exec gate does not tell programs from scripts.
fn as_good_as(listed: &str, kind: Kinds) -> bool {
    let exec = Kinds::EXECUTABLE.union(Kinds::SCRIPT);
    let listed = Kinds::WORDS
        .iter()
        .find(|(_, word)| *word == listed)
        .map_or(Kinds::NONE, |(kind, _)| *kind);
    listed.intersects(kind) || (exec.intersects(kind) && exec.intersects(listed))
}

/// What the marks on a program mean.
const MARKS: [(&str, &str); 2] = [
    ("jit", "may make memory executable that holds no file's content"),
    ("interpreter", "takes its script only from files that are listed with \"script\""),
];

fn show(one: &Explanation) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "{}", Plain(&one.path));
    let _ = writeln!(text, "  sha256  {}", one.digest.as_deref().unwrap_or("none"));
    let _ = writeln!(text, "  file    {} bytes on {}", one.size, one.filesystem);
    let _ = writeln!(text, "  policy  {} ({})", one.policy, one.mode);
    signed::show(&mut text, &one.signature);
    if one.uses.is_empty() {
        let listed = one.rule.as_ref().map_or("", |_| "; the policy lists its digest all the same");
        let _ =
            writeln!(text, "  no program, library, script or module: nothing to decide{listed}");
    }
    for Use { kind, outcome, why, .. } in &one.uses {
        let _ = writeln!(text, "  as {kind}: {outcome}: {why}");
    }
    for by in one.rule.iter().flat_map(|rule| &rule.signed) {
        text.push_str(&output::signed(by, "  "));
    }
    for (mark, means) in MARKS {
        if one.rule.as_ref().is_some_and(|rule| rule.kinds.iter().any(|kind| kind == mark)) {
            let _ = writeln!(text, "  marked {mark}: {means}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::manifest::kinds_words;

    fn judged(kinds: &[&str], denied: bool, kind: Kinds, trouble: Option<Reason>) -> &'static str {
        let seen = Seen {
            digest: Some([1; 32]),
            fsverity: None,
            device: 0,
            verified: Kinds::NONE,
            size: 1,
            filesystem: "ext4".into(),
            kinds: kind,
            trouble,
        };
        let rule = RuleFound {
            kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            denied,
            file: "p.toml".into(),
            line: 3,
            signed: Vec::new(),
        };
        let rule = (!kinds.is_empty() || denied).then_some(rule);
        let answer = RuleAnswer { mode: "enforce".into(), policy: "p v1".into(), rule };
        let one = judge_use(kind, kinds_words(kind).leak(), &seen, &answer, true);
        assert_eq!(one.outcome == "allow", one.reason == "listed");
        one.reason
    }

    #[test]
    fn decides_as_the_gates_do() {
        let (executable, library, script) = (Kinds::EXECUTABLE, Kinds::LIBRARY, Kinds::SCRIPT);
        assert_eq!(judged(&["executable"], false, executable, None), "listed");
        assert_eq!(judged(&["executable"], false, script, None), "listed");
        assert_eq!(judged(&["script"], false, executable, None), "listed");
        assert_eq!(judged(&["executable"], false, library, None), "wrong-kind");
        assert_eq!(judged(&["library"], false, executable, None), "wrong-kind");
        assert_eq!(judged(&["executable", "library"], false, library, None), "listed");
        assert_eq!(judged(&[], true, library, None), "denied");
        assert_eq!(judged(&[], false, library, None), "unlisted");
        assert_eq!(judged(&["library"], false, library, Some(Reason::Filesystem)), "filesystem");
    }
}
