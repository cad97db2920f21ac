//! What is known about a signature that is right and trusted.

use std::fmt;

use jiff::Timestamp;
use portcullis_common::Kinds;
use serde::{Serialize, Serializer};

use super::{Candidate, Certificate, CertificateInfo, Signer, Slot};

/// A signature that is right and trusted: who vouches, for what, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The signer's place in the policy's list.
    #[serde(skip)]
    pub signer: usize,
    /// What the policy calls the signer.
    #[serde(rename = "signer")]
    pub name: String,
    /// Whose key it is.
    pub slot: Slot,
    /// What the signer may vouch for.
    #[serde(serialize_with = "kind_words")]
    pub kinds: Kinds,
    /// The certificates from the one that signed to the one that the policy lists. Empty if the
    /// policy lists the key.
    pub chain: Vec<CertificateInfo>,
    /// The [id](super::PublicKey::id) of the key that signed.
    #[serde(serialize_with = "hexadecimal")]
    pub key_id: [u8; 32],
    /// How it signed, for people: `RSA-PSS 3072 SHA-256`.
    pub algorithm: String,
    /// What should be seen to, and stops nothing.
    pub warnings: Vec<Warning>,
}

/// Something that should be seen to, and stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "warning", rename_all = "kebab-case")]
pub enum Warning {
    /// It is past its time.
    Expired {
        /// A certificate or a signer of the policy.
        what: String,
        /// Since when.
        since: Timestamp,
    },
    /// Its time has not come.
    NotYetValid {
        /// A certificate or a signer of the policy.
        what: String,
        /// When it will.
        until: Timestamp,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired { what, since } => write!(f, "{what} expired at {since}"),
            Self::NotYetValid { what, until } => write!(f, "{what} is valid only from {until}"),
        }
    }
}

impl Verified {
    pub(super) fn new(
        index: usize,
        signer: &Signer,
        candidate: &Candidate<'_>,
        chain: &[&Certificate],
    ) -> Self {
        Self {
            signer: index,
            name: signer.name.clone(),
            slot: signer.slot,
            kinds: signer.kinds,
            chain: chain.iter().map(|certificate| certificate.info()).collect(),
            key_id: *candidate.key.id(),
            algorithm: candidate.key.describe(candidate.scheme),
            warnings: candidate.now.map_or_else(Vec::new, |now| warnings(signer, chain, now)),
        }
    }
}

fn warnings(signer: &Signer, chain: &[&Certificate], now: Timestamp) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut window = |what: String, from: Option<Timestamp>, until: Option<Timestamp>| {
        if let Some(since) = until.filter(|until| now > *until) {
            warnings.push(Warning::Expired { what, since });
        } else if let Some(until) = from.filter(|from| now < *from) {
            warnings.push(Warning::NotYetValid { what, until });
        }
    };
    window(format!("the signer {}", signer.name), signer.valid_from, signer.valid_until);
    for certificate in chain {
        let what = format!("the certificate of {}", certificate.subject());
        window(what, Some(certificate.not_before()), Some(certificate.not_after()));
    }
    warnings
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn kind_words<S: Serializer>(kinds: &Kinds, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(kinds.words())
}

fn hexadecimal<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(bytes))
}
