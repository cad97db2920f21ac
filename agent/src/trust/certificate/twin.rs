//! A certificate's signature, and the other form of one that ECDSA made.
//!
//! With (r, s), (r, n - s) is a signature as well, so that anybody can turn a certificate into one
//! that says the same, is as valid, and has another fingerprint. Who revokes the one means both.

use der::{
    AnyRef, Decode, Encode, Sequence,
    asn1::{BitString, BitStringRef},
};
use sha2::{Digest, Sha256};

#[derive(Sequence)]
struct Whole<'a> {
    body: AnyRef<'a>,
    algorithm: AnyRef<'a>,
    signature: BitStringRef<'a>,
}

/// The fingerprints of a certificate's other forms, whichever curve its issuer's key is on.
pub(super) fn fingerprints(certificate: &[u8]) -> Vec<[u8; 32]> {
    let Ok(whole) = Whole::from_der(certificate) else { return Vec::new() };
    let Some(signature) = whole.signature.as_bytes() else { return Vec::new() };
    let others = [p256_twin(signature), p384_twin(signature)];
    let with = |signature: Vec<u8>| {
        let signature = BitString::from_bytes(&signature).ok()?;
        let signature = BitStringRef::from(&signature);
        let other = Whole { body: whole.body, algorithm: whole.algorithm, signature };
        Some(Sha256::digest(other.to_der().ok()?).into())
    };
    others.into_iter().flatten().filter_map(with).collect()
}

/// What was signed in a certificate, and the signature.
pub(super) fn signed(certificate: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let whole = Whole::from_der(certificate).ok()?;
    Some((whole.body.to_der().ok()?, whole.signature.as_bytes()?.to_vec()))
}

fn p256_twin(signature: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = p256::ecdsa::Signature::from_der(signature).ok()?.split_scalars();
    let other = p256::ecdsa::Signature::from_scalars(r, -s).ok()?;
    Some(other.to_der().as_bytes().to_vec())
}

fn p384_twin(signature: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = p384::ecdsa::Signature::from_der(signature).ok()?.split_scalars();
    let other = p384::ecdsa::Signature::from_scalars(r, -s).ok()?;
    Some(other.to_der().as_bytes().to_vec())
}

/// The certificate with its signature by a P-384 key turned into the other form.
#[cfg(test)]
pub fn other_form(certificate: &[u8]) -> Vec<u8> {
    let whole = Whole::from_der(certificate).expect("a certificate");
    let signature = p384_twin(whole.signature.raw_bytes()).expect("by a P-384 key");
    let signature = BitString::from_bytes(&signature).expect("DER");
    Whole { signature: BitStringRef::from(&signature), ..whole }.to_der().expect("DER")
}
