//! What the shield guards of files: the pins, the agent's state and its runtime folder, and the switch by
//! which the kernel is told not to call programs any more.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Active, FileId, Gate, Kinds, Outcome, Reason};

use crate::{
    appraisal::Appraisal,
    guarded::{guarded_of, is_agent, is_state_device},
    instructions,
    judge::{Hook, count_outcome, outcome},
    layout::{
        Dentry, File, Filesystem, Inode, dentry_inode, dentry_parent, file_dentry, file_inode,
        has_short_names, inode_filesystem, look_at_dentry, short_name,
    },
    maps::active,
    name::{Name, name},
    report::{Report, report_with_names},
};

/// `BPF_FS_MAGIC` and `PROC_SUPER_MAGIC` (linux/magic.h).
const BPFFS: u64 = 0xcafe_4a11;
const PROCFS: u64 = 0x9fa0;
/// `FS_IOC_SETFLAGS`, the same for programs of 32 bits, `FS_IOC_FSSETXATTR` (linux/fs.h) and
/// `FS_IOC_ENABLE_VERITY` (linux/fsverity.h): with these a file is made immutable or append-only, without
/// having been opened for writing.
const SET_FLAGS: u32 = 0x4008_6602;
const SET_FLAGS_32: u32 = 0x4004_6602;
const SET_ATTRIBUTES: u32 = 0x401c_5820;
const ENABLE_VERITY: u32 = 0x4080_6685;

const FTRACE_ENABLED: Name = name(b"ftrace_enabled");

/// `int inode_unlink(struct inode *dir, struct dentry *dentry)`, 5.10 to 7.2.
#[lsm(hook = "inode_unlink")]
pub fn shield_unlink(ctx: LsmContext) -> i32 {
    let folder: *const Inode = ctx.arg(0);
    // SAFETY: the hook's arguments.
    unsafe {
        let filesystem = inode_filesystem(folder);
        if let Some(reason) = guard_of(folder, filesystem) {
            return changed(folder, ctx.arg(1), reason);
        }
        let entry: *const Dentry = ctx.arg(1);
        if is_state_device(filesystem.device)
            && guarded_of(dentry_inode(entry), filesystem.device) & FileId::CLOSED != 0
        {
            return changed(folder, entry, Reason::AgentState);
        }
        0
    }
}

/// `int inode_rename(struct inode *old_dir, struct dentry *old_dentry, struct inode *new_dir, struct
/// dentry *new_dentry)`, 5.10 to 7.2.
#[lsm(hook = "inode_rename")]
pub fn shield_rename(ctx: LsmContext) -> i32 {
    let (from, old): (*const Inode, *const Dentry) = (ctx.arg(0), ctx.arg(1));
    // Renaming does not leave a filesystem.
    // SAFETY: the hook's arguments.
    unsafe {
        let filesystem = inode_filesystem(from);
        let reason = match guard_of(from, filesystem) {
            Some(reason) => Some(reason),
            None => guard_of(ctx.arg(2), filesystem),
        };
        if let Some(reason) = reason {
            return changed(from, old, reason);
        }
        let new: *const Dentry = ctx.arg(3);
        let guarded = |entry| guarded_of(dentry_inode(entry), filesystem.device);
        let on_the_way = guarded(old) | guarded(new);
        if on_the_way & FileId::ON_THE_WAY != 0 {
            return changed(from, old, Reason::GatePins);
        }
        0
    }
}

/// Why nobody changes what lies in a folder; none if anybody may.
///
/// # Safety
/// `folder` is a kernel pointer that the verifier tracks, on that filesystem.
#[inline(always)]
unsafe fn guard_of(folder: *const Inode, filesystem: Filesystem) -> Option<Reason> {
    // SAFETY: by the contract.
    unsafe {
        let reason = if filesystem.magic == BPFFS {
            Reason::GatePins
        } else if is_state_device(filesystem.device) {
            Reason::AgentState
        } else {
            return None;
        };
        (guarded_of(folder, filesystem.device) & FileId::CLOSED != 0).then_some(reason)
    }
}

/// `int inode_create(struct inode *dir, struct dentry *dentry, umode_t mode)`, 5.10 to 7.2.
#[lsm(hook = "inode_create")]
pub fn shield_create(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's arguments.
    unsafe { added(ctx.arg(0), ctx.arg(1)) }
}

/// `int inode_link(struct dentry *old_dentry, struct inode *dir, struct dentry *new_dentry)`, 5.10 to 7.2.
/// By a second name elsewhere a file would be written like any other.
#[lsm(hook = "inode_link")]
pub fn shield_link(ctx: LsmContext) -> i32 {
    let (old, folder): (*const Dentry, *const Inode) = (ctx.arg(0), ctx.arg(1));
    // Links do not leave a filesystem.
    // SAFETY: the hook's arguments; an entry always has a parent, which may be itself.
    unsafe {
        let filesystem = inode_filesystem(folder);
        if let Some(reason) = guard_of(folder, filesystem) {
            return changed(folder, ctx.arg(2), reason);
        }
        match guard_of(dentry_inode(dentry_parent(look_at_dentry(old))), filesystem) {
            Some(reason) => changed(folder, old, reason),
            None => 0,
        }
    }
}

/// `int inode_symlink(struct inode *dir, struct dentry *dentry, const char *old_name)`, 5.10 to 7.2.
#[lsm(hook = "inode_symlink")]
pub fn shield_symlink(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's arguments.
    unsafe { added(ctx.arg(0), ctx.arg(1)) }
}

/// `int inode_mkdir(struct inode *dir, struct dentry *dentry, umode_t mode)`, 5.10 to 7.2.
#[lsm(hook = "inode_mkdir")]
pub fn shield_mkdir(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's arguments.
    unsafe { added(ctx.arg(0), ctx.arg(1)) }
}

/// `int inode_rmdir(struct inode *dir, struct dentry *dentry)`, 5.10 to 7.2.
#[lsm(hook = "inode_rmdir")]
pub fn shield_rmdir(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's arguments.
    unsafe { added(ctx.arg(0), ctx.arg(1)) }
}

/// `int inode_mknod(struct inode *dir, struct dentry *dentry, umode_t mode, dev_t dev)`, 5.10 to 7.2: also
/// pipes and sockets.
#[lsm(hook = "inode_mknod")]
pub fn shield_mknod(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's arguments.
    unsafe { added(ctx.arg(0), ctx.arg(1)) }
}

/// Something is added to a folder, or taken from it.
///
/// # Safety
/// Both are kernel pointers that the verifier tracks; `entry` is one of `folder`.
#[inline(always)]
unsafe fn added(folder: *const Inode, entry: *const Dentry) -> i32 {
    // SAFETY: by the contract.
    unsafe {
        match guard_of(folder, inode_filesystem(folder)) {
            Some(reason) => changed(folder, entry, reason),
            None => 0,
        }
    }
}

/// `int file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)`, 5.10 to 7.2. What is immutable
/// the agent could not write any more either.
#[lsm(hook = "file_ioctl")]
pub fn shield_flags(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct file *`.
    unsafe { commanded(ctx.arg(0), ctx.arg(1)) }
}

/// `int file_ioctl_compat(struct file *file, unsigned int cmd, unsigned long arg)`, from 6.8 and in the
/// later releases of those before: the system calls of programs of 32 bits, which everybody can make.
#[lsm(hook = "file_ioctl_compat")]
pub fn shield_flags_compat(ctx: LsmContext) -> i32 {
    // SAFETY: as above.
    unsafe { commanded(ctx.arg(0), ctx.arg(1)) }
}

/// `int inode_file_setattr(struct dentry *dentry, struct file_kattr *fa)`, from 6.17, where `file_setattr`
/// does the same without an ioctl.
#[lsm(hook = "inode_file_setattr")]
pub fn shield_attributes(ctx: LsmContext) -> i32 {
    let dentry: *const Dentry = ctx.arg(0);
    // SAFETY: the hook's first argument is a `struct dentry *`.
    unsafe {
        let inode = dentry_inode(dentry);
        // It has one, which the verifier does not know.
        if inode.is_null() { 0 } else { written(dentry, inode) }
    }
}

/// # Safety
/// `file` is a `struct file *` that the verifier tracks.
#[inline(always)]
unsafe fn commanded(file: *const File, command: u32) -> i32 {
    match command {
        SET_FLAGS | SET_FLAGS_32 | SET_ATTRIBUTES | ENABLE_VERITY => {
            // SAFETY: by the contract.
            unsafe { written(file_dentry(file), file_inode(file)) }
        }
        _ => 0,
    }
}

/// A file was opened for writing: one by which the kernel is told not to call programs any more, or one
/// that the agent keeps its state in.
///
/// # Safety
/// `file` is the hook's own pointer, and `inode` its inode.
#[inline(always)]
pub unsafe fn opened_for_writing(file: *const File, inode: *const Inode) -> i32 {
    if !has_short_names() {
        return 0;
    }
    // SAFETY: by the contract.
    unsafe {
        let filesystem = inode_filesystem(inode);
        if filesystem.magic != PROCFS {
            return written_on(filesystem, file_dentry(file), inode);
        }
        let dentry = file_dentry(file);
        if FTRACE_ENABLED.is(&short_name(dentry)) {
            changed(inode, dentry, Reason::GateSwitch)
        } else {
            0
        }
    }
}

/// A file is written or truncated: maybe one that the agent keeps its state in.
///
/// # Safety
/// `dentry` and `inode` are kernel pointers that the verifier tracks, of the same file.
#[inline(always)]
pub unsafe fn written(dentry: *const Dentry, inode: *const Inode) -> i32 {
    if !has_short_names() {
        return 0;
    }
    // SAFETY: by the contract.
    unsafe { written_on(inode_filesystem(inode), dentry, inode) }
}

/// # Safety
/// As for [`written`], and the filesystem is that of both.
#[inline(always)]
unsafe fn written_on(filesystem: Filesystem, dentry: *const Dentry, inode: *const Inode) -> i32 {
    // SAFETY: by the contract; an entry always has a parent, which may be itself.
    unsafe {
        let device = filesystem.device;
        if !is_state_device(device) {
            return 0;
        }
        let folder = dentry_inode(dentry_parent(look_at_dentry(dentry)));
        // Of a variable of the firmware only the file itself is guarded.
        if (guarded_of(folder, device) | guarded_of(inode, device)) & FileId::CLOSED != 0 {
            changed(inode, dentry, Reason::AgentState)
        } else {
            0
        }
    }
}

/// Somebody would change a file that is guarded.
///
/// # Safety
/// `inode` and `dentry` are kernel pointers that the verifier tracks; `inode` is the file's, or its
/// folder's.
#[inline(never)]
unsafe fn changed(inode: *const Inode, dentry: *const Dentry, reason: Reason) -> i32 {
    let active = active();
    if active == Active::NONE || is_agent() {
        return 0;
    }
    let outcome = outcome(active, true);
    count_outcome(Gate::Shield, outcome, reason);
    let hook = Hook { gate: Gate::Shield, sleeps: false, hashes: false };
    let appraisal = Appraisal::new(active);
    let told = Report { hook, outcome, reason, wanted: Kinds::NONE, appraisal: &appraisal };
    // SAFETY: by the contract.
    unsafe { report_with_names(&told, inode, dentry) };
    instructions::refusal(outcome as u8 == Outcome::Deny as u8)
}
