//! The outside of a CMS signature: what can be said before anything is verified.

use cms::{
    content_info::{CmsVersion, ContentInfo},
    signed_data::SignerInfo,
};
use const_oid::db::rfc5911;
use der::{
    Any, Decode, Encode, ErrorKind, Header, Reader, SliceReader, Tag, Tagged, asn1::SetOfVec, pem,
};

use super::signed_data::SignedData;
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
pub(super) struct Parsed {
    hashes: Vec<HashAlgorithm>,
    content: Option<Vec<u8>>,
    certificates: Vec<Certificate>,
    signers: Vec<SignerInfo>,
}

impl Parsed {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Rejected> {
        let limit = MAX_ATTACHED_BYTES;
        if bytes.len() > limit {
            return Err(Rejected::TooLarge { found: bytes.len(), limit });
        }
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN ") {
            return Self::from_der(&from_pem(bytes.trim_ascii())?);
        }
        Self::from_der(bytes)
    }

    fn from_der(der: &[u8]) -> Result<Self, Rejected> {
        check_outside(der)?;
        let outer = ContentInfo::from_der(der).map_err(|error| not_der(&error))?;
        if outer.content_type != rfc5911::ID_SIGNED_DATA {
            return Err(Rejected::NotSignedData(name_of(outer.content_type)));
        }
        let mut data: SignedData = outer.content.decode_as().map_err(|error| not_der(&error))?;
        let again = data.to_der().map_err(|error| not_der(&error))?;
        let inside = outer.content.to_der().map_err(|error| not_der(&error))?;
        let outside = outer.to_der().map_err(|error| not_der(&error))?;
        if again != inside || outside != der {
            return Err(Rejected::NotCanonical);
        }
        if matches!(data.version, CmsVersion::V0 | CmsVersion::V2) {
            return Err(Rejected::NotDer(format!("version {}", data.version as u8)));
        }
        if data.encap_content_info.econtent_type != rfc5911::ID_DATA {
            return Err(Rejected::ContentType(name_of(data.encap_content_info.econtent_type)));
        }
        let content = match data.encap_content_info.econtent.take() {
            None => None,
            Some(any) if any.tag() == Tag::OctetString => Some(any.value().to_vec()),
            Some(any) => return Err(Rejected::ContentType(format!("a {}", any.tag()))),
        };
        let rest = der.len() - content.as_ref().map_or(0, Vec::len);
        if rest > MAX_BYTES {
            return Err(Rejected::TooLarge { found: rest, limit: MAX_BYTES });
        }
        Ok(Self {
            hashes: hashes(&data)?,
            content,
            certificates: certificates(&data)?,
            signers: signers(&data)?,
        })
    }

    /// The content, if it is in the signature.
    pub(super) fn content(&self) -> Option<&[u8]> {
        self.content.as_deref()
    }

    pub(super) fn take_content(&mut self) -> Option<Vec<u8>> {
        self.content.take()
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

fn hashes(data: &SignedData) -> Result<Vec<HashAlgorithm>, Rejected> {
    let read = |id| {
        HashAlgorithm::from_identifier(id)
            .map_err(|error| Rejected::Algorithm { place: "digestAlgorithms".into(), error })
    };
    data.digest_algorithms.iter().map(read).collect()
}

fn certificates(data: &SignedData) -> Result<Vec<Certificate>, Rejected> {
    let choices = data.certificates.as_ref().map_or(&[][..], SetOfVec::as_slice);
    if choices.len() > MAX_CERTIFICATES {
        let found = choices.len();
        return Err(Rejected::TooMany { what: "certificates", found, limit: MAX_CERTIFICATES });
    }
    // The other kinds, which nobody uses, have tags of their own.
    let certificates = choices.iter().enumerate().filter(|(_, any)| any.tag() == Tag::Sequence);
    let read = |(index, any): (usize, &Any)| {
        let der = any.to_der().map_err(|error| not_der(&error))?;
        Certificate::from_der(&der)
            .map_err(|error| Rejected::NotDer(format!("certificate {}: {error}", index + 1)))
    };
    certificates.map(read).collect()
}

fn signers(data: &SignedData) -> Result<Vec<SignerInfo>, Rejected> {
    match data.signer_infos.len() {
        0 => return Err(Rejected::NoSigner),
        found if found > MAX_SIGNERS => {
            return Err(Rejected::TooMany { what: "signers", found, limit: MAX_SIGNERS });
        }
        _ => {}
    }
    let read = |any: &Any| {
        let signer: SignerInfo = any.decode_as().map_err(|error| not_der(&error))?;
        let again = Any::encode_from(&signer).map_err(|error| not_der(&error))?;
        if again == *any { Ok(signer) } else { Err(Rejected::NotCanonical) }
    };
    data.signer_infos.iter().map(read).collect()
}
