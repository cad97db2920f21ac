//! Calls of the kernel's own functions (kfuncs), which neither the compiler nor aya know.
//!
//! The object calls a number that no helper has. It is made the call of the kernel's function here,
//! before the object is loaded, where the kernel has the function. Elsewhere it stays as it is: the
//! program does not come there, so the verifier cuts it out.

use std::borrow::Cow;

use portcullis_common::FSVERITY_CALL;

/// `BPF_JMP | BPF_CALL` (linux/bpf.h).
const CALL: u8 = 0x85;

/// The registers' byte of a call of a function of the kernel: `BPF_PSEUDO_KFUNC_CALL` as the source.
const OF_THE_KERNEL: u8 = 2 << 4;

/// The object in which `function`, by its number in the kernel's type information, gives the fs-verity
/// digest; `None` leaves it as it is.
pub fn with_fsverity(object: &[u8], function: Option<u32>) -> Cow<'_, [u8]> {
    let Some(function) = function else { return Cow::Borrowed(object) };
    let mut object = object.to_vec();
    let stand_in = instruction(0, FSVERITY_CALL);
    // Sections of instructions, and so instructions, begin at multiples of eight.
    let (instructions, _) = object.as_chunks_mut();
    for found in instructions.iter_mut().filter(|found| **found == stand_in) {
        *found = instruction(OF_THE_KERNEL, function);
    }
    Cow::Owned(object)
}

/// A call; for machines that count bits from the lowest, as the object is made for.
fn instruction(registers: u8, number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [CALL, registers, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_the_function_in_for_each_call_and_nothing_else() {
        let stand_in = instruction(0, FSVERITY_CALL);
        let helper = instruction(0, 5);
        let object = [stand_in, helper, stand_in].concat();
        assert_eq!(with_fsverity(&object, None), object);
        let kernel = instruction(0x20, 0x0102_0304);
        assert_eq!(kernel, [0x85, 0x20, 0, 0, 4, 3, 2, 1]);
        let expected = [kernel, helper, kernel].concat();
        assert_eq!(with_fsverity(&object, Some(0x0102_0304)).into_owned(), expected);
    }
}
