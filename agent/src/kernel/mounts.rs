//! Which block devices carry mounted filesystems.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use portcullis_common::Choices;
use rustix::fs::{major, minor};

use crate::kernel::{
    mountpoints::{self, Mount, device_number},
    selftest::kernel_device,
};

/// A file whose reader is told when a filesystem is mounted or unmounted in this mount namespace:
/// `poll` says `POLLERR | POLLPRI` (fs/proc_namespace.c).
///
/// # Errors
/// If `/proc` is not there.
pub fn changes() -> io::Result<File> {
    File::open("/proc/self/mountinfo")
}

/// Device numbers of everything that a policy with these choices closes for writing, in the
/// kernel's encoding: nothing, or all that lies below the filesystems that are mounted in the mount
/// namespaces of the processes that run now. That is the device of the filesystem, the disk of a
/// partition, the parts of a volume.
///
/// # Errors
/// If they cannot all be found, because this process may open no more files.
pub fn closed_devices(choices: Choices) -> io::Result<BTreeSet<u32>> {
    let mut found = Search::default();
    if choices.contains(Choices::MOUNTED_DEVICES_CLOSED) {
        in_every_namespace()?.iter().for_each(|mount| found.mount(mount));
    }
    match found.trouble {
        None => Ok(found.devices),
        Some(error) => Err(error),
    }
}

/// The mounts of each namespace.
fn in_every_namespace() -> io::Result<Vec<Mount>> {
    let mut seen = HashSet::new();
    let mut mounts = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        // What is no process has no namespace, and a process may end meanwhile.
        let Ok(namespace) = fs::metadata(process.join("ns/mnt")) else { continue };
        if seen.insert(namespace.ino()) {
            match mountpoints::of_process(&process) {
                Err(error) if is_shortage(&error) => return Err(error),
                found => mounts.extend(found.into_iter().flatten()),
            }
        }
    }
    Ok(mounts)
}

/// Whether nothing is wrong with what was asked for, and this process has no means left to ask.
fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| shortages.contains(&error))
}

#[derive(Default)]
struct Search {
    devices: BTreeSet<u32>,
    /// Why there may be more.
    trouble: Option<io::Error>,
}

impl Search {
    fn mount(&mut self, mount: &Mount) {
        self.device(mount.device);
        // Filesystems over several devices have a number of their own that no device has.
        if mount.source.is_absolute()
            && let Ok(metadata) = fs::metadata(&mount.source)
            && metadata.file_type().is_block_device()
        {
            self.device(metadata.rdev());
        }
    }

    /// What is not there is none; what could not be asked for is no answer.
    fn note<T>(&mut self, asked: io::Result<T>) -> Option<T> {
        match asked {
            Err(error) if is_shortage(&error) => {
                self.trouble = Some(error);
                None
            }
            asked => asked.ok(),
        }
    }

    /// A device with those below it.
    fn device(&mut self, device: u64) {
        let (major, minor) = (major(device), minor(device));
        // The number of what is no block device, such as tmpfs, has major 0.
        if major == 0 || !self.devices.insert(kernel_device(device)) {
            return;
        }
        let number = format!("{major}:{minor}");
        let Ok(folder) = fs::canonicalize(Path::new("/sys/dev/block").join(number)) else { return };
        let mut below: Vec<PathBuf> = Vec::new();
        if folder.join("partition").exists() {
            below.extend(folder.parent().map(Path::to_owned));
        }
        let parts = self.note(fs::read_dir(folder.join("slaves")));
        for part in parts.into_iter().flatten().flatten() {
            below.push(part.path());
        }
        for device in below {
            let number = self.note(fs::read_to_string(device.join("dev"))).unwrap_or_default();
            if let Some(number) = device_number(number.trim()) {
                self.device(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn takes_block_devices_only() {
        let mount = |device, source: &str| Mount {
            device,
            root: "/".into(),
            place: "/".into(),
            kind: "any".into(),
            source: source.into(),
        };
        let mut search = Search::default();
        search.mount(&mount(makedev(0, 25), "tmpfs"));
        assert_eq!(search.devices, BTreeSet::new());
        search.mount(&mount(makedev(4095, 77), "/dev/root"));
        assert_eq!(search.devices, BTreeSet::from([4095 << 20 | 77]));
    }
}
