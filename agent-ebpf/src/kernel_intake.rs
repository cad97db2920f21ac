//! The gate at what the kernel itself takes in: modules, kexec images, firmware.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Gate, Kinds, Reason};

use crate::{
    instructions::any,
    judge::{Hook, judge, judge_without_file},
    layout::{
        LOADING_FIRMWARE, LOADING_KEXEC_IMAGE, LOADING_KEXEC_INITRAMFS, LOADING_MODULE,
        READING_FIRMWARE, READING_KEXEC_IMAGE, READING_KEXEC_INITRAMFS, READING_MODULE,
        READING_MODULE_COMPRESSED,
    },
};

/// `int kernel_read_file(struct file *file, enum kernel_read_file_id id, bool contents)`, 5.10 to
/// 7.2; sleepable from 6.1. Nobody can open the file for writing while it is called
/// (`deny_write_access` in fs/kernel_read_file.c).
///
/// A compressed module is judged by the compressed file, as the kernel reads it. Purposes that are
/// not known here, such as certificates and policies of other security modules, have no kind that a
/// policy could list, and are refused.
#[lsm(hook = "kernel_read_file", sleepable)]
pub fn gate_kernel_read_file(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct file *`, not null.
    unsafe {
        judge(
            Hook { gate: Gate::Kernel, sleeps: true, hashes: true },
            ctx.arg(0),
            kind_of_file(ctx.arg(1)),
        )
    }
}

/// What a file is read for, by its number in this kernel.
#[inline(always)]
pub fn kind_of_file(id: u32) -> Kinds {
    let kinds = if id == READING_MODULE.load() || id == READING_MODULE_COMPRESSED.load() {
        Kinds::MODULE
    } else if id == READING_FIRMWARE.load() {
        Kinds::FIRMWARE
    } else if id == READING_KEXEC_IMAGE.load() || id == READING_KEXEC_INITRAMFS.load() {
        Kinds::KEXEC
    } else {
        Kinds::NONE
    };
    Kinds(any(u64::from(kinds.0)) as u8)
}

/// `int kernel_load_data(enum kernel_load_data_id id, bool contents)`, 5.10 to 7.2; sleepable in
/// none. The bytes come from memory: `init_module`, `kexec_load`, firmware that a process hands
/// over. The hook sees none of them.
#[lsm(hook = "kernel_load_data")]
pub fn gate_kernel_load_data(ctx: LsmContext) -> i32 {
    let id: u32 = ctx.arg(0);
    let (wanted, reason) = if id == LOADING_MODULE.load() {
        (Kinds::MODULE, Reason::NoFile)
    } else if id == LOADING_FIRMWARE.load() {
        (Kinds::FIRMWARE, Reason::NoFile)
    } else if id == LOADING_KEXEC_IMAGE.load() || id == LOADING_KEXEC_INITRAMFS.load() {
        (Kinds::KEXEC, Reason::NoFile)
    } else {
        (Kinds::NONE, Reason::UnknownUse)
    };
    judge_without_file(Gate::Kernel, wanted, reason)
}
