//! Fleets of devices without gates.

use bytes::Bytes;
use indicatif::ProgressBar;

use super::{
    rollout::{Direct, Plan, roll_out},
    *,
};
use crate::{
    api::tests::lab::{Fake, Pki, bundle},
    control::Request,
    fleet::{
        names::Target,
        tests::{
            cluster::Cluster,
            simulated::{self, Simulated},
        },
    },
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
    let rows = roll_out(&Direct { fleet, bundle: bytes }, plan, &ProgressBar::hidden()).await;
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
    let of = |results: &[&'static str]| {
        let rows: Vec<_> = results.iter().map(|result| Row::new("pump-3", result)).collect();
        code(&rows)
    };
    assert_eq!(of(&["done", "done", "not-tried"]), ExitCode::SUCCESS);
    assert_eq!(of(&["done", "refused", "unreachable"]), ExitCode::from(1));
    assert_eq!(of(&["worse"]), ExitCode::from(1));
    assert_eq!(of(&["done", "unreachable"]), ExitCode::from(3));
    assert_eq!(of(&["not-permitted"]), ExitCode::from(3));
    assert_eq!(of(&["no-answer"]), ExitCode::from(3));
}

#[tokio::test]
async fn a_rollout_through_servers_stops_where_a_device_gets_worse() {
    let names = simulated::names(5);
    let mut cluster = Cluster::start(3, &names);
    let plant = cluster.plant().await;
    let mut devices = Vec::new();
    for (name, groups) in &names {
        devices.push(Simulated::start(cluster.config(name, groups)).await);
    }
    let target = Target::Group("plant-7".into());
    let patience = Duration::from_secs(120);
    // A new fleet is known once it has said something.
    let mut statuses = plant.statuses().await.expect("heard");
    while statuses.known().len() < names.len() {
        statuses.next(tokio::time::Instant::now() + patience).await.expect("heard");
    }
    let results = async |plan: &Plan, presence: u64| {
        let (presence, bar) = (Duration::from_secs(presence), ProgressBar::hidden());
        let rows = servers::staged::roll_out(
            &plant,
            &target,
            bundle(700_000),
            plan,
            presence,
            patience,
            &bar,
        );
        let rows = rows.await.expect("the servers do it");
        rows.iter().map(|row| row.result).collect::<Vec<_>>()
    };
    let counts = |devices: &[Simulated]| -> Vec<usize> {
        devices.iter().map(|device| device.pushes().len()).collect()
    };
    lock(&devices[2].behaviour.health).1 = "warning".into();
    let found = results(&plan("1,3,100%"), 60).await;
    assert_eq!(found, ["done", "done", "worse", "not-tried", "not-tried"]);
    assert_eq!(counts(&devices), [1, 1, 1, 0, 0]);
    let confirmed =
        |device: &Simulated| device.asked().iter().any(|asked| asked.request == Request::Confirm);
    let all: Vec<_> = devices.iter().map(confirmed).collect();
    assert_eq!(all, [true, false, false, false, false], "a bad stage is not confirmed");

    *lock(&devices[1].behaviour.refuses) = Some("refused (other-device): no".into());
    let found = results(&plan("1,2,100%"), 60).await;
    assert_eq!(found, ["done", "refused", "not-tried", "not-tried", "not-tried"]);
    *lock(&devices[1].behaviour.refuses) = None;

    // A server and a device go away; the others go on, and the device does it when it comes back.
    let (config, folder) = devices.pop().expect("a device").stop();
    cluster.kill_node(1);
    let found = results(&plan("1,100%"), 5).await;
    assert_eq!(found, ["done", "done", "done", "done", "away"]);
    let back = Simulated::start_in(config, folder).await;
    while back.pushes().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let expected = Request::Push { path: String::new(), confirm_within: None };
    assert_eq!(back.pushes()[0].request, expected, "it is confirmed already");
}
