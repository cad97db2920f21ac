//! Finds every artifact below some folders.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use ignore::{DirEntry, WalkBuilder, WalkState};
use indicatif::ProgressBar;
use portcullis_common::{Digest, Kinds};
use thiserror::Error;

use crate::{
    artifact::{self, MAX_HASHED_BYTES, digest},
    kernel::mountpoints,
    policy::manifest::Found,
    sync::lock,
};

/// Why a scan cannot begin.
#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct ScanError {
    path: PathBuf,
    source: io::Error,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Every artifact, once for each of its names.
    pub artifacts: Vec<Found>,
    /// Files that were looked at.
    pub files: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// What could not be judged, and why.
    pub skipped: Vec<(PathBuf, String)>,
    /// Other filesystems below the named folders, which were not entered.
    pub not_entered: Vec<PathBuf>,
}

/// Looks at every regular file below `roots`, each on its own filesystem only, and takes each for
/// what its content shows and for `listed_as` besides. `progress` counts files.
///
/// Firmware has no form of its own, so whatever lies where kernels look for it is taken for it.
///
/// # Errors
/// If one of the roots does not exist.
pub fn scan(
    roots: &[PathBuf],
    listed_as: Kinds,
    progress: &ProgressBar,
) -> Result<Report, ScanError> {
    let mut canonical = Vec::new();
    for root in roots {
        let error = |source| ScanError { path: root.clone(), source };
        canonical.push(std::fs::canonicalize(root).map_err(error)?);
    }
    canonical.sort();
    // A folder within another would be found twice; one on another filesystem would not.
    canonical.dedup();

    let scan = Scan { listed_as, ..Scan::default() };
    if let Some((first, rest)) = canonical.split_first() {
        let mut walk = WalkBuilder::new(first);
        rest.iter().for_each(|root| {
            walk.add(root);
        });
        walk.standard_filters(false)
            .follow_links(false)
            .same_file_system(true)
            .threads(thread::available_parallelism().map_or(1, usize::from));
        walk.build_parallel().run(|| {
            Box::new(|entry| {
                scan.entry(entry, progress);
                WalkState::Continue
            })
        });
    }
    let mut report = scan.report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.files = scan.files.into_inner();
    report.bytes = scan.bytes.into_inner();
    report.artifacts.sort();
    report.artifacts.dedup();
    report.skipped.sort();
    report.not_entered = other_filesystems(&canonical);
    Ok(report)
}

/// Opens a file to look at it. A FIFO does not hang us.
///
/// # Errors
/// If it cannot be opened.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// What an open file is, if it is an artifact. `path` is only asked whether it is where firmware lies.
///
/// # Errors
/// If it is no file, or cannot be read, for people.
pub fn look(file: &File, path: &Path) -> Result<Option<(Kinds, Digest)>, String> {
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("is not a file".into());
    }
    let more = if is_firmware(path) { Kinds::FIRMWARE } else { Kinds::NONE };
    Scan::default().identify(file, more)
}

type Identity = Option<(Kinds, Digest)>;
type Once = Arc<OnceLock<Result<Identity, String>>>;

#[derive(Default)]
struct Scan {
    /// What every file is taken for, besides what its content shows.
    listed_as: Kinds,
    report: Mutex<Report>,
    files: AtomicU64,
    bytes: AtomicU64,
    /// What files with several names are, so that each is read once.
    linked: Mutex<HashMap<(u64, u64, Kinds), Once>>,
}

impl Scan {
    fn entry(&self, entry: Result<DirEntry, ignore::Error>, progress: &ProgressBar) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                let path = path_of(&error).unwrap_or_default();
                let why = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                return self.skip(path, why);
            }
        };
        // Sockets, FIFOs and devices are not opened: that could wait or act.
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            return;
        }
        self.files.fetch_add(1, Ordering::Relaxed);
        progress.inc(1);
        match self.file(entry.path()) {
            Ok(Some((kinds, digest))) => {
                let found = Found { kinds, path: entry.into_path(), digest };
                lock(&self.report).artifacts.push(found);
            }
            Ok(None) => {}
            Err(why) => self.skip(entry.into_path(), why),
        }
    }

    fn file(&self, path: &Path) -> Result<Identity, String> {
        let file = OpenOptions::new()
            .read(true)
            // The name may have become something else since it was listed.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| error.to_string())?;
        let metadata = file.metadata().map_err(|error| error.to_string())?;
        if !metadata.is_file() {
            return Ok(None);
        }
        let mut more = self.listed_as;
        if is_firmware(path) {
            more = more.union(Kinds::FIRMWARE);
        }
        if metadata.nlink() == 1 {
            return self.identify(&file, more);
        }
        let mut linked = lock(&self.linked);
        let once = Arc::clone(linked.entry((metadata.dev(), metadata.ino(), more)).or_default());
        drop(linked);
        once.get_or_init(|| self.identify(&file, more)).clone()
    }

    fn identify(&self, file: &File, more: Kinds) -> Result<Identity, String> {
        let error = |error: io::Error| error.to_string();
        let kinds = artifact::identify(file).map_err(error)?.unwrap_or(Kinds::NONE).union(more);
        if kinds.is_empty() {
            return Ok(None);
        }
        let size = file.metadata().map_err(error)?.len();
        let too_large =
            || format!("larger than the {} MiB that the gates hash", MAX_HASHED_BYTES >> 20);
        if size > MAX_HASHED_BYTES {
            return Err(too_large());
        }
        let hashed = digest::of_file(file, MAX_HASHED_BYTES);
        let (digest, length) = hashed.map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => too_large(),
            _ => error.to_string(),
        })?;
        self.bytes.fetch_add(length, Ordering::Relaxed);
        if length != size {
            return Err("it changed while it was read".into());
        }
        Ok(Some((kinds, digest)))
    }

    fn skip(&self, path: PathBuf, why: String) {
        lock(&self.report).skipped.push((path, why));
    }
}

/// Whether a file lies where kernels look for firmware, on this system or in an image.
fn is_firmware(path: &Path) -> bool {
    let mut names = path.iter().map(OsStr::as_bytes).skip_while(|name| *name != b"lib");
    names.next().is_some() && names.next().is_some_and(|name| name == b"firmware")
}

fn path_of(error: &ignore::Error) -> Option<PathBuf> {
    match error {
        ignore::Error::WithPath { path, .. } => Some(path.clone()),
        ignore::Error::WithDepth { err, .. } | ignore::Error::WithLineNumber { err, .. } => {
            path_of(err)
        }
        _ => None,
    }
}

/// Kinds of filesystem that hold no files of anybody's.
const VIRTUAL: [&str; 22] = [
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "ramfs",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// Mount points below the roots that lead to files of other filesystems.
fn other_filesystems(roots: &[PathBuf]) -> Vec<PathBuf> {
    let is_below = |mount: &Path| roots.iter().any(|root| mount != root && mount.starts_with(root));
    let mut found: Vec<_> = mountpoints::all()
        .unwrap_or_default()
        .into_iter()
        .filter(|mount| !VIRTUAL.contains(&mount.kind.as_str()))
        .map(|mount| mount.place)
        .filter(|mount| is_below(mount) && !roots.contains(mount))
        .collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn elf() -> Vec<u8> {
        fs::read("/proc/self/exe").expect("own binary")[..4096].to_vec()
    }

    #[test]
    fn finds_artifacts_under_any_name_and_survives_the_rest() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
        fs::write(at(b"tool"), elf()).expect("written");
        fs::hard_link(at(b"tool"), at(b"linked.txt")).expect("linked");
        fs::write(at(b"new\nline"), b"#!/bin/sh\n").expect("written");
        fs::write(at(b"not-utf8-\xff"), b"#!/bin/sh\necho\n").expect("written");
        fs::write(at(b"data.so"), b"no program").expect("written");
        fs::write(at(b"empty"), b"").expect("written");
        std::os::unix::fs::symlink(at(b"tool"), at(b"link")).expect("linked");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at(b"fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("made");
        let giant = File::create(at(b"giant")).expect("made");
        io::Write::write_all(&mut &giant, &elf()).expect("written");
        giant.set_len(100 << 30).expect("sparse");
        fs::set_permissions(at(b"data.so"), fs::Permissions::from_mode(0o000)).expect("closed");

        let report =
            scan(&[folder.path().into()], Kinds::NONE, &ProgressBar::hidden()).expect("scanned");
        let names: Vec<_> = report
            .artifacts
            .iter()
            .map(|found| found.path.file_name().expect("a name").as_bytes().to_vec())
            .collect();
        let expected: [&[u8]; 4] = [b"linked.txt", b"tool", b"new\nline", b"not-utf8-\xff"];
        assert_eq!(names, expected);
        // A file with two names is read once.
        assert_eq!(report.bytes, 4096 + 10 + 15);
        let skipped: Vec<_> = report.skipped.iter().map(|(path, _)| path.clone()).collect();
        assert!(skipped.contains(&at(b"giant")), "{skipped:?}");
    }

    #[test]
    fn firmware_is_known_by_its_folder_and_anything_by_wish() {
        let folder = tempfile::tempdir().expect("a folder");
        let firmware = folder.path().join("usr/lib/firmware/vendor");
        fs::create_dir_all(&firmware).expect("made");
        fs::write(firmware.join("blob"), b"bytes").expect("written");
        fs::write(folder.path().join("other"), b"bytes").expect("written");
        let kinds_of = |listed_as| -> Vec<_> {
            let report = scan(&[folder.path().into()], listed_as, &ProgressBar::hidden());
            report.expect("scanned").artifacts.iter().map(|found| found.kinds).collect()
        };
        assert_eq!(kinds_of(Kinds::NONE), [Kinds::FIRMWARE]);
        assert_eq!(kinds_of(Kinds::KEXEC), [Kinds::KEXEC, Kinds::FIRMWARE.union(Kinds::KEXEC)]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error =
            scan(&["/nowhere".into()], Kinds::NONE, &ProgressBar::hidden()).expect_err("missing");
        assert!(error.to_string().starts_with("/nowhere: No such file"), "{error}");
    }
}
