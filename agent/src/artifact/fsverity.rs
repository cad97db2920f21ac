//! The digest of a file that the kernel verifies as it reads it (fs-verity).

use std::{fs::File, os::fd::AsRawFd};

use portcullis_common::Digest;

use crate::trust::HashAlgorithm;

/// `_IOWR('f', 134, struct fsverity_digest)` (linux/fsverity.h).
const MEASURE: u64 = 3 << 30 | 4 << 16 | (b'f' as u64) << 8 | 134;
/// `FS_VERITY_HASH_ALG_SHA256`.
const SHA256: u16 = 1;
/// `FS_VERITY_HASH_ALG_SHA512`.
const SHA512: u16 = 2;

/// `struct fsverity_digest` with room for the largest one.
#[repr(C)]
struct Answer {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

/// The file's fs-verity digest, if it has one, and with SHA-256.
#[must_use]
pub fn measured(file: &File) -> Option<Digest> {
    measured_with(file, HashAlgorithm::Sha256)?.try_into().ok()
}

/// The file's fs-verity digest, if it has one, and with this hash.
#[must_use]
pub fn measured_with(file: &File, hash: HashAlgorithm) -> Option<Vec<u8>> {
    let wanted = match hash {
        HashAlgorithm::Sha256 => SHA256,
        HashAlgorithm::Sha512 => SHA512,
        HashAlgorithm::Sha384 => return None,
    };
    let mut answer = Answer { algorithm: 0, size: 64, digest: [0; 64] };
    let request = MEASURE as libc::Ioctl;
    // SAFETY: the kernel writes at most the `size` bytes that follow the header.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut answer) };
    let is_it = done == 0 && answer.algorithm == wanted && answer.size as usize == hash.len();
    is_it.then(|| answer.digest[..hash.len()].to_vec())
}
