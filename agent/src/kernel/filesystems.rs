//! Filesystems whose content is not under this kernel's control.

use std::{io, os::fd::AsFd, path::Path};

/// A kind of filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// Its magic number (linux/magic.h, or the filesystem's own header where that has none).
    pub magic: u64,
    /// The name that people know.
    pub name: &'static str,
}

const fn filesystem(magic: u64, name: &'static str) -> Filesystem {
    Filesystem { magic, name }
}

/// What may give other bytes to the mapping than it gave to the hash: whoever serves the content
/// decides each time. hugetlbfs is here because its pages are changed through mappings that do not
/// show as writers, and eCryptfs because its files can be changed in the folder below.
pub const UNTRUSTED: &[Filesystem] = &[
    filesystem(0x6573_5546, "fuse"),
    filesystem(0x6969, "nfs"),
    filesystem(0xff53_4d42, "cifs"),
    filesystem(0xfe53_4d42, "smb3"),
    filesystem(0x517b, "smb"),
    filesystem(0x0102_1997, "9p"),
    filesystem(0x00c3_6400, "ceph"),
    filesystem(0x5346_414f, "afs"),
    filesystem(0x6b41_4653, "afs"),
    filesystem(0x7375_7245, "coda"),
    filesystem(0x7461_636f, "ocfs2"),
    filesystem(0x0116_1970, "gfs2"),
    filesystem(0x2003_0528, "orangefs"),
    filesystem(0x0bd0_0bd0, "lustre"),
    filesystem(0x786f_4256, "vboxsf"),
    filesystem(0xbacb_acbc, "vmhgfs"),
    filesystem(0x9584_58f6, "hugetlbfs"),
    filesystem(0xf15f, "ecryptfs"),
];

/// Overlay filesystems, whose files are judged by content where their layers can be looked at.
pub const OVERLAY: Filesystem = filesystem(0x794c_7630, "overlay");

/// Every kind that a policy can trust.
pub fn trustable() -> impl Iterator<Item = &'static Filesystem> + Clone {
    UNTRUSTED.iter().chain(std::iter::once(&OVERLAY))
}

/// What else a device is likely to run from, to give it a name in events.
const LOCAL: &[Filesystem] = &[
    filesystem(0xef53, "ext4"),
    filesystem(0x0102_1994, "tmpfs"),
    filesystem(0x8584_58f6, "ramfs"),
    OVERLAY,
    filesystem(0x5846_5342, "xfs"),
    filesystem(0x9123_683e, "btrfs"),
    filesystem(0xf2f5_2010, "f2fs"),
    filesystem(0x7371_7368, "squashfs"),
    filesystem(0xe0f5_e1e2, "erofs"),
    filesystem(0x4d44, "vfat"),
    filesystem(0x2011_bab0, "exfat"),
    filesystem(0x7366_746e, "ntfs3"),
    filesystem(0x9660, "iso9660"),
    filesystem(0x2405_1905, "ubifs"),
    filesystem(0x72b6, "jffs2"),
    filesystem(0x2fc1_2fc1, "zfs"),
    filesystem(0x9fa0, "proc"),
    filesystem(0x6265_6572, "sysfs"),
];

/// Whether this is the name of a filesystem whose content only this kernel changes.
#[must_use]
pub fn is_local(name: &str) -> bool {
    LOCAL.iter().any(|filesystem| filesystem.name == name)
}

/// Magic number of the filesystem that a path lies on.
///
/// # Errors
/// If the path cannot be looked at.
pub fn magic_of(path: &Path) -> io::Result<u64> {
    Ok(magic(&rustix::fs::statfs(path)?))
}

/// Magic number of the filesystem that an open file lies on.
///
/// # Errors
/// If the filesystem does not answer.
pub fn magic_of_file(file: impl AsFd) -> io::Result<u64> {
    Ok(magic(&rustix::fs::fstatfs(file)?))
}

#[allow(
    clippy::cast_sign_loss,
    clippy::cast_lossless,
    clippy::unnecessary_cast,
    reason = "the type differs by architecture"
)]
fn magic(status: &rustix::fs::StatFs) -> u64 {
    status.f_type as u64 & 0xffff_ffff
}

/// Whether an open file lies on a filesystem that has no disk.
pub fn is_in_memory(file: impl AsFd) -> bool {
    magic_of_file(file).is_ok_and(|magic| matches!(name(magic).as_str(), "tmpfs" | "ramfs"))
}

/// The name of a filesystem, or its number if it has none here.
#[must_use]
pub fn name(magic: u64) -> String {
    let known = UNTRUSTED.iter().chain(LOCAL).find(|filesystem| filesystem.magic == magic);
    known.map_or_else(|| format!("{magic:#x}"), |filesystem| filesystem.name.to_owned())
}
