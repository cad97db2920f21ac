//! Who is trusted, and for what.

use const_oid::ObjectIdentifier;
use jiff::Timestamp;
use portcullis_common::Kinds;
use serde::Serialize;
use thiserror::Error;

use super::{
    Rejected,
    algorithm::name_of,
    certificate::{
        CODE_SIGNING, COMMON_NAME, Certificate, CertificateError, ORGANIZATION, ORGANIZATIONAL_UNIT,
    },
    key::{KeyError, PublicKey},
};

/// Whose key it is. The two are kept apart: a maker cannot act as the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// Who made the software or the device.
    Maker,
    /// Who runs the device.
    Operator,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Maker, Self::Operator];

    /// As policies and events write it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Maker => "maker",
            Self::Operator => "operator",
        }
    }
}

/// Where trust begins.
#[derive(Clone, Debug)]
pub enum Anchor {
    /// This key, whatever certificate comes with it.
    Key(PublicKey),
    /// This certificate's key; and, if it is a CA's, what chains to it.
    Certificate(Box<Certificate>),
}

/// Why a file is no anchor.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AnchorError {
    /// As a public key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// As a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// As neither.
    #[error("neither a public key nor a certificate")]
    Neither,
}

impl AnchorError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Key(error) => error.help(),
            Self::Certificate(error) => error.help(),
            Self::Neither => Some(
                "give what `openssl pkey -pubout` or `openssl x509` writes, in PEM or DER".into(),
            ),
        }
    }
}

impl Anchor {
    /// Reads a public key or one certificate, in PEM or DER.
    ///
    /// # Errors
    /// If it is neither, or its key is not accepted.
    pub fn read(bytes: &[u8]) -> Result<Self, AnchorError> {
        let pem = bytes.trim_ascii_start();
        if pem.starts_with(b"-----BEGIN CERTIFICATE-----") {
            return Ok(Self::certificate(Certificate::read(bytes)?)?);
        }
        if pem.starts_with(b"-----BEGIN ") {
            return Ok(Self::Key(PublicKey::read(bytes)?));
        }
        match (PublicKey::read(bytes), Certificate::read(bytes)) {
            (Ok(key), _) => Ok(Self::Key(key)),
            (_, Ok(certificate)) => Ok(Self::certificate(certificate)?),
            (Err(KeyError::Malformed(_)), Err(_)) => Err(AnchorError::Neither),
            (Err(error), Err(_)) => Err(error.into()),
        }
    }

    /// Takes a certificate as an anchor.
    ///
    /// # Errors
    /// If its key is not accepted.
    pub fn certificate(certificate: Certificate) -> Result<Self, CertificateError> {
        certificate.key()?;
        Ok(Self::Certificate(Box::new(certificate)))
    }

    /// The anchor's key. Every anchor that [`certificate`](Self::certificate) made has one.
    #[must_use]
    pub fn key(&self) -> Option<&PublicKey> {
        match self {
            Self::Key(key) => Some(key),
            Self::Certificate(certificate) => certificate.raw_key().ok(),
        }
    }
}

/// What the certificate at the end of a chain must say. A listed key or certificate that signs by
/// itself is exactly known, so that only its purpose is asked of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirements {
    /// A value of `O` in its subject, exactly.
    pub organization: Option<String>,
    /// A value of `OU` in its subject, exactly.
    pub organizational_unit: Option<String>,
    /// A value of `CN` in its subject, exactly.
    pub common_name: Option<String>,
    /// What it must be for. `None`: for signing code, if it says at all what it is for.
    pub purpose: Option<ObjectIdentifier>,
}

/// Somebody whose signature is trusted: what a policy's `[[signer]]` becomes.
#[derive(Clone, Debug)]
pub struct Signer {
    /// What the policy calls it.
    pub name: String,
    /// Whose key it is.
    pub slot: Slot,
    /// What it may vouch for.
    pub kinds: Kinds,
    /// Where trust begins.
    pub anchor: Anchor,
    /// From when the policy trusts it. Earlier is a warning.
    pub valid_from: Option<Timestamp>,
    /// Until when the policy trusts it. Later is a warning.
    pub valid_until: Option<Timestamp>,
    /// What is asked of those who sign by it.
    pub requirements: Requirements,
}

impl Signer {
    /// The ids by which a `security.ima` signature may name this signer's key.
    #[must_use]
    pub fn ima_key_ids(&self) -> Vec<[u8; 4]> {
        let mut ids = Vec::from_iter(self.anchor.key().map(PublicKey::ima_key_id));
        if let Anchor::Certificate(certificate) = &self.anchor {
            ids.extend(certificate.ima_key_id());
        }
        ids.dedup();
        ids
    }
}

impl Requirements {
    pub(super) fn purpose(&self) -> ObjectIdentifier {
        self.purpose.unwrap_or(CODE_SIGNING)
    }

    /// What a certificate must say to sign code by itself, whoever vouches for it.
    pub(super) fn check_usage(&self, leaf: &Certificate) -> Result<(), Rejected> {
        let wrong = |field, wanted: String| {
            Err(Rejected::WrongUsage { subject: leaf.subject(), field, wanted })
        };
        if !leaf.may_sign() {
            return wrong("keyUsage", "digitalSignature".into());
        }
        let wanted = self.purpose();
        match leaf.purposes() {
            Some(purposes) if purposes.contains(&wanted) => Ok(()),
            None if self.purpose.is_none() => Ok(()),
            _ => wrong("extendedKeyUsage", name_of(wanted)),
        }
    }

    pub(super) fn check_subject(&self, leaf: &Certificate) -> Result<(), Rejected> {
        let fields = [
            ("O", ORGANIZATION, &self.organization),
            ("OU", ORGANIZATIONAL_UNIT, &self.organizational_unit),
            ("CN", COMMON_NAME, &self.common_name),
        ];
        for (field, attribute, wanted) in fields {
            let Some(wanted) = wanted else { continue };
            if !leaf.subject_values(attribute).contains(wanted) {
                let subject = leaf.subject();
                return Err(Rejected::WrongSubject { subject, field, wanted: wanted.clone() });
            }
        }
        Ok(())
    }
}
