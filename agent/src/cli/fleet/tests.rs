//! Fleets of devices without gates.

use bytes::Bytes;
use indicatif::ProgressBar;

use super::{
    rollout::{Plan, roll_out},
    *,
};
use crate::{
    api::tests::lab::{Fake, Pki, bundle},
    control::Request,
    sync::lock,
};

async fn fleet(pki: &Pki, size: usize) -> (Vec<Fake>, Fleet) {
    let mut fakes = Vec::new();
    for _ in 0..size {
        fakes.push(Fake::start(pki).await);
    }
    let devices = fakes.iter().map(|fake| fake.device.clone()).collect();
    let fleet = Fleet { client: pki.client("policy-admin"), devices, parallel: 4 };
    (fakes, fleet)
}

fn plan(stages: &str) -> Plan {
    let stages = Some(stages.parse().expect("stages"));
    Plan { confirm_within: Some(300), stages, settle: Some(0), confirm: true }
}

async fn results(fleet: &Fleet, plan: &Plan) -> Vec<&'static str> {
    let bytes: Bytes = bundle(100);
    let rows = roll_out(fleet, bytes, plan, &ProgressBar::hidden()).await;
    rows.iter().map(|row| row.result).collect()
}

fn pushes(fakes: &[Fake]) -> Vec<usize> {
    let is_push = |request: &Request| matches!(request, Request::Push { .. });
    fakes.iter().map(|fake| fake.asked().iter().filter(|a| is_push(&a.request)).count()).collect()
}

#[tokio::test]
async fn a_rollout_reaches_all_and_confirms() {
    let pki = Pki::new();
    let (fakes, fleet) = fleet(&pki, 10).await;
    assert_eq!(results(&fleet, &plan("1,50%,100%")).await, ["done"; 10]);
    assert_eq!(pushes(&fakes), [1; 10]);
    for fake in &fakes {
        assert_eq!(fake.asked().last().map(|asked| asked.request.clone()), Some(Request::Confirm));
    }
}

#[tokio::test]
async fn a_rollout_stops_where_a_device_gets_worse() {
    let pki = Pki::new();
    let (fakes, fleet) = fleet(&pki, 6).await;
    lock(&fakes[2].behaviour.health).1 = "warning".into();
    // That is as it was before.
    *lock(&fakes[0].behaviour.health) = ("warning".into(), "warning".into());
    let found = results(&fleet, &plan("1,4,100%")).await;
    assert_eq!(found, ["done", "done", "worse", "done", "not-tried", "not-tried"]);
    assert_eq!(pushes(&fakes), [1, 1, 1, 1, 0, 0]);
    let confirmed = |fake: &Fake| fake.asked().iter().any(|a| a.request == Request::Confirm);
    let confirmed: Vec<_> = fakes.iter().map(confirmed).collect();
    assert_eq!(
        confirmed,
        [true, false, false, false, false, false],
        "a bad stage is not confirmed"
    );
}

#[tokio::test]
async fn a_rollout_stops_where_a_device_says_no_or_nothing() {
    let pki = Pki::new();
    let (mut fakes, mut fleet) = fleet(&pki, 4).await;
    *lock(&fakes[1].behaviour.refuses) = Some("refused (other-device): no".into());
    assert_eq!(results(&fleet, &plan("2,4")).await, ["done", "refused", "not-tried", "not-tried"]);
    *lock(&fakes[1].behaviour.refuses) = None;
    drop(fakes.remove(0));
    let found = results(&fleet, &plan("1,4")).await;
    assert_eq!(found, ["unreachable", "not-tried", "not-tried", "not-tried"]);
    // Without stages everybody is tried.
    let at_once = Plan { stages: None, settle: None, ..plan("1") };
    assert_eq!(results(&fleet, &at_once).await, ["unreachable", "done", "done", "done"]);
    fleet.client = pki.client("viewer");
    assert_eq!(results(&fleet, &at_once).await[1..], ["not-permitted"; 3]);
}

#[test]
fn the_exit_code_says_the_worst() {
    let device: Device = "pump-3".parse().expect("a device");
    let of = |results: &[&'static str]| {
        let rows: Vec<_> = results.iter().map(|result| Row::new(&device, result)).collect();
        code(&rows)
    };
    assert_eq!(of(&["done", "done", "not-tried"]), ExitCode::SUCCESS);
    assert_eq!(of(&["done", "refused", "unreachable"]), ExitCode::from(1));
    assert_eq!(of(&["worse"]), ExitCode::from(1));
    assert_eq!(of(&["done", "unreachable"]), ExitCode::from(3));
    assert_eq!(of(&["not-permitted"]), ExitCode::from(3));
    assert_eq!(of(&["no-answer"]), ExitCode::from(3));
}
