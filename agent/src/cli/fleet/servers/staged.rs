//! `portcullis fleet push`

use std::{collections::BTreeMap, ops::Range, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use tokio::{sync::Mutex, time::Instant};

use super::{PushArgs, Row, rollout, show, wait_for};
use crate::{
    cli::{
        Outcome,
        fleet::rollout::{Hands, Health, Plan},
        output,
    },
    fleet::{
        FleetError,
        names::Target,
        plant::{Plant, Seen, Statuses},
        words::{Answered, Outcome as Result_, Report, Wanted, What, new_id},
    },
};

/// Words that are on their way to the servers at once.
const AT_ONCE: usize = 32;

/// How long a device may take to say how it is, once a stage has settled.
const REPORT: Duration = Duration::from_secs(30);

pub fn push(args: &PushArgs) -> Outcome {
    let target = args.target.target()?;
    let bundle = rollout::read(&args.bundle)?;
    let bar = output::progress(0, "looking who is there");
    let rows = wait_for(async {
        let plant = args.servers.plant().await?;
        let (presence, timeout) = (args.patience.presence(), args.patience.timeout());
        roll_out(&plant, &target, bundle, &args.plan, presence, timeout, &bar).await
    })??;
    bar.finish_and_clear();
    show(&rows, args.patience.json)
}

/// Pushes to whoever is there stage by stage, and at last to all, so that those that are away do it when
/// they come back.
pub async fn roll_out(
    plant: &Plant,
    target: &Target,
    bundle: Bytes,
    plan: &Plan,
    presence: Duration,
    patience: Duration,
    bar: &ProgressBar,
) -> Result<Vec<Row>, FleetError> {
    let before = plant.wanted(target).await?;
    let mut statuses = plant.statuses().await?;
    let present = who_is_there(plant, target, &mut statuses, presence).await?;
    let members = members(target, statuses.known());
    let away: Vec<_> = members.into_iter().filter(|name| !present.contains(name)).collect();
    if present.is_empty() && plan.stages.is_some() {
        let message =
            format!("nobody of {target} is there to go first; without --stage it is left for all");
        return Err(FleetError::Asked { what: "asking devices", why: message });
    }
    bar.set_length(present.len() as u64);
    bar.set_message("storing the bundle");
    let stored = plant.store(target, bundle).await?;
    let sha256 = stored.sha256.clone();
    let what = What::Push { bundle: stored, confirm_within: plan.confirm_within, confirmed: false };
    let staged = Staged {
        plant,
        target,
        wanted: Wanted { id: new_id()?, what },
        present,
        statuses: Mutex::new(statuses),
        patience,
    };
    let mut rows = if staged.present.is_empty() {
        plant.want(target, &staged.wanted).await?;
        Vec::new()
    } else {
        rollout::roll_out(&staged, plan, bar).await
    };
    let is_with_all = rows.iter().all(|row| row.result != "not-tried");
    if is_with_all && !rows.iter().any(Row::is_bad) {
        let mut keep = vec![sha256];
        if let Some(Wanted { what: What::Push { bundle, .. }, .. }) = before {
            keep.push(bundle.sha256);
        }
        plant.forget_others(target, &keep).await?;
    }
    rows.extend(away.iter().map(|name| {
        let message =
            if is_with_all { "it does it when it comes back" } else { "it is not asked to" };
        Row { message: Some(message.into()), ..Row::new(name, "away") }
    }));
    Ok(rows)
}

/// The devices that are known to be meant.
pub fn members(target: &Target, known: &BTreeMap<String, Seen>) -> Vec<String> {
    let is_meant = |name: &String, seen: &Seen| match target {
        Target::Device(device) => device == name,
        Target::Group(group) => {
            seen.report.as_ref().is_ok_and(|report| report.groups.contains(group))
        }
    };
    let known = known.iter().filter(|(name, seen)| is_meant(name, seen));
    known.map(|(name, _)| name.clone()).collect()
}

/// Asks the devices to say how they are, and waits for those that do.
pub async fn who_is_there(
    plant: &Plant,
    target: &Target,
    statuses: &mut Statuses,
    presence: Duration,
) -> Result<Vec<String>, FleetError> {
    let before = revisions(statuses);
    plant.ask_for_reports(std::slice::from_ref(target)).await?;
    let end = Instant::now() + presence;
    loop {
        let members = members(target, statuses.known());
        let is_new = |name: &String| {
            statuses.known().get(name).map(|seen| seen.revision) > before.get(name).copied()
        };
        let present: Vec<_> = members.iter().filter(|name| is_new(name)).cloned().collect();
        let are_all = !members.is_empty() && present.len() == members.len();
        if are_all || statuses.next(end).await?.is_none() {
            return Ok(present);
        }
    }
}

fn revisions(statuses: &Statuses) -> BTreeMap<String, u64> {
    statuses.known().iter().map(|(name, seen)| (name.clone(), seen.revision)).collect()
}

/// What a device has answered to what is wanted under this id.
pub fn answer<'a>(
    known: &'a BTreeMap<String, Seen>,
    name: &str,
    id: &str,
) -> Option<(&'a Report, &'a Answered)> {
    let report = known.get(name)?.report.as_ref().ok()?;
    let answered = report.answered.as_ref().filter(|answered| answered.id == id)?;
    Some((report, answered))
}

/// Waits for what devices answer to what is wanted under this id, and tells what became of each.
pub async fn answers(
    statuses: &mut Statuses,
    names: &[String],
    id: &str,
    patience: Duration,
    is_over: impl Fn(&Answered) -> bool,
) -> Vec<Row> {
    let end = Instant::now() + patience;
    let mut missing: Vec<_> = names.iter().collect();
    loop {
        missing.retain(|name| {
            let answered = answer(statuses.known(), name, id);
            !answered.is_some_and(|(_, answered)| is_over(answered))
        });
        if missing.is_empty() || !matches!(statuses.next(end).await, Ok(Some(_))) {
            break;
        }
    }
    let row = |name: &String| {
        let found = answer(statuses.known(), name, id);
        match found {
            Some((report, answered)) if is_over(answered) => row(report, answered),
            Some((_, answered)) => {
                Row { message: answered.message.clone(), ..Row::new(name, "no-answer") }
            }
            None => {
                let message = format!("nothing within {} s", patience.as_secs());
                Row { message: Some(message), ..Row::new(name, "no-answer") }
            }
        }
    };
    names.iter().map(row).collect()
}

fn row(report: &Report, answered: &Answered) -> Row {
    let result = match answered.result {
        Result_::Done => "done",
        Result_::Refused => "refused",
        Result_::Waiting => "no-answer",
    };
    Row {
        policy: report.policy.clone(),
        mode: report.mode.clone(),
        until: answered.until,
        health: Some(report.health.clone()),
        message: answered.message.clone(),
        ..Row::new(&report.device, result)
    }
}

/// A bundle on its way through the servers.
struct Staged<'a> {
    plant: &'a Plant,
    target: &'a Target,
    wanted: Wanted,
    present: Vec<String>,
    statuses: Mutex<Statuses>,
    patience: Duration,
}

impl Staged<'_> {
    /// Says it to the devices of a stage; with the last one to all that are meant.
    async fn want(&self, stage: &Range<usize>, wanted: &Wanted) -> Result<(), FleetError> {
        if stage.end == self.present.len() {
            return self.plant.want(self.target, wanted).await;
        }
        let devices = self.present[stage.clone()].iter().cloned().map(Target::Device);
        let saying = devices.map(|device| async move { self.plant.want(&device, wanted).await });
        stream::iter(saying).buffer_unordered(AT_ONCE).try_collect().await
    }

    fn failed(&self, stage: &Range<usize>, error: &FleetError) -> Vec<Row> {
        let row =
            |name: &String| Row { message: Some(error.to_string()), ..Row::new(name, "no-answer") };
        self.present[stage.clone()].iter().map(row).collect()
    }
}

impl Hands for Staged<'_> {
    fn names(&self) -> Vec<&str> {
        self.present.iter().map(String::as_str).collect()
    }

    async fn push(&self, stage: Range<usize>, _: &Plan, bar: &ProgressBar) -> Vec<(Row, usize)> {
        let mut statuses = self.statuses.lock().await;
        let names = &self.present[stage.clone()];
        let health = |name: &String| {
            let report = statuses.known().get(name).and_then(|seen| seen.report.as_ref().ok());
            report.map_or(0, |report| Health::of(report).rank())
        };
        let before: Vec<_> = names.iter().map(health).collect();
        let rows = match self.want(&stage, &self.wanted).await {
            Ok(()) => {
                let is_over = |answered: &Answered| answered.result != Result_::Waiting;
                answers(&mut statuses, names, &self.wanted.id, self.patience, is_over).await
            }
            Err(error) => self.failed(&stage, &error),
        };
        bar.inc(names.len() as u64);
        rows.into_iter().zip(before).collect()
    }

    async fn health(&self, stage: Range<usize>) -> Vec<Result<Health, String>> {
        let mut statuses = self.statuses.lock().await;
        let names = &self.present[stage];
        let before = revisions(&statuses);
        let targets: Vec<_> = names.iter().cloned().map(Target::Device).collect();
        // A report that was made before says nothing about a device that has gone since.
        let asked = self.plant.ask_for_reports(&targets).await;
        let is_new = |statuses: &Statuses, name: &String| {
            statuses.known().get(name).map(|seen| seen.revision) > before.get(name).copied()
        };
        let end = Instant::now() + REPORT;
        while asked.is_ok() && !names.iter().all(|name| is_new(&statuses, name)) {
            if !matches!(statuses.next(end).await, Ok(Some(_))) {
                break;
            }
        }
        let health = |name: &String| {
            let seen = statuses.known().get(name).filter(|_| is_new(&statuses, name));
            match seen.map(|seen| &seen.report) {
                Some(Ok(report)) => Ok(Health::of(report)),
                Some(Err(why)) => Err(why.clone()),
                None => Err(format!("it says nothing within {} s", REPORT.as_secs())),
            }
        };
        names.iter().map(health).collect()
    }

    async fn confirm(&self, stage: Range<usize>, rows: &mut [Row]) {
        let mut wanted = self.wanted.clone();
        if let What::Push { confirmed, .. } = &mut wanted.what {
            *confirmed = true;
        }
        let names = &self.present[stage.clone()];
        let mut statuses = self.statuses.lock().await;
        let confirmed = match self.want(&stage, &wanted).await {
            Ok(()) => {
                let is_over =
                    |answered: &Answered| answered.confirmed || answered.result == Result_::Refused;
                answers(&mut statuses, names, &wanted.id, self.patience, is_over).await
            }
            Err(error) => self.failed(&stage, &error),
        };
        rows.clone_from_slice(&confirmed);
    }
}
