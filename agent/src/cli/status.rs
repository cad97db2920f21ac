//! `portcullis status`

use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

use anyhow::anyhow;
use serde::Deserialize;

use super::{
    Failure, NO, OrExit, Outcome, UNAVAILABLE,
    fleet::{self, Remote},
    output,
};
use crate::{
    catalog::Refused,
    control::{
        BundleStatus, CatalogStatus, Request, UsbStatus,
        client::{self, ClientError},
    },
    event::{PolicyId, human::Plain},
    kernel::pins,
    run::{reappraise::Pass, sink::SinkStatus},
};

#[derive(clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: Remote,
}

/// The agent's status as far as it is shown here.
#[derive(Deserialize)]
pub struct Page {
    pub pid: u32,
    /// The agent's version.
    pub version: String,
    pub started: jiff::Timestamp,
    pub backend: String,
    pub degraded: bool,
    /// The mode in force.
    pub mode: String,
    /// The policy in force.
    pub policy: PolicyId,
    pub digests: usize,
    /// `ok`, `warning` or `failed`.
    pub health: String,
    pub checks: Vec<CheckRow>,
    pub gates: Vec<GateRow>,
    pub sinks: Vec<SinkStatus>,
    pub events: u64,
    pub reappraisal: Option<Pass>,
    #[serde(default)]
    pub bundle: Option<BundleStatus>,
    #[serde(default)]
    pub usb: Option<UsbStatus>,
    #[serde(default)]
    pub signers: Vec<String>,
    #[serde(default)]
    pub catalogs: Vec<CatalogStatus>,
    #[serde(default)]
    pub refused: Vec<Refused>,
}

#[derive(Deserialize)]
pub struct CheckRow {
    pub title: String,
    pub state: String,
    pub found: String,
    pub mend: Option<String>,
}

#[derive(Deserialize)]
pub struct GateRow {
    pub gate: String,
    pub attached: bool,
    pub pinned: bool,
    #[serde(flatten)]
    pub counters: BTreeMap<String, u64>,
}

impl Page {
    /// What is not well, in a line.
    pub fn why(&self) -> String {
        let bad = self.checks.iter().filter(|check| check.state != "ok");
        let told: Vec<_> = bad.map(|check| format!("{}: {}", check.title, check.found)).collect();
        told.join("; ")
    }
}

pub fn status(args: &Args) -> Outcome {
    if let Some(fleet) = args.remote.fleet()? {
        return fleet::status(&fleet, args.json);
    }
    let (text, page) = ask()?;
    output::print(&if args.json { text } else { show(&page) })?;
    Ok(if page.health == "failed" { ExitCode::from(NO) } else { ExitCode::SUCCESS })
}

/// What the agent on this device says, as text and as far as it is shown here.
pub fn ask() -> Result<(String, Page), Failure> {
    let text = client::ask_text(&Request::Status).map_err(|error| match error {
        ClientError::NoAgent => no_agent(),
        error => error.into(),
    })?;
    let page = serde_json::from_str(&text).or_exit(UNAVAILABLE)?;
    Ok((text, page))
}

/// A dead agent may have left its gates in force, which is what a reader must know first.
fn no_agent() -> Failure {
    let error = match pins::all() {
        Ok(folders) if folders.is_empty() => anyhow!("no agent runs and no gates stand"),
        Ok(_) => anyhow!(
            "no agent runs, but the gates that it left are in force; start one again with \
             `portcullis run`, or take the gates down with `portcullis stop`"
        ),
        Err(error) => anyhow!("no agent runs; whether gates stand cannot be seen: {error}"),
    };
    Failure { code: UNAVAILABLE, error }
}

/// For people.
pub fn show(page: &Page) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} · {}{} · policy {} v{} ({} digests)",
        page.health.to_uppercase(),
        page.mode,
        if page.degraded { format!(" · DEGRADED to {}", page.backend) } else { String::new() },
        page.policy.name,
        page.policy.version,
        page.digests,
    );
    let _ = writeln!(
        text,
        "agent {} (pid {}) since {:.0}, {} events\n",
        page.version, page.pid, page.started, page.events
    );
    let mut gates = output::table(&[
        "gate",
        "stands",
        "outlives agent",
        "allowed",
        "would deny",
        "denied",
        "lost events",
    ]);
    for gate in &page.gates {
        let yes = |yes: bool| if yes { "yes" } else { "NO" }.to_owned();
        let count = |name: &str| gate.counters.get(name).map_or("?".into(), u64::to_string);
        gates.add_row([
            gate.gate.clone(),
            yes(gate.attached),
            yes(gate.pinned),
            count("allowed"),
            count("would_deny"),
            count("denied"),
            count("lost"),
        ]);
    }
    let _ = writeln!(text, "{}\n", gates.trim_fmt());
    let _ = match &page.usb {
        None => writeln!(text, "usb: not in the policy, left alone"),
        Some(UsbStatus {
            rules,
            allowed,
            held,
            would_hold,
            refused,
            attached,
            detached,
            overruns,
            lost_attached,
            lost,
        }) => writeln!(
            text,
            "usb: {rules} rules; {allowed} devices are in, {held} are held, {would_hold} would be held; \
             {refused} attempts of others refused; {attached} have come and {detached} have gone, {} times \
             too fast to be told",
            overruns + lost_attached.unwrap_or_default() + lost.unwrap_or_default()
        ),
    };
    if let Some(BundleStatus { sha256, until, .. }) = &page.bundle {
        let _ = match until {
            None => writeln!(text, "from the signed bundle {sha256}"),
            Some(until) => writeln!(
                text,
                "ON TRIAL: from the signed bundle {sha256}, taken back at {until:.0} unless \
                 `portcullis policy confirm` keeps it"
            ),
        };
    }
    for signer in &page.signers {
        let _ = writeln!(text, "trusts signer {signer}");
    }
    for CatalogStatus { file, name, version, digests, withdrawn, signed } in &page.catalogs {
        let taken_back = match withdrawn {
            0 => String::new(),
            more => format!(", {more} taken back"),
        };
        let _ = writeln!(
            text,
            "catalog {name} v{version} ({}): {digests} digests{taken_back}",
            Plain(file)
        );
        for by in signed {
            text.push_str(&output::signed(by, "  "));
        }
    }
    for Refused { path, reason, message } in &page.refused {
        let path = path.display().to_string();
        let _ = writeln!(text, "not in force ({reason}): {}: {}", Plain(&path), Plain(message));
    }
    if !page.signers.is_empty() {
        text.push('\n');
    }
    if let Some(pass) = &page.reappraisal {
        let _ = writeln!(
            text,
            "what runs was read again at {:.0}: {} files ({} MiB), {} of them also from the disk, {} \
             skipped; {} differ\n",
            pass.ended,
            pass.files,
            pass.bytes >> 20,
            pass.from_disk,
            pass.skipped,
            pass.different,
        );
    }
    for sink in page.sinks.iter().filter(|sink| sink.lost > 0 || sink.failing) {
        let state = if sink.failing { "failing" } else { "working again" };
        let _ = writeln!(text, "{}: {} records lost, {state}", sink.name, sink.lost);
    }
    for sink in &page.sinks {
        if let Some(behind) = sink.behind.filter(|behind| *behind > 0) {
            let state = if sink.failing { ", failing" } else { "" };
            let _ = writeln!(text, "{}: {behind} records wait in the spool{state}", sink.name);
        }
    }
    for check in page.checks.iter().filter(|check| check.state != "ok") {
        let _ = writeln!(text, "{}: {}: {}", check.state, check.title, check.found);
        if let Some(mend) = &check.mend {
            let _ = writeln!(text, "  mend: {mend}");
        }
    }
    text
}
