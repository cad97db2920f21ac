//! The gate at mapping as code.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Gate, Kinds};

use crate::{judge::judge, layout::File};

/// `PROT_EXEC` (linux/mman.h).
const PROT_EXEC: u64 = 4;

/// `int mmap_file(struct file *file, unsigned long reqprot, unsigned long prot, unsigned long
/// flags)`, 5.10 to 7.2; sleepable from 6.1.
///
/// Called for every mapping; `file` is null for anonymous memory. `prot` is what takes effect:
/// with `READ_IMPLIES_EXEC` it has `PROT_EXEC` although the caller asked for reading only.
#[lsm(hook = "mmap_file", sleepable)]
pub fn gate_mapping(ctx: LsmContext) -> i32 {
    let prot: u64 = ctx.arg(2);
    if prot & PROT_EXEC == 0 {
        return 0;
    }
    let file: *const File = ctx.arg(0);
    if file.is_null() {
        return 0;
    }
    // SAFETY: the hook's first argument is a `struct file *`, not null.
    unsafe { judge(Gate::Mapping, file, Kinds::LIBRARY) }
}
