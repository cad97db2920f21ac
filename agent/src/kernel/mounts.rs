//! Which block devices carry mounted filesystems.

use std::{
    collections::{BTreeSet, HashSet},
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use crate::kernel::selftest::kernel_device;

/// A file whose reader is told when a filesystem is mounted or unmounted in this mount namespace:
/// `poll` says `POLLERR | POLLPRI` (fs/proc_namespace.c).
///
/// # Errors
/// If `/proc` is not there.
pub fn changes() -> io::Result<File> {
    File::open("/proc/self/mountinfo")
}

/// Device numbers of everything below the filesystems that are mounted in the mount namespaces of
/// the processes that run now, in the kernel's encoding: the device of the filesystem, the disk of
/// a partition, the parts of a volume.
#[must_use]
pub fn devices() -> BTreeSet<u32> {
    let mut found = Search::default();
    for table in tables() {
        for line in table.lines() {
            found.mount(line);
        }
    }
    found.devices
}

/// The mount table of each namespace.
fn tables() -> Vec<String> {
    let mut seen = HashSet::new();
    let mut tables = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        // What is no process has no namespace, and a process may end meanwhile.
        let Ok(namespace) = fs::metadata(process.join("ns/mnt")) else { continue };
        if seen.insert(namespace.ino()) {
            tables.extend(fs::read_to_string(process.join("mountinfo")));
        }
    }
    tables
}

#[derive(Default)]
struct Search {
    devices: BTreeSet<u32>,
}

impl Search {
    /// A line of `/proc/PID/mountinfo` (Documentation/filesystems/proc.rst).
    fn mount(&mut self, line: &str) {
        let Some((mount, filesystem)) = line.split_once(" - ") else { return };
        if let Some(number) = mount.split(' ').nth(2) {
            self.device(number);
        }
        // Filesystems over several devices have a number of their own that no device has.
        let source = filesystem.split(' ').nth(1).unwrap_or_default();
        if source.starts_with('/')
            && let Ok(metadata) =
                fs::metadata(Path::new(OsStr::from_bytes(&unescape(source.as_bytes()))))
            && metadata.file_type().is_block_device()
        {
            let (major, minor) =
                (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            self.device(&format!("{major}:{minor}"));
        }
    }

    /// A device by its number as sysfs writes it, with those below it.
    fn device(&mut self, number: &str) {
        let numbers = number.split_once(':');
        let numbers = numbers.map(|(major, minor)| (major.parse(), minor.parse()));
        let Some((Ok(major), Ok(minor))) = numbers else { return };
        // The number of what is no block device, such as tmpfs, has major 0.
        if major == 0 || !self.devices.insert(kernel_device(rustix::fs::makedev(major, minor))) {
            return;
        }
        let Ok(folder) = fs::canonicalize(Path::new("/sys/dev/block").join(number)) else { return };
        let mut below: Vec<PathBuf> = Vec::new();
        if folder.join("partition").exists() {
            below.extend(folder.parent().map(Path::to_owned));
        }
        for part in fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten() {
            below.push(part.path());
        }
        for device in below {
            if let Ok(number) = fs::read_to_string(device.join("dev")) {
                self.device(number.trim());
            }
        }
    }
}

/// Undoes the kernel's `\040` and the like in a name of a mount table.
#[must_use]
pub fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unescaped() {
        assert_eq!(unescape(br"/dev/a\040b\"), br"/dev/a b\");
        assert_eq!(unescape(b"/dev/vda1"), b"/dev/vda1");
    }

    #[test]
    fn takes_block_devices_only() {
        let mut search = Search::default();
        search.mount("26 29 0:25 / /dev/shm rw shared:4 - tmpfs tmpfs rw");
        assert_eq!(search.devices, BTreeSet::new());
        search.mount("29 1 4095:77 / / rw shared:1 - ext4 /dev/root rw");
        assert_eq!(search.devices, BTreeSet::from([4095 << 20 | 77]));
        search.mount("not a line");
    }
}
