//! The frame of a CMS signature. What is in it is borrowed, as it was encoded: content may be large,
//! and the bytes of certificates and signers are what is hashed, compared and shown.

use cms::{content_info::CmsVersion, signed_data::DigestAlgorithmIdentifiers};
use const_oid::ObjectIdentifier;
use der::{AnyRef, Sequence, asn1::SetOfVec};

/// ContentInfo of RFC 5652, 3.
#[derive(Clone, Debug, Sequence)]
pub(in crate::trust) struct ContentInfo<'a> {
    pub content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    pub content: AnyRef<'a>,
}

/// SignedData of RFC 5652, 5.1.
///
/// The type of the `cms` crate (0.3.0-rc.0) sorts certificates and signers by something else than
/// their encoding (`CertificateChoices::value_cmp`): its own output is not DER, and what openssl
/// made comes out of it changed. Elements that are not decoded sort right.
#[derive(Clone, Debug, Sequence)]
pub(in crate::trust) struct SignedData<'a> {
    pub version: CmsVersion,
    pub digest_algorithms: DigestAlgorithmIdentifiers,
    pub encapsulated: Encapsulated<'a>,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", constructed = "true", optional = "true")]
    pub certificates: Option<SetOfVec<AnyRef<'a>>>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", constructed = "true", optional = "true")]
    pub crls: Option<SetOfVec<AnyRef<'a>>>,
    pub signer_infos: SetOfVec<AnyRef<'a>>,
}

/// EncapsulatedContentInfo of RFC 5652, 5.2.
#[derive(Clone, Debug, Sequence)]
pub(in crate::trust) struct Encapsulated<'a> {
    pub content_type: ObjectIdentifier,
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT", optional = "true")]
    pub content: Option<AnyRef<'a>>,
}
