//! What a bundle's signatures need: the manifest and they themselves, without what lies between. So a
//! file that nobody has signed is refused before its parts are read into memory.

use std::io::{self, Read, Seek};

use jiff::Timestamp;
use tar::Archive;

use super::{
    Form, MANIFEST, MAX_SIGNATURE, MAX_SIGNATURES, Manifest, PARTS, SIGNATURES, archive, malformed,
    signature_form, verify_signatures,
};
use crate::{
    catalog::SignedBy,
    policy::trust::{PolicyTrust, Why},
};

/// Bytes of a manifest: thousands of parts.
const MAX_MANIFEST: u64 = 2 << 20;

/// A bundle's manifest with the signatures over it. Its parts were not looked at.
#[derive(Debug)]
pub struct Head {
    signed: Vec<u8>,
    signatures: Vec<(Form, Vec<u8>)>,
}

impl Head {
    /// Reads the manifest and the signatures of a bundle of this length, wherever its bytes come from.
    ///
    /// # Errors
    /// If they are not where `policy build` and `policy sign` write them.
    pub fn parse(file: impl Read + Seek, length: u64) -> Result<Self, Why> {
        let broken = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                ("truncated", "it ends too early; copy it again".into())
            }
            _ => malformed(format!("it is no tar archive: {error}")),
        };
        let mut archive = Archive::new(file);
        let mut entries = archive.entries_with_seek().map_err(broken)?.raw(true);
        let first = entries.next().ok_or_else(|| malformed("it holds nothing"))?;
        let mut first = first.map_err(broken)?;
        let (name, mut position) = archive::check_header(&first, 0)?;
        if name != MANIFEST || first.size() > MAX_MANIFEST {
            return Err(malformed(format!("it begins with {}", name.escape_debug())));
        }
        let mut signed = Vec::new();
        first.read_to_end(&mut signed).map_err(broken)?;
        let manifest = Manifest::parse(&signed).map_err(malformed)?;
        let mut parts = manifest.parts.iter();
        let mut signatures = Vec::new();
        for entry in entries {
            let mut entry = entry.map_err(broken)?;
            let name;
            (name, position) = archive::check_header(&entry, position)?;
            let out_of_place = || malformed(format!("{} is not in its place", name.escape_debug()));
            if let Some(name) = name.strip_prefix(PARTS) {
                let part = parts.next().filter(|part| part.path == name);
                part.filter(|part| part.size == entry.size()).ok_or_else(out_of_place)?;
            } else if let Some(name) = name.strip_prefix(SIGNATURES) {
                if entry.size() > MAX_SIGNATURE as u64 || signatures.len() == MAX_SIGNATURES {
                    return Err(out_of_place());
                }
                let mut signature = Vec::new();
                entry.read_to_end(&mut signature).map_err(broken)?;
                signatures.push((signature_form(name, &signature)?, signature));
            } else {
                return Err(out_of_place());
            }
        }
        // Nobody notices while what is passed over is not read.
        if parts.next().is_some() || position > length {
            return Err(("truncated", "it ends too early; copy it again".into()));
        }
        Ok(Self { signed, signatures })
    }

    /// What signatures are over.
    #[must_use]
    pub fn signed_bytes(&self) -> &[u8] {
        &self.signed
    }

    /// The signatures that it carries.
    pub fn each_signature(&self) -> impl Iterator<Item = (Form, &[u8])> {
        self.signatures.iter().map(|(form, bytes)| (*form, bytes.as_slice()))
    }

    /// Who signed it, if that is enough, as [`super::Bundle::verify`] says it.
    ///
    /// # Errors
    /// If it is not.
    pub fn verify(
        &self,
        trust: &PolicyTrust,
        needed: usize,
        now: Option<Timestamp>,
    ) -> Result<Vec<SignedBy>, Why> {
        let signatures: Vec<_> = self.each_signature().collect();
        verify_signatures(trust, needed, &self.signed, &signatures, now)
    }
}

#[cfg(test)]
impl Head {
    /// From memory.
    pub fn of(bytes: &[u8]) -> Result<Self, Why> {
        Self::parse(io::Cursor::new(bytes), bytes.len() as u64)
    }
}
