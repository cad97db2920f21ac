//! A catalog with its signatures in one file, as a fleet's servers carry it and a device keeps it: it is
//! there whole, or not at all.
//!
//! The first line says in JSON what follows, part by part: the catalog's text, and a CMS (`p7s`) or a raw
//! (`sig`) signature of it, or both.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Catalog,
    accept::{self, Signed},
    folder::{self, Form, Kind, MAX_SIGNATURE},
};
use crate::{
    policy::{
        manifest::{self, Manifest},
        trust::Why,
    },
    reader::Task,
};

/// Bytes of a parcel.
pub const MAX_PARCEL: u64 = 64 << 20;

/// Bytes of the first line.
const MAX_HEAD: usize = 256;

/// What the first line says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    /// The version of this form.
    parcel: u8,
    /// Bytes of the text.
    catalog: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p7s: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sig: Option<u64>,
}

/// The parts of a parcel.
#[derive(Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// The catalog.
    pub text: &'a [u8],
    /// What signs it.
    pub signatures: Vec<(Form, &'a [u8])>,
}

fn malformed(message: impl fmt::Display) -> Why {
    ("malformed", format!("this is no catalog with its signatures: {message}"))
}

/// Takes a parcel apart. What it says is not judged.
///
/// # Errors
/// If it is none.
pub fn split(bytes: &[u8]) -> Result<Parts<'_>, Why> {
    let end = bytes.iter().take(MAX_HEAD).position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| malformed("its first line does not end"))?;
    let (line, rest) = bytes.split_at(end);
    let Head { parcel, catalog, p7s, sig } = serde_json::from_slice(line).map_err(malformed)?;
    if parcel != 1 {
        return Err(malformed(format_args!("it has the form {parcel}, and this agent knows 1")));
    }
    let mut rest = &rest[1..];
    let mut take = |length: u64| {
        let length = usize::try_from(length).map_err(malformed)?;
        let (part, others) =
            rest.split_at_checked(length).ok_or_else(|| malformed("it is cut short"))?;
        rest = others;
        Ok::<_, Why>(part)
    };
    let text = take(catalog)?;
    let mut signatures = Vec::new();
    for (form, length) in [(Form::Detached, p7s), (Form::Raw, sig)] {
        if let Some(length) = length {
            if length > MAX_SIGNATURE {
                return Err(malformed("a signature is too long"));
            }
            signatures.push((form, take(length)?));
        }
    }
    if rest.is_empty() { Ok(Parts { text, signatures }) } else { Err(malformed("more follows")) }
}

/// Opens a parcel: the catalog in it, if every signature is good and trusted for that. `file` is what it is
/// called in mistakes.
///
/// # Errors
/// If it does not count.
pub fn open(file: &Path, bytes: &[u8], signed: &Signed<'_>) -> Result<Catalog, Why> {
    let form = signed.check.check(&Task::Parcel, &[("parcel", bytes)], &signed.trust.trust)?;
    let Parts { text, signatures } = split(bytes)?;
    let mut by = Vec::new();
    for (form, signature) in signatures {
        by.extend(signed.beside(form, text, signature)?);
    }
    if by.is_empty() {
        return Err(("unsigned", "it came without a signature; `portcullis catalog sign`".into()));
    }
    // Who may not sign it is told first.
    form?;
    accept::catalog(file, text, by, signed.trust)
}

/// What a parcel's text says, whoever has signed it; none if that cannot be read.
#[must_use]
pub fn text_of(bytes: &[u8]) -> Option<Manifest> {
    manifest::parse(Path::new("parcel"), split(bytes).ok()?.text, None).ok()
}

/// A parcel that somebody makes.
#[derive(Clone, Debug)]
pub struct Packed {
    /// The catalog's name.
    pub name: String,
    /// The catalog's number.
    pub version: u64,
    /// How many digests it lists.
    pub digests: usize,
    /// How many it takes back.
    pub withdrawn: usize,
    /// The parcel.
    pub bytes: Vec<u8>,
}

/// Packs a catalog with the signatures that lie beside it.
///
/// # Errors
/// If it is no catalog, or nobody has signed it, or it is too large.
pub fn pack(file: &Path) -> Result<Packed, Why> {
    let document = folder::one(file)?;
    if document.kind != Kind::Catalog || document.signatures.contains_key(&Form::Attached) {
        let message = "only catalogs with signatures beside them (.p7s, .sig) can be carried";
        return Err(("unknown-file", message.into()));
    }
    let read = |path: &PathBuf, limit| folder::read(path, limit).map_err(|why| ("unreadable", why));
    let text = read(&document.path, MAX_PARCEL)?;
    let found = manifest::parse(&document.path, &text, None);
    let found = found.map_err(|mistakes| ("malformed", mistakes.to_string()))?;
    let (Some(name), Some(version)) = (found.catalog, found.version) else {
        let message = "it is a plain manifest; `portcullis catalog make` makes a catalog of it";
        return Err(("no-catalog", message.into()));
    };
    if document.signatures.is_empty() {
        let message = "no .p7s or .sig lies beside it; `portcullis catalog sign` makes one";
        return Err(("unsigned", message.into()));
    }
    let mut head = Head { parcel: 1, catalog: text.len() as u64, p7s: None, sig: None };
    let mut signatures = Vec::new();
    for (form, path) in &document.signatures {
        let signature = read(path, MAX_SIGNATURE)?;
        let length = Some(signature.len() as u64);
        *(if *form == Form::Raw { &mut head.sig } else { &mut head.p7s }) = length;
        signatures.extend(signature);
    }
    let mut bytes = serde_json::to_vec(&head).map_err(malformed)?;
    bytes.push(b'\n');
    bytes.extend(text);
    bytes.extend(signatures);
    if bytes.len() as u64 > MAX_PARCEL {
        let message = format!("with its signatures it has more than {MAX_PARCEL} bytes");
        return Err(("too-large", message));
    }
    let (digests, withdrawn) = (found.entries.len(), found.withdrawn.len());
    Ok(Packed { name, version, digests, withdrawn, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parcel_is_taken_apart_as_it_was_packed_or_not_at_all() {
        let good = b"{\"parcel\":1,\"catalog\":3,\"p7s\":2,\"sig\":1}\nabcdef";
        let parts = split(good).expect("good");
        let signatures = vec![(Form::Detached, &b"de"[..]), (Form::Raw, &b"f"[..])];
        assert_eq!(parts, Parts { text: b"abc", signatures });
        let long = format!("{{\"parcel\":1,\"catalog\":0{}}}\n", " ".repeat(MAX_HEAD));
        let bad = [
            &b""[..],
            b"\n",
            b"{\"parcel\":1,\"catalog\":3}",
            b"{\"parcel\":2,\"catalog\":3}\nabc",
            b"{\"parcel\":1,\"catalog\":4}\nabc",
            b"{\"parcel\":1,\"catalog\":2}\nabc",
            b"{\"parcel\":1,\"catalog\":-1}\nabc",
            b"{\"parcel\":1,\"catalog\":18446744073709551615,\"sig\":4}\nabc",
            b"{\"parcel\":1,\"catalog\":0,\"sig\":1048577}\nabc",
            b"{\"parcel\":1,\"catalog\":3,\"p7m\":0}\nabc",
            b"{\"parcel\":1,\"catalog\":3,\"catalog\":3}\nabc",
            long.as_bytes(),
        ];
        for bytes in bad {
            let (reason, _) = split(bytes).expect_err("bad");
            assert_eq!(reason, "malformed", "{}", String::from_utf8_lossy(bytes));
        }
    }
}
