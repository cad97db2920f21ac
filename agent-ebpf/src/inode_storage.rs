//! Making what is kept with an inode.

use aya_ebpf::btf_maps::InodeStorage;
use core::ptr;

use crate::layout::Inode;

/// The value in an inode's storage, which is made if it is not there. Null if there is no memory.
///
/// Asked for more than once. Of several processors that make it at the same moment the kernel serves
/// one, and gives the others nothing (`bpf_inode_storage_get` makes with `BPF_NOEXIST` what it has not
/// found before); likewise while the last that other maps kept of the inode is taken away, as after the
/// end of another agent (`bpf_local_storage_update` in kernel/bpf, 5.10 to 7.2). Asked again, it finds
/// or makes it.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn get_or_make<T>(storage: &InodeStorage<T>, inode: *mut Inode) -> *mut T {
    const TRIES: u32 = 4;
    let mut value = ptr::null_mut();
    for _ in 0..TRIES {
        // SAFETY: by the contract.
        value = unsafe { storage.get_or_insert_ptr_mut(inode, None) };
        if !value.is_null() {
            break;
        }
    }
    value
}
