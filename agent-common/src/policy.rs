//! The compiled form of a policy: what the kernel programs look up.

use crate::wire_enum;

/// Length of an artifact's identity in bytes: SHA-256.
pub const DIGEST_LEN: usize = 32;

/// An artifact's identity: the SHA-256 digest of its whole content.
pub type Digest = [u8; DIGEST_LEN];

/// The key under which the rule for an fs-verity digest is found. Such a digest is the SHA-256 of a
/// description of the file. Under another key than that of content it cannot be taken for the
/// digest of a file that holds the description.
#[must_use]
#[inline(always)]
pub fn fsverity_key(digest: &Digest) -> Digest {
    digest.map(|byte| byte ^ 0xa5)
}

/// How many policies the kernel can hold at once: the active one and the one being filled.
pub const SLOTS: u32 = 2;

/// Set for filesystems whose content cannot be relied on to be the same twice, as somebody else
/// serves it. They are refused where the policy does not trust them.
pub const FILESYSTEM_IS_SERVED: u64 = 1 << 63;

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
    /// Firmware that a driver asks the kernel to read.
    pub const FIRMWARE: Self = Self(1 << 4);
    /// A kernel image or its initramfs, for kexec.
    pub const KEXEC: Self = Self(1 << 5);
    /// A mark on a program: it may make memory executable that holds no file's content.
    pub const JIT: Self = Self(1 << 6);
    /// A mark on a program: it takes its script only from files that are listed as such.
    pub const INTERPRETER: Self = Self(1 << 7);

    /// Every single kind with the word that policies and manifests use for it.
    pub const WORDS: [(Self, &'static str); 8] = [
        (Self::EXECUTABLE, "executable"),
        (Self::LIBRARY, "library"),
        (Self::SCRIPT, "script"),
        (Self::MODULE, "module"),
        (Self::FIRMWARE, "firmware"),
        (Self::KEXEC, "kexec"),
        (Self::JIT, "jit"),
        (Self::INTERPRETER, "interpreter"),
    ];

    /// The kinds that are marks on a program and nothing that a file could be used as.
    pub const MARKS: Self = Self(Self::JIT.0 | Self::INTERPRETER.0);

    /// The words for the kinds in the set.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Self::WORDS.iter().filter(move |(kind, _)| self.intersects(*kind)).map(|(_, word)| *word)
    }

    /// The kinds that these words are for; words that are for none are left out.
    #[must_use]
    pub fn of_words<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let known = |word: &str| Self::WORDS.iter().find(|(_, known)| *known == word);
        words.filter_map(known).fold(Self::NONE, |all, (kind, _)| all.union(*kind))
    }

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

    /// The kinds that are in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The kinds that are not in the other set.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
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

/// What a policy chooses besides its rules, as a set. Part of [`Active`], so that it switches with
/// the rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Choices(pub u16);

impl Choices {
    /// Everything as it is without a word about it in the policy.
    pub const NONE: Self = Self(0);
    /// Memory without a file may be made executable by every program, and nothing is said of it.
    pub const MEMORY_ALLOWED: Self = Self(1 << 1);
    /// Memory without a file may be made executable only by programs with [`Kinds::JIT`].
    pub const MEMORY_DENIED: Self = Self(1 << 2);
    /// Block devices that carry a mounted filesystem cannot be opened for writing.
    pub const MOUNTED_DEVICES_CLOSED: Self = Self(1 << 3);
    /// The policy marks at least one program with [`Kinds::INTERPRETER`].
    pub const INTERPRETERS: Self = Self(1 << 4);
    /// The policy says which USB devices come alive, and the agent sees to it.
    pub const USB: Self = Self(1 << 5);
    /// BPF programs may be loaded by everybody whom the kernel lets, and nothing is said of it.
    pub const OTHER_BPF_ALLOWED: Self = Self(1 << 6);
    /// BPF programs may be loaded by the agent only.
    pub const OTHER_BPF_DENIED: Self = Self(1 << 7);

    /// Some rule denies a digest or marks a program, so that files are hashed even where their
    /// filesystem is trusted as a whole.
    pub const CONTENT_COUNTS: Self = Self(1 << 8);

    /// Some rule is for an fs-verity digest.
    pub const FSVERITY: Self = Self(1 << 9);

    /// The choices of both sets.
    #[must_use]
    #[inline(always)]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all choices of `other` are made.
    #[must_use]
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The one word that says which policy is in force and how. It is written with one store and read
/// with one load, so that every gate switches at the same instant.
///
/// Layout: bits 16 to 63 the generation, bits 1 to 15 the choices, bit 0 the mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Active(pub u64);

impl Active {
    /// No policy: gates return at once. Only ever seen before the first policy is loaded.
    pub const NONE: Self = Self(0);

    /// The word for `generation` (at least 1) in `mode`.
    #[must_use]
    pub const fn new(generation: u64, mode: Mode, choices: Choices) -> Self {
        Self(generation << 16 | choices.0 as u64 & 0xfffe | mode as u64)
    }

    /// The same policy in `mode`.
    #[must_use]
    pub const fn in_mode(self, mode: Mode) -> Self {
        Self(self.0 & !1 | mode as u64)
    }

    /// What the policy chooses besides its rules.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are what is wanted")]
    pub const fn choices(self) -> Choices {
        Choices(self.0 as u16 & 0xfffe)
    }

    /// The number of the policy in force, counted from 1 since the programs were loaded.
    #[must_use]
    #[inline(always)]
    pub const fn generation(self) -> u64 {
        self.0 >> 16
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
