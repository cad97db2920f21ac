//! The smallest program there is, made on the spot: it exits with a code and touches nothing.

use anyhow::{Result, bail};

/// `exit(code)` in machine code, and the ELF machine number, for the guest's architecture.
fn exit_code(code: u8) -> Result<(Vec<u8>, u16)> {
    Ok(match std::env::consts::ARCH {
        // mov edi, code; mov eax, 60; syscall
        "x86_64" => (vec![0xbf, code, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05], 62),
        // mov x0, code; mov x8, 93; svc 0
        "aarch64" => {
            let mov = |register: u32, value: u32| 0xd280_0000 | value << 5 | register;
            let words = [mov(0, u32::from(code)), mov(8, 93), 0xd400_0001];
            (words.iter().flat_map(|word| word.to_le_bytes()).collect(), 183)
        }
        other => bail!("no machine code for {other}"),
    })
}

/// A static program that exits with `code`, followed by `padding` bytes that make its digest and
/// its size what the caller wants. It has the three segments of what a linker makes: constants,
/// code, data.
pub fn program(code: u8, padding: &[u8]) -> Result<Vec<u8>> {
    const BASE: u64 = 0x40_0000;
    const PAGE: u64 = 0x1_0000; // the largest page of any architecture
    const SEGMENTS: u16 = 3;
    const HEADERS: u64 = 64 + 56 * SEGMENTS as u64;
    const READ: u32 = 4;
    let (machine_code, machine) = exit_code(code)?;
    let length = HEADERS + machine_code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(2u16.to_le_bytes()); // an executable
    elf.extend(machine.to_le_bytes());
    elf.extend(1u32.to_le_bytes());
    for offset in [BASE + PAGE + HEADERS, 64, 0] {
        elf.extend(offset.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend(0u32.to_le_bytes());
    for size in [64, 56, SEGMENTS, 0, 0, 0] {
        elf.extend(size.to_le_bytes());
    }
    // All three show the same bytes, at an address and with permissions of their own.
    for (index, permissions) in [READ, READ | 1, READ | 2].into_iter().enumerate() {
        let address = BASE + PAGE * index as u64;
        elf.extend(1u32.to_le_bytes());
        elf.extend(permissions.to_le_bytes());
        for number in [0, address, address, length, length, PAGE] {
            elf.extend(number.to_le_bytes());
        }
    }
    elf.extend(machine_code);
    elf.extend(padding);
    Ok(elf)
}
