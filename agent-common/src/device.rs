//! What is known of block devices that the device mapper makes.

use crate::{Kinds, SLOTS};

/// How many tables a device has had since it was made, as far as it matters.
pub mod tables {
    /// The one that it was made with: what was read from it has always been the same.
    pub const ONE: u32 = 1;
    /// More than one. What was read under another one may still be in memory.
    pub const SEVERAL: u32 = 2;
}

/// A device whose content is verified as it is read, and matches a root hash that policies list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VerifiedDevice {
    /// What files on it may be used as, by slot of the policy; empty where it is not listed.
    pub kinds: [Kinds; SLOTS as usize],
    /// Zero.
    pub reserved: [u8; 2],
    /// The line of the policy file that lists it, by slot.
    pub lines: [u32; SLOTS as usize],
}

const _: () = assert!(size_of::<VerifiedDevice>() == 12);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for VerifiedDevice {}
