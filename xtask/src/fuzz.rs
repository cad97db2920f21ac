//! `cargo xtask fuzz`: drives what reads input from outside with libFuzzer, under `fuzz`.
//!
//! The compiler instruments by itself, with the flags that `cargo fuzz` gives it too; so that any
//! stable compiler will do, and nothing but the C++ compiler for libFuzzer's runtime is needed. Memory
//! errors are not looked for by a sanitizer: what is driven is safe Rust.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{
    build::{host_target, target_dir},
    command::{run, shown},
    root, setup,
};

/// What can be driven: the folders of `fuzz/seeds`, which `fuzz/src/targets.rs` has by these names.
const TARGETS: [&str; 15] = [
    "policy",
    "manifest",
    "cms",
    "raw",
    "certificate",
    "key",
    "rotation",
    "ima",
    "module",
    "bundle",
    "usb",
    "usbguard",
    "event",
    "request",
    "fleet",
];

/// What has the compiler count which way each input takes, and note what it compares.
const INSTRUMENTED: [&str; 7] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "--cfg",
    "fuzzing",
];

#[derive(clap::Args)]
pub struct Args {
    /// What to drive (default: one after the other, all of them)
    #[arg(value_name = "TARGET", value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    targets: Vec<String>,
    /// How long for each
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub fn fuzz(args: &Args) -> Result<ExitCode> {
    setup::setup(setup::For::Fuzzing)?;
    let target = host_target()?;
    let folder = target_dir().join("fuzz");
    // The versions that are shipped are the ones that are driven.
    fs::copy(root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"))?;
    eprintln!("building with instrumentation, which takes minutes the first time");
    run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root().join("fuzz"))
        .env("RUSTFLAGS", INSTRUMENTED.join(" "))
        .args(["build", "--release", "--quiet", "--target", &target, "--target-dir"])
        .arg(&folder))?;
    let program = folder.join(&target).join("release/portcullis-fuzz");
    let mut bad = Vec::new();
    for name in TARGETS {
        if !args.targets.is_empty() && !args.targets.iter().any(|wanted| wanted == name) {
            continue;
        }
        let (corpus, found) = (folder.join("corpus").join(name), folder.join("found"));
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&found)?;
        let mut drive = Command::new(&program);
        drive.env("PORTCULLIS_FUZZ", name);
        drive.arg(format!("-max_total_time={}", args.seconds)).arg("-timeout=10");
        drive.arg(format!("-artifact_prefix={}/{name}-", found.display()));
        // What it finds goes into the first; the seeds stay as they are.
        drive.arg(&corpus).arg(root().join("fuzz/seeds").join(name));
        if !watch(name, &mut drive)? {
            bad.push(name);
        }
    }
    if bad.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED: {}; what did it lies in {}", bad.join(", "), folder.join("found").display());
    Ok(ExitCode::FAILURE)
}

/// Runs one, and says in a line how far it came; what it says is shown if it fails.
fn watch(name: &str, drive: &mut Command) -> Result<bool> {
    let start = || format!("cannot start {}", shown(drive));
    let context = start();
    let mut child = drive
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(context)?;
    let (mut last, mut other) = (String::new(), Vec::new());
    for line in BufReader::new(child.stderr.take().context("no output")?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        let is_count = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
        if line.strip_prefix('#').is_some_and(is_count) {
            last = line;
        } else {
            other.push(line);
        }
    }
    let is_good = child.wait()?.success();
    ensure!(!last.is_empty(), "{name} did not begin:\n{}", other.join("\n"));
    // `#1234 DONE cov: 1 ft: 2 …`
    let words: Vec<_> = last.split_whitespace().collect();
    let after = |key| words.iter().skip_while(|word| **word != key).nth(1).copied();
    println!(
        "{name:<12}{} inputs, coverage {}: {}",
        words.first().map_or("0", |first| first.trim_start_matches('#')),
        after("cov:").unwrap_or("?"),
        if is_good { "good" } else { "FAILED" }
    );
    if !is_good {
        println!("{}", other.join("\n"));
    }
    Ok(is_good)
}
