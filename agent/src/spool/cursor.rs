//! How far each sink has got, on the disk.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::durable;

const PREFIX: &str = "cursor-";

fn file(folder: &Path, sink: &str) -> PathBuf {
    folder.join(format!("{PREFIX}{sink}"))
}

fn parse(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What a sink has got; none if that is not known.
#[must_use]
pub fn read(folder: &Path, sink: &str) -> Option<u64> {
    parse(&file(folder, sink))
}

/// Keeps what a sink has got.
///
/// # Errors
/// If it cannot be written; then what was there stays, and some records are sent twice.
pub fn write(folder: &Path, sink: &str, record: u64) -> io::Result<()> {
    durable::replace(&file(folder, sink), |out| out.write_all(format!("{record}\n").as_bytes()))
}

/// The latest record that any sink has got.
#[must_use]
pub fn highest(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let cursors = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    cursors.filter_map(|entry| parse(&entry.path())).max().unwrap_or_default()
}
