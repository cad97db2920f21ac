//! Making keys.

use std::fmt;

use der::pem;
use ed25519_dalek::pkcs8::{EncodePrivateKey, EncodePublicKey, KeypairBytes};
use thiserror::Error;
use zeroize::Zeroizing;

/// A new pair of keys, as text to be written into files.
pub struct Generated {
    /// The private key: PKCS#8 in PEM, not encrypted. Wiped from memory when it is dropped.
    pub private: Zeroizing<String>,
    /// The public key in PEM.
    pub public: String,
}

/// Why no key could be made.
#[derive(Debug, Error)]
#[error("no key could be made: {0}")]
pub struct GenerateError(String);

/// Makes an Ed25519 key from the kernel's random numbers.
///
/// # Errors
/// If the kernel has none.
pub fn generate_ed25519() -> Result<Generated, GenerateError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).map_err(|error| GenerateError(error.to_string()))?;
    // Wipes itself when it is dropped.
    let key = ed25519_dalek::SigningKey::from_bytes(&seed);
    let ending = pem::LineEnding::LF;
    let failed = |error: &dyn fmt::Display| GenerateError(error.to_string());
    // Without the public half, with which openssl 3.0 cannot read it.
    let private = KeypairBytes { secret_key: *seed, public_key: None };
    Ok(Generated {
        private: private.to_pkcs8_pem(ending).map_err(|error| failed(&error))?,
        public: key.verifying_key().to_public_key_pem(ending).map_err(|error| failed(&error))?,
    })
}
