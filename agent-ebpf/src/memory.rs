//! The gate at memory that becomes executable otherwise than by mapping a file as code.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Active, Choices, Gate, Kinds, Outcome, Reason};

use crate::{
    appraisal::Appraisal,
    instructions,
    judge::{Hook, count_outcome, judge, outcome},
    layout::{Vma, look_at_own_program, program_key, vma_file, vma_flags, vma_own_pages},
    maps::{active, digest_of_jit_program, rule, tell_once},
    report::{Report, report_without_path},
};

/// `PROT_WRITE` and `PROT_EXEC` (linux/mman.h).
const PROT_WRITE: u64 = 2;
pub const PROT_EXEC: u64 = 4;

/// `VM_WRITE`, `VM_EXEC` and `VM_SHARED` (include/linux/mm.h, 5.10 to 7.2). Macros, so BTF does not
/// have them; the self-test proves what depends on them.
const VM_WRITE: u64 = 2;
const VM_EXEC: u64 = 4;
const VM_SHARED: u64 = 8;

const HOOK: Hook = Hook { gate: Gate::Memory, sleeps: false, hashes: false };

/// `int file_mprotect(struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)`, 5.10
/// to 7.2, sleepable in none. `prot` is what takes effect, as in `mmap_file`.
///
/// A mapping of a file that becomes code needs the verdict that a mapping as code would have made:
/// here none can be made. If the mapping is private and was written to, or can be from now on, what
/// runs is not the file's content, however the file was judged.
#[lsm(hook = "file_mprotect")]
pub fn gate_memory(ctx: LsmContext) -> i32 {
    let prot: u64 = ctx.arg(2);
    if prot & PROT_EXEC == 0 { 0 } else { becomes_code(ctx.arg(0), prot) }
}

/// A function of its own, so that other calls do not pay for saving the registers that it needs.
#[inline(never)]
fn becomes_code(vma: *const Vma, prot: u64) -> i32 {
    // SAFETY: the hook's first argument is a `struct vm_area_struct *`.
    let (file, flags, own_pages) = unsafe { (vma_file(vma), vma_flags(vma), vma_own_pages(vma)) };
    let is_code = flags & VM_EXEC != 0;
    if file.is_null() {
        return if is_code { 0 } else { judge_memory(Reason::AnonymousMemory) };
    }
    if !is_code {
        // SAFETY: a walked pointer, which the verifier tracks; the program is not sleepable.
        let answer = unsafe { judge(HOOK, file, Kinds::LIBRARY) };
        if answer != 0 {
            return answer;
        }
    }
    let becomes_writable = prot & PROT_WRITE != 0 && !(is_code && flags & VM_WRITE != 0);
    let was_written = own_pages != 0 && !is_code;
    if flags & VM_SHARED == 0 && (becomes_writable || was_written) {
        judge_memory(Reason::ChangedMapping)
    } else {
        0
    }
}

/// Decides whether the current process may have executable memory whose content no file has. The
/// policy's choice, and programs with [`Kinds::JIT`] always may. Returns what the hook returns.
///
/// Each program is told of once under each policy, but for refusals: JIT compilers do it all day.
#[inline(always)]
pub fn judge_memory(reason: Reason) -> i32 {
    let active = active();
    if active == Active::NONE || active.choices().contains(Choices::MEMORY_ALLOWED) {
        return 0;
    }
    let inode = look_at_own_program();
    // SAFETY: a pointer that the verifier tracks, of which null and stale ones read as zero.
    let program = unsafe { program_key(inode) };
    let mut appraisal = Appraisal::new(active);
    if let Some(digest) = digest_of_jit_program(&program) {
        let rule = rule(active.generation(), &digest);
        if rule.is_some_and(|rule| rule.denied == 0 && rule.kinds.intersects(Kinds::JIT)) {
            return 0;
        }
        appraisal.digest = digest;
    }
    appraisal.forget(instructions::any(0));
    let outcome = if active.choices().contains(Choices::MEMORY_DENIED) {
        outcome(active, true)
    } else {
        Outcome::Report
    };
    let outcome = instructions::any_outcome(outcome);
    let denied = outcome as u8 == Outcome::Deny as u8;
    count_outcome(Gate::Memory, outcome, reason);
    if !tell_once(&program, active.generation()) || denied {
        let told =
            Report { hook: HOOK, outcome, reason, wanted: Kinds::JIT, appraisal: &appraisal };
        // SAFETY: as above.
        unsafe { report_without_path(&told, Some(inode)) };
    }
    instructions::refusal(denied)
}
