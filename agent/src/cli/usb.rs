//! `portcullis usb`

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    process::ExitCode,
};

use indicatif::ProgressBar;

use super::{BAD_INPUT, Failure, NO, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    control::{
        Request, UsbAnswer,
        client::{self, ClientError},
    },
    event::{
        PolicyId,
        human::Plain,
        usb::{UsbChange, UsbDevice},
    },
    policy::Policy,
    usb::{
        device::DEVICES,
        preflight,
        rules::{Action, Order, Rules, rule_for},
    },
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Show every device, and what became of it
    List(ListArgs),
    /// Show devices as they come and go, until interrupted
    Watch(WatchArgs),
    /// Let a device in until it is unplugged or the agent starts again
    AllowOnce(AllowArgs),
    /// Show what a device is, why it is in or not, and the rule that would let it in
    Explain(ExplainArgs),
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// Judge by this policy file, without an agent and without changing anything
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct WatchArgs {
    /// As JSON lines (docs/events.md)
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct AllowArgs {
    /// Where it is plugged, as `portcullis usb list` shows it: 1-2
    port: String,
}

#[derive(clap::Args)]
pub struct ExplainArgs {
    /// Where it is plugged, as `portcullis usb list` shows it: 1-2
    port: String,
    /// Judge by this policy file, without an agent and without changing anything
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

pub fn usb(verb: &Verb) -> Outcome {
    match verb {
        Verb::List(args) => list(args),
        Verb::Watch(args) => watch(args),
        Verb::AllowOnce(args) => allow_once(args),
        Verb::Explain(args) => explain(args),
    }
}

fn list(args: &ListArgs) -> Outcome {
    let answer = devices(args.policy.as_deref())?;
    if args.json {
        let text = serde_json::to_string(&answer).or_exit(UNAVAILABLE)?;
        output::print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::table(&["port", "state", "id", "kind", "name", "serial", "why"]);
    for change in &answer.devices {
        let device = &change.device;
        table.add_row([
            device.port.clone(),
            change.state.clone(),
            device.id.clone(),
            device.kinds.clone(),
            Plain(&device.name).to_string(),
            Plain(device.serial.as_deref().unwrap_or("-")).to_string(),
            Plain(&change.why()).to_string(),
        ]);
    }
    let mut text = if answer.devices.is_empty() {
        "no USB device is plugged in\n".to_owned()
    } else {
        format!("{}\n", table.trim_fmt())
    };
    if !answer.judged {
        text.push_str("the policy says nothing about USB: everything comes alive\n");
    }
    let rules: Vec<_> = answer.devices.iter().filter_map(|one| one.to_allow.as_deref()).collect();
    if answer.judged && !rules.is_empty() {
        text.push_str(&format!(
            "\nto let in what is not, add to the policy:\n\n{}",
            rules.join("\n")
        ));
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What the agent knows, or what a policy file says of what is there.
fn devices(policy: Option<&Path>) -> Result<UsbAnswer, Failure> {
    if let Some(file) = policy {
        let policy = Policy::load(file, &ProgressBar::hidden()).or_exit(BAD_INPUT)?;
        return Ok(judged_by(policy.usb.as_deref(), &policy.name, policy.version));
    }
    match client::ask_json::<UsbAnswer>(&Request::Usb) {
        Ok(answer) if answer.judged => Ok(answer),
        Ok(_) | Err(ClientError::NoAgent) => Ok(judged_by(None, "", 0)),
        Err(error) => Err(error.into()),
    }
}

fn judged_by(rules: Option<&Rules>, name: &str, version: u64) -> UsbAnswer {
    let policy = PolicyId { name: name.into(), version, generation: 0 };
    let nothing = Rules { default: Action::Allow, order: Order::default(), rules: Vec::new() };
    let found = preflight::judged(Path::new(DEVICES), rules.unwrap_or(&nothing));
    let devices = found.iter().map(|(device, verdict)| {
        let state = match (rules, verdict.action) {
            (None, _) if device.authorized => "alive",
            (None, _) => "held",
            (Some(_), Action::Allow) => "allowed",
            (Some(_), Action::Hold) => "would-hold",
            (Some(_), Action::Reject) => "would-reject",
        };
        let rule = verdict.rule.and_then(|rule| rules?.rules.get(rule));
        let is_in = rules.is_some() && verdict.action == Action::Allow;
        UsbChange {
            state: state.into(),
            reason: if rules.is_some() { verdict.reason } else { "no policy judges it" }.into(),
            line: rule.map(|rule| rule.line),
            error: None,
            by: None,
            to_allow: if is_in { None } else { rule_for(device) },
            untold: None,
            policy: policy.clone(),
            device: UsbDevice::from(device),
        }
    });
    let mode = if rules.is_some() { "audit" } else { "none" }.into();
    UsbAnswer { mode, judged: rules.is_some(), devices: devices.collect(), policy: policy.clone() }
}

fn watch(args: &WatchArgs) -> Outcome {
    // What is already over is of no interest to who watches.
    for (index, line) in
        client::ask(&Request::Events { follow: true, json: true })?.lines().enumerate()
    {
        let line = line.or_exit(UNAVAILABLE)?;
        if index == 0 {
            client::check_refusal(&line)?;
        }
        let Ok(event) = serde_json::from_str::<serde_json::Value>(&line) else { continue };
        let is_usb = event["type"] == "usb" || event["gate"] == "usb";
        if !is_usb {
            continue;
        }
        let shown = match serde_json::from_value::<UsbChange>(event.clone()) {
            Ok(change) if !args.json => {
                format!("{} {change}", event["time"].as_str().unwrap_or_default())
            }
            _ if !args.json => attempt(&event),
            _ => line,
        };
        output::print(&format!("{shown}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// An attempt of somebody else to let a device in.
fn attempt(event: &serde_json::Value) -> String {
    let text = |value: &serde_json::Value| Plain(value.as_str().unwrap_or_default()).to_string();
    format!(
        "{} usb {} write to {} by {} (pid {})",
        text(&event["time"]),
        text(&event["outcome"]),
        text(&event["artifact"]["path"]),
        text(&event["process"]["comm"]),
        event["process"]["pid"],
    )
}

fn allow_once(args: &AllowArgs) -> Outcome {
    let change: UsbChange = client::ask_json(&Request::UsbAllowOnce { port: args.port.clone() })?;
    output::print(&format!("{change}\n"))?;
    Ok(if change.error.is_some() { ExitCode::from(NO) } else { ExitCode::SUCCESS })
}

fn explain(args: &ExplainArgs) -> Outcome {
    let answer = devices(args.policy.as_deref())?;
    let Some(change) = answer.devices.iter().find(|change| change.device.port == args.port) else {
        let error = anyhow::anyhow!(
            "no USB device at {}; `portcullis usb list` shows those that are there",
            args.port.escape_debug()
        );
        return Err(Failure { code: BAD_INPUT, error });
    };
    output::print(&explained(change))?;
    let is_in = matches!(change.state.as_str(), "allowed" | "alive");
    Ok(if is_in { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn explained(change: &UsbChange) -> String {
    let device = &change.device;
    let mut text = format!("{}: {}\n", device.port, change.state);
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {name}: {}\n", Plain(value)));
        }
    };
    line("why", &change.why());
    line("error", change.error.as_deref().unwrap_or_default());
    line("vendor and product", &device.id);
    line("manufacturer", &device.manufacturer);
    line("name", &device.name);
    line("serial", device.serial.as_deref().unwrap_or("none"));
    line("device class", device.class.as_deref().unwrap_or("unknown"));
    line("interfaces", &format!("{} ({})", device.interfaces.join(" "), device.kinds));
    line("descriptors", &device.descriptors);
    line("connected", &device.connect);
    line("speed", &format!("{} Mbit/s", device.speed));
    line("drivers may have it", if device.authorized { "yes" } else { "no" });
    if let Some(rule) = &change.to_allow {
        text.push_str(&format!("to let it in, add to the policy:\n\n{rule}"));
    }
    text
}
