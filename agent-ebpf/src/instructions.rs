//! What the programs need and Rust does not offer for BPF targets, written out as instructions.
//!
//! Atomic read-modify-write on map values: the targets declare no compare-and-swap, while the
//! kernel has had it since 5.12. And a branch that stays one.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf};

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

/// Whether a hook's argument is null.
///
/// From 6.7 the verifier takes it for granted that an argument which is not declared nullable is
/// not null, and cuts out the branch of a plain comparison (`reg_not_null` in
/// kernel/bpf/verifier.c): the null pointer is then dereferenced, and the kernel dies. The
/// difference of two pointers is a number that it knows nothing about.
#[inline(always)]
pub fn is_null<T>(argument: *const T) -> bool {
    // SAFETY: the helpers have no precondition; both give the same pointer, one as a number.
    let (task, address) = unsafe { (bpf_get_current_task_btf(), bpf_get_current_task()) };
    let mut number = argument as u64;
    // SAFETY: changes nothing but the register.
    unsafe {
        asm!(
            "{number} -= {task}",
            number = inout(reg) number,
            task = in(reg) task,
            options(nostack, nomem),
        );
    }
    number.wrapping_add(address) == 0
}

/// `-EPERM` if `refuse`, else 0: what a gate returns.
///
/// The compiler would compute this without a branch, and from 6.9 the verifier refuses programs of
/// which it does not know that they return 0 or an error number.
#[inline(always)]
pub fn refusal(refuse: bool) -> i32 {
    const EPERM: i64 = 1;
    let mut answer = 0i64;
    // SAFETY: changes nothing but the register.
    unsafe {
        asm!(
            "if {refuse} == 0 goto +1",
            "{answer} = {eperm}",
            refuse = in(reg) u64::from(refuse),
            answer = inout(reg) answer,
            eperm = const -EPERM,
            options(nostack, nomem),
        );
    }
    answer as i32
}
