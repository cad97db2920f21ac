//! `portcullis fleet-link`: the process without privilege that speaks with the fleet's servers.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::anyhow;

use super::{BAD_INPUT, OrExit, Outcome, UNAVAILABLE, output};
use crate::{
    api::local,
    confine::{Kept, confine},
    fleet::{
        config::Config,
        connect::Files,
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
    confined(&config, args);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    runtime.or_exit(UNAVAILABLE)?.block_on(run(config, &args.socket, &args.folder))
}

/// What is needed to find a server by its name: how names are resolved here, and the libraries that do it.
const NAMES: [&str; 6] =
    ["/etc", "/lib", "/usr/lib", "/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"];

/// Where systems keep the certificates of public authorities. The vendor's client reads them at each
/// connection, and does not connect if it cannot, although none of them is trusted here.
const PUBLIC: [&str; 5] = [
    "/etc/ssl",
    "/etc/pki",
    "/usr/lib/ssl",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
];

/// The port of name servers, for answers that are too long for a datagram.
const NAMES_PORT: u16 = 53;

/// Keeps this process from everything else before it hears a word of others.
fn confined(config: &Config, args: &Args) {
    let Files { certificate, key, ca } = &config.files;
    let names = config.servers.iter().any(|server| server.host().parse::<IpAddr>().is_err());
    let names: Vec<_> = NAMES.iter().filter(|_| names).map(Path::new).collect();
    let files = [certificate.as_path(), key, ca];
    let public = PUBLIC.map(Path::new);
    let sockets = args.socket.parent();
    let ports = config.servers.iter().map(|server| server.port());
    let ports: Vec<_> = ports.chain((!names.is_empty()).then_some(NAMES_PORT)).collect();
    output::confined(confine(Kept {
        read: &[&names[..], &files, &public].concat(),
        own: &[&args.folder],
        sockets: &[sockets.as_slice(), &names].concat(),
        listens: &[],
        connects: &ports,
    }));
}

async fn run(config: Config, socket: &Path, folder: &Path) -> Outcome {
    let link = Link::new(config, socket, folder, Pace::default()).await?;
    // Whoever waits for it, waits until it works and not until there are servers. Without a manager there
    // is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    link.run().await?;
    Ok(ExitCode::SUCCESS)
}
