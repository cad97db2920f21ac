//! The gates that protect the agent, its files and the gates themselves, whoever attacks them, and
//! whether or not the agent lives. None of them is on the way of an exec or a mapping.
//!
//! What no hook sees may end the agent (`cgroup.kill`, the kernel running out of memory), but takes
//! down nothing: the pins keep the gates in force.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use core::ffi::c_void;
use portcullis_common::{Gate, Kinds, MAP_PREFIX, Reason, SHOW_MOUNT};

use crate::{
    guarded::{
        ObjectKind, guarded_of, is_agent, is_agent_program, is_agents_task, is_guarded_mount,
        is_object, note_mount, runs_agent_program, task_runs_agent_program,
    },
    judge::judge_without_file,
    layout::{
        Task, bpf_attribute, bpf_map_name, bpf_program_id, bprm_file, bprm_is_traced,
        current_process, dentry_inode, file_inode, inode_filesystem, look_at_path, path_dentry,
        path_mount,
    },
    other_bpf,
};

/// `PTRACE_MODE_ATTACH` (include/linux/ptrace.h): more than a look from outside.
const ATTACH: u32 = 2;
/// Of the first process: it ends services, and starts them again.
const INIT: u32 = 1;
/// `BPF_PROG_LOAD` and `BPF_LINK_GET_FD_BY_ID` (linux/bpf.h).
const PROGRAM_LOAD: i32 = 5;
const LINK_BY_ID: i32 = 30;
/// `ENOSYS` (asm-generic/errno.h).
const ENOSYS: i32 = 38;
/// `PR_SET_MM`, `PR_SET_MM_EXE_FILE` and `PR_SET_MM_MAP` (linux/prctl.h).
const SET_MM: i32 = 35;
const SET_MM_EXE_FILE: u64 = 13;
const SET_MM_MAP: u64 = 14;
/// `MS_REMOUNT`, `MS_BIND`, and `MS_UNBINDABLE | MS_PRIVATE | MS_SLAVE | MS_SHARED` (linux/mount.h).
const REMOUNT: u64 = 1 << 5;
const BIND: u64 = 1 << 12;
const PROPAGATION: u64 = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20;

/// `int task_kill(struct task_struct *p, struct kernel_siginfo *info, int sig, const struct cred
/// *cred)`, 5.10 to 7.2: kill, tgkill, pidfds and the rest of what processes send.
#[lsm(hook = "task_kill")]
pub fn shield_signal(ctx: LsmContext) -> i32 {
    let signal: i32 = ctx.arg(2);
    // Asks whether the process is there.
    if signal == 0 {
        return 0;
    }
    let target: *const Task = ctx.arg(0);
    // SAFETY: the hook's first argument is a `struct task_struct *`.
    if !unsafe { is_agents_task(target) } {
        return 0;
    }
    if current_process().pid == INIT || is_agent() { 0 } else { attempted(Reason::AgentSignal) }
}

/// `int ptrace_access_check(struct task_struct *child, unsigned int mode)`, 5.10 to 7.2: debuggers,
/// `/proc/PID/mem`, `process_vm_writev`, `pidfd_getfd`. The child is locked.
#[lsm(hook = "ptrace_access_check")]
pub fn shield_memory(ctx: LsmContext) -> i32 {
    let mode: u32 = ctx.arg(1);
    if mode & ATTACH == 0 {
        return 0;
    }
    let target: *const Task = ctx.arg(0);
    // SAFETY: the hook's first argument is a `struct task_struct *`.
    if !unsafe { is_agents_task(target) || task_runs_agent_program(target) } {
        return 0;
    }
    if is_agent() { 0 } else { attempted(Reason::AgentMemory) }
}

/// Called by the exec gate for what it allows: a binary of the agent under a debugger would do what
/// the debugger wants.
///
/// # Safety
/// `bprm` is the hook's `struct linux_binprm *`.
#[inline(always)]
pub unsafe fn started(bprm: *const c_void) -> i32 {
    // SAFETY: by the contract.
    unsafe {
        if bprm_is_traced(bprm) && is_agent_program(file_inode(bprm_file(bprm))) {
            attempted(Reason::AgentMemory)
        } else {
            0
        }
    }
}

/// `int task_prctl(int option, unsigned long arg2, …)`, 5.10 to 7.2: passing for another program. The
/// hook's answer for «not my concern» is `-ENOSYS`.
#[lsm(hook = "task_prctl")]
pub fn shield_posing(ctx: LsmContext) -> i32 {
    let (option, what): (i32, u64) = (ctx.arg(0), ctx.arg(1));
    if option != SET_MM || (what != SET_MM_EXE_FILE && what != SET_MM_MAP) {
        return -ENOSYS;
    }
    match attempted(Reason::AgentMemory) {
        0 => -ENOSYS,
        refused => refused,
    }
}

/// `int sb_umount(struct vfsmount *mnt, int flags)`, 5.10 to 7.2: before anything else that `umount2`
/// does.
#[lsm(hook = "sb_umount")]
pub fn shield_umount(ctx: LsmContext) -> i32 {
    let (mount, flags): (*const c_void, u32) = (ctx.arg(0), ctx.arg(1));
    if flags == SHOW_MOUNT {
        if is_agent() {
            note_mount(mount);
        }
        return 0;
    }
    if is_guarded_mount(mount) && !is_agent() { attempted(Reason::GateMount) } else { 0 }
}

/// `int sb_mount(const char *dev_name, const struct path *path, const char *type, unsigned long flags,
/// void *data)`, 5.10 to 7.2.
#[lsm(hook = "sb_mount")]
pub fn shield_mount(ctx: LsmContext) -> i32 {
    let flags: u64 = ctx.arg(3);
    // What changes a mount covers nothing; the kernel takes the flags in this order.
    if flags & REMOUNT != 0 || (flags & BIND == 0 && flags & PROPAGATION != 0) {
        return 0;
    }
    // SAFETY: the hook's second argument is a `const struct path *`.
    unsafe { covered(ctx.arg(1)) }
}

/// `int move_mount(const struct path *from_path, const struct path *to_path)`, 5.10 to 7.2: also for
/// mounts that `fsmount` and `open_tree` have made.
#[lsm(hook = "move_mount")]
pub fn shield_move_mount(ctx: LsmContext) -> i32 {
    let from: *const c_void = ctx.arg(0);
    // SAFETY: the hook's arguments are `const struct path *`.
    unsafe {
        if is_guarded_mount(path_mount(look_at_path(from))) && !is_agent() {
            return attempted(Reason::GateMount);
        }
        covered(ctx.arg(1))
    }
}

/// # Safety
/// `place` is a `const struct path *` that the verifier tracks.
#[inline(always)]
unsafe fn covered(place: *const c_void) -> i32 {
    // SAFETY: by the contract.
    unsafe {
        let place = look_at_path(place);
        // Other mount namespaces have other mounts, over which anything may be mounted.
        if !is_guarded_mount(path_mount(place)) {
            return 0;
        }
        let inode = dentry_inode(path_dentry(place));
        if inode.is_null() {
            return 0;
        }
        let guarded = guarded_of(inode, inode_filesystem(inode).device);
        if guarded != 0 && !is_agent() { attempted(Reason::GateMount) } else { 0 }
    }
}

/// `int bpf(int cmd, union bpf_attr *attr, unsigned int size, …)`, 5.10 to 7.2.
#[lsm(hook = "bpf")]
pub fn shield_bpf(ctx: LsmContext) -> i32 {
    let command: i32 = ctx.arg(0);
    match command {
        LINK_BY_ID => {
            // SAFETY: the hook's second argument is a `union bpf_attr *`, which begins with the id.
            let id = unsafe { bpf_attribute(ctx.arg(1), 0) };
            if is_object(ObjectKind::Link, id) { reached() } else { 0 }
        }
        // SAFETY: as above.
        PROGRAM_LOAD => unsafe { other_bpf::loaded(ctx.arg(1)) },
        _ => 0,
    }
}

/// `int bpf_map(struct bpf_map *map, fmode_t fmode)`, 5.10 to 7.2: before somebody gets a descriptor,
/// by id, by pin, or by making the map.
#[lsm(hook = "bpf_map")]
pub fn shield_map(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct bpf_map *`.
    let name = unsafe { bpf_map_name(ctx.arg(0)) };
    if name == u64::from_ne_bytes(*MAP_PREFIX) { reached() } else { 0 }
}

/// `int bpf_prog(struct bpf_prog *prog)`, 5.10 to 7.2: likewise.
#[lsm(hook = "bpf_prog")]
pub fn shield_program(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's argument is a `struct bpf_prog *`.
    let id = unsafe { bpf_program_id(ctx.arg(0)) };
    if is_object(ObjectKind::Program, id) { reached() } else { 0 }
}

/// Somebody would get hold of an object of ours.
#[inline(always)]
fn reached() -> i32 {
    if is_agent() || runs_agent_program() { 0 } else { attempted(Reason::GateObjects) }
}

/// Somebody attacks what is no file.
#[inline(never)]
fn attempted(reason: Reason) -> i32 {
    judge_without_file(Gate::Shield, Kinds::NONE, reason)
}
