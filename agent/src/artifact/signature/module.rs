//! The signature at the end of a kernel module, as the kernel's `scripts/sign-file` appends it.

use super::Malformed;

/// What a signed module ends with (`MODULE_SIG_STRING` in linux/module_signature.h).
pub const MARKER: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`, before the marker.
const TRAILER: usize = 12;
/// `PKEY_ID_PKCS7`.
const PKCS7: u8 = 2;

/// The longest signature that is read.
pub const MAX_SIGNATURE: usize = 64 * 1024;
/// How much of a module's end is looked at.
pub const MAX_TAIL: usize = MAX_SIGNATURE + TRAILER + MARKER.len();

/// A signature, of which only the outer form is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// How many bytes before it were signed.
    pub content: u64,
    /// The PKCS#7 signature.
    pub signature: Vec<u8>,
}

/// Reads the end of a module of `size` bytes, of which `tail` are the last: [`MAX_TAIL`], or all.
/// `None` if it is not signed. What the kernel's `mod_check_sig` wants is wanted here.
///
/// # Errors
/// If it is marked as signed, and is not in a form that is accepted.
pub fn parse(tail: &[u8], size: u64) -> Result<Option<Appended>, Malformed> {
    let what = "the module's signature";
    let Some(rest) = tail.strip_suffix(MARKER) else { return Ok(None) };
    let Some((rest, trailer)) = rest.split_last_chunk::<TRAILER>() else {
        return Err(Malformed::Truncated { what, missing: TRAILER - rest.len() });
    };
    let [algorithm, hash, kind, signer, key, p, q, r, length @ ..] = *trailer;
    if kind != PKCS7 {
        return Err(Malformed::NotPkcs7(kind));
    }
    if [algorithm, hash, signer, key, p, q, r] != [0; 7] {
        return Err(Malformed::Trailer);
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_SIGNATURE {
        return Err(Malformed::TooLarge { what, limit: MAX_SIGNATURE });
    }
    // Something must have been signed.
    if length >= rest.len() {
        return Err(Malformed::Truncated { what, missing: length + 1 - rest.len() });
    }
    let signature = rest[rest.len() - length..].to_vec();
    let after = (length + TRAILER + MARKER.len()) as u64;
    Ok(Some(Appended { content: size.saturating_sub(after), signature }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(content: usize, signature: usize, trailer: [u8; 8], said: u32) -> Vec<u8> {
        let said = said.to_be_bytes();
        [&vec![1; content][..], &vec![2; signature], &trailer, &said, MARKER].concat()
    }

    const GOOD: [u8; 8] = [0, 0, PKCS7, 0, 0, 0, 0, 0];

    #[test]
    fn finds_what_sign_file_appends() {
        let module = signed(100, 50, GOOD, 50);
        let found = parse(&module, module.len() as u64).expect("good").expect("signed");
        assert_eq!((found.content, found.signature), (100, vec![2; 50]));
        assert_eq!(parse(&[1; 100], 100), Ok(None));
        assert_eq!(parse(&[], 0), Ok(None));
    }

    #[test]
    fn every_other_form_has_its_reason() {
        let word = |module: Vec<u8>| parse(&module, module.len() as u64).expect_err("bad").word();
        assert_eq!(word(MARKER.to_vec()), "truncated");
        assert_eq!(word(signed(10, 50, GOOD, 60)), "truncated");
        assert_eq!(word(signed(10, 50, GOOD, u32::MAX)), "too-large");
        assert_eq!(word(signed(10, 50, [0, 0, 1, 0, 0, 0, 0, 0], 50)), "unknown-form");
        for field in [0, 1, 3, 4, 5, 6, 7] {
            let mut trailer = GOOD;
            trailer[field] = 1;
            assert_eq!(word(signed(10, 50, trailer, 50)), "bad-trailer");
        }
    }
}
