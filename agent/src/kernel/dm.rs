//! What the device mapper says about its devices, asked for by number through its own control
//! device. Our own few lines: the libraries for it bring libdevmapper's whole world along.
//!
//! Interface: include/uapi/linux/dm-ioctl.h.

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt},
    },
};

use rustix::fs::makedev;

/// Where the control device is found, and what makes it the right one (include/linux/miscdevice.h).
const CONTROL: &str = "/dev/mapper/control";
const MISC_MAJOR: u32 = 10;
const MAPPER_CTRL_MINOR: u32 = 236;

/// `sizeof(struct dm_ioctl)`.
const HEADER: u32 = 312;
/// `sizeof(struct dm_target_spec)`.
const SPEC: usize = 40;
/// A table with one target is far smaller.
const BUFFER: u32 = 16 * 1024;

// Offsets in `struct dm_ioctl`.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEVICE: usize = 40;

/// `_IOWR(DM_IOCTL, DM_TABLE_STATUS_CMD, struct dm_ioctl)`.
const TABLE_STATUS: u64 = 3 << 30 | (HEADER as u64) << 16 | 0xfd << 8 | 12;

/// `DM_*_FLAG`.
mod flag {
    pub const READONLY: u32 = 1 << 0;
    pub const SUSPENDED: u32 = 1 << 1;
    pub const STATUS_TABLE: u32 = 1 << 4;
    pub const ACTIVE: u32 = 1 << 5;
    pub const BUFFER_FULL: u32 = 1 << 8;
}

/// The table that a device uses, if it is one target for the whole device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name of the target, such as `verity`.
    pub target: String,
    /// The target's parameters, as they were given when it was made.
    pub parameters: String,
    /// Whether nothing can be written.
    pub read_only: bool,
    /// Whether it is suspended, as it is while its table is exchanged.
    pub suspended: bool,
}

/// The device mapper's control device.
pub struct Control(File);

impl Control {
    /// Opens it. `None` if there is no device mapper, and so no device of its.
    ///
    /// # Errors
    /// If something else is in its place, or it does not open.
    pub fn open() -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(CONTROL) {
            Ok(file) => file,
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ENODEV) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let is_control = metadata.file_type().is_char_device()
            && metadata.rdev() == makedev(MISC_MAJOR, MAPPER_CTRL_MINOR);
        if !is_control {
            return Err(io::Error::other(format!("{CONTROL} is not the device mapper's")));
        }
        Ok(Some(Self(file)))
    }

    /// The table of a device, by the number that system calls use. `None` if the device is not one
    /// of the device mapper's, or has several targets or none.
    ///
    /// # Errors
    /// If the kernel refuses to tell.
    pub fn table(&self, device: u64) -> io::Result<Option<Table>> {
        let mut buffer = vec![0; BUFFER as usize];
        let put = |buffer: &mut [u8], at: usize, value: u32| {
            buffer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        // Version 4.0.0: what every kernel of today takes.
        put(&mut buffer, 0, 4);
        put(&mut buffer, DATA_SIZE, BUFFER);
        put(&mut buffer, DATA_START, HEADER);
        put(&mut buffer, FLAGS, flag::STATUS_TABLE);
        buffer[DEVICE..DEVICE + 8].copy_from_slice(&device.to_ne_bytes());
        let request = TABLE_STATUS as libc::Ioctl;
        // SAFETY: the kernel reads and writes at most the `data_size` bytes that are there.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), request, buffer.as_mut_ptr()) } != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                // No device of this number.
                Some(libc::ENXIO) => Ok(None),
                _ => Err(error),
            };
        }
        Ok(decode(&buffer))
    }
}

/// Reads the kernel's answer.
fn decode(buffer: &[u8]) -> Option<Table> {
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(*buffer.get(at..)?.first_chunk()?)) };
    let flags = word(FLAGS)?;
    if flags & flag::BUFFER_FULL != 0 || flags & flag::ACTIVE == 0 || word(TARGET_COUNT)? != 1 {
        return None;
    }
    let spec = buffer.get(word(DATA_START)? as usize..)?;
    // `sector_start`: a single target begins at 0, and is as long as the device.
    if spec.get(..8)? != [0; 8] {
        return None;
    }
    let text = |bytes: &[u8]| -> Option<String> {
        Some(CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok()?.to_owned())
    };
    Some(Table {
        target: text(spec.get(SPEC - 16..SPEC)?)?,
        parameters: text(spec.get(SPEC..)?)?,
        read_only: flags & flag::READONLY != 0,
        suspended: flags & flag::SUSPENDED != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(flags: u32, targets: u32) -> Vec<u8> {
        let mut bytes = vec![0; 400];
        let mut put = |at: usize, value: u32| {
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        put(DATA_START, 312);
        put(TARGET_COUNT, targets);
        put(FLAGS, flags);
        put(312 + 8, 64);
        bytes[312 + 24..312 + 30].copy_from_slice(b"verity");
        bytes[352..356].copy_from_slice(b"1 x\0");
        bytes
    }

    #[test]
    fn reads_one_target_and_nothing_else() {
        let active = flag::ACTIVE | flag::READONLY;
        let table = Table {
            target: "verity".into(),
            parameters: "1 x".into(),
            read_only: true,
            suspended: false,
        };
        assert_eq!(decode(&answer(active, 1)), Some(table));
        assert_eq!(decode(&answer(active, 2)), None);
        assert_eq!(decode(&answer(flag::READONLY, 1)), None);
        assert_eq!(decode(&answer(active | flag::BUFFER_FULL, 1)), None);
        assert!(decode(&answer(active | flag::SUSPENDED, 1)).is_some_and(|table| table.suspended));
        let whole = answer(active, 1);
        for length in 0..352 {
            assert_eq!(decode(&whole[..length]), None);
        }
    }
}
