//! The command line: one file for each verb.

mod break_glass;
mod bundle;
mod catalog;
mod console;
mod doctor;
mod documentation;
mod events;
mod events_verify;
mod explain;
mod fleet;
mod fleet_link;
mod history;
mod import;
mod key;
mod learn;
mod mode;
mod network_door;
mod output;
mod policy;
mod policy_diff;
mod policy_test;
mod push;
mod read_policy;
mod run;
mod scan;
mod signing;
mod status;
mod stop;
mod usb;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::kernel::selftest;

/// Decides what may become code on a Linux device.
#[derive(Parser)]
#[command(name = "portcullis", version, disable_help_subcommand = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done; 1 the answer is no (denied, unhealthy); \
    2 bad usage or bad input; 3 not permitted or not available here.")]
struct Cli {
    /// Say more on standard error; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Show what this kernel offers, which gates can hold, and how to mend what is missing
    Doctor(doctor::Args),
    /// Find every program, library, script and module, and write a manifest of their digests
    Scan(scan::Args),
    /// Make and inspect policies; works on any machine, without privilege
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Make, sign and look at catalogs: signed lists of what may run
    #[command(subcommand)]
    Catalog(catalog::Verb),
    /// Make and look at the keys that catalogs are signed with
    #[command(subcommand)]
    Key(key::Verb),
    /// Run the agent: put the gates up and report what they decide
    Run(run::Args),
    /// Show what holds now
    Status(status::Args),
    /// Watch it all on one page: what runs, what was refused, health, USB and policy
    Console(console::Args),
    /// Show what happened
    Events(events::Args),
    /// Show what has run on this device: every program, library, script and module once
    History(history::Args),
    /// Show what would happen to a file, and why
    Explain(explain::Args),
    /// Reach devices through the servers of a fleet (NATS), also those that are away
    #[command(subcommand)]
    Fleet(fleet::servers::Verb),
    /// Speak with the fleet's servers for this device, without privilege
    FleetLink(fleet_link::Args),
    /// Let operators reach this device over the network, without privilege
    NetworkDoor(network_door::Args),
    /// Look at USB devices, and let one in
    #[command(subcommand)]
    Usb(usb::Verb),
    /// Lift enforcement on a device for some minutes, with a signed token
    #[command(subcommand)]
    BreakGlass(break_glass::Verb),
    /// Show or change the mode: audit or enforce
    Mode(mode::Args),
    /// Take the gates down, also those that a dead agent left
    Stop(stop::Args),
    /// Write manual pages and shell completions into a folder
    #[command(hide = true)]
    Documentation(documentation::Args),
    /// Started by the agent only: reads one policy, bundle, catalog or token with nothing to lose
    #[command(hide = true)]
    ReadPolicy,
}

/// What a command could not do, with its exit code.
pub struct Failure {
    code: u8,
    error: anyhow::Error,
}

/// The answer is no: denied, unhealthy, not verified.
const NO: u8 = 1;
/// Bad usage or bad input.
const BAD_INPUT: u8 = 2;
/// Not permitted, or not available here.
const UNAVAILABLE: u8 = 3;

type Outcome = Result<ExitCode, Failure>;

/// Adds the exit code to an error.
trait OrExit<T> {
    fn or_exit(self, code: u8) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, code: u8) -> Result<T, Failure> {
        self.map_err(|error| Failure { code, error: error.into() })
    }
}

impl From<crate::api::client::AskError> for Failure {
    fn from(error: crate::api::client::AskError) -> Self {
        Self { code: error.exit_code(), error: error.into() }
    }
}

impl From<crate::control::client::ClientError> for Failure {
    fn from(error: crate::control::client::ClientError) -> Self {
        Self { code: error.exit_code(), error: error.into() }
    }
}

/// Runs the command that the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    // The self-test starts this binary only to see that it is started.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == selftest::NOTHING) {
        return ExitCode::SUCCESS;
    }
    let Cli { verbose, verb } = Cli::parse();
    log_to_stderr(verbose);
    let outcome = match verb {
        Verb::Doctor(args) => doctor::doctor(&args),
        Verb::Scan(args) => scan::scan(&args),
        Verb::Policy(verb) => policy::policy(&verb),
        Verb::Catalog(verb) => catalog::catalog(&verb),
        Verb::Key(verb) => key::key(&verb),
        Verb::Run(args) => run::run(&args),
        Verb::Status(args) => status::status(&args),
        Verb::Console(args) => console::console(&args),
        Verb::Events(args) => events::events(&args),
        Verb::History(args) => history::history(&args),
        Verb::Explain(args) => explain::explain(&args),
        Verb::Fleet(verb) => fleet::servers::fleet(&verb),
        Verb::FleetLink(args) => fleet_link::fleet_link(&args),
        Verb::NetworkDoor(args) => network_door::network_door(&args),
        Verb::Usb(verb) => usb::usb(&verb),
        Verb::BreakGlass(verb) => break_glass::break_glass(&verb),
        Verb::Mode(args) => mode::mode(&args),
        Verb::Stop(args) => stop::stop(&args),
        Verb::Documentation(args) => documentation::documentation(&args),
        Verb::ReadPolicy => read_policy::read_policy(),
    };
    outcome.unwrap_or_else(|Failure { code, error }| {
        // Nobody may be reading any more.
        output::error(&format!("{error:#}"));
        ExitCode::from(code)
    })
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::INFO,
        _ => tracing::Level::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).init();
}
