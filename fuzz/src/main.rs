//! Everything that reads input from outside, driven by libFuzzer: `cargo xtask fuzz`.

#![no_main]

mod targets;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target};

/// Which of them is driven. All are in one program, as it takes long to make one.
const CHOICE: &str = "PORTCULLIS_FUZZ";

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var(CHOICE).unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("{CHOICE} is none of the targets"))
});

fuzz_target!(init: { LazyLock::force(&TARGET); }, |data: &[u8]| (TARGET.drive)(data));
