//! Files that the kernel verifies as it reads them, listed by their fs-verity digests.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

use super::{base_policy, fresh, sha256, unmount_soon, verified::loop_device};
use crate::{
    agent::{Agent, expect, text},
    attack::{Attempt, EVIL, GOOD, exec_path, good, install, is_old_kernel},
    events,
};

/// Allowed by the digest that the kernel verifies against, and by nothing that looks like it.
pub fn by_digest() -> Result<()> {
    for module in ["loop", "ext4"] {
        Command::new("/sbin/modprobe").args(["-q", module]).status()?;
    }
    let lab = fresh("/tmp/fsverity")?;
    let image = lab.join("image");
    fs::copy("/files/fsverity", &image)?;
    let device = loop_device(&image)?;
    let at = fresh("/mnt/fsverity")?;
    mount(&device, at, "ext4", MountFlags::empty(), None).context("mounting ext4")?;
    let (program, other, plain) = (at.join("program"), at.join("other"), at.join("plain"));
    install(&program, &good("fs-verity")?)?;
    install(&other, &good("another")?)?;
    install(&plain, &good("fs-verity")?)?;
    enable(&program)?;
    enable(&other)?;
    let digest = measure(&program)?;
    ensure!(OpenOptions::new().write(true).open(&program).is_err(), "it can be written");

    let list =
        |key: &str| format!("\n[[allow]]\n{key} = \"sha256:{digest}\"\nkinds = [\"executable\"]\n");
    let policy = base_policy(&[])?;
    policy.append(&list("fsverity"))?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let mark = events::mark()?;
    runs(&program)?;
    let event = events::wait_for(mark, "a file listed by its fs-verity digest", |event| {
        events::is_decision(event, "allow", &program)
    })?;
    // The agent of Linux 5.10 hashes whatever is run.
    let is_hashed = !event["artifact"]["digest"].is_null();
    ensure!(event["reason"] == "listed" && is_hashed == is_old_kernel(), "{event}");
    ensure!(event["rule"]["line"].is_number(), "{event}");
    runs(&program)?;
    expect(0, &["explain", text(&program)?])?;
    // The same content, of which nobody sees to it that it stays; and another verified file.
    for unlisted in [&plain, &other] {
        ensure!(exec_path(unlisted)? == Attempt::Refused, "{} ran", unlisted.display());
    }
    // A changed block on the disk: the kernel gives an error, and never the changed block.
    rustix::fs::sync();
    let mut content = fs::read(&image)?;
    let good_bytes = good("fs-verity")?;
    let exits = good_bytes.iter().position(|byte| *byte == GOOD).context("no exit code")?;
    for start in content
        .windows(good_bytes.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == good_bytes)
        .map(|(at, _)| at)
        .collect::<Vec<_>>()
    {
        content[start + exits] = EVIL;
    }
    fs::write(&image, &content)?;
    fs::write("/proc/sys/vm/drop_caches", "1")?;
    match Command::new(&program).status() {
        Err(error) => println!("  a changed block: {error}"),
        Ok(status) => ensure!(status.code().is_none(), "a changed block was run: {status}"),
    }
    agent.stop()?;
    unmount_soon(at)?;
    let _ = Command::new("/bin/losetup").args(["-d", &device]).status();

    // The number of the one kind is none of the other, and what is denied stays denied.
    fs::copy("/files/fsverity", &image)?;
    let device = loop_device(&image)?;
    mount(&device, at, "ext4", MountFlags::empty(), None).context("mounting ext4")?;
    install(&program, &good("fs-verity")?)?;
    enable(&program)?;
    let denied = format!("\n[[deny]]\ndigest = \"{}\"\n", sha256(&program)?);
    for (lines, reason) in [(list("digest"), "unlisted"), (list("fsverity") + &denied, "denied")] {
        let policy = base_policy(&[])?;
        policy.append(&lines)?;
        let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
        let mark = events::mark()?;
        ensure!(exec_path(&program)? == Attempt::Refused, "{reason}: it ran");
        events::wait_for(mark, reason, |event| {
            events::is_decision(event, "deny", &program) && event["reason"] == reason
        })?;
        agent.stop()?;
    }
    unmount_soon(at)?;
    let _ = Command::new("/bin/losetup").args(["-d", &device]).status();
    Ok(())
}

fn runs(program: &Path) -> Result<()> {
    let status = Command::new(program).status().context("the listed program")?;
    ensure!(status.code() == Some(i32::from(GOOD)), "the listed program ended with {status}");
    Ok(())
}

/// Does something with a filesystem that can have such files.
pub fn with_filesystem(does: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    for module in ["loop", "ext4"] {
        Command::new("/sbin/modprobe").args(["-q", module]).status()?;
    }
    let image = fresh("/tmp/fsverity")?.join("image");
    fs::copy("/files/fsverity", &image)?;
    let device = loop_device(&image)?;
    let at = fresh("/mnt/fsverity")?;
    mount(&device, at, "ext4", MountFlags::empty(), None).context("mounting ext4")?;
    does(at)?;
    unmount_soon(at)?;
    let _ = Command::new("/bin/losetup").args(["-d", &device]).status();
    Ok(())
}

/// Has the kernel verify a file from now on (`FS_IOC_ENABLE_VERITY`, linux/fsverity.h).
pub fn enable(path: &Path) -> Result<()> {
    const ENABLE: libc::Ioctl = 1 << 30 | 128 << 16 | (b'f' as libc::Ioctl) << 8 | 133;
    // version, SHA-256, block size; no salt, no signature.
    let mut argument = [0u32; 32];
    argument[..3].copy_from_slice(&[1, 1, 4096]);
    let file = File::open(path)?;
    // SAFETY: the kernel reads the 128 bytes that are there.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), ENABLE, argument.as_ptr()) };
    ensure!(done == 0, "enabling fs-verity: {}", io::Error::last_os_error());
    Ok(())
}

/// The digest that the kernel verifies a file against, in hexadecimal.
fn measure(path: &Path) -> Result<String> {
    const MEASURE: libc::Ioctl = 3 << 30 | 4 << 16 | (b'f' as libc::Ioctl) << 8 | 134;
    let mut answer = [0u8; 36];
    answer[2] = 32;
    let file = File::open(path)?;
    // SAFETY: the kernel writes at most the 32 bytes that follow the header.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), MEASURE, answer.as_mut_ptr()) };
    ensure!(done == 0, "measuring: {}", io::Error::last_os_error());
    Ok(answer[4..].iter().map(|byte| format!("{byte:02x}")).collect())
}
