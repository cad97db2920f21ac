//! The running kernel's layout, for the kernel programs.

use std::{fs, io, path::Path};

use portcullis_common::{Fields, NO_ENUMERATOR};
use thiserror::Error;

use crate::kernel::{
    btf::{Btf, BtfError},
    calls::Functions,
    devices::WATCHES,
    hook_types::only_functions,
    hooks,
};

/// Where the kernel gives its own type information (from 5.4, with `CONFIG_DEBUG_INFO_BTF`).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the layout is not known.
#[derive(Debug, Error)]
pub enum LayoutError {
    /// The kernel gives no type information.
    #[error("{VMLINUX}: {0}")]
    Read(#[from] io::Error),
    /// It is damaged, or lacks something that the programs need.
    #[error(transparent)]
    Btf(#[from] BtfError),
}

/// Who works out the digest of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashing {
    /// The kernel, in the gate itself (`bpf_ima_file_hash`, from 5.18, with IMA).
    Kernel,
    /// The agent, before the file is used: up to 5.17, and on kernels without IMA.
    Agent,
}

/// What the kernel programs must be told about the running kernel.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Name and value of each global.
    globals: Vec<(&'static str, u32)>,
    /// Whether there is what the programs need that watch the device mapper's devices (from 5.11).
    pub can_watch_devices: bool,
    /// Whether programs must copy what they read of tasks, which the strictest lockdown refuses.
    pub copies_tasks: bool,
    /// Whether the digest of files with fs-verity can be seen.
    pub has_fsverity: bool,
    /// The kernel's functions that programs call.
    pub functions: Functions,
    /// The LSM hooks that exist, of those that not every kernel has.
    pub newer_hooks: Vec<&'static str>,
    /// Whether an exec can be asked for without being done (`AT_EXECVE_CHECK`, from 6.14).
    pub has_exec_check: bool,
    /// Who works out digests.
    pub hashing: Hashing,
    /// Whether programs can judge the scripts that interpreters open.
    pub can_judge_scripts: bool,
    /// Whether programs can read short names of files, by which the USB gate knows its switches.
    pub has_short_names: bool,
    /// Whether a program is called for one task while it works for another on the same processor
    /// (before 5.12, from 6.2, and in later releases of 6.1).
    pub runs_when_busy: bool,
    /// Where programs may be attached, for the loader.
    pub attachable: Vec<u8>,
}

impl Layout {
    /// Reads the running kernel's.
    ///
    /// # Errors
    /// If there is no type information, or a field in it is missing; the error names it.
    pub fn of_running_kernel() -> Result<Self, LayoutError> {
        Self::read(Path::new(VMLINUX))
    }

    fn read(path: &Path) -> Result<Self, LayoutError> {
        let bytes = fs::read(path)?;
        let btf = Btf::parse(&bytes)?;
        let offsets = Fields::OFFSETS
            .iter()
            .map(|field| Ok((field.global, btf.offset(field.structure, field.member)?)));
        let values = Fields::ENUMERATORS
            .iter()
            .map(|value| Ok((value.global, btf.enumerator(value.enumeration, value.enumerator)?)));
        let newer = Fields::NEWER_ENUMERATORS.iter().map(|value| {
            match btf.enumerator(value.enumeration, value.enumerator) {
                Err(BtfError::NoEnumerator { .. }) => Ok((value.global, NO_ENUMERATOR)),
                found => Ok((value.global, found?)),
            }
        });
        let mut globals =
            offsets.chain(values).chain(newer).collect::<Result<Vec<_>, BtfError>>()?;
        let has_hash = btf.has_function("bpf_ima_file_hash");
        // Younger than the right to ask for paths in every hook that sleeps.
        globals.push(("GIVES_PATHS", u32::from(has_hash)));
        let copied = !btf.has_function("bpf_get_current_task_btf");
        globals.push(("TASKS_ARE_COPIED", u32::from(copied)));
        let exec_check = btf.bit("linux_binprm", "is_check").ok();
        if let Some((byte, bit)) = exec_check {
            globals.push(("LINUX_BINPRM_IS_CHECK", byte));
            globals.push(("LINUX_BINPRM_IS_CHECK_BIT", bit));
        }
        let devices = device_fields(&btf);
        globals.extend(devices.iter().flatten());
        let fsverity = fsverity_fields(&btf);
        globals.extend(fsverity.iter().flatten());
        let fsverity_call = match fsverity {
            Some(_) => None,
            None => btf.function("bpf_get_fsverity_digest"),
        };
        globals.push(("FSVERITY_IS_ASKED", u32::from(fsverity_call.is_some())));
        let look = look(&btf, &mut globals);
        let opened_name = opened_name(&btf);
        globals.extend(opened_name.iter().flatten());
        // By its newer name from 6.15.
        let short_name =
            btf.offset("dentry", "d_iname").or_else(|_| btf.offset("dentry", "d_shortname"));
        globals.extend(short_name.iter().map(|offset| ("DENTRY_SHORT_NAME", *offset)));
        let hashing = if has_hash && btf.has_function("ima_file_check") {
            Hashing::Kernel
        } else {
            Hashing::Agent
        };
        Ok(Self {
            globals,
            copies_tasks: copied,
            can_judge_scripts: hashing == Hashing::Kernel && opened_name.is_some(),
            has_fsverity: fsverity.is_some() || fsverity_call.is_some(),
            functions: Functions { fsverity: fsverity_call, look },
            can_watch_devices: devices.is_some(),
            has_exec_check: exec_check.is_some(),
            has_short_names: short_name.is_ok(),
            newer_hooks: hooks::NEWER_HOOKS
                .into_iter()
                .filter(|hook| btf.has_function(&format!("bpf_lsm_{hook}")))
                .collect(),
            hashing,
            // Since the counter came (5.12) and before this function was split off, every program
            // was protected from recursion by being skipped, security programs too.
            runs_when_busy: btf.has_function("__bpf_prog_enter_sleepable_recur")
                || btf.offset("bpf_prog", "active").is_err(),
            attachable: only_functions(&btf, hooks::functions().iter().map(AsRef::as_ref)),
        })
    }

    /// Name and value of each global to set.
    pub fn globals(&self) -> impl Iterator<Item = (&'static str, &u32)> {
        self.globals.iter().map(|(name, value)| (*name, value))
    }
}

/// The function by which programs say that they only look through a pointer (from 6.2), with the types that
/// they look at, where the verifier searches all of the kernel's types for every pointer that it trusts (from
/// 6.3), which takes it most of its time.
fn look(btf: &Btf<'_>, globals: &mut Vec<(&'static str, u32)>) -> Option<u32> {
    const TYPES: [(&str, &str); 6] = [
        ("TASK_TYPE", "task_struct"),
        ("INODE_TYPE", "inode"),
        ("DENTRY_TYPE", "dentry"),
        ("OPEN_FILE_TYPE", "file"),
        ("PATH_TYPE", "path"),
        ("PROGRAM_TYPE", "bpf_prog"),
    ];
    let function = btf.function("bpf_rdonly_cast")?;
    btf.function("btf_nested_type_is_trusted")?;
    let types = TYPES.map(|(global, name)| Some((global, btf.structure(name)?)));
    globals.extend(types.into_iter().collect::<Option<Vec<_>>>()?);
    Some(function)
}

/// Where programs find the name by which a file is opened: in the process's memory, or, where the
/// kernel does not keep that address (7.2), in the kernel's. Of the latter, programs may read what
/// such a member points to since 6.17, long before the former was given up.
fn opened_name(btf: &Btf<'_>) -> Option<[(&'static str, u32); 2]> {
    let member = |member| btf.offset("filename", member).ok();
    let of_process = member("uptr").map(|offset| (offset, 0));
    let (offset, is_copied) = of_process.or_else(|| Some((member("name")?, 1)))?;
    Some([("FILENAME_NAME", offset), ("NAME_IS_COPIED", is_copied)])
}

/// What the programs read of disks, if the functions are there that they are called from.
fn device_fields(btf: &Btf<'_>) -> Option<Vec<(&'static str, u32)>> {
    const FIELDS: [(&str, &str, &str); 4] = [
        ("GENDISK_PART0", "gendisk", "part0"),
        ("GENDISK_DISK_NAME", "gendisk", "disk_name"),
        ("BLOCK_DEVICE_BD_DEV", "block_device", "bd_dev"),
        ("BLOCK_DEVICE_BD_NR_SECTORS", "block_device", "bd_nr_sectors"),
    ];
    if !WATCHES.iter().all(|watch| btf.has_function(watch.function)) {
        return None;
    }
    let fields = FIELDS
        .iter()
        .map(|(global, structure, member)| Some((*global, btf.offset(structure, member).ok()?)));
    fields.collect()
}

/// Where the digest of a file with fs-verity is found (`fs/verity/fsverity_private.h`).
fn fsverity_fields(btf: &Btf<'_>) -> Option<[(&'static str, u32); 4]> {
    let offset = |structure, member| btf.offset(structure, member).ok();
    let size =
        offset("fsverity_info", "tree_params")? + offset("merkle_tree_params", "digest_size")?;
    // By its older name in 5.10.
    let digest = offset("fsverity_info", "file_digest")
        .or_else(|| offset("fsverity_info", "measurement"))?;
    Some([
        ("FSVERITY", 1),
        ("INODE_I_VERITY_INFO", offset("inode", "i_verity_info")?),
        ("FSVERITY_INFO_FILE_DIGEST", digest),
        ("FSVERITY_INFO_DIGEST_SIZE", size),
    ])
}
