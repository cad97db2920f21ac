//! What a gate tells the agent, through the ring buffer.

use crate::{Digest, Kinds, Rule};

/// Length of a task's name in the kernel (`TASK_COMM_LEN`), with the terminating zero.
pub const COMM_LEN: usize = 16;

/// How many ancestors of the task are recorded in the kernel, where they cannot have gone yet.
pub const ANCESTORS: usize = 4;

/// Room for a path in the usual event, with the terminating zero.
pub const PATH_SHORT: usize = 256;

/// Room for a path in the event that is used when the usual one is too small (`PATH_MAX`).
pub const PATH_LONG: usize = 4096;

/// A parent, grandparent and so on of the task that made the attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ancestor {
    /// Process id in the initial namespace; 0 past the last ancestor.
    pub pid: u32,
    /// Task name, zero-padded.
    pub comm: [u8; COMM_LEN],
}

/// What [`EventHeader::path_status`] means when it is not a length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathStatus {
    /// The path has this many bytes, without the terminating zero.
    Length(usize),
    /// The kernel answered with this error (a positive errno).
    Errno(i32),
}

/// The fixed part of an event. Integers are in the machine's byte order.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EventHeader {
    /// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    pub boot_ns: u64,
    /// Generation of the policy that decided.
    pub generation: u64,
    /// Id of the task's cgroup in the unified hierarchy.
    pub cgroup: u64,
    /// Inode number.
    pub inode: u64,
    /// File size in bytes.
    pub size: u64,
    /// Content digest; all zero if none could be made.
    pub digest: Digest,
    /// The rule that decided; the empty rule if the policy has none for the digest.
    pub rule: Rule,
    /// Filesystem's device number in the kernel's encoding (major in the upper 12 bits, minor in
    /// the lower 20).
    pub device: u32,
    /// Filesystem's magic number.
    pub filesystem: u32,
    /// Process id (thread group) in the initial namespace.
    pub pid: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
    /// Real user id in the initial namespace.
    pub uid: u32,
    /// Real group id in the initial namespace.
    pub gid: u32,
    /// What `bpf_ima_file_hash` returned: an algorithm, or a negative errno; 0 if it was not
    /// called for this event.
    pub hash_status: i32,
    /// What `bpf_d_path` returned: the length with the terminating zero, or a negative errno.
    pub path_status: i32,
    /// [`crate::Gate`] by number.
    pub gate: u8,
    /// [`crate::Outcome`] by number.
    pub outcome: u8,
    /// [`crate::Reason`] by number.
    pub reason: u8,
    /// The kinds that the gate was asked for.
    pub wanted: Kinds,
    /// 1 if the verdict was found on the inode, 0 if it was made for this event.
    pub cached: u8,
    /// 1 if the mode was enforce, 0 if audit.
    pub enforces: u8,
    /// 0 if the path is one; 1 if it is the names of the file and of the folders above it up to the
    /// root of its filesystem, in rooms of [`Event::NAME_ROOM`] bytes, each with a zero after it.
    pub names: u8,
    /// 1 if there is a [`BpfLoad`] in the path's place, which `path_status` is the length of.
    pub bpf: u8,
    /// Name of the task that made the attempt, before any exec takes effect, zero-padded.
    pub comm: [u8; COMM_LEN],
    /// Its parent first.
    pub ancestors: [Ancestor; ANCESTORS],
}

impl EventHeader {
    /// Size in bytes on the wire.
    pub const SIZE: usize = size_of::<Self>();

    /// [`Self::path_status`] decoded, for an event with room for `room` bytes.
    #[must_use]
    pub fn path(&self, room: usize) -> PathStatus {
        match usize::try_from(self.path_status) {
            Ok(length) if (1..=room).contains(&length) => PathStatus::Length(length - 1),
            Ok(_) => PathStatus::Errno(0),
            // The kernel has no numbers of errors beyond that (`MAX_ERRNO` in linux/err.h).
            Err(_) if self.path_status < -4095 => PathStatus::Errno(0),
            Err(_) => PathStatus::Errno(-self.path_status),
        }
    }
}

const _: () = assert!(EventHeader::SIZE == 216);

/// A BPF program that somebody would load, as far as the kernel was told of it: the numbers of
/// linux/bpf.h, in the machine's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BpfLoad {
    /// `BPF_PROG_TYPE_*`.
    pub kind: u32,
    /// `BPF_*` of `enum bpf_attach_type`; 0 also if it was not said.
    pub attach: u32,
    /// The name that it is given, zero-padded.
    pub name: [u8; COMM_LEN],
}

impl BpfLoad {
    /// Size in bytes on the wire.
    pub const SIZE: usize = size_of::<Self>();
}

const _: () = assert!(BpfLoad::SIZE == 24);

/// An event as it lies in the ring: the header, then the path as the task sees it.
#[repr(C)]
pub struct Event<const PATH: usize> {
    /// The fixed part.
    pub header: EventHeader,
    /// The path and its terminating zero; what follows is undefined.
    pub path: [u8; PATH],
}

impl<const PATH: usize> Event<PATH> {
    /// Room for each name where the path is made of names: few short ones, or more of any length.
    pub const NAME_ROOM: usize = if PATH == PATH_LONG { 256 } else { 32 };
}
