//! `portcullis doctor`

use std::{path::Path, process::ExitCode};

use serde::Serialize;

use super::{NO, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    artifact::MAX_HASHED_BYTES,
    kernel::{
        allowlist::Allowlist,
        check::{Check, State, first_failure},
        facts,
        gates::{Gates, Settings},
        layout::Layout,
        pins, selftest,
    },
    policy::Policy,
    run::backend,
};

#[derive(clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    gates_can_hold: bool,
    /// What `run` would use: `bpf-lsm`, `fanotify` (degraded), or nothing.
    backend: Option<&'static str>,
    checks: &'a [Check],
}

pub fn doctor(args: &Args) -> Outcome {
    let layout = Layout::of_running_kernel();
    let mut checks = facts::checks(&layout);
    let privileged = facts::is_privileged();
    if let (Ok(layout), None) = (&layout, first_failure(&checks)) {
        checks.extend(try_gates(layout));
    } else {
        checks.push(Check::bad(
            State::Unknown,
            "gates",
            "gates load and are called",
            "not tried, as something before failed",
            "mend the failed rows first",
        ));
    }
    let holds = checks.iter().all(|check| matches!(check.state, State::Ok | State::Warning));
    let falls_back = !holds
        && matches!(
            backend::choose(backend::Choice::Auto, &checks),
            Ok(backend::Chosen::Fanotify(_))
        );
    if args.json {
        let backend = match (holds, falls_back) {
            (true, _) => Some("bpf-lsm"),
            (false, true) => Some("fanotify"),
            (false, false) => None,
        };
        let report = Report { schema: 1, gates_can_hold: holds, backend, checks: &checks };
        let text = serde_json::to_string_pretty(&report).or_exit(UNAVAILABLE)?;
        output::print(&format!("{text}\n"))?;
    } else {
        output::print(&show(&checks, holds, falls_back))?;
    }
    Ok(match (holds, privileged) {
        (true, _) => ExitCode::SUCCESS,
        (false, true) => ExitCode::from(NO),
        (false, false) => ExitCode::from(UNAVAILABLE),
    })
}

/// Loads, attaches and proves the gates for a moment, in audit mode and with an empty policy, so
/// that nothing is refused.
fn try_gates(layout: &Layout) -> Vec<Check> {
    let (id, title) = ("load", "kernel accepts the gates");
    // Gates of an agent that enforces would refuse the self-test's files.
    if pins::all().is_ok_and(|folders| !folders.is_empty()) {
        return vec![Check::ok(
            id,
            title,
            "an agent's gates stand; `portcullis status` has their proof",
        )];
    }
    let folder = match tempfile::Builder::new()
        .prefix("portcullis")
        .tempdir_in("/run")
        .or_else(|_| tempfile::tempdir())
    {
        Ok(folder) => folder,
        Err(error) => {
            let found = format!("no place for the self-test's files: {error}");
            return vec![Check::bad(
                State::Unknown,
                id,
                title,
                found,
                "make /run or /tmp writable",
            )];
        }
    };
    match prove(layout, folder.path()) {
        Ok(mut checks) => {
            checks.insert(0, Check::ok(id, title, "all programs loaded and attached"));
            checks
        }
        Err(error) => {
            let mend = "report it with the kernel's version and configuration";
            vec![Check::failed(id, title, error.to_string(), mend)]
        }
    }
}

fn prove(layout: &Layout, folder: &Path) -> anyhow::Result<Vec<Check>> {
    let settings = Settings {
        state_devices: [0; 5],
        watch_devices: false,
        max_hashed_bytes: MAX_HASHED_BYTES,
        memfd_device: selftest::memfd_device()?,
        may_read_kernel: facts::may_read_kernel(),
        interpreters: true,
        usb: true,
        log_level: 0,
    };
    let mut gates = Gates::load(layout, &settings)?;
    let mut ring = gates.take_events()?;
    let rules = Allowlist::fill(&[], 0, &indicatif::ProgressBar::hidden())?;
    gates.switch(&Policy::empty(), rules, portcullis_common::Mode::Audit)?;
    gates.attach()?;
    Ok(selftest::run(&mut gates, &mut ring, folder)?.checks)
}

fn show(checks: &[Check], holds: bool, falls_back: bool) -> String {
    let mut table = output::table(&["", "what", "found"]);
    for check in checks {
        let mark = match check.state {
            State::Ok => "ok",
            State::Warning => "warn",
            State::Failed => "FAIL",
            State::Unknown => "?",
        };
        let found = match (&check.mend, check.state) {
            (Some(mend), State::Warning | State::Failed | State::Unknown) => {
                format!("{}\nmend: {mend}", check.found)
            }
            _ => check.found.clone(),
        };
        table.add_row([mark, check.title, &found]);
    }
    let verdict = if holds {
        "the gates can hold on this kernel"
    } else {
        "the gates cannot hold here as it is"
    };
    let fallback = if falls_back {
        "\n`portcullis run` would be degraded to fanotify: only exec is judged, and nothing when the \
         agent does not run"
    } else {
        ""
    };
    format!("{}\n\n{verdict}{fallback}\n", table.trim_fmt())
}
