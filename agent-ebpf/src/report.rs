//! Puts what was decided into the ring. A full ring costs the event, which is counted, and
//! nothing else.

use aya_ebpf::{
    Global,
    bindings::path,
    helpers::{
        bpf_get_current_comm,
        generated::{
            bpf_d_path, bpf_get_current_cgroup_id, bpf_get_current_pid_tgid,
            bpf_get_current_uid_gid, bpf_ktime_get_boot_ns, bpf_ringbuf_submit,
        },
    },
};
use core::{mem::transmute, ptr::null_mut};
use portcullis_common::{
    ANCESTORS, Ancestor, BpfLoad, COMM_LEN, Counter, Event, EventHeader, Kinds, Outcome, PATH_LONG,
    PATH_SHORT, Reason,
};

use crate::{
    appraisal::Appraisal,
    instructions::any,
    judge::Hook,
    layout::{
        Dentry, File, Filesystem, Inode, current_task, dentry_parent, file_path, inode_filesystem,
        inode_number, inode_size, look_at_dentry, look_at_task, short_name, task_comm, task_parent,
        task_pid,
    },
    maps::{EVENTS, count},
    names::names,
};

/// 0 on kernels that do not give paths at these hooks (5.10), but only names.
#[unsafe(no_mangle)]
static GIVES_PATHS: Global<u32> = Global::new(1);

/// What is to be told.
pub struct Report<'a> {
    pub hook: Hook,
    pub outcome: Outcome,
    pub reason: Reason,
    pub wanted: Kinds,
    pub appraisal: &'a Appraisal,
}

/// The same as numbers that the verifier does not know, so that it follows one way through what
/// comes now and not one for every reason.
struct Told<'a> {
    hook: Hook,
    outcome: u8,
    reason: u8,
    wanted: Kinds,
    appraisal: &'a Appraisal,
}

impl<'a> Told<'a> {
    #[inline(always)]
    fn new(report: &Report<'a>) -> Self {
        Self {
            hook: report.hook,
            outcome: any(report.outcome as u64) as u8,
            reason: any(report.reason as u64) as u8,
            wanted: Kinds(any(u64::from(report.wanted.0)) as u8),
            appraisal: report.appraisal,
        }
    }
}

/// Sends the event, with room for a long path only if the path needs it.
///
/// # Safety
/// `file` and `inode` are kernel pointers that the verifier tracks.
#[inline(always)]
pub unsafe fn report(report: &Report<'_>, file: *const File, inode: *const Inode) {
    // SAFETY: by the contract.
    unsafe {
        if !report.hook.sleeps && GIVES_PATHS.load() != 0 {
            // `bpf_d_path` is for sleepable hooks and a few others; the agent looks the path up.
            return report_without_path(report, Some(inode));
        }
        let told = &Told::new(report);
        let (mut event, mut path_status) = with_path::<PATH_SHORT>(file, false);
        if path_status < 0 && event.is_null() {
            (event, path_status) = with_path::<PATH_LONG>(file, true);
        }
        if event.is_null() {
            count(told.hook.gate, Counter::Lost, 1);
            return;
        }
        let header = &raw mut (*event).header;
        fill(header, told, path_status);
        identify(header, inode);
        bpf_ringbuf_submit(event.cast(), 0);
    }
}

/// Sends the event without a path; without an inode, it is about something that is no file.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn report_without_path(report: &Report<'_>, inode: Option<*const Inode>) {
    let told = &Told::new(report);
    let Some(mut entry) = EVENTS.reserve_untyped::<Event<0>>(0) else {
        count(told.hook.gate, Counter::Lost, 1);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the ring gave room for the header, and by the contract.
    unsafe {
        let header = &raw mut (*event).header;
        fill(header, told, 0);
        match inode {
            Some(inode) => identify(header, inode),
            None => {
                (*header).inode = 0;
                (*header).size = 0;
                (*header).device = 0;
                (*header).filesystem = 0;
            }
        }
    };
    entry.submit(0);
}

/// Sends the event about a BPF program that somebody would load.
///
/// # Safety
/// `loader` is the program that the running process runs: a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn report_load(report: &Report<'_>, loader: *const Inode, load: &BpfLoad) {
    let told = &Told::new(report);
    let Some(mut entry) = EVENTS.reserve_untyped::<Event<{ BpfLoad::SIZE }>>(0) else {
        count(told.hook.gate, Counter::Lost, 1);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the ring gave room for the event, and by the contract.
    unsafe {
        let header = &raw mut (*event).header;
        fill(header, told, BpfLoad::SIZE as i32);
        (*header).bpf = 1;
        identify(header, loader);
        (&raw mut (*event).path).cast::<BpfLoad>().write(*load);
    }
    entry.submit(0);
}

/// Sends the event with the names of the file and of the folders above it, as far as they go, for hooks
/// that give no path. None of the names is copied, so that the strictest lockdown allows it; one of 32
/// bytes or more is wrong.
///
/// # Safety
/// `inode` and `dentry` are kernel pointers that the verifier tracks.
#[inline(always)]
pub unsafe fn report_with_names(report: &Report<'_>, inode: *const Inode, dentry: *const Dentry) {
    const ROOM: usize = Event::<PATH_SHORT>::NAME_ROOM;
    const { assert!(ROOM == size_of::<[u64; 4]>()) };
    let told = &Told::new(report);
    let Some(mut entry) = EVENTS.reserve_untyped::<Event<PATH_SHORT>>(0) else {
        count(told.hook.gate, Counter::Lost, 1);
        return;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the ring gave `size_of::<Event<PATH_SHORT>>()` writable bytes, and by the contract.
    unsafe {
        let mut dentry = look_at_dentry(dentry);
        let header = &raw mut (*event).header;
        fill(header, told, PATH_SHORT as i32);
        (*header).names = 1;
        identify(header, inode);
        let path = (&raw mut (*event).path).cast::<[u64; 4]>();
        let mut at = 0;
        while at < PATH_SHORT / ROOM {
            path.add(at).write(short_name(dentry));
            dentry = dentry_parent(dentry);
            at += 1;
        }
    }
    entry.submit(0);
}

/// An event in the ring with room for so long a path, which it has already, and what the path's helper
/// said. The event is null if the ring is full, and, unless it `is_last`, if it is too short; else the
/// caller has to submit it.
///
/// What is the same for all lengths is filled in by the caller, once: the verifier moves a program for each
/// branch that it cuts out of it, so that the length of programs costs more than its following them.
///
/// # Safety
/// `file` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn with_path<const PATH: usize>(file: *const File, is_last: bool) -> (*mut Event<0>, i32) {
    let Some(mut entry) = EVENTS.reserve_untyped::<Event<PATH>>(0) else {
        return (null_mut(), 0);
    };
    let event = entry.as_mut_ptr();
    // SAFETY: the ring gave `size_of::<Event<PATH>>()` writable bytes; the helpers write at most
    // `PATH` of them.
    let status = unsafe {
        let to = (&raw mut (*event).path).cast();
        if GIVES_PATHS.load() != 0 {
            bpf_d_path(file_path(file).cast_mut().cast::<path>(), to, PATH as u32)
        } else {
            names::<PATH>(file, to.cast())
        }
    };
    if status < 0 && !is_last {
        entry.discard(0);
        return (null_mut(), status as i32);
    }
    (event.cast(), status as i32)
}

/// Says which file it is about.
///
/// # Safety
/// `header` points to writable memory; `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn identify(header: *mut EventHeader, inode: *const Inode) {
    // SAFETY: by the contract.
    unsafe {
        (*header).inode = inode_number(inode);
        (*header).size = inode_size(inode);
        let Filesystem { device, magic: filesystem } = inode_filesystem(inode);
        (*header).device = device;
        (*header).filesystem = filesystem as u32;
    }
}

/// Everything else.
///
/// # Safety
/// `header` points to writable memory.
#[inline(always)]
unsafe fn fill(header: *mut EventHeader, told: &Told<'_>, path_status: i32) {
    let Told { hook: Hook { gate, .. }, outcome, reason, wanted, appraisal } = *told;
    // SAFETY: by the contract; the helpers have no precondition.
    unsafe {
        let pid_tid = bpf_get_current_pid_tgid();
        let uid_gid = bpf_get_current_uid_gid();
        (*header).boot_ns = bpf_ktime_get_boot_ns();
        (*header).generation = appraisal.active.generation();
        (*header).cgroup = bpf_get_current_cgroup_id();
        (*header).digest = appraisal.digest;
        (*header).rule = appraisal.rule;
        (*header).pid = (pid_tid >> 32) as u32;
        (*header).tid = pid_tid as u32;
        (*header).uid = uid_gid as u32;
        (*header).gid = (uid_gid >> 32) as u32;
        (*header).hash_status = appraisal.hash_status;
        (*header).path_status = path_status;
        (*header).gate = gate as u8;
        (*header).outcome = outcome;
        (*header).reason = reason;
        (*header).wanted = wanted;
        (*header).cached = appraisal.cached as u8;
        (*header).enforces = appraisal.active.enforces() as u8;
        (*header).names = (GIVES_PATHS.load() == 0) as u8;
        (*header).bpf = 0;
        (*header).comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
        let mut task = look_at_task(current_task());
        let mut last = false;
        let mut index = 0;
        while index < ANCESTORS {
            // Above the first process there is only the idle task, which is its own parent.
            last = last || task_pid(task) <= 1;
            task = task_parent(task);
            (*header).ancestors[index] = if last {
                Ancestor { pid: 0, comm: [0; COMM_LEN] }
            } else {
                let comm = task_comm(task);
                Ancestor { pid: task_pid(task), comm: transmute::<[u64; 2], [u8; COMM_LEN]>(comm) }
            };
            index += 1;
        }
    }
}
