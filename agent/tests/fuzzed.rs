//! What `cargo xtask fuzz` drives for long, for a moment and always in the same way: the seeds, and
//! what becomes of them when pieces are cut out, doubled, mixed and overwritten.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use targets::{TARGETS, Target};

/// Changed inputs of each target, or fewer on a machine that takes longer than [`TIME`] for them.
const ROUNDS: usize = 20_000;
const TIME: Duration = Duration::from_secs(2);

/// Numbers that only look random.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit.max(1)
    }

    fn change(&mut self, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
        let from = self.below(input.len());
        let until = (from + 1 + self.below(32)).min(input.len());
        match self.below(6) {
            0 => drop(input.drain(from..until)),
            1 => {
                let piece = input[from..until].to_vec();
                let to = self.below(input.len() + 1);
                drop(input.splice(to..to, piece));
            }
            2 => {
                let other = &seeds[self.below(seeds.len())];
                let start = self.below(other.len());
                let end = (start + 1 + self.below(64)).min(other.len());
                drop(input.splice(from..until, other[start..end].iter().copied()));
            }
            3 => input.truncate(from),
            4 => input.insert(from, [0, 0x30, 0x7f, 0x80, 0xff, b'\n', b'"', b'#'][self.below(8)]),
            _ => {
                if let Some(byte) = input.get_mut(from) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}

fn drive(target: &Target) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target.name);
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("seeds").map(|entry| entry.expect("a seed").path()).collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| fs::read(file).expect("a seed")).collect();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        (target.drive)(seed);
    }
    let (began, mut numbers) = (Instant::now(), Numbers(0x9e37_79b9_7f4a_7c15));
    let mut round = 0;
    while round < ROUNDS && began.elapsed() < TIME {
        let mut input = seeds[round % seeds.len()].clone();
        for _ in 0..=numbers.below(4) {
            numbers.change(&seeds, &mut input);
        }
        (target.drive)(&input);
        round += 1;
    }
    println!("{}: {round} changed inputs in {:?}", target.name, began.elapsed());
}

fn named(name: &str) {
    drive(TARGETS.iter().find(|target| target.name == name).expect("a target"));
}

#[test]
fn policies() {
    named("policy");
}

#[test]
fn manifests() {
    named("manifest");
}

#[test]
fn cms_signatures() {
    named("cms");
}

#[test]
fn bare_signatures() {
    named("raw");
}

#[test]
fn certificates() {
    named("certificate");
}

#[test]
fn keys() {
    named("key");
}

#[test]
fn rotations() {
    named("rotation");
}

#[test]
fn attributes_of_files() {
    named("ima");
}

#[test]
fn ends_of_modules() {
    named("module");
}

#[test]
fn bundles() {
    named("bundle");
}

#[test]
fn usb_descriptors() {
    named("usb");
}

#[test]
fn rules_of_usbguard() {
    named("usbguard");
}

#[test]
fn events_of_kernel_programs() {
    named("event");
}

#[test]
fn requests() {
    named("request");
}

#[test]
fn words_of_a_fleets_servers() {
    named("fleet");
}

/// So that none is forgotten here.
#[test]
fn there_are_no_others() {
    assert_eq!(TARGETS.len(), 15);
}
