//! Bare Ed25519 signatures: 64 bytes over a file's bytes.

use ed25519_dalek::SIGNATURE_LENGTH;
use jiff::Timestamp;

use super::{
    Candidate, Rejected, Scheme, Trust, Verified,
    cms::looks_like_attributes,
    key::{KeyKind, PublicKey},
};

/// Verifies a bare signature. It does not say whose it is, so every Ed25519 key that the policy
/// lists is tried.
///
/// # Errors
/// If it is no signature by one of them over `content`, or that one was revoked.
pub fn verify(
    trust: &Trust,
    content: &[u8],
    signature: &[u8],
    now: Option<Timestamp>,
) -> Result<Verified, Rejected> {
    if signature.len() != SIGNATURE_LENGTH {
        return Err(Rejected::SignatureLength(signature.len()));
    }
    // Else a CMS signature by the same key, taken apart, would be one over its attributes.
    if looks_like_attributes(content) {
        return Err(Rejected::AttributesAsContent);
    }
    let keys = trust.signers.iter().filter_map(|signer| signer.anchor.key());
    let mut keys = keys.filter(|key| key.kind() == KeyKind::Ed25519).peekable();
    if keys.peek().is_none() {
        return Err(Rejected::UntrustedKey("an Ed25519 key".into()));
    }
    let scheme = Scheme::Ed25519;
    let made_it = |key: &&PublicKey| key.verify(content, scheme, signature).is_ok();
    let Some(key) = keys.find(made_it) else {
        return Err(Rejected::BadSignature("one of the policy's Ed25519 keys".into()));
    };
    trust.resolve(&Candidate { key, certificate: None, pool: &[], scheme, now })
}
