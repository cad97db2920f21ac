//! Which programs stand at which hooks.

use std::borrow::Cow;

use aya::programs::loaded_programs;
use portcullis_common::Gate;

use crate::kernel::{
    devices::WATCHES,
    gates::Settings,
    layout::{Hashing, Layout},
    usb_seen,
};

/// A program and the hook it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the LSM hook.
    pub hook: &'static str,
    /// The gate that it is; `None` for those that only delete verdicts.
    pub gate: Option<Gate>,
}

const fn hook(program: &'static str, hook: &'static str, gate: Option<Gate>) -> Hook {
    Hook { program, hook, gate }
}

/// The interpreter gate for kernels without `file_post_open`.
pub const EARLY_INTERPRETER_GATE: &str = "gate_interpreter_early";

/// What deletes verdicts, which is attached before what makes them; and the gate at memory.
const INVALIDATION: [Hook; 4] = [
    hook("invalidate_file_open", "file_open", Some(Gate::Device)),
    hook("invalidate_path_truncate", "path_truncate", None),
    hook("invalidate_file_truncate", "file_truncate", None),
    hook("gate_memory", "file_mprotect", Some(Gate::Memory)),
];

/// The gate at what interpreters run.
const INTERPRETERS: [Hook; 4] = [
    hook("gate_interpreter", POST_OPEN, Some(Gate::Interpreter)),
    hook(EARLY_INTERPRETER_GATE, "file_open", Some(Gate::Interpreter)),
    hook("forget_process", "task_free", Some(Gate::Interpreter)),
    hook("note_program", "bprm_committed_creds", Some(Gate::Interpreter)),
];

/// The gates at USB's switches, and the shield.
const GUARDS: [Hook; 23] = [
    hook("gate_usb", "file_permission", Some(Gate::Usb)),
    hook("gate_usb_ioctl", "file_ioctl", Some(Gate::Usb)),
    hook("gate_usb_ioctl_compat", "file_ioctl_compat", Some(Gate::Usb)),
    hook("shield_signal", "task_kill", Some(Gate::Shield)),
    hook("shield_memory", "ptrace_access_check", Some(Gate::Shield)),
    hook("shield_posing", "task_prctl", Some(Gate::Shield)),
    hook("shield_unlink", "inode_unlink", Some(Gate::Shield)),
    hook("shield_rename", "inode_rename", Some(Gate::Shield)),
    hook("shield_create", "inode_create", Some(Gate::Shield)),
    hook("shield_link", "inode_link", Some(Gate::Shield)),
    hook("shield_symlink", "inode_symlink", Some(Gate::Shield)),
    hook("shield_mkdir", "inode_mkdir", Some(Gate::Shield)),
    hook("shield_rmdir", "inode_rmdir", Some(Gate::Shield)),
    hook("shield_mknod", "inode_mknod", Some(Gate::Shield)),
    hook("shield_flags", "file_ioctl", Some(Gate::Shield)),
    hook("shield_flags_compat", "file_ioctl_compat", Some(Gate::Shield)),
    hook("shield_attributes", "inode_file_setattr", Some(Gate::Shield)),
    hook("shield_umount", "sb_umount", Some(Gate::Shield)),
    hook("shield_mount", "sb_mount", Some(Gate::Shield)),
    hook("shield_move_mount", "move_mount", Some(Gate::Shield)),
    hook("shield_bpf", "bpf", Some(Gate::Shield)),
    hook("shield_map", "bpf_map", Some(Gate::Shield)),
    hook("shield_program", "bpf_prog", Some(Gate::Shield)),
];

/// The gates that hash.
const GATES: [Hook; 5] = [
    hook("gate_mapping", "mmap_file", Some(Gate::Mapping)),
    hook("gate_kernel_read_file", "kernel_read_file", Some(Gate::Kernel)),
    hook("gate_kernel_load_data", "kernel_load_data", Some(Gate::Kernel)),
    hook("gate_exec", "bprm_check_security", Some(Gate::Exec)),
    hook("gate_exec_check", "bprm_creds_for_exec", Some(Gate::Exec)),
];

/// The same where the agent hashes: nothing there can sleep.
const APPRAISED_GATES: [Hook; 4] = [
    hook("gate_mapping_appraised", "mmap_file", Some(Gate::Mapping)),
    hook("gate_kernel_read_file_appraised", "kernel_read_file", Some(Gate::Kernel)),
    hook("gate_kernel_load_data", "kernel_load_data", Some(Gate::Kernel)),
    hook("gate_exec_appraised", "bprm_check_security", Some(Gate::Exec)),
];

/// All of one way of hashing, in the order in which they are attached.
fn hooks_where(hashing: Hashing) -> impl Iterator<Item = &'static Hook> {
    let parts: &[&'static [Hook]] = match hashing {
        Hashing::Kernel => &[&INVALIDATION, &INTERPRETERS, &GUARDS, &GATES],
        Hashing::Agent => &[&INVALIDATION, &GUARDS, &APPRAISED_GATES],
    };
    parts.iter().copied().flatten()
}

/// Where the interpreter gate stands, from 6.9 on. Earlier a script cannot be hashed at that moment.
const POST_OPEN: &str = "file_post_open";

/// Hooks that not every supported kernel has, and whose programs are not needed where they are missing.
pub const NEWER_HOOKS: [&str; 4] =
    ["file_truncate", "file_ioctl_compat", "inode_file_setattr", POST_OPEN];

/// The hooks that this kernel has and needs.
#[must_use]
pub fn hooks_for(layout: &Layout, settings: &Settings) -> Vec<Hook> {
    let interpreters = settings.interpreters && layout.can_judge_scripts;
    let has = |hook: &&Hook| match hook.program {
        _ if NEWER_HOOKS.contains(&hook.hook) && !layout.newer_hooks.contains(&hook.hook) => false,
        "gate_exec_check" => layout.has_exec_check,
        EARLY_INTERPRETER_GATE => interpreters && !layout.newer_hooks.contains(&POST_OPEN),
        _ if hook.gate == Some(Gate::Interpreter) => interpreters,
        _ if hook.gate == Some(Gate::Shield) => layout.has_short_names,
        _ if hook.gate == Some(Gate::Usb) => settings.usb && layout.has_short_names,
        _ => true,
    };
    hooks_where(layout.hashing).filter(has).copied().collect()
}

/// The kernel's functions that programs can be attached to: those of hooks (`bpf_lsm_…`), and others.
#[must_use]
pub fn functions() -> Vec<Cow<'static, str>> {
    let of_hooks = hooks_where(Hashing::Kernel).chain(hooks_where(Hashing::Agent));
    let of_hooks = of_hooks.map(|hook| Cow::Owned(format!("bpf_lsm_{}", hook.hook)));
    let others = WATCHES.iter().map(|watch| watch.function);
    let others = others.chain(usb_seen::PROGRAMS.iter().map(|(_, function)| *function));
    of_hooks.chain(others.map(Cow::Borrowed)).collect()
}

/// Whether the kernel has programs of ours, attached or on their way out. Whoever may not ask is
/// told of none.
#[must_use]
pub fn are_loaded() -> bool {
    /// Names are cut to this many bytes (`BPF_OBJ_NAME_LEN`, with the terminating zero).
    const NAME: usize = 15;
    loaded_programs().flatten().any(|program| {
        hooks_where(Hashing::Kernel).any(|hook| {
            let name = hook.program.as_bytes();
            program.name() == &name[..name.len().min(NAME)]
        })
    })
}
