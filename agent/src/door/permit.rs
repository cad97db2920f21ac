//! What the door must be able to read, and who lets it: root, once. The agent read these files itself where it
//! was the one that listened, so that they may be root's alone.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use crate::api::{config::Config, socket};

/// A file or folder that the door's user cannot use, with what would let it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    path: PathBuf,
    /// The bits that a group needs.
    bits: u32,
    /// Whether its group can be changed without taking anything from anybody.
    is_free: bool,
}

/// Lets the door's user read the device's file and what `[api]` in it names: the group of what is root's
/// alone becomes the user's, which may read then. Only what lies beside the device's file is changed, as
/// nobody but root puts anything there. Returns what was done, and what is left to do, for people.
///
/// # Errors
/// If the device's file or the user is of no use.
pub fn permit(file: &Path) -> Result<(Vec<String>, Vec<String>), String> {
    let Some(config) = Config::read(file)? else { return Ok((Vec::new(), Vec::new())) };
    let users = fs::read_to_string("/etc/passwd").map_err(|error| error.to_string())?;
    let ids = socket::ids(&users, &config.user);
    let ids = ids.ok_or_else(|| format!("there is no user \"{}\"", config.user.escape_debug()))?;
    let here = file.canonicalize().map_err(|error| format!("{}: {error}", file.display()))?;
    let folder = here.parent().unwrap_or(Path::new("/"));
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for path in [file, &config.certificate, &config.key, &config.client_ca] {
        let closed = match closed(path, ids) {
            Ok(closed) => closed,
            Err(error) => {
                left.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        for Closed { path, bits, is_free } in closed {
            let shown = path.display();
            if is_free && path.starts_with(folder) {
                match open(&path, ids.1, bits) {
                    Ok(()) => done.push(format!("{shown}: {} may read it now", config.user)),
                    Err(error) => left.push(format!("{shown}: {error}")),
                }
            } else {
                let way = if bits == FOLDER { "go through" } else { "read" };
                left.push(format!("{shown}: let the user {} {way} it", config.user));
            }
        }
    }
    Ok((done, left))
}

/// What a group needs to read a file.
const FILE: u32 = 0o040;
/// What a group needs to go through a folder.
const FOLDER: u32 = 0o010;

/// What keeps a user, with the ids of it and of its group, from reading a file: itself, and the folders above
/// it.
fn closed(path: &Path, ids: (u32, u32)) -> io::Result<Vec<Closed>> {
    let path = path.canonicalize()?;
    let mut found = Vec::new();
    for (above, one) in path.ancestors().enumerate() {
        let bits = if above == 0 { FILE } else { FOLDER };
        let metadata = fs::metadata(one)?;
        let (mode, owner, group) = (metadata.mode(), metadata.uid(), metadata.gid());
        let is_open = if owner == ids.0 {
            mode & (bits << 3) != 0
        } else if group == ids.1 {
            mode & bits != 0
        } else {
            mode & (bits >> 3) != 0
        };
        if !is_open {
            let is_free = owner == 0 && (group == 0 || group == ids.1);
            found.push(Closed { path: one.to_owned(), bits, is_free });
        }
    }
    Ok(found)
}

fn open(path: &Path, group: u32, bits: u32) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o7777;
    chown(path, None, Some(group))?;
    // The old group's rights are not the new one's.
    fs::set_permissions(path, Permissions::from_mode((mode & !0o070) | bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let (inner, key) = (folder.path().join("api"), folder.path().join("api/key"));
        fs::create_dir(&inner).expect("made");
        fs::write(&key, "secret").expect("written");
        let set = |path: &Path, mode| {
            fs::set_permissions(path, Permissions::from_mode(mode)).expect("set");
        };
        set(folder.path(), 0o755);
        set(&inner, 0o700);
        set(&key, 0o600);
        let own = fs::metadata(&key).expect("there");
        let names = |ids| -> Vec<_> {
            let closed = closed(&key, ids).expect("there").into_iter();
            closed.map(|one| (one.path.file_name().map(|n| n.to_owned()), one.bits)).collect()
        };
        let both = vec![(Some("key".into()), FILE), (Some("api".into()), FOLDER)];
        let other = (own.uid() + 1, own.gid() + 1);
        assert_eq!(names(other), both);
        assert_eq!(names((own.uid(), own.gid())), []);
        // By its group.
        let member = (own.uid() + 1, own.gid());
        assert_eq!(names(member), both);
        for (path, bits) in [(&key, FILE), (&inner, FOLDER)] {
            open(path, own.gid(), bits).expect("our own");
        }
        assert_eq!(names(member), []);
        assert_eq!(names(other), both, "nobody else");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((mode(&key), mode(&inner)), (0o640, 0o710));
    }
}
