//! I/O through io_uring, one request at a time.

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, squeue, types};

use crate::mapping::Mapping;

/// The only place among the direct descriptors.
const SLOT: u32 = 0;

/// A ring.
pub struct Ring(IoUring);

/// Memory that was registered with a ring. It is only an address to count from.
pub struct Buffer {
    address: *mut u8,
    length: u32,
}

impl Ring {
    /// A new ring.
    pub fn new() -> Result<Self> {
        Ok(Self(IoUring::new(4).context("io_uring")?))
    }

    /// Makes room for one direct descriptor (from Linux 5.19).
    pub fn make_room(&self) -> std::io::Result<()> {
        self.0.submitter().register_files_sparse(1)
    }

    /// Has the kernel hold the mapping's pages for I/O, whatever becomes of the mapping.
    pub fn register(&self, mapping: &Mapping, length: usize) -> Result<Buffer> {
        let buffer = libc::iovec { iov_base: mapping.address(), iov_len: length };
        // SAFETY: the memory is mapped now; what the kernel writes there later, it writes to the
        // file's pages, of which nobody has a reference.
        unsafe { self.0.submitter().register_buffers(&[buffer]) }.context("a registered buffer")?;
        Ok(Buffer { address: mapping.address().cast(), length: u32::try_from(length)? })
    }

    /// Reads into the registered buffer.
    pub fn read_fixed(&mut self, from: &OwnedFd, to: Buffer) -> Result<usize> {
        let from = types::Fd(from.as_raw_fd());
        self.submit(opcode::ReadFixed::new(from, to.address, to.length, 0).build())
    }

    /// Opens a file for writing.
    pub fn open(&mut self, path: &CStr) -> Result<OwnedFd> {
        let here = types::Fd(libc::AT_FDCWD);
        let descriptor =
            self.submit(opcode::OpenAt::new(here, path.as_ptr()).flags(libc::O_RDWR).build())?;
        // SAFETY: a new descriptor that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor)?) })
    }

    /// Opens a file for writing as a descriptor that only this ring has.
    pub fn open_direct(&mut self, path: &CStr) -> Result<()> {
        self.make_room().context("a direct descriptor")?;
        let here = types::Fd(libc::AT_FDCWD);
        let slot = types::DestinationSlot::try_from_slot_target(SLOT).ok().context("a slot")?;
        let open = opcode::OpenAt::new(here, path.as_ptr()).flags(libc::O_RDWR);
        self.submit(open.file_index(Some(slot)).build()).map(drop)
    }

    /// Closes the direct descriptor.
    pub fn close_direct(&mut self) -> Result<()> {
        self.submit(opcode::Close::new(types::Fixed(SLOT)).build()).map(drop)
    }

    /// Writes to the beginning of a file.
    pub fn write(&mut self, file: &OwnedFd, content: &[u8]) -> Result<usize> {
        let (address, length) = (content.as_ptr(), u32::try_from(content.len())?);
        self.submit(opcode::Write::new(types::Fd(file.as_raw_fd()), address, length).build())
    }

    /// Writes to the beginning of the file behind the direct descriptor.
    pub fn write_direct(&mut self, content: &[u8]) -> Result<usize> {
        let (address, length) = (content.as_ptr(), u32::try_from(content.len())?);
        self.submit(opcode::Write::new(types::Fixed(SLOT), address, length).build())
    }

    /// Hands one request in and waits for its result.
    fn submit(&mut self, entry: squeue::Entry) -> Result<usize> {
        // SAFETY: what the request points to lives until its result is here.
        unsafe { self.0.submission().push(&entry) }?;
        self.0.submit_and_wait(1)?;
        let result = self.0.completion().next().context("no result")?.result();
        usize::try_from(result).map_err(|_| std::io::Error::from_raw_os_error(-result).into())
    }
}
