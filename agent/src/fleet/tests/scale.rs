//! How long it takes until many devices have a policy. Few of them here; `cargo xtask bench fleet` runs it
//! with thousands and prints the times.

use std::{
    env, io,
    io::{BufRead, Write},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::Instant};

use super::{
    Cluster, Outcome, Simulated, Statuses, answered, cluster::Way, group, push, simulated,
    wanted_of_all,
};
use crate::{
    api::tests::lab::{bundle, many_descriptors},
    fleet::{config::Config, link::Pace},
};

/// So many devices.
const DEVICES: &str = "PORTCULLIS_FLEET_DEVICES";

/// Which devices a process has.
const PART: &str = "PORTCULLIS_FLEET_PART";

/// Devices of one process, which may have few descriptors: each device has its connection and its socket, and
/// while it gets a bundle two files and the ends of a question.
const OF_ONE: usize = 2000;

/// So many connect at once. Devices have processors of their own for that; here thousands of handshakes would
/// wait for each other until none is over in time.
const WAVE: usize = 200;

/// Devices that are in one process.
#[derive(Serialize, Deserialize)]
struct Part {
    way: Way,
    names: Vec<(String, Vec<String>)>,
}

/// A process with devices, which connect wave by wave.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It removes its folders then.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

impl Process {
    fn start(part: &Part) -> Self {
        let test = "fleet::tests::scale::devices_of_one_process";
        let mut process = Command::new(env::current_exe().expect("this program"));
        // Too long for the environment.
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        serde_json::to_writer(&mut file, part).expect("written");
        let (_, path) = file.keep().expect("it stays");
        process.args(["--exact", test, "--ignored", "--nocapture"]).env(PART, path);
        process.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(process.spawn().expect("started"))
    }

    fn next_wave(&mut self) {
        self.0.stdin.as_mut().expect("it listens").write_all(b"\n").expect("it listens");
    }
}

/// A folder of a device. In memory where that can be, as each device has a disk of its own.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// Part of the devices; the test below starts it, and ends it.
#[tokio::test]
#[ignore = "many_devices_have_a_policy_soon starts it"]
async fn devices_of_one_process() {
    let Ok(path) = env::var(PART) else { return };
    let part: Part = serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
    std::fs::remove_file(path).expect("removed");
    many_descriptors();
    let (tell, mut told) = mpsc::channel(1);
    thread::spawn(move || {
        for _ in io::stdin().lock().lines() {
            tell.blocking_send(()).expect("it listens");
        }
    });
    // As on a device, but for what the agents here would cost this one process.
    let pace = Pace { poll: Duration::from_secs(60), ..Pace::default() };
    let mut devices = Vec::new();
    let mut waves = part.names.chunks(WAVE);
    while told.recv().await.is_some() {
        for (name, groups) in waves.next().unwrap_or_default() {
            // Nothing happens on them, and to wait for it costs two descriptors.
            let config = Config { events: false, ..part.way.config(name, groups) };
            devices.push(Simulated::start_with(config, folder(), pace).await);
        }
    }
}

/// Waits until so many say that they have done it.
async fn done(statuses: &mut Statuses, id: &str, wanted: usize) {
    loop {
        let known = statuses.known();
        let is_done = |name: &&String| {
            answered(known, name).is_some_and(|one| one.id == id && one.result == Outcome::Done)
        };
        if known.keys().filter(is_done).count() >= wanted {
            return;
        }
        // Counting takes a while among thousands.
        let end = Instant::now() + Duration::from_millis(50);
        while statuses.next(end).await.expect("heard").is_some() {}
    }
}

#[tokio::test]
async fn many_devices_have_a_policy_soon() {
    let size = env::var(DEVICES).map_or(16, |text| text.parse().expect("a number"));
    let names = simulated::names(size);
    let begun = Instant::now();
    let told = |what: &str, since: Instant| {
        println!("{what}: {:.1} s", since.elapsed().as_secs_f32());
    };
    let mut cluster = Cluster::start(3, &names);
    let plant = cluster.plant().await;
    told("three servers are ready", begun);
    let mut statuses = plant.statuses().await.expect("heard");
    let begun = Instant::now();
    let mut processes = Vec::new();
    for names in names.chunks(OF_ONE) {
        let part = Part { way: cluster.way(), names: names.to_vec() };
        let mut process = Process::start(&part);
        for _ in names.chunks(WAVE) {
            let all = (statuses.known().len() + WAVE).min(size);
            process.next_wave();
            while statuses.known().len() < all {
                statuses.next(Instant::now() + Duration::from_secs(600)).await.expect("heard");
            }
        }
        processes.push(process);
    }
    told(&format!("{size} devices are connected, {WAVE} at once, and have reported"), begun);

    // Bundles on their way are in this machine's memory, twice for each device.
    let large = if size > 1000 { 512 } else { 2048 };
    for kib in [100, large] {
        let stored = plant.store(&group(), bundle(kib << 10)).await.expect("stored");
        let (wanted, begun) = (push(&stored, None), Instant::now());
        wanted_of_all(&plant, &wanted).await;
        done(&mut statuses, &wanted.id, (size * 99).div_ceil(100)).await;
        told(&format!("99 % have done a bundle of {kib} KiB, and have said so"), begun);
        done(&mut statuses, &wanted.id, size).await;
        told("all", begun);
    }
    cluster.kill_node(2);
    let stored = plant.store(&group(), bundle(100_001)).await.expect("stored");
    let (wanted, begun) = (push(&stored, None), Instant::now());
    wanted_of_all(&plant, &wanted).await;
    done(&mut statuses, &wanted.id, (size * 99).div_ceil(100)).await;
    told("99 % have done 100 KiB although a server was killed just before", begun);
    done(&mut statuses, &wanted.id, size).await;
    told("all", begun);
}
