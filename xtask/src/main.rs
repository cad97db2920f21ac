//! Everything that one does with the project: `cargo xtask --help`.

mod bench;
mod build;
mod command;
mod debian;
mod demo;
mod faults;
mod fuzz;
mod initramfs;
mod kernel;
mod notices;
mod package;
mod plug;
mod power;
mod setup;
mod signatures;
mod signed;
mod suites;
mod test;
mod two_machines;
mod vm;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, build, virtual machines, tests, demonstration and measurements"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building and testing need; does nothing if it is there
    Setup,
    /// Build the static `portcullis` binary
    Build,
    /// Measure in guest instructions
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Live a commissioning: scan, policy, audit, enforce, and attacks that are refused
    Demo(demo::Args),
    /// Let faults strike at the moments of every change of state, drawn from a seed
    Faults(faults::Args),
    /// Drive what reads input from outside with libFuzzer; what is found stays in `target/fuzz`
    Fuzz(fuzz::Args),
    /// Make the Debian package
    Package(package::Args),
    /// Cut a machine's power at random moments of policy changes, and look what is in force afterwards
    PowerCuts(power::Args),
    /// Run every check: format, lints, unit tests, licences, and the scenarios on real kernels
    Test(test::Args),
    /// Push policies from one machine to another over a network
    TwoMachines(two_machines::Args),
    /// Run a command in a virtual machine that has `portcullis` on its PATH
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::setup(setup::For::Tests).map(|()| ExitCode::SUCCESS),
        Task::Build => {
            setup::setup(setup::For::Building).and_then(|()| build::build()).map(|built| {
                println!("{}", built.agent.display());
                ExitCode::SUCCESS
            })
        }
        Task::Bench(bench) => bench::bench(&bench),
        Task::Faults(args) => faults::main(&args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Demo(args) => demo::demo(&args),
        Task::Package(args) => package::main(&args),
        Task::PowerCuts(args) => power::main(&args),
        Task::Test(args) => test::test(&args),
        Task::TwoMachines(args) => two_machines::main(&args),
        Task::Vm(args) => vm::main(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("cargo xtask: {error:#}");
        ExitCode::from(error.downcast_ref::<setup::NotPossibleHere>().map_or(1, |_| 3))
    })
}

/// The workspace's folder.
fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}
