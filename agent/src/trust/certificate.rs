//! X.509 certificates: what a signature's judge asks of one.

mod twin;

use std::time::Duration;

use const_oid::{
    ObjectIdentifier,
    db::{rfc4519, rfc5280, rfc5912},
};
use der::{Decode, Encode, pem};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use sha2::{Digest, Sha256};
use thiserror::Error;
#[cfg(test)]
pub use twin::other_form;
use x509_cert::{
    ext::pkix::{
        BasicConstraints, ExtendedKeyUsage, KeyUsage, NameConstraints, SubjectKeyIdentifier,
    },
    name::Name,
    serial_number::SerialNumber,
    time::Time,
};

use super::{
    algorithm::AlgorithmError,
    key::{KeyError, MAX_KEY_BYTES, PublicKey},
};

/// The extensions that are understood here or by the library that validates chains. A critical one
/// that is not among them must be refused (RFC 5280, 4.2).
const UNDERSTOOD: [ObjectIdentifier; 6] = [
    rfc5280::ID_CE_KEY_USAGE,
    rfc5280::ID_CE_SUBJECT_ALT_NAME,
    rfc5280::ID_CE_BASIC_CONSTRAINTS,
    rfc5280::ID_CE_NAME_CONSTRAINTS,
    rfc5280::ID_CE_CRL_DISTRIBUTION_POINTS,
    rfc5280::ID_CE_EXT_KEY_USAGE,
];

/// A certificate: its bytes, and what they say.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: Vec<u8>,
    key: Result<PublicKey, KeyError>,
    fingerprint: [u8; 32],
    subject: Name,
    subject_der: Vec<u8>,
    issuer: Name,
    issuer_der: Vec<u8>,
    serial: SerialNumber,
    signature_algorithm: spki::AlgorithmIdentifierOwned,
    not_before: Timestamp,
    not_after: Timestamp,
    key_usage: Option<KeyUsage>,
    extended_key_usage: Option<Vec<ObjectIdentifier>>,
    basic_constraints: Option<BasicConstraints>,
    subject_key_identifier: Option<Vec<u8>>,
    has_name_constraints: bool,
    unknown_critical: Option<ObjectIdentifier>,
}

/// Why a file is no certificate.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CertificateError {
    /// It is not what it should be.
    #[error("no certificate: {0}")]
    Malformed(String),
    /// More than one certificate.
    #[error("{0} certificates in one file")]
    Several(usize),
    /// The key in it is not accepted.
    #[error("the certificate of {subject} holds {error}")]
    Key {
        /// Whose certificate it is.
        subject: String,
        /// What is wrong with its key.
        error: KeyError,
    },
}

impl CertificateError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Malformed(_) => {
                Some("give it as `openssl x509` writes it (`CERTIFICATE`), or in DER".into())
            }
            Self::Several(_) => Some("give each its own file".into()),
            Self::Key { error, .. } => error.help(),
        }
    }
}

/// A certificate of a chain, for showing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateInfo {
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its number at its issuer, in hexadecimal.
    pub serial: String,
    /// The SHA-256 of its DER, in hexadecimal.
    pub fingerprint: String,
    /// What that would be if its signature were written in the other way that ECDSA leaves.
    #[serde(skip)]
    pub other_fingerprints: Vec<String>,
    /// When it expires.
    pub not_after: Timestamp,
}

impl Certificate {
    /// Reads one certificate in PEM (`CERTIFICATE`) or DER. Its key may be of any kind; whoever
    /// verifies with it asks for [`key`](Self::key).
    ///
    /// # Errors
    /// If it is no certificate, or more than one.
    pub fn read(bytes: &[u8]) -> Result<Self, CertificateError> {
        if bytes.len() > MAX_KEY_BYTES {
            return Err(CertificateError::Malformed(format!("{} bytes", bytes.len())));
        }
        let bytes = bytes.trim_ascii_start();
        if !bytes.starts_with(b"-----BEGIN ") {
            return Self::from_der(bytes);
        }
        let begins = b"-----BEGIN ";
        let count = bytes.windows(begins.len()).filter(|window| window == begins).count();
        if count > 1 {
            return Err(CertificateError::Several(count));
        }
        let (label, der) = pem::decode_vec(bytes.trim_ascii_end())
            .map_err(|error| CertificateError::Malformed(format!("unreadable PEM: {error}")))?;
        if label != "CERTIFICATE" {
            return Err(CertificateError::Malformed(format!("PEM of a `{label}`")));
        }
        Self::from_der(&der)
    }

    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_der(bytes: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |error: der::Error| CertificateError::Malformed(error.to_string());
        let parsed = x509_cert::Certificate::from_der(bytes).map_err(malformed)?;
        let certificate = Self::from_parsed(&parsed).map_err(malformed)?;
        // The parser forgives some ways to write a time. What is shown, compared and revoked must
        // be the very bytes that were given.
        if certificate.der != bytes {
            return Err(CertificateError::Malformed("it is not in canonical DER".into()));
        }
        Ok(certificate)
    }

    fn from_parsed(parsed: &x509_cert::Certificate) -> der::Result<Self> {
        let der = parsed.to_der()?;
        let body = parsed.tbs_certificate();
        let extended = body.get_extension::<ExtendedKeyUsage>()?.map(|(_, usage)| usage.0);
        let identifier = body.get_extension::<SubjectKeyIdentifier>()?;
        let extensions = body.extensions().map_or(&[][..], Vec::as_slice);
        let unknown = |id: &ObjectIdentifier| !UNDERSTOOD.contains(id);
        Ok(Self {
            key: PublicKey::from_info(body.subject_public_key_info()),
            fingerprint: Sha256::digest(&der).into(),
            subject: body.subject().clone(),
            subject_der: body.subject().to_der()?,
            issuer: body.issuer().clone(),
            issuer_der: body.issuer().to_der()?,
            serial: body.serial_number().clone(),
            signature_algorithm: parsed.signature_algorithm().clone(),
            not_before: timestamp(&body.validity().not_before),
            not_after: timestamp(&body.validity().not_after),
            key_usage: body.get_extension::<KeyUsage>()?.map(|(_, usage)| usage),
            extended_key_usage: extended,
            basic_constraints: body.get_extension::<BasicConstraints>()?.map(|(_, basic)| basic),
            subject_key_identifier: identifier.map(|(_, id)| id.0.as_bytes().to_vec()),
            has_name_constraints: body.get_extension::<NameConstraints>()?.is_some(),
            unknown_critical: extensions
                .iter()
                .filter(|extension| extension.critical)
                .map(|extension| extension.extn_id)
                .find(unknown),
            der,
        })
    }

    /// The whole certificate in DER.
    #[must_use]
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The SHA-256 of its DER, as `openssl x509 -fingerprint -sha256` prints it.
    #[must_use]
    pub const fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// The fingerprint that it would have if its signature were written in the other way that
    /// ECDSA leaves; there may be several guesses, and none for other algorithms.
    pub(super) fn other_fingerprints(&self) -> Vec<[u8; 32]> {
        twin::fingerprints(&self.der)
    }

    /// The key that it certifies.
    ///
    /// # Errors
    /// If that key is not accepted.
    pub fn key(&self) -> Result<&PublicKey, CertificateError> {
        self.key.as_ref().map_err(|error| CertificateError::Key {
            subject: self.subject(),
            error: error.clone(),
        })
    }

    pub(super) const fn raw_key(&self) -> Result<&PublicKey, &KeyError> {
        self.key.as_ref()
    }

    /// Whose it is, as people write it.
    #[must_use]
    pub fn subject(&self) -> String {
        shown(&self.subject)
    }

    /// The values that its subject has for an attribute, such as `O`.
    pub(super) fn subject_values(&self, attribute: ObjectIdentifier) -> Vec<String> {
        let values = self.subject.iter().filter(|value| value.oid == attribute);
        let text = values.map(|value| {
            value
                .value
                .decode_as::<x509_cert::ext::pkix::name::DirectoryString>()
                .map(|text| text.value().into_owned())
        });
        text.filter_map(Result::ok).collect()
    }

    pub(super) fn subject_der(&self) -> &[u8] {
        &self.subject_der
    }

    pub(super) fn issuer_der(&self) -> &[u8] {
        &self.issuer_der
    }

    pub(super) const fn issuer(&self) -> &Name {
        &self.issuer
    }

    pub(super) const fn serial(&self) -> &SerialNumber {
        &self.serial
    }

    /// From when it is valid.
    #[must_use]
    pub const fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Until when it is valid.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Whether it may sign other certificates.
    #[must_use]
    pub fn is_ca(&self) -> bool {
        self.basic_constraints.as_ref().is_some_and(|basic| basic.ca)
            && self.key_usage.is_none_or(|usage| usage.key_cert_sign())
    }

    /// Whether it says that it is a CA's, whatever else it may.
    pub(super) fn claims_ca(&self) -> bool {
        self.basic_constraints.as_ref().is_some_and(|basic| basic.ca)
    }

    pub(super) fn path_length(&self) -> Option<u8> {
        self.basic_constraints.as_ref().and_then(|basic| basic.path_len_constraint)
    }

    pub(super) fn may_sign(&self) -> bool {
        self.key_usage.is_none_or(|usage| usage.digital_signature())
    }

    /// What it is for, if it says so.
    pub(super) fn purposes(&self) -> Option<&[ObjectIdentifier]> {
        self.extended_key_usage.as_deref()
    }

    pub(super) const fn has_name_constraints(&self) -> bool {
        self.has_name_constraints
    }

    pub(super) const fn unknown_critical(&self) -> Option<ObjectIdentifier> {
        self.unknown_critical
    }

    /// The name of the key in it, if it has one.
    #[must_use]
    pub fn subject_key_identifier(&self) -> Option<&[u8]> {
        self.subject_key_identifier.as_deref()
    }

    /// The id by which a `security.ima` signature names the key of this certificate: the last four
    /// bytes of its subjectKeyIdentifier, which is what the kernel compares with and what
    /// `evmctl --keyid-from-cert` writes; without one, the key's own.
    #[must_use]
    pub fn ima_key_id(&self) -> Option<[u8; 4]> {
        let named = self.subject_key_identifier().and_then(|id| id.last_chunk::<4>());
        named.copied().or_else(|| self.key.as_ref().ok().map(PublicKey::ima_key_id))
    }

    /// Whether this key signed the certificate.
    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        let hash = super::HashAlgorithm::Sha256;
        let scheme = super::Scheme::from_identifier(&self.signature_algorithm, hash);
        let (Ok(scheme), Some((body, signature))) = (scheme, twin::signed(&self.der)) else {
            return false;
        };
        key.verify(&body, scheme, &signature).is_ok()
    }

    /// Why the signature on this certificate cannot be verified here, if that is so.
    pub(super) fn signature_problem(&self) -> Option<AlgorithmError> {
        let hash = super::HashAlgorithm::Sha256;
        super::Scheme::from_identifier(&self.signature_algorithm, hash).err()
    }

    /// It as others are shown it.
    #[must_use]
    pub fn info(&self) -> CertificateInfo {
        CertificateInfo {
            subject: self.subject(),
            issuer: shown(&self.issuer),
            serial: hex::encode(self.serial.as_bytes()),
            fingerprint: hex::encode(self.fingerprint),
            other_fingerprints: self.other_fingerprints().iter().map(hex::encode).collect(),
            not_after: self.not_after,
        }
    }
}

/// A name as people write it. Control characters would be the attacker's in somebody's terminal.
pub(super) fn shown(name: &Name) -> String {
    if name.is_empty() {
        return "nobody".into();
    }
    name.to_string().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The attributes of a subject that a policy may ask for.
pub(super) const ORGANIZATION: ObjectIdentifier = rfc4519::O;
pub(super) const ORGANIZATIONAL_UNIT: ObjectIdentifier = rfc4519::OU;
pub(super) const COMMON_NAME: ObjectIdentifier = rfc4519::CN;
/// What a signer of code is for (RFC 5280, 4.2.1.12).
pub const CODE_SIGNING: ObjectIdentifier = rfc5912::ID_KP_CODE_SIGNING;
pub(super) const ANY_PURPOSE: ObjectIdentifier = rfc5280::ANY_EXTENDED_KEY_USAGE;

fn timestamp(time: &Time) -> Timestamp {
    let since = time.to_unix_duration().min(Duration::from_secs(i64::MAX.unsigned_abs()));
    let since = SignedDuration::try_from(since).unwrap_or(SignedDuration::MAX);
    // `99991231235959Z`, "no end", is a day later than the latest moment that can be held.
    Timestamp::from_duration(since).unwrap_or(Timestamp::MAX)
}
