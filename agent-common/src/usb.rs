//! Who may change which USB devices come alive.

/// A process among all that there were since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// When it was started, in hundredths of a second since boot, as `/proc/PID/stat` tells it: ids are
    /// given again.
    pub started: u64,
    /// Its id (thread group) in the initial namespace.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

impl Process {
    /// Nanoseconds in a unit of [`Self::started`].
    pub const TICK: u64 = 10_000_000;
}

const _: () = assert!(size_of::<Process>() == 16);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for Process {}
