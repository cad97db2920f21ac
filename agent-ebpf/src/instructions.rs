//! What the programs need and Rust does not offer for BPF targets, written out as instructions.
//!
//! Atomic read-modify-write on map values: the targets declare no compare-and-swap, while the
//! kernel has had it since 5.12. And a branch that stays one.

use core::{arch::asm, mem::transmute};

use portcullis_common::{LOOK_CALL, Outcome, Reason};

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
/// not null, and cuts out the branch of a comparison with 0 (`reg_not_null` in
/// kernel/bpf/verifier.c): the null pointer is then dereferenced, and the kernel dies. The
/// difference of two pointers, here of one and itself, is a number that it knows nothing about.
#[inline(always)]
pub fn is_null<T>(argument: *const T) -> bool {
    let mut null = 1u64;
    // SAFETY: changes nothing but registers.
    unsafe {
        asm!(
            "{zero} = {argument}",
            "{zero} -= {argument}",
            "if {argument} == {zero} goto +1",
            "{null} = 0",
            argument = in(reg) argument,
            zero = out(reg) _,
            null = inout(reg) null,
            options(nostack, nomem),
        );
    }
    null != 0
}

/// The same number, of which the verifier knows nothing any more: it would follow every value that
/// it knows on to the end of the program, which 5.10 gives up.
#[inline(always)]
pub fn any(number: u64) -> u64 {
    let mut same = number;
    // SAFETY: changes nothing but registers. Call 5 is `bpf_ktime_get_ns`, whose result is any
    // number to the verifier, and so is that number exclusive-or itself.
    unsafe {
        asm!(
            "call 5",
            "r1 = r0",
            "r0 ^= r1",
            "{same} += r0",
            same = inout(reg) same,
            out("r0") _,
            out("r1") _,
            out("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
            options(nostack, nomem),
        );
    }
    same
}

/// The same pointer, of which the verifier only knows that it may be read through, as a pointer to the type
/// of that number in the kernel's BTF. What is reached through it may only be looked at: no helper takes it.
///
/// From 6.3 the verifier looks for names in all of the kernel's types, up to four times, whenever a pointer
/// is followed that it trusts (`btf_nested_type_is_trusted`): some 13 million instructions on 6.12.
#[inline(always)]
pub fn only_to_look<T>(pointer: *const T, kind: u32) -> *const T {
    let same;
    // SAFETY: changes nothing but registers. The agent has made this the call of
    // `void *bpf_rdonly_cast(const void *obj__ign, u32 btf_id__k)`, or a move.
    unsafe {
        asm!(
            "call {look}",
            look = const LOOK_CALL,
            inout("r1") pointer => _,
            inout("r2") u64::from(kind) => _,
            lateout("r0") same,
            out("r3") _,
            out("r4") _,
            out("r5") _,
            options(nostack, nomem, pure),
        );
    }
    same
}

/// The same reason, of which the verifier knows nothing any more.
#[inline(always)]
pub fn any_reason(reason: Reason) -> Reason {
    // SAFETY: `any` gives back the number that it was given.
    unsafe { transmute::<u8, Reason>(any(reason as u64) as u8) }
}

/// The same outcome, likewise.
#[inline(always)]
pub fn any_outcome(outcome: Outcome) -> Outcome {
    // SAFETY: as above.
    unsafe { transmute::<u8, Outcome>(any(outcome as u64) as u8) }
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
