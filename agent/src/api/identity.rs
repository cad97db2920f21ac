//! Whose certificate it is.

use std::net::SocketAddr;

use const_oid::db::rfc4519;
use der::{
    Decode,
    asn1::{PrintableStringRef, Utf8StringRef},
};
use portcullis_common::Digest;
use sha2::{Digest as _, Sha256};
use x509_cert::{
    Certificate,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::config::Config;
use crate::{artifact::digest, control::caller::Peer};

/// Characters of a name that are shown.
const SHOWN: usize = 128;

/// The names in a certificate: of hosts, of mailboxes, and at last its common name.
#[must_use]
pub fn names(certificate: &[u8]) -> Vec<String> {
    let Ok(certificate) = Certificate::from_der(certificate) else { return Vec::new() };
    let tbs = certificate.tbs_certificate();
    let mut names = Vec::new();
    if let Ok(Some((_, alternative))) = tbs.get_extension::<SubjectAltName>() {
        for name in alternative.0 {
            match name {
                GeneralName::DnsName(name) => names.push(name.to_string()),
                GeneralName::Rfc822Name(name) => names.push(name.to_string()),
                _ => {}
            }
        }
    }
    for part in tbs.subject().iter().filter(|part| part.oid == rfc4519::COMMON_NAME) {
        let text = part.value.decode_as::<Utf8StringRef<'_>>().map(|text| text.to_string());
        let text = text.or_else(|_| {
            part.value.decode_as::<PrintableStringRef<'_>>().map(|text| text.to_string())
        });
        names.extend(text);
    }
    names
}

/// Who holds a certificate that the TLS library has verified.
#[must_use]
pub fn peer(certificate: &[u8], address: SocketAddr, config: &Config) -> Peer {
    let fingerprint: Digest = Sha256::digest(certificate).into();
    let names = names(certificate);
    let client = config.client(&names, &fingerprint);
    let name = client.and_then(|client| client.name.as_ref()).or(names.first());
    Peer {
        name: name.map_or_else(String::new, |name| name.chars().take(SHOWN).collect()),
        fingerprint: digest::format(&fingerprint),
        role: client.map(|client| client.role),
        address,
    }
}
