//! The word that switches all gates at once.

use std::{
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapData;
use portcullis_common::Active;
use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};

/// The kernel's [`Active`] word, mapped into our memory, so that changing it is one store: a map
/// update through the system call copies bytes in no promised order.
pub struct ActiveWord {
    page: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to the process, and is only accessed atomically.
unsafe impl Send for ActiveWord {}

impl ActiveWord {
    /// Maps the word of an array map that was created with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn map(map: &MapData) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
        let page = unsafe {
            mmap(
                std::ptr::null_mut(),
                page_size(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                map.fd(),
                0,
            )
        }?;
        NonNull::new(page.cast()).map(|page| Self { page }).ok_or(Errno::NOMEM)
    }

    /// What is in force.
    #[must_use]
    pub fn load(&self) -> Active {
        Active(self.word().load(Ordering::Acquire))
    }

    /// Puts another policy or mode in force, in all gates at the same instant.
    pub fn store(&self, active: Active) {
        self.word().store(active.0, Ordering::Release);
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: the mapping lives as long as `self`, and its first eight bytes are the element.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for ActiveWord {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this size; nobody else has the address.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), page_size()) };
    }
}
