//! Devices of the device mapper, made as an attacker with root would make them
//! (include/uapi/linux/dm-ioctl.h).

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::minor;

use crate::agent::PATIENCE;

const HEADER: usize = 312;
const SPEC: usize = 40;
const FLAGS: usize = 28;
const DEVICE: usize = 40;

const CREATE: u64 = 3;
const REMOVE: u64 = 4;
const SUSPEND: u64 = 6;
const LOAD: u64 = 9;

const READONLY: u32 = 1;
const SUSPENDED: u32 = 1 << 1;
/// The filesystem on it is not asked to come to rest, which it could not if the device fails.
const SKIP_LOCKFS: u32 = 1 << 10;
const NOFLUSH: u32 = 1 << 11;

/// A device.
pub struct Mapped {
    name: String,
    device: u64,
}

impl Mapped {
    /// Makes a device with its first table.
    pub fn new(name: &str, table: &Table) -> Result<Self> {
        let (device, _) = call(CREATE, name, 0, None)?;
        let mapped = Self { name: name.into(), device };
        mapped.exchange(table)?;
        Ok(mapped)
    }

    /// Makes a device that gets the number of one that was removed. The kernel gives a number again
    /// only when nobody looks at the old device any more, and the agent may do so for a moment.
    pub fn at(node: &Path, name: &str, table: &Table) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            let device = Self::new(name, table)?;
            if device.node() == node {
                return Ok(device);
            }
            device.remove()?;
            ensure!(Instant::now() < end, "the number of {} is not given again", node.display());
            sleep(Duration::from_millis(20));
        }
    }

    /// Gives it another table, whatever lies on it.
    pub fn exchange(&self, table: &Table) -> Result<()> {
        call(LOAD, &self.name, if table.read_only { READONLY } else { 0 }, Some(table))?;
        call(SUSPEND, &self.name, SUSPENDED, None)?;
        call(SUSPEND, &self.name, 0, None)?;
        Ok(())
    }

    /// The same without a word to the filesystem that lies on it, as a fault of the hardware does.
    pub fn exchange_suddenly(&self, table: &Table) -> Result<()> {
        call(LOAD, &self.name, if table.read_only { READONLY } else { 0 }, Some(table))?;
        call(SUSPEND, &self.name, SUSPENDED | SKIP_LOCKFS | NOFLUSH, None)?;
        call(SUSPEND, &self.name, 0, None)?;
        Ok(())
    }

    /// The device's node.
    pub fn node(&self) -> PathBuf {
        format!("/dev/dm-{}", minor(self.device)).into()
    }

    /// Removes it; the next device gets its number, if nobody looks at this one any more.
    pub fn remove(self) -> Result<()> {
        call(REMOVE, &self.name, 0, None).map(drop)
    }
}

/// A table of one target.
pub struct Table {
    target: &'static str,
    sectors: u64,
    parameters: String,
    read_only: bool,
}

impl Table {
    /// A device as it is.
    pub fn linear(sectors: u64, device: &str) -> Self {
        Self { target: "linear", sectors, parameters: format!("{device} 0"), read_only: true }
    }

    /// The same, to be written as well.
    pub fn writable(sectors: u64, device: &str) -> Self {
        Self { read_only: false, ..Self::linear(sectors, device) }
    }

    /// A device that answers every read and write with an error.
    pub fn failing(sectors: u64) -> Self {
        Self { target: "error", sectors, parameters: String::new(), read_only: false }
    }

    /// A device that is verified; `options` with their count in front.
    pub fn verity(
        sectors: u64,
        data: &str,
        hashes: &str,
        (root, salt): (&str, &str),
        options: &str,
    ) -> Self {
        let blocks = sectors / 8;
        let parameters =
            format!("1 {data} {hashes} 4096 4096 {blocks} 1 sha256 {root} {salt}{options}");
        Self { target: "verity", sectors, parameters, read_only: true }
    }
}

/// Asks the device mapper, and returns the number of the device.
fn call(request: u64, name: &str, flags: u32, table: Option<&Table>) -> Result<(u64, Vec<u8>)> {
    let control: File = OpenOptions::new().read(true).write(true).open("/dev/mapper/control")?;
    let mut buffer = vec![0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| buffer[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &4u32.to_ne_bytes());
    put(12, &4096u32.to_ne_bytes());
    put(16, &u32::try_from(HEADER)?.to_ne_bytes());
    put(20, &u32::from(table.is_some()).to_ne_bytes());
    put(FLAGS, &flags.to_ne_bytes());
    put(48, name.as_bytes());
    if let Some(table) = table {
        put(HEADER + 8, &table.sectors.to_ne_bytes());
        put(HEADER + 24, table.target.as_bytes());
        put(HEADER + SPEC, table.parameters.as_bytes());
    }
    let request = libc::Ioctl::try_from(3 << 30 | (HEADER as u64) << 16 | 0xfd << 8 | request)?;
    // SAFETY: the kernel reads and writes at most the size that the buffer says and has.
    if unsafe { libc::ioctl(control.as_raw_fd(), request, buffer.as_mut_ptr()) } != 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("device mapper request {request:#x} of {name}"));
    }
    let device = u64::from_ne_bytes(buffer[DEVICE..DEVICE + 8].try_into()?);
    Ok((device, buffer))
}
