//! Takes everything from this process that reading from one socket does not need, for good.
//!
//! What is left: to read, to write and to wait at descriptors that are open, memory within a bound, and time
//! within a bound. Each layer holds without the others: without Landlock the filter still lets nothing be
//! opened, and without the filter there are neither capabilities nor another program to get them from.

use std::{collections::BTreeMap, fmt, fs, io};

use rustix::{
    process::{
        DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, getpid, set_dumpable_behavior,
        set_parent_process_death_signal, setrlimit,
    },
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities, set_no_new_privs, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    },
};
use seccompiler::{
    BackendError, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};
use thiserror::Error;

use super::confine::{ConfineError, Confined, Kept, confine};

/// `nobody`, where the user can be changed.
const NOBODY: u32 = 65534;

/// Processor time, in seconds: a policy of a million digests takes seconds.
const SECONDS: u64 = 300;

/// Bytes of memory: half of what the device has, within these bounds.
const MEMORY: [u64; 2] = [256 << 20, 2 << 30];

/// What it may call: nothing that opens, makes or reaches anything.
const CALLS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Why something was not taken away. Then nothing is read.
#[derive(Debug, Error)]
pub enum AloneError {
    /// The kernel does not do it.
    #[error("{what}: {source}")]
    Kernel {
        /// What it was to do.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The files and sockets of others.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// The filter cannot be made.
    #[error("the filter of system calls: {0}")]
    Filter(#[from] BackendError),
    /// The kernel does not take the filter.
    #[error("the filter of system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

/// What was taken away.
#[derive(Clone, Copy, Debug)]
pub struct Alone {
    confined: Confined,
    /// Whether it runs as nobody.
    is_nobody: bool,
}

impl fmt::Display for Alone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.is_nobody { "as nobody" } else { "as the agent's user" };
        write!(f, "{user}, without capabilities, {} system calls; {}", CALLS.len(), self.confined)
    }
}

fn kernel<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> AloneError {
    move |source| AloneError::Kernel { what, source: source.into() }
}

/// Leaves this process alone with its first three descriptors. It must not have other threads yet.
///
/// # Errors
/// If something cannot be taken away that this kernel can take. The process must not go on then.
pub fn alone() -> Result<Alone, AloneError> {
    close_others()?;
    // Rather this one than the agent, or anything else on the device, when memory runs out.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    set_no_new_privs(true).map_err(kernel("no new privileges"))?;
    let confined = confine(Kept::default())?;
    let is_nobody = give_up_rights()?;
    // After the user was changed, which sets both back.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(kernel("not dumpable"))?;
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(kernel("ending with the agent"))?;
    bound()?;
    apply_filter(&filter()?)?;
    Ok(Alone { confined, is_nobody })
}

/// Closes everything but the first three descriptors.
fn close_others() -> Result<(), AloneError> {
    // SAFETY: nothing in this process owns a descriptor above the second: it has just been started.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if closed == 0 {
        Ok(())
    } else {
        Err(kernel("closing descriptors")(io::Error::last_os_error()))
    }
}

/// Capabilities, and the user if a capability lets it be changed. Returns whether it was.
fn give_up_rights() -> Result<bool, AloneError> {
    let held = capabilities(None).map_err(kernel("asking for capabilities"))?.effective;
    if held.contains(CapabilitySet::SETPCAP) {
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            // The first that this kernel does not have.
            if remove_capability_from_bounding_set(one).is_err() {
                break;
            }
        }
    }
    let is_nobody = held.contains(CapabilitySet::SETUID | CapabilitySet::SETGID);
    if is_nobody {
        let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[]).map_err(kernel("giving up groups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(kernel("changing the group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(kernel("changing the user"))?;
    }
    clear_ambient_capability_set().map_err(kernel("ambient capabilities"))?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).map_err(kernel("capabilities"))?;
    Ok(is_nobody)
}

/// Bounds of memory, time and everything that there is none of.
fn bound() -> Result<(), AloneError> {
    let info = rustix::system::sysinfo();
    let all = u64::from(info.mem_unit).saturating_mul(info.totalram as u64);
    let memory = (all / 2).clamp(MEMORY[0], MEMORY[1]);
    let bounds = [
        (Resource::As, memory, memory),
        // The first has it told by a signal of its own.
        (Resource::Cpu, SECONDS, SECONDS + 10),
        (Resource::Fsize, 0, 0),
        (Resource::Core, 0, 0),
        (Resource::Nproc, 0, 0),
        (Resource::Nofile, 0, 0),
    ];
    for (resource, soft, hard) in bounds {
        let limit = Rlimit { current: Some(soft), maximum: Some(hard) };
        setrlimit(resource, limit).map_err(kernel("bounds"))?;
    }
    Ok(())
}

fn filter() -> Result<seccompiler::BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let no_code = |argument| {
        let executable = u64::from(libc::PROT_EXEC.cast_unsigned());
        let is = SeccompCondition::new(argument, Length::Dword, Is::MaskedEq(executable), 0)?;
        Ok::<_, BackendError>(vec![SeccompRule::new(vec![is])?])
    };
    rules.insert(libc::SYS_mmap, no_code(2)?);
    rules.insert(libc::SYS_mprotect, no_code(2)?);
    // By which a program ends itself when something is wrong in it.
    let own = u64::from(getpid().as_raw_nonzero().get().cast_unsigned());
    let itself = SeccompCondition::new(0, Length::Dword, Is::Eq, own)?;
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![itself])?]);
    let architecture = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?;
    filter.try_into()
}
