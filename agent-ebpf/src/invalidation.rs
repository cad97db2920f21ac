//! Deletes a verdict when its file's content may change, and keeps mounted block devices closed.
//!
//! Every way to change a regular file goes through an open for writing or a truncation. Whoever
//! is already writing when a verdict is made shows in `i_writecount`, which the gates read.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use core::ffi::c_void;
use portcullis_common::{Active, Choices, Gate, Kinds, Outcome, Reason};

use crate::{
    appraisal::Appraisal,
    guarded::forget_agent_file,
    instructions,
    judge::{Hook, count_outcome, outcome},
    layout::{
        Dentry, FILE_TYPE, FMODE_NOACCOUNT, FMODE_WRITE, File, Inode, dentry_inode, file_dentry,
        file_inode, file_mode, inode_mode, inode_special_device, path_dentry,
    },
    maps::{VERDICTS, active, is_mounted_device},
    overlay,
    report::{Report, report},
    shield_files,
};

/// `S_IFBLK` (linux/stat.h).
const BLOCK_DEVICE: u16 = 0o060_000;

/// `int file_open(struct file *file)`, 5.10 to 7.2. `i_writecount` is raised before it is called
/// (`do_dentry_open` in fs/open.c).
#[lsm(hook = "file_open")]
pub fn invalidate_file_open(ctx: LsmContext) -> i32 {
    let file: *const File = ctx.arg(0);
    // SAFETY: the hook's argument is a `struct file *`.
    let mode = unsafe { file_mode(file) };
    if mode & (FMODE_WRITE | FMODE_NOACCOUNT) == 0 { 0 } else { opened(file, mode) }
}

/// A function of its own, so that opens for reading do not pay for saving the registers that it
/// needs.
#[inline(never)]
fn opened(file: *const File, mode: u32) -> i32 {
    // SAFETY: the only caller passes the hook's argument, a `struct file *`.
    unsafe {
        let inode = file_inode(file);
        if mode & FMODE_NOACCOUNT != 0 {
            overlay::note_layer(inode);
        } else {
            overlay::note_write(inode);
        }
        if mode & FMODE_WRITE == 0 {
            return 0;
        }
        forget(inode);
        if inode_mode(inode) & FILE_TYPE == BLOCK_DEVICE {
            judge_device(file, inode)
        } else {
            forget_agent_file(inode);
            shield_files::opened_for_writing(file, inode)
        }
    }
}

/// Writing to the device below a mounted filesystem changes files without a trace. The kernel's own
/// mounting does not open device files.
///
/// # Safety
/// `file` is the hook's own pointer, and `inode` its inode.
#[inline(always)]
unsafe fn judge_device(file: *const File, inode: *const Inode) -> i32 {
    let active = active();
    if active == Active::NONE || !active.choices().contains(Choices::MOUNTED_DEVICES_CLOSED) {
        return 0;
    }
    // SAFETY: by the contract.
    let is_mounted = is_mounted_device(unsafe { inode_special_device(inode) });
    if !is_mounted {
        return 0;
    }
    let (outcome, reason) = (outcome(active, true), Reason::MountedDevice);
    count_outcome(Gate::Device, outcome, reason);
    // `bpf_d_path` may be used at this hook although it does not sleep.
    let hook = Hook { gate: Gate::Device, sleeps: true, hashes: true };
    let appraisal = Appraisal::new(active);
    let told = Report { hook, outcome, reason, wanted: Kinds::NONE, appraisal: &appraisal };
    // SAFETY: by the contract.
    unsafe { report(&told, file, inode) };
    instructions::refusal(outcome as u8 == Outcome::Deny as u8)
}

/// `int path_truncate(const struct path *path)`, 5.10 to 7.2; write access is held while it is
/// called (`vfs_truncate`, and up to 6.1 also `handle_truncate`, in fs).
#[lsm(hook = "path_truncate")]
pub fn invalidate_path_truncate(ctx: LsmContext) -> i32 {
    let path: *const c_void = ctx.arg(0);
    // SAFETY: the hook's argument is a `const struct path *`.
    unsafe {
        let dentry = path_dentry(path);
        truncated(dentry, dentry_inode(dentry))
    }
}

/// `int file_truncate(struct file *file)`, from 6.2: opening with `O_TRUNC`, even read-only, and
/// `ftruncate`.
#[lsm(hook = "file_truncate")]
pub fn invalidate_file_truncate(ctx: LsmContext) -> i32 {
    let file: *const File = ctx.arg(0);
    // SAFETY: the hook's argument is a `struct file *`.
    // The verifier of 7.2 does not trust what is reached by way of a file's path.
    unsafe { truncated(file_dentry(file), file_inode(file)) }
}

/// # Safety
/// `dentry` is a kernel pointer that the verifier tracks, and `inode` that of its inode.
#[inline(always)]
unsafe fn truncated(dentry: *const Dentry, inode: *mut Inode) -> i32 {
    // SAFETY: by the contract.
    unsafe {
        if inode.is_null() {
            return 0;
        }
        overlay::note_write(inode);
        forget(inode);
        forget_agent_file(inode);
        shield_files::written(dentry, inode)
    }
}

/// # Safety
/// `inode` is null or a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn forget(inode: *mut Inode) {
    if !inode.is_null() {
        // That there was no verdict is no failure.
        // SAFETY: by the contract.
        let _ = unsafe { VERDICTS.delete(inode) };
    }
}
