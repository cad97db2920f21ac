//! The gate at the script of a program that the policy marks as an interpreter.
//!
//! Attached only while the policy marks one. Such a process is remembered when its program starts;
//! of the files that it opens for reading, those that its command line names are judged like a
//! script that is started by exec. `portcullis_common::Arguments` says what «names» means.

use aya_ebpf::{
    helpers::generated::{bpf_copy_from_user, bpf_get_current_pid_tgid, bpf_loop, bpf_send_signal},
    macros::lsm,
    programs::LsmContext,
};
use core::ffi::c_void;
use portcullis_common::{
    ARGUMENT_BYTES, Arguments, Counter, Found, Gate, Kinds, Name, VerdictWord,
};

use crate::{
    judge::{Hook, judge},
    layout::{
        FILE_TYPE, FMODE_NOACCOUNT, FMODE_WRITE, File, Task, arguments, bprm_file, current_task,
        file_flags, file_inode, file_mode, inode_mode, name_being_opened, name_is_copied,
        started_by_script, task_pid,
    },
    maps::{INTERPRETERS, NO_ARGUMENTS, VERDICTS, active, count, rule},
};

/// `FMODE_READ` (include/linux/fs.h, 5.10 to 7.2).
const FMODE_READ: u32 = 1 << 0;

/// `__FMODE_EXEC` (include/linux/fs.h): the kernel opens a program that is to be run, which the
/// exec gate judges. `open` does not let a process set it.
const FMODE_EXEC: u32 = 1 << 5;

/// `S_IFDIR` and `S_IFCHR` (linux/stat.h).
const FOLDER: u16 = 0o040_000;
const CHARACTER_DEVICE: u16 = 0o020_000;

/// `SIGKILL`.
const KILL: u32 = 9;

#[inline(always)]
fn current_process() -> u32 {
    // SAFETY: the helper has no precondition.
    unsafe { (bpf_get_current_pid_tgid() >> 32) as u32 }
}

/// `void bprm_committed_creds(const struct linux_binprm *bprm)`, 5.10 to 7.2: a new program has
/// taken the process over. Nothing can be refused any more.
#[lsm(hook = "bprm_committed_creds", sleepable)]
pub fn note_program(ctx: LsmContext) -> i32 {
    let active = active();
    let bprm: *const c_void = ctx.arg(0);
    // SAFETY: the hook's argument is a `struct linux_binprm *`, and its file is that of the program
    // which has started.
    let (is_marked, by_script) = unsafe {
        let verdict = VERDICTS.get_ptr_mut(file_inode(bprm_file(bprm)));
        let is_marked = !verdict.is_null() && {
            let word: VerdictWord = (&raw const (*verdict).word).read_volatile();
            let kinds = if word.is_of(active.generation()) {
                word.kinds()
            } else {
                // The policy was switched since the exec gate let it pass.
                rule(active.generation(), &(*verdict).digest).unwrap_or_default().kinds
            };
            kinds.intersects(Kinds::INTERPRETER)
        };
        (is_marked, started_by_script(bprm))
    };
    let process = current_process();
    if !is_marked {
        // The program before it may have been one.
        let _ = INTERPRETERS.remove(process);
        return 0;
    }
    let is_noted = NO_ARGUMENTS.get(0).is_some_and(|zeros| {
        INTERPRETERS.insert(process, zeros, 0).is_ok()
            && INTERPRETERS.get_ptr_mut(process).is_some_and(|noted| {
                // SAFETY: points to a map value; the process has one thread and has not run yet.
                unsafe {
                    (*noted).start(by_script);
                    (*noted).owner = current_task().addr() as u64;
                }
                true
            })
    });
    if !is_noted && active.enforces() {
        // It would go unwatched.
        count(Gate::Interpreter, Counter::CannotDecide, 1);
        // SAFETY: the helper has no precondition.
        unsafe { bpf_send_signal(KILL) };
    }
    0
}

/// `void task_free(struct task_struct *task)`, 5.10 to 7.2: nothing is left of a thread. The first
/// one of a process goes last.
#[lsm(hook = "task_free")]
pub fn forget_process(ctx: LsmContext) -> i32 {
    let task: *const Task = ctx.arg(0);
    // SAFETY: the hook's argument is a `struct task_struct *`.
    unsafe {
        let process = task_pid(task);
        let noted = INTERPRETERS.get_ptr_mut(process);
        if noted.is_some_and(|noted| (*noted).owner == task.addr() as u64) {
            let _ = INTERPRETERS.remove(process);
        }
    }
    0
}

/// `int file_post_open(struct file *file, int mask)`, from 6.9, sleepable from 6.12 at the latest.
#[lsm(hook = "file_post_open", sleepable)]
pub fn gate_interpreter(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct file *`.
    unsafe { opened(ctx.arg(0), true) }
}

/// `int file_open(struct file *file)`, where `file_post_open` is missing. The file cannot be read
/// yet here (`do_dentry_open` in fs/open.c sets `FMODE_CAN_READ` afterwards), so it cannot be hashed.
#[lsm(hook = "file_open", sleepable)]
pub fn gate_interpreter_early(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct file *`.
    unsafe { opened(ctx.arg(0), false) }
}

/// # Safety
/// `file` is the hook's own pointer; the program is sleepable.
#[inline(always)]
unsafe fn opened(file: *const File, hashes: bool) -> i32 {
    let Some(process) = INTERPRETERS.get_ptr_mut(current_process()) else { return 0 };
    // SAFETY: by the contract, and `process` points to a map value.
    unsafe {
        let mode = file_mode(file) & (FMODE_READ | FMODE_WRITE | FMODE_NOACCOUNT);
        if mode != FMODE_READ || file_flags(file) & FMODE_EXEC != 0 {
            return 0;
        }
        let kind = inode_mode(file_inode(file)) & FILE_TYPE;
        // A terminal is as good as standard input, which cannot be judged either.
        if kind == FOLDER || kind == CHARACTER_DEVICE {
            return 0;
        }
        let name = name_being_opened();
        if name == 0 {
            return 0;
        }
        if (*process).is_unread() {
            read_arguments(process);
        }
        let mut found = Found::UNKNOWN;
        look_up(process, name, &raw mut found);
        if !found.is_suspect() {
            return 0;
        }
        let hook = Hook { gate: Gate::Interpreter, sleeps: true, hashes };
        // Among everything that a process opens are its libraries, which somebody has listed too.
        let wanted =
            if found.is_named() { Kinds::SCRIPT } else { Kinds::SCRIPT.union(Kinds::LIBRARY) };
        let answer = judge(hook, file, wanted);
        if answer == 0 {
            (*process).note(&found);
        }
        answer
    }
}

/// Bytes that are read from the process at once, from an address that is a multiple of it: so they
/// never reach into a page that may not be there. Where a byte lies in its chunk follows from its
/// address alone, which the verifier takes for any number: so it looks at a step once, and not once
/// for each byte.
const CHUNK: u32 = 64;

#[repr(C)]
struct PathReader {
    address: u64,
    name: Name,
    complete: u64,
    chunk: [u8; CHUNK as usize],
}

/// The longest path that `open` takes (`PATH_MAX`).
const PATH_MAX: u32 = 4096;

/// What the file is to the process that is being opened by the name at `address`.
#[inline(never)]
fn look_up(process: *const Arguments, address: u64, found: *mut Found) {
    // SAFETY: points to a map value.
    let name = unsafe { (*process).empty_name() };
    let mut reader = PathReader { address, name, complete: 0, chunk: [0; CHUNK as usize] };
    // SAFETY: the callbacks get the pointers that they expect; `process` points to a map value, and
    // `found` to the caller's own record.
    unsafe {
        bpf_loop(PATH_MAX, path_step as *mut c_void, (&raw mut reader).cast(), 0);
        if reader.complete == 0 {
            return;
        }
        *found = (*process).begin();
        let mut comparison = Comparison { process, name: reader.name, found };
        let count = (*process).compared();
        bpf_loop(count, compare_step as *mut c_void, (&raw mut comparison).cast(), 0);
    }
}

#[repr(C)]
struct Comparison {
    process: *const Arguments,
    name: Name,
    found: *mut Found,
}

unsafe extern "C" fn compare_step(index: u64, comparison: *mut Comparison) -> i64 {
    // SAFETY: `look_up` passes its own record, whose pointers it knows.
    unsafe {
        let Comparison { process, ref name, found } = *comparison;
        (*process).compare(index as u32, name, &mut *found);
    }
    0
}

/// The byte at `address` of the process, in the `step`th call for one chunk; `None` if it is not there.
///
/// `bpf_probe_read_user` would do without sleeping, but aya puts its forerunner in its place where
/// lockdown refuses reading the kernel's memory, which is refused too.
#[inline(always)]
fn byte_at(address: u64, step: u64, chunk: &mut [u8; CHUNK as usize]) -> Option<u8> {
    let at = address as u32 % CHUNK;
    if at == 0 || step == 0 {
        let from = (address - u64::from(at)) as *const c_void;
        // SAFETY: the helper writes a chunk there.
        if unsafe { bpf_copy_from_user(chunk.as_mut_ptr().cast(), CHUNK, from) } != 0 {
            return None;
        }
    }
    Some(chunk[at as usize])
}

unsafe extern "C" fn path_step(step: u64, reader: *mut PathReader) -> i64 {
    // SAFETY: `look_up` passes its own record.
    let reader = unsafe { &mut *reader };
    let address = reader.address + step;
    let byte = if name_is_copied() {
        // SAFETY: the verifier knows what `filename.name` points to for memory that may be read; what
        // is not there reads as zero.
        unsafe { (address as *const u8).read_volatile() }
    } else if let Some(byte) = byte_at(address, step, &mut reader.chunk) {
        byte
    } else {
        return 1;
    };
    if byte == 0 {
        reader.complete = 1;
        return 1;
    }
    reader.name.feed(byte);
    0
}

#[repr(C)]
struct ArgumentReader {
    process: *mut Arguments,
    address: u64,
    end: u64,
    complete: u64,
    chunk: [u8; CHUNK as usize],
}

#[inline(never)]
fn read_arguments(process: *mut Arguments) {
    let (address, end) = arguments();
    let complete = u64::from(address >= end);
    let chunk = [0; CHUNK as usize];
    let mut reader = ArgumentReader { process, address, end, complete, chunk };
    // SAFETY: the callback gets the pointer that it expects; `process` points to a map value.
    unsafe {
        if complete == 0 {
            bpf_loop(ARGUMENT_BYTES, argument_step as *mut c_void, (&raw mut reader).cast(), 0);
        }
        (*process).complete(reader.complete != 0);
    }
}

unsafe extern "C" fn argument_step(step: u64, reader: *mut ArgumentReader) -> i64 {
    // SAFETY: `read_arguments` passes its own record.
    let reader = unsafe { &mut *reader };
    let Some(byte) = byte_at(reader.address + step, step, &mut reader.chunk) else { return 1 };
    // SAFETY: points to a map value.
    unsafe { (*reader.process).feed(byte) };
    if reader.address + step + 1 >= reader.end {
        reader.complete = 1;
        return 1;
    }
    0
}
