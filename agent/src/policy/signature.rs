//! What the signatures that a file carries itself are worth under a policy.
//!
//! A signature on a file is a statement about its content's digest, and so is what comes of it: the
//! gates look the digest up as they do with a listed one. Where the signature lay, and whether it
//! is still there, plays no part afterwards.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use jiff::Timestamp;
use portcullis_common::{Digest, Kinds};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use super::{
    manifest::kinds_words,
    source::Signs,
    trust::{PolicyTrust, Why},
};
use crate::{
    artifact::{
        self, MAX_HASHED_BYTES,
        digest::FromStart,
        fsverity, packed,
        signature::{Malformed, ima, module},
    },
    catalog::SignedBy,
    trust::HashAlgorithm,
};

/// The largest module that is unpacked to be verified, in bytes.
const MAX_UNPACKED: u64 = 256 << 20;

/// Large enough to amortise the call, small enough for a small device.
const BUFFER: usize = 64 * 1024;

/// What was found on a file.
#[derive(Debug, Default)]
pub struct Looked {
    /// The content's digest, if there was a signature to verify.
    pub digest: Option<Digest>,
    /// Signatures that count, each with what the file may be used as by it.
    pub vouched: Vec<(Kinds, SignedBy)>,
    /// Signatures that do not, and why.
    pub rejected: Vec<Why>,
}

impl Looked {
    /// Whether the file carries anything that says it is a signature.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        !self.vouched.is_empty() || !self.rejected.is_empty()
    }

    fn take(&mut self, outcome: Result<(Kinds, SignedBy), Why>) {
        match outcome {
            Ok(vouched) => self.vouched.push(vouched),
            Err(why) => self.rejected.push(why),
        }
    }
}

/// Whether compressed modules are unpacked, which takes its time and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpack {
    /// Where the file may be about to be loaded.
    Modules,
    /// Where anybody can have the file looked at, and it is not loaded.
    Nothing,
}

/// Looks for signatures of those kinds that the policy's signers may make, and verifies them.
/// `known` is the content's digest, if somebody who can be relied on has made it already.
///
/// Each signature counts by itself, and one by somebody whom the policy does not know says nothing.
/// But one that is wrong, or revoked, is a reason to trust nothing about the file.
///
/// # Errors
/// If the file cannot be read.
pub fn look_at(
    file: &File,
    trust: &PolicyTrust,
    known: Option<Digest>,
    unpack: Unpack,
    now: Option<Timestamp>,
) -> io::Result<Looked> {
    let attribute = match trust.kinds(Signs::FILE).is_empty() {
        true => Ok(None),
        false => attribute_of(file)?,
    };
    let appended = match trust.kinds(Signs::MODULE).is_empty() {
        true => Ok(None),
        false => appended_to(file, unpack)?,
    };
    let mut looked = Looked::default();
    if matches!((&attribute, &appended), (Ok(None), Ok(None))) {
        return Ok(looked);
    }
    let kinds = artifact::identify(file)?;
    if let Some(outcome) = attribute.transpose() {
        let verified = match outcome {
            Ok(signature) => {
                let (digest, signed) = digests(file, &signature, known)?;
                looked.digest = Some(digest);
                verify_attribute(&signature, signed, kinds, trust, now)
            }
            Err(malformed) => Err(why(&malformed)),
        };
        looked.take(verified);
    }
    if let Some(outcome) = appended.transpose() {
        let verified = match outcome {
            Ok(signature) => {
                let whole = Cell::new(looked.digest);
                let verified = verify_module(file, &signature, &whole, kinds, trust, now);
                looked.digest = whole.get();
                verified
            }
            Err(malformed) => Err(why(&malformed)),
        };
        looked.take(verified);
    }
    if looked.rejected.iter().any(|(word, _)| *word != "untrusted-signer") {
        looked.vouched.clear();
    }
    Ok(looked)
}

fn why(malformed: &Malformed) -> Why {
    (malformed.word(), format!("{malformed}; {}", malformed.help()))
}

type Found<T> = Result<Option<T>, Malformed>;

/// What `security.ima` holds, if it is a signature.
fn attribute_of(file: &File) -> io::Result<Found<ima::Signature>> {
    use rustix::io::Errno;
    let mut value = [0; ima::MAX_BYTES];
    match rustix::fs::fgetxattr(file, ima::ATTRIBUTE, &mut value) {
        Ok(length) => Ok(ima::parse(&value[..length])),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(Ok(None)),
        Err(Errno::RANGE) => {
            Ok(Err(Malformed::TooLarge { what: ima::ATTRIBUTE, limit: ima::MAX_BYTES }))
        }
        Err(error) => Err(error.into()),
    }
}

/// The signature at the end of a module, or of what a compressed one holds.
fn appended_to(file: &File, unpack: Unpack) -> io::Result<Found<module::Appended>> {
    let mut head = [0; 8];
    let length = file.read_at(&mut head, 0)?;
    if packed::is_packed(&head[..length]) && unpack == Unpack::Nothing {
        return Ok(Ok(None));
    }
    if let Some(reader) = packed::unpacked(FromStart::of(file), &head[..length]) {
        // Other compressed files are left alone: only a module's are worth unpacking.
        if artifact::identify(file)? != Some(Kinds::MODULE) {
            return Ok(Ok(None));
        }
        return Ok(match tail_of(reader) {
            Ok(Some((tail, size))) => module::parse(&tail, size),
            Ok(None) => Err(Malformed::TooMuch(MAX_UNPACKED)),
            Err(error) => Err(Malformed::Unpack(error.to_string())),
        });
    }
    let size = file.metadata()?.len();
    let marker = module::MARKER.len() as u64;
    let mut end = [0; module::MARKER.len()];
    if size < marker || file.read_exact_at(&mut end, size - marker).is_err() {
        return Ok(Ok(None));
    }
    if end != module::MARKER {
        return Ok(Ok(None));
    }
    if artifact::identify(file)? != Some(Kinds::MODULE) {
        return Ok(Err(Malformed::NotAModule));
    }
    let length = size.min(module::MAX_TAIL as u64);
    let mut tail = Vec::new();
    let mut end = FromStart::at(file, size - length).take(length);
    end.read_to_end(&mut tail)?;
    Ok(module::parse(&tail, size))
}

/// The end of what a reader gives, and how much that is; `None` if it is too much.
fn tail_of(mut reader: Box<dyn Read + '_>) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut buffer = vec![0; BUFFER];
    let (mut tail, mut size) = (Vec::new(), 0);
    loop {
        let length = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        size += length as u64;
        if size > MAX_UNPACKED {
            return Ok(None);
        }
        tail.extend_from_slice(&buffer[..length]);
        if tail.len() > 2 * module::MAX_TAIL {
            tail.drain(..tail.len() - module::MAX_TAIL);
        }
    }
    tail.drain(..tail.len().saturating_sub(module::MAX_TAIL));
    Ok(Some((tail, size)))
}

/// The content's SHA-256, and what the signature is over. The file is read once at most.
fn digests(
    file: &File,
    signature: &ima::Signature,
    known: Option<Digest>,
) -> io::Result<(Digest, Result<Vec<u8>, Malformed>)> {
    let content = || match known {
        Some(known) => Ok(known),
        None => artifact::digest::of_file(file, MAX_HASHED_BYTES).map(|(digest, _)| digest),
    };
    match (signature.over, signature.hash) {
        (ima::Over::Content, HashAlgorithm::Sha256) => {
            let digest = content()?;
            Ok((digest, Ok(digest.to_vec())))
        }
        (ima::Over::Content, other) => {
            let mut sha256 = Sha256::new();
            let mut of = Hasher::new(other);
            read(FromStart::of(file), |bytes| {
                sha256.update(bytes);
                of.update(bytes);
            })?;
            Ok((sha256.finalize().into(), Ok(of.finish())))
        }
        (ima::Over::Verity, hash) => {
            let measured = fsverity::measured_with(file, hash);
            let none = Malformed::NoVerity(name(hash));
            Ok((content()?, measured.ok_or(none)))
        }
    }
}

const fn name(hash: HashAlgorithm) -> &'static str {
    match hash {
        HashAlgorithm::Sha256 => "SHA-256",
        HashAlgorithm::Sha384 => "SHA-384",
        HashAlgorithm::Sha512 => "SHA-512",
    }
}

fn verify_attribute(
    signature: &ima::Signature,
    digest: Result<Vec<u8>, Malformed>,
    kinds: Option<Kinds>,
    trust: &PolicyTrust,
    now: Option<Timestamp>,
) -> Result<(Kinds, SignedBy), Why> {
    let digest = signature.signed_digest(&digest.map_err(|malformed| why(&malformed))?);
    let by = trust.verify_bare(signature.key_id, signature.hash, &digest, &signature.bytes, now)?;
    // What no kind is recognised of may still be read by a marked interpreter, a driver or kexec.
    let others = Kinds::SCRIPT.union(Kinds::FIRMWARE).union(Kinds::KEXEC);
    within(kinds.unwrap_or(others), by)
}

/// `whole` takes the digest of the file as a whole, and must not be another one than it holds.
fn verify_module(
    file: &File,
    appended: &module::Appended,
    whole: &Cell<Option<Digest>>,
    kinds: Option<Kinds>,
    trust: &PolicyTrust,
    now: Option<Timestamp>,
) -> Result<(Kinds, SignedBy), Why> {
    if kinds != Some(Kinds::MODULE) {
        return Err(why(&Malformed::NotAModule));
    }
    // What is vouched for must be what was verified, so both come from one reading.
    let hasher = |hash| {
        let (digest, signed) = hash_module(file, appended.content, hash)?;
        match whole.replace(Some(digest)) {
            Some(before) if before != digest => Err(changed()),
            _ => Ok(signed),
        }
    };
    let by = trust.verify_module(&hasher, &appended.signature, now)?;
    let mut told = None;
    for by in by {
        match within(Kinds::MODULE, by) {
            Ok(vouched) => return Ok(vouched),
            Err(why) => drop(told.get_or_insert(why)),
        }
    }
    Err(told.unwrap_or_else(|| ("no-signer", "nobody signed".into())))
}

/// The digest of the file as it is, and the hash of the first `content` bytes of the module in it.
fn hash_module(file: &File, content: u64, hash: HashAlgorithm) -> io::Result<(Digest, Vec<u8>)> {
    let whole = RefCell::new(Sha256::new());
    let mut tee = Tee { source: FromStart::of(file), whole: &whole };
    let mut head = [0; 8];
    let length = file.read_at(&mut head, 0)?;
    let mut hasher = Hasher::new(hash);
    let module = if packed::is_packed(&head[..length]) {
        packed::unpacked(&mut tee, &head[..length])
    } else {
        Some(Box::new(&mut tee) as Box<dyn Read>)
    };
    let module = module.ok_or_else(changed)?;
    let took = read(module.take(content), |bytes| hasher.update(bytes))?;
    // To the end, whatever the reader before has left.
    read(tee, |_| ())?;
    if took != content {
        return Err(changed());
    }
    Ok((whole.into_inner().finalize().into(), hasher.finish()))
}

/// Hashes what is read through it.
struct Tee<'a> {
    source: FromStart<'a>,
    whole: &'a RefCell<Sha256>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.whole.borrow_mut().update(&buffer[..length]);
        Ok(length)
    }
}

fn changed() -> io::Error {
    io::Error::other("it was changed while it was read")
}

/// What a signer may vouch for of what the file can be.
fn within(file: Kinds, by: SignedBy) -> Result<(Kinds, SignedBy), Why> {
    let may = by.kinds.without(Kinds::MARKS);
    let kinds = file.intersection(may);
    if kinds.is_empty() {
        let message = format!(
            "the file is of the kind {}, and signer {} may vouch for {}; add the kind to the \
             signer, or list the file",
            kinds_words(file),
            by.signer,
            kinds_words(may),
        );
        return Err(("wrong-kind", message));
    }
    Ok((kinds, by))
}

/// A hash in the making.
enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    fn new(hash: HashAlgorithm) -> Self {
        match hash {
            HashAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            HashAlgorithm::Sha384 => Self::Sha384(Sha384::new()),
            HashAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Vec<u8> {
        match self {
            Self::Sha256(hasher) => hasher.finalize().to_vec(),
            Self::Sha384(hasher) => hasher.finalize().to_vec(),
            Self::Sha512(hasher) => hasher.finalize().to_vec(),
        }
    }
}

/// Reads to the end, and returns how much there was.
fn read(mut reader: impl Read, mut take: impl FnMut(&[u8])) -> io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut total = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(length) => {
                total += length as u64;
                if total > MAX_HASHED_BYTES {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                take(&buffer[..length]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
