//! Power cuts: a machine whose disk lasts loses its power at random moments of policy changes, and must
//! come up with the policy before or with the new one.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build::{self, Built},
    kernel::{Kernel, Which},
    setup,
    vm::{Cut, Ended, Vm, empty_disk},
};

#[derive(clap::Args)]
pub struct Args {
    /// How often the power is cut
    #[arg(long, default_value_t = 20)]
    cuts: u64,
    /// Repeats an earlier run's moments, as far as an emulator can (default: another one each time)
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    kernel: Which,
}

/// A push takes less than this under emulation, so that cuts also come after it.
const LONGEST: u64 = 1200;

pub fn main(args: &Args) -> Result<ExitCode> {
    setup::setup(setup::For::Machines)?;
    let kernel = args.kernel.find()?;
    let built = build::build()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(now.as_secs());
    println!("{} power cuts on Linux {}, seed {seed}", args.cuts, kernel.name);
    cuts(&kernel, &built, kernel.needs(), args.cuts, seed, |line| println!("   {line}"))?;
    println!("the policy before or the new one was in force after each of them");
    Ok(ExitCode::SUCCESS)
}

/// Cuts the power so often, and has the machine come up once more.
///
/// # Errors
/// If another policy is in force than may be, or anything else went wrong.
pub fn cuts(
    kernel: &Kernel,
    built: &Built,
    append: &str,
    count: u64,
    seed: u64,
    mut tell: impl FnMut(&str),
) -> Result<()> {
    let work = tempfile::tempdir_in(build::work_dir()?)?;
    let disk = empty_disk(work.path(), "lasting.img")?;
    let mut random = Random(seed);
    // What had been answered for and what had been asked for.
    let (mut lowest, mut highest) = (1, 1);
    for round in 0..=count {
        let is_last = round == count;
        let words = [
            "portcullis-guest",
            "power-round",
            &lowest.to_string(),
            &highest.to_string(),
            if is_last { "end" } else { "go-on" },
        ]
        .map(str::to_owned);
        let (which, after) = (highest + 1 + random.below(3), random.below(LONGEST));
        let cut = Cut { line: format!("@@try {which}"), after: Duration::from_millis(after) };
        let mut vm = Vm::new(kernel, built, &words);
        vm.append = append;
        vm.disk = Some(&disk);
        vm.cut = (!is_last).then_some(cut);
        vm.timeout = Duration::from_secs(300);
        let (mut console, mut found) = (String::new(), None);
        let ended = vm.run(|line| {
            console.push_str(line);
            console.push('\n');
            let number = |word: &str| line.strip_prefix(word)?.trim().parse::<u64>().ok();
            found = number("@@found ").or(found);
            highest = number("@@try ").unwrap_or(highest);
            lowest = number("@@done ").unwrap_or(lowest);
        })?;
        match ended {
            Ended::Cut if !is_last => {}
            Ended::Exited(0) if is_last => {}
            other => bail!("life {round} of seed {seed}: {other:?}\n{console}"),
        }
        let found = found.with_context(|| format!("life {round} of seed {seed}:\n{console}"))?;
        ensure!(is_last || highest >= which, "cut before the push\n{console}");
        // Whatever was in force then is at least in force the next time.
        lowest = lowest.max(found);
        let next = if is_last { String::new() } else { format!(", cut {after} ms into v{which}") };
        tell(&format!("life {round}: v{found} was in force{next}"));
    }
    Ok(())
}

/// Numbers that look random and come again with the same seed (splitmix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
