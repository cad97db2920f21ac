//! The same verbs on devices over the network: many at once, with a table of what became of each.

mod look;
mod rollout;
pub mod servers;

use std::{
    fs,
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::anyhow;
use indicatif::ProgressBar;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{BAD_INPUT, Failure, NO, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    api::client::{Ask, AskError, Client, Device},
    event::{
        PolicyId,
        human::{Named, Plain},
    },
};

pub use look::{events, status};
pub use rollout::{Plan, push};

/// Devices somewhere else, and with which certificate they are asked.
#[derive(clap::Args)]
#[command(next_help_heading = "Over the network")]
pub struct Remote {
    /// Do it there instead of here: HOST, HOST:PORT, or NAME=HOST:PORT if the device's certificate is for
    /// NAME. May be given many times
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<Device>,
    /// The same from a file, with one device in each line; what follows a # is a comment
    #[arg(long, value_name = "FILE")]
    devices_file: Option<PathBuf>,
    /// Your certificate, in PEM
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The certificates that sign those of devices, in PEM
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How many devices are asked at once
    #[arg(long, value_name = "NUMBER", default_value = "32", value_parser = clap::value_parser!(u16).range(1..=1000))]
    parallel: u16,
    /// How long a device may take to answer
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = super::push::seconds)]
    timeout: u64,
}

/// Devices, and what asks them.
pub struct Fleet {
    client: Client,
    devices: Vec<Device>,
    parallel: usize,
}

impl Remote {
    /// The devices; none if it is meant to be done here.
    pub fn fleet(&self) -> Result<Option<Fleet>, Failure> {
        let mut devices = self.devices.clone();
        if let Some(file) = &self.devices_file {
            for (line, text) in lines(file)? {
                let device = text.parse::<Device>();
                let device = device.map_err(|error| anyhow!("{}:{line}: {error}", file.display()));
                devices.push(device.or_exit(BAD_INPUT)?);
            }
        }
        let files = [&self.cert, &self.key, &self.ca];
        if devices.is_empty() && (self.devices_file.is_some() || files.iter().any(|f| f.is_some()))
        {
            return Err(anyhow!("no device is named; --device HOST:PORT names one"))
                .or_exit(BAD_INPUT);
        }
        if devices.is_empty() {
            return Ok(None);
        }
        for (index, device) in devices.iter().enumerate() {
            if devices[..index].iter().any(|known| known == device) {
                let error = anyhow!("device {} is named twice", device.shown);
                return Err(error).or_exit(BAD_INPUT);
            }
        }
        let [Some(cert), Some(key), Some(ca)] = files else {
            let error =
                anyhow!("devices are asked with --cert, --key and --ca; docs/fleet-push.md");
            return Err(error).or_exit(BAD_INPUT);
        };
        let client = Client::new(cert, key, ca, Duration::from_secs(self.timeout));
        let client = client.map_err(anyhow::Error::msg).or_exit(BAD_INPUT)?;
        Ok(Some(Fleet { client, devices, parallel: usize::from(self.parallel) }))
    }
}

/// The lines of a file with their numbers, without comments and empty ones.
fn lines(file: &Path) -> Result<Vec<(usize, String)>, Failure> {
    let text = fs::read_to_string(file)
        .map_err(|error| anyhow!("{}: {error}", file.display()))
        .or_exit(BAD_INPUT)?;
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let lines = lines.enumerate().filter(|(_, line)| !line.is_empty());
    Ok(lines.map(|(index, line)| (index + 1, line.to_owned())).collect())
}

/// Waits for what devices answer.
fn wait_for<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.or_exit(UNAVAILABLE)?;
    let done = runtime.block_on(work);
    // A name may still be looked up.
    runtime.shutdown_background();
    Ok(done)
}

impl Fleet {
    /// Does something on each of these devices, so many at once. Answers in the order of the devices.
    async fn each<T, F>(
        &self,
        devices: impl Iterator<Item = &Device>,
        bar: &ProgressBar,
        work: impl Fn(Client, Device) -> F,
    ) -> Vec<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(self.parallel));
        let mut running = JoinSet::new();
        for (index, device) in devices.enumerate() {
            let (asking, bar) = (work(self.client.clone(), device.clone()), bar.clone());
            let places = Arc::clone(&places);
            running.spawn(async move {
                let _place = places.acquire_owned().await;
                let done = asking.await;
                bar.inc(1);
                (index, done)
            });
        }
        let mut all = running.join_all().await;
        all.sort_by_key(|(index, _)| *index);
        all.into_iter().map(|(_, done)| done).collect()
    }
}

/// What became of a device.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// As the operator wrote it.
    device: String,
    /// `done`, `refused`, `worse`, `unreachable`, `not-permitted`, `no-answer`, `away` or `not-tried`.
    result: &'static str,
    /// The policy in force there.
    policy: Option<PolicyId>,
    /// The mode in force there.
    mode: Option<String>,
    /// When it is taken back unless it is confirmed.
    until: Option<Timestamp>,
    /// How it is: `ok`, `warning` or `failed`.
    health: Option<String>,
    /// For people.
    message: Option<String>,
}

/// What a device says that has done something.
#[derive(Deserialize)]
struct Said {
    policy: PolicyId,
    mode: Option<String>,
    until: Option<Timestamp>,
    #[serde(default)]
    warnings: Vec<String>,
}

impl Row {
    fn new(device: &str, result: &'static str) -> Self {
        Self {
            device: device.to_owned(),
            result,
            policy: None,
            mode: None,
            until: None,
            health: None,
            message: None,
        }
    }

    fn of(device: &Device, answer: Result<Said, AskError>) -> Self {
        match answer {
            Ok(Said { policy, mode, until, warnings }) => {
                let message = (!warnings.is_empty()).then(|| warnings.join("; "));
                Self {
                    policy: Some(policy),
                    mode,
                    until,
                    message,
                    ..Self::new(&device.shown, "done")
                }
            }
            Err(error) => Self::failed(device, &error),
        }
    }

    fn failed(device: &Device, error: &AskError) -> Self {
        let result = match error {
            AskError::Refused(refusal) if refusal.code < UNAVAILABLE => "refused",
            AskError::Refused(_) | AskError::Broken(_) => "no-answer",
            AskError::Unreachable(_) => "unreachable",
            AskError::NotPermitted(_) => "not-permitted",
        };
        Self { message: Some(error.to_string()), ..Self::new(&device.shown, result) }
    }

    fn is_bad(&self) -> bool {
        !["done", "not-tried", "away"].contains(&self.result)
    }
}

/// Shows what became of the devices, and says so in the exit code.
fn show(rows: &[Row], as_json: bool) -> Outcome {
    let mut text = String::new();
    if as_json {
        for row in rows {
            text.push_str(&(serde_json::to_string(row).or_exit(BAD_INPUT)? + "\n"));
        }
    } else {
        let mut table = output::table(&[
            "device",
            "result",
            "policy",
            "mode",
            "health",
            "taken back at",
            "why",
        ]);
        for row in rows {
            let policy = row.policy.as_ref().map(|policy| Named(policy).to_string());
            let until = row.until.map(|until| format!("{until:.0}"));
            let [policy, mode, health, until, message] =
                [policy, row.mode.clone(), row.health.clone(), until, row.message.clone()]
                    .map(|text| Plain(&text.unwrap_or_default()).to_string());
            let result = row.result.replace('-', " ");
            table.add_row([row.device.clone(), result, policy, mode, health, until, message]);
        }
        text = format!("{}\n", table.trim_fmt());
        let count = |result: &str| rows.iter().filter(|row| row.result == result).count();
        let (done, not_tried, away) = (count("done"), count("not-tried"), count("away"));
        let bad = rows.len() - done - not_tried - away;
        text.push_str(&format!("{done} done, {bad} not done, {not_tried} not tried"));
        text.push_str(&if away > 0 { format!(", {away} away\n") } else { "\n".into() });
    }
    output::print(&text)?;
    Ok(code(rows))
}

/// 1 if a device says no, or is worse; 3 if one was not reached; 0 if all is done.
fn code(rows: &[Row]) -> ExitCode {
    let any = |results: &[&str]| rows.iter().any(|row| results.contains(&row.result));
    if any(&["refused", "worse"]) {
        ExitCode::from(NO)
    } else if rows.iter().any(Row::is_bad) {
        ExitCode::from(UNAVAILABLE)
    } else {
        ExitCode::SUCCESS
    }
}

/// Asks every device the same, which each answers with its policy.
pub fn ask_all(fleet: &Fleet, what: &'static str, ask: &Ask, as_json: bool) -> Outcome {
    let bar = output::progress(fleet.devices.len() as u64, what);
    let asking = fleet.each(fleet.devices.iter(), &bar, |client, device| {
        let ask = ask.clone();
        async move { Row::of(&device, client.ask_json(&device, &ask).await) }
    });
    let rows = wait_for(asking)?;
    bar.finish_and_clear();
    show(&rows, as_json)
}

#[cfg(test)]
mod tests;
