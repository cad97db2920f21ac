//! Making signatures, for those whose key is in a file. Who keeps keys in hardware signs with
//! `openssl cms`; the results are the same.

use std::fmt;

use cms::{
    cert::IssuerAndSerialNumber,
    content_info::CmsVersion,
    signed_data::{SignedAttributes, SignerIdentifier, SignerInfo},
};
use const_oid::db::{rfc5911, rfc5912, rfc8410};
use der::{
    Any, AnyRef, Decode, Encode, Tag,
    asn1::{OctetString, SetOfVec},
    pem,
};
use ed25519_dalek::{SIGNATURE_LENGTH, Signer as _, pkcs8::DecodePrivateKey};
use p256::ecdsa::signature::hazmat::PrehashSigner;
use rsa::Pkcs1v15Sign;
use sha2::Sha256;
use spki::AlgorithmIdentifierOwned;
use thiserror::Error;
use x509_cert::attr::Attribute;
use zeroize::Zeroizing;

use super::{
    Certificate, HashAlgorithm,
    cms::signed_data::{ContentInfo, Encapsulated, SignedData},
    key::{KeyError, MAX_KEY_BYTES, PublicKey},
};

/// A private key. The libraries wipe it from memory when it is dropped.
pub struct PrivateKey {
    material: Material,
    public: PublicKey,
}

enum Material {
    Rsa(Box<rsa::PrivateKey>),
    P256(Box<p256::ecdsa::SigningKey>),
    P384(Box<p384::ecdsa::SigningKey>),
    Ed25519(Box<ed25519_dalek::SigningKey>),
}

/// Why nothing could be signed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SignError {
    /// The key is encrypted.
    #[error("the private key is encrypted")]
    Encrypted,
    /// The key is in a form of its own.
    #[error("the private key is a `{0}`, not a `PRIVATE KEY`")]
    OtherForm(String),
    /// It is no private key.
    #[error("no private key: {0}")]
    Malformed(String),
    /// The key is not accepted.
    #[error("the private key is {0}")]
    Key(#[from] KeyError),
    /// A bare signature needs another key.
    #[error("a bare signature is made by an Ed25519 key, and this is one for {0}")]
    NotEd25519(String),
    /// The certificate belongs to another key.
    #[error("the certificate of {0} is not this key's")]
    OtherCertificate(String),
    /// The library failed.
    #[error("signing failed: {0}")]
    Failed(String),
}

impl SignError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        let text = match self {
            Self::Encrypted => {
                "decrypt it (`openssl pkey -in KEY -out PLAIN`) where only you can read it, or \
                 sign with `openssl cms -sign -binary -outform DER`, which asks for the password"
            }
            Self::OtherForm(_) | Self::Malformed(_) => {
                "convert it: `openssl pkcs8 -topk8 -nocrypt -in KEY -out PLAIN`"
            }
            Self::Key(error) => return error.help(),
            Self::NotEd25519(_) => "give its certificate as well, to make a CMS signature",
            Self::OtherCertificate(_) => "give the certificate that was issued for this key",
            Self::Failed(_) => return None,
        };
        Some(text.into())
    }
}

fn failed(error: impl fmt::Display) -> SignError {
    SignError::Failed(error.to_string())
}

impl PrivateKey {
    /// Reads a private key: PKCS#8 in PEM (`PRIVATE KEY`), not encrypted.
    ///
    /// # Errors
    /// If it is none, encrypted, weak, or for an algorithm that is not accepted.
    pub fn read(bytes: &[u8]) -> Result<Self, SignError> {
        if bytes.len() > MAX_KEY_BYTES {
            return Err(SignError::Malformed(format!("{} bytes", bytes.len())));
        }
        let (label, der) = pem::decode_vec(bytes.trim_ascii())
            .map_err(|error| SignError::Malformed(format!("unreadable PEM: {error}")))?;
        let der = Zeroizing::new(der);
        match label {
            "PRIVATE KEY" => {}
            "ENCRYPTED PRIVATE KEY" => return Err(SignError::Encrypted),
            other => return Err(SignError::OtherForm(other.into())),
        }
        let info = ed25519_dalek::pkcs8::PrivateKeyInfoRef::from_der(&der)
            .map_err(|error| SignError::Malformed(error.to_string()))?;
        let malformed =
            |error: ed25519_dalek::pkcs8::Error| SignError::Malformed(error.to_string());
        let curve = info.algorithm.parameters_oid().ok();
        let material = match (info.algorithm.oid, curve) {
            (rfc5912::RSA_ENCRYPTION, _) => {
                Material::Rsa(Box::new(rsa::PrivateKey::from_pkcs8_der(&der).map_err(malformed)?))
            }
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_256_R_1)) => Material::P256(Box::new(
                p256::ecdsa::SigningKey::from_pkcs8_der(&der).map_err(malformed)?,
            )),
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_384_R_1)) => Material::P384(Box::new(
                p384::ecdsa::SigningKey::from_pkcs8_der(&der).map_err(malformed)?,
            )),
            (rfc8410::ID_ED_25519, _) => Material::Ed25519(Box::new(
                ed25519_dalek::SigningKey::from_pkcs8_der(&der).map_err(malformed)?,
            )),
            (_, Some(curve)) => {
                return Err(KeyError::Algorithm(super::algorithm::name_of(curve)).into());
            }
            (other, None) => {
                return Err(KeyError::Algorithm(super::algorithm::name_of(other)).into());
            }
        };
        let public = public_of(&material)?;
        Ok(Self { material, public })
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// What this key signs over in a CMS signature.
    const fn hash(&self) -> HashAlgorithm {
        match self.material {
            Material::Rsa(_) | Material::P256(_) => HashAlgorithm::Sha256,
            Material::P384(_) => HashAlgorithm::Sha384,
            Material::Ed25519(_) => HashAlgorithm::Sha512,
        }
    }

    pub(super) fn sign(
        &self,
        message: &[u8],
    ) -> Result<(AlgorithmIdentifierOwned, Vec<u8>), SignError> {
        let digest = self.hash().of(message);
        let (oid, parameters, signature) = match &self.material {
            Material::Rsa(key) => {
                let padding = Pkcs1v15Sign::new::<Sha256>();
                // Blinded: how long it takes must not tell about the key (RUSTSEC-2023-0071).
                let signature = key.sign_with_rng(&mut getrandom::SysRng, padding, &digest);
                let oid = rfc5912::SHA_256_WITH_RSA_ENCRYPTION;
                (oid, Some(Any::null()), signature.map_err(failed)?)
            }
            Material::P256(key) => {
                let signature: p256::ecdsa::Signature =
                    key.sign_prehash(&digest).map_err(failed)?;
                (rfc5912::ECDSA_WITH_SHA_256, None, signature.to_der().as_bytes().to_vec())
            }
            Material::P384(key) => {
                let signature: p384::ecdsa::Signature =
                    key.sign_prehash(&digest).map_err(failed)?;
                (rfc5912::ECDSA_WITH_SHA_384, None, signature.to_der().as_bytes().to_vec())
            }
            Material::Ed25519(key) => {
                (rfc8410::ID_ED_25519, None, key.sign(message).to_bytes().to_vec())
            }
        };
        Ok((AlgorithmIdentifierOwned { oid, parameters }, signature))
    }
}

fn public_of(material: &Material) -> Result<PublicKey, SignError> {
    use ed25519_dalek::pkcs8::EncodePublicKey;
    let der = match material {
        Material::Rsa(key) => key.as_public_key().to_public_key_der(),
        Material::P256(key) => key.verifying_key().to_public_key_der(),
        Material::P384(key) => key.verifying_key().to_public_key_der(),
        Material::Ed25519(key) => key.verifying_key().to_public_key_der(),
    };
    Ok(PublicKey::from_der(der.map_err(failed)?.as_bytes())?)
}

/// A bare Ed25519 signature over the content, as [`raw`](super::raw) verifies it.
///
/// # Errors
/// If the key is another one.
pub fn raw(key: &PrivateKey, content: &[u8]) -> Result<[u8; SIGNATURE_LENGTH], SignError> {
    match &key.material {
        Material::Ed25519(key) => Ok(key.sign(content).to_bytes()),
        _ => Err(SignError::NotEd25519(key.public.kind().to_string())),
    }
}

/// Where the content of a CMS signature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Beside the signature.
    Detached,
    /// In it.
    Attached,
}

/// A CMS signature over the content, in DER, as [`cms`](super::cms) and
/// `openssl cms -verify -binary -inform DER` verify it. `certificate` is the key's; `between` are
/// the certificates from there to one that the devices know, without that one.
///
/// It does not say when it was made: nobody vouches for the clock here.
///
/// # Errors
/// If the certificate is not the key's, or the library fails.
pub fn cms(
    key: &PrivateKey,
    certificate: &Certificate,
    between: &[Certificate],
    content: &[u8],
    place: Content,
) -> Result<Vec<u8>, SignError> {
    if certificate.raw_key() != Ok(&key.public) {
        return Err(SignError::OtherCertificate(certificate.subject()));
    }
    let hash = key.hash();
    let digest_alg = AlgorithmIdentifierOwned { oid: hash.oid(), parameters: None };
    let attributes = attributes(&hash.of(content)).map_err(failed)?;
    let (signature_algorithm, signature) = key.sign(&attributes.to_der().map_err(failed)?)?;
    let signer = SignerInfo {
        version: CmsVersion::V1,
        sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
            issuer: certificate.issuer().clone(),
            serial_number: certificate.serial().clone(),
        }),
        digest_alg: digest_alg.clone(),
        signed_attrs: Some(attributes),
        signature_algorithm,
        signature: OctetString::new(signature).map_err(failed)?,
        unsigned_attrs: None,
    };
    let signer = signer.to_der().map_err(failed)?;
    frame(
        digest_alg,
        (place == Content::Attached).then_some(content),
        certificate,
        between,
        &signer,
    )
    .map_err(failed)
}

fn frame(
    digest_algorithm: AlgorithmIdentifierOwned,
    content: Option<&[u8]>,
    certificate: &Certificate,
    between: &[Certificate],
    signer: &[u8],
) -> der::Result<Vec<u8>> {
    let certificates = std::iter::once(certificate).chain(between);
    let certificates = certificates.map(|certificate| AnyRef::from_der(certificate.der()));
    let data = SignedData {
        version: CmsVersion::V1,
        digest_algorithms: SetOfVec::try_from(vec![digest_algorithm])?,
        encapsulated: Encapsulated {
            content_type: rfc5911::ID_DATA,
            content: content.map(|bytes| AnyRef::new(Tag::OctetString, bytes)).transpose()?,
        },
        certificates: Some(SetOfVec::try_from(certificates.collect::<der::Result<Vec<_>>>()?)?),
        crls: None,
        signer_infos: SetOfVec::try_from(vec![AnyRef::from_der(signer)?])?,
    };
    let data = data.to_der()?;
    let content_type = rfc5911::ID_SIGNED_DATA;
    ContentInfo { content_type, content: AnyRef::from_der(&data)? }.to_der()
}

fn attributes(digest: &[u8]) -> der::Result<SignedAttributes> {
    let attribute = |oid, value| -> der::Result<Attribute> {
        Ok(Attribute { oid, values: SetOfVec::try_from(vec![value])? })
    };
    SetOfVec::try_from(vec![
        attribute(rfc5911::ID_CONTENT_TYPE, Any::encode_from(&rfc5911::ID_DATA)?)?,
        attribute(rfc5911::ID_MESSAGE_DIGEST, Any::new(Tag::OctetString, digest)?)?,
    ])
}
