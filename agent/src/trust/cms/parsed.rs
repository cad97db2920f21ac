//! The outside of a CMS signature: what can be said before anything is verified.

use std::borrow::Cow;

use cms::{content_info::CmsVersion, signed_data::SignerInfo};
use const_oid::db::rfc5911;
use der::{
    AnyRef, Decode, Encode, ErrorKind, Header, Reader, SliceReader, Tag, Tagged, asn1::SetOfVec,
    pem,
};

use super::signed_data::{ContentInfo, SignedData};
use crate::trust::{Certificate, HashAlgorithm, Rejected, algorithm::name_of};

/// The largest signature that is read, its content not counted.
pub const MAX_BYTES: usize = 1 << 20;
/// The largest signature with its content in it: a catalog of some hundred thousand digests.
pub const MAX_ATTACHED_BYTES: usize = 64 << 20;
/// The most certificates in a signature.
pub const MAX_CERTIFICATES: usize = 32;
/// The most signers of one signature.
pub const MAX_SIGNERS: usize = 8;

/// A CMS signature whose form is right.
pub(super) struct Parsed<'a> {
    hashes: Vec<HashAlgorithm>,
    content: Option<&'a [u8]>,
    certificates: Vec<Certificate>,
    signers: Vec<SignerInfo>,
}

/// The DER in a file that may as well be PEM.
pub(super) fn unwrapped(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Rejected> {
    let limit = MAX_ATTACHED_BYTES;
    if bytes.len() > limit {
        return Err(Rejected::TooLarge { found: bytes.len(), limit });
    }
    if bytes.trim_ascii_start().starts_with(b"-----BEGIN ") {
        return from_pem(bytes.trim_ascii()).map(Cow::Owned);
    }
    Ok(Cow::Borrowed(bytes))
}

impl<'a> Parsed<'a> {
    pub(super) fn read(der: &'a [u8]) -> Result<Self, Rejected> {
        check_outside(der)?;
        let outer = ContentInfo::from_der(der).map_err(|error| not_der(&error))?;
        if outer.content_type != rfc5911::ID_SIGNED_DATA {
            return Err(Rejected::NotSignedData(name_of(outer.content_type)));
        }
        let data: SignedData<'_> = outer.content.decode_as().map_err(|error| not_der(&error))?;
        // The parser sorts the elements of a SET that are in no order.
        let again = data.to_der().map_err(|error| not_der(&error))?;
        let length = outer.content.encoded_len().and_then(|length| length.try_into());
        if length != Ok(again.len()) || !again.ends_with(outer.content.value()) {
            return Err(Rejected::NotCanonical);
        }
        drop(again);
        let inner = &data.encapsulated;
        if inner.content_type != rfc5911::ID_DATA {
            return Err(Rejected::ContentType(name_of(inner.content_type)));
        }
        let content = match inner.content {
            None => None,
            Some(any) if any.tag() == Tag::OctetString => Some(any.value()),
            Some(any) => return Err(Rejected::ContentType(format!("a {}", any.tag()))),
        };
        let rest = der.len() - content.map_or(0, <[u8]>::len);
        if rest > MAX_BYTES {
            return Err(Rejected::TooLarge { found: rest, limit: MAX_BYTES });
        }
        let parsed = Self {
            hashes: hashes(&data)?,
            content,
            certificates: certificates(&data)?,
            signers: signers(&data)?,
        };
        check_version(&data, &parsed.signers)?;
        Ok(parsed)
    }

    /// The content, if it is in the signature.
    pub(super) const fn content(&self) -> Option<&'a [u8]> {
        self.content
    }

    /// The hashes that the signature says its signers use.
    pub(super) fn hashes(&self) -> &[HashAlgorithm] {
        &self.hashes
    }

    pub(super) fn certificates(&self) -> &[Certificate] {
        &self.certificates
    }

    /// Who signed; never empty.
    pub(super) fn signers(&self) -> &[SignerInfo] {
        &self.signers
    }
}

fn from_pem(bytes: &[u8]) -> Result<Vec<u8>, Rejected> {
    let (label, der) = pem::decode_vec(bytes).map_err(|error| Rejected::Pem(error.to_string()))?;
    match label {
        "CMS" | "PKCS7" | "PKCS #7 SIGNED DATA" => Ok(der),
        label => Err(Rejected::Pem(format!("a `{label}`, not a `CMS`"))),
    }
}

/// Tells what is cut short or too long from what is damaged: inside, the parser cannot.
fn check_outside(der: &[u8]) -> Result<(), Rejected> {
    match der {
        [] => return Err(Rejected::Truncated("it is empty".into())),
        [0x30, 0x80, ..] => return Err(Rejected::IndefiniteLength),
        [0x30, ..] => {}
        _ => return Err(Rejected::NotDer("it does not begin as one".into())),
    }
    let mut reader = SliceReader::new(der).map_err(|error| not_der(&error))?;
    let header = Header::decode(&mut reader).map_err(|error| match error.kind() {
        ErrorKind::Incomplete { .. } => Rejected::Truncated("its length is missing".into()),
        _ => not_der(&error),
    })?;
    let length = usize::try_from(header.length()).unwrap_or(usize::MAX);
    let there = usize::try_from(reader.remaining_len()).unwrap_or_default();
    if length > there {
        return Err(Rejected::Truncated(format!("{} bytes are missing", length - there)));
    }
    if length < there {
        return Err(Rejected::TrailingData(there - length));
    }
    Ok(())
}

fn not_der(error: &der::Error) -> Rejected {
    match error.kind() {
        ErrorKind::IndefiniteLength => Rejected::IndefiniteLength,
        ErrorKind::SetOrdering => Rejected::NotCanonical,
        _ => Rejected::NotDer(error.to_string()),
    }
}

/// RFC 5652, 5.1: the version follows from what is in it. Nothing else depends on it, and nobody
/// signs it; but a signature that can be changed at all should not be taken for the same one.
fn check_version(data: &SignedData<'_>, signers: &[SignerInfo]) -> Result<(), Rejected> {
    let mut choices = data.certificates.iter().chain(&data.crls).flat_map(SetOfVec::iter);
    let is_right = if choices.any(|any| any.tag() != Tag::Sequence) {
        data.version >= CmsVersion::V3
    } else if signers.iter().any(|signer| signer.version == CmsVersion::V3) {
        data.version == CmsVersion::V3
    } else {
        data.version == CmsVersion::V1
    };
    if is_right { Ok(()) } else { Err(Rejected::NotDer(format!("version {}", data.version as u8))) }
}

fn hashes(data: &SignedData<'_>) -> Result<Vec<HashAlgorithm>, Rejected> {
    let read = |id| {
        HashAlgorithm::from_identifier(id)
            .map_err(|error| Rejected::Algorithm { place: "digestAlgorithms".into(), error })
    };
    data.digest_algorithms.iter().map(read).collect()
}

fn certificates(data: &SignedData<'_>) -> Result<Vec<Certificate>, Rejected> {
    let choices = data.certificates.as_ref().map_or(&[][..], SetOfVec::as_slice);
    if choices.len() > MAX_CERTIFICATES {
        let found = choices.len();
        return Err(Rejected::TooMany { what: "certificates", found, limit: MAX_CERTIFICATES });
    }
    // The other kinds, which nobody uses, have tags of their own.
    let certificates = choices.iter().enumerate().filter(|(_, any)| any.tag() == Tag::Sequence);
    let read = |(index, any): (usize, &AnyRef<'_>)| {
        let der = any.to_der().map_err(|error| not_der(&error))?;
        Certificate::from_der(&der)
            .map_err(|error| Rejected::NotDer(format!("certificate {}: {error}", index + 1)))
    };
    certificates.map(read).collect()
}

fn signers(data: &SignedData<'_>) -> Result<Vec<SignerInfo>, Rejected> {
    match data.signer_infos.len() {
        0 => return Err(Rejected::NoSigner),
        found if found > MAX_SIGNERS => {
            return Err(Rejected::TooMany { what: "signers", found, limit: MAX_SIGNERS });
        }
        _ => {}
    }
    let read = |any: &AnyRef<'_>| {
        let der = any.to_der().map_err(|error| not_der(&error))?;
        let signer = SignerInfo::from_der(&der).map_err(|error| not_der(&error))?;
        // As above, for the signed attributes.
        let again = signer.to_der().map_err(|error| not_der(&error))?;
        if again == der { Ok(signer) } else { Err(Rejected::NotCanonical) }
    };
    data.signer_infos.iter().map(read).collect()
}
