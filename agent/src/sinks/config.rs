//! What `[[sink]]` in the device's file says: where records go.

use std::{
    io,
    net::ToSocketAddrs,
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use toml::Spanned;

use super::{
    Receiver, audit::Audit, file::RotatedFile, format::Format, journald::Journald, stream::Stream,
    stream::Tls, syslog::Syslog,
};
use crate::policy::{
    bundle::{parse_device_file, placed, read_device_file},
    manifest::is_name,
};

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Where records go.
    pub sinks: Vec<SinkConfig>,
}

impl Config {
    /// Number of the latest record that is in any log on the device; 0 if there is none.
    #[must_use]
    pub fn latest_in_files(&self) -> u64 {
        let in_file = |sink: &SinkConfig| match &sink.to {
            To::File { path, .. } => RotatedFile::latest(path),
            _ => None,
        };
        self.sinks.iter().filter_map(in_file).max().unwrap_or_default()
    }
}

/// One sink.
#[derive(Clone, Debug)]
pub struct SinkConfig {
    /// What it is called in `status`, and how its cursor is called on the disk.
    pub name: String,
    /// Where it sends.
    pub to: To,
    /// In which form.
    pub format: Format,
    /// Only what was or would be refused, or went wrong.
    pub alarms_only: bool,
}

/// Where records are sent.
#[derive(Clone, Debug)]
pub enum To {
    /// To a file that is rotated.
    File {
        /// The file; older parts have a number behind the name.
        path: PathBuf,
        /// Bytes of a part.
        max_bytes: u64,
        /// How many older parts are kept.
        keep: u32,
    },
    /// To the journal of systemd.
    Journald,
    /// To a syslog server.
    Syslog(Address),
    /// To the kernel's audit.
    Audit,
}

/// Where a syslog server is.
#[derive(Clone, Debug)]
pub enum Address {
    /// A socket in the filesystem.
    Local(PathBuf),
    /// A host and port.
    Tcp(String),
    /// The same with TLS.
    Tls(String, Tls),
}

#[derive(Deserialize)]
struct DeviceFile {
    #[serde(default)]
    sink: Vec<Spanned<Table>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wanted {
    #[default]
    All,
    Alarms,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: Spanned<String>,
    #[serde(rename = "type")]
    kind: Spanned<String>,
    format: Option<Format>,
    #[serde(default)]
    events: Wanted,
    path: Option<PathBuf>,
    max_mib: Option<u64>,
    keep: Option<u32>,
    address: Option<Spanned<String>>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    server_name: Option<String>,
}

const HELP: &str = "write name, type and what belongs to the type as in docs/events.md";

impl Config {
    /// Reads the file; without one there are no sinks.
    ///
    /// # Errors
    /// If it is there and cannot be understood, for people.
    pub fn read(path: &Path) -> Result<Self, String> {
        match read_device_file(path)? {
            None => Ok(Self::default()),
            Some(text) => Self::parse(path, &text),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let wrong = |span: Range<usize>, message: String| placed(path, text, span.start, &message);
        let file: DeviceFile = parse_device_file(path, text, HELP)?;
        let mut sinks: Vec<SinkConfig> = Vec::new();
        for table in file.sink {
            let place = table.span();
            let named = table.get_ref().name.clone();
            let name = named.get_ref();
            if !is_name(name) {
                let name = name.escape_debug();
                let message =
                    format!("\"{name}\" is no name; use letters, digits, `-`, `_` and `.`");
                return Err(wrong(named.span(), message));
            }
            if sinks.iter().any(|known| known.name == *name) {
                let message =
                    format!("there is a sink \"{name}\" above already; give it another name");
                return Err(wrong(named.span(), message));
            }
            sinks.push(table.into_inner().sink(&|message| wrong(place.clone(), message))?);
        }
        Ok(Self { sinks })
    }
}

impl Table {
    fn sink(self, wrong: &dyn Fn(String) -> String) -> Result<SinkConfig, String> {
        let kind = self.kind.get_ref().clone();
        let given: &[(&str, bool, &[&str])] = &[
            ("path", self.path.is_some(), &["file"]),
            ("max_mib", self.max_mib.is_some(), &["file"]),
            ("keep", self.keep.is_some(), &["file"]),
            ("address", self.address.is_some(), &["syslog"]),
            ("ca", self.ca.is_some(), &["syslog"]),
            ("certificate", self.certificate.is_some(), &["syslog"]),
            ("key", self.key.is_some(), &["syslog"]),
            ("server_name", self.server_name.is_some(), &["syslog"]),
            ("format", self.format.is_some(), &["file", "syslog", "journald"]),
        ];
        if let Some((member, ..)) =
            given.iter().find(|(_, is_given, kinds)| *is_given && !kinds.contains(&kind.as_str()))
        {
            return Err(wrong(format!(
                "{member} means nothing for a sink of type \"{kind}\"; remove it"
            )));
        }
        let to = match kind.as_str() {
            "file" => self.file(wrong)?,
            "journald" => To::Journald,
            "audit" => To::Audit,
            "syslog" => To::Syslog(self.address(wrong)?),
            other => {
                let other = other.escape_debug();
                let message =
                    format!("unknown type \"{other}\"; it can be file, journald, syslog or audit");
                return Err(wrong(message));
            }
        };
        Ok(SinkConfig {
            name: self.name.into_inner(),
            to,
            format: self.format.unwrap_or_default(),
            alarms_only: self.events == Wanted::Alarms,
        })
    }

    fn file(&self, wrong: &dyn Fn(String) -> String) -> Result<To, String> {
        let path = self.path.clone().filter(|path| path.is_absolute());
        let path =
            path.ok_or_else(|| wrong("name the file with its whole path: path = \"/…\"".into()))?;
        let mib = self.max_mib.unwrap_or(8);
        if !(1..=1024).contains(&mib) {
            return Err(wrong(format!("max_mib = {mib}; it can be 1 to 1024")));
        }
        let keep = self.keep.unwrap_or(4);
        if keep > 100 {
            return Err(wrong(format!("keep = {keep}; it can be 0 to 100")));
        }
        Ok(To::File { path, max_bytes: mib << 20, keep })
    }

    fn address(&self, wrong: &dyn Fn(String) -> String) -> Result<Address, String> {
        let help = "write address = \"unix:/dev/log\", \"tcp:HOST:PORT\" or \"tls:HOST:PORT\"";
        let address =
            self.address.as_ref().ok_or_else(|| wrong(format!("has no address; {help}")))?;
        let (kind, rest) = address.get_ref().split_once(':').unwrap_or_default();
        let has_port = || {
            rest.rsplit_once(':').is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            })
        };
        let has_tls = self.ca.is_some()
            || self.certificate.is_some()
            || self.key.is_some()
            || self.server_name.is_some();
        match kind {
            "unix" | "tcp" if has_tls => {
                Err(wrong("ca, certificate, key and server_name are for tls: addresses".into()))
            }
            "unix" if rest.starts_with('/') => Ok(Address::Local(rest.into())),
            "tcp" if has_port() => Ok(Address::Tcp(rest.into())),
            "tls" if has_port() => {
                let ca = self.ca.clone().ok_or_else(|| {
                    wrong(
                        "name the authority that has signed the server's certificate: ca = \"/…\""
                            .into(),
                    )
                })?;
                let own = match (&self.certificate, &self.key) {
                    (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
                    (None, None) => None,
                    _ => {
                        return Err(wrong(
                            "certificate and key belong together; write both".into(),
                        ));
                    }
                };
                let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
                let server_name = self.server_name.clone();
                let server_name =
                    server_name.unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
                Ok(Address::Tls(rest.into(), Tls { ca, own, server_name }))
            }
            _ => Err(wrong(format!(
                "\"{}\" is no address; {help}",
                address.get_ref().escape_debug()
            ))),
        }
    }
}

impl SinkConfig {
    /// What sends there.
    #[must_use]
    pub fn receiver(&self) -> Box<dyn Receiver> {
        match &self.to {
            To::File { path, max_bytes, keep } => {
                Box::new(RotatedFile::new(path.clone(), *max_bytes, *keep))
            }
            To::Journald => Box::new(Journald::default()),
            To::Audit => Box::new(Audit::default()),
            To::Syslog(Address::Local(path)) => Box::new(Syslog::local(path.clone())),
            To::Syslog(Address::Tcp(address)) => Box::new(Stream::new(address.clone(), None)),
            To::Syslog(Address::Tls(address, tls)) => {
                Box::new(Stream::new(address.clone(), Some(tls.clone())))
            }
        }
    }
}

/// The addresses behind a host and port.
pub(super) fn resolve(address: &str) -> io::Result<Vec<std::net::SocketAddr>> {
    Ok(address.to_socket_addrs()?.collect())
}
