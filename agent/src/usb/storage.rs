//! Disks that can only be read.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use super::UsbError;

/// `BLKROSET` (linux/fs.h).
const SET_READ_ONLY: libc::Ioctl = 0x125d;

/// Has the kernel refuse writes to every disk of the device at a port. A disk that comes later needs
/// this again.
///
/// # Errors
/// If a disk stays writable, with the rest done.
pub fn make_read_only(disks: &Path, port: &str) -> Result<(), UsbError> {
    // Devices at a hub lie in its folder, but not in one of its interfaces.
    let of_device = format!("/{port}/{port}:");
    let mut failed = None;
    for entry in fs::read_dir(disks).into_iter().flatten().flatten() {
        let is_its = fs::canonicalize(entry.path())
            .is_ok_and(|path| path.to_string_lossy().contains(&of_device));
        let is_done = fs::read_to_string(entry.path().join("ro")).is_ok_and(|ro| ro.trim() == "1");
        if !is_its || is_done {
            continue;
        }
        let disk = Path::new("/dev").join(entry.file_name());
        if let Err(error) = set(&disk) {
            failed.get_or_insert(UsbError::new(
                format!("keeping {} from writes", disk.display()),
                error,
            ));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn set(disk: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(disk)?;
    let yes: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the kernel reads one integer.
    if unsafe { libc::ioctl(file.as_raw_fd(), SET_READ_ONLY, &raw const yes) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
