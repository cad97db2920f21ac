//! Files that the kernel itself verifies as it reads them, each against a hash of its own
//! (fs-verity). Such a file cannot be written, and its digest is there without reading it.

use aya_ebpf::{
    Global, bindings::bpf_dynptr, btf_maps::InodeStorage, helpers::generated::bpf_dynptr_from_mem,
    macros::btf_map,
};
use core::{
    ffi::c_void,
    mem::{MaybeUninit, transmute},
    ptr,
};
use portcullis_common::{
    Choices, DIGEST_LEN, Digest, FSVERITY_CALL, FsverityDigest, Rule, fsverity_key,
};

use crate::{
    inode_storage::get_or_make,
    layout::{File, Inode, inode_flags, load, look_at_inode},
    maps::{active, rule},
};

/// 1 if this kernel keeps the digest where the offsets below say. The verifier knows the value, and
/// does not look at what follows a zero.
#[unsafe(no_mangle)]
static FSVERITY: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_I_VERITY_INFO: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static FSVERITY_INFO_FILE_DIGEST: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static FSVERITY_INFO_DIGEST_SIZE: Global<u32> = Global::new(0xffff);

/// 1 if the kernel is to be asked instead, and the agent has put the call in.
#[unsafe(no_mangle)]
static FSVERITY_IS_ASKED: Global<u32> = Global::new(0);

/// `S_VERITY` (include/linux/fs.h, 5.4 to 7.2).
const S_VERITY: u32 = 1 << 16;

/// `FS_VERITY_HASH_ALG_SHA256` (linux/fsverity.h).
const SHA256: u16 = 1;

/// Where the kernel puts its answers. One place for each inode, because a program may be interrupted
/// by another task's on the same processor: whoever else writes there writes the same, as the digest
/// of an inode never changes.
#[btf_map(name = "PCULLIS_FSVERITY_DIGESTS")]
static FSVERITY_DIGESTS: InodeStorage<FsverityDigest> = InodeStorage::new();

/// The rule for a file by its fs-verity digest, if it has one and the policy lists such.
///
/// # Safety
/// `inode` is that of the file; if `may_ask`, `file` is the hook's own pointer.
#[inline(always)]
pub unsafe fn by_fsverity(
    file: *const File,
    inode: *mut Inode,
    generation: u64,
    may_ask: bool,
) -> Option<Rule> {
    let is_known = FSVERITY.load() != 0 || (may_ask && FSVERITY_IS_ASKED.load() != 0);
    if !is_known || !active().choices().contains(Choices::FSVERITY) {
        return None;
    }
    // SAFETY: by the contract; a pointer that is not null points into the inode's storage.
    let digest = unsafe {
        if inode_flags(inode) & S_VERITY == 0 {
            return None;
        }
        if FSVERITY.load() != 0 {
            digest_of(inode)?
        } else {
            let answer = ask(file, inode);
            if answer.is_null() {
                return None;
            }
            (*answer).digest
        }
    };
    rule(generation, &fsverity_key(&digest))
}

/// The digest as it is kept up to 6.12, and in some that came later.
///
/// # Safety
/// `inode` is that of an open file, and a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn digest_of(inode: *const Inode) -> Option<Digest> {
    // SAFETY: by the contract. The kernel sets the pointer when the file is opened, and keeps it
    // as long as the inode (`fsverity_file_open` in fs/verity/open.c); null reads as zero.
    unsafe {
        let info: *const c_void = load(look_at_inode(inode), &INODE_I_VERITY_INFO);
        // The only algorithms are SHA-256 and SHA-512.
        if load::<u32, _>(info, &FSVERITY_INFO_DIGEST_SIZE) != DIGEST_LEN as u32 {
            return None;
        }
        Some(transmute::<[u64; 4], Digest>(load(info, &FSVERITY_INFO_FILE_DIGEST)))
    }
}

/// The digest as the kernel gives it to who asks (6.12, 7.2); null if there is none. 7.2 keeps it in a
/// table of its own, to which no typed load leads.
///
/// A function by itself, because there is no room for it on the gates' stacks.
///
/// # Safety
/// As for [`by_fsverity`].
#[inline(never)]
unsafe fn ask(file: *const File, inode: *mut Inode) -> *const FsverityDigest {
    // SAFETY: the agent has made `bpf_get_fsverity_digest` of the call to this number, which is no
    // helper's; else the verifier refuses it. The function is
    // `int (struct file *file, struct bpf_dynptr *digest_p)`.
    let digest_of: unsafe extern "C" fn(*const File, *mut bpf_dynptr) -> i32 =
        unsafe { transmute(FSVERITY_CALL as usize) };
    // SAFETY: by the contract; the answer is as large as the kernel is told.
    unsafe {
        let answer = get_or_make(&FSVERITY_DIGESTS, inode);
        if answer.is_null() {
            return ptr::null();
        }
        let mut room = MaybeUninit::<bpf_dynptr>::uninit();
        let size = size_of::<FsverityDigest>() as u32;
        if bpf_dynptr_from_mem(answer.cast(), size, 0, room.as_mut_ptr()) != 0
            || digest_of(file, room.as_mut_ptr()) != 0
            || (*answer).algorithm != SHA256
            || (*answer).size != DIGEST_LEN as u16
        {
            return ptr::null();
        }
        answer
    }
}
