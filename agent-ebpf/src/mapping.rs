//! The gate at mapping as code, and the memory of mappings through which content can change.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Gate, Kinds, Reason};

use crate::{
    appraisal::is_regular,
    inode_storage::get_or_make,
    instructions::is_null,
    judge::{Hook, cannot_decide, judge},
    layout::{FMODE_WRITE, File, file_inode, file_mode},
    maps::WAS_MAPPED,
    memory::{PROT_EXEC, judge_memory},
};

/// The bit that `MAP_SHARED` and `MAP_SHARED_VALIDATE` have and no other type of mapping
/// (linux/mman.h).
const MAP_SHARED: u64 = 1;

const HOOK: Hook = Hook { gate: Gate::Mapping, sleeps: true, hashes: true };

/// `int mmap_file(struct file *file, unsigned long reqprot, unsigned long prot, unsigned long
/// flags)`, 5.10 to 7.2; sleepable from 6.1.
///
/// Called for every mapping; `file` is null for anonymous memory. `prot` is what takes effect:
/// with `READ_IMPLIES_EXEC` it has `PROT_EXEC` although the caller asked for reading only.
#[lsm(hook = "mmap_file", sleepable)]
pub fn gate_mapping(ctx: LsmContext) -> i32 {
    let (prot, flags) = (ctx.arg(2), ctx.arg(3));
    if is_of_no_concern(prot, flags) { 0 } else { judge_hashed(ctx.arg(0), prot, flags) }
}

/// A function of its own, so that mappings of no concern, which are most, do not pay for saving the
/// registers that it needs.
#[inline(never)]
fn judge_hashed(file: *const File, prot: u64, flags: u64) -> i32 {
    judge_mapping(HOOK, file, prot, flags)
}

/// Whether a mapping is neither code nor a way to change a file.
#[inline(always)]
pub fn is_of_no_concern(prot: u64, flags: u64) -> bool {
    prot & PROT_EXEC == 0 && flags & MAP_SHARED == 0
}

/// What any other mapping means, whether or not the hook sleeps.
#[inline(always)]
pub fn judge_mapping(hook: Hook, file: *const File, prot: u64, flags: u64) -> i32 {
    let is_code = prot & PROT_EXEC != 0;
    if is_null(file) {
        return if is_code { judge_memory(Reason::AnonymousMemory) } else { 0 };
    }
    // For kernels that declare the argument nullable (7.2), and so want to see a comparison.
    if file.is_null() {
        return 0;
    }
    // SAFETY: the hook's first argument is a `struct file *`, not null.
    unsafe {
        if flags & MAP_SHARED != 0 && !remember(file) {
            return cannot_decide(hook, file, Kinds::LIBRARY, Reason::NoMemory);
        }
        if is_code { judge(hook, file, Kinds::LIBRARY) } else { 0 }
    }
}

/// Remembers that the file's content can change through a mapping, for as long as its pages can
/// be in memory. `false` if there is no memory for it.
///
/// The mapping keeps the file open, so `i_writecount` tells while it lives. It does not tell of
/// pages that the kernel still holds for I/O after it: buffers registered with io_uring, direct
/// reads into the mapping, `process_vm_writev`. And while the pages live they may show, after the
/// file's end, bytes that are no part of the content.
///
/// A mapping of a descriptor that only reads cannot become writable. What is writable is decided
/// by the descriptor and not by `prot`, because `mprotect` can add that later.
///
/// # Safety
/// `file` is the hook's own pointer, not null.
#[inline(always)]
unsafe fn remember(file: *const File) -> bool {
    // SAFETY: by the contract.
    unsafe {
        let inode = file_inode(file);
        file_mode(file) & FMODE_WRITE == 0
            || !is_regular(inode)
            || !get_or_make(&WAS_MAPPED, inode).is_null()
    }
}
