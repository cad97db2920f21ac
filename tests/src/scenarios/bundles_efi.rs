//! A variable of the firmware as a high-water mark. By hand: it needs a machine with UEFI.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{IFlags, ioctl_getflags, ioctl_setflags},
    mount::{MountFlags, mount},
};

use super::{
    bundles::{KEPT, Operator, name_device, no, wait_for},
    bundles_at_start::{BACKUP, copy},
    modprobe,
};
use crate::{agent::expect, events};

const VARIABLES: &str = "/sys/firmware/efi/efivars";

/// The newest bundle survives a backup of the state, and nobody but the agent changes the variable.
pub fn efi_mark() -> Result<()> {
    modprobe("efivarfs")?;
    mount("efivarfs", VARIABLES, "efivarfs", MountFlags::empty(), None)
        .context("mounting efivarfs: has this machine UEFI?")?;
    let operator = Operator::new()?;
    name_device("high_water = [\"efi\"]\n")?;
    let agent = operator.start()?;
    let (second, third) = (operator.bundle(2, true, &[])?, operator.bundle(3, false, &[])?);
    expect(0, &["policy", "push", &second])?;
    copy(KEPT, BACKUP)?;
    let mark = variable()?;
    says(&mark, 2)?;
    expect(0, &["policy", "push", &third])?;
    says(&mark, 3)?;

    // The flag keeps from accidents only.
    let attack = |name: &str, attempt: &dyn Fn() -> io::Result<()>| -> Result<()> {
        let file = fs::File::open(&mark)?;
        let mut flags = ioctl_getflags(&file)?;
        flags.remove(IFlags::IMMUTABLE);
        ioctl_setflags(&file, flags)?;
        let since = events::mark()?;
        let refused = attempt().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
        ensure!(refused, "the variable was {name}");
        events::wait_for(since, name, |event| event["reason"] == "agent-state")?;
        says(&mark, 3)
    };
    let lower = fs::read(&mark)?;
    attack("written", &|| {
        OpenOptions::new().write(true).open(&mark).and_then(|mut file| file.write_all(&lower))
    })?;
    attack("removed", &|| fs::remove_file(&mark))?;
    operator.stop(agent)?;

    fs::remove_dir_all(KEPT)?;
    copy(BACKUP, KEPT)?;
    let since = events::mark()?;
    let agent = operator.start()?;
    let told = wait_for(since, "set-back")?;
    ensure!(told["bundle"]["version"] == 3, "{told}");
    operator.holds(2, true, "the state is that of a backup")?;
    no(&["policy", "push", &second], "is older than policy v3")?;
    expect(0, &["policy", "push", &third])?;
    expect(0, &["policy", "push", &operator.bundle(4, false, &[])?])?;
    says(&mark, 4)?;
    operator.stop(agent)
}

fn variable() -> Result<PathBuf> {
    let mut names = fs::read_dir(VARIABLES)?.flatten().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| path.to_string_lossy().contains("/PortcullisNewest-");
    names.find(is_ours).context("no variable was made")
}

fn says(mark: &Path, version: u64) -> Result<()> {
    let bytes = fs::read(mark)?;
    let (head, content) = bytes.split_at_checked(4).context("a short variable")?;
    let found: serde_json::Value = serde_json::from_slice(content)?;
    println!("  {} bytes: {found}", bytes.len());
    ensure!(head == [7, 0, 0, 0] && found["version"] == version, "{found}");
    Ok(())
}
