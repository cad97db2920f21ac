//! Files that the kernel itself verifies as it reads them, each against a hash of its own
//! (fs-verity). Such a file cannot be written, and its digest is there without reading it.

use aya_ebpf::Global;
use core::{ffi::c_void, mem::transmute};
use portcullis_common::{Choices, DIGEST_LEN, Digest, Rule, fsverity_key};

use crate::{
    layout::{Inode, load},
    maps::{active, rule},
};

/// Whether this kernel has fs-verity, and the offsets below are set. The verifier knows the value,
/// and does not look at what follows a zero.
#[unsafe(no_mangle)]
static FSVERITY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_I_VERITY_INFO: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static FSVERITY_INFO_FILE_DIGEST: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static FSVERITY_INFO_DIGEST_SIZE: Global<u32> = Global::new(0xffff);

/// The rule for a file by its fs-verity digest, if it has one and the policy lists such.
///
/// # Safety
/// `inode` is that of an open file, and a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn by_fsverity(inode: *const Inode, generation: u64) -> Option<Rule> {
    if FSVERITY.load() == 0 || !active().choices().contains(Choices::FSVERITY) {
        return None;
    }
    // SAFETY: by the contract. The kernel sets the pointer when the file is opened, and keeps it
    // as long as the inode (`fsverity_file_open` in fs/verity/open.c); null reads as zero.
    let digest = unsafe {
        let info: *const c_void = load(inode, &INODE_I_VERITY_INFO);
        // The only algorithms are SHA-256 and SHA-512.
        if load::<u32, _>(info, &FSVERITY_INFO_DIGEST_SIZE) != DIGEST_LEN as u32 {
            return None;
        }
        transmute::<[u64; 4], Digest>(load(info, &FSVERITY_INFO_FILE_DIGEST))
    };
    rule(generation, &fsverity_key(&digest))
}
