//! Which filesystems are mounted where.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use rustix::fs::makedev;

use crate::kernel::selftest::kernel_device;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The filesystem's device number, as `stat` gives it.
    pub device: u64,
    /// What of the filesystem is mounted: its root, or a folder or file in it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub place: PathBuf,
    /// The kind of filesystem.
    pub kind: String,
    /// What it was mounted from: a device, or whatever else the filesystem takes for a source.
    pub source: PathBuf,
}

/// Every mount as this process sees them, in the order in which they were made.
///
/// # Errors
/// If there is no `/proc`.
pub fn all() -> io::Result<Vec<Mount>> {
    of_process(Path::new("/proc/self"))
}

/// Every mount as a process sees them, which is named by its folder in `/proc`.
///
/// # Errors
/// If the process has ended.
pub fn of_process(process: &Path) -> io::Result<Vec<Mount>> {
    let list = fs::read(process.join("mountinfo"))?;
    Ok(list.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Numbers of the mounts at these places, as this process sees them. No two mounts that exist have the
/// same.
///
/// # Errors
/// If there is no `/proc`.
pub fn ids_at(places: &[&Path]) -> io::Result<BTreeSet<u64>> {
    let list = fs::read("/proc/self/mountinfo")?;
    let id = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        places.contains(&path(fields.nth(3)?).as_path()).then_some(id)
    };
    Ok(list.split(|byte| *byte == b'\n').filter_map(id).collect())
}

/// Where a file can be reached that lies at `path` within the filesystem with this device number,
/// which is in the kernel's encoding.
#[must_use]
pub fn locate(device: u32, path: &Path) -> Option<PathBuf> {
    let mounts = all().ok()?.into_iter().filter(|mount| kernel_device(mount.device) == device);
    // The latest mount is the one that is seen.
    mounts.rev().find_map(|mount| {
        let within = path.strip_prefix(&mount.root).ok()?;
        // A file that is mounted itself has no rest, and a blank one would end in a slash.
        Some(if within.as_os_str().is_empty() { mount.place } else { mount.place.join(within) })
    })
}

/// A device number as the kernel writes it, «major:minor», in the encoding of `stat`.
#[must_use]
pub fn device_number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// A line of the list (Documentation/filesystems/proc.rst): `ID PARENT MAJOR:MINOR ROOT PLACE
/// OPTIONS [OPTIONAL …] - KIND SOURCE OPTIONS`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = device_number(str::from_utf8(fields.nth(2)?).ok()?)?;
    let root = path(fields.next()?);
    let place = path(fields.next()?);
    let mut filesystem = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(filesystem.next()?).into_owned();
    let source = path(filesystem.next().unwrap_or_default());
    Some(Mount { device, root, place, kind, source })
}

/// Undoes the kernel's `\040` and the like in a name of the list.
fn path(name: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok());
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(plain).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_blanks_and_optional_fields() {
        let line =
            b"36 35 98:0 /mnt1 /mnt/a\\040b\\134c rw,noatime master:1 - ext3 /dev/a\\040b rw";
        let expected = Mount {
            device: makedev(98, 0),
            root: "/mnt1".into(),
            place: "/mnt/a b\\c".into(),
            kind: "ext3".into(),
            source: "/dev/a b".into(),
        };
        assert_eq!(parse(line), Some(expected));
        let line = b"22 1 0:21 / /proc rw - proc proc rw";
        assert_eq!(parse(line).expect("a mount").kind, "proc");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0"), None);
        assert!(!ids_at(&[Path::new("/")]).expect("mounts").is_empty());
        assert!(ids_at(&[Path::new("/nowhere")]).expect("mounts").is_empty());
        assert!(all().expect("mounts").iter().any(|mount| mount.kind == "proc"));
    }

    #[test]
    fn names_are_unescaped() {
        assert_eq!(path(br"/dev/a\040b\"), Path::new(r"/dev/a b\"));
        assert_eq!(path(br"/\9"), Path::new(r"/\9"));
        assert_eq!(path(b"/dev/vda1"), Path::new("/dev/vda1"));
    }
}
