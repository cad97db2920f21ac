//! `portcullis fleet-link`: the process without privilege that speaks with the fleet's servers.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;

use super::{BAD_INPUT, OrExit, Outcome, UNAVAILABLE};
use crate::{
    api::local,
    fleet::{
        config::Config,
        link::{Link, Pace},
    },
    policy::bundle::DEVICE_FILE,
};

#[derive(clap::Args)]
pub struct Args {
    /// The device's file
    #[arg(long, value_name = "FILE", default_value = DEVICE_FILE)]
    device_file: PathBuf,
    /// The agent's socket for it
    #[arg(long, value_name = "SOCKET", default_value = local::SOCKET)]
    socket: PathBuf,
    /// Where it keeps what it has done
    #[arg(long, value_name = "FOLDER", default_value = "/var/lib/portcullis-fleet")]
    folder: PathBuf,
}

pub fn fleet_link(args: &Args) -> Outcome {
    let config = Config::read(&args.device_file).map_err(anyhow::Error::msg).or_exit(BAD_INPUT)?;
    let config = config
        .ok_or_else(|| {
            let file = args.device_file.display();
            anyhow!("{file}: names no servers; write [fleet] as in docs/fleet.md")
        })
        .or_exit(BAD_INPUT)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.or_exit(UNAVAILABLE)?.block_on(run(config, &args.socket, &args.folder))
}

async fn run(config: Config, socket: &Path, folder: &Path) -> Outcome {
    let link = Link::new(config, socket, folder, Pace::default()).await?;
    // Whoever waits for it, waits until it works and not until there are servers. Without a manager there
    // is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    link.run().await?;
    Ok(ExitCode::SUCCESS)
}
