//! How long it takes until many devices have a policy. Few of them here; `cargo xtask bench fleet` runs it
//! with thousands and prints the times.

use std::{env, time::Duration};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{Cluster, Simulated, group, push, simulated, wanted_of_all};
use crate::{
    api::tests::lab::{bundle, many_descriptors},
    fleet::{config::Config, link::Pace},
};

/// So many devices.
const DEVICES: &str = "PORTCULLIS_FLEET_DEVICES";

fn count(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// So many connect at once. Devices have processors of their own for that; here thousands of handshakes would
/// wait for each other in one thread until none is over in time.
const WAVE: usize = 200;

/// Descriptors that one of them takes in this process: its connection and its socket, and now and then a file
/// and the ends of a question.
const DESCRIPTORS: usize = 3;

/// A folder of a device. In memory where that can be, as each device has a disk of its own.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
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
    let names = simulated::names(count(DEVICES, 16));
    let size = names.len();
    let (descriptors, needed) = (many_descriptors(), size * DESCRIPTORS + 500);
    assert!(descriptors >= needed, "{needed} descriptors are needed: ulimit -n {needed}");
    let begun = Instant::now();
    let told = |what: &str, since: Instant| {
        println!("{what}: {:.1} s", since.elapsed().as_secs_f32());
    };
    let mut cluster = Cluster::start(3, &names);
    let plant = cluster.plant().await;
    told("three servers are ready", begun);
    // As on a device, but for what the agents here would cost this one process.
    let pace = Pace { poll: Duration::from_secs(60), ..Pace::default() };
    let mut statuses = plant.statuses().await.expect("heard");
    let begun = Instant::now();
    let mut devices = Vec::new();
    for wave in names.chunks(WAVE) {
        for (name, groups) in wave {
            // Nothing happens on them, and to wait for it costs two descriptors.
            let config = Config { events: false, ..cluster.config(name, groups) };
            devices.push(Simulated::start_with(config, folder(), pace).await);
        }
        while statuses.known().len() < devices.len() {
            statuses.next(Instant::now() + Duration::from_secs(600)).await.expect("heard");
        }
        if devices.len() % 1000 == 0 {
            told(&format!("{} devices", devices.len()), begun);
        }
    }
    told(&format!("{size} devices are connected, {WAVE} at once, and have reported"), begun);

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
