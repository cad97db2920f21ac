//! Writing below mounted filesystems.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{base_policy, fresh, unmount_soon};
use crate::{
    agent::{Agent, PATIENCE},
    attack::{self, Attack, Attempt},
    events,
};

/// A27: a policy that closes mounted devices keeps them from being written, and no others.
pub fn mounted() -> Result<()> {
    let policy = base_policy(&[])?;
    let text = fs::read_to_string(&policy.file)?;
    fs::write(&policy.file, format!("mounted_devices = \"closed\"\n{text}"))?;
    let folder = fresh("/data/device")?;
    let node = folder.join("another-name");
    let made = Command::new("/bin/mknod").arg(&node).args(["b", "253", "0"]).status()?;
    ensure!(made.success(), "mknod: {made}");
    let number = |path: &Path| -> Result<u64> {
        Ok(std::os::unix::fs::MetadataExt::rdev(&fs::metadata(path)?))
    };
    let disk = Path::new("/dev/vda");
    if number(disk)? != number(&node)? {
        fs::remove_file(&node)?;
        let (major, minor) = (rustix::fs::major(number(disk)?), rustix::fs::minor(number(disk)?));
        Command::new("/bin/mknod")
            .arg(&node)
            .args(["b", &major.to_string(), &minor.to_string()])
            .status()?;
    }

    // Hides none of the others in the kernel's list.
    let odd = folder.join(OsStr::from_bytes(b"not \xff utf-8"));
    fs::create_dir(&odd)?;
    let mounted = Command::new("/bin/mount").args(["-t", "tmpfs", "none"]).arg(&odd).status()?;
    ensure!(mounted.success(), "mount: {mounted}");

    let by_name = || opened(disk);
    let by_other_name = || opened(&node);
    let reason: &[&str] = &["mounted-device"];
    let attack = |name: &str, attempt| Attack { name: name.into(), attempt, reasons: reason };
    attack::run(
        &policy,
        &[
            attack("writing to the disk of a mounted filesystem", &by_name),
            attack("the same through another device file", &by_other_name),
        ],
    )?;

    unmount_soon(&odd)?;

    // Mounted and unmounted while the agent runs.
    let image = folder.join("image");
    File::create(&image)?.set_len(4 << 20)?;
    let run = |command: &str| -> Result<String> {
        let mut words = command.split(' ');
        let output = Command::new(words.next().context("a command")?).args(words).output()?;
        ensure!(output.status.success(), "{command}: {output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    run("/sbin/modprobe -q loop")?;
    let device = run("/bin/losetup -f")?;
    let device = Path::new(&device);
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    run(&format!("/bin/losetup {} {}", device.display(), image.display()))?;
    ensure!(opened(device)? == Attempt::Ran, "a device that carries nothing is closed");
    run(&format!("/bin/mke2fs -q -F {}", device.display()))?;
    fs::create_dir_all("/mnt/loop")?;
    run(&format!("/bin/mount -t ext4 {} /mnt/loop", device.display()))?;
    let mark = events::mark()?;
    eventually(device, Attempt::Refused)?;
    events::wait_for(mark, "the refusal", |event| event["reason"] == "mounted-device")?;
    ensure!(File::open(device).is_ok(), "reading is refused");
    unmount_soon(Path::new("/mnt/loop"))?;
    eventually(device, Attempt::Ran)?;
    run(&format!("/bin/losetup -d {}", device.display()))?;
    agent.stop()
}

/// The agent learns of mounts a moment after they are made.
fn eventually(device: &Path, wanted: Attempt) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while opened(device)? != wanted {
        ensure!(Instant::now() < end, "{} never became {wanted:?}", device.display());
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn opened(device: &Path) -> Result<Attempt> {
    match OpenOptions::new().write(true).open(device) {
        Ok(_) => Ok(Attempt::Ran),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Attempt::Refused),
        Err(error) => Err(error).with_context(|| device.display().to_string()),
    }
}
