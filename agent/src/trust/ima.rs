//! Signatures over a digest that name their key by four bytes, as `security.ima` holds them.

use jiff::Timestamp;

use super::{
    Anchor, Candidate, HashAlgorithm, Rejected, Scheme, Trust, Verified,
    key::{KeyKind, VerifyError},
};

/// A signature over a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bare<'a> {
    /// By which the key is named ([`PublicKey::ima_key_id`](super::PublicKey::ima_key_id)). It
    /// proves nothing: only the key itself does.
    pub key_id: [u8; 4],
    /// The hash that the digest was made with.
    pub hash: HashAlgorithm,
    /// PKCS#1 v1.5 by an RSA key, ECDSA in DER by another.
    pub signature: &'a [u8],
}

/// Verifies a signature over a digest. No certificate comes with it, so that the signer's own key
/// must be listed: a chain leads nowhere.
///
/// # Errors
/// If it is no signature by a listed key over `digest`, or that one was revoked.
pub fn verify(
    trust: &Trust,
    bare: Bare<'_>,
    digest: &[u8],
    now: Option<Timestamp>,
) -> Result<Verified, Rejected> {
    let mut told = None;
    for signer in trust.signers.iter().filter(|one| one.ima_key_ids().contains(&bare.key_id)) {
        let Some(key) = signer.anchor.key() else { continue };
        let certificate = match &signer.anchor {
            Anchor::Certificate(certificate) => Some(&**certificate),
            Anchor::Key(_) => None,
        };
        let scheme = match key.kind() {
            KeyKind::Rsa(_) => Scheme::RsaPkcs1(bare.hash),
            _ => Scheme::Ecdsa(bare.hash),
        };
        let candidate = Candidate { key, certificate, pool: &[], scheme, now };
        let verified = key.verify_prehashed(bare.hash, digest, bare.signature);
        let outcome = verified
            .map_err(|error| match error {
                VerifyError::NeedsMessage | VerifyError::OtherAlgorithm { .. } => {
                    Rejected::AlgorithmMismatch(error.to_string())
                }
                VerifyError::Wrong | VerifyError::DigestLength(_) => {
                    Rejected::BadSignature(candidate.name())
                }
            })
            .and_then(|()| trust.resolve(&candidate));
        match outcome {
            Ok(verified) => return Ok(verified),
            Err(reason @ Rejected::Revoked(_)) => return Err(reason),
            Err(reason) => drop(told.get_or_insert(reason)),
        }
    }
    let id = hex::encode(bare.key_id);
    Err(told.unwrap_or_else(|| Rejected::UntrustedKey(format!("a key with the id {id}"))))
}
