//! `portcullis network-door`: the process without privilege at which operators arrive over the network.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;

use super::{BAD_INPUT, NO, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    api::{config::Config, network},
    confine::{Kept, confine},
    door::{self, permit::permit},
    policy::bundle::DEVICE_FILE,
};

#[derive(clap::Args)]
pub struct Args {
    /// The device's file
    #[arg(long, value_name = "FILE", default_value = DEVICE_FILE)]
    device_file: PathBuf,
    /// The agent's socket for it
    #[arg(long, value_name = "SOCKET", default_value = network::SOCKET)]
    socket: PathBuf,
    /// Say only whether there is anything to do: 1 if the device's file has no `[api]`
    #[arg(long, conflicts_with = "permit")]
    is_wanted: bool,
    /// As root: let its user read the device's file, certificate and key as far as they lie in
    /// `/etc/portcullis` and are root's alone, and say what is left to do
    #[arg(long)]
    permit: bool,
}

pub fn network_door(args: &Args) -> Outcome {
    let file = &args.device_file;
    if args.is_wanted {
        return Ok(is_wanted(file));
    }
    if args.permit {
        return let_it_read(file);
    }
    if rustix::process::geteuid().is_root() {
        let error = anyhow!(
            "what comes from the network is not for root to read; systemctl start portcullis-network runs \
             this as a user of its own"
        );
        return Err(error).or_exit(UNAVAILABLE);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    let runtime = runtime.or_exit(UNAVAILABLE)?;
    // Nobody waits for an address that comes up later, or for a file to be mended: `portcullis status` tells
    // of that. Without a manager there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    // It has read its files then, and asks the agent at its socket for the rest.
    let confined = |config: &Config| {
        let sockets = args.socket.parent();
        let kept = Kept {
            sockets: sockets.as_slice(),
            listens: &[config.listen.port()],
            ..Kept::default()
        };
        output::confined(confine(kept));
    };
    runtime.block_on(door::run(file, &args.socket, confined));
    Err(nothing_to_do(file)).or_exit(BAD_INPUT)
}

fn nothing_to_do(file: &Path) -> anyhow::Error {
    anyhow!(
        "there is nothing to do: {} has no [api], so that nobody reaches this device over the network; \
         docs/fleet-push.md says what to write there",
        file.display()
    )
}

/// What cannot be read is told when it is opened, to the agent too.
fn is_wanted(file: &Path) -> ExitCode {
    match Config::read(file) {
        Ok(None) => {
            output::error(&nothing_to_do(file).to_string());
            ExitCode::from(NO)
        }
        Ok(Some(_)) | Err(_) => ExitCode::SUCCESS,
    }
}

fn let_it_read(file: &Path) -> Outcome {
    let (done, left) = permit(file).map_err(anyhow::Error::msg).or_exit(BAD_INPUT)?;
    for line in &done {
        output::note(line);
    }
    for line in &left {
        output::error(line);
    }
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}
