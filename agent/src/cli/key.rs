//! `portcullis key`

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, output, scan::write_file};
use crate::{
    policy::{
        manifest::{NAME_MAX, is_name},
        trust::PolicyTrust,
    },
    trust::{
        certificate::{Certificate, CertificateInfo},
        key::{self, PublicKey},
    },
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make an Ed25519 key that can sign catalogs
    Generate(GenerateArgs),
    /// Show what a policy needs to know of a key or certificate
    Show(ShowArgs),
    /// Write the statement that a signer has a new key, to be signed with the old one
    Rotate(RotateArgs),
}

#[derive(clap::Args)]
pub struct GenerateArgs {
    /// Where the private key goes; the public one goes beside it, as NAME.pub.pem
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
pub struct ShowArgs {
    /// A certificate or public key in PEM
    file: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct RotateArgs {
    /// The signer, as the policy names it
    #[arg(long, value_name = "NAME")]
    signer: String,
    /// The new certificate or public key, in PEM
    #[arg(long, value_name = "FILE")]
    new: PathBuf,
    /// The statement, which must end in .rotation
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

pub fn key(verb: &Verb) -> Outcome {
    match verb {
        Verb::Generate(args) => generate(&args.output),
        Verb::Show(args) => show(args),
        Verb::Rotate(args) => rotate(args),
    }
}

fn generate(private: &Path) -> Outcome {
    let public = private.with_extension("pub.pem");
    let made = key::generate_ed25519().or_exit(UNAVAILABLE)?;
    // Made new, so that no key is lost and nobody has it open.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(private)
        .with_context(|| format!("cannot make {}; choose another name", private.display()))
        .or_exit(BAD_INPUT)?;
    file.write_all(made.private.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", private.display()))
        .or_exit(BAD_INPUT)?;
    write_file(&public, |out| out.write_all(made.public.as_bytes()))
        .with_context(|| format!("cannot write {}", public.display()))
        .or_exit(BAD_INPUT)?;
    output::note(&format!(
        "{} is the private key, not encrypted: keep it where only who signs can read it\n{} goes \
         into policies: key = \"…\" in [[signer]]",
        private.display(),
        public.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// What is shown of a key.
#[derive(Serialize)]
struct Shown {
    kind: String,
    /// As `[[revoke]] key` wants it.
    key: String,
    ima_key_id: String,
    certificate: Option<CertificateInfo>,
    is_authority: bool,
}

fn show(args: &ShowArgs) -> Outcome {
    let shown = look_at(&args.file)?;
    let text = if args.json {
        serde_json::to_string_pretty(&shown).or_exit(UNAVAILABLE)? + "\n"
    } else {
        let mut text = format!(
            "{}\n  key id      {}\n  ima key id  {}\n",
            shown.kind, shown.key, shown.ima_key_id
        );
        if let Some(one) = &shown.certificate {
            let what = if shown.is_authority { "authority" } else { "signer" };
            text.push_str(&format!(
                "  certificate of {} ({what})\n  issued by   {}\n  serial      {}\n  until       \
                 {:.0}\n  sha256      {}\n",
                one.subject, one.issuer, one.serial, one.not_after, one.fingerprint
            ));
        }
        text
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn look_at(file: &Path) -> Result<Shown, Failure> {
    let bytes = fs::read(file).with_context(|| file.display().to_string()).or_exit(BAD_INPUT)?;
    let is_certificate = bytes.windows(17).any(|at| at == b"BEGIN CERTIFICATE");
    let (key, certificate) = if is_certificate {
        let read = Certificate::read(&bytes)
            .map_err(|error| output::about(file, &error, error.help()))
            .or_exit(BAD_INPUT)?;
        let key = read.key().map_err(|error| output::about(file, &error, error.help()));
        (key.or_exit(BAD_INPUT)?.clone(), Some(read))
    } else {
        let read = PublicKey::read(&bytes);
        let read = read.map_err(|error| output::about(file, &error, error.help()));
        (read.or_exit(BAD_INPUT)?, None)
    };
    let ima = certificate.as_ref().and_then(Certificate::ima_key_id);
    Ok(Shown {
        kind: key.kind().to_string(),
        key: hex::encode(key.id()),
        ima_key_id: hex::encode(ima.unwrap_or_else(|| key.ima_key_id())),
        is_authority: certificate.as_ref().is_some_and(Certificate::is_ca),
        certificate: certificate.as_ref().map(Certificate::info),
    })
}

fn rotate(args: &RotateArgs) -> Outcome {
    let RotateArgs { signer, new, output } = args;
    if !is_name(signer) {
        let message =
            format!("no signer can be called so; use 1 to {NAME_MAX} of A-Z a-z 0-9 . _ -");
        return Err(Failure { code: BAD_INPUT, error: anyhow!(message) });
    }
    if output.extension().is_none_or(|extension| extension != "rotation") {
        let error = anyhow!(
            "{}: the agent knows it by its name, which must end in .rotation",
            output.display()
        );
        return Err(Failure { code: BAD_INPUT, error });
    }
    look_at(new)?;
    let pem =
        fs::read_to_string(new).with_context(|| new.display().to_string()).or_exit(BAD_INPUT)?;
    let text = PolicyTrust::rotation(signer, &pem);
    write_file(output, |out| out.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", output.display()))
        .or_exit(BAD_INPUT)?;
    output::note(&format!(
        "{}: sign it with the key that {signer} has now: portcullis catalog sign {0} --key OLD.pem",
        output.display()
    ));
    Ok(ExitCode::SUCCESS)
}
