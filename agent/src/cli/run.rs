//! `portcullis run`

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use portcullis_common::Mode;

use super::{Failure, Outcome, output};
use crate::run::{self, Options};

#[derive(clap::Args)]
pub struct Args {
    /// The policy file
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    /// The mode, instead of the policy's own
    #[arg(long, value_enum)]
    mode: Option<ModeArg>,
    /// Also append events to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Enforce even if that stops what runs now
    #[arg(long)]
    skip_preflight: bool,
    /// Show what the kernel programs themselves log, up to this level
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "off")]
    kernel_log: LogLevel,
}

/// A mode on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub enum ModeArg {
    /// Nothing is blocked; what would be is reported
    Audit,
    /// What the policy does not allow is refused
    Enforce,
}

impl From<ModeArg> for Mode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Audit => Self::Audit,
            ModeArg::Enforce => Self::Enforce,
        }
    }
}

/// Levels as aya-log numbers them.
#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Off = 0,
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
}

pub fn run(args: &Args) -> Outcome {
    let options = Options {
        policy: args.policy.clone(),
        mode: args.mode.map(Mode::from),
        events: args.events.clone(),
        log_level: args.kernel_log as u8,
        skip_preflight: args.skip_preflight,
    };
    run::run(&options, &output::progress)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| Failure { code: error.exit_code(), error: error.into() })
}
