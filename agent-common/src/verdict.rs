//! What a gate concluded, and how it is kept on the inode.

use crate::{Digest, Kinds, Rule, wire_enum};

wire_enum! {
    /// The hooks at which a file turns into running code.
    pub enum Gate {
        /// exec of a program, a script, or an interpreter that either names.
        Exec = 0 => "exec",
        /// mapping of a file with effective `PROT_EXEC`.
        Mapping = 1 => "mapping",
        /// what the kernel itself takes in and runs or hands to hardware: modules, kexec images,
        /// firmware.
        Kernel = 2 => "kernel",
        /// memory that is made executable: of a file that was mapped otherwise, or of no file.
        Memory = 3 => "memory",
        /// a file that a program with [`crate::Kinds::INTERPRETER`] opens as its script.
        Interpreter = 4 => "interpreter",
        /// opening a block device for writing under a mounted filesystem.
        Device = 5 => "device",
        /// changing which USB devices come alive: writing to the kernel's switches in sysfs, or choosing a
        /// configuration through a device file.
        Usb = 6 => "usb",
        /// attacking the agent, its files, or the gates themselves.
        Shield = 7 => "shield",
    }
}

wire_enum! {
    /// What happened to the attempt.
    pub enum Outcome {
        /// The policy lists it.
        Allow = 0 => "allow",
        /// Audit mode let it pass; enforce mode would have refused it.
        WouldDeny = 1 => "would-deny",
        /// Refused with `EPERM`.
        Deny = 2 => "deny",
        /// The policy asks to be told of it, and lets it pass in every mode.
        Report = 3 => "report",
    }
}

wire_enum! {
    /// Why. The second group is «cannot decide», which denies too; the others are about the policy.
    pub enum Reason {
        /// The digest is listed for this kind.
        Listed = 0 => "listed",
        /// The policy does not know the digest.
        Unlisted = 1 => "unlisted",
        /// The policy denies the digest by name.
        Denied = 2 => "denied",
        /// The digest is listed, but for another kind of artifact.
        WrongKind = 3 => "wrong-kind",
        /// Memory that holds no file's content is made executable.
        AnonymousMemory = 4 => "anonymous-memory",
        /// A private mapping of a file is made executable although it was changed, or so that it
        /// can be.
        ChangedMapping = 5 => "changed-mapping",
        /// The block device carries a mounted filesystem.
        MountedDevice = 6 => "mounted-device",
        /// The policy trusts everything on this verified, read-only filesystem.
        VerifiedFilesystem = 7 => "verified-filesystem",
        /// The agent decides which USB devices come alive, and nobody else.
        UsbSwitch = 8 => "usb-switch",
        /// Somebody else sends the agent a signal.
        AgentSignal = 9 => "agent-signal",
        /// Somebody else would read or change the agent's memory, run it under a debugger, or pass
        /// for it.
        AgentMemory = 10 => "agent-memory",
        /// Somebody else would remove or rename what keeps the gates in force.
        GatePins = 11 => "gate-pins",
        /// Somebody else would unmount, move or cover what the gates' pins lie on.
        GateMount = 12 => "gate-mount",
        /// Somebody else would get hold of the gates' maps, programs or links.
        GateObjects = 13 => "gate-objects",
        /// Somebody else would have the kernel not call the gates any more.
        GateSwitch = 14 => "gate-switch",
        /// Somebody else would change what the agent keeps on the disk.
        AgentState = 15 => "agent-state",

        /// Somebody holds the file open for writing, so its digest would mean nothing.
        BeingWritten = 16 => "being-written",
        /// The file was opened for writing while it was being judged.
        Unstable = 17 => "unstable",
        /// The file lives in memory only (memfd, System V shared memory) and is not sealed
        /// against writing.
        Unsealed = 18 => "unsealed",
        /// Not a regular file: a device, for example `/dev/zero`.
        NotAFile = 19 => "not-a-file",
        /// The file is larger than the gates are willing to hash.
        TooLarge = 20 => "too-large",
        /// The filesystem may answer differently the next time: FUSE, network, host shares.
        Filesystem = 21 => "filesystem",
        /// The kernel could not hash the file.
        HashFailed = 22 => "hash-failed",
        /// The kernel hashed with another algorithm than SHA-256.
        WrongAlgorithm = 23 => "wrong-algorithm",
        /// The kernel had no memory for the verdict.
        NoMemory = 24 => "no-memory",
        /// The policy was switched several times while the file was being hashed.
        PolicyChanged = 25 => "policy-changed",
        /// The kernel is given the bytes from memory and not from a file.
        NoFile = 26 => "no-file",
        /// The kernel reads the file for a purpose that this version does not know.
        UnknownUse = 27 => "unknown-use",
        /// No verdict was made for the file, and none can be made here.
        NotAppraised = 28 => "not-appraised",
        /// The layers of an overlay filesystem cannot be looked at.
        LayersUnknown = 29 => "layers-unknown",
        /// The descriptor shows a layer of an overlay filesystem that the file has left since, or
        /// that nobody saw being opened.
        StaleLayer = 30 => "stale-layer",
        /// The file has been mapped shared and writable since its inode came into memory: the
        /// kernel may still hold pages of it for I/O, and there may be code after its end.
        WasMapped = 31 => "was-mapped",

        // Again about the policy; the numbers of the first group are used up.
        /// Somebody else loads a BPF program.
        OtherBpf = 32 => "other-bpf",
    }
}

impl Reason {
    /// Whether the gate could not tell what the file is, as opposed to the policy saying no.
    #[must_use]
    pub const fn cannot_decide(self) -> bool {
        // The group has the numbers from 16 to 31: one test for the gates.
        self as u8 & 16 != 0
    }
}

wire_enum! {
    /// What is counted for each gate.
    pub enum Counter {
        /// Allowed after an appraisal. Hits of a cached verdict that allows are not counted: they
        /// are the hot path.
        Allowed = 0 => "allowed",
        /// Would have been refused, but the mode is audit.
        WouldDeny = 1 => "would_deny",
        /// Refused.
        Denied = 2 => "denied",
        /// Of those two, how many because the gate could not decide.
        CannotDecide = 3 => "cannot_decide",
        /// Files hashed.
        Hashed = 4 => "hashed",
        /// Bytes hashed, by the size of the file when it was hashed.
        HashedBytes = 5 => "hashed_bytes",
        /// Events that found the ring full.
        Lost = 6 => "lost",
        /// Told of and let pass, because the policy asks for no more.
        Reported = 7 => "reported",
    }
}

/// The part of a verdict that is read on the hot path, kept in one word so that it is always read
/// and written whole.
///
/// Layout: bits 16 to 63 the generation, bits 8 to 15 flags, bits 0 to 7 the allowed kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct VerdictWord(pub u64);

impl VerdictWord {
    /// Set when the record's digest is the content's: without it the record is only a claim that
    /// somebody is hashing.
    const KNOWN: u64 = 1 << 8;
    /// Set when the policy denies the digest by name.
    const DENIED: u64 = 1 << 9;
    /// Set when the policy has a rule for the digest.
    const RULED: u64 = 1 << 10;
    /// Set on a merged file of an overlay, whose content can change without it.
    const MERGED: u64 = 1 << 12;

    /// Set when the kinds come from trust in the filesystem, which must be asked for at each use.
    const VERIFIED: u64 = 1 << 11;

    /// The word for a file whose filesystem is trusted. `known` says whether the record's digest
    /// is the content's.
    #[must_use]
    #[inline(always)]
    pub const fn verified(generation: u64, kinds: Kinds, known: bool) -> Self {
        let known = if known { Self::KNOWN } else { 0 };
        Self(generation << 16 | Self::VERIFIED | Self::RULED | known | kinds.0 as u64)
    }

    /// The word for a file that a rule allows although its content's digest is not known.
    #[must_use]
    #[inline(always)]
    pub const fn without_digest(generation: u64, kinds: Kinds) -> Self {
        Self(generation << 16 | Self::RULED | kinds.0 as u64)
    }

    /// Whether it holds only as long as the filesystem is trusted.
    #[must_use]
    #[inline(always)]
    pub const fn is_verified(self) -> bool {
        self.0 & Self::VERIFIED != 0
    }

    /// The word for a known digest under the policy of `generation`.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u64, rule: Option<Rule>) -> Self {
        let flags = match rule {
            Some(Rule { denied: 0, kinds, .. }) => Self::RULED | kinds.0 as u64,
            Some(_) => Self::RULED | Self::DENIED,
            None => 0,
        };
        Self(generation << 16 | Self::KNOWN | flags)
    }

    /// The same for a merged file of an overlay filesystem.
    #[must_use]
    #[inline(always)]
    pub const fn of_merged_file(self) -> Self {
        Self(self.0 | Self::MERGED)
    }

    /// Whether the file is a merged file of an overlay filesystem.
    #[must_use]
    #[inline(always)]
    pub const fn is_of_merged_file(self) -> bool {
        self.0 & Self::MERGED != 0
    }

    /// Whether the verdict was made under the policy of `generation`.
    #[must_use]
    #[inline(always)]
    pub const fn is_of(self, generation: u64) -> bool {
        self.0 >> 16 == generation
    }

    /// Whether the record's digest is valid, under whatever policy.
    #[must_use]
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0 & Self::KNOWN != 0
    }

    /// The kinds that the policy allows.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low byte is what is wanted")]
    pub const fn kinds(self) -> Kinds {
        Kinds(self.0 as u8)
    }

    /// Why an attempt is refused whose kind is not among [`Self::kinds`].
    #[must_use]
    #[inline(always)]
    pub const fn refusal(self) -> Reason {
        if self.0 & Self::DENIED != 0 {
            Reason::Denied
        } else if self.0 & Self::RULED != 0 {
            Reason::WrongKind
        } else {
            Reason::Unlisted
        }
    }
}

/// What is kept in an inode's local storage. It dies with the inode, and it is deleted when the
/// inode is opened for writing or truncated.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Verdict {
    /// The hot-path part.
    pub word: VerdictWord,
    /// A number that no other record ever had. A gate that finds another one after hashing knows
    /// that the record it started with was deleted: a writer came by.
    pub stamp: u64,
    /// For a merged file of an overlay: how many times layers had been opened for writing behind
    /// merged files when it was hashed.
    pub layer_writes: u64,
    /// The rule that decided.
    pub rule: Rule,
    /// The content's digest, if [`VerdictWord::is_known`].
    pub digest: Digest,
}

const _: () = assert!(size_of::<Verdict>() == 64);

/// Which program a process runs, where its inode cannot be asked for a verdict. The kernel keeps a
/// running program from being written, so the digest that was found at exec is still its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProgramKey {
    /// Inode number.
    pub inode: u64,
    /// Filesystem's device number in the kernel's encoding.
    pub device: u32,
    /// Tells apart files that have had the same inode number.
    pub generation: u32,
}

const _: () = assert!(size_of::<ProgramKey>() == 16);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for Verdict {}
