//! Atomic read-modify-write on map values.
//!
//! Rust offers none of these for BPF targets (they declare no compare-and-swap), while the kernel
//! has had them since 5.12, so they are written out as instructions.

use core::arch::asm;

/// Adds `amount` to `*number`.
///
/// # Safety
/// `number` points to an aligned map value.
#[inline(always)]
pub unsafe fn add(number: *const u64, amount: u64) {
    // SAFETY: by the contract; one instruction that writes eight bytes there.
    unsafe {
        asm!(
            "lock *(u64 *)({number} + 0) += {amount}",
            number = in(reg) number,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// Stores `new` in `*word`. What the program stored before is visible to whoever sees it: the
/// exchange is a full barrier, and BPF has no other before Linux 6.15.
///
/// # Safety
/// `word` points to an aligned map value.
#[inline(always)]
pub unsafe fn publish(word: *mut u64, new: u64) {
    // SAFETY: by the contract; one instruction that writes eight bytes there.
    unsafe {
        asm!(
            "{new} = xchg_64({word} + 0, {new})",
            word = in(reg) word,
            new = inout(reg) new => _,
            options(nostack),
        );
    }
}

/// Stores `new` in `*word` if that is zero. Returns what was there before.
///
/// # Safety
/// `word` points to an aligned map value.
#[inline(always)]
pub unsafe fn set_if_zero(word: *mut u64, new: u64) -> u64 {
    let before;
    // SAFETY: by the contract; one instruction that writes at most eight bytes there.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") 0u64 => before,
            options(nostack),
        );
    }
    before
}
