//! Mappings of files, which end with the value.

use std::{ffi::c_void, fs::File};

pub use rustix::mm::{MapFlags, ProtFlags};
use rustix::{
    io::Errno,
    mm::{mmap, mmap_anonymous, munmap},
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

    /// Memory of no file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn anonymous(length: usize, prot: ProtFlags) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let address = unsafe { mmap_anonymous(std::ptr::null_mut(), length, prot, flags) }?;
        Ok(Self { address, length })
    }

    /// Where it is.
    pub fn address(&self) -> *mut c_void {
        self.address
    }

    /// Writes to a mapping that was made writable.
    pub fn write_at(&mut self, place: usize, content: &[u8]) {
        assert!(place + content.len() <= self.length);
        // SAFETY: within the mapping, which nobody else has a reference to.
        let to = unsafe { self.address.cast::<u8>().add(place) };
        // SAFETY: likewise.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), to, content.len()) };
    }

    /// Reads from a mapping.
    pub fn read_at(&self, place: usize, length: usize) -> Vec<u8> {
        assert!(place + length <= self.length);
        let mut content = vec![0; length];
        // SAFETY: within the mapping.
        let from = unsafe { self.address.cast::<u8>().add(place) };
        // SAFETY: likewise.
        unsafe { std::ptr::copy_nonoverlapping(from, content.as_mut_ptr(), length) };
        content
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; nobody has the address.
        let _ = unsafe { munmap(self.address, self.length) };
    }
}
