//! The frame of a CMS signature, with certificates and signers as they were encoded.

use cms::{
    content_info::CmsVersion,
    signed_data::{DigestAlgorithmIdentifiers, EncapsulatedContentInfo},
};
use der::{Any, Sequence, asn1::SetOfVec};

/// SignedData of RFC 5652, 5.1.
///
/// The type of the `cms` crate (0.3.0-rc.0) sorts certificates and signers by something else than
/// their encoding (`CertificateChoices::value_cmp`): its own output is not DER, and what openssl
/// made comes out of it changed. Elements that are not decoded sort right, and keep their bytes.
#[derive(Clone, Debug, Sequence)]
pub(in crate::trust) struct SignedData {
    pub version: CmsVersion,
    pub digest_algorithms: DigestAlgorithmIdentifiers,
    pub encap_content_info: EncapsulatedContentInfo,
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT", constructed = "true", optional = "true")]
    pub certificates: Option<SetOfVec<Any>>,
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", constructed = "true", optional = "true")]
    pub crls: Option<SetOfVec<Any>>,
    pub signer_infos: SetOfVec<Any>,
}
