//! How an interpreter's script is recognised among the files that it opens: by the names that were
//! given to it on its command line.
//!
//! Names are compared by hash. Two names with the same hash only mean that a file is judged which
//! would not have been.

/// How many arguments are kept, the program's own name included.
pub const ARGUMENTS: usize = 64;

/// How many bytes of arguments are looked at.
pub const ARGUMENT_BYTES: u32 = 4096;

/// FNV-1a, 64 bits.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

#[inline(always)]
const fn mix(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(PRIME)
}

/// A name as it is read, byte by byte: what was given to `open`, or an argument.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Name {
    whole: u64,
    /// The last component; `=` separates too, for `--file=NAME`.
    last: u64,
    /// The component before it.
    parent: u64,
    /// The last component up to its first dot, for interpreters that append an ending.
    stem: u64,
    state: u64,
}

impl Name {
    /// A separator was seen since the last byte of a component.
    const BETWEEN: u64 = 1 << 0;
    /// The stem is complete.
    const STEM: u64 = 1 << 1;
    /// There is white space or a control character in it, so an argument is code or text rather
    /// than a name.
    const SPACED: u64 = 1 << 2;
    /// There is a byte.
    const STARTED: u64 = 1 << 3;
    /// The first byte is `-` or `+`.
    const OPTION: u64 = 1 << 4;
    /// A dash and letters only: short options.
    const CLUSTER: u64 = 1 << 5;
    /// The last byte so far is a `c`.
    const ENDS_WITH_C: u64 = 1 << 6;

    /// The empty name.
    #[must_use]
    #[inline(always)]
    pub const fn new() -> Self {
        Self { whole: SEED, last: SEED, parent: SEED, stem: SEED, state: 0 }
    }

    /// The next byte of a path.
    #[inline(always)]
    pub const fn feed(&mut self, byte: u8) {
        self.whole = mix(self.whole, byte);
        if byte == b'/' || byte == b'=' {
            self.state |= Self::BETWEEN;
            return;
        }
        if self.state & Self::BETWEEN != 0 {
            self.state &= !(Self::BETWEEN | Self::STEM);
            self.parent = self.last;
            self.last = SEED;
            self.stem = SEED;
        }
        if byte == b'.' && self.last != SEED {
            self.state |= Self::STEM;
        }
        self.last = mix(self.last, byte);
        if self.state & Self::STEM == 0 {
            self.stem = mix(self.stem, byte);
        }
    }

    /// The next byte of an argument.
    #[inline(always)]
    const fn feed_argument(&mut self, byte: u8) {
        self.feed(byte);
        if byte <= b' ' {
            self.state |= Self::SPACED;
        }
        if self.state & Self::STARTED == 0 {
            self.state |= Self::STARTED;
            if byte == b'-' {
                self.state |= Self::OPTION | Self::CLUSTER;
            } else if byte == b'+' {
                self.state |= Self::OPTION;
            }
        } else if !byte.is_ascii_alphabetic() {
            self.state &= !Self::CLUSTER;
        }
        if byte == b'c' {
            self.state |= Self::ENDS_WITH_C;
        } else {
            self.state &= !Self::ENDS_WITH_C;
        }
    }

    #[inline(always)]
    const fn is(&self, state: u64) -> bool {
        self.state & state == state
    }
}

impl Default for Name {
    fn default() -> Self {
        Self::new()
    }
}

/// What is kept of a process that runs a program with [`crate::Kinds::INTERPRETER`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Arguments {
    /// How many arguments there are, the program's own name included.
    count: u32,
    /// Those before this index can name the script.
    limit: u32,
    /// Index of the first argument that is an option.
    first_option: u32,
    /// Index of the first argument after the program's own name that is none.
    first_plain: u32,
    /// One bit for each argument whose file was found under its own name.
    found: u64,
    flags: u64,
    /// Address of the process's first thread in the kernel: a process id can be used anew before
    /// the kernel is done with the process that had it.
    pub owner: u64,
    /// The argument that is being read. Kept here and not on the stack, where the kernel's verifier
    /// would look at each combination of what it can be.
    argument: Name,
    whole: [u64; ARGUMENTS],
    /// Hash of the last component; 0 for what can be no name.
    last: [u64; ARGUMENTS],
}

const _: () = assert!(size_of::<Arguments>() == 80 + 16 * ARGUMENTS);

/// What an open file is to the process that opens it: so far, nothing that its arguments speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Found {
    /// Bit by bit the arguments that name the file.
    named: u64,
    /// 1 if the file may be what an argument means.
    near: u32,
    /// The first of the arguments that name the file; 0 if none does.
    first: u32,
}

impl Found {
    /// Something that cannot be told, and so is judged.
    pub const UNKNOWN: Self = Self { named: 0, near: 1, first: 0 };

    /// Whether the file may be the script.
    #[must_use]
    #[inline(always)]
    pub const fn is_suspect(&self) -> bool {
        self.near != 0 || self.first != 0
    }

    /// Whether an argument names it, and does not only resemble its name.
    #[must_use]
    #[inline(always)]
    pub const fn is_named(&self) -> bool {
        self.first != 0
    }
}

impl Arguments {
    /// The arguments have been read.
    const READ: u64 = 1 << 0;
    /// The kernel has put the script's name among the arguments, because of its `#!` line.
    const BY_KERNEL: u64 = 1 << 1;
    /// There is more than is kept.
    const BEYOND: u64 = 1 << 2;

    /// A process that has just been given a new program.
    #[must_use]
    #[inline(always)]
    pub const fn new(started_by_script: bool) -> Self {
        Self {
            count: 0,
            limit: u32::MAX,
            first_option: u32::MAX,
            first_plain: u32::MAX,
            found: 0,
            owner: 0,
            argument: Name::new(),
            flags: if started_by_script { Self::BY_KERNEL } else { 0 },
            whole: [0; ARGUMENTS],
            last: [0; ARGUMENTS],
        }
    }

    /// A process in which every file that is opened may be the script.
    #[must_use]
    pub const fn anything() -> Self {
        let mut all = Self::new(false);
        all.flags = Self::READ | Self::BEYOND;
        all
    }

    /// The same as [`Self::new`], in a record that has only zeros.
    #[inline(always)]
    pub const fn start(&mut self, started_by_script: bool) {
        self.argument = Name::new();
        self.limit = u32::MAX;
        self.first_option = u32::MAX;
        self.first_plain = u32::MAX;
        self.flags = if started_by_script { Self::BY_KERNEL } else { 0 };
    }

    /// Whether the arguments are still to be read.
    #[must_use]
    #[inline(always)]
    pub const fn is_unread(&self) -> bool {
        self.flags & Self::READ == 0
    }

    /// Takes in the next byte of the arguments, each of which ends with a zero.
    #[inline(always)]
    pub const fn feed(&mut self, byte: u8) {
        if byte == 0 {
            self.push();
            self.argument = Name::new();
        } else {
            self.argument.feed_argument(byte);
        }
    }

    #[inline(always)]
    const fn push(&mut self) {
        let name = &self.argument;
        let index = self.count;
        self.count = index + 1;
        if index == 0 {
            return;
        }
        if (index as usize) < ARGUMENTS {
            let slot = index as usize & (ARGUMENTS - 1);
            self.whole[slot] = name.whole;
            self.last[slot] =
                if name.is(Name::SPACED) || name.last == SEED { 0 } else { name.last };
        }
        if !name.is(Name::OPTION) {
            if self.first_plain > index {
                self.first_plain = index;
            }
            return;
        }
        if self.first_option > index {
            self.first_option = index;
        }
        // `-c`, alone or with others, as in shells and Python: the code follows, and no file.
        if name.is(Name::CLUSTER | Name::ENDS_WITH_C) && self.first_plain > index {
            self.limit = 0;
        }
    }

    /// All arguments have been taken in, or as many as can be.
    #[inline(always)]
    pub const fn complete(&mut self, all_seen: bool) {
        self.flags |= Self::READ;
        self.argument = Name::new();
        if self.flags & Self::BY_KERNEL != 0 && self.first_option == 1 {
            // INTERPRETER OPTION SCRIPT …: what follows is the script's own.
            self.limit = 3;
        }
        if self.limit == u32::MAX && (!all_seen || self.count as usize > ARGUMENTS) {
            self.flags |= Self::BEYOND;
        }
    }

    /// An empty name, once the arguments have been read. Taken from here, because the kernel's
    /// verifier follows what it knows to be constant through every step of a loop.
    #[must_use]
    #[inline(always)]
    pub const fn empty_name(&self) -> Name {
        self.argument
    }

    /// How many arguments are to be compared with names; the first one is the program's own.
    #[must_use]
    #[inline(always)]
    pub const fn compared(&self) -> u32 {
        if self.count < self.limit { self.count } else { self.limit }
    }

    /// What is known of every file before arguments are compared.
    #[must_use]
    #[inline(always)]
    pub const fn begin(&self) -> Found {
        Found { named: 0, near: (self.flags & Self::BEYOND != 0) as u32, first: 0 }
    }

    /// Compares the argument at `index` with the name that a file is opened by.
    #[inline(always)]
    pub const fn compare(&self, index: u32, name: &Name, found: &mut Found) {
        if index == 0 || index as usize >= ARGUMENTS {
            return;
        }
        let slot = index as usize & (ARGUMENTS - 1);
        let last = self.last[slot];
        if self.whole[slot] == name.whole || (last != 0 && last == name.last) {
            found.named |= 1 << slot;
            if found.first == 0 {
                found.first = index;
            }
        } else if last != 0
            && self.found >> slot & 1 == 0
            && (last == name.stem || last == name.parent)
        {
            found.near = 1;
        }
    }

    /// Notes that the file was opened. The first one that no option precedes is the script, and
    /// what comes after it is the script's own.
    #[inline(always)]
    pub const fn note(&mut self, found: &Found) {
        self.found |= found.named;
        if found.first != 0 && found.first < self.first_option && found.first + 1 < self.limit {
            self.limit = found.first + 1;
            self.flags &= !Self::BEYOND;
        }
    }
}

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for Arguments {}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::{vec, vec::Vec};

    use super::*;

    fn name(path: &str) -> Name {
        let mut name = Name::new();
        path.bytes().for_each(|byte| name.feed(byte));
        name
    }

    fn process(by_kernel: bool, arguments: &[&str]) -> Arguments {
        let mut all = Arguments::new(by_kernel);
        for argument in arguments {
            argument.bytes().chain([0]).for_each(|byte| all.feed(byte));
        }
        all.complete(true);
        all
    }

    /// The files among `opened`, in this order, that are judged.
    fn judged<'a>(by_kernel: bool, arguments: &[&str], opened: &[&'a str]) -> Vec<&'a str> {
        let mut all = process(by_kernel, arguments);
        let judged = |path: &&&str| {
            let mut found = all.begin();
            let name = name(path);
            (0..all.compared()).for_each(|index| all.compare(index, &name, &mut found));
            all.note(&found);
            found.is_suspect()
        };
        opened.iter().filter(judged).copied().collect()
    }

    #[test]
    fn finds_scripts() {
        for arguments in [
            &["sh", "/tmp/evil"][..],
            &["sh", "-x", "/tmp/evil"],
            &["sh", "--", "/tmp/evil"],
            &["sh", "evil"],
            &["bash", "--rcfile", "/tmp/listed", "-i", "/tmp/evil"],
            &["bash", "--rcfile=/tmp/evil", "-i"],
            &["busybox", "sh", "/tmp/evil"],
            &["deno", "run", "evil"],
        ] {
            let opened = ["/etc/ld.so.cache", "/tmp/evil", "/etc/hosts"];
            assert_eq!(judged(false, arguments, &opened), ["/tmp/evil"], "{arguments:?}");
        }
        // An ending that the interpreter appends; modules; folders.
        assert_eq!(judged(false, &["node", "evil"], &["/tmp/evil.js"]), ["/tmp/evil.js"]);
        let compiled = "/tmp/__pycache__/evil.cpython-311.pyc";
        assert_eq!(judged(false, &["python3", "-m", "evil"], &[compiled]), [compiled]);
        let main = "evil/./__main__.py";
        assert_eq!(judged(false, &["python3", "evil/."], &[main]), [main]);
        assert_eq!(judged(false, &["sh", "-e", "a b"], &["a b"]), ["a b"]);
    }

    #[test]
    fn leaves_data_alone() {
        // What comes after the script is the script's own.
        let opened = ["/tmp/listed", "/tmp/data", "/tmp/listed"];
        let script = ["/tmp/listed", "/tmp/listed"];
        assert_eq!(judged(false, &["sh", "/tmp/listed", "/tmp/data"], &opened), script);
        assert_eq!(judged(true, &["sh", "/tmp/listed", "/tmp/data"], &opened), script);
        assert_eq!(judged(true, &["sh", "-e", "/tmp/listed", "/tmp/data"], &opened), script);
        let applet = ["busybox", "sh", "/tmp/listed", "/tmp/data"];
        assert_eq!(judged(false, &applet, &opened), script);
        // Code in an argument.
        let none: [&str; 0] = [];
        assert_eq!(judged(false, &["sh", "-c", "read x </tmp/data"], &opened), none);
        assert_eq!(judged(false, &["bash", "-ec", "cat \"$1\"", "_", "/tmp/data"], &opened), none);
        assert_eq!(judged(false, &["sh"], &opened), none);
        // Files that only have their name's beginning in common with the script.
        let beside = ["/opt/pump/pump.conf", "/opt/pump/pump", "/opt/pump/pump.conf"];
        assert_eq!(judged(false, &["sh", "/opt/pump/pump"], &beside), beside[..2]);
        let python = ["app.py", "app.conf"];
        assert_eq!(judged(false, &["python3", "-u", "app.py"], &python), ["app.py"]);
    }

    #[test]
    fn an_option_before_the_script_keeps_the_rest_suspect() {
        let arguments = ["awk", "-f", "/tmp/listed", "-f", "/tmp/evil"];
        let opened = ["/tmp/listed", "/tmp/evil"];
        assert_eq!(judged(false, &arguments, &opened), opened);
        // As with everything of which not all can be seen.
        let mut many = vec!["sh"; 1];
        many.resize(ARGUMENTS + 1, "-x");
        many.push("/tmp/evil");
        assert_eq!(judged(false, &many, &["/tmp/evil"]), ["/tmp/evil"]);
        let mut data = vec!["sh", "/tmp/listed"];
        data.resize(ARGUMENTS + 9, "/tmp/more");
        assert_eq!(judged(false, &data, &["/tmp/listed", "/tmp/data"]), ["/tmp/listed"]);
        assert!(Arguments::anything().begin().is_suspect());
    }
}
