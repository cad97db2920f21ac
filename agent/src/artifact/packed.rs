//! The beginning of what a compressed file holds.

use std::{
    fs::File,
    io::{BufReader, Read, Seek},
};

use super::HEAD;

/// The first bytes of the content if `head` is that of a compression format that the kernel's
/// module tools use and the file can be unpacked that far.
///
/// Unpacks through a reader and stops after 64 bytes, so a file that unpacks to gigabytes costs
/// no more than another.
pub fn inner_head(file: &File, head: &[u8]) -> Option<Vec<u8>> {
    let source = || -> Option<BufReader<File>> {
        let mut copy = file.try_clone().ok()?;
        copy.rewind().ok()?;
        Some(BufReader::new(copy))
    };
    let reader: Box<dyn Read> = if head.starts_with(b"\x1f\x8b") {
        Box::new(flate2::read::GzDecoder::new(source()?))
    } else if head.starts_with(b"\xfd7zXZ\0") {
        Box::new(lzma_rust2::XzReader::new(source()?, false))
    } else if head.starts_with(b"\x28\xb5\x2f\xfd") {
        Box::new(ruzstd::decoding::StreamingDecoder::new(source()?).ok()?)
    } else {
        return None;
    };
    let mut inner = Vec::with_capacity(HEAD);
    reader.take(HEAD as u64).read_to_end(&mut inner).ok()?;
    Some(inner)
}
