//! What lies in the folder of catalogs, by name.

use std::{
    collections::BTreeMap,
    fs,
    fs::{File, OpenOptions},
    io,
    io::Read,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Refused;

/// Catalogs and other documents in a folder.
pub const MAX_DOCUMENTS: usize = 256;

/// Bytes of one document: as for manifests.
pub const MAX_DOCUMENT: u64 = 256 << 20;

/// Bytes of a signature beside its document. A chain of eight RSA certificates has 15,000.
pub const MAX_SIGNATURE: u64 = 1 << 20;

/// What signs a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// CMS, beside it.
    Detached,
    /// Raw Ed25519, beside it.
    Raw,
    /// CMS, around it.
    Attached,
}

const FORMS: [(&str, Form); 3] =
    [(".p7s", Form::Detached), (".sig", Form::Raw), (".p7m", Form::Attached)];

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The change of a signer's key. First in order, as catalogs may be signed with the new one.
    Rotation,
    /// A catalog.
    Catalog,
}

const KINDS: [(&str, Kind); 2] = [(".rotation", Kind::Rotation), (".catalog", Kind::Catalog)];

/// A document with what signs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// What it is.
    pub kind: Kind,
    /// The document itself, or the message that holds it.
    pub path: PathBuf,
    /// The signatures; none if it is unsigned.
    pub signatures: BTreeMap<Form, PathBuf>,
}

/// Names of what is in the folder, sorted: rotations first. A folder that is not there is empty.
///
/// # Errors
/// If it cannot be read.
pub fn list(folder: &Path) -> io::Result<(Vec<Document>, Vec<Refused>)> {
    let mut refused = Vec::new();
    let mut documents: BTreeMap<(Kind, PathBuf), Document> = BTreeMap::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Vec::new(), Vec::new()));
        }
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry?;
        // What tools write beside the place before they move it there.
        let is_being_made = entry.file_name().as_bytes().starts_with(b".");
        if !is_being_made {
            paths.push(entry.path());
        }
    }
    paths.sort();
    for path in paths {
        match classify(&path) {
            None => refused.push(Refused {
                message: "the name says neither catalog nor signature; names end in .catalog and \
                          .catalog.p7s, .catalog.sig or .catalog.p7m"
                    .into(),
                reason: "unknown-file".into(),
                path,
            }),
            Some((kind, base, form)) => {
                let same = documents.entry((kind, base.clone()));
                let document = same.or_insert_with(|| Document {
                    kind,
                    path: base,
                    signatures: BTreeMap::new(),
                });
                if form == Some(Form::Attached) {
                    document.path.clone_from(&path);
                }
                if let Some(form) = form {
                    document.signatures.insert(form, path);
                }
            }
        }
    }
    let mut documents: Vec<_> = documents.into_values().collect();
    if documents.len() > MAX_DOCUMENTS {
        for document in documents.drain(MAX_DOCUMENTS..) {
            refused.push(Refused {
                path: document.path,
                reason: "too-many".into(),
                message: format!("more than {MAX_DOCUMENTS} documents; join catalogs into one"),
            });
        }
    }
    Ok((documents, refused))
}

/// A document by its own name, with the signatures beside it.
///
/// # Errors
/// If its name says neither catalog nor change of a key.
pub fn one(path: &Path) -> Result<Document, (&'static str, String)> {
    let Some((kind, base, form)) = classify(path) else {
        let message = "the name ends in neither .catalog nor .rotation nor .catalog.p7m";
        return Err(("unknown-file", message.into()));
    };
    let mut document = Document { kind, path: base.clone(), signatures: BTreeMap::new() };
    for (suffix, beside) in FORMS {
        let mut name = base.clone().into_os_string();
        name.push(suffix);
        let beside_it = PathBuf::from(name);
        let is_meant = match beside {
            // What is asked for is the catalog itself, if that is what was named.
            Form::Attached => form == Some(Form::Attached),
            Form::Detached | Form::Raw => beside_it.exists(),
        };
        if is_meant {
            if beside == Form::Attached {
                document.path.clone_from(&beside_it);
            }
            document.signatures.insert(beside, beside_it);
        }
    }
    Ok(document)
}

/// What a file is by its name: its kind, the document it belongs to, and how it signs that.
fn classify(path: &Path) -> Option<(Kind, PathBuf, Option<Form>)> {
    let name = path.file_name()?.to_str()?;
    let (base, form) = FORMS
        .iter()
        .find_map(|(suffix, form)| Some((name.strip_suffix(suffix)?, Some(*form))))
        .unwrap_or((name, None));
    let (_, kind) =
        KINDS.iter().find(|(suffix, _)| base.len() > suffix.len() && base.ends_with(suffix))?;
    Some((*kind, path.with_file_name(base), form))
}

/// Opens a file, if it is one, and says how long it is.
///
/// # Errors
/// With what is wrong, for people.
pub fn open(path: &Path) -> Result<(File, u64), String> {
    // A FIFO must not hang us.
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file: File = opened.map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_file() { Ok((file, metadata.len())) } else { Err("is not a file".into()) }
}

fn cannot(error: io::Error) -> String {
    format!("cannot be read: {error}")
}

/// Reads the first bytes of a file that was opened, or fewer if it has fewer.
///
/// # Errors
/// With what is wrong, for people.
pub fn start_of(file: &File, length: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(length);
    file.take(length as u64).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

/// Reads a file of the folder whole, if it is one and not too large.
///
/// # Errors
/// With what is wrong, for people.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    read_open(open(path)?, limit)
}

/// The same of a file that is open, from where it stands.
///
/// # Errors
/// With what is wrong, for people.
pub fn read_open((file, length): (File, u64), limit: u64) -> Result<Vec<u8>, String> {
    if length > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > limit {
        return Err(format!("is larger than {limit} bytes"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_files_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = [
            "a.catalog",
            "a.catalog.p7s",
            "a.catalog.sig",
            "b.catalog.p7m",
            "c.catalog",
            "z.rotation",
            "z.rotation.sig",
            ".d.catalog",
            "notes.txt",
            ".catalog.p7s",
        ];
        for name in names {
            fs::write(folder.path().join(name), b"x").expect("written");
        }
        let (documents, refused) = list(folder.path()).expect("readable");
        let shown: Vec<_> = documents
            .iter()
            .map(|document| {
                let name = document.path.file_name().and_then(|name| name.to_str());
                (document.kind, name.unwrap_or_default(), document.signatures.len())
            })
            .collect();
        let expected = [
            (Kind::Rotation, "z.rotation", 1),
            (Kind::Catalog, "a.catalog", 2),
            (Kind::Catalog, "b.catalog.p7m", 1),
            (Kind::Catalog, "c.catalog", 0),
        ];
        assert_eq!(shown, expected);
        let names: Vec<_> = refused.iter().filter_map(|one| one.path.file_name()).collect();
        assert_eq!(names, ["notes.txt"]);
        assert_eq!(list(Path::new("/nowhere")).expect("empty").0, []);
    }
}
