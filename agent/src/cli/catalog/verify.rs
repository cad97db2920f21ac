//! `portcullis catalog verify`

use std::{fmt::Write, path::PathBuf, process::ExitCode};

use serde::Serialize;

use crate::{
    catalog::{Looked, SignedBy, look_at},
    cli::{BAD_INPUT, NO, OrExit, Outcome, UNAVAILABLE, output},
    event::human::Plain,
    policy::{Policy, diagnostic::Diagnostics, trust::PolicyTrust},
    run::catalogs::now,
};

#[derive(clap::Args)]
pub struct Args {
    /// Catalogs; their signatures are looked for beside them
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Trust whom this policy trusts
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "certificate"])]
    policy: Option<PathBuf>,
    /// Trust this public key
    #[arg(long, value_name = "PEM", required_unless_present_any = ["policy", "certificate"])]
    key: Option<PathBuf>,
    /// Trust this certificate, or what it was issued for
    #[arg(long, value_name = "PEM", conflicts_with = "key")]
    certificate: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How one catalog came out.
#[derive(Serialize)]
struct Answer {
    file: String,
    verified: bool,
    reason: Option<&'static str>,
    message: Option<String>,
    signed: Vec<SignedBy>,
    #[serde(flatten)]
    content: Option<Looked>,
}

pub fn verify(args: &Args) -> Outcome {
    let trust = match (&args.policy, &args.key, &args.certificate) {
        (Some(file), ..) => {
            let bar = output::progress(0, "reading the policy");
            let policy = Policy::load(file, &bar);
            bar.finish_and_clear();
            policy.or_exit(BAD_INPUT)?.trust
        }
        (None, Some(key), _) => {
            PolicyTrust::in_key(key).map_err(Diagnostics::from).or_exit(BAD_INPUT)?
        }
        (None, None, certificate) => {
            let certificate = certificate.clone().unwrap_or_default();
            PolicyTrust::in_certificate(&certificate)
                .map_err(Diagnostics::from)
                .or_exit(BAD_INPUT)?
        }
    };
    let answers: Vec<_> = args
        .files
        .iter()
        .map(|file| {
            let (verified, reason, message, signed, content) = match look_at(file, &trust, now()) {
                Ok((content, signed)) => (true, None, None, signed, Some(content)),
                Err((reason, message)) => (false, Some(reason), Some(message), Vec::new(), None),
            };
            let file = file.display().to_string();
            Answer { file, verified, reason, message, signed, content }
        })
        .collect();
    let text = if args.json {
        serde_json::to_string_pretty(&answers).or_exit(UNAVAILABLE)? + "\n"
    } else {
        answers.iter().map(show).collect()
    };
    output::print(&text)?;
    let good = answers.iter().all(|answer| answer.verified);
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn show(answer: &Answer) -> String {
    let mut text = format!("{}: ", Plain(&answer.file));
    // Writing to a string does not fail.
    if let Some(message) = &answer.message {
        let reason = answer.reason.unwrap_or_default();
        let _ = writeln!(text, "NOT verified ({reason}): {}", Plain(message));
        return text;
    }
    text.push_str("verified");
    if let Some(Looked { name: Some(name), version: Some(version), digests, withdrawn }) =
        &answer.content
    {
        let _ = write!(text, ": {name} v{version}, {digests} entries, {withdrawn} taken back");
    }
    text.push('\n');
    for by in &answer.signed {
        text.push_str(&output::signed(by, "  "));
    }
    text
}
