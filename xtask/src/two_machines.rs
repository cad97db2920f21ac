//! Two machines on one network: an operator's, and a device that takes policies from it.

use std::{process::ExitCode, sync::Mutex, sync::PoisonError, thread, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    build::{self, Built},
    kernel::{Kernel, Which},
    setup,
    vm::{Ended, Vm},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    kernel: Which,
}

/// Which of the two a machine is.
const SIDES: [&str; 2] = ["device", "operator"];

pub fn main(args: &Args) -> Result<ExitCode> {
    setup::setup(setup::For::Machines)?;
    let kernel = args.kernel.find()?;
    let built = build::build()?;
    on_one_network(&kernel, &built, kernel.needs(), &|line| println!("{line}"))?;
    println!("every policy came over the network, and those that had to be were taken back");
    Ok(ExitCode::SUCCESS)
}

/// Boots both and waits for the two to end.
///
/// # Errors
/// If anything went wrong on one of them; the error has what both have said.
pub fn on_one_network(
    kernel: &Kernel,
    built: &Built,
    append: &str,
    tell: &(impl Fn(&str) + Sync),
) -> Result<()> {
    // Short, as a socket's path must be.
    let folder = tempfile::tempdir()?;
    let sockets = SIDES.map(|side| folder.path().join(side));
    let said = Mutex::new(String::new());
    let run = |side: usize| -> Result<Ended> {
        let words = ["portcullis-guest", "two-machines", SIDES[side]].map(str::to_owned);
        let mut vm = Vm::new(kernel, built, &words);
        vm.append = append;
        vm.network = Some([&sockets[side], &sockets[1 - side]]);
        vm.timeout = Duration::from_secs(600);
        vm.run(|line| {
            if line.starts_with("@@alive ") {
                return;
            }
            let line = format!("{}: {line}", SIDES[side]);
            tell(&line);
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        })
    };
    let ended = thread::scope(|scope| {
        let run = &run;
        let device = scope.spawn(move || run(0));
        let operator = run(1);
        let device = device.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, anyhow::Error>([device?, operator?])
    });
    let ended = ended.context("booting two machines")?;
    if ended != [Ended::Exited(0); 2] {
        let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        bail!("device and operator ended with {ended:?}:\n{said}");
    }
    Ok(())
}
