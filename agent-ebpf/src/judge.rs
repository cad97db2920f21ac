//! The one decision function.

use portcullis_common::{Active, Counter, Gate, Kinds, Outcome, Reason, Verdict};

use crate::{
    appraisal::{Appraisal, appraise, load_word},
    devices::verified,
    instructions,
    layout::{File, Inode, file_inode, inode_writers, is_own_program, program_key},
    maps::{VERDICTS, active, count, forget_jit_program, remember_jit_program},
    overlay,
    report::{Report, report, report_without_path},
};

/// What a gate is and can do.
#[derive(Clone, Copy)]
pub struct Hook {
    pub gate: Gate,
    /// Whether the program is sleepable, so that it knows paths.
    pub sleeps: bool,
    /// Whether it can also hash, for which the file must be fully open.
    pub hashes: bool,
}

/// Decides whether `file` may be used as one of the `wanted` kinds. Returns what the hook returns.
///
/// On the hot path this is a lookup in the inode's storage and two comparisons: the verdict is of
/// the policy in force, and nobody holds the file open for writing.
///
/// # Safety
/// `file` is the hook's own pointer, not null, or, if the program is not sleepable, one that the
/// verifier tracks.
#[inline(always)]
pub unsafe fn judge(hook: Hook, file: *const File, wanted: Kinds) -> i32 {
    let active = active();
    if active == Active::NONE {
        return 0;
    }
    // SAFETY: the contract of this function.
    unsafe {
        let inode = file_inode(file);
        let verdict = VERDICTS.get_ptr_mut(inode);
        if !verdict.is_null() {
            let word = load_word(verdict);
            if word.is_of(active.generation())
                && inode_writers(inode) <= 0
                && (!word.is_of_merged_file() || is_current(verdict, file, inode, active))
                && covers(hook.gate, word.kinds(), wanted, inode)
                && (!word.is_verified() || still_verified(hook.gate, inode, active, wanted))
            {
                return 0;
            }
        }
        judge_in_full(hook, file, inode, wanted)
    }
}

/// Whether a verdict on a merged file of an overlay still is one on its content.
///
/// # Safety
/// `verdict` points into the inode's storage; `inode` is that of `file`.
#[inline(always)]
unsafe fn is_current(
    verdict: *const Verdict,
    file: *const File,
    inode: *const Inode,
    active: Active,
) -> bool {
    // SAFETY: by the contract.
    unsafe {
        (*verdict).layer_writes == overlay::writes()
            && overlay::check_layers(file, inode, active.generation()).is_ok()
    }
}

/// Whether a digest that is allowed as `kinds` may be used as `wanted`.
///
/// # Safety
/// `inode` is a kernel pointer.
#[inline(always)]
unsafe fn covers(gate: Gate, kinds: Kinds, wanted: Kinds, inode: *const Inode) -> bool {
    kinds.intersects(wanted)
        // SAFETY: by the contract.
        || (kinds.intersects(Kinds::EXECUTABLE) && unsafe { is_own_mapping(gate, inode) })
}

/// Whether trust in the filesystem, from which a verdict was made, still holds.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn still_verified(gate: Gate, inode: *const Inode, active: Active, wanted: Kinds) -> bool {
    // SAFETY: by the contract.
    unsafe {
        let own = if is_own_mapping(gate, inode) { Kinds::EXECUTABLE } else { Kinds::NONE };
        verified(inode, active.generation(), wanted.union(own)).is_some()
    }
}

/// Whether this is about a program's own segments, which the kernel maps as code during its exec,
/// and which the program may protect anew. That is use as an executable; for everybody else the
/// same file is a library.
///
/// # Safety
/// `inode` is a kernel pointer.
#[inline(always)]
unsafe fn is_own_mapping(gate: Gate, inode: *const Inode) -> bool {
    let maps = gate as u8 == Gate::Mapping as u8 || gate as u8 == Gate::Memory as u8;
    // SAFETY: by the contract.
    maps && unsafe { is_own_program(inode) }
}

/// The other path: no verdict of this policy yet, or one that refuses.
///
/// # Safety
/// As for [`judge`]; `inode` is the file's.
#[inline(always)]
unsafe fn judge_in_full(
    hook: Hook,
    file: *const File,
    inode: *mut Inode,
    mut wanted: Kinds,
) -> i32 {
    let gate = hook.gate;
    // SAFETY: the contract of this function.
    let is_own_mapping = unsafe { is_own_mapping(gate, inode) };
    if is_own_mapping {
        wanted = wanted.union(Kinds::EXECUTABLE);
    }
    let wanted = Kinds(instructions::any(u64::from(wanted.0)) as u8);
    // SAFETY: the contract of this function.
    unsafe {
        let mut appraisal = appraise(hook, file, inode, wanted);
        let zero = instructions::any(0);
        appraisal.forget(zero);
        let wanted = Kinds(wanted.0 ^ zero as u8);
        conclude(hook, file, inode, wanted, u64::from(is_own_mapping) ^ zero != 0, &appraisal)
    }
}

/// Refuses, in enforce mode, a use of `file` of which nothing can be known.
///
/// # Safety
/// As for [`judge`].
#[inline(always)]
pub unsafe fn cannot_decide(hook: Hook, file: *const File, wanted: Kinds, reason: Reason) -> i32 {
    let active = active();
    if active == Active::NONE {
        return 0;
    }
    let appraisal = Appraisal { reason: Some(reason), ..Appraisal::new(active) };
    // SAFETY: the contract of this function.
    unsafe { conclude(hook, file, file_inode(file), wanted, false, &appraisal) }
}

/// What an appraisal means for who asked, and telling of it.
///
/// # Safety
/// As for [`judge`]; `inode` is the file's.
#[inline(always)]
unsafe fn conclude(
    hook: Hook,
    file: *const File,
    inode: *const Inode,
    wanted: Kinds,
    is_own_mapping: bool,
    appraisal: &Appraisal,
) -> i32 {
    let gate = hook.gate;
    let reason = match appraisal.reason {
        None if wanted.is_empty() => Reason::UnknownUse,
        None if !appraisal.word.kinds().intersects(wanted) => appraisal.word.refusal(),
        None if appraisal.word.is_verified() => Reason::VerifiedFilesystem,
        None => Reason::Listed,
        Some(reason) => reason,
    };
    let reason = instructions::any_reason(reason);
    let refused =
        reason as u8 != Reason::Listed as u8 && reason as u8 != Reason::VerifiedFilesystem as u8;
    let outcome = instructions::any_outcome(outcome(appraisal.active, refused));
    // The verdict stands; everything from here on only tells of it.
    count_outcome(gate, outcome, reason);
    if gate as u8 == Gate::Exec as u8 {
        // SAFETY: the contract of this function.
        unsafe { note_program(inode, appraisal) };
    }
    let denies = instructions::any(u64::from(outcome as u8 == Outcome::Deny as u8)) != 0;
    // In audit mode a program that the exec gate has just reported goes on to be mapped.
    let is_told = is_own_mapping && appraisal.cached && outcome as u8 == Outcome::WouldDeny as u8;
    if !is_told {
        let told = Report { hook, outcome, reason, wanted, appraisal };
        // SAFETY: the contract of this function.
        unsafe { report(&told, file, inode) };
    }
    instructions::refusal(denies)
}

/// Decides about something that is no file, and so cannot be identified. Returns what the hook
/// returns.
#[inline(always)]
pub fn judge_without_file(gate: Gate, wanted: Kinds, reason: Reason) -> i32 {
    let active = active();
    if active == Active::NONE {
        return 0;
    }
    let outcome = outcome(active, true);
    count_outcome(gate, outcome, reason);
    let hook = Hook { gate, sleeps: false, hashes: false };
    let appraisal = Appraisal::new(active);
    let told = Report { hook, outcome, reason, wanted, appraisal: &appraisal };
    // SAFETY: there is no pointer.
    unsafe { report_without_path(&told, None) };
    instructions::refusal(outcome as u8 == Outcome::Deny as u8)
}

/// What comes of it under the policy in force.
#[inline(always)]
pub fn outcome(active: Active, refused: bool) -> Outcome {
    match (refused, active.enforces()) {
        (false, _) => Outcome::Allow,
        (true, false) => Outcome::WouldDeny,
        (true, true) => Outcome::Deny,
    }
}

/// Adds to the gate's numbers.
#[inline(always)]
pub fn count_outcome(gate: Gate, outcome: Outcome, reason: Reason) {
    let counter = match outcome {
        Outcome::Allow => Counter::Allowed,
        Outcome::WouldDeny => Counter::WouldDeny,
        Outcome::Deny => Counter::Denied,
        Outcome::Report => Counter::Reported,
    };
    count(gate, counter, 1);
    if reason.cannot_decide() {
        count(gate, Counter::CannotDecide, 1);
    }
}

/// Keeps what the memory gate wants to know of programs, which cannot ask their inode.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn note_program(inode: *const Inode, appraisal: &Appraisal) {
    // SAFETY: by the contract.
    let program = unsafe { program_key(inode) };
    if appraisal.word.kinds().intersects(Kinds::JIT) {
        remember_jit_program(&program, &appraisal.digest);
    } else {
        forget_jit_program(&program);
    }
}
