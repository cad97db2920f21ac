//! Mappings of files, which end with the value.

use std::{ffi::c_void, fs::File};

pub use rustix::mm::{MapFlags, ProtFlags};
use rustix::{
    io::Errno,
    mm::{mmap, munmap},
};

/// A mapping of the beginning of a file.
pub struct Mapping {
    address: *mut c_void,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` if a gate refuses.
    pub fn new(
        file: &File,
        length: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> Result<Self, Errno> {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe { mmap(std::ptr::null_mut(), length, prot, flags, file, 0) }?;
        Ok(Self { address, length })
    }

    /// Where it is.
    pub fn address(&self) -> *mut c_void {
        self.address
    }

    /// Writes to the beginning of a mapping that was made writable.
    pub fn write(&mut self, content: &[u8]) {
        assert!(content.len() <= self.length);
        // SAFETY: within the mapping, which nobody else has a reference to.
        unsafe {
            std::ptr::copy_nonoverlapping(content.as_ptr(), self.address.cast(), content.len())
        };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; nobody has the address.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}
