//! Artifacts: files that can become code, recognised by their content.

pub mod digest;
mod elf;
pub mod fsverity;
pub mod packed;
pub mod signature;

use std::{fs::File, io, os::unix::fs::FileExt};

use portcullis_common::Kinds;

/// Bytes at the beginning of a file that are looked at first.
const HEAD: usize = 64;

/// The largest file that scan and the gates hash, in bytes. The kernel cannot be interrupted while
/// it hashes, so there must be a limit; see `docs/limits.md`.
pub const MAX_HASHED_BYTES: u64 = 1 << 30;

/// What a file can be used as, by its content; `None` if it is no artifact. Its name, owner and
/// permissions play no part.
///
/// # Errors
/// If the file cannot be read.
pub fn identify(file: &File) -> io::Result<Option<Kinds>> {
    let mut head = [0; HEAD];
    let length = read_head(file, &mut head)?;
    let head = &head[..length];
    Ok(if head.starts_with(b"#!") {
        Some(Kinds::SCRIPT)
    } else if elf::is_elf(head) {
        elf::kinds(file)
    } else if packed::inner_head(file, head).is_some_and(|head| elf::is_relocatable(&head)) {
        // Modules are the only relocatable objects that anything loads compressed.
        Some(Kinds::MODULE)
    } else {
        None
    })
}

/// Fills as much of `head` as the file has.
fn read_head(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command};

    use super::*;

    fn kinds_of(content: &[u8]) -> Option<Kinds> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(content).expect("written");
        identify(&file).expect("readable")
    }

    fn kinds_at(path: &str) -> Option<Kinds> {
        identify(&File::open(path).expect("on every Linux machine")).expect("readable")
    }

    #[test]
    fn knows_programs_libraries_and_scripts() {
        assert_eq!(kinds_at("/proc/self/exe"), Some(Kinds::EXECUTABLE));
        assert_eq!(kinds_at("/bin/sh"), Some(Kinds::EXECUTABLE));
        let output = Command::new("ldd").arg("/bin/sh").output().expect("ldd");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let libc = text.split_whitespace().find(|word| word.starts_with('/')).expect("libc");
        assert!(kinds_at(libc).expect("artifact").intersects(Kinds::LIBRARY));
        assert_eq!(kinds_of(b"#!/bin/sh\n"), Some(Kinds::SCRIPT));
        assert_eq!(kinds_of(b"#!"), Some(Kinds::SCRIPT));
    }

    #[test]
    fn leaves_everything_else_alone() {
        for content in [
            &b""[..],
            b"#",
            b"\x7fEL",
            b"text\n",
            b"\x1f\x8b",
            b"\xfd7zXZ\x00\x00",
            b"\x28\xb5\x2f\xfd",
        ] {
            assert_eq!(kinds_of(content), None, "{content:?}");
        }
    }

    /// A relocatable object's first bytes; what follows does not matter in a compressed file.
    fn relocatable() -> Vec<u8> {
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(16, 0);
        head.extend(1u16.to_le_bytes());
        head.resize(4096, 7);
        head
    }

    #[test]
    fn knows_modules_through_their_compression() {
        for packer in ["gzip", "xz", "zstd"] {
            let mut file = tempfile::NamedTempFile::new().expect("a file");
            file.write_all(&relocatable()).expect("written");
            let output = Command::new(packer).args(["-c", "-q"]).arg(file.path()).output();
            let packed = output.unwrap_or_else(|error| panic!("{packer}: {error}")).stdout;
            assert_eq!(kinds_of(&packed), Some(Kinds::MODULE), "{packer}");
            // Cut short, it is still one as long as its beginning can be unpacked, and nothing else.
            let cut = kinds_of(&packed[..packed.len() / 2]);
            assert!(cut.is_none_or(|kinds| kinds == Kinds::MODULE), "{packer}: {cut:?}");
        }
        // Not compressed, and without a module's sections, it is only an object file.
        assert_eq!(kinds_of(&relocatable()), None);
    }

    #[test]
    fn damaged_elf_is_listed_rather_than_lost() {
        let mut head = b"\x7fELF\x02\x01\x01".to_vec();
        head.resize(16, 0);
        head.extend(3u16.to_le_bytes());
        head.extend([0xff; 46]);
        assert_eq!(kinds_of(&head), Some(Kinds::EXECUTABLE.union(Kinds::LIBRARY)));
    }
}
