//! Names of a file and of the folders that it lies in, for kernels that give no path at the gates.
//!
//! Copies from the kernel's memory, which `lockdown=confidentiality` refuses; where the kernel gives
//! paths this code is dead and does not count.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use core::ffi::c_void;
use portcullis_common::Event;

use crate::layout::{
    DENTRY_D_NAME, DENTRY_D_PARENT, File, PATH_DENTRY, QSTR_NAME, copy, file_path,
};

/// What is returned if there are more folders than are followed, or a name is too long.
const ENAMETOOLONG: i64 = 36;

/// Writes the names to `to`, one after the other in rooms of [`Event::NAME_ROOM`] bytes: the file's,
/// its folder's, and so on up to the root of the filesystem, which is called `/` and is its own
/// folder. Returns their length, or a negative error.
///
/// There is nothing in the loop that depends on a name: the verifier would follow each length of
/// each name to the end of the program.
///
/// # Safety
/// `to` has room for `PATH` bytes; `file` is a kernel pointer.
#[inline(always)]
pub unsafe fn names<const PATH: usize>(file: *const File, to: *mut u8) -> i64 {
    let room = Event::<PATH>::NAME_ROOM;
    let mut too_long = 0;
    let mut at = 0;
    // SAFETY: by the contract; what cannot be read is a null pointer, which cannot be read either.
    unsafe {
        let mut dentry: *const c_void = copy(file_path(file), &PATH_DENTRY);
        while at < PATH {
            let name: *const c_void =
                copy(dentry.byte_add(DENTRY_D_NAME.load() as usize), &QSTR_NAME);
            let copied_length = bpf_probe_read_kernel_str(to.add(at).cast(), room as u32, name);
            // A power of two, which only a name has that fills its room, or an error.
            too_long |= copied_length & room as i64;
            dentry = copy(dentry, &DENTRY_D_PARENT);
            at += room;
        }
        let is_root = to.add(PATH - room).cast::<u16>().read_volatile() == ROOT;
        if too_long == 0 && is_root { PATH as i64 } else { -ENAMETOOLONG }
    }
}

/// What the root's name is in memory.
const ROOT: u16 = u16::from_ne_bytes(*b"/\0");
