//! What a compressed file holds.

use std::{
    fs::File,
    io::{BufReader, Read},
};

use super::{HEAD, digest::FromStart};

/// The largest window of a compressed file, in bytes: memory is needed for it at once. `xz -9` has
/// this one.
const MAX_WINDOW: u32 = 64 << 20;
/// What unpacking needs besides.
const MORE_KIB: u32 = 1024;

const GZIP: &[u8] = b"\x1f\x8b";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// Whether `head` is that of a compression format that the kernel's module tools use.
#[must_use]
pub fn is_packed(head: &[u8]) -> bool {
    [GZIP, XZ, ZSTD].iter().any(|magic| head.starts_with(magic))
}

/// Reads what is in a file if `head` is that of a compression format that the kernel's module tools
/// use. Like the kernel it reads the first stream in the file, and nothing after that.
///
/// Unpacks as it is read, so a file that unpacks to gigabytes costs no more than another.
pub fn unpacked<'a>(file: impl Read + 'a, head: &[u8]) -> Option<Box<dyn Read + 'a>> {
    let source = BufReader::new(file);
    Some(if head.starts_with(GZIP) {
        Box::new(flate2::read::GzDecoder::new(source))
    } else if head.starts_with(XZ) {
        let memory = MAX_WINDOW / 1024 + MORE_KIB;
        Box::new(lzma_rust2::XzReader::new_mem_limit(source, false, memory))
    } else if head.starts_with(ZSTD) {
        let window = u64::from(MAX_WINDOW);
        let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(source, window);
        Box::new(decoder.ok()?)
    } else {
        return None;
    })
}

/// The first bytes of the content if the file can be unpacked that far.
pub fn inner_head(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    let mut inner = Vec::with_capacity(HEAD);
    unpacked(FromStart::of(file), head)?.take(HEAD as u64).read_to_end(&mut inner).ok()?;
    Some(inner)
}
