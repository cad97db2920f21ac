//! Which filesystems are mounted where, as this process sees them.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use crate::kernel::mounts::unescape;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The filesystem's device number, as «major:minor».
    pub device: String,
    /// What of the filesystem is mounted: its root, or a folder or file in it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub place: PathBuf,
    /// The kind of filesystem.
    pub kind: String,
}

/// Every mount, in the order in which they were made.
///
/// # Errors
/// If there is no `/proc`.
pub fn all() -> io::Result<Vec<Mount>> {
    Ok(fs::read("/proc/self/mountinfo")?.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Where a file can be reached that lies at `path` within the filesystem with this device number,
/// which is in the kernel's encoding.
#[must_use]
pub fn locate(device: u32, path: &Path) -> Option<PathBuf> {
    let device = format!("{}:{}", device >> 20, device & 0xf_ffff);
    // The latest mount is the one that is seen.
    all().ok()?.into_iter().rev().filter(|mount| mount.device == device).find_map(|mount| {
        let within = path.strip_prefix(&mount.root).ok()?;
        // A file that is mounted itself has no rest, and a blank one would end in a slash.
        Some(if within.as_os_str().is_empty() { mount.place } else { mount.place.join(within) })
    })
}

/// A line of the list (Documentation/filesystems/proc.rst): `ID PARENT MAJOR:MINOR ROOT PLACE
/// OPTIONS [OPTIONAL …] - KIND SOURCE OPTIONS`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?);
    let root = unescape(fields.next()?);
    let place = unescape(fields.next()?);
    let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?);
    let path = |bytes| OsString::from_vec(bytes).into();
    Some(Mount { device, root: path(root), place: path(place), kind })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_blanks_and_optional_fields() {
        let line = b"36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime master:1 - ext3 /dev/root rw";
        let expected = Mount {
            device: "98:0".into(),
            root: "/mnt1".into(),
            place: "/mnt/a b\\c".into(),
            kind: "ext3".into(),
        };
        assert_eq!(parse(line), Some(expected));
        let line = b"22 1 0:21 / /proc rw - proc proc rw";
        assert_eq!(parse(line).expect("a mount").kind, "proc");
        assert_eq!(parse(b""), None);
        assert!(all().expect("mounts").iter().any(|mount| mount.kind == "proc"));
    }
}
