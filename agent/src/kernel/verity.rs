//! Which mounted filesystems the kernel verifies against a root hash, as the kernel itself says.

use std::{io, os::fd::OwnedFd, path::PathBuf};

use portcullis_common::{DIGEST_LEN, Digest};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags, fstat, fstatvfs, major, minor, open};

use crate::{
    artifact::digest,
    kernel::{
        dm::{Control, Table},
        filesystems, mountpoints,
    },
};

/// Options of a verity target that leave every block verified at every reading, with the number of
/// their values (Documentation/admin-guide/device-mapper/verity.rst). Any other is refused:
/// `ignore_corruption` hands damaged blocks out, `check_at_most_once` notices no later change.
const OPTIONS: [(&str, usize); 11] = [
    ("restart_on_corruption", 0),
    ("panic_on_corruption", 0),
    ("restart_on_error", 0),
    ("panic_on_error", 0),
    ("ignore_zero_blocks", 0),
    ("try_verify_in_tasklet", 0),
    ("root_hash_sig_key_desc", 1),
    ("use_fec_from_device", 1),
    ("fec_blocks", 1),
    ("fec_start", 1),
    ("fec_roots", 1),
];

/// Filesystems that read from their one device only.
const KINDS: [&str; 3] = ["squashfs", "erofs", "ext4"];

/// A mounted filesystem whose device is verified.
#[derive(Debug)]
pub struct Verified {
    /// Its device, as system calls number it.
    pub device: u64,
    /// Where it is mounted.
    pub path: PathBuf,
    /// What it is verified against.
    pub root: Digest,
    /// Keeps the filesystem mounted, and so the device in being, until everything is done that
    /// relies on it.
    pub held: OwnedFd,
}

/// A mounted filesystem with one of the wanted root hashes that is not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Why.
    pub why: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Filesystems to trust, each device once.
    pub verified: Vec<Verified>,
    /// Filesystems that would be trusted, were it not for something.
    pub refused: Vec<Refused>,
}

/// Looks at everything that is mounted where this process can see it.
///
/// # Errors
/// If the kernel does not tell what is mounted, or the device mapper does not answer.
pub fn mounted(is_wanted: impl Fn(&Digest) -> bool) -> io::Result<Found> {
    let mut found = Found::default();
    let Some(control) = Control::open()? else { return Ok(found) };
    for mount in mountpoints::all()? {
        let (device, path) = (mount.device, mount.place);
        // Without asking the filesystem: it may be served by a process that never answers.
        if major(device) == 0 || found.verified.iter().any(|known| known.device == device) {
            continue;
        }
        let Some(table) = control.table(device)? else { continue };
        let Some(root) = root_hash(&table).filter(|root| is_wanted(root)) else { continue };
        // The path only leads there: what counts is what is found at its end, and is held then.
        let Ok(held) = open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else { continue };
        if fstat(&held)?.st_dev != device {
            continue;
        }
        let table = control.table(device)?.filter(|table| root_hash(table) == Some(root));
        let Some(table) = table else { continue };
        match unverified_part(&table).or_else(|| unsuitable(&held)) {
            None => found.verified.push(Verified { device, path, root, held }),
            Some(why) => found.refused.push(Refused { path, why }),
        }
    }
    Ok(found)
}

/// Whether a device still has the table that it was found with.
///
/// # Errors
/// If the device mapper does not answer.
pub fn still_verified(verified: &Verified) -> io::Result<bool> {
    let Some(control) = Control::open()? else { return Ok(false) };
    Ok(control.table(verified.device)?.is_some_and(|table| {
        root_hash(&table) == Some(verified.root) && unverified_part(&table).is_none()
    }))
}

/// What the table says that its device is verified against.
fn root_hash(table: &Table) -> Option<Digest> {
    if table.target != "verity" {
        return None;
    }
    // version, data device, hash device, two block sizes, blocks, start, algorithm, root, salt
    let mut words = table.parameters.split_whitespace();
    if words.next()? != "1" || words.nth(6)? != "sha256" {
        return None;
    }
    let root = words.next()?;
    if root.len() != 2 * DIGEST_LEN { None } else { digest::parse(root).ok() }
}

/// What about the table keeps blocks from being verified each time, if anything.
fn unverified_part(table: &Table) -> Option<String> {
    if table.suspended {
        return Some("its device is suspended".into());
    }
    if !table.read_only {
        return Some("its device can be written".into());
    }
    let mut words = table.parameters.split_whitespace().skip(10);
    // How many words follow.
    words.next();
    while let Some(option) = words.next() {
        match OPTIONS.iter().find(|(known, _)| *known == option) {
            Some((_, values)) => words.by_ref().take(*values).for_each(drop),
            None => return Some(format!("its device is verified with the option {option}")),
        }
    }
    None
}

/// Why the filesystem is none that could be trusted by its device, if so.
fn unsuitable(held: &OwnedFd) -> Option<String> {
    let kind = filesystems::magic_of_file(held).map(filesystems::name).unwrap_or_default();
    if !KINDS.contains(&kind.as_str()) {
        return Some(format!("{kind} may take content from elsewhere than its device"));
    }
    match fstatvfs(held) {
        Ok(state) if state.f_flag.contains(StatVfsMountFlags::RDONLY) => None,
        Ok(_) => Some("it is mounted for writing".into()),
        Err(error) => Some(error.to_string()),
    }
}

/// The device number in the form of `/sys/dev/block`, for people.
#[must_use]
pub fn shown(device: u64) -> String {
    format!("{}:{}", major(device), minor(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(options: &str) -> Table {
        let root = "ab".repeat(32);
        Table {
            target: "verity".into(),
            parameters: format!("1 7:0 7:1 4096 4096 16 1 sha256 {root} cafe{options}"),
            read_only: true,
            suspended: false,
        }
    }

    #[test]
    fn the_root_hash_is_taken_from_a_verity_table_only() {
        assert_eq!(root_hash(&table("")), Some([0xab; 32]));
        let linear = Table { target: "linear".into(), ..table("") };
        assert_eq!(root_hash(&linear), None);
        for (from, to) in [("sha256 ab", "sha512 ab"), ("1 7:0", "0 7:0"), (" abab", " ab")] {
            let mut other = table("");
            other.parameters = other.parameters.replacen(from, to, 1);
            assert_eq!(root_hash(&other), None, "{}", other.parameters);
        }
    }

    #[test]
    fn only_tables_that_verify_every_reading_are_taken() {
        for good in [
            "",
            " 1 restart_on_corruption",
            " 9 use_fec_from_device 7:2 fec_blocks 9 fec_start 9 fec_roots 2 ignore_zero_blocks",
            " 2 root_hash_sig_key_desc check_at_most_once",
        ] {
            assert_eq!(unverified_part(&table(good)), None, "{good}");
        }
        for bad in [" 1 ignore_corruption", " 2 ignore_zero_blocks check_at_most_once", " 1 new"] {
            assert!(unverified_part(&table(bad)).is_some(), "{bad}");
        }
        assert!(unverified_part(&Table { read_only: false, ..table("") }).is_some());
        assert!(unverified_part(&Table { suspended: true, ..table("") }).is_some());
    }
}
