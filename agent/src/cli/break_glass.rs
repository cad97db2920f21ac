//! `portcullis break-glass`

use std::{io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use serde::Deserialize;

use super::{BAD_INPUT, OrExit, Outcome, output, push::seconds, scan::write_file, signing};
use crate::{
    control::{Request, client},
    policy::{
        break_glass::{Claim, MAX_TOKEN, Purpose, Token},
        bundle::Form,
    },
    trust::sign::Content,
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make a token for a device, on any machine; sign it then
    Make(MakeArgs),
    /// Sign a token with a key that may sign policies
    Sign(SignArgs),
    /// Use a token on this device: nothing is refused until its minutes are over
    Use(UseArgs),
}

#[derive(clap::Args)]
pub struct MakeArgs {
    /// The device's name, as in its /etc/portcullis/device.toml
    #[arg(long, value_name = "NAME")]
    device: String,
    /// How long enforcement is lifted
    #[arg(long, value_name = "MINUTES", required_unless_present_any = ["lasts", "stop"])]
    minutes: Option<u32>,
    /// The same as a time, for example 90s, 30m or 2h
    #[arg(long = "for", value_name = "TIME", conflicts_with = "minutes", value_parser = seconds)]
    lasts: Option<u64>,
    /// It is for `portcullis stop --authorized` instead: the gates go down
    #[arg(long, conflicts_with_all = ["lasts", "minutes"])]
    stop: bool,
    /// Until when it can be used, such as 2026-12-01T06:00:00Z
    #[arg(long, value_name = "TIME")]
    valid_until: Timestamp,
    /// The token to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
pub struct SignArgs {
    /// The token; the signature is put into it
    token: PathBuf,
    #[command(flatten)]
    with: signing::Args,
}

#[derive(clap::Args)]
pub struct UseArgs {
    /// The token
    token: PathBuf,
}

pub fn break_glass(verb: &Verb) -> Outcome {
    match verb {
        Verb::Make(args) => make(args),
        Verb::Sign(args) => sign(args),
        Verb::Use(args) => use_it(args),
    }
}

fn make(args: &MakeArgs) -> Outcome {
    let purpose = if args.stop { Purpose::Stop } else { Purpose::Lift };
    let minutes = args.minutes.map(|minutes| u64::from(minutes) * 60);
    let lasts = Duration::from_secs(args.lasts.or(minutes).unwrap_or_default());
    let claim = Claim::new(purpose, &args.device, lasts, args.valid_until);
    let claim = claim.map_err(|error| anyhow!(error)).or_exit(BAD_INPUT)?;
    write(&args.output, &Token::unsigned(claim))?;
    output::note(&format!("{}: sign it with `portcullis break-glass sign`", args.output.display()));
    Ok(ExitCode::SUCCESS)
}

fn write(path: &std::path::Path, token: &Token) -> Result<(), super::Failure> {
    let mut text = serde_json::to_string_pretty(token).or_exit(BAD_INPUT)?;
    text.push('\n');
    write_file(path, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
        .or_exit(BAD_INPUT)
}

/// Reads a token, with its text.
pub(super) fn read(path: &std::path::Path) -> Result<(String, Token), super::Failure> {
    let bytes = crate::catalog::folder::read(path, MAX_TOKEN as u64)
        .map_err(|why| anyhow!("{} {why}", path.display()))
        .or_exit(BAD_INPUT)?;
    let token = Token::parse(&bytes)
        .map_err(|(_, why)| anyhow!("{}: {why}", path.display()))
        .or_exit(BAD_INPUT)?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), token))
}

fn sign(args: &SignArgs) -> Outcome {
    let (_, mut token) = read(&args.token)?;
    let made = args.with.sign(&token.claim.signed_bytes(), Content::Detached)?;
    token.add(Form::of(made.is_cms), made.bytes);
    write(&args.token, &token)?;
    output::note(&format!("{}: signed with {}", args.token.display(), made.key));
    Ok(ExitCode::SUCCESS)
}

/// What the agent answers.
#[derive(Deserialize)]
struct Lifted {
    until: Timestamp,
}

fn use_it(args: &UseArgs) -> Outcome {
    let (text, _) = read(&args.token)?;
    let Lifted { until } = client::ask_json(&Request::BreakGlass { token: text })?;
    output::print(&format!(
        "NOTHING IS REFUSED until {until:.0}; to end it earlier: portcullis mode enforce\n"
    ))?;
    Ok(ExitCode::SUCCESS)
}
