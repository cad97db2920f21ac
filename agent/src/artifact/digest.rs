//! An artifact's identity: reading, writing and computing it.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use portcullis_common::{DIGEST_LEN, Digest};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Why a text is no digest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// Another length than SHA-256 has.
    #[error("a digest of {0} digits")]
    Length(usize),
    /// A character that is no hexadecimal digit.
    #[error("`{0}` is not a hexadecimal digit")]
    Character(char),
    /// Another algorithm.
    #[error("`{0}:` is an algorithm that the gates do not use")]
    Algorithm(String),
}

impl DigestError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        let other =
            |name| format!("this looks like {name}; SHA-256 has 64, as sha256sum prints them");
        match self {
            Self::Length(32) => other("MD5"),
            Self::Length(40) => other("SHA-1"),
            Self::Length(96) => other("SHA-384"),
            Self::Length(128) => other("SHA-512"),
            Self::Length(_) => "SHA-256 has 64, as sha256sum prints them".into(),
            Self::Character(_) => "copy the digest as sha256sum prints it".into(),
            Self::Algorithm(_) => "give the file's SHA-256, as sha256sum prints it".into(),
        }
    }
}

/// Reads a digest: 64 hexadecimal digits, with or without `sha256:` in front.
///
/// # Errors
/// If it is anything else.
pub fn parse(text: &str) -> Result<Digest, DigestError> {
    let digits = match text.split_once(':') {
        Some(("sha256", digits)) => digits,
        Some((other, _)) => return Err(DigestError::Algorithm(other.into())),
        None => text,
    };
    if let Some(wrong) = digits.chars().find(|c| !c.is_ascii_hexdigit()) {
        return Err(DigestError::Character(wrong));
    }
    let mut digest = [0; DIGEST_LEN];
    hex::decode_to_slice(digits, &mut digest).map_err(|_| DigestError::Length(digits.len()))?;
    Ok(digest)
}

/// The digest as sha256sum prints it.
#[must_use]
pub fn format(digest: &Digest) -> String {
    hex::encode(digest)
}

/// Hashes a whole file from its beginning, wherever its cursor stands. Else as [`of`].
///
/// # Errors
/// As for [`of`].
pub fn of_file(file: &File, limit: u64) -> io::Result<(Digest, u64)> {
    of(&mut FromStart::of(file), limit)
}

/// Reads a file without its cursor, which clones of the descriptor share and move.
pub struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> FromStart<'a> {
    /// Reads from the beginning.
    #[must_use]
    pub const fn of(file: &'a File) -> Self {
        Self::at(file, 0)
    }

    /// Reads from there.
    #[must_use]
    pub const fn at(file: &'a File, offset: u64) -> Self {
        Self { file, offset }
    }
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// Reads to the end, or to `limit` bytes and one more. Returns the digest and the bytes read.
///
/// # Errors
/// If reading fails, or there are more than `limit` bytes ([`io::ErrorKind::FileTooLarge`]).
pub fn of(reader: &mut impl Read, limit: u64) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    // Large enough to amortise the call, small enough to stay in a small device's cache.
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finalize().into(), total)),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        total += length as u64;
        if total > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hasher.update(&buffer[..length]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_sha256sum() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let (digest, length) = of(&mut io::empty(), 0).expect("nothing to fail");
        assert_eq!((format(&digest).as_str(), length), (empty, 0));
        assert_eq!(parse(&format!("sha256:{}", empty.to_uppercase())), Ok(digest));
    }

    #[test]
    fn says_what_a_wrong_digest_looks_like() {
        assert_eq!(parse("sha512:aa"), Err(DigestError::Algorithm("sha512".into())));
        assert_eq!(parse("0x00"), Err(DigestError::Character('x')));
        let md5 = parse(&"a".repeat(32)).expect_err("too short");
        assert!(md5.help().contains("MD5"), "{}", md5.help());
        assert_eq!(parse(&"a".repeat(65)), Err(DigestError::Length(65)));
    }

    #[test]
    fn stops_at_the_limit() {
        let error = of(&mut io::repeat(0), 100_000).expect_err("endless");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
