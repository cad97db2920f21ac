//! Faults at the moments of every change of state, drawn from a seed: `cargo xtask faults`. After each of
//! them a program looks whether what the design promises still holds.

mod device;
mod disturb;
mod files;
mod invariants;
mod moments;
mod pins;
mod random;

use std::{
    fmt, fs,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{agent::LOG, events};
use device::{Baseline, Device};
use disturb::Fault;
use files::Damage;
use moments::{Moment, Told};
use pins::Junk;
use random::Random;

/// Runs with the same baseline one after the other, as going from one to the other costs three starts.
const SAME: u64 = 12;

/// What a run does.
#[derive(Clone, Copy, Debug)]
enum Plan {
    /// A fault strikes so many milliseconds after a change has begun; none is before it.
    Strike(Moment, Fault, Option<u64>),
    /// A file is damaged while no gates stand.
    Damaged(Damage),
    /// A file is damaged below the filesystem while gates stand.
    Disk { zeros: bool },
    /// Something lies among the pins.
    Junk(Junk),
    /// Pins are missing.
    HalfPinned,
    /// The kernel's types cannot be read.
    NoTypes,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Strike(moment, fault, Some(after)) => {
                write!(f, "{fault:?}, {after} ms into {moment:?}")
            }
            Self::Strike(moment, fault, None) => write!(f, "{fault:?}, before {moment:?}"),
            Self::Damaged(damage) => write!(f, "a file {damage:?} between boots"),
            Self::Disk { zeros: true } => write!(f, "zeros on the disk, below the gates"),
            Self::Disk { zeros: false } => write!(f, "garbage on the disk, below the gates"),
            Self::Junk(junk) => write!(f, "{junk:?} junk among the pins"),
            Self::HalfPinned => write!(f, "half of the pins missing"),
            Self::NoTypes => write!(f, "no BTF"),
        }
    }
}

impl Plan {
    fn pick(baseline: Baseline, random: &mut Random) -> Self {
        match random.below(32) {
            0..3 => Self::Damaged(random.one_of(&Damage::ALL)),
            3..5 => Self::Disk { zeros: random.below(2) == 0 },
            5 => Self::Junk(random.one_of(&Junk::ALL)),
            6 if baseline == Baseline::File => Self::HalfPinned,
            6 => Self::NoTypes,
            _ => Self::strike(baseline, random),
        }
    }

    fn strike(baseline: Baseline, random: &mut Random) -> Self {
        let moment = match baseline {
            Baseline::Signed => random.one_of(&Moment::SIGNED),
            Baseline::File => random.one_of(&Moment::FILE),
        };
        let fault = match random.below(14) {
            0..3 => Fault::Kill,
            3..5 => Fault::Stop(random.below(1500)),
            5 => Fault::Memory(64 << random.below(8)),
            6..8 => Fault::Descriptors(random.below(6)),
            8..10 => Fault::Full,
            10..12 => Fault::ReadOnly,
            _ => {
                // From seconds to thirty years, mostly backwards.
                let seconds = 1_i64 << random.below(30);
                Fault::Clock(if random.below(3) == 0 { seconds } else { -seconds })
            }
        };
        let longest = if moment == Moment::Restart { 5000 } else { 900 };
        let is_before = random.below(3) == 0;
        let after = (!is_before).then(|| random.below(longest));
        Self::Strike(moment, fault, after)
    }
}

/// Runs from one number to before another, and says which it was if something is not as it must be; the
/// machine cannot go on then.
pub fn main(seed: &str, from: &str, to: &str) -> ExitCode {
    let parsed = (|| Ok::<_, anyhow::Error>((seed.parse()?, from.parse()?, to.parse()?)))();
    let (seed, from, to): (u64, u64, u64) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            println!("{error:#}");
            return ExitCode::from(2);
        }
    };
    let done = Device::new().context("setting the device up").and_then(|mut device| {
        runs(&mut device, seed, from..to)?;
        device.end()
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A few, as a scenario: the same ones every time, as a change is not to fail for what another one has drawn.
pub fn scenario() -> Result<()> {
    let mut device = Device::new()?;
    runs(&mut device, 7, 1..5)?;
    device.end()
}

fn runs(device: &mut Device, seed: u64, numbers: std::ops::Range<u64>) -> Result<()> {
    for number in numbers {
        let baseline =
            if (number / SAME).is_multiple_of(2) { Baseline::Signed } else { Baseline::File };
        let mut random = Random::of(seed, number);
        let plan = Plan::pick(baseline, &mut random);
        println!("@@run {number} {plan}");
        let start = Instant::now();
        let done = device.be(baseline).context("before the fault").and_then(|()| {
            run(device, plan, &mut random)?;
            if number.is_multiple_of(8) { invariants::records_are_whole() } else { Ok(()) }
        });
        if let Err(error) = done {
            println!("seed {seed}, run {number} ({plan}): {error:#}");
            tell_more();
            bail!("repeat it: cargo xtask faults --seed {seed} --only-run {number}");
        }
        println!("@@held {number} {:.1}", start.elapsed().as_secs_f32());
    }
    Ok(())
}

fn run(device: &mut Device, plan: Plan, random: &mut Random) -> Result<()> {
    match plan {
        Plan::Strike(moment, fault, after) => strike(device, moment, fault, after),
        Plan::Damaged(damage) => files::between_boots(device, damage, random),
        Plan::Disk { zeros } => files::below_the_gates(device, zeros, random),
        Plan::Junk(junk) => pins::with_junk(device, junk),
        Plan::HalfPinned => pins::half_removed(device, random),
        Plan::NoTypes => pins::without_types(device),
    }
}

fn strike(device: &mut Device, moment: Moment, fault: Fault, after: Option<u64>) -> Result<()> {
    let mut change = moment.prepare(device)?;
    let early = after.is_none().then(|| fault.begin(device)).transpose()?;
    // Nobody is there who could be told.
    if device.has_ended()? && moment != Moment::Restart {
        invariants::nobody_answers()?;
    }
    change.begin(device)?;
    let lasting = match early {
        Some(lasting) => lasting,
        None => {
            sleep(Duration::from_millis(after.unwrap_or_default()));
            fault.begin(device)?
        }
    };
    let versions = [change.old, change.new];
    let hold = || match moment {
        // Enforcement is only beginning.
        Moment::Mode => Ok(()),
        _ => invariants::gates_hold(&versions),
    };
    hold().context("while it lasts")?;
    let mut lasting = Some(lasting);
    if let Fault::Stop(time) = fault {
        sleep(Duration::from_millis(time));
        if let Some(lasting) = lasting.take() {
            lasting.end(device)?;
        }
    }
    // One that was killed before is starting now.
    let told = if fault == Fault::Kill && moment == Moment::Restart && after.is_some() {
        Told::Unknown
    } else {
        match change.wait(device) {
            Err(error) if moment == Moment::Restart => {
                // It may refuse to start, with a word.
                device.agent = None;
                println!("  it does not start: {error:#}");
                let is_killed = matches!(fault, Fault::Memory(_));
                ensure!(is_killed || error.to_string().lines().count() <= 4, "too many words");
                Told::Unknown
            }
            told => told?,
        }
    };
    hold().context("afterwards")?;
    let ended = device.has_ended()?;
    if ended {
        if fault.spares_the_agent() && moment != Moment::Restart {
            bail!("the agent has ended: {}", fs::read_to_string(LOG)?);
        }
        if moment != Moment::Mode || fault.spares_the_agent() {
            invariants::nobody_answers()?;
        }
    } else if !matches!(fault, Fault::Descriptors(_) | Fault::Memory(_)) {
        device.status().context("while it lasts")?;
    }
    if let Some(lasting) = lasting {
        lasting.end(device).context("mending it")?;
    }
    let ended = ended || device.has_ended()?;
    let may = change.may(&told, ended);
    if ended {
        device.start().context("starting it again")?;
    }
    if moment == Moment::Mode && !ended {
        crate::agent::expect(0, &["mode", "enforce", "--skip-preflight"])?;
    }
    device.version = invariants::all(device, &may).context("in the end")?;
    change.settle(device)
}

/// What the agent has said and recorded last.
fn tell_more() {
    let log = fs::read_to_string(LOG).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    println!("the agent's own words:");
    for line in &lines[lines.len().saturating_sub(20)..] {
        println!("  | {line}");
    }
    let records = events::all().unwrap_or_default();
    println!("its last records, without decisions:");
    let records: Vec<_> = records.iter().filter(|record| record["type"] != "decision").collect();
    for record in &records[records.len().saturating_sub(12)..] {
        println!("  | {record}");
    }
}
