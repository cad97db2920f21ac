//! Pushes stage by stage, and no further than the first that goes wrong: `portcullis policy push --device`
//! and `portcullis fleet push`.

use std::{fs, ops::Range, path::Path, str::FromStr, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::time::sleep;

use super::{Fleet, Row, Said, show, wait_for};
use crate::{
    api::client::Ask,
    cli::{BAD_INPUT, Failure, OrExit, Outcome, output, push::seconds},
    fleet::words::{Finding, Report},
    policy::bundle::{Bundle, MAX_BUNDLE},
};

/// How long a stage is given where the operator has not said it.
const SETTLE: u64 = 30;

/// Up to how many devices each stage goes: `1,10%,100%`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages(Vec<UpTo>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpTo {
    Devices(usize),
    Percent(usize),
}

impl FromStr for Stages {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |word: &str| {
            let (digits, percent) =
                word.strip_suffix('%').map_or((word, false), |digits| (digits, true));
            let number = digits.parse().ok().filter(|number| *number > 0)?;
            match percent {
                false => Some(UpTo::Devices(number)),
                true if number <= 100 => Some(UpTo::Percent(number)),
                true => None,
            }
        };
        let stages: Option<Vec<_>> = text.split(',').map(|word| one(word.trim())).collect();
        stages.map(Self).ok_or_else(|| {
            "write up to how many devices each stage goes, for example 1,10%,100%".to_owned()
        })
    }
}

impl Stages {
    /// Where each stage ends, of so many devices; stages that add none are left out.
    fn ends(&self, devices: usize) -> Vec<usize> {
        let mut ends = Vec::new();
        for stage in &self.0 {
            let end = match *stage {
                UpTo::Devices(number) => number.min(devices),
                UpTo::Percent(percent) => (devices * percent).div_ceil(100),
            };
            if end > ends.last().copied().unwrap_or_default() {
                ends.push(end);
            }
        }
        ends
    }
}

/// How a bundle is to be pushed. Times are in seconds.
#[derive(Clone, Debug, clap::Args)]
pub struct Plan {
    /// Take it back unless it is confirmed within this time, for example 5m; also when the agent or the
    /// device is started again, or a health check fails
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub confirm_within: Option<u64>,
    /// Go on stage by stage, up to so many devices or percent of them, and no further than the first
    /// stage that goes wrong: for example 1,10%,100%
    #[arg(long = "stage", value_name = "STAGES")]
    pub stages: Option<Stages>,
    /// Look at the devices of a stage so long after it was pushed, for example 2m; if one is worse than
    /// before, or failed, the stage has gone wrong (default with --stage: 30s)
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub settle: Option<u64>,
    /// Confirm on the devices of each stage that has gone well
    #[arg(long, requires = "confirm_within")]
    pub confirm: bool,
}

/// How a device is.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Health {
    health: String,
    checks: Vec<Finding>,
}

impl Health {
    /// As a device says it to its fleet's servers.
    pub(super) fn of(report: &Report) -> Self {
        Self { health: report.health.clone(), checks: report.checks.clone() }
    }

    pub(super) fn rank(&self) -> usize {
        ["ok", "warning"].iter().position(|word| *word == self.health).unwrap_or(2)
    }

    /// What is wrong, if it is worse than before, or not well enough to go on.
    fn worse(&self, before: usize) -> Option<String> {
        if self.rank() <= before && self.rank() < 2 {
            return None;
        }
        let bad = self.checks.iter().filter(|check| check.state != "ok");
        let told: Vec<_> = bad.map(|check| format!("{}: {}", check.title, check.found)).collect();
        Some(format!("after the push it is {}: {}", self.health, told.join("; ")))
    }
}

/// What carries a bundle to devices: the operator's own connections, or the fleet's servers.
pub(super) trait Hands {
    /// What the devices are called, in the order of their stages.
    fn names(&self) -> Vec<&str>;
    /// Pushes to the devices of a stage. Answers what became of each, and how it was before.
    async fn push(&self, stage: Range<usize>, plan: &Plan, bar: &ProgressBar) -> Vec<(Row, usize)>;
    /// How the devices of a stage are now; or why they do not say.
    async fn health(&self, stage: Range<usize>) -> Vec<Result<Health, String>>;
    /// Keeps on the devices of a stage what is tried, and changes their rows to what became of that.
    async fn confirm(&self, stage: Range<usize>, rows: &mut [Row]);
}

/// Reads a bundle that is to be pushed.
pub(super) fn read(bundle: &Path) -> Result<Bytes, Failure> {
    let about = |why: String| anyhow!("{}: {why}", bundle.display());
    let length = fs::metadata(bundle).map_err(|error| about(error.to_string()));
    if length.or_exit(BAD_INPUT)?.len() > MAX_BUNDLE {
        return Err(about(format!("a bundle has at most {MAX_BUNDLE} bytes"))).or_exit(BAD_INPUT);
    }
    // Better here than on every device.
    let read = Bundle::read(bundle).map_err(|(reason, why)| about(format!("{why} ({reason})")));
    Ok(Bytes::copy_from_slice(read.or_exit(BAD_INPUT)?.bytes()))
}

/// Pushes a bundle to every device, and shows what became of each.
pub fn push(fleet: &Fleet, bundle: &Path, plan: &Plan, as_json: bool) -> Outcome {
    let bundle = read(bundle)?;
    let bar = output::progress(fleet.devices.len() as u64, "pushing");
    let rows = wait_for(roll_out(&Direct { fleet, bundle }, plan, &bar))?;
    bar.finish_and_clear();
    show(&rows, as_json)
}

/// Pushes stage by stage. What comes after a stage that went wrong is not tried.
pub(super) async fn roll_out(hands: &impl Hands, plan: &Plan, bar: &ProgressBar) -> Vec<Row> {
    let names = hands.names();
    let total = names.len();
    let ends = plan.stages.as_ref().map_or_else(|| vec![total], |stages| stages.ends(total));
    let settle = plan.settle.or_else(|| plan.stages.as_ref().map(|_| SETTLE));
    let mut rows = Vec::new();
    for (number, end) in ends.iter().enumerate() {
        let stage = rows.len()..*end;
        let is_one_of_many = ends.len() > 1;
        let message = |what: &str| format!("stage {} of {}: {what}", number + 1, ends.len());
        bar.set_message(if is_one_of_many { message("pushing") } else { "pushing".into() });
        let mut pushed = hands.push(stage.clone(), plan, bar).await;
        if let Some(seconds) = settle.filter(|_| pushed.iter().any(|(row, _)| !row.is_bad())) {
            bar.set_message(message("settling"));
            sleep(Duration::from_secs(seconds)).await;
            take_health(&mut pushed, hands.health(stage.clone()).await);
        }
        let mut done: Vec<_> = pushed.into_iter().map(|(row, _)| row).collect();
        if plan.confirm && !done.iter().any(Row::is_bad) {
            hands.confirm(stage, &mut done).await;
        }
        let is_bad = done.iter().any(Row::is_bad);
        rows.append(&mut done);
        if is_bad {
            break;
        }
    }
    let rest = names[rows.len()..].iter().map(|name| Row::new(name, "not-tried"));
    rows.extend(rest);
    rows
}

/// How the devices of a stage are, now that they have had some time.
fn take_health(pushed: &mut [(Row, usize)], health: Vec<Result<Health, String>>) {
    for ((row, before), health) in pushed.iter_mut().zip(health) {
        if row.is_bad() {
            continue;
        }
        match health {
            Ok(health) => {
                if let Some(why) = health.worse(*before) {
                    (row.result, row.message) = ("worse", Some(why));
                }
                row.health = Some(health.health);
            }
            Err(error) => {
                let why = format!("after the push it cannot be asked: {error}");
                (row.result, row.message) = ("worse", Some(why));
            }
        }
    }
}

/// A bundle with the operator's own connections.
pub(super) struct Direct<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) bundle: Bytes,
}

impl Hands for Direct<'_> {
    fn names(&self) -> Vec<&str> {
        self.fleet.devices.iter().map(|device| device.shown.as_str()).collect()
    }

    async fn push(&self, stage: Range<usize>, plan: &Plan, bar: &ProgressBar) -> Vec<(Row, usize)> {
        let (bundle, confirm_within) = (self.bundle.clone().into(), plan.confirm_within);
        let ask = Ask::Push { bundle, confirm_within };
        let pushed = self.fleet.each(self.fleet.devices[stage].iter(), bar, |client, device| {
            let ask = ask.clone();
            async move {
                // Also a way to find out who is there before the whole bundle is sent.
                let before = client.ask_json::<Health>(&device, &Ask::Status).await;
                let before = match before {
                    Ok(health) => health.rank(),
                    Err(error) => return (Row::failed(&device, &error), 0),
                };
                (Row::of(&device, client.ask_json(&device, &ask).await), before)
            }
        });
        pushed.await
    }

    async fn health(&self, stage: Range<usize>) -> Vec<Result<Health, String>> {
        let (devices, quiet) = (self.fleet.devices[stage].iter(), ProgressBar::hidden());
        let health = self.fleet.each(devices, &quiet, |client, device| async move {
            let health = client.ask_json::<Health>(&device, &Ask::Status).await;
            health.map_err(|error| error.to_string())
        });
        health.await
    }

    async fn confirm(&self, stage: Range<usize>, rows: &mut [Row]) {
        let (devices, quiet) = (self.fleet.devices[stage].iter(), ProgressBar::hidden());
        let confirmed = self.fleet.each(devices, &quiet, |client, device| async move {
            (client.ask_json::<Said>(&device, &Ask::Confirm).await, device)
        });
        for (row, (answer, device)) in rows.iter_mut().zip(confirmed.await) {
            match answer {
                Ok(_) => row.until = None,
                Err(error) => *row = Row::failed(&device, &error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_counted_or_in_percent() {
        let ends = |text: &str, devices| text.parse::<Stages>().map(|stages| stages.ends(devices));
        assert_eq!(ends("1,10%,100%", 100), Ok(vec![1, 10, 100]));
        assert_eq!(ends("1, 10%, 100%", 5), Ok(vec![1, 5]));
        assert_eq!(ends("3,50%", 8), Ok(vec![3, 4]));
        assert_eq!(ends("1,10%,100%", 1), Ok(vec![1]));
        assert_eq!(ends("10,5", 100), Ok(vec![10]));
        for text in ["", "0", "0%", "101%", "1,", "a", "-1", "1;2"] {
            assert!(text.parse::<Stages>().is_err(), "{text}");
        }
    }
}
