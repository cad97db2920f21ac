//! Calls of the kernel's own functions (kfuncs), which neither the compiler nor aya know.
//!
//! The object calls numbers that no helper has. They are made calls of the kernel's functions here, before
//! the object is loaded, where the kernel has them. Elsewhere the call for fs-verity stays as it is: the
//! program does not come there, so the verifier cuts it out.

use portcullis_common::{FSVERITY_CALL, LOOK_CALL};

/// `BPF_JMP | BPF_CALL` (linux/bpf.h).
const CALL: u8 = 0x85;

/// The registers' byte of a call of a function of the kernel: `BPF_PSEUDO_KFUNC_CALL` as the source.
const OF_THE_KERNEL: u8 = 2 << 4;

/// `r0 = r1`: `BPF_ALU64 | BPF_MOV | BPF_X`.
const SAME: [u8; 8] = [0xbf, 1 << 4, 0, 0, 0, 0, 0, 0];

/// The numbers that functions of the running kernel have in its type information.
#[derive(Clone, Copy, Debug, Default)]
pub struct Functions {
    /// Gives the fs-verity digest of a file; `None` if it is not to be asked.
    pub fsverity: Option<u32>,
    /// Has the verifier only look through a pointer; `None` if that makes no difference to it.
    pub look: Option<u32>,
}

/// The object with calls of these functions.
pub fn with(object: &[u8], functions: Functions) -> Vec<u8> {
    let mut object = object.to_vec();
    let (fsverity, look) = (call(0, FSVERITY_CALL), call(0, LOOK_CALL));
    let asks_fsverity = functions.fsverity.map_or(fsverity, of_the_kernel);
    let looks = functions.look.map_or(SAME, of_the_kernel);
    // Sections of instructions, and so instructions, begin at multiples of eight.
    let (instructions, _) = object.as_chunks_mut();
    for found in instructions {
        if *found == fsverity {
            *found = asks_fsverity;
        } else if *found == look {
            *found = looks;
        }
    }
    object
}

fn of_the_kernel(function: u32) -> [u8; 8] {
    call(OF_THE_KERNEL, function)
}

/// A call; for machines that count bits from the lowest, as the object is made for.
fn call(registers: u8, number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [CALL, registers, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_the_function_in_for_each_call_and_nothing_else() {
        let (fsverity, look) = (call(0, FSVERITY_CALL), call(0, LOOK_CALL));
        let helper = call(0, 5);
        let object = [fsverity, helper, look, fsverity].concat();
        let without = [fsverity, helper, SAME, fsverity].concat();
        assert_eq!(with(&object, Functions::default()), without);
        let kernel = call(0x20, 0x0102_0304);
        assert_eq!(kernel, [0x85, 0x20, 0, 0, 4, 3, 2, 1]);
        let functions = Functions { fsverity: Some(0x0102_0304), look: Some(7) };
        assert_eq!(with(&object, functions), [kernel, helper, call(0x20, 7), kernel].concat());
    }
}
