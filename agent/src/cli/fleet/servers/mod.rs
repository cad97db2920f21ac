//! `portcullis fleet`: devices through the servers of a fleet, also those that are away.

mod catalogs;
mod change;
mod look;
pub(super) mod staged;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::anyhow;
use async_nats::ServerAddr;

use super::{Plan, Row, rollout, show, wait_for};
use crate::{
    cli::{BAD_INPUT, Failure, OrExit, Outcome, UNAVAILABLE, output, push::seconds},
    fleet::{
        FleetError, config,
        connect::Files,
        names::{MAX_GROUPS, Target},
        permissions,
        plant::{Plant, Room},
    },
    policy::manifest::is_name,
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// Make what a fleet needs on its servers, or change it
    Prepare(PrepareArgs),
    /// Print the accounts for the servers' configuration: who may do what
    Accounts(AccountsArgs),
    /// Push a bundle stage by stage, and no further than the first stage that goes wrong; devices that are
    /// away put it in force when they come back
    Push(Box<PushArgs>),
    /// Keep what is tried
    Confirm(ConfirmArgs),
    /// Put in force what was before the last push, where that was done
    Rollback(RollbackArgs),
    /// Give devices signed catalogs, which join their policies
    #[command(subcommand)]
    Catalogs(catalogs::Verb),
    /// Show how the devices are, as they said last
    Status(look::StatusArgs),
    /// Show what happened on the devices
    Events(look::EventsArgs),
}

/// The fleet's servers, and with which certificate they are asked.
#[derive(clap::Args)]
#[command(next_help_heading = "Servers")]
pub struct Servers {
    /// A server of the fleet: tls://HOST or tls://HOST:PORT. May be given many times
    #[arg(long = "server", value_name = "SERVER", required = true, value_parser = config::server)]
    servers: Vec<ServerAddr>,
    /// Your certificate, in PEM
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The certificates that sign those of servers, in PEM
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
}

/// Whom it is for.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct For {
    /// All devices of this group
    #[arg(long, value_name = "NAME", value_parser = name)]
    group: Option<String>,
    /// This device
    #[arg(long, value_name = "NAME", value_parser = name)]
    device: Option<String>,
}

/// How long devices are waited for.
#[derive(clap::Args)]
pub struct Patience {
    /// How long devices may take to say that they are there; those that do not are away
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = seconds)]
    presence: u64,
    /// How long a device that is there may take to do it
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = seconds)]
    timeout: u64,
    /// Show the answers of devices as JSON lines
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct PrepareArgs {
    #[command(flatten)]
    servers: Servers,
    /// On how many servers of the cluster everything is kept
    #[arg(long, value_name = "NUMBER", default_value = "3", value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,
    /// Room for bundles, in MiB
    #[arg(long, value_name = "MIB", default_value = "4096")]
    bundles: u32,
    /// Room for catalogs, in MiB
    #[arg(long, value_name = "MIB", default_value = "1024")]
    catalogs: u32,
    /// Room for events, in MiB; the oldest go when it is full
    #[arg(long, value_name = "MIB", default_value = "4096")]
    events: u32,
}

#[derive(clap::Args)]
pub struct AccountsArgs {
    /// The name in an operator's certificate. May be given many times
    #[arg(long = "operator", value_name = "NAME", required = true)]
    operators: Vec<String>,
    /// A device, by the name in its certificate and in its file, with its groups. May be given many times
    #[arg(long = "device", value_name = "NAME[=GROUP,GROUP]", value_parser = member)]
    devices: Vec<Member>,
    /// The same from a file, with one device in each line; what follows a # is a comment
    #[arg(long, value_name = "FILE")]
    devices_file: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct PushArgs {
    /// The bundle, as made by `portcullis policy build` and `sign`
    bundle: PathBuf,
    #[command(flatten)]
    target: For,
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    servers: Servers,
}

#[derive(clap::Args)]
pub struct ConfirmArgs {
    #[command(flatten)]
    target: For,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    servers: Servers,
}

#[derive(clap::Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    target: For,
    /// Why, for the event
    #[arg(long, value_name = "TEXT", default_value = "fleet rollback")]
    because: String,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    servers: Servers,
}

/// A device with its groups.
#[derive(Clone, Debug)]
pub struct Member {
    name: String,
    groups: Vec<String>,
}

fn name(text: &str) -> Result<String, String> {
    let wrong = || "use letters, digits, `-`, `_` and `.`".to_owned();
    is_name(text).then(|| text.to_owned()).ok_or_else(wrong)
}

fn member(text: &str) -> Result<Member, String> {
    let (device, groups) = text.split_once('=').unwrap_or((text, ""));
    let groups: Result<Vec<_>, _> =
        groups.split(',').filter(|group| !group.is_empty()).map(name).collect();
    let groups = groups?;
    if groups.len() > MAX_GROUPS {
        return Err(format!("a device in a fleet is in {MAX_GROUPS} groups at most"));
    }
    Ok(Member { name: name(device)?, groups })
}

impl Servers {
    async fn plant(&self) -> Result<Plant, FleetError> {
        let Self { servers, cert, key, ca } = self;
        let files = Files { certificate: cert.clone(), key: key.clone(), ca: ca.clone() };
        Plant::connect(servers, &files).await
    }
}

impl For {
    fn target(&self) -> Result<Target, Failure> {
        let Self { group, device } = self;
        let group = group.clone().map(Target::Group);
        let target = group.or_else(|| device.clone().map(Target::Device));
        target.ok_or_else(|| anyhow!("name a --group or a --device")).or_exit(BAD_INPUT)
    }
}

impl Patience {
    const fn presence(&self) -> Duration {
        Duration::from_secs(self.presence)
    }

    const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

impl From<FleetError> for Failure {
    fn from(error: FleetError) -> Self {
        let code = if matches!(error, FleetError::Asked { .. }) { UNAVAILABLE } else { BAD_INPUT };
        Self { code, error: error.into() }
    }
}

pub fn fleet(verb: &Verb) -> Outcome {
    match verb {
        Verb::Prepare(args) => prepare(args),
        Verb::Accounts(args) => accounts(args),
        Verb::Push(args) => staged::push(args),
        Verb::Confirm(args) => change::confirm(args),
        Verb::Rollback(args) => change::rollback(args),
        Verb::Catalogs(verb) => catalogs::catalogs(verb),
        Verb::Status(args) => look::status(args),
        Verb::Events(args) => look::events(args),
    }
}

fn prepare(args: &PrepareArgs) -> Outcome {
    let PrepareArgs { servers, replicas, bundles, catalogs, events } = args;
    let room = Room {
        replicas: usize::from(*replicas),
        bundles: u64::from(*bundles) << 20,
        catalogs: u64::from(*catalogs) << 20,
        events: u64::from(*events) << 20,
    };
    wait_for(async { servers.plant().await?.prepare(room).await })??;
    output::print("the servers are ready for the fleet\n")?;
    Ok(ExitCode::SUCCESS)
}

fn accounts(args: &AccountsArgs) -> Outcome {
    let mut devices = args.devices.clone();
    if let Some(file) = &args.devices_file {
        for (line, text) in super::lines(file)? {
            let member = member(&text).map_err(|why| anyhow!("{}:{line}: {why}", file.display()));
            devices.push(member.or_exit(BAD_INPUT)?);
        }
    }
    let users = devices.iter().map(|Member { name, groups }| permissions::user(name, name, groups));
    output::print(&permissions::accounts(&args.operators, &users.collect::<Vec<_>>()))?;
    Ok(ExitCode::SUCCESS)
}
