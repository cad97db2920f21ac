//! What the shield guards, and from whom: the maps that say so, and who is the agent.
//!
//! Being the agent takes two steps. A process that was started from a listed binary of the agent may
//! get hold of the maps, and that is all. With them it enters itself among the agents, which only
//! `run` and `stop` do once they know that they may; from then on it is one, until it ends.

use aya_ebpf::{
    Global,
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use core::ffi::c_void;
use portcullis_common::{Authority, Digest, FileId, Process};

use crate::{
    appraisal::load_word,
    layout::{
        Inode, TASKS_ARE_COPIED, Task, current_process, current_task, inode_filesystem,
        inode_number, own_program, program_of, task_is_traced, task_pid, task_started,
    },
    maps::VERDICTS,
};

/// When each agent was started, by its process id (thread group). Those that have ended stay: no
/// other process will ever have both numbers.
#[btf_map(name = "PCULLIS_AGENTS")]
static AGENTS: HashMap<u32, u64, 256> = HashMap::new();

/// Digests of the agent's binary: of the one that runs, and those that the policy names.
#[btf_map(name = "PCULLIS_AGENT_PROGRAMS")]
static AGENT_PROGRAMS: HashMap<Digest, u8, 64> = HashMap::new();

/// The binary itself, for kernels where a program cannot be asked for its verdict. Whoever opens it
/// for writing takes it out.
#[btf_map(name = "PCULLIS_AGENT_FILES")]
static AGENT_FILES: HashMap<FileId, u8, 16> = HashMap::new();

/// Programs and links of ours, by [`ObjectKind`] and id.
#[btf_map(name = "PCULLIS_OBJECTS")]
static OBJECTS: HashMap<u32, u8, 512> = HashMap::new();

/// Files and folders, with what is guarded of them.
#[btf_map(name = "PCULLIS_FOLDERS")]
static FOLDERS: HashMap<FileId, u8, 64> = HashMap::new();

/// Mounts that the pins lie on or below, by the address of their `struct vfsmount`, with the round
/// in which the agent has shown them.
#[btf_map(name = "PCULLIS_MOUNTS")]
static MOUNTS: HashMap<u64, u64, 64> = HashMap::new();

/// The round in which the agent is showing mounts.
#[btf_map(name = "PCULLIS_ROUND")]
static ROUND: Array<u64, 1> = Array::new();

/// By whose word the gates are in force. Only for the next agent.
#[btf_map(name = "PCULLIS_AUTHORITY")]
static AUTHORITY: Array<Authority, 1> = Array::new();

/// Device numbers of the filesystems that the agent's runtime folder, its state and its high-water marks
/// are on, in the kernel's encoding; 0 for none.
#[unsafe(no_mangle)]
static STATE_DEVICES: Global<[u32; 5]> = Global::new([0; 5]);

/// What [`OBJECTS`] tells apart, in the upper bits of its keys.
#[derive(Clone, Copy)]
pub enum ObjectKind {
    Program = 1 << 30,
    Link = 2 << 30,
}

/// Whether the running process is an agent.
#[inline(always)]
pub fn is_agent() -> bool {
    let Process { started, pid, .. } = current_process();
    is_known(pid, started)
}

#[inline(always)]
fn is_known(pid: u32, started: u64) -> bool {
    // SAFETY: points to a map value.
    AGENTS.get_ptr(&pid).is_some_and(|known| unsafe { known.read_volatile() } == started)
}

/// Whether another task belongs to an agent.
///
/// # Safety
/// `task` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn is_agents_task(task: *const Task) -> bool {
    // SAFETY: by the contract.
    unsafe {
        let pid = task_pid(task);
        // Most are not, and their start need not be looked up.
        AGENTS.get_ptr(&pid).is_some() && is_known(pid, task_started(task))
    }
}

/// Whether the running process was started from a binary of the agent, and nobody steers it as a
/// debugger does.
#[inline(always)]
pub fn runs_agent_program() -> bool {
    // SAFETY: the task is the current one, whose program stays as long as it runs.
    unsafe { !task_is_traced(current_task()) && is_agent_program(own_program()) }
}

/// The same of another task, whose memory cannot go away now.
///
/// # Safety
/// `task` is a kernel pointer that the verifier tracks, and locked.
#[inline(always)]
pub unsafe fn task_runs_agent_program(task: *const Task) -> bool {
    // SAFETY: by the contract.
    unsafe { is_agent_program(program_of(task)) }
}

/// Whether a file is a binary of the agent, by its content.
///
/// # Safety
/// `inode` is null, or a kernel pointer of a program that runs or is just starting.
#[inline(always)]
pub unsafe fn is_agent_program(inode: *const Inode) -> bool {
    // SAFETY: by the contract. The storage helper takes null for no inode, and what does not exist
    // reads as zeros.
    unsafe {
        if TASKS_ARE_COPIED.load() != 0 {
            return AGENT_FILES.get_ptr(&file_id(inode)).is_some();
        }
        let verdict = VERDICTS.get_ptr_mut(inode.cast_mut());
        !verdict.is_null()
            && load_word(verdict).is_known()
            && AGENT_PROGRAMS.get_ptr(&(*verdict).digest).is_some()
    }
}

/// A file's content may change, so it is no binary of the agent any more.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn forget_agent_file(inode: *const Inode) {
    if TASKS_ARE_COPIED.load() != 0 {
        // Most files never were.
        // SAFETY: by the contract.
        let file = unsafe { file_id(inode) };
        let _ = AGENT_FILES.remove(&file);
    }
}

/// Whether a program or link is one of ours.
#[inline(always)]
pub fn is_object(kind: ObjectKind, id: u32) -> bool {
    OBJECTS.get_ptr(&(kind as u32 | id)).is_some()
}

/// What is guarded of a file or folder: bits of [`FileId`].
///
/// # Safety
/// `inode` is null or a kernel pointer that the verifier tracks, on the filesystem on `device`.
#[inline(always)]
pub unsafe fn guarded_of(inode: *const Inode, device: u32) -> u8 {
    if inode.is_null() {
        return 0;
    }
    // SAFETY: by the contract.
    let folder = unsafe { FileId { inode: inode_number(inode), device, reserved: 0 } };
    // SAFETY: points to a map value.
    FOLDERS.get_ptr(&folder).map_or(0, |guarded| unsafe { guarded.read_volatile() })
}

/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn file_id(inode: *const Inode) -> FileId {
    // SAFETY: by the contract.
    unsafe {
        FileId { inode: inode_number(inode), device: inode_filesystem(inode).device, reserved: 0 }
    }
}

/// Whether a filesystem is one that the agent has a folder on which is guarded.
#[inline(always)]
pub fn is_state_device(device: u32) -> bool {
    let [runtime, state, first, second, third] = STATE_DEVICES.load();
    device != 0
        && (device == runtime
            || device == state
            || device == first
            || device == second
            || device == third)
}

/// Whether the pins lie on or below this mount.
#[inline(always)]
pub fn is_guarded_mount(mount: *const c_void) -> bool {
    MOUNTS.get_ptr(&(mount as u64)).is_some()
}

/// Takes in a mount that the agent shows.
#[inline(always)]
pub fn note_mount(mount: *const c_void) {
    let Some(round) = ROUND.get_ptr(0) else { return };
    // SAFETY: points to a map value.
    let round = unsafe { round.read_volatile() };
    // Without room for it the agent sees that it is missing.
    let _ = MOUNTS.insert(&(mount as u64), &round, 0);
}
