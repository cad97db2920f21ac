//! `portcullis events verify`

use std::{fmt::Write as _, fs, path::PathBuf, process::ExitCode};

use anyhow::Context;

use super::{BAD_INPUT, NO, OrExit, Outcome, output};
use crate::{
    spool::verify::{self, Report},
    trust::key::PublicKey,
};

#[derive(clap::Args)]
pub struct Args {
    /// Files of JSON lines: the parts of one log, in any order, or what a receiver has kept
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The device's public key: device.pub in its folder for state, copied when it was set up
    #[arg(long, value_name = "PEM", required = true)]
    key: Vec<PathBuf>,
}

pub fn verify(args: &Args) -> Outcome {
    let mut keys = Vec::new();
    for path in &args.key {
        let text = fs::read(path).with_context(|| path.display().to_string()).or_exit(BAD_INPUT)?;
        let key = PublicKey::read(&text);
        let key = key.map_err(|error| output::about(path, &error, error.help()));
        keys.push(key.or_exit(BAD_INPUT)?);
    }
    let report = verify::verify(&args.files, &keys).or_exit(BAD_INPUT)?;
    output::print(&show(&report))?;
    let is_good = report.findings.is_empty() && report.checkpoints > 0;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn show(report: &Report) -> String {
    let Report { records, again, checkpoints, unsealed, told, findings } = report;
    let mut text = String::new();
    // Writing to a string does not fail.
    for finding in findings {
        let _ = writeln!(text, "{}: {}", finding.at, finding.what);
    }
    for told in told {
        let _ = writeln!(text, "note: {told}");
    }
    let twice = if *again > 0 { format!(", {again} of them twice") } else { String::new() };
    let _ = writeln!(text, "{records} records{twice}, {checkpoints} checkpoints");
    if *checkpoints == 0 {
        text.push_str("no checkpoint by this key covers them: nothing is proved\n");
    } else if *unsealed > 0 {
        let _ = writeln!(text, "the last {unsealed} records are not sealed yet");
    }
    if findings.is_empty() && *checkpoints > 0 {
        text.push_str("all there, unchanged and in order\n");
    }
    text
}
