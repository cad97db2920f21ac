//! The gate at exec.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Gate, Kinds};

use crate::{judge::judge, layout::bprm_file};

/// `int bprm_check_security(struct linux_binprm *bprm)`, 5.10 to 7.2; sleepable from 6.1.
///
/// Called for the program, and again for each interpreter that a `#!` line or binfmt_misc puts in
/// its place.
#[lsm(hook = "bprm_check_security", sleepable)]
pub fn gate_exec(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct linux_binprm *`, and its file is set here.
    unsafe { judge(Gate::Exec, bprm_file(ctx.arg(0)), Kinds::EXECUTABLE.union(Kinds::SCRIPT)) }
}
