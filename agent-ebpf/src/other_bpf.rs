//! The gate at BPF programs that others than the agent load. They do not reach what the shield guards,
//! but can refuse more than the gates do, or read the kernel's memory.

use portcullis_common::{Active, BpfLoad, Choices, Gate, Kinds, Outcome, Reason};

use crate::{
    appraisal::Appraisal,
    guarded::{is_agent, runs_agent_program},
    instructions,
    judge::{Hook, count_outcome, outcome},
    layout::{bpf_attribute, look_at_own_program},
    maps::active,
    report::{Report, report_load},
};

/// What the programs read of a request to load one, as words of the `union bpf_attr` (linux/bpf.h, 5.10
/// to 7.2; part of the system calls, so it stays).
const KIND: usize = 0;
const NAME: usize = 12;
const ATTACH: usize = 17;

/// Decides about a program that the running process would load. A function of its own, so that other
/// calls do not pay for saving registers. The union is the kernel's own copy, so that nobody can change
/// it afterwards.
///
/// # Safety
/// `attributes` is the hook's `union bpf_attr *`.
#[inline(never)]
pub unsafe fn loaded(attributes: *const u32) -> i32 {
    let active = active();
    if active == Active::NONE
        || active.choices().contains(Choices::OTHER_BPF_ALLOWED)
        || is_agent()
        || runs_agent_program()
    {
        return 0;
    }
    let outcome = if active.choices().contains(Choices::OTHER_BPF_DENIED) {
        outcome(active, true)
    } else {
        Outcome::Report
    };
    let outcome = instructions::any_outcome(outcome);
    let reason = Reason::OtherBpf;
    count_outcome(Gate::Shield, outcome, reason);
    let hook = Hook { gate: Gate::Shield, sleeps: false, hashes: false };
    let appraisal = Appraisal::new(active);
    let told = Report { hook, outcome, reason, wanted: Kinds::NONE, appraisal: &appraisal };
    // SAFETY: by the contract; the program is a pointer that the verifier tracks, of which null and stale
    // ones read as zero.
    unsafe {
        let word = |at| bpf_attribute(attributes, at);
        // By words: each lies within one member of whichever struct of the union the verifier takes.
        let name = [word(NAME), word(NAME + 1), word(NAME + 2), word(NAME + 3)];
        let load = BpfLoad {
            kind: word(KIND),
            attach: word(ATTACH),
            name: core::mem::transmute::<[u32; 4], [u8; 16]>(name),
        };
        report_load(&told, look_at_own_program(), &load);
    }
    instructions::refusal(outcome as u8 == Outcome::Deny as u8)
}
