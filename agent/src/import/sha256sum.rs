//! Lines of `sha256sum`, GNU's and BSD's.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::PathBuf};

use super::Entry;
use crate::{artifact::digest, policy::manifest::path_in};

const BSD: &[u8] = b"SHA256 (";

/// Reads one line.
///
/// # Errors
/// With what is wrong with it.
pub fn entry(line: &[u8]) -> Result<Entry, String> {
    let (path, written) = match line.strip_prefix(BSD) {
        Some(rest) => {
            let cut = rest.windows(4).rposition(|bytes| bytes == b") = ");
            let cut = cut.ok_or("is not `SHA256 (path) = digest`")?;
            (PathBuf::from(OsStr::from_bytes(&rest[..cut])), &rest[cut + 4..])
        }
        None => {
            let digits = line.strip_prefix(b"\\").unwrap_or(line);
            let end = digits.iter().position(|byte| *byte == b' ').unwrap_or(digits.len());
            let path = path_in(line).filter(|path| !path.as_os_str().is_empty());
            (path.ok_or("is not `digest  path`")?, &digits[..end])
        }
    };
    Ok((path, digest_in(written)?, None))
}

/// A digest in text, told from those of other algorithms by its length.
///
/// # Errors
/// If it is not one of SHA-256.
pub fn digest_in(written: &[u8]) -> Result<portcullis_common::Digest, String> {
    let text = std::str::from_utf8(written).unwrap_or_default();
    let is_hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let other = match text.len() {
        32 => Some("MD5"),
        40 => Some("SHA-1"),
        96 => Some("SHA-384"),
        128 => Some("SHA-512"),
        _ => None,
    };
    if let Some(other) = other.filter(|_| is_hexadecimal) {
        return Err(format!(
            "has a digest of {other}, which cannot be turned into one of SHA-256; hash the file anew"
        ));
    }
    digest::parse(&text.to_ascii_lowercase()).map_err(|error| error.to_string())
}
