//! The compiled form of a policy: what the kernel programs look up.

use crate::wire_enum;

/// Length of an artifact's identity in bytes: SHA-256.
pub const DIGEST_LEN: usize = 32;

/// An artifact's identity: the SHA-256 digest of its whole content.
pub type Digest = [u8; DIGEST_LEN];

/// How many policies the kernel can hold at once: the active one and the one being filled.
pub const SLOTS: u32 = 2;

/// The kinds of artifact, as a set. What a digest may be used as, and what a gate is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Kinds(pub u8);

impl Kinds {
    /// The empty set.
    pub const NONE: Self = Self(0);
    /// A program that is started by exec.
    pub const EXECUTABLE: Self = Self(1 << 0);
    /// A file that is mapped as code: shared library, plugin, the ELF interpreter.
    pub const LIBRARY: Self = Self(1 << 1);
    /// A file that begins with `#!` and is started by exec.
    pub const SCRIPT: Self = Self(1 << 2);
    /// A kernel module.
    pub const MODULE: Self = Self(1 << 3);

    /// Every single kind with the word that policies and manifests use for it.
    pub const WORDS: [(Self, &'static str); 4] = [
        (Self::EXECUTABLE, "executable"),
        (Self::LIBRARY, "library"),
        (Self::SCRIPT, "script"),
        (Self::MODULE, "module"),
    ];

    /// Whether the two sets have a kind in common.
    #[must_use]
    #[inline(always)]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The kinds that are in either set.
    #[must_use]
    #[inline(always)]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether the set has no kind.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

wire_enum! {
    /// Whether the gates only report, or refuse.
    pub enum Mode {
        /// Nothing is ever blocked; everything that would be is reported.
        Audit = 0 => "audit",
        /// What the policy does not allow is refused with `EPERM`.
        Enforce = 1 => "enforce",
    }
}

/// What one policy says about one digest, and where it says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// Kinds that the digest may be used as. Empty in a rule that denies.
    pub kinds: Kinds,
    /// 1 if the policy denies this digest by name, else 0.
    pub denied: u8,
    /// Index of the file among the policy's sources: 0 is the policy file itself, then its
    /// manifests in the order in which they are included.
    pub source: u16,
    /// Line in that file, counted from 1; 0 in the empty rule.
    pub line: u32,
}

const _: () = assert!(size_of::<Rule>() == 8);

/// The one word that says which policy is in force and how. It is written with one store and read
/// with one load, so that every gate switches at the same instant.
///
/// Layout: bits 1 to 63 the generation, bit 0 the mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Active(pub u64);

impl Active {
    /// No policy: gates return at once. Only ever seen before the first policy is loaded.
    pub const NONE: Self = Self(0);

    /// The word for `generation` (at least 1) in `mode`.
    #[must_use]
    pub const fn new(generation: u64, mode: Mode) -> Self {
        Self(generation << 1 | mode as u64)
    }

    /// The number of the policy in force, counted from 1 since the programs were loaded.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u64 {
        self.0 >> 1
    }

    /// Whether what the policy does not allow is refused.
    #[must_use]
    #[inline(always)]
    pub const fn enforces(self) -> bool {
        self.0 & 1 == 1
    }

    /// The mode as a word of its own.
    #[must_use]
    pub const fn mode(self) -> Mode {
        if self.enforces() { Mode::Enforce } else { Mode::Audit }
    }

    /// Which of the [`SLOTS`] holds the rules of a generation.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a remainder below SLOTS")]
    pub const fn slot(generation: u64) -> u32 {
        (generation % SLOTS as u64) as u32
    }
}

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for Rule {}
