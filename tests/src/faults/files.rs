//! What a fault of the disk, or somebody with a screwdriver, makes of what the agent keeps.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Advice, fadvise, fstatfs};

use super::{
    device::{Baseline, Device, LAB, MARKS, STATE, copy},
    invariants,
    random::Random,
};
use crate::{agent::LOG, raw};

/// What happens to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It loses its end.
    Cut,
    /// Some bytes of it become others.
    Garbled,
    /// It has no bytes any more.
    Emptied,
    /// It is gone.
    Removed,
}

impl Damage {
    pub const ALL: [Self; 4] = [Self::Cut, Self::Garbled, Self::Emptied, Self::Removed];
}

/// Damages a file while no gates stand, as between two boots, and starts the agent.
pub fn between_boots(device: &mut Device, damage: Damage, random: &mut Random) -> Result<()> {
    let version = device.version;
    device.stop()?;
    let backups = [(STATE, format!("{LAB}/state")), (MARKS, format!("{LAB}/marks"))];
    for (folder, backup) in &backups {
        copy(folder, backup)?;
    }
    let file = some_file(random)?;
    let content = fs::read(&file)?;
    let is_missed = !(damage == Damage::Removed && is_newest_of_records(&file)?);
    match damage {
        Damage::Cut => {
            let length = random.below(content.len() as u64);
            OpenOptions::new().write(true).open(&file)?.set_len(length)?;
            println!(
                "  {} has lost its end after {length} of {} bytes",
                file.display(),
                content.len()
            );
        }
        Damage::Garbled => {
            fs::write(&file, garbled(&content, random))?;
            println!("  {} is garbled", file.display());
        }
        Damage::Emptied => {
            fs::write(&file, "")?;
            println!("  {} is empty", file.display());
        }
        Damage::Removed => {
            fs::remove_file(&file)?;
            println!("  {} is gone", file.display());
        }
    }
    device.start()?;
    is_well_or_told(device, version, (&file, &content), is_missed)?;
    device.stop()?;
    for (folder, backup) in &backups {
        copy(backup, folder)?;
    }
    (device.version, device.after_restart) = (version, version);
    device.start()?;
    invariants::all(device, &[version])?;
    Ok(())
}

/// Damages a file below the filesystem, while the gates of a killed agent stand, and starts the agent.
pub fn below_the_gates(device: &mut Device, zeros: bool, random: &mut Random) -> Result<()> {
    let version = device.version;
    device.kill()?;
    rustix::fs::sync();
    // Marks are in memory, on no disk.
    let file = loop {
        let file = some_file(random)?;
        if file.starts_with(STATE) && fs::metadata(&file)?.len() > 0 {
            break file;
        }
    };
    let content = fs::read(&file)?;
    let opened = File::open(&file)?;
    let place = raw::place_on_disk(&opened)?;
    // What follows the first block may be another file's.
    let block = usize::try_from(fstatfs(&opened)?.f_bsize)?;
    let length = content.len().min(block);
    let new = if zeros { vec![0; length] } else { garbled(&content[..length], random) };
    let disk = OpenOptions::new().read(true).write(true).open("/dev/vda")?;
    let write = |bytes: &[u8]| -> Result<()> {
        // The kernel keeps a page that somebody is just using, such as its own writing back, which may also
        // write over this.
        for _ in 0..50 {
            disk.write_all_at(bytes, place)?;
            disk.sync_all()?;
            fadvise(&opened, 0, None, Advice::DontNeed)?;
            if fs::read(&file)?[..length] == *bytes {
                return Ok(());
            }
            rustix::fs::sync();
            sleep(Duration::from_millis(100));
        }
        bail!("{} is as it was", file.display())
    };
    write(&new)?;
    println!(
        "  the first {length} bytes of {} are {}",
        file.display(),
        if zeros { "zeros" } else { "garbled" }
    );
    match device.start() {
        Ok(()) => {
            is_well_or_told(device, version, (&file, &content), true)?;
            let is_repaired = fs::read(&file).is_ok_and(|now| now.starts_with(&content));
            if !is_repaired {
                device.stop()?;
                if is_of_records(&file) {
                    // The chain has gone on from where it was damaged.
                    fs::remove_dir_all(Path::new(STATE).join("spool"))?;
                } else {
                    fs::write(&file, &content)?;
                }
                device.after_restart = version;
                device.start()?;
            }
            device.version = version_now(device)?;
        }
        Err(error) => {
            device.agent = None;
            invariants::gates_hold(&[version])?;
            invariants::nobody_answers()?;
            let said = fs::read_to_string(LOG)?;
            let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
            // A state that is JSON all the same names a bundle that is not there.
            let is_named =
                said.contains(name) || (name == "state.json" && said.contains(".bundle"));
            ensure!(is_named, "it does not start, and does not name {name}: {error:#}");
            println!("  it does not start: {}", said.trim());
            ensure!(raw::place_on_disk(&opened)? == place, "{} was moved", file.display());
            write(&content[..length])?;
            device.start()?;
        }
    }
    if device.baseline == Baseline::Signed {
        let next = device.next();
        crate::agent::expect(0, &["policy", "push", &device.bundle(next)?])?;
        device.version = next;
    }
    device.after_restart = device.version;
    invariants::all(device, &[device.version])?;
    Ok(())
}

fn version_now(device: &Device) -> Result<u64> {
    let status = device.status()?;
    status["policy"]["version"].as_u64().context("no version")
}

/// The damage has changed nothing, or people are told of it, if it `is_missed` on the device.
fn is_well_or_told(
    device: &Device,
    version: u64,
    (file, before): (&Path, &[u8]),
    is_missed: bool,
) -> Result<()> {
    let status = device.status()?;
    let found = status["policy"]["version"].as_u64().context("no version")?;
    let bad = device.bad_checks()?;
    let is_told = |name: &str| {
        let checks = status["checks"].as_array().into_iter().flatten();
        checks.filter_map(|check| check["found"].as_str()).any(|found| found.contains(name))
    };
    println!("  v{found} is in force; told: {bad:?}");
    // Marks know of a newer policy, or bundles are damaged: one older is in force, and status is red.
    if found != version {
        ensure!(found < version, "v{found} is in force instead of v{version}");
        ensure!(
            status["health"] == "failed",
            "v{found} is in force instead of v{version}, and health is {}",
            status["health"]
        );
    }
    invariants::gates_hold(&[found])?;
    let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
    // The end of a record that was not written whole is cut off, and the file in which that was is not named.
    let is_told =
        |name: &str| is_told(name) || (is_of_records(file) && is_told("were cut off its end"));
    let is_repaired = fs::read(file).is_ok_and(|now| now.starts_with(before) || before == now)
        || is_second_copy(file);
    let is_told = found != version || !bad.is_empty() || is_told(name);
    if is_repaired || is_told || !is_missed || is_of_no_concern(file) {
        return Ok(());
    }
    bail!("nobody is told that {} was damaged: {}", file.display(), status["checks"])
}

/// Whether it is a part of a bundle, beside that.
fn is_unpacked(file: &Path) -> bool {
    let inside = file.strip_prefix(Path::new(STATE).join("bundles"));
    inside.is_ok_and(|inside| inside.components().count() > 1)
}

fn is_of_records(file: &Path) -> bool {
    file.starts_with(Path::new(STATE).join("spool"))
}

/// Whether no later file of records of its chain is there. It is missed by nobody on the device when it is gone
/// (L76 in docs/limits.md), and begun anew by the same name if there was no other.
fn is_newest_of_records(file: &Path) -> Result<bool> {
    let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
    let Some((chain, _)) = name.split_once('-').filter(|_| is_of_records(file)) else {
        return Ok(false);
    };
    let is_later = |other: &PathBuf| {
        let other = other.file_name().and_then(|other| other.to_str()).unwrap_or_default();
        other > name && other.starts_with(chain)
    };
    Ok(!invariants::files()?.iter().filter(|other| is_of_records(other)).any(is_later))
}

/// Whether it is a second copy, and one of what the first is now.
fn is_second_copy(file: &Path) -> bool {
    let is_copy = file.extension().is_some_and(|extension| extension == "copy");
    let first = || fs::read(file.with_extension("")).ok();
    is_copy && fs::read(file).ok().is_some_and(|copy| first() == Some(copy))
}

/// What is made anew from what is known, says something to people only, or is missed by nobody on the device
/// (L78 in docs/limits.md).
fn is_of_no_concern(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let is_history = name == "history.jsonl" && !file.exists();
    // A bundle that is not in force is asked for when somebody goes back to it.
    is_unpacked(file)
        || is_history
        || name == "enforced.json"
        || name.ends_with(".bundle")
        || name.ends_with(".damaged")
}

fn some_file(random: &mut Random) -> Result<PathBuf> {
    let files = invariants::files()?;
    ensure!(!files.is_empty(), "the agent keeps nothing");
    let mut draw = || -> Result<PathBuf> {
        let index = random.below(files.len() as u64);
        Ok(files[usize::try_from(index)?].clone())
    };
    let mut file = draw()?;
    // Most of them are parts of bundles, and all the same in this.
    for _ in 0..3 {
        if !is_unpacked(&file) {
            break;
        }
        file = draw()?;
    }
    Ok(file)
}

fn garbled(content: &[u8], random: &mut Random) -> Vec<u8> {
    let mut content = content.to_vec();
    let at = usize::try_from(random.below(content.len() as u64)).unwrap_or_default();
    for byte in content.iter_mut().skip(at).take(16) {
        *byte ^= 0x55;
    }
    content
}
