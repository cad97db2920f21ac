//! CMS signatures (RFC 5652, and PKCS#7 as the kernel's `sign-file` writes it): over content that
//! is beside them (detached) or in them (attached).
//!
//! The signature comes from anywhere, so what is read is bounded and in DER, which has one way to
//! write everything: encoded anew, every part must be the same bytes. What nobody signs, such as
//! unsigned attributes, counter-signatures and CRLs, is read and says nothing.

mod parsed;
pub(super) mod signed_data;
mod signer_info;

use std::io;

use jiff::Timestamp;
pub(super) use signer_info::looks_like_attributes;

pub use parsed::{MAX_ATTACHED_BYTES, MAX_BYTES, MAX_CERTIFICATES, MAX_SIGNERS};
use parsed::{Parsed, unwrapped};

use super::{HashAlgorithm, Rejected, Trust, Verified};

/// A CMS signature all of whose signers are right and trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// The content, if it was in the signature.
    pub content: Option<Vec<u8>>,
    /// Everybody who signed, in the order of the signature; never empty.
    pub signers: Vec<Verified>,
}

/// What hashes content that is too large to be in memory.
pub type Hasher<'a> = dyn Fn(HashAlgorithm) -> io::Result<Vec<u8>> + 'a;

/// Verifies a signature in DER or PEM over `content`, or over the content in it.
///
/// # Errors
/// The first reason not to trust it. One signer among several who is not right or not trusted is
/// reason enough.
pub fn verify(
    trust: &Trust,
    content: Option<&[u8]>,
    signature: &[u8],
    now: Option<Timestamp>,
) -> Result<Signed, Rejected> {
    let der = unwrapped(signature)?;
    let parsed = Parsed::read(&der)?;
    if let (Some(content), Some(attached)) = (content, parsed.content())
        && content != attached
    {
        return Err(Rejected::ContentDiffers);
    }
    let Some(bytes) = content.or(parsed.content()) else {
        return Err(Rejected::NoContent);
    };
    let signers =
        Digests { hasher: &|hash| Ok(hash.of(bytes)), known: Vec::new(), bytes: Some(bytes) }
            .verify(trust, &parsed, now)?;
    Ok(Signed { content: parsed.content().map(<[u8]>::to_vec), signers })
}

/// The content in a signature, whoever has signed it.
///
/// # Errors
/// If it has none, or is no signature.
pub fn content_of(message: &[u8]) -> Result<Vec<u8>, Rejected> {
    let der = unwrapped(message)?;
    Parsed::read(&der)?.content().map(<[u8]>::to_vec).ok_or(Rejected::NoContent)
}

/// As [`verify`], over content outside the signature that `hasher` hashes, at most once with each
/// algorithm.
///
/// The content must be of a kind that cannot begin with the byte `0x31`, as ELF is: that another
/// signature's attributes are given as the content ([`Rejected::AttributesAsContent`]) can only be
/// seen with the content at hand.
///
/// # Errors
/// As for [`verify`]; if the hasher fails; and if the signature was made by Ed25519 without signed
/// attributes, which is over the content itself.
pub fn verify_hashed(
    trust: &Trust,
    hasher: &Hasher<'_>,
    signature: &[u8],
    now: Option<Timestamp>,
) -> Result<Signed, Rejected> {
    let der = unwrapped(signature)?;
    let parsed = Parsed::read(&der)?;
    let mut digests = Digests { hasher, known: Vec::new(), bytes: None };
    if let Some(attached) = parsed.content() {
        let hash = HashAlgorithm::Sha256;
        if digests.of(hash)? != hash.of(attached) {
            return Err(Rejected::ContentDiffers);
        }
    }
    let signers = digests.verify(trust, &parsed, now)?;
    Ok(Signed { content: parsed.content().map(<[u8]>::to_vec), signers })
}

/// The content's digests, each worked out once.
struct Digests<'a> {
    hasher: &'a Hasher<'a>,
    known: Vec<(HashAlgorithm, Vec<u8>)>,
    /// The content, if it is at hand.
    bytes: Option<&'a [u8]>,
}

impl Digests<'_> {
    fn of(&mut self, hash: HashAlgorithm) -> Result<Vec<u8>, Rejected> {
        if let Some((_, digest)) = self.known.iter().find(|(known, _)| *known == hash) {
            return Ok(digest.clone());
        }
        let digest =
            (self.hasher)(hash).map_err(|error| Rejected::Unreadable(error.to_string()))?;
        self.known.push((hash, digest.clone()));
        Ok(digest)
    }

    fn verify(
        &mut self,
        trust: &Trust,
        parsed: &Parsed<'_>,
        now: Option<Timestamp>,
    ) -> Result<Vec<Verified>, Rejected> {
        let of = parsed.signers().len();
        let mut verified = Vec::with_capacity(of);
        for (index, signer) in parsed.signers().iter().enumerate() {
            let outcome = signer_info::verify(trust, parsed, signer, self, now);
            verified.push(outcome.map_err(|reason| match of {
                1 => reason,
                of => Rejected::OneOfSeveral { number: index + 1, of, reason: Box::new(reason) },
            })?);
        }
        Ok(verified)
    }
}
