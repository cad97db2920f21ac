//! The kernel's type information cut down to what the loader of programs needs: at which numbers the
//! functions stand that programs are attached to.
//!
//! aya goes through all of the kernel's types from the first one for each program, and compares the name
//! of every function on its way: some ten million instructions each, on devices that are slow at boot as
//! it is, and 15 MB of memory. What is left here has every type's number, and the name of no other.

use super::btf::{Btf, HEADER, MAGIC, kind};

/// The same numbers for the functions of these names; every other type is a declaration without a name.
/// Functions that the kernel does not have are left out, so that looking for one of them fails as before.
#[must_use]
pub fn only_functions<'n>(btf: &Btf<'_>, names: impl IntoIterator<Item = &'n str>) -> Vec<u8> {
    let mut strings = vec![0];
    let mut found: Vec<(u32, u32)> = Vec::new();
    for name in names {
        if let Some(id) = btf.function(name)
            && !found.iter().any(|(other, _)| *other == id)
            && let Ok(at) = u32::try_from(strings.len())
        {
            strings.extend_from_slice(name.as_bytes());
            strings.push(0);
            found.push((id, at));
        }
    }
    found.sort_unstable();
    let mut types = Vec::new();
    let mut wanted = found.into_iter().peekable();
    let mut id = 1;
    // Nobody asks for what comes after the last of them.
    while let Some((next, at)) = wanted.peek().copied() {
        let (name, kind) = if next == id { (at, kind::FUNC) } else { (0, kind::FORWARD) };
        // Name, kind, and what it refers to: nothing.
        for word in [name, kind << 24, 0] {
            types.extend_from_slice(&u32::to_ne_bytes(word));
        }
        if next == id {
            wanted.next();
        }
        id += 1;
    }
    // As long as the kernel's own, which has all of this and more.
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or_default();
    let mut whole = MAGIC.to_ne_bytes().to_vec();
    // Version and flags, then the length of this header and where the two sections are after it.
    whole.extend([1, 0]);
    for word in [HEADER_LENGTH, 0, length(&types), length(&types), length(&strings)] {
        whole.extend(u32::to_ne_bytes(word));
    }
    whole.extend(types);
    whole.extend(strings);
    whole
}

/// `sizeof(struct btf_header)` (linux/btf.h).
const HEADER_LENGTH: u32 = 24;

const _: () = assert!(HEADER == 3 * size_of::<u32>(), "a type without entries is three words");

#[cfg(test)]
mod tests {
    use aya::{Btf as OfLoader, Endianness};
    use aya_obj::btf::BtfKind;

    use super::*;
    use crate::kernel::btf::tests::sample;

    #[test]
    fn functions_keep_their_numbers_and_nothing_else_has_a_name() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).expect("whole");
        let small = only_functions(&btf, ["none", "f", "f", "int"]);
        let read = OfLoader::parse(&small, Endianness::default()).expect("as the loader reads it");
        assert_eq!(read.id_by_type_name_kind("f", BtfKind::Func).ok(), btf.function("f"));
        for missing in ["none", "int", "outer"] {
            assert!(read.id_by_type_name_kind(missing, BtfKind::Func).is_err(), "{missing}");
        }
        let again = Btf::parse(&small).expect("as we read it");
        assert!(again.has_function("f") && again.offset("outer", "a").is_err());
        let none = only_functions(&btf, []);
        assert!(OfLoader::parse(&none, Endianness::default()).is_ok());
    }
}
