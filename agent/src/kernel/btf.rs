//! A reader of the kernel's type information (BTF), for the few questions that the agent has.
//!
//! Our own, because the library that would serve (btf-rs) is under the LGPL, which a statically
//! linked binary for closed devices cannot carry along easily, and aya keeps its reader to
//! itself. Format: Documentation/bpf/btf.rst in the kernel's tree.

use thiserror::Error;

/// What is wrong with the type information, or what it lacks.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BtfError {
    /// The bytes end too early or point outside of themselves.
    #[error("the kernel's type information is damaged at byte {0}")]
    Damaged(usize),
    /// The bytes are something else, or of the other byte order.
    #[error("the kernel's type information does not begin as BTF does")]
    NotBtf,
    /// A struct member that the programs read does not exist in this kernel.
    #[error("this kernel has no {structure}.{member}")]
    NoMember {
        /// Name of the struct.
        structure: String,
        /// Name of the member.
        member: String,
    },
    /// The member is a bit-field and should not be, or the other way round.
    #[error("{structure}.{member} has another width in this kernel")]
    BitField {
        /// Name of the struct.
        structure: String,
        /// Name of the member.
        member: String,
    },
    /// An enumerator that the programs compare with does not exist in this kernel.
    #[error("this kernel has no {enumerator} in enum {enumeration}")]
    NoEnumerator {
        /// Name of the enum.
        enumeration: String,
        /// Name of the enumerator.
        enumerator: String,
    },
}

type Result<T> = std::result::Result<T, BtfError>;

pub(super) const MAGIC: u16 = 0xeb9f;

/// The kinds of type that are looked at or skipped by size (`BTF_KIND_*`, linux/btf.h).
pub(super) mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const FORWARD: u32 = 7;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// How deep members may nest within anonymous structs; more is damage.
const MAX_DEPTH: u32 = 32;

/// The type information of one kernel.
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins in `types`. Type ids count from 1; 0 is `void`.
    starts: Vec<usize>,
    /// For a module: the kernel's own strings, after which its strings are counted.
    base_strings: &'a [u8],
    /// Structs, enums and functions by the hash of their names: a kernel has some 100,000 types, and the
    /// agent asks for some 100 of them.
    named: Vec<(u32, u32)>,
}

/// One type's fixed part.
#[derive(Clone, Copy)]
struct Header {
    start: usize,
    name: usize,
    kind: u32,
    /// How many entries follow.
    entries: usize,
    /// For structs: whether offsets carry a bit-field's width in their upper byte.
    flag: bool,
    /// Type id that this one refers to, for those that do.
    target: usize,
}

/// Bytes of a type's fixed part.
pub(super) const HEADER: usize = 12;

impl<'a> Btf<'a> {
    /// Reads the index of types.
    ///
    /// # Errors
    /// If the bytes are not whole BTF in the machine's byte order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::parse_after(bytes, &[])
    }

    /// Reads the type information of a module, which goes on where the kernel's own ends. Members
    /// within anonymous structs are not found.
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn parse_module(kernel: &'a [u8], bytes: &'a [u8]) -> Result<Self> {
        Self::parse_after(bytes, sections(kernel)?.1)
    }

    fn parse_after(bytes: &'a [u8], base_strings: &'a [u8]) -> Result<Self> {
        let (types, strings) = sections(bytes)?;
        let (starts, named) = (vec![0], Vec::new());
        let mut btf = Self { types, strings, starts, base_strings, named };
        let mut at = 0;
        while at < types.len() {
            let header = btf.header_at(at)?;
            if matches!(header.kind, kind::STRUCT | kind::ENUM | kind::FUNC) && header.name != 0 {
                let id = u32::try_from(btf.starts.len()).map_err(|_| BtfError::Damaged(at))?;
                btf.named.push((hash(btf.name(header.name)), id));
            }
            btf.starts.push(at);
            let entry = match header.kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * header.entries,
                kind::ENUM | kind::FUNC_PROTO => 8 * header.entries,
                _ => 0,
            };
            at += HEADER + entry;
        }
        btf.named.sort_unstable();
        if at == types.len() { Ok(btf) } else { Err(BtfError::Damaged(at)) }
    }

    /// Byte offset of `member` in `struct structure`. The member may lie within anonymous structs
    /// and unions.
    ///
    /// # Errors
    /// If this kernel has no such member, or it is a bit-field.
    pub fn offset(&self, structure: &str, member: &str) -> Result<u32> {
        match self.member(structure, member)? {
            (bits, 0) if bits % 8 == 0 => Ok(bits / 8),
            _ => Err(BtfError::BitField { structure: structure.into(), member: member.into() }),
        }
    }

    /// The byte in which a bit-field of one bit lies, and its place in that byte as a mask; for
    /// machines that count bits from the lowest.
    ///
    /// # Errors
    /// If this kernel has no such member, or it has not one bit.
    pub fn bit(&self, structure: &str, member: &str) -> Result<(u32, u32)> {
        match self.member(structure, member)? {
            (bits, 1) => Ok((bits / 8, 1 << (bits % 8))),
            _ => Err(BtfError::BitField { structure: structure.into(), member: member.into() }),
        }
    }

    /// Offset in bits and bit-field width (0 if none) of a member.
    fn member(&self, structure: &str, member: &str) -> Result<(u32, u32)> {
        for (_, header) in self.of_name(kind::STRUCT, structure) {
            if let Some(found) = self.find_member(header, member.as_bytes(), 0)? {
                return Ok(found);
            }
        }
        Err(BtfError::NoMember { structure: structure.into(), member: member.into() })
    }

    /// Value of `enumerator` in `enum enumeration`, which must be of 32 bits.
    ///
    /// # Errors
    /// If this kernel has no such enumerator.
    pub fn enumerator(&self, enumeration: &str, enumerator: &str) -> Result<u32> {
        for (_, header) in self.of_name(kind::ENUM, enumeration) {
            for entry in self.entries(header, 8) {
                if self.name(word(self.types, entry)?) == enumerator.as_bytes() {
                    return word32(self.types, entry + 4);
                }
            }
        }
        Err(BtfError::NoEnumerator {
            enumeration: enumeration.into(),
            enumerator: enumerator.into(),
        })
    }

    /// Whether the kernel has a function of this name.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.function(name).is_some()
    }

    /// The number by which programs call a function of the kernel, or are attached to it.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<u32> {
        self.of_name(kind::FUNC, name).next().map(|(id, _)| id)
    }

    /// The number of a struct.
    #[must_use]
    pub fn structure(&self, name: &str) -> Option<u32> {
        self.of_name(kind::STRUCT, name).next().map(|(id, _)| id)
    }

    /// Types of this kind and name, the first ones first.
    fn of_name(&self, kind: u32, name: &str) -> impl Iterator<Item = (u32, Header)> {
        let hash = hash(name.as_bytes());
        let first = self.named.partition_point(|(other, _)| *other < hash);
        let same_hash = self.named[first..].iter().take_while(move |(other, _)| *other == hash);
        same_hash.filter_map(move |(_, id)| {
            let header = self.header(*id as usize).ok()?;
            let is_it = header.kind == kind && self.name(header.name) == name.as_bytes();
            is_it.then_some((*id, header))
        })
    }

    /// Offset in bits and bit-field width (0 if none) of a member.
    fn find_member(&self, parent: Header, member: &[u8], depth: u32) -> Result<Option<(u32, u32)>> {
        if depth > MAX_DEPTH {
            return Err(BtfError::Damaged(parent.start));
        }
        for entry in self.entries(parent, 12) {
            let name = self.name(word(self.types, entry)?);
            let offset = word32(self.types, entry + 8)?;
            let (offset, width) =
                if parent.flag { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            if name == member {
                return Ok(Some((offset, width)));
            }
            // A module's ids count on from the kernel's, which are not here.
            if name.is_empty() && self.base_strings.is_empty() {
                let inner = self.unqualified(word(self.types, entry + 4)?)?;
                if matches!(inner.kind, kind::STRUCT | kind::UNION)
                    && let Some((within, width)) = self.find_member(inner, member, depth + 1)?
                {
                    return Ok(Some((offset + within, width)));
                }
            }
        }
        Ok(None)
    }

    /// The type behind `const`, `volatile`, `typedef` and the like.
    fn unqualified(&self, mut id: usize) -> Result<Header> {
        for _ in 0..MAX_DEPTH {
            let header = self.header(id)?;
            match header.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = header.target
                }
                _ => return Ok(header),
            }
        }
        Err(BtfError::Damaged(id))
    }

    fn header(&self, id: usize) -> Result<Header> {
        match self.starts.get(id) {
            Some(start) if id > 0 => self.header_at(*start),
            _ => Err(BtfError::Damaged(id)),
        }
    }

    fn header_at(&self, start: usize) -> Result<Header> {
        let info = word(self.types, start + 4)?;
        Ok(Header {
            start,
            name: word(self.types, start)?,
            kind: word32(self.types, start + 4)? >> 24 & 0x1f,
            entries: info & 0xffff,
            flag: info >> 31 & 1 == 1,
            target: word(self.types, start + 8)?,
        })
    }

    fn entries(&self, header: Header, size: usize) -> impl Iterator<Item = usize> {
        (0..header.entries).map(move |index| header.start + HEADER + size * index)
    }

    fn name(&self, at: usize) -> &'a [u8] {
        let rest = match at.checked_sub(self.base_strings.len()) {
            Some(at) => self.strings.get(at..),
            None => self.base_strings.get(at..),
        };
        let rest = rest.unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// FNV-1a.
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// The sections of types and strings.
fn sections(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let magic = bytes.get(..2).ok_or(BtfError::NotBtf)?;
    if magic != MAGIC.to_ne_bytes() {
        return Err(BtfError::NotBtf);
    }
    let header = word(bytes, 4)?;
    let section = |at: usize| {
        let start = header.saturating_add(word(bytes, at)?);
        let range = start..start.saturating_add(word(bytes, at + 4)?);
        bytes.get(range).ok_or(BtfError::Damaged(start))
    };
    Ok((section(8)?, section(16)?))
}

fn word32(bytes: &[u8], at: usize) -> Result<u32> {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map(|chunk| u32::from_ne_bytes(*chunk))
        .ok_or(BtfError::Damaged(at))
}

/// The same as an index; the agent has no use for machines below 32 bits.
fn word(bytes: &[u8], at: usize) -> Result<usize> {
    Ok(word32(bytes, at)? as usize)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Type information made by hand: `struct outer { int a; union { const T b; int c:3; int :11,
    /// d:1; }; }` with `typedef struct { int pad; int deep; } T`, `enum e { ONE = 1, SIX = 6 }`, `void f()`.
    pub fn sample() -> Vec<u8> {
        sample_after(0)
    }

    /// The same with names that are counted from `base_strings`.
    fn sample_after(base_strings: usize) -> Vec<u8> {
        let mut strings = vec![0u8];
        let mut name = |text: &str| {
            let at = strings.len();
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
            u32::try_from(base_strings + at).expect("short")
        };
        let info = |kind: u32, entries: u32, flag: u32| flag << 31 | kind << 24 | entries;
        let words: Vec<u32> = [
            vec![name("int"), info(kind::INT, 0, 0), 4, 32], // 1
            vec![0, info(kind::STRUCT, 2, 0), 8, name("pad"), 1, 0, name("deep"), 1, 32], // 2
            vec![name("T"), info(kind::TYPEDEF, 0, 0), 2],   // 3
            vec![0, info(kind::CONST, 0, 0), 3],             // 4
            vec![
                0,
                info(kind::UNION, 3, 1),
                8,
                0,
                4,
                0,
                name("c"),
                1,
                3 << 24,
                name("d"),
                1,
                1 << 24 | 11,
            ], // 5
            vec![name("outer"), info(kind::STRUCT, 2, 0), 12, name("a"), 1, 0, 0, 5, 32], // 6
            vec![name("e"), info(kind::ENUM, 2, 0), 4, name("ONE"), 1, name("SIX"), 6], // 7
            vec![0, info(kind::FUNC_PROTO, 0, 0), 0],        // 8
            vec![name("f"), info(kind::FUNC, 0, 0), 8],      // 9
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        for word in [24, 0, length(&types), length(&types), length(&strings)] {
            bytes.extend(u32::to_ne_bytes(word));
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_members_enumerators_and_functions() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("whole");
        assert_eq!(btf.offset("outer", "a"), Ok(0));
        assert_eq!(btf.offset("outer", "deep"), Ok(8));
        assert!(matches!(btf.offset("outer", "c"), Err(BtfError::BitField { .. })));
        assert_eq!(btf.bit("outer", "d"), Ok((5, 8)));
        assert!(matches!(btf.bit("outer", "c"), Err(BtfError::BitField { .. })));
        assert!(matches!(btf.offset("outer", "none"), Err(BtfError::NoMember { .. })));
        assert!(matches!(btf.offset("T", "deep"), Err(BtfError::NoMember { .. })));
        assert_eq!(btf.enumerator("e", "SIX"), Ok(6));
        assert!(matches!(btf.enumerator("e", "TWO"), Err(BtfError::NoEnumerator { .. })));
        // A module's names count on from the kernel's, and anonymous members are skipped.
        let of_module = sample_after(btf.strings.len());
        let module = Btf::parse_module(&bytes, &of_module).expect("whole");
        assert_eq!(module.offset("outer", "a"), Ok(0));
        assert!(matches!(module.offset("outer", "deep"), Err(BtfError::NoMember { .. })));
        assert!(Btf::parse_module(b"", &of_module).is_err());
        assert_eq!(btf.function("f"), Some(9));
        assert!(!btf.has_function("int"));
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let whole = sample();
        for length in 0..whole.len() {
            // Cut anywhere: an error, or the same answers from what is left.
            if let Ok(btf) = Btf::parse(&whole[..length]) {
                let _ = btf.offset("outer", "deep");
            }
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            if let Ok(btf) = Btf::parse(&bytes) {
                let _ = (btf.offset("outer", "deep"), btf.enumerator("e", "SIX"));
            }
        }
        assert!(matches!(Btf::parse(b"\x7fELF"), Err(BtfError::NotBtf)));
    }
}
