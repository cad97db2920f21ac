//! Faults, drawn from a seed, at the moments of every change of state.

use std::{
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Result;

use crate::{
    build,
    kernel::Which,
    setup,
    vm::{Ended, Vm},
};

#[derive(clap::Args)]
pub struct Args {
    /// How many faults
    #[arg(long, default_value_t = 1000)]
    runs: u64,
    /// Repeats what was drawn before (default: another one each time)
    #[arg(long)]
    seed: Option<u64>,
    /// Only the run of this number
    #[arg(long, value_name = "N")]
    only_run: Option<u64>,
    /// The run to begin with
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "only_run")]
    from: u64,
    #[command(flatten)]
    kernel: Which,
}

/// Runs in one machine; what one of them leaves does not go on for ever.
const IN_ONE: u64 = 120;

pub fn main(args: &Args) -> Result<ExitCode> {
    setup::setup(setup::For::Machines)?;
    let kernel = args.kernel.find()?;
    let built = build::build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(now.as_secs());
    let (first, end) = match args.only_run {
        Some(run) => (run, run + 1),
        None => (args.from, args.from + args.runs),
    };
    println!("{} faults on Linux {}, seed {seed}", end - first, kernel.name);
    let (start, mut next, mut held, mut bad) = (Instant::now(), first, 0, Vec::new());
    let mut lost_boots = 0;
    while next < end {
        let until = end.min(next + IN_ONE);
        let words = [
            "portcullis-guest",
            "faults",
            &seed.to_string(),
            &next.to_string(),
            &until.to_string(),
        ]
        .map(str::to_owned);
        let mut vm = Vm::new(&kernel, &built, &words);
        vm.append = kernel.needs();
        vm.timeout = Duration::from_secs(3 * 3600);
        vm.silence = Duration::from_secs(300);
        let (mut begun, mut has_begun) = (None, false);
        let ended = vm.run(|line| {
            if let Some(run) = line.strip_prefix("@@run ") {
                let number = run.split(' ').next().and_then(|number| number.parse().ok());
                (begun, has_begun) = (number.or(begun), true);
                println!("{run}");
            } else if let Some(run) = line.strip_prefix("@@held ") {
                held += 1;
                begun = None;
                println!("   held: {run}");
            } else {
                println!("   {line}");
            }
        })?;
        if ended == Ended::Exited(0) {
            next = until;
            continue;
        }
        println!("   the machine: {ended:?}");
        // Not one fault has struck: a busy host's emulator does not always get so far.
        if !has_begun && lost_boots < 5 {
            lost_boots += 1;
            continue;
        }
        match begun {
            // Whatever a fault has left, the next ones get a new machine.
            Some(run) => {
                bad.push(run);
                next = run + 1;
            }
            None => {
                bad.push(next);
                next += 1;
            }
        }
    }
    println!(
        "{held} held, {} did not: {bad:?}; seed {seed}, {} s",
        bad.len(),
        start.elapsed().as_secs()
    );
    Ok(ExitCode::from(u8::from(!bad.is_empty())))
}
