//! What `[api]` in the device's file says: where the device listens, and who may do what.

use std::{
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
};

use portcullis_common::Digest;
use serde::Deserialize;
use toml::Spanned;

use crate::{
    artifact::digest,
    control::caller::Role,
    policy::bundle::{parse_device_file, placed, read_device_file},
};

/// Who runs the door, where nobody else is named.
pub const USER: &str = "portcullis-network";

/// Where the device's door to the network listens, and who may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The address and port.
    pub listen: SocketAddr,
    /// The device's certificate, and those above it, in PEM.
    pub certificate: PathBuf,
    /// Its private key in PEM.
    pub key: PathBuf,
    /// The certificates that sign those of clients, in PEM.
    pub client_ca: PathBuf,
    /// The user who runs the door.
    pub user: String,
    /// Whose certificate has which role. The first that fits decides.
    pub clients: Vec<Client>,
}

/// A certificate with its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// A name in it.
    pub name: Option<String>,
    /// SHA-256 of it.
    pub fingerprint: Option<Digest>,
    /// What its holder may do.
    pub role: Role,
}

/// The file as far as it is of interest here.
#[derive(Deserialize)]
struct DeviceFile {
    api: Option<Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    listen: Spanned<String>,
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    user: Option<String>,
    #[serde(default)]
    client: Vec<Spanned<ClientTable>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientTable {
    name: Option<String>,
    fingerprint: Option<Spanned<String>>,
    role: Spanned<String>,
}

const HELP: &str = "write listen, certificate, key, client_ca and [[api.client]] as in \
                    docs/fleet-push.md";

impl Config {
    /// Reads the file; none if it does not ask for a port.
    ///
    /// # Errors
    /// If it asks for one and cannot be understood, for people.
    pub fn read(path: &Path) -> Result<Option<Self>, String> {
        match read_device_file(path)? {
            None => Ok(None),
            Some(text) => Self::parse(path, &text),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Option<Self>, String> {
        let wrong = |span: Range<usize>, message: String| placed(path, text, span.start, &message);
        let file: DeviceFile = parse_device_file(path, text, HELP)?;
        let Some(table) = file.api else { return Ok(None) };
        let place = table.span();
        let Table { listen, certificate, key, client_ca, user, client } = table.into_inner();
        let address = listen.get_ref().parse().map_err(|_| {
            wrong(
                listen.span(),
                format!(
                    "\"{}\" is no address with a port; write \"0.0.0.0:7443\" or \"[::]:7443\"",
                    listen.get_ref().escape_debug()
                ),
            )
        })?;
        for path in [&certificate, &key, &client_ca] {
            if !path.is_absolute() {
                let message = format!("{}: write the whole path", path.display());
                return Err(wrong(place, message));
            }
        }
        if client.is_empty() {
            let message = "nobody may use it; name a certificate with [[api.client]] name = \"…\" and \
                           role = \"…\"";
            return Err(wrong(place, message.into()));
        }
        let mut clients: Vec<Client> = Vec::new();
        for table in client {
            let place = table.span();
            let client = Client::of(table.into_inner(), &wrong, place.clone())?;
            let same = |known: &&Client| {
                known.name == client.name && known.fingerprint == client.fingerprint
            };
            if clients.iter().any(|known| same(&known)) {
                let message = "the same certificate stands above already; remove one of them";
                return Err(wrong(place, message.into()));
            }
            clients.push(client);
        }
        let user = user.unwrap_or_else(|| USER.to_owned());
        Ok(Some(Self { listen: address, certificate, key, client_ca, user, clients }))
    }

    /// The entry for a certificate with these names.
    #[must_use]
    pub fn client(&self, names: &[String], fingerprint: &Digest) -> Option<&Client> {
        self.clients.iter().find(|client| {
            client.name.as_ref().is_none_or(|name| names.contains(name))
                && client.fingerprint.as_ref().is_none_or(|wanted| wanted == fingerprint)
        })
    }
}

impl Client {
    fn of(
        table: ClientTable,
        wrong: &dyn Fn(Range<usize>, String) -> String,
        place: Range<usize>,
    ) -> Result<Self, String> {
        let ClientTable { name, fingerprint, role } = table;
        let named = |word: &str| Role::ALL.into_iter().find(|role| role.word() == word);
        let known = named(role.get_ref()).ok_or_else(|| {
            let words: Vec<_> = Role::ALL.iter().map(|role| role.word()).collect();
            let word = role.get_ref().escape_debug();
            wrong(role.span(), format!("unknown role \"{word}\"; it can be {}", words.join(", ")))
        })?;
        // As openssl writes it, too.
        let parse = |text: &str| digest::parse(&text.replace(':', "").to_lowercase());
        let digest = fingerprint.as_ref().map(|text| {
            parse(text.get_ref()).map_err(|_| {
                let message = "a fingerprint is the SHA-256 of the certificate; `openssl x509 -noout \
                               -fingerprint -sha256 -in FILE` shows it";
                wrong(text.span(), message.into())
            })
        });
        if name.as_ref().is_none_or(|name| name.is_empty()) && fingerprint.is_none() {
            let message = "it fits every certificate; give it a name or a fingerprint";
            return Err(wrong(place, message.into()));
        }
        Ok(Self { name, fingerprint: digest.transpose()?, role: known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"pump-3\"\n[api]\nlisten = \"0.0.0.0:7443\"\ncertificate = \
                        \"/etc/c.pem\"\nkey = \"/etc/k.pem\"\nclient_ca = \"/etc/ca.pem\"\n\
                        [[api.client]]\nname = \"ann\"\nrole = \"policy-admin\"\n";

    fn read(text: &str) -> Result<Option<Config>, String> {
        Config::parse(Path::new("device.toml"), text)
    }

    #[test]
    fn without_a_word_there_is_no_port() {
        assert_eq!(read("name = \"pump-3\"\n"), Ok(None));
        assert_eq!(Config::read(Path::new("/nowhere/device.toml")), Ok(None));
    }

    #[test]
    fn certificates_have_roles() {
        let print = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let text = format!(
            "{GOOD}[[api.client]]\nfingerprint = \"{colons}\"\nrole = \"viewer\"\n[[api.client]]\n\
             name = \"bob\"\nfingerprint = \"{print}\"\nrole = \"operator\"\n"
        );
        let config = read(&text).expect("good").expect("asked for");
        let role = |names: &[&str], fingerprint| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            config.client(&names, &fingerprint).map(|client| client.role)
        };
        assert_eq!(role(&["ann"], [0; 32]), Some(Role::PolicyAdmin));
        assert_eq!(role(&["x", "ann"], [0; 32]), Some(Role::PolicyAdmin));
        assert_eq!(role(&["eve"], [0; 32]), None);
        assert_eq!(role(&["bob"], [0; 32]), None, "another certificate of the same name");
        assert_eq!(role(&["bob"], [0xab; 32]), Some(Role::Viewer), "the first that fits");
        assert_eq!(role(&[], [0xab; 32]), Some(Role::Viewer));
        assert_eq!(role(&["an", "anna", ""], [0; 32]), None);
    }

    #[test]
    fn mistakes_are_placed_and_mended() {
        let cases = [
            ("0.0.0.0:7443", "7443", "device.toml:3: \"7443\" is no address"),
            ("policy-admin", "root", "device.toml:9: unknown role \"root\"; it can be viewer"),
            ("name = \"ann\"", "fingerprint = \"12\"", "device.toml:8: a fingerprint is"),
            ("name = \"ann\"\n", "", "device.toml:7: it fits every certificate"),
            ("/etc/c.pem", "c.pem", "device.toml:2: c.pem: write the whole path"),
            ("listen", "port", "device.toml:3: unknown field `port`"),
            ("key = \"/etc/k.pem\"\n", "", "device.toml:2: missing field `key`"),
        ];
        for (word, other, expected) in cases {
            let error = read(&GOOD.replace(word, other)).expect_err(expected);
            assert!(error.starts_with(expected), "{error}");
        }
        let (head, _) = GOOD.split_once("[[api.client]]").expect("a client");
        assert!(read(head).expect_err("nobody").contains("nobody may use it"));
        let twice = format!("{GOOD}[[api.client]]\nname = \"ann\"\nrole = \"viewer\"\n");
        assert!(read(&twice).expect_err("twice").starts_with("device.toml:10: the same"));
    }
}
