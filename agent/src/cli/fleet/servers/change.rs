//! `portcullis fleet confirm` and `portcullis fleet rollback`

use super::{ConfirmArgs, Patience, RollbackArgs, Row, Servers, show, staged, wait_for};
use crate::{
    cli::Outcome,
    fleet::{
        FleetError,
        names::Target,
        plant::{Plant, Statuses},
        words::{Answered, Outcome as Result_, Wanted, What, new_id},
    },
};

/// What is to be done to what was wanted last.
enum Change<'a> {
    Confirm,
    Rollback(&'a str),
}

pub fn confirm(args: &ConfirmArgs) -> Outcome {
    let target = args.target.target()?;
    run(&args.servers, &target, &args.patience, &Change::Confirm)
}

pub fn rollback(args: &RollbackArgs) -> Outcome {
    let target = args.target.target()?;
    run(&args.servers, &target, &args.patience, &Change::Rollback(&args.because))
}

fn run(servers: &Servers, target: &Target, patience: &Patience, change: &Change<'_>) -> Outcome {
    let rows = wait_for(async {
        let plant = servers.plant().await?;
        let mut statuses = plant.statuses().await?;
        let present = staged::who_is_there(&plant, target, &mut statuses, patience.presence());
        let present = present.await?;
        let (id, done_by) = latest(target, &present, &statuses)?;
        match change {
            Change::Confirm => {
                say_confirmed(&plant, target, &id, &done_by).await?;
                let is_over =
                    |answered: &Answered| answered.confirmed || answered.result == Result_::Refused;
                let timeout = patience.timeout();
                Ok(staged::answers(&mut statuses, &done_by, &id, timeout, is_over).await)
            }
            Change::Rollback(because) => {
                let what = What::Rollback { of: id, because: (*because).to_owned() };
                let wanted = Wanted { id: new_id()?, what };
                plant.want(target, &wanted).await?;
                let is_over = |answered: &Answered| answered.result != Result_::Waiting;
                let timeout = patience.timeout();
                Ok::<Vec<Row>, FleetError>(
                    staged::answers(&mut statuses, &present, &wanted.id, timeout, is_over).await,
                )
            }
        }
    })??;
    show(&rows, patience.json)
}

/// The id of what was wanted last of those that are there, and who has done it.
fn latest(
    target: &Target,
    present: &[String],
    statuses: &Statuses,
) -> Result<(String, Vec<String>), FleetError> {
    let answered = |name: &String| {
        let report = statuses.known().get(name)?.report.as_ref().ok()?;
        report.answered.as_ref()
    };
    let last = present.iter().filter_map(answered).max_by_key(|answered| answered.wanted_at);
    let Some(id) = last.map(|answered| answered.id.clone()) else {
        let why = format!("nobody of {target} is there that was pushed anything");
        return Err(FleetError::Asked { what: "asking devices", why });
    };
    let has_done = |name: &&String| {
        answered(name).is_some_and(|found| found.id == id && found.result == Result_::Done)
    };
    let done_by = present.iter().filter(has_done).cloned().collect();
    Ok((id, done_by))
}

/// Says it where it was said before, and nowhere else: a rollout that has stopped goes no further.
async fn say_confirmed(
    plant: &Plant,
    target: &Target,
    id: &str,
    done_by: &[String],
) -> Result<(), FleetError> {
    let devices = done_by.iter().cloned().map(Target::Device);
    let mut is_said = false;
    for place in [target.clone()].into_iter().chain(devices) {
        let Some(mut wanted) = plant.wanted(&place).await?.filter(|wanted| wanted.id == id) else {
            continue;
        };
        if let What::Push { confirmed, .. } = &mut wanted.what {
            *confirmed = true;
            plant.want(&place, &wanted).await?;
            is_said = true;
        }
    }
    if is_said {
        return Ok(());
    }
    Err(FleetError::Broken(format!("what {target} was asked for last is nothing to be confirmed")))
}
