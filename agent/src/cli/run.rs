//! `portcullis run`

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::ValueEnum;
use portcullis_common::Mode;

use super::{Failure, Outcome, output};
use crate::run::{self, Options, backend::Choice, catalogs::Places, reappraise::Pace};

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
    /// Write numbers for Prometheus to this file, every 15 seconds (docs/metrics.md)
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// How verdicts are enforced
    #[arg(long, value_enum, default_value = "auto")]
    backend: Choice,
    /// Enforce even if that stops what runs now
    #[arg(long)]
    skip_preflight: bool,
    /// Read what runs again at this rate, to notice changes that no write has made; 0 is never
    #[arg(long, value_name = "MiB/s", default_value_t = 8)]
    reappraise_rate: u32,
    /// Start to do so this many seconds after the last time
    #[arg(long, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u32).range(1..))]
    reappraise_every: u32,
    /// The folder of catalogs, for policies with [[signer]]
    #[arg(long, value_name = "DIR", default_value = "/var/lib/portcullis/catalogs")]
    catalogs: PathBuf,
    /// Where is kept what must survive a restart
    #[arg(long, value_name = "DIR", default_value = "/var/lib/portcullis")]
    state: PathBuf,
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
        metrics: args.metrics.clone(),
        log_level: args.kernel_log as u8,
        backend: args.backend,
        skip_preflight: args.skip_preflight,
        reappraise: Pace {
            rate: u64::from(args.reappraise_rate) << 20,
            every: Duration::from_secs(args.reappraise_every.into()),
        },
        catalogs: Places { folder: args.catalogs.clone(), state: args.state.clone() },
    };
    run::run(&options, &output::progress)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| Failure { code: error.exit_code(), error: error.into() })
}
