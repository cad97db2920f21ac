//! What the agent and the programs that guard it must agree on.

use crate::Digest;

/// How the names of the gates' maps begin: nobody else gets hold of a map with such a name. As many
/// bytes as the programs compare at once; the kernel keeps 15 of a name.
pub const MAP_PREFIX: &[u8; 8] = b"PCULLIS_";

/// A file or folder among all that there are now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FileId {
    /// Inode number.
    pub inode: u64,
    /// Filesystem's device number in the kernel's encoding.
    pub device: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<FileId>() == 16);

impl FileId {
    /// What is guarded of a file or folder: it is on the way to what is guarded: nobody else renames it, or mounts over it.
    pub const ON_THE_WAY: u8 = 1 << 0;
    /// Likewise: nobody else adds, renames or removes anything in it, or writes to files in it; of a file:
    /// nobody else writes to it or removes it.
    pub const CLOSED: u8 = 1 << 1;
}

/// By whose word the gates are in force: what an agent that takes over has to have, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Authority {
    /// 1 if the policy came in a signed bundle.
    pub is_signed: u64,
    /// The bundles that may be in force after a restart, by SHA-256 of their manifests; zeros are the
    /// policy file. They differ during a trial, and while a bundle comes into force.
    pub bundles: [Digest; 2],
}

const _: () = assert!(size_of::<Authority>() == 72);

/// Flags of `umount2` that the kernel never takes together (`MNT_FORCE` with `MNT_EXPIRE`): with
/// these the agent shows its programs a mount without unmounting it.
pub const SHOW_MOUNT: u32 = 1 | 4;

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for FileId {}

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for Authority {}
