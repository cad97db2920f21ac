//! Whose signatures are trusted, for what, and whether one is right.
//!
//! Pure: no kernel, no files, no clock. Parsers and algorithms are RustCrypto's, chains are built
//! and validated by rustls-webpki; what they leave open is decided here.
//!
//! * Two ways lead to trust: the signer's key is an anchor itself, or a chain of certificates
//!   leads from it to an anchor that is a CA's. An anchor that is a key or no CA's certificate
//!   vouches for itself alone.
//! * Expiry is a warning. A certificate that was right when it signed is right as long as nobody
//!   takes it back; see [`Revocations`] for that.
//! * Nothing here can be switched off: the input's kind decides what is checked.

mod algorithm;
pub mod certificate;
mod chain;
pub mod cms;
pub mod ima;
pub mod key;
pub mod raw;
mod rejected;
pub mod sign;
pub mod signer;
#[cfg(test)]
pub(crate) mod tests;
mod verified;

use std::collections::BTreeSet;

pub use algorithm::{AlgorithmError, HashAlgorithm, Scheme};
pub use certificate::{Certificate, CertificateInfo};
use jiff::Timestamp;
pub use key::PublicKey;
pub use rejected::Rejected;
pub use signer::{Anchor, AnchorError, Requirements, Signer, Slot};
pub use verified::{Verified, Warning};

/// The signers of a policy, and what it takes back.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Who is trusted. If one signature fits several, those whose very key it is come first, then
    /// those that a chain leads to; among these the first.
    pub signers: Vec<Signer>,
    /// What is trusted no more.
    pub revoked: Revocations,
}

/// What is trusted no more. It applies anywhere in a chain, the anchor included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Keys by their [id](PublicKey::id), in whatever certificate.
    pub keys: BTreeSet<[u8; 32]>,
    /// Certificates by their [fingerprint](Certificate::fingerprint), in either form that ECDSA
    /// leaves for the same certificate.
    pub certificates: BTreeSet<[u8; 32]>,
    /// Signers by the name that the policy gives them. What such a signer vouches for is refused,
    /// also if another one vouches for it: deny beats allow.
    pub signers: BTreeSet<String>,
}

impl Revocations {
    fn check(&self, certificate: &Certificate) -> Result<(), Rejected> {
        let listed = |fingerprint: &[u8; 32]| self.certificates.contains(fingerprint);
        let is_revoked = !self.certificates.is_empty()
            && (listed(certificate.fingerprint())
                || certificate.other_fingerprints().iter().any(listed));
        if is_revoked {
            let subject = certificate.subject();
            let fingerprint = hex::encode(certificate.fingerprint());
            return Err(Rejected::Revoked(format!("the certificate {fingerprint} of {subject}")));
        }
        certificate.raw_key().map_or(Ok(()), |key| self.check_key(key))
    }

    fn check_key(&self, key: &PublicKey) -> Result<(), Rejected> {
        if self.keys.contains(key.id()) {
            return Err(Rejected::Revoked(format!("the key {}", hex::encode(key.id()))));
        }
        Ok(())
    }
}

/// Somebody who made a right signature, before it is known whether they are trusted.
struct Candidate<'a> {
    key: &'a PublicKey,
    /// The certificate that came with the signature, or the anchor's if it names that one.
    certificate: Option<&'a Certificate>,
    /// What else came with it.
    pool: &'a [Certificate],
    scheme: Scheme,
    now: Option<Timestamp>,
}

impl Candidate<'_> {
    fn name(&self) -> String {
        self.certificate
            .map_or_else(|| format!("the key {}", hex::encode(self.key.id())), Certificate::subject)
    }
}

impl Trust {
    /// Finds the signer of the policy that vouches for a candidate.
    fn resolve(&self, candidate: &Candidate<'_>) -> Result<Verified, Rejected> {
        self.revoked.check_key(candidate.key)?;
        if let Some(certificate) = candidate.certificate {
            self.revoked.check(certificate)?;
        }
        let mut found = None;
        let mut told = candidate.certificate.map_or_else(
            || Rejected::UntrustedKey(candidate.name()),
            |certificate| Rejected::Untrusted { subject: certificate.subject() },
        );
        let signers = || self.signers.iter().enumerate();
        let direct =
            signers().map(|(index, signer)| (index, signer, self.direct(signer, candidate)));
        let chained =
            signers().map(|(index, signer)| (index, signer, self.chained(signer, candidate)));
        for (index, signer, outcome) in direct.chain(chained) {
            match outcome {
                Ok(_) if self.revoked.signers.contains(&signer.name) => {
                    return Err(Rejected::Revoked(format!("the signer {}", signer.name)));
                }
                Ok(chain) => {
                    found.get_or_insert_with(|| Verified::new(index, signer, candidate, &chain));
                    if self.revoked.signers.is_empty() {
                        break;
                    }
                }
                Err(reason) if reason.weight() > told.weight() => told = reason,
                Err(_) => {}
            }
        }
        found.ok_or(told)
    }

    /// The candidate's key is the signer's own.
    fn direct<'a>(
        &'a self,
        signer: &'a Signer,
        candidate: &Candidate<'a>,
    ) -> Result<Vec<&'a Certificate>, Rejected> {
        let untrusted = || Rejected::UntrustedKey(candidate.name());
        if signer.anchor.key().is_none_or(|key| key != candidate.key) {
            return Err(untrusted());
        }
        match &signer.anchor {
            Anchor::Key(_) => Ok(Vec::new()),
            Anchor::Certificate(anchor) => {
                self.revoked.check(anchor)?;
                signer.requirements.check_usage(anchor)?;
                chain::check_extensions(anchor)?;
                Ok(vec![anchor])
            }
        }
    }

    /// A chain leads from the candidate's certificate to the signer's, which is a CA's.
    fn chained<'a>(
        &'a self,
        signer: &'a Signer,
        candidate: &Candidate<'a>,
    ) -> Result<Vec<&'a Certificate>, Rejected> {
        let (Anchor::Certificate(anchor), Some(leaf)) = (&signer.anchor, candidate.certificate)
        else {
            return Err(Rejected::UntrustedKey(candidate.name()));
        };
        let wanted = chain::Wanted {
            anchor,
            purpose: signer.requirements.purpose(),
            revoked: &self.revoked,
            now: candidate.now,
        };
        let chain = chain::build(leaf, candidate.pool, &wanted)?;
        // Only now: what an unknown certificate is for says nothing to anybody.
        signer.requirements.check_usage(leaf)?;
        signer.requirements.check_subject(leaf)?;
        Ok(chain)
    }
}
