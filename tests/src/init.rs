//! The first process of a virtual machine: mounts what is needed, runs the command, reports its
//! exit code and powers off.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    mount::{MountFlags, mount},
    process::{WaitOptions, wait},
    system::{RebootCommand, reboot},
};

/// Where the host has put the command.
const COMMAND: &str = "/portcullis/command";

/// Never returns: the machine is powered off at the end.
pub fn first_process() -> ! {
    let code = match boot() {
        Ok(status) => status,
        Err(error) => {
            println!("the guest could not run the command: {error:#}");
            255
        }
    };
    finish(code)
}

fn finish(code: u8) -> ! {
    println!("\n@@{} exit {code}", nonce());
    let _ = io::stdout().flush();
    // The serial line must have sent it all.
    std::thread::sleep(Duration::from_millis(50));
    rustix::fs::sync();
    loop {
        let _ = reboot(RebootCommand::PowerOff);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn boot() -> Result<u8> {
    mounts()?;
    println!("@@{} start", nonce());
    // The scratch disk; a kernel that has these built in needs no module.
    for module in ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"] {
        let _ = Command::new("/sbin/modprobe").args(["-q", module]).status();
    }
    if Path::new("/dev/vda").exists() {
        fs::create_dir_all("/data")?;
        mount("/dev/vda", "/data", "ext4", MountFlags::empty(), None).context("mounting /dev/vda on /data")?;
    }
    let status = run_command()?;
    Ok(status)
}

fn mounts() -> Result<()> {
    let wanted = [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("securityfs", "/sys/kernel/security", "securityfs"),
        ("bpf", "/sys/fs/bpf", "bpf"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
        ("tmpfs", "/run", "tmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
    ];
    for (source, target, kind) in wanted {
        mount(source, target, kind, MountFlags::empty(), None).with_context(|| format!("mounting {target}"))?;
    }
    fs::create_dir_all("/dev/shm")?;
    mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::empty(), None).context("mounting /dev/shm")?;
    Ok(())
}

fn nonce() -> String {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let found = words.split_whitespace().find_map(|word| word.strip_prefix("portcullis.nonce="));
    found.unwrap_or("?").to_owned()
}

fn run_command() -> Result<u8> {
    let bytes = fs::read(COMMAND).context(COMMAND)?;
    let mut words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(OsStr::from_bytes);
    let program = words.next().context("no command was given")?;
    let mut command = Command::new(program);
    command.args(words).env_clear();
    command.envs([("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"), ("HOME", "/root"), ("TERM", "dumb")]);
    // A group of its own, as a shell would give it.
    command.process_group(0).stdin(std::process::Stdio::null()).current_dir("/root");
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let child = i32::try_from(child.id())?;
    // The first process also inherits everybody's orphans.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == child => {
                return Ok(exit_code(ExitStatus::from_raw(status.as_raw() as i32)));
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}

/// As a shell would report it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}
