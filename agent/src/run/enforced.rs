//! Whether this device has enforced a policy before: a file that is there from the moment on at which
//! enforcement begins until somebody has the device audit again.

use std::{fs, io, path::Path};

use jiff::Timestamp;
use serde::Serialize;

use crate::{durable, event::PolicyId};

/// The file, in the folder of what survives a restart.
pub const FILE: &str = "enforced.json";

/// For people: the agent asks only whether the file is there.
#[derive(Serialize)]
struct Content<'a> {
    since: Timestamp,
    policy: &'a PolicyId,
}

/// Whether the device has enforced when an agent ran last.
#[must_use]
pub fn was(file: &Path) -> bool {
    file.exists()
}

/// Keeps in mind that the device enforces.
///
/// # Errors
/// If that cannot be written.
pub fn begins(file: &Path, policy: &PolicyId) -> io::Result<()> {
    if was(file) {
        return Ok(());
    }
    let content = Content { since: Timestamp::now(), policy };
    durable::replace(file, |out| {
        serde_json::to_writer(&mut *out, &content)?;
        out.write_all(b"\n")
    })
}

/// Somebody has the device audit again.
///
/// # Errors
/// If the file cannot be removed.
pub fn ends(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_remembered_until_it_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("state").join(FILE);
        assert!(!was(&file));
        ends(&file).expect("nothing to do");
        let policy = PolicyId { name: "p".into(), version: 1, generation: 1 };
        begins(&file, &policy).expect("written");
        let first = fs::read_to_string(&file).expect("there");
        begins(&file, &policy).expect("nothing to do");
        assert_eq!(fs::read_to_string(&file).expect("there"), first);
        assert!(was(&file) && first.contains("\"since\""), "{first}");
        ends(&file).expect("removed");
        assert!(!was(&file));
    }
}
