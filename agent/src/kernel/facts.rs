//! What the running kernel offers, found out before anything is loaded.

use std::{fs, io, path::Path};

use rustix::{
    io::Errno,
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
    system::uname,
};

use crate::kernel::{
    check::{Check, State},
    fanotify::Group,
    layout::{Hashing, Layout, LayoutError},
};

/// The oldest kernel whose hooks can sleep and hash (measured, not assumed: on 5.10
/// `bprm_check_security` is not sleepable and `bpf_ima_file_hash` does not exist).
const OLDEST: (u32, u32) = (6, 1);

/// The oldest kernel on which the agent hashes for the gates: it has inodes that can carry a
/// verdict.
const OLDEST_APPRAISED: (u32, u32) = (5, 10);

/// Every check that can be made without loading anything. The order is that in which a reader
/// should mend.
#[must_use]
pub fn checks(layout: &Result<Layout, LayoutError>) -> Vec<Check> {
    vec![
        privileges(),
        kernel(layout),
        bpf_lsm(),
        btf(layout),
        ima(layout),
        ftrace(),
        busy(layout),
        jit(),
        lockdown(layout),
        text_busy(),
    ]
}

/// `CAP_SYS_ADMIN`, `CAP_PERFMON` and `CAP_BPF` (linux/capability.h).
const CAPABILITIES: u64 = 1 << 21 | 1 << 38 | 1 << 39;

/// Whether this process may load the programs.
#[must_use]
pub fn is_privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    effective
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & CAPABILITIES == CAPABILITIES)
}

fn privileges() -> Check {
    let (id, title) = ("privileges", "may load kernel programs");
    if is_privileged() {
        Check::ok(id, title, "CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN")
    } else {
        Check::failed(
            id,
            title,
            "not root, or without the capabilities",
            "run it as root, outside of a container",
        )
    }
}

fn kernel(layout: &Result<Layout, LayoutError>) -> Check {
    let (id, title) = ("kernel", "kernel version");
    let uname = uname();
    let release = uname.release().to_string_lossy().into_owned();
    // The release of a Debian kernel names its interface; the source's version stands in here.
    let found = format!(
        "{release} {} ({})",
        uname.machine().to_string_lossy(),
        uname.version().to_string_lossy()
    );
    let oldest = match layout {
        Ok(layout) if layout.hashing == Hashing::Agent => OLDEST_APPRAISED,
        _ => OLDEST,
    };
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= oldest => {
            Check::ok(id, title, found)
        }
        (Some(Ok(_)), Some(Ok(_))) => Check::failed(id, title, found, "use a kernel from 6.1"),
        _ => Check::bad(State::Unknown, id, title, found, "none; the checks below decide"),
    }
}

fn bpf_lsm() -> Check {
    let (id, title) = ("bpf-lsm", "BPF among the security modules");
    match securityfs("lsm") {
        Ok(list) if list.trim().split(',').any(|name| name == "bpf") => {
            Check::ok(id, title, list.trim())
        }
        Ok(list) => Check::failed(
            id,
            title,
            format!("only {}; programs would load and never be called", list.trim()),
            format!("add to the kernel's command line: lsm={},bpf", list.trim()),
        ),
        Err(error) => Check::failed(
            id,
            title,
            format!("/sys/kernel/security/lsm: {error}"),
            "mount -t securityfs securityfs /sys/kernel/security, or use a kernel with CONFIG_BPF_LSM=y",
        ),
    }
}

/// A file in securityfs, mounted or not.
fn securityfs(name: &str) -> io::Result<String> {
    match fs::read_to_string(Path::new("/sys/kernel/security").join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    // Read through a mount that nobody else sees and that ends with its descriptor.
    let context = fsopen("securityfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let file = rustix::fs::openat(
        &root,
        name,
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    io::read_to_string(fs::File::from(file))
}

fn btf(layout: &Result<Layout, LayoutError>) -> Check {
    let (id, title) = ("btf", "kernel type information");
    match layout {
        Ok(layout) => {
            Check::ok(id, title, format!("all {} fields found", layout.globals().count()))
        }
        Err(error @ LayoutError::Read(_)) => {
            Check::failed(id, title, error.to_string(), "use a kernel with CONFIG_DEBUG_INFO_BTF=y")
        }
        Err(error @ LayoutError::Btf(_)) => Check::failed(
            id,
            title,
            error.to_string(),
            "this kernel is not known yet: report it with its version and configuration",
        ),
    }
}

fn ima(layout: &Result<Layout, LayoutError>) -> Check {
    let (id, title) = ("ima", "kernel can hash files");
    let Ok(layout) = layout else {
        return Check::bad(State::Unknown, id, title, "needs the type information", "see above");
    };
    if layout.hashing == Hashing::Agent {
        return match Group::new() {
            Ok(_) => Check::bad(
                State::Warning,
                id,
                title,
                "it cannot; the agent hashes before files are used, and what it has not seen is \
                 refused when it does not run",
                "use a kernel from 6.1 with CONFIG_IMA=y",
            ),
            Err(error) => Check::failed(
                id,
                title,
                format!(
                    "it cannot, and the agent cannot hash before files are used: fanotify: {error}"
                ),
                "use a kernel from 6.1 with CONFIG_IMA=y, or one with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y",
            ),
        };
    }
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    match command_line.split_whitespace().find(|word| word.starts_with("ima_hash=")) {
        Some(option) if option != "ima_hash=sha256" => Check::failed(
            id,
            title,
            format!("IMA, but with {option}"),
            format!("remove {option} from the kernel's command line"),
        ),
        _ => Check::ok(id, title, "IMA; the algorithm is proved by the self-test"),
    }
}

/// Whether the switch stands that silently turns every BPF security program off.
#[must_use]
pub fn ftrace() -> Check {
    let (id, title) = ("ftrace", "programs are called at all");
    match fs::read_to_string("/proc/sys/kernel/ftrace_enabled") {
        Ok(value) if value.trim() == "1" => Check::ok(id, title, "kernel.ftrace_enabled is 1"),
        Ok(value) => Check::failed(
            id,
            title,
            format!("kernel.ftrace_enabled is {}: no gate is called", value.trim()),
            "sysctl kernel.ftrace_enabled=1, and find out who changed it",
        ),
        Err(error) => Check::failed(
            id,
            title,
            format!("kernel.ftrace_enabled: {error}"),
            "use a kernel with CONFIG_DYNAMIC_FTRACE=y",
        ),
    }
}

/// Whether somebody could pass a gate while it hashes a file for somebody else.
fn busy(layout: &Result<Layout, LayoutError>) -> Check {
    let (id, title) = ("busy", "programs are called while they work for others");
    match layout {
        Ok(layout) if layout.runs_when_busy => Check::ok(id, title, "they are not skipped"),
        Ok(_) => Check::failed(
            id,
            title,
            "they are skipped, so that a gate that hashes a file lets others pass on its processor",
            "update the kernel: mended in Linux 6.2, and in later releases of 6.1",
        ),
        Err(_) => Check::bad(State::Unknown, id, title, "needs the type information", "see above"),
    }
}

fn jit() -> Check {
    let (id, title) = ("jit", "BPF just-in-time compiler");
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value.trim() == "0" => Check::failed(
            id,
            title,
            "net.core.bpf_jit_enable is 0",
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Ok(value) => Check::ok(id, title, format!("net.core.bpf_jit_enable is {}", value.trim())),
        // Kernels in which the compiler is always on may not offer the switch.
        Err(_) => Check::ok(id, title, "always on"),
    }
}

/// The level of lockdown in force.
fn lockdown_level() -> String {
    let found = securityfs("lockdown").unwrap_or_else(|_| "not in this kernel".into());
    found.split(['[', ']']).nth(1).unwrap_or(found.trim()).to_owned()
}

/// Whether the kernel lets programs read memory of which they know no types.
#[must_use]
pub fn may_read_kernel() -> bool {
    lockdown_level() != "confidentiality"
}

fn lockdown(layout: &Result<Layout, LayoutError>) -> Check {
    let (id, title) = ("lockdown", "kernel lockdown");
    let level = lockdown_level();
    if may_read_kernel() {
        return Check::ok(id, title, level);
    }
    if layout.as_ref().is_ok_and(|layout| layout.copies_tasks) {
        let found = format!("{level}: the programs cannot be loaded on this kernel");
        return Check::failed(id, title, found, "use lockdown=integrity, or Linux 6.1 or later");
    }
    // All else uses typed loads, which every level permits.
    Check::bad(
        State::Warning,
        id,
        title,
        format!("{level}: files on overlay filesystems cannot be identified, and are refused"),
        "run nothing from overlay filesystems, or use lockdown=integrity",
    )
}

/// Whether the program that a process runs can be opened for writing. It could on kernels 6.11 to
/// early 6.12, where exec did not deny writing; tried on our own program, without writing.
fn text_busy() -> Check {
    let (id, title) = ("text-busy", "running programs cannot be written");
    match fs::OpenOptions::new().write(true).open("/proc/self/exe") {
        Err(error) if error.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) => {
            Check::ok(id, title, "opening one for writing fails")
        }
        Ok(_) => Check::bad(
            State::Warning,
            id,
            title,
            "they can, as in Linux 6.11 to 6.12.1: whoever may write a running program may change it",
            "update the kernel",
        ),
        Err(error) => Check::bad(
            State::Unknown,
            id,
            title,
            format!("could not be tried on {}: {error}", "/proc/self/exe"),
            "none; run doctor as root from a writable filesystem to know",
        ),
    }
}
