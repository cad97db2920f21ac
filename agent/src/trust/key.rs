//! Public keys: reading them, naming them, and verifying with them.

mod generate;

use std::fmt;

use const_oid::{
    ObjectIdentifier,
    db::{rfc5912, rfc8410},
};
use der::{Decode, Encode, pem};
use ed25519_dalek::pkcs8::EncodePublicKey;
pub use generate::{GenerateError, Generated, generate_ed25519};
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use rsa::{Pkcs1v15Sign, Pss, traits::PublicKeyParts};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};
use spki::{SubjectPublicKeyInfoOwned, SubjectPublicKeyInfoRef};
use thiserror::Error;

use super::algorithm::{HashAlgorithm, Scheme, name_of};

/// The shortest RSA modulus that is accepted, in bits.
pub const MIN_RSA_BITS: usize = 2048;
/// The longest, so that one signature cannot keep the agent busy.
pub const MAX_RSA_BITS: usize = 8192;
const MIN_RSA_EXPONENT: u64 = 65537;

/// The largest file with a key that is read.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// A public key of an algorithm and a strength that is accepted.
#[derive(Clone)]
pub struct PublicKey {
    material: Material,
    id: [u8; 32],
    key_identifier: [u8; 20],
}

#[derive(Clone)]
enum Material {
    Rsa(Box<rsa::PublicKey>),
    P256(Box<p256::ecdsa::VerifyingKey>),
    P384(Box<p384::ecdsa::VerifyingKey>),
    Ed25519(Box<ed25519_dalek::VerifyingKey>),
}

/// What a public key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA with a modulus of so many bits.
    Rsa(usize),
    /// ECDSA over NIST P-256.
    P256,
    /// ECDSA over NIST P-384.
    P384,
    /// Ed25519.
    Ed25519,
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa(bits) => write!(f, "RSA {bits}"),
            Self::P256 => f.write_str("ECDSA P-256"),
            Self::P384 => f.write_str("ECDSA P-384"),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

/// Why a public key is not accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// It is not what it should be.
    #[error("no public key: {0}")]
    Malformed(String),
    /// A private key was given.
    #[error("a private key where a public key belongs")]
    Private,
    /// It can be broken.
    #[error("a weak key: {0}")]
    Weak(String),
    /// An RSA modulus that is too long.
    #[error("an RSA key of {0} bits")]
    TooLong(usize),
    /// An algorithm, or a curve, that is not known here.
    #[error("a key for {0}")]
    Algorithm(String),
}

impl KeyError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<String> {
        const KNOWN: &str = "use RSA with 2048 to 8192 bits, ECDSA P-256 or P-384, or Ed25519";
        match self {
            Self::Malformed(_) => {
                Some("give it as `openssl pkey -pubout` writes it (`PUBLIC KEY`), or in DER".into())
            }
            Self::Private => Some(
                "keep it secret, and give what `openssl pkey -in KEY -pubout` makes from it".into(),
            ),
            Self::Weak(_) | Self::TooLong(_) => Some(KNOWN.into()),
            Self::Algorithm(name) if name.contains("RSASSA-PSS") => {
                Some("make the key as plain RSA, which may sign with PSS as well".into())
            }
            Self::Algorithm(_) => Some(KNOWN.into()),
        }
    }
}

/// Why a signature does not verify with a key.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum VerifyError {
    /// The key is for another algorithm.
    #[error("a signature by {scheme} cannot come from a key for {key}")]
    OtherAlgorithm {
        /// What the signature says.
        scheme: Scheme,
        /// What the key is.
        key: KeyKind,
    },
    /// A digest of another length than the hash has.
    #[error("{0} bytes where a digest belongs")]
    DigestLength(usize),
    /// Ed25519 signs the whole message, so a digest is not enough.
    #[error("Ed25519 signs the message and not its digest")]
    NeedsMessage,
    /// It is not this key's signature over this message.
    #[error("the signature is not right")]
    Wrong,
}

impl PublicKey {
    /// Reads a key in PEM (`PUBLIC KEY`) or DER (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// If it is no public key, a weak one, or for an algorithm that is not accepted.
    pub fn read(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.len() > MAX_KEY_BYTES {
            return Err(KeyError::Malformed(format!("{} bytes", bytes.len())));
        }
        if bytes.trim_ascii_start().starts_with(b"-----BEGIN ") {
            return Self::from_pem(bytes.trim_ascii());
        }
        Self::from_der(bytes)
    }

    fn from_pem(bytes: &[u8]) -> Result<Self, KeyError> {
        let (label, der) = pem::decode_vec(bytes)
            .map_err(|error| KeyError::Malformed(format!("unreadable PEM: {error}")))?;
        match label {
            "PUBLIC KEY" => Self::from_der(&der),
            label if label.ends_with("PRIVATE KEY") => Err(KeyError::Private),
            label => Err(KeyError::Malformed(format!("PEM of a `{label}`"))),
        }
    }

    /// Reads a key in DER (SubjectPublicKeyInfo).
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn from_der(bytes: &[u8]) -> Result<Self, KeyError> {
        let info = SubjectPublicKeyInfoRef::from_der(bytes)
            .map_err(|error| KeyError::Malformed(error.to_string()))?;
        let curve = match info.algorithm.parameters {
            None => None,
            Some(any) if any.is_null() && info.algorithm.oid == rfc5912::RSA_ENCRYPTION => None,
            Some(any) => Some(any.decode_as().map_err(|_| {
                KeyError::Malformed(format!("parameters of {}", name_of(info.algorithm.oid)))
            })?),
        };
        let bits = info.subject_public_key.as_bytes();
        let bits = bits.ok_or_else(|| KeyError::Malformed("unused bits".into()))?;
        Self::from_parts(info.algorithm.oid, curve, bits)
    }

    pub(super) fn from_info(info: &SubjectPublicKeyInfoOwned) -> Result<Self, KeyError> {
        let der = info.to_der().map_err(|error| KeyError::Malformed(error.to_string()))?;
        Self::from_der(&der)
    }

    /// Makes it from what a SubjectPublicKeyInfo holds: algorithm, curve and bits.
    pub(super) fn from_parts(
        algorithm: ObjectIdentifier,
        curve: Option<ObjectIdentifier>,
        bits: &[u8],
    ) -> Result<Self, KeyError> {
        let malformed = |what: &str| KeyError::Malformed(format!("the {what} key is damaged"));
        let material = match (algorithm, curve) {
            (rfc5912::RSA_ENCRYPTION, None) => Material::Rsa(Box::new(rsa_key(bits)?)),
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_256_R_1)) => {
                let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(bits);
                Material::P256(Box::new(key.map_err(|_| malformed("P-256"))?))
            }
            (rfc5912::ID_EC_PUBLIC_KEY, Some(rfc5912::SECP_384_R_1)) => {
                let key = p384::ecdsa::VerifyingKey::from_sec1_bytes(bits);
                Material::P384(Box::new(key.map_err(|_| malformed("P-384"))?))
            }
            (rfc8410::ID_ED_25519, None) => Material::Ed25519(Box::new(ed25519_key(bits)?)),
            (rfc5912::ID_EC_PUBLIC_KEY, Some(curve)) => {
                return Err(KeyError::Algorithm(format!("ECDSA over {}", name_of(curve))));
            }
            (rfc5912::ID_EC_PUBLIC_KEY, None) => {
                return Err(KeyError::Algorithm("ECDSA over a curve without a name".into()));
            }
            (rfc5912::ID_RSASSA_PSS, _) => {
                return Err(KeyError::Algorithm("RSASSA-PSS alone".into()));
            }
            (other, _) => return Err(KeyError::Algorithm(name_of(other))),
        };
        Self::from_material(material)
    }

    fn from_material(material: Material) -> Result<Self, KeyError> {
        // Encoded anew: the same key must not get another id by another way to write it, such as
        // a compressed point, or it would slip past its revocation.
        let der = match &material {
            Material::Rsa(key) => key.to_public_key_der(),
            Material::P256(key) => key.to_public_key_der(),
            Material::P384(key) => key.to_public_key_der(),
            Material::Ed25519(key) => key.to_public_key_der(),
        };
        let malformed = |error: &dyn fmt::Display| KeyError::Malformed(error.to_string());
        let der = der.map_err(|error| malformed(&error))?;
        let info = SubjectPublicKeyInfoRef::from_der(der.as_bytes());
        let info = info.map_err(|error| malformed(&error))?;
        let key_identifier = Sha1::digest(info.subject_public_key.raw_bytes()).into();
        Ok(Self { material, id: Sha256::digest(der.as_bytes()).into(), key_identifier })
    }

    /// The key in PEM.
    ///
    /// # Errors
    /// If the library fails, which it does not with keys that were read.
    pub fn pem(&self) -> Result<String, KeyError> {
        let ending = pem::LineEnding::LF;
        let pem = match &self.material {
            Material::Rsa(key) => key.to_public_key_pem(ending),
            Material::P256(key) => key.to_public_key_pem(ending),
            Material::P384(key) => key.to_public_key_pem(ending),
            Material::Ed25519(key) => key.to_public_key_pem(ending),
        };
        pem.map_err(|error| KeyError::Malformed(error.to_string()))
    }

    /// The key's identity: the SHA-256 of its SubjectPublicKeyInfo, as
    /// `openssl pkey -pubin -outform DER | sha256sum` prints it.
    #[must_use]
    pub const fn id(&self) -> &[u8; 32] {
        &self.id
    }

    /// The SHA-1 of the key's bits, by which most makers of certificates name the key in the
    /// `subjectKeyIdentifier` (RFC 5280, 4.2.1.2, method 1). It names and proves nothing.
    #[must_use]
    pub const fn key_identifier(&self) -> &[u8; 20] {
        &self.key_identifier
    }

    /// The id that `evmctl` writes into a `security.ima` signature for a key without a
    /// certificate: the last four bytes of [`key_identifier`](Self::key_identifier)
    /// (`calc_keyid_v2` in ima-evm-utils).
    #[must_use]
    pub const fn ima_key_id(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.key_identifier;
        [a, b, c, d]
    }

    /// What the key is.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match &self.material {
            Material::Rsa(key) => KeyKind::Rsa(bits_of(key)),
            Material::P256(_) => KeyKind::P256,
            Material::P384(_) => KeyKind::P384,
            Material::Ed25519(_) => KeyKind::Ed25519,
        }
    }

    /// The algorithm of a signature by this key, for people: `RSA-PSS 3072 SHA-256`.
    #[must_use]
    pub fn describe(&self, scheme: Scheme) -> String {
        match (scheme, self.kind()) {
            (Scheme::RsaPkcs1(hash), KeyKind::Rsa(bits)) => format!("RSA {bits} {hash}"),
            (Scheme::RsaPss { hash, .. }, KeyKind::Rsa(bits)) => format!("RSA-PSS {bits} {hash}"),
            (Scheme::Ecdsa(hash), kind) => format!("{kind} {hash}"),
            (_, kind) => kind.to_string(),
        }
    }

    /// Verifies a signature over a message.
    ///
    /// # Errors
    /// If it is not this key's signature over the message.
    pub fn verify(
        &self,
        message: &[u8],
        scheme: Scheme,
        signature: &[u8],
    ) -> Result<(), VerifyError> {
        match (&self.material, scheme) {
            (Material::Ed25519(key), Scheme::Ed25519) => {
                let signature = ed25519_dalek::Signature::from_slice(signature);
                let signature = signature.map_err(|_| VerifyError::Wrong)?;
                // Strict: else one signature can be rewritten into another that verifies as well.
                key.verify_strict(message, &signature).map_err(|_| VerifyError::Wrong)
            }
            (_, scheme) => match scheme.hash() {
                Some(hash) => self.verify_digest(scheme, &hash.of(message), signature),
                None => Err(VerifyError::OtherAlgorithm { scheme, key: self.kind() }),
            },
        }
    }

    /// Verifies a signature over a message whose digest was worked out elsewhere: PKCS#1 v1.5 by
    /// an RSA key, ECDSA in DER by another.
    ///
    /// # Errors
    /// As for [`verify`](Self::verify), and for every Ed25519 key.
    pub fn verify_prehashed(
        &self,
        hash: HashAlgorithm,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(), VerifyError> {
        let scheme = match self.kind() {
            KeyKind::Rsa(_) => Scheme::RsaPkcs1(hash),
            KeyKind::P256 | KeyKind::P384 => Scheme::Ecdsa(hash),
            KeyKind::Ed25519 => return Err(VerifyError::NeedsMessage),
        };
        self.verify_digest(scheme, digest, signature)
    }

    /// As [`verify_prehashed`](Self::verify_prehashed), with any scheme that signs a digest.
    ///
    /// # Errors
    /// As there.
    pub fn verify_digest(
        &self,
        scheme: Scheme,
        digest: &[u8],
        signature: &[u8],
    ) -> Result<(), VerifyError> {
        if scheme.hash().is_some_and(|hash| hash.len() != digest.len()) {
            return Err(VerifyError::DigestLength(digest.len()));
        }
        let verified = match (&self.material, scheme) {
            (Material::Rsa(key), Scheme::RsaPkcs1(hash)) => {
                let padding = match hash {
                    HashAlgorithm::Sha256 => Pkcs1v15Sign::new::<Sha256>(),
                    HashAlgorithm::Sha384 => Pkcs1v15Sign::new::<Sha384>(),
                    HashAlgorithm::Sha512 => Pkcs1v15Sign::new::<Sha512>(),
                };
                key.verify(padding, digest, signature).is_ok()
            }
            (Material::Rsa(key), Scheme::RsaPss { hash, salt }) => {
                let salt = usize::from(salt);
                match hash {
                    HashAlgorithm::Sha256 => {
                        key.verify(Pss::<Sha256>::new_with_salt(salt), digest, signature)
                    }
                    HashAlgorithm::Sha384 => {
                        key.verify(Pss::<Sha384>::new_with_salt(salt), digest, signature)
                    }
                    HashAlgorithm::Sha512 => {
                        key.verify(Pss::<Sha512>::new_with_salt(salt), digest, signature)
                    }
                }
                .is_ok()
            }
            (Material::P256(key), Scheme::Ecdsa(_)) => p256::ecdsa::Signature::from_der(signature)
                .and_then(|signature| key.verify_prehash(digest, &signature))
                .is_ok(),
            (Material::P384(key), Scheme::Ecdsa(_)) => p384::ecdsa::Signature::from_der(signature)
                .and_then(|signature| key.verify_prehash(digest, &signature))
                .is_ok(),
            (Material::Ed25519(_), Scheme::Ed25519) => return Err(VerifyError::NeedsMessage),
            (_, scheme) => return Err(VerifyError::OtherAlgorithm { scheme, key: self.kind() }),
        };
        if verified { Ok(()) } else { Err(VerifyError::Wrong) }
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({}, {})", self.kind(), hex::encode(self.id))
    }
}

fn bits_of(key: &rsa::PublicKey) -> usize {
    usize::try_from(key.n().bit_width_vartime()).unwrap_or(usize::MAX)
}

fn rsa_key(bits: &[u8]) -> Result<rsa::PublicKey, KeyError> {
    let malformed = || KeyError::Malformed("the RSA key is damaged".into());
    let parts = rsa::pkcs1::RsaPublicKeyRef::from_der(bits).map_err(|_| malformed())?;
    // Measured before the library looks at it, which has limits of its own and does not say which.
    let length = bit_length(parts.modulus.as_bytes());
    if length < MIN_RSA_BITS {
        return Err(KeyError::Weak(format!("RSA with {length} bits")));
    }
    if length > MAX_RSA_BITS {
        return Err(KeyError::TooLong(length));
    }
    let exponent = parts.public_exponent.as_bytes();
    if bit_length(exponent) <= 64 {
        let exponent = exponent.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
        if exponent < MIN_RSA_EXPONENT {
            return Err(KeyError::Weak(format!("RSA with the exponent {exponent}")));
        }
    }
    rsa::PublicKey::try_from(parts).map_err(|_| malformed())
}

fn bit_length(bytes: &[u8]) -> usize {
    let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    let unused = bytes.first().map_or(0, |byte| byte.leading_zeros());
    bytes.len() * 8 - unused as usize
}

fn ed25519_key(bits: &[u8]) -> Result<ed25519_dalek::VerifyingKey, KeyError> {
    let malformed = || KeyError::Malformed("the Ed25519 key is damaged".into());
    let bits = bits.try_into().map_err(|_| malformed())?;
    let key = ed25519_dalek::VerifyingKey::from_bytes(bits).map_err(|_| malformed())?;
    // Anybody can sign for a point of small order.
    if key.is_weak() {
        return Err(KeyError::Weak("Ed25519 with a point of small order".into()));
    }
    Ok(key)
}
