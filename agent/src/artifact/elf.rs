//! What an ELF file can be used as.

use std::fs::File;

use object::{
    Endianness, FileKind, ReadCache, ReadRef,
    elf::{
        DF_1_PIE, DT_FLAGS_1, DT_SONAME, ET_DYN, ET_EXEC, ET_REL, FileHeader32, FileHeader64,
        PT_INTERP,
    },
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use portcullis_common::Kinds;

/// Whether a file's first bytes are those of ELF.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// Whether a file's first bytes are those of a relocatable ELF object.
pub fn is_relocatable(head: &[u8]) -> bool {
    let kind = match (is_elf(head), head.get(5), head.get(16..18)) {
        (true, Some(2), Some(kind)) => u16::from_be_bytes([kind[0], kind[1]]),
        (true, Some(_), Some(kind)) => u16::from_le_bytes([kind[0], kind[1]]),
        _ => return false,
    };
    kind == ET_REL
}

/// What an ELF file can be used as; `None` for object files and core dumps.
///
/// A file that is broken is listed as all that its type can be: the kernel and the dynamic loader
/// are less strict than any reader, and what is listed too much is listed by content.
pub fn kinds(file: &File) -> Option<Kinds> {
    let either = Some(Kinds::EXECUTABLE.union(Kinds::LIBRARY));
    let Ok(copy) = file.try_clone() else { return either };
    let data = &ReadCache::new(copy);
    match FileKind::parse(data) {
        Ok(FileKind::Elf32) => kinds_in::<FileHeader32<Endianness>, _>(data),
        Ok(FileKind::Elf64) => kinds_in::<FileHeader64<Endianness>, _>(data),
        _ => either,
    }
}

fn kinds_in<'data, Elf, R>(data: R) -> Option<Kinds>
where
    Elf: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let either = Kinds::EXECUTABLE.union(Kinds::LIBRARY);
    let Ok(header) = Elf::parse(data) else { return Some(either) };
    let Ok(endian) = header.endian() else { return Some(either) };
    match header.e_type(endian) {
        ET_EXEC => Some(Kinds::EXECUTABLE),
        ET_DYN => Some(kinds_of_shared_object::<Elf, R>(header, endian, data).unwrap_or(either)),
        ET_REL => {
            let sections = header.sections(endian, data).ok()?;
            sections.section_by_name(endian, b".modinfo").map(|_| Kinds::MODULE)
        }
        _ => None,
    }
}

/// Position-independent programs and libraries are of one type. The linker marks programs since
/// 2018 (`DF_1_PIE`); before that, a program has an interpreter and no name of its own. libc.so.6
/// has both and can be used as both.
fn kinds_of_shared_object<'data, Elf, R>(
    header: &Elf,
    endian: Endianness,
    data: R,
) -> object::Result<Kinds>
where
    Elf: FileHeader<Endian = Endianness>,
    R: ReadRef<'data>,
{
    let (mut has_interpreter, mut has_name, mut is_program) = (false, false, false);
    for segment in header.program_headers(endian, data)? {
        has_interpreter |= segment.p_type(endian) == PT_INTERP;
        for entry in segment.dynamic(endian, data)?.unwrap_or_default() {
            let (tag, value) = (entry.d_tag(endian).into(), entry.d_val(endian).into());
            has_name |= tag == DT_SONAME;
            is_program |= tag == DT_FLAGS_1 && value & u64::from(DF_1_PIE) != 0;
        }
    }
    let has_entry = header.e_entry(endian).into() != 0;
    Ok(match (is_program, has_interpreter, has_name) {
        (true, _, _) | (_, true, false) => Kinds::EXECUTABLE,
        (_, true, true) => Kinds::EXECUTABLE.union(Kinds::LIBRARY),
        (_, false, true) => Kinds::LIBRARY,
        // Either a plugin without a name, or a static program from an old linker.
        (_, false, false) if has_entry => Kinds::EXECUTABLE.union(Kinds::LIBRARY),
        (_, false, false) => Kinds::LIBRARY,
    })
}
