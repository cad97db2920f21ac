//! What `[fleet]` in the device's file says: which servers, and with which certificate.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use async_nats::ServerAddr;
use serde::Deserialize;
use toml::Spanned;

use super::{connect::Files, names::MAX_GROUPS};
use crate::policy::bundle::{Device, parse_device_file, placed, read_device_file};

/// Who runs the link, where nobody else is named.
pub const USER: &str = "portcullis-fleet";

/// Servers that may be named.
const MAX_SERVERS: usize = 16;

/// Which servers the device speaks with, and as whom.
#[derive(Clone, Debug)]
pub struct Config {
    /// The device's name.
    pub device: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// The servers of a cluster, of which one is enough.
    pub servers: Vec<ServerAddr>,
    /// The device's certificate, and whose certificates servers have.
    pub files: Files,
    /// The user who runs the link.
    pub user: String,
    /// Whether events are sent.
    pub events: bool,
}

/// The file as far as it is of interest here.
#[derive(Deserialize)]
struct DeviceFile {
    fleet: Option<Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    servers: Spanned<Vec<Spanned<String>>>,
    certificate: PathBuf,
    key: PathBuf,
    ca: PathBuf,
    user: Option<String>,
    events: Option<bool>,
}

const HELP: &str = "write servers, certificate, key and ca as in docs/fleet.md";

/// A server as people write it.
///
/// # Errors
/// If it is none, for people.
pub fn server(text: &str) -> Result<ServerAddr, String> {
    let wrong = || {
        let text = text.escape_debug();
        format!("\"{text}\" is no server; write tls://HOST or tls://HOST:PORT")
    };
    let address: ServerAddr = text.parse().map_err(|_| wrong())?;
    let is_good = matches!(address.scheme(), "tls" | "nats")
        && !address.host().is_empty()
        && !address.has_user_pass();
    is_good.then_some(address).ok_or_else(wrong)
}

impl Config {
    /// Reads the file; none if it names no servers.
    ///
    /// # Errors
    /// If it does and cannot be understood, for people.
    pub fn read(path: &Path) -> Result<Option<Self>, String> {
        match read_device_file(path)? {
            None => Ok(None),
            Some(text) => Self::parse(path, &text),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Option<Self>, String> {
        let wrong = |span: Range<usize>, message: String| placed(path, text, span.start, &message);
        let file: DeviceFile = parse_device_file(path, text, HELP)?;
        let Some(table) = file.fleet else { return Ok(None) };
        let place = table.span();
        let Table { servers, certificate, key, ca, user, events } = table.into_inner();
        for path in [&certificate, &key, &ca] {
            if !path.is_absolute() {
                return Err(wrong(place, format!("{}: write the whole path", path.display())));
            }
        }
        if !(1..=MAX_SERVERS).contains(&servers.get_ref().len()) {
            return Err(wrong(servers.span(), format!("name 1 to {MAX_SERVERS} servers")));
        }
        let servers = servers.into_inner().into_iter();
        let servers: Result<_, _> = servers
            .map(|text| server(text.get_ref()).map_err(|why| wrong(text.span(), why)))
            .collect();
        let Device { name, groups } = Device::parse(path, text)?;
        let device = name.ok_or_else(|| {
            let message = "a device needs a name to be found in a fleet; write name = \"pump-3\" at the \
                           top of the file";
            wrong(place.clone(), message.into())
        })?;
        if groups.len() > MAX_GROUPS {
            return Err(wrong(
                place,
                format!("a device in a fleet is in {MAX_GROUPS} groups at most"),
            ));
        }
        Ok(Some(Self {
            device,
            groups,
            servers: servers?,
            files: Files { certificate, key, ca },
            user: user.unwrap_or_else(|| USER.to_owned()),
            events: events.unwrap_or(true),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"pump-3\"\ngroups = [\"plant-7\"]\n[fleet]\nservers = \
                        [\"tls://nats-1.plant:4222\", \"tls://10.0.0.2\"]\ncertificate = \
                        \"/etc/c.pem\"\nkey = \"/etc/k.pem\"\nca = \"/etc/ca.pem\"\n";

    fn read(text: &str) -> Result<Option<Config>, String> {
        Config::parse(Path::new("device.toml"), text)
    }

    #[test]
    fn servers_are_named() {
        assert!(read("name = \"pump-3\"\n").expect("good").is_none());
        let config = read(GOOD).expect("good").expect("asked for");
        assert_eq!((config.device.as_str(), config.groups.len()), ("pump-3", 1));
        let ports: Vec<_> = config.servers.iter().map(|server| server.port()).collect();
        assert_eq!((ports, config.user.as_str(), config.events), (vec![4222, 4222], USER, true));
    }

    #[test]
    fn mistakes_are_placed_and_mended() {
        let cases = [
            ("tls://10.0.0.2", "ws://10.0.0.2", "device.toml:4: \"ws://10.0.0.2\" is no server"),
            ("tls://10.0.0.2", "tls://a:b@10.0.0.2", "device.toml:4: \"tls://a:b@10.0.0.2\" is no"),
            ("/etc/c.pem", "c.pem", "device.toml:3: c.pem: write the whole path"),
            ("ca =", "port =", "device.toml:7: unknown field `port`"),
            ("key = \"/etc/k.pem\"\n", "", "device.toml:3: missing field `key`"),
            ("name = \"pump-3\"\n", "", "device.toml:2: a device needs a name"),
            ("pump-3", "pump 3", "device.toml: \"pump 3\" is no name"),
        ];
        for (word, other, expected) in cases {
            let error = read(&GOOD.replace(word, other)).map(|_| ()).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
