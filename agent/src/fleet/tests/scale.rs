//! How long it takes until many devices have a policy. Few of them here; `cargo xtask bench fleet` runs it
//! with thousands and prints the times.

use std::{env, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Cluster, Simulated, group, push, simulated, wanted_of_all};
use crate::{
    api::tests::lab::{bundle, many_descriptors},
    fleet::link::Pace,
};

/// So many devices.
const DEVICES: &str = "PORTCULLIS_FLEET_DEVICES";

fn count(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Waits until so many of them have this many bundles.
async fn have(devices: &[Simulated], wanted: usize, bundles: usize) {
    let has = |device: &&Simulated| device.pushes().len() >= bundles;
    while devices.iter().filter(has).count() < wanted {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn many_devices_have_a_policy_soon() {
    many_descriptors();
    let names = simulated::names(count(DEVICES, 16));
    let size = names.len();
    let begun = Instant::now();
    let told = |what: &str, since: Instant| {
        println!("{what}: {:.1} s", since.elapsed().as_secs_f32());
    };
    let mut cluster = Cluster::start(3, &names);
    let plant = cluster.plant().await;
    told("three servers are ready", begun);
    // As on a device, but for what the agents here would cost this one process.
    let pace = Pace { poll: Duration::from_secs(60), ..Pace::default() };
    let begun = Instant::now();
    let mut devices = Vec::new();
    for (name, groups) in &names {
        devices.push(Simulated::start_with(cluster.config(name, groups), pace).await);
    }
    // All of them connect at once, in this one thread.
    let mut statuses = loop {
        match plant.statuses().await {
            Ok(statuses) => break statuses,
            Err(error) => println!("busy: {error}"),
        }
    };
    while statuses.known().len() < size {
        statuses.next(Instant::now() + Duration::from_secs(600)).await.expect("heard");
    }
    told(&format!("{size} devices are connected and have reported"), begun);

    for (round, kib) in [(1, 100), (2, 2048)] {
        let stored = plant.store(&group(), bundle((kib << 10) + round)).await.expect("stored");
        let begun = Instant::now();
        wanted_of_all(&plant, &push(&stored, None)).await;
        have(&devices, (size * 99).div_ceil(100), round).await;
        told(&format!("a bundle of {kib} KiB is with 99 % of them"), begun);
        have(&devices, size, round).await;
        told("with all", begun);
    }
    cluster.kill_node(2);
    let stored = plant.store(&group(), bundle(100_001)).await.expect("stored");
    let begun = Instant::now();
    wanted_of_all(&plant, &push(&stored, None)).await;
    have(&devices, (size * 99).div_ceil(100), 3).await;
    told("99 % have 100 KiB although a server was killed just before", begun);
    have(&devices, size, 3).await;
    told("with all", begun);
}
