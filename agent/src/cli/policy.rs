//! `portcullis policy`

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow, bail};
use portcullis_common::Kinds;

use super::{
    BAD_INPUT, OrExit, Outcome, bundle, import, learn, output, policy_diff, policy_test, push,
    scan::write_file,
};
use crate::{
    control::{ReloadAnswer, Request, client},
    event::human::Named,
    policy::{Policy, quoted, trust::describe as describe_signers},
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make the first policy from a scan's manifest, in audit mode
    Init(InitArgs),
    /// Look for mistakes, and say what the policy holds
    Check(CheckArgs),
    /// Put the policy file in force as it is now, in the mode that is; refused if that would stop
    /// what runs
    Reload(ReloadArgs),
    /// Make a manifest of a list that others keep, with what could not be carried over
    #[command(subcommand)]
    Import(import::Verb),
    /// Put a policy and everything that it names into one file, to be signed
    Build(bundle::BuildArgs),
    /// Sign a bundle
    Sign(bundle::SignArgs),
    /// Say whether a device would take a bundle
    Verify(bundle::VerifyArgs),
    /// Show what a bundle says of itself
    Show(bundle::ShowArgs),
    /// Show what would newly run, and what not any more, between two policies or bundles
    Diff(policy_diff::Args),
    /// Make a manifest of what has run here and the policy says nothing about, to choose from
    Learn(learn::Args),
    /// Say whether a policy or bundle would refuse what has run
    Test(policy_test::Args),
    /// Put a signed bundle in force on this device, or on others
    Push(push::PushArgs),
    /// Keep the bundle that is tried
    Confirm(push::ConfirmArgs),
    /// Put in force what was before the bundle that is in force
    Rollback(push::RollbackArgs),
}

#[derive(clap::Args)]
pub struct ReloadArgs {
    /// Do so even if that stops what runs now
    #[arg(long)]
    skip_preflight: bool,
}

#[derive(clap::Args)]
pub struct InitArgs {
    /// The manifest, as written by `portcullis scan` or `portcullis policy learn` (default: none, to learn in
    /// audit mode what runs)
    #[arg(long, value_name = "MANIFEST")]
    from: Option<PathBuf>,
    /// The policy file to write; its folder must be able to refer to the manifest
    #[arg(short, long, value_name = "FILE", default_value = "policy.toml")]
    output: PathBuf,
    /// Name of the policy (default: the output file's name)
    #[arg(long)]
    name: Option<String>,
    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
pub struct CheckArgs {
    /// The policy file
    file: PathBuf,
}

pub fn policy(verb: &Verb) -> Outcome {
    match verb {
        Verb::Init(args) => init(args),
        Verb::Check(args) => check(args),
        Verb::Reload(args) => reload(args),
        Verb::Import(verb) => import::import(verb),
        Verb::Build(args) => bundle::build(args),
        Verb::Sign(args) => bundle::sign(args),
        Verb::Verify(args) => bundle::verify(args),
        Verb::Show(args) => bundle::show(args),
        Verb::Diff(args) => policy_diff::diff(args),
        Verb::Learn(args) => learn::learn(args),
        Verb::Test(args) => policy_test::test(args),
        Verb::Push(args) => push::push(args),
        Verb::Confirm(args) => push::confirm(args),
        Verb::Rollback(args) => push::rollback(args),
    }
}

fn check(args: &CheckArgs) -> Outcome {
    let bar = output::progress(0, "reading");
    let policy = Policy::load(&args.file, &bar);
    bar.finish_and_clear();
    let policy = policy.or_exit(BAD_INPUT)?;
    let mut text = describe(&policy) + "\n";
    for signer in describe_signers(&policy.trust.trust.signers) {
        text.push_str(&format!("trusts signer {signer}\n"));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn reload(args: &ReloadArgs) -> Outcome {
    let request = Request::Reload { skip_preflight: args.skip_preflight };
    let ReloadAnswer { policy, digests } = client::ask_json(&request)?;
    output::print(&format!("policy {} is in force: {digests} digests\n", Named(&policy)))?;
    Ok(ExitCode::SUCCESS)
}

fn describe(policy: &Policy) -> String {
    let count =
        |kind: Kinds| policy.rules.iter().filter(|(_, rule)| rule.kinds.intersects(kind)).count();
    let denied = policy.rules.iter().filter(|(_, rule)| rule.denied == 1).count();
    format!(
        "policy {} v{} ({}): {} digests from {} files; {} executables, {} libraries, {} scripts, \
         {} modules allowed, {denied} denied",
        policy.name,
        policy.version,
        policy.mode.word(),
        policy.rules.len(),
        policy.sources.len(),
        count(Kinds::EXECUTABLE),
        count(Kinds::LIBRARY),
        count(Kinds::SCRIPT),
        count(Kinds::MODULE),
    )
}

fn init(args: &InitArgs) -> Outcome {
    let text = first_policy(args).or_exit(BAD_INPUT)?;
    // Tried where it will lie, before it lies there.
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let draft = tempfile::Builder::new().prefix(".policy").suffix(".toml").tempfile_in(folder);
    let mut draft = draft
        .with_context(|| format!("cannot write to {}", folder.display()))
        .or_exit(BAD_INPUT)?;
    draft.write_all(text.as_bytes()).or_exit(BAD_INPUT)?;
    let bar = output::progress(0, "reading");
    let policy = Policy::load(draft.path(), &bar);
    bar.finish_and_clear();
    let policy = policy.map_err(|mistakes| {
        let shown = draft.path().display().to_string();
        anyhow!(mistakes.to_string().replace(&shown, &args.output.display().to_string()))
    });
    let policy = policy.or_exit(BAD_INPUT)?;
    write_file(&args.output, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", args.output.display()))
        .or_exit(BAD_INPUT)?;
    output::note(&format!("{}: {}", args.output.display(), describe(&policy)));
    Ok(ExitCode::SUCCESS)
}

fn first_policy(args: &InitArgs) -> anyhow::Result<String> {
    if !args.force && args.output.symlink_metadata().is_ok() {
        bail!("{} exists; choose another name, or replace it with --force", args.output.display());
    }
    let stem = || args.output.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = args.name.clone().or_else(stem).unwrap_or_default();
    let include = args.from.as_deref().map(|from| include(from, &args.output)).transpose()?;
    Ok(format!(
        "# A policy of Portcullis: what may run. See docs/policy.md.\n\
         name = {}\n\
         # Raise it with every change.\n\
         version = 1\n\
         # \"audit\" reports what would be refused; \"enforce\" refuses it.\n\
         mode = \"audit\"\n\
         # Lists of digests, relative to this file's folder.\n\
         include = [{}]\n",
        quoted(&name),
        include.unwrap_or_default(),
    ))
}

/// How a policy names a manifest.
fn include(manifest: &Path, policy: &Path) -> anyhow::Result<String> {
    let relative = relative(manifest, policy)?;
    let name = relative.to_str().with_context(|| {
        format!("{} is not UTF-8; give the manifest another name", manifest.display())
    })?;
    Ok(quoted(name))
}

/// The manifest as seen from the policy's folder: beside it or below it by its short name, else by
/// its full one.
fn relative(manifest: &Path, policy: &Path) -> anyhow::Result<PathBuf> {
    let full = std::fs::canonicalize(manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    let folder =
        policy.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder =
        std::fs::canonicalize(folder).with_context(|| format!("no folder {}", folder.display()))?;
    Ok(full.strip_prefix(&folder).map(Path::to_owned).unwrap_or(full))
}
