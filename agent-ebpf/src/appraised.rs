//! The gates on kernels that cannot hash files in them: up to 5.10 no hook at exec or mapping can
//! sleep, and some kernels have no IMA. There the agent has put the digest on the inode before
//! (`run/appraiser.rs` in the agent); the policy still decides here. What has no digest is refused,
//! whether or not the agent lives.
//!
//! What does not sleep uses nothing that 5.10 does not have: no atomic but the plain addition
//! (others are from 5.12).

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Gate, Kinds};

use crate::{
    judge::{Hook, judge},
    kernel_intake::kind_of_file,
    layout::{File, bprm_file},
    mapping::{is_of_no_concern, judge_mapping},
    shield,
};

/// `int bprm_check_security(struct linux_binprm *bprm)`, as [`crate::exec::gate_exec`].
#[lsm(hook = "bprm_check_security")]
pub fn gate_exec_appraised(ctx: LsmContext) -> i32 {
    let hook = Hook { gate: Gate::Exec, sleeps: false, hashes: false };
    // SAFETY: the hook's first argument is a `struct linux_binprm *`, and its file is set here.
    unsafe {
        match judge(hook, bprm_file(ctx.arg(0)), Kinds::EXECUTABLE.union(Kinds::SCRIPT)) {
            0 => shield::started(ctx.arg(0)),
            refused => refused,
        }
    }
}

/// `int mmap_file(struct file *file, unsigned long reqprot, unsigned long prot, unsigned long
/// flags)`, as [`crate::mapping::gate_mapping`].
#[lsm(hook = "mmap_file")]
pub fn gate_mapping_appraised(ctx: LsmContext) -> i32 {
    let (prot, flags) = (ctx.arg(2), ctx.arg(3));
    if is_of_no_concern(prot, flags) { 0 } else { judge_appraised(ctx.arg(0), prot, flags) }
}

/// As [`crate::mapping::judge_hashed`].
#[inline(never)]
fn judge_appraised(file: *const File, prot: u64, flags: u64) -> i32 {
    let hook = Hook { gate: Gate::Mapping, sleeps: false, hashes: false };
    judge_mapping(hook, file, prot, flags)
}

/// `int kernel_read_file(struct file *file, enum kernel_read_file_id id, bool contents)`, as
/// [`crate::kernel_intake::gate_kernel_read_file`].
#[lsm(hook = "kernel_read_file")]
pub fn gate_kernel_read_file_appraised(ctx: LsmContext) -> i32 {
    let hook = Hook { gate: Gate::Kernel, sleeps: false, hashes: false };
    // SAFETY: the hook's first argument is a `struct file *`, not null.
    unsafe { judge(hook, ctx.arg(0), kind_of_file(ctx.arg(1))) }
}
