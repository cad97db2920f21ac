//! The extended attribute `security.ima`, as `evmctl` and package managers write it.

use super::Malformed;
use crate::trust::HashAlgorithm;

/// The attribute's name.
pub const ATTRIBUTE: &str = "security.ima";

/// The longest attribute that is read: a signature by the longest RSA key has 1033 bytes.
pub const MAX_BYTES: usize = 2048;

// `enum evm_ima_xattr_type` in the kernel's security/integrity/integrity.h.
const PLAIN_DIGEST: u8 = 1;
const SIGNATURE: u8 = 3;
const DIGEST: u8 = 4;
const VERITY_SIGNATURE: u8 = 6;

/// `struct signature_v2_hdr` without the signature: type, version, hash, key id, length.
const HEADER: usize = 9;

/// What was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The file's content.
    Content,
    /// The digest that fs-verity verifies the file against.
    Verity,
}

/// A signature, of which only the form is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What was signed.
    pub over: Over,
    /// With which hash.
    pub hash: HashAlgorithm,
    /// The last bytes of the key's identifier.
    pub key_id: [u8; 4],
    /// The signature itself.
    pub bytes: Vec<u8>,
}

impl Signature {
    /// What the signature is over, by the file's digest or its fs-verity digest (`struct
    /// ima_file_id` in the kernel's `ima_appraise.c`).
    #[must_use]
    pub fn signed_digest(&self, digest: &[u8]) -> Vec<u8> {
        match self.over {
            Over::Content => digest.to_vec(),
            Over::Verity => {
                let header = [VERITY_SIGNATURE, number(self.hash)];
                self.hash.of(&[&header[..], digest].concat())
            }
        }
    }
}

/// Reads the attribute. `None` if it is a digest, which anybody can write.
///
/// # Errors
/// If it is neither that nor a signature of a form that is accepted.
pub fn parse(attribute: &[u8]) -> Result<Option<Signature>, Malformed> {
    let what = "security.ima";
    if attribute.len() > MAX_BYTES {
        return Err(Malformed::TooLarge { what, limit: MAX_BYTES });
    }
    let over = match attribute.first() {
        None | Some(&(PLAIN_DIGEST | DIGEST)) => return Ok(None),
        Some(&SIGNATURE) => Over::Content,
        Some(&VERITY_SIGNATURE) => Over::Verity,
        Some(&other) => return Err(Malformed::Form(other)),
    };
    let Some((header, bytes)) = attribute.split_first_chunk::<HEADER>() else {
        return Err(Malformed::Truncated { what, missing: HEADER - attribute.len() });
    };
    let [_, version, hash, a, b, c, d, high, low] = *header;
    match (over, version) {
        (Over::Content, 2) | (Over::Verity, 3) => {}
        (_, other) => return Err(Malformed::Version(other)),
    }
    let hash = hash_of(hash)?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > bytes.len() {
        return Err(Malformed::Truncated { what, missing: length - bytes.len() });
    }
    if length < bytes.len() {
        return Err(Malformed::TrailingData(bytes.len() - length));
    }
    Ok(Some(Signature { over, hash, key_id: [a, b, c, d], bytes: bytes.to_vec() }))
}

/// `enum hash_algo` in the kernel's include/uapi/linux/hash_info.h.
const fn hash_of(number: u8) -> Result<HashAlgorithm, Malformed> {
    match number {
        4 => Ok(HashAlgorithm::Sha256),
        5 => Ok(HashAlgorithm::Sha384),
        6 => Ok(HashAlgorithm::Sha512),
        0 => Err(Malformed::WeakHash("MD4")),
        1 => Err(Malformed::WeakHash("MD5")),
        2 => Err(Malformed::WeakHash("SHA-1")),
        7 => Err(Malformed::WeakHash("SHA-224")),
        other => Err(Malformed::UnknownHash(other)),
    }
}

const fn number(hash: HashAlgorithm) -> u8 {
    match hash {
        HashAlgorithm::Sha256 => 4,
        HashAlgorithm::Sha384 => 5,
        HashAlgorithm::Sha512 => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u8, version: u8, hash: u8, said: u16, there: usize) -> Vec<u8> {
        let mut bytes = vec![kind, version, hash, 1, 2, 3, 4];
        bytes.extend(said.to_be_bytes());
        bytes.extend(vec![7; there]);
        bytes
    }

    #[test]
    fn reads_what_evmctl_writes() {
        let read = parse(&attribute(3, 2, 4, 256, 256)).expect("good").expect("a signature");
        assert_eq!((read.over, read.hash), (Over::Content, HashAlgorithm::Sha256));
        assert_eq!((read.key_id, read.bytes.len()), ([1, 2, 3, 4], 256));
        let read = parse(&attribute(6, 3, 6, 70, 70)).expect("good").expect("a signature");
        assert_eq!((read.over, read.hash), (Over::Verity, HashAlgorithm::Sha512));
    }

    #[test]
    fn a_digest_is_no_signature() {
        for digest in [&[][..], &[1; 21], &[4, 4, 9, 9]] {
            assert_eq!(parse(digest), Ok(None));
        }
    }

    #[test]
    fn every_other_form_has_its_reason() {
        let word = |bytes: &[u8]| parse(bytes).expect_err("bad").word();
        assert_eq!(word(&[3, 2, 4]), "truncated");
        assert_eq!(word(&attribute(3, 2, 4, 256, 255)), "truncated");
        assert_eq!(word(&attribute(3, 2, 4, 256, 257)), "trailing-data");
        assert_eq!(word(&attribute(3, 2, 2, 256, 256)), "weak-hash");
        assert_eq!(word(&attribute(3, 2, 17, 256, 256)), "unknown-algorithm");
        assert_eq!(word(&attribute(3, 1, 4, 256, 256)), "unknown-form");
        assert_eq!(word(&attribute(3, 3, 4, 256, 256)), "unknown-form");
        assert_eq!(word(&attribute(6, 2, 4, 256, 256)), "unknown-form");
        assert_eq!(word(&attribute(5, 2, 4, 256, 256)), "unknown-form");
        assert_eq!(word(&vec![3; MAX_BYTES + 1]), "too-large");
    }

    #[test]
    fn nothing_makes_it_panic() {
        let good = attribute(6, 3, 4, 64, 64);
        for length in 0..good.len() {
            assert!(parse(&good[..length]).is_err() == (length > 0), "{length}");
        }
        for position in 0..HEADER {
            for value in 0..=u8::MAX {
                let mut bad = good.clone();
                bad[position] = value;
                let _ = parse(&bad);
            }
        }
    }
}
