//! Real servers, and devices without gates.

mod catalogs;
pub(crate) mod cluster;
mod permitted;
mod scale;
pub(crate) mod simulated;

use std::{collections::BTreeMap, time::Duration};

use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep, timeout};

use self::{cluster::Cluster, simulated::Simulated};
use super::{
    names::Target,
    plant::{Plant, Seen, Statuses},
    words::{Answered, Outcome, Stored, Wanted, What, new_id},
};
use crate::{api::tests::lab::bundle, control::Request, sync::lock};

/// Longer than anything here takes where others have the processors.
const LONG: Duration = Duration::from_secs(120);

fn group() -> Target {
    Target::Group("plant-7".into())
}

fn push(stored: &Stored, confirm_within: Option<u64>) -> Wanted {
    let what = What::Push { bundle: stored.clone(), confirm_within, confirmed: false };
    Wanted { id: new_id().expect("random numbers"), what }
}

/// Waits until what devices say is so.
async fn until(
    statuses: &mut Statuses,
    what: &str,
    is_so: impl Fn(&BTreeMap<String, Seen>) -> bool,
) {
    let end = Instant::now() + LONG;
    while !is_so(statuses.known()) {
        let next = statuses.next(end).await.expect("they are heard");
        assert!(next.is_some(), "{what}: {:#?}", statuses.known());
    }
}

fn answered<'a>(known: &'a BTreeMap<String, Seen>, device: &str) -> Option<&'a Answered> {
    known.get(device)?.report.as_ref().ok()?.answered.as_ref()
}

fn has(known: &BTreeMap<String, Seen>, devices: &[Simulated], id: &str, result: Outcome) -> bool {
    let is = |answered: &Answered| answered.id == id && answered.result == result;
    devices.iter().all(|device| answered(known, &device.name).is_some_and(is))
}

async fn wanted_of_all(plant: &Plant, wanted: &Wanted) {
    plant.want(&group(), wanted).await.expect("taken");
}

#[tokio::test]
async fn a_fleet_does_what_is_wanted_although_servers_and_devices_go_and_come_back() {
    let names = simulated::names(12);
    let mut cluster = Cluster::start(3, &names);
    let plant = timeout(LONG, cluster.plant()).await.expect("a cluster");
    let mut devices = Vec::new();
    for (name, groups) in &names {
        devices.push(Simulated::start(cluster.config(name, groups)).await);
    }
    let mut statuses = plant.statuses().await.expect("heard");
    until(&mut statuses, "all are there", |known| known.len() == names.len()).await;

    // A bundle of several chunks reaches all, wholly, and once.
    let content = bundle(1_300_000);
    let digest: [u8; 32] = Sha256::digest(&content).into();
    let stored = plant.store(&group(), content.clone()).await.expect("stored");
    let first = push(&stored, Some(300));
    wanted_of_all(&plant, &first).await;
    let done = |known: &_, devices: &_| has(known, devices, &first.id, Outcome::Done);
    until(&mut statuses, "all have it", |known| done(known, &devices)).await;
    for device in &devices {
        let pushes = device.pushes();
        assert_eq!(pushes.len(), 1, "{}", device.name);
        assert_eq!((pushes[0].bundle, pushes[0].by.as_str()), (Some(digest), "fleet"));
        let expected = Request::Push { path: String::new(), confirm_within: Some(300) };
        assert_eq!(pushes[0].request, expected);
    }

    // It is confirmed, while a server goes away; and one device is away, too.
    let away = devices.pop().expect("a device");
    let (away_config, away_folder) = away.stop();
    cluster.kill_node(0);
    let what = What::Push { bundle: stored.clone(), confirm_within: Some(300), confirmed: true };
    let confirmed = Wanted { id: first.id.clone(), what };
    wanted_of_all(&plant, &confirmed).await;
    let is_confirmed = |known: &BTreeMap<String, Seen>| {
        let mut all = devices.iter().map(|device| answered(known, &device.name));
        all.all(|answered| answered.is_some_and(|answered| answered.confirmed))
    };
    until(&mut statuses, "all have confirmed", is_confirmed).await;
    // The next one, while it is still away.
    let content = bundle(2_000);
    let stored = plant.store(&group(), content).await.expect("stored by two of three");
    let second = push(&stored, None);
    *lock(&devices[0].behaviour.refuses) = Some("refused (signature): nobody's".into());
    wanted_of_all(&plant, &second).await;
    let done = |known: &_| {
        has(known, &devices[1..], &second.id, Outcome::Done)
            && has(known, &devices[..1], &second.id, Outcome::Refused)
    };
    until(&mut statuses, "all have the second, or refuse it", done).await;
    let no = answered(statuses.known(), &devices[0].name).and_then(|no| no.message.clone());
    assert_eq!(no.as_deref(), Some("refused (signature): nobody's"));

    // Who was away catches up with the last word only, and does nothing twice after a restart.
    let back = Simulated::start_in(away_config, away_folder).await;
    let devices_back = [back];
    let done = |known: &_| has(known, &devices_back, &second.id, Outcome::Done);
    until(&mut statuses, "the device that was away has it", done).await;
    let [back] = devices_back;
    assert_eq!(back.pushes().len(), 1, "the second only, in this agent's life");
    let (config, folder) = back.stop();
    let again = Simulated::start_in(config, folder).await;
    again.event("{\"record\":1,\"time\":\"2026-01-01T00:00:00Z\"}");
    cluster.start_node(0);
    let what = What::Rollback { of: second.id.clone(), because: "a test".into() };
    let back = Wanted { id: new_id().expect("random numbers"), what };
    wanted_of_all(&plant, &back).await;
    devices.push(again);
    let done = |known: &_| has(known, &devices, &back.id, Outcome::Done);
    until(&mut statuses, "all have taken it back", done).await;
    let again = devices.last().expect("it is there");
    assert_eq!(again.pushes(), [], "what was answered is not done again");
    let asked_back = |device: &Simulated| {
        let asked = device.asked();
        asked.iter().filter(|one| matches!(one.request, Request::Rollback { .. })).count()
    };
    assert_eq!(asked_back(&devices[0]), 0, "it had refused, so there was nothing to take back");
    assert_eq!(asked_back(&devices[1]), 1);
    plant.forget_others(&group(), std::slice::from_ref(&stored.sha256)).await.expect("forgotten");
}

#[tokio::test]
async fn events_come_once_each_from_every_device() {
    let names = simulated::names(2);
    let cluster = Cluster::start(1, &names);
    let plant = timeout(LONG, cluster.plant()).await.expect("a server");
    let (name, groups) = &names[0];
    let device = Simulated::start(cluster.config(name, groups)).await;
    let line = |record: u64| {
        format!("{{\"record\":{record},\"time\":\"2026-01-01T00:00:{:02}Z\"}}", record % 60)
    };
    let followed = async {
        while device.events.receiver_count() == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, followed).await.expect("the link follows");
    for record in 1..=20 {
        device.event(&line(record));
    }
    let stored = async || {
        let mut lines = Vec::new();
        let each = |from: &str, bytes: &[u8]| {
            assert_eq!(from, name);
            lines.push(String::from_utf8_lossy(bytes).into_owned());
            true
        };
        plant.events(Some(name), false, each).await.expect("read");
        lines.retain(|line| line.contains("record"));
        lines
    };
    let all = async {
        while stored().await.len() < 20 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LONG, all).await.expect("all have come");
    assert_eq!(stored().await, (1..=20).map(line).collect::<Vec<_>>());
}
