//! `portcullis policy build`, `sign`, `verify` and `show`: bundles, on any machine.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde::Serialize;

use super::{BAD_INPUT, NO, OrExit, Outcome, output, scan::write_file, signing};
use crate::{
    artifact::digest,
    catalog::SignedBy,
    policy::{
        Policy,
        bundle::{self, Bundle, DEVICE_FILE, Device, Form, Manifest, Target},
        trust::Why,
    },
    run::catalogs,
    trust::sign::Content,
};

#[derive(clap::Args)]
pub struct BuildArgs {
    /// The policy file; what it names must lie in its folder
    policy: PathBuf,
    /// The bundle to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// For this device or group only, as device:NAME or group:NAME; may be given several times
    #[arg(long, value_name = "TARGET")]
    target: Vec<Target>,
    /// Raise it to go back to an older version deliberately: a higher one is newer, whatever the
    /// version
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    epoch: u64,
    /// Not to be used before this time, such as 2026-12-01T06:00:00Z
    #[arg(long, value_name = "TIME")]
    not_before: Option<Timestamp>,
    /// Devices warn when they take it after this time
    #[arg(long, value_name = "TIME")]
    expires: Option<Timestamp>,
    /// Devices put it in force even if it stops what runs there
    #[arg(long)]
    skip_preflight: bool,
}

#[derive(clap::Args)]
pub struct SignArgs {
    /// The bundle; the signature is put into it
    bundle: PathBuf,
    #[command(flatten)]
    with: signing::Args,
}

#[derive(clap::Args)]
pub struct VerifyArgs {
    /// The bundle
    bundle: PathBuf,
    /// The policy that is in force on the device, which says who may sign the next
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The device's name and groups
    #[arg(long, value_name = "FILE", default_value = DEVICE_FILE)]
    device: PathBuf,
    /// Show the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// The bundle
    bundle: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn read(path: &Path) -> Result<Bundle, super::Failure> {
    let read = Bundle::read(path);
    read.map_err(|(_, why)| anyhow!("{}: {why}", path.display())).or_exit(BAD_INPUT)
}

pub fn build(args: &BuildArgs) -> Outcome {
    let options = bundle::Options {
        targets: args.target.clone(),
        epoch: args.epoch,
        not_before: args.not_before,
        expires: args.expires,
        skip_preflight: args.skip_preflight,
    };
    let bar = output::progress(0, "reading");
    let made = bundle::build(&args.policy, &options, &bar);
    bar.finish_and_clear();
    let made = made.or_exit(BAD_INPUT)?;
    write(&args.output, &made)?;
    let bundle = read(&args.output)?;
    let Manifest { policy, version, parts, .. } = bundle.manifest();
    output::note(&format!(
        "{}: policy {policy} v{version}, {} files, {} bytes, bundle {}; sign it with `portcullis \
         policy sign`",
        args.output.display(),
        parts.len(),
        made.len(),
        digest::format(&bundle.digest()),
    ));
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), super::Failure> {
    write_file(path, |out| out.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
        .or_exit(BAD_INPUT)
}

pub fn sign(args: &SignArgs) -> Outcome {
    let bundle = read(&args.bundle)?;
    let made = args.with.sign(bundle.signed_bytes(), Content::Detached)?;
    let signed = bundle
        .with_signature(Form::of(made.is_cms), &made.bytes)
        .map_err(|(_, why)| anyhow!("{}: {why}", args.bundle.display()))
        .or_exit(BAD_INPUT)?;
    write(&args.bundle, &signed)?;
    let signatures = read(&args.bundle)?.signatures();
    output::note(&format!(
        "{}: signed with {}, {signatures} signatures",
        args.bundle.display(),
        made.key
    ));
    Ok(ExitCode::SUCCESS)
}

/// What a device would say.
#[derive(Serialize)]
struct Verdict {
    accepted: bool,
    reason: Option<&'static str>,
    message: Option<String>,
    signed: Vec<SignedBy>,
    warnings: Vec<String>,
}

pub fn verify(args: &VerifyArgs) -> Outcome {
    let policy = Policy::load(&args.policy, &ProgressBar::hidden()).or_exit(BAD_INPUT)?;
    let device = Device::read(&args.device).map_err(|error| anyhow!(error)).or_exit(BAD_INPUT)?;
    let now = catalogs::now();
    let look = || -> Result<(Vec<SignedBy>, Vec<String>), Why> {
        let bundle = Bundle::read(&args.bundle)?;
        let signed = bundle.verify(&policy.trust, policy.policy_signatures, now)?;
        Ok((signed, bundle.check_device(&device, now)?))
    };
    let verdict = match look() {
        Ok((signed, warnings)) => {
            Verdict { accepted: true, reason: None, message: None, signed, warnings }
        }
        Err((reason, message)) => Verdict {
            accepted: false,
            reason: Some(reason),
            message: Some(message),
            signed: Vec::new(),
            warnings: Vec::new(),
        },
    };
    if args.json {
        output::print(&(serde_json::to_string(&verdict).or_exit(BAD_INPUT)? + "\n"))?;
    } else if let (Some(reason), Some(message)) = (verdict.reason, &verdict.message) {
        output::error(&format!("{}: refused ({reason}): {message}", args.bundle.display()));
    } else {
        let mut text = format!("{}: accepted\n", args.bundle.display());
        for by in &verdict.signed {
            text.push_str(&format!("signed by {} ({})\n", by.signer, by.algorithm));
        }
        for warning in &verdict.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        output::print(&text)?;
    }
    Ok(if verdict.accepted { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

/// A bundle for programs.
#[derive(Serialize)]
struct Shown<'a> {
    sha256: String,
    signatures: usize,
    manifest: &'a Manifest,
}

pub fn show(args: &ShowArgs) -> Outcome {
    let bundle = read(&args.bundle)?;
    let manifest = bundle.manifest();
    let sha256 = digest::format(&bundle.digest());
    let signatures = bundle.signatures();
    if args.json {
        let shown = Shown { sha256, signatures, manifest };
        output::print(&(serde_json::to_string(&shown).or_exit(BAD_INPUT)? + "\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let targets: Vec<_> = manifest.targets.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "policy {} v{}, epoch {}, for {}\nbundle {sha256}, {signatures} signatures\n",
        manifest.policy,
        manifest.version,
        manifest.epoch,
        targets.join(", "),
    );
    for (what, time) in [("not before", manifest.not_before), ("until", manifest.expires)] {
        if let Some(time) = time {
            text.push_str(&format!("{what} {time}\n"));
        }
    }
    if manifest.skip_preflight {
        text.push_str("comes into force even if it STOPS WHAT RUNS\n");
    }
    for part in &manifest.parts {
        text.push_str(&format!("{} {:>9} {}\n", part.sha256, part.size, part.path.escape_debug()));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
