//! The algorithms that are accepted, and how certificates and signatures name them.

use std::fmt;

use const_oid::{
    ObjectIdentifier,
    db::{DB, rfc5912, rfc8410},
};
use der::Decode;
use rsa::pkcs1::RsaPssParamsOwned;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256, Sha384, Sha512};
use spki::AlgorithmIdentifierOwned;
use thiserror::Error;

const SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
const MD5: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.2.5");
const ECDSA_WITH_SHA_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.1");
const MGF_1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.8");

/// A hash algorithm that a signature may be made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

impl HashAlgorithm {
    /// The hash of bytes that are at hand.
    #[must_use]
    pub fn of(self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(message).to_vec(),
            Self::Sha384 => Sha384::digest(message).to_vec(),
            Self::Sha512 => Sha512::digest(message).to_vec(),
        }
    }

    /// How many bytes a hash has.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no hash is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// How certificates and signatures name it.
    #[must_use]
    pub const fn oid(self) -> ObjectIdentifier {
        match self {
            Self::Sha256 => rfc5912::ID_SHA_256,
            Self::Sha384 => rfc5912::ID_SHA_384,
            Self::Sha512 => rfc5912::ID_SHA_512,
        }
    }

    /// Reads an algorithm identifier that names a hash.
    ///
    /// # Errors
    /// If it names a broken hash or one that is not known here.
    pub fn from_identifier(id: &AlgorithmIdentifierOwned) -> Result<Self, AlgorithmError> {
        without_parameters(id)?;
        Self::from_oid(id.oid)
    }

    fn from_oid(oid: ObjectIdentifier) -> Result<Self, AlgorithmError> {
        match oid {
            rfc5912::ID_SHA_256 => Ok(Self::Sha256),
            rfc5912::ID_SHA_384 => Ok(Self::Sha384),
            rfc5912::ID_SHA_512 => Ok(Self::Sha512),
            SHA_1 => Err(AlgorithmError::WeakHash("SHA-1")),
            MD5 => Err(AlgorithmError::WeakHash("MD5")),
            rfc5912::ID_SHA_224 => Err(AlgorithmError::WeakHash("SHA-224")),
            other => Err(AlgorithmError::unknown(other)),
        }
    }
}

impl fmt::Display for HashAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
            Self::Sha512 => "SHA-512",
        })
    }
}

impl Serialize for HashAlgorithm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How a signature is made: the key's algorithm, its padding, and the hash below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// RSA with the padding of PKCS#1 v1.5.
    RsaPkcs1(HashAlgorithm),
    /// RSA with PSS; the mask is made with the same hash.
    RsaPss {
        /// The hash of the message and of the mask.
        hash: HashAlgorithm,
        /// Bytes of salt.
        salt: u8,
    },
    /// ECDSA, the signature in DER.
    Ecdsa(HashAlgorithm),
    /// Ed25519, which signs the message itself.
    Ed25519,
}

impl Scheme {
    /// The hash below it, where the scheme leaves a choice.
    #[must_use]
    pub const fn hash(self) -> Option<HashAlgorithm> {
        match self {
            Self::RsaPkcs1(hash) | Self::RsaPss { hash, .. } | Self::Ecdsa(hash) => Some(hash),
            Self::Ed25519 => None,
        }
    }

    /// Reads a signature's algorithm identifier. `digest` is the hash that the signature says it
    /// is over, which plain `rsaEncryption` leaves to it.
    ///
    /// # Errors
    /// If it is weak or not known here. Whether it agrees with `digest` is not looked at.
    pub fn from_identifier(
        id: &AlgorithmIdentifierOwned,
        digest: HashAlgorithm,
    ) -> Result<Self, AlgorithmError> {
        use HashAlgorithm::{Sha256, Sha384, Sha512};
        if id.oid == rfc5912::ID_RSASSA_PSS {
            return pss(id);
        }
        without_parameters(id)?;
        Ok(match id.oid {
            rfc5912::RSA_ENCRYPTION => Self::RsaPkcs1(digest),
            rfc5912::SHA_256_WITH_RSA_ENCRYPTION => Self::RsaPkcs1(Sha256),
            rfc5912::SHA_384_WITH_RSA_ENCRYPTION => Self::RsaPkcs1(Sha384),
            rfc5912::SHA_512_WITH_RSA_ENCRYPTION => Self::RsaPkcs1(Sha512),
            rfc5912::ECDSA_WITH_SHA_256 => Self::Ecdsa(Sha256),
            rfc5912::ECDSA_WITH_SHA_384 => Self::Ecdsa(Sha384),
            rfc5912::ECDSA_WITH_SHA_512 => Self::Ecdsa(Sha512),
            rfc8410::ID_ED_25519 => Self::Ed25519,
            rfc5912::SHA_1_WITH_RSA_ENCRYPTION | ECDSA_WITH_SHA_1 => {
                return Err(AlgorithmError::WeakHash("SHA-1"));
            }
            rfc5912::MD_5_WITH_RSA_ENCRYPTION => return Err(AlgorithmError::WeakHash("MD5")),
            other => return Err(AlgorithmError::unknown(other)),
        })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RsaPkcs1(hash) => write!(f, "RSA PKCS#1 v1.5 with {hash}"),
            Self::RsaPss { hash, .. } => write!(f, "RSA-PSS with {hash}"),
            Self::Ecdsa(hash) => write!(f, "ECDSA with {hash}"),
            Self::Ed25519 => f.write_str("Ed25519"),
        }
    }
}

/// Why an algorithm is not accepted.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AlgorithmError {
    /// A hash that others can be made to collide with.
    #[error("the hash {0}")]
    WeakHash(&'static str),
    /// An algorithm that is not known here; its name or its number.
    #[error("the algorithm {0}")]
    Unknown(String),
    /// An algorithm with parameters that make it another one.
    #[error("{0}")]
    Parameters(String),
}

impl AlgorithmError {
    pub(super) fn unknown(oid: ObjectIdentifier) -> Self {
        Self::Unknown(name_of(oid))
    }
}

/// An algorithm's or field's name with its number, or the number alone.
pub(super) fn name_of(oid: ObjectIdentifier) -> String {
    DB.by_oid(&oid).map_or_else(|| oid.to_string(), |name| format!("{name} ({oid})"))
}

/// The algorithms here have none; some encoders write NULL and some nothing.
fn without_parameters(id: &AlgorithmIdentifierOwned) -> Result<(), AlgorithmError> {
    match &id.parameters {
        None => Ok(()),
        Some(any) if any.is_null() => Ok(()),
        Some(_) => Err(AlgorithmError::Parameters(format!("{} with parameters", name_of(id.oid)))),
    }
}

fn pss(id: &AlgorithmIdentifierOwned) -> Result<Scheme, AlgorithmError> {
    let unreadable = || {
        AlgorithmError::Parameters(
            "RSA-PSS with parameters that cannot be read, or more than 255 bytes of salt".into(),
        )
    };
    let parameters = id.parameters.as_ref().ok_or_else(unreadable)?;
    let parameters: RsaPssParamsOwned = parameters.decode_as().map_err(|_| unreadable())?;
    let hash = HashAlgorithm::from_oid(parameters.hash.oid)?;
    let mask = parameters.mask_gen;
    if mask.oid != MGF_1 {
        return Err(AlgorithmError::unknown(mask.oid));
    }
    let mask_hash = mask.parameters.ok_or_else(unreadable)?;
    if mask_hash.oid != parameters.hash.oid {
        return Err(AlgorithmError::Parameters(format!(
            "RSA-PSS with the hash {hash} and a mask of {}",
            name_of(mask_hash.oid)
        )));
    }
    Ok(Scheme::RsaPss { hash, salt: parameters.salt_len })
}

/// Reads an algorithm identifier by itself.
pub(super) fn identifier(der: &[u8]) -> der::Result<AlgorithmIdentifierOwned> {
    AlgorithmIdentifierOwned::from_der(der)
}
