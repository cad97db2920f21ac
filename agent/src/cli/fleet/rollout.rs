//! `portcullis policy push --device`: stage by stage, and no further than the first that goes wrong.

use std::{fs, path::Path, str::FromStr, time::Duration};

use anyhow::anyhow;
use bytes::Bytes;
use indicatif::ProgressBar;
use serde::Deserialize;
use tokio::time::sleep;

use super::{Fleet, Row, Said, show, wait_for};
use crate::{
    api::client::{Ask, Device},
    cli::{BAD_INPUT, OrExit, Outcome, output},
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

/// How a bundle is to be pushed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Take it back unless it is confirmed within so many seconds.
    pub confirm_within: Option<u64>,
    /// The stages; all devices at once if there are none.
    pub stages: Option<Stages>,
    /// How many seconds after a stage its devices are looked at.
    pub settle: Option<u64>,
    /// Whether a stage is confirmed that went well.
    pub confirm: bool,
}

/// How a device is.
#[derive(Deserialize)]
struct Health {
    health: String,
    checks: Vec<HealthCheck>,
}

#[derive(Deserialize)]
struct HealthCheck {
    title: String,
    state: String,
    found: String,
}

impl Health {
    fn rank(&self) -> usize {
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

/// Pushes a bundle to every device, and shows what became of each.
pub fn push(fleet: &Fleet, bundle: &Path, plan: &Plan, as_json: bool) -> Outcome {
    let about = |why: String| anyhow!("{}: {why}", bundle.display());
    let length = fs::metadata(bundle).map_err(|error| about(error.to_string()));
    if length.or_exit(BAD_INPUT)?.len() > MAX_BUNDLE {
        return Err(about(format!("a bundle has at most {MAX_BUNDLE} bytes"))).or_exit(BAD_INPUT);
    }
    // Better here than on every device.
    let read = Bundle::read(bundle).map_err(|(reason, why)| about(format!("{why} ({reason})")));
    let bytes = Bytes::copy_from_slice(read.or_exit(BAD_INPUT)?.bytes());
    let bar = output::progress(fleet.devices.len() as u64, "pushing");
    let rows = wait_for(roll_out(fleet, bytes, plan, &bar))?;
    bar.finish_and_clear();
    show(&rows, as_json)
}

/// Pushes stage by stage. What comes after a stage that went wrong is not tried.
pub(super) async fn roll_out(
    fleet: &Fleet,
    bundle: Bytes,
    plan: &Plan,
    bar: &ProgressBar,
) -> Vec<Row> {
    let total = fleet.devices.len();
    let ends = plan.stages.as_ref().map_or_else(|| vec![total], |stages| stages.ends(total));
    let settle = plan.settle.or_else(|| plan.stages.as_ref().map(|_| SETTLE));
    let mut rows = Vec::new();
    for (number, end) in ends.iter().enumerate() {
        let devices = &fleet.devices[rows.len()..*end];
        if ends.len() > 1 {
            bar.set_message(format!("stage {} of {}: pushing", number + 1, ends.len()));
        }
        let ask = Ask::Push { bundle: bundle.clone(), confirm_within: plan.confirm_within };
        let pushed = fleet.each(devices.iter(), bar, |client, device| {
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
        let mut pushed = pushed.await;
        if let Some(seconds) = settle.filter(|_| pushed.iter().any(|(row, _)| !row.is_bad())) {
            bar.set_message(format!("stage {} of {}: settling", number + 1, ends.len()));
            sleep(Duration::from_secs(seconds)).await;
            look_again(fleet, devices, &mut pushed).await;
        }
        let mut stage: Vec<_> = pushed.into_iter().map(|(row, _)| row).collect();
        if plan.confirm && !stage.iter().any(Row::is_bad) {
            confirm(fleet, devices, &mut stage).await;
        }
        let is_bad = stage.iter().any(Row::is_bad);
        rows.append(&mut stage);
        if is_bad {
            break;
        }
    }
    let rest = fleet.devices[rows.len()..].iter().map(|device| Row::new(device, "not-tried"));
    rows.extend(rest);
    rows
}

/// How the devices of a stage are, now that they have had some time.
async fn look_again(fleet: &Fleet, devices: &[Device], pushed: &mut [(Row, usize)]) {
    let quiet = ProgressBar::hidden();
    let health = fleet.each(devices.iter(), &quiet, |client, device| async move {
        client.ask_json::<Health>(&device, &Ask::Status).await
    });
    for ((row, before), health) in pushed.iter_mut().zip(health.await) {
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

async fn confirm(fleet: &Fleet, devices: &[Device], stage: &mut [Row]) {
    let quiet = ProgressBar::hidden();
    let confirmed = fleet.each(devices.iter(), &quiet, |client, device| async move {
        (client.ask_json::<Said>(&device, &Ask::Confirm).await, device)
    });
    for (row, (answer, device)) in stage.iter_mut().zip(confirmed.await) {
        match answer {
            Ok(_) => row.until = None,
            Err(error) => *row = Row::failed(&device, &error),
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
