//! `portcullis policy learn`: from what has run to a manifest that a person has decided about.

mod ask;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use portcullis_common::{Digest, Kinds};

use super::{
    BAD_INPUT, Failure, NO, OrExit, Outcome, history, output,
    policy_diff::{Side, in_force},
    scan::write_file,
};
use crate::{
    catalog::folder,
    event::human::Plain,
    learn::{
        self, Files, Learned, Unlistable,
        review::{self, Reviewed, Word},
    },
    policy::{
        Policy,
        manifest::{self, Found},
    },
    run::preflight,
};

#[derive(clap::Args)]
pub struct Args {
    /// The manifest to write; if it exists, what is decided is added to it
    #[arg(short, long, value_name = "FILE", default_value = "learned.manifest")]
    output: PathBuf,
    /// Leave out what this policy or bundle lists or denies (default: the one in force on this device)
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// What has run on another device, as `portcullis history -o FILE` wrote it there
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Accept what a package of this system has installed, if it is still as it was
    #[arg(long)]
    accept_packages: bool,
    /// Write what is to be decided to a file, to be edited
    #[arg(long, value_name = "FILE", conflicts_with = "review")]
    write_review: Option<PathBuf>,
    /// Take the decisions from such a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["policy", "history", "accept_packages"])]
    review: Option<PathBuf>,
}

/// Bytes of a review: about a million lines.
const MAX_REVIEW: u64 = 256 << 20;

/// Things that cannot be listed that are shown.
const SHOWN: usize = 20;

pub fn learn(args: &Args) -> Outcome {
    if let Some(file) = &args.review {
        return finish(args, read_review(file)?);
    }
    let learned = gather(args)?;
    tell_unlistable(&learned.unlistable);
    if learned.candidates.is_empty() {
        output::print("nothing is left to learn: the policy knows everything that has run\n")?;
        return Ok(if learned.unlistable.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::from(NO)
        });
    }
    let mut words: Vec<_> = learned
        .candidates
        .iter()
        .map(|one| match one.origin.is_package() && args.accept_packages {
            true => Word::Accept,
            false => Word::Ask,
        })
        .collect();
    if let Some(file) = &args.write_review {
        write_file(file, |out| review::write(out, &learned, &words))
            .with_context(|| format!("cannot write {}", file.display()))
            .or_exit(BAD_INPUT)?;
        let count = words.iter().filter(|word| **word == Word::Ask).count();
        output::note(&format!(
            "{count} of {} to be decided: put accept or reject in the place of ask in {}, and then \
             `portcullis policy learn --review {} -o {}`",
            words.len(),
            file.display(),
            file.display(),
            args.output.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    if words.contains(&Word::Ask) {
        let undecided = words.iter().filter(|word| **word == Word::Ask).count();
        if !io::stdin().is_terminal() {
            let error = anyhow!(
                "{undecided} to be decided, and nobody to ask; --write-review FILE writes them to a file"
            );
            return Err(Failure { code: NO, error });
        }
        let mut out = io::stderr().lock();
        let go_on = ask::ask(&learned, &mut words, &mut io::stdin().lock(), &mut out);
        if !go_on.or_exit(BAD_INPUT)? {
            output::note("nothing was written");
            return Ok(ExitCode::from(NO));
        }
    }
    let decided = learned.candidates.into_iter().zip(words);
    let decided = decided.map(|(one, word)| (word, one.found, one.listed));
    finish(args, decided.collect())
}

/// What was decided about what, and what that is listed as already.
type Decision = (Word, Found, Kinds);

/// What has run here, or elsewhere, and the policy says nothing about.
fn gather(args: &Args) -> Result<Learned, Failure> {
    let history = history::read(args.history.as_deref())?;
    let side = match (&args.policy, &args.history) {
        (Some(file), _) => Some(Side::read(file)?),
        (None, None) => Some(Side::load(&in_force()?)?),
        (None, Some(_)) => None,
    };
    let rule = |digest: &Digest| side.as_ref().and_then(|side| side.policy.rule(digest));
    if args.history.is_some() {
        return Ok(learn::learn(&history, &[], rule, Files::Elsewhere));
    }
    let bar = output::progress(0, "looking at what runs");
    let in_use = preflight::in_use();
    let learned = learn::learn(&history, &in_use, rule, Files::Here);
    bar.finish_and_clear();
    Ok(learned)
}

fn tell_unlistable(unlistable: &[Unlistable]) {
    if unlistable.is_empty() {
        return;
    }
    let mut text = format!("{} have run and cannot be listed:", unlistable.len());
    for Unlistable { path, told } in unlistable.iter().take(SHOWN) {
        text.push_str(&format!("\n  {} {told}", path.to_string_lossy().escape_debug()));
    }
    if unlistable.len() > SHOWN {
        text.push_str(&format!("\n  … and {} more", unlistable.len() - SHOWN));
    }
    output::note(&text);
}

fn read_review(file: &Path) -> Result<Vec<Decision>, Failure> {
    let bytes = folder::read(file, MAX_REVIEW).map_err(|why| anyhow!("{}: {why}", file.display()));
    let reviewed = review::parse(file, &bytes.or_exit(BAD_INPUT)?).or_exit(BAD_INPUT)?;
    let undecided: Vec<_> = reviewed.iter().filter(|one| one.word == Word::Ask).collect();
    if let [Reviewed { line, .. }, ..] = &undecided[..] {
        let error = anyhow!(
            "{}:{line}: {} not decided yet; put accept or reject in the place of ask, or take the lines \
             out",
            file.display(),
            undecided.len()
        );
        return Err(Failure { code: BAD_INPUT, error });
    }
    Ok(reviewed.into_iter().map(|one| (one.word, one.found, one.listed)).collect())
}

/// Adds what was decided to the manifest.
fn finish(args: &Args, decided: Vec<Decision>) -> Outcome {
    let (mut allowed, mut denied) = before(&args.output)?;
    let (mut accepted, mut rejected) = (0, 0);
    let mut used_otherwise = Vec::new();
    for (word, found, listed) in decided {
        let Found { kinds, path, digest } = found;
        match word {
            Word::Ask => {}
            // Denying the digest would stop the use that the policy lists.
            Word::Reject if !listed.is_empty() => used_otherwise.push(path),
            Word::Accept => {
                accepted += 1;
                denied.remove(&digest);
                let known = allowed.entry((digest, path.clone())).or_insert_with(|| Found {
                    kinds,
                    path,
                    digest,
                });
                known.kinds = known.kinds.union(kinds);
            }
            Word::Reject => {
                rejected += 1;
                allowed.retain(|(one, _), _| *one != digest);
                denied.insert(digest, path);
            }
        }
    }
    let (allowed, denied): (Vec<_>, Vec<_>) =
        (allowed.into_values().collect(), denied.into_iter().collect());
    let total = allowed.len();
    write_file(&args.output, |out| manifest::write_decided(out, allowed, &denied))
        .with_context(|| format!("cannot write {}", args.output.display()))
        .or_exit(BAD_INPUT)?;
    let shown = args.output.display();
    output::print(&format!(
        "{shown}: {accepted} accepted and {rejected} rejected now; it allows {total} and denies {}\n",
        denied.len()
    ))?;
    for path in used_otherwise {
        let path = path.to_string_lossy();
        output::note(&format!(
            "{}: its digest is listed for another use and is not denied; `portcullis history \
             --expect-denied PATH` on the device, so that this use does not stand in the way of enforcement",
            Plain(&path)
        ));
    }
    output::note(&next(args));
    Ok(ExitCode::SUCCESS)
}

/// What a manifest of that name says so far.
type Before = (BTreeMap<(Digest, PathBuf), Found>, BTreeMap<Digest, PathBuf>);

fn before(file: &Path) -> Result<Before, Failure> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Before::default()),
        Err(error) => {
            return Err(error).with_context(|| file.display().to_string()).or_exit(BAD_INPUT);
        }
    };
    let (allowed, denied) = manifest::parse_decided(file, &bytes).or_exit(BAD_INPUT)?;
    let allowed = allowed.into_iter().map(|found| ((found.digest, found.path.clone()), found));
    Ok((allowed.collect(), denied.into_iter().collect()))
}

/// What to do with the manifest.
fn next(args: &Args) -> String {
    let shown = args.output.display();
    let name = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let includes =
        |policy: &Policy| policy.sources.iter().any(|source| name(source) == name(&args.output));
    let policy = args.policy.clone().or_else(|| in_force().ok());
    let included = policy
        .as_deref()
        .and_then(|file| Side::read(file).ok())
        .is_some_and(|side| includes(&side.policy));
    if included {
        return "`portcullis policy reload` puts it in force".into();
    }
    format!(
        "a policy uses it with include = [\"{shown}\"]; the first policy: `portcullis policy init --from \
         {shown}`"
    )
}
