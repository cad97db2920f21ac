//! The gate at exec.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Gate, Kinds};

use crate::{
    judge::{Hook, judge},
    layout::{bprm_file, is_exec_check},
    shield,
};

const HOOK: Hook = Hook { gate: Gate::Exec, sleeps: true, hashes: true };

/// `int bprm_check_security(struct linux_binprm *bprm)`, 5.10 to 7.2; sleepable from 6.1.
///
/// Called for the program, and again for each interpreter that a `#!` line or binfmt_misc puts in
/// its place.
#[lsm(hook = "bprm_check_security", sleepable)]
pub fn gate_exec(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct linux_binprm *`, and its file is set here.
    unsafe {
        match judge(HOOK, bprm_file(ctx.arg(0)), Kinds::EXECUTABLE.union(Kinds::SCRIPT)) {
            0 => shield::started(ctx.arg(0)),
            refused => refused,
        }
    }
}

/// `int bprm_creds_for_exec(struct linux_binprm *bprm)`, from 5.8; attached from 6.14, where
/// `execveat` with `AT_EXECVE_CHECK` asks whether a file could be run. That call ends before
/// `bprm_check_security` (`bprm_execve` in fs/exec.c); for every other one this hook is not a gate.
#[lsm(hook = "bprm_creds_for_exec", sleepable)]
pub fn gate_exec_check(ctx: LsmContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        if !is_exec_check(ctx.arg(0)) {
            return 0;
        }
        judge(HOOK, bprm_file(ctx.arg(0)), Kinds::EXECUTABLE.union(Kinds::SCRIPT))
    }
}
