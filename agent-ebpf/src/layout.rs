//! The one place where kernel layout is known.
//!
//! Offsets come from the running kernel's BTF as read-only globals (see
//! `portcullis_common::Fields`). The verifier knows their values and so accepts a load at
//! «pointer + offset» as a typed load of that member; a fault reads as zero.

use aya_ebpf::{
    Global,
    bindings::inode,
    helpers::generated::{bpf_get_current_task, bpf_get_current_task_btf, bpf_probe_read_kernel},
};
use core::{ffi::c_void, mem::MaybeUninit};
use portcullis_common::{NO_ENUMERATOR, Process, ProgramKey, for_each_kernel_field};

use crate::instructions::only_to_look;

macro_rules! globals {
    (
        fields { $($field:ident = $structure:ident . $member:ident;)* }
        enumerators { $($enumerator_global:ident = $enumeration:ident . $enumerator:ident;)* }
        newer_enumerators { $($new_global:ident = $new_enumeration:ident . $new_enumerator:ident;)* }
    ) => {
        // An offset that the agent did not set lies outside of every struct, so that the program
        // is refused instead of reading the wrong member.
        $(#[unsafe(no_mangle)] pub static $field: Global<u32> = Global::new(0xffff);)*
        $(#[unsafe(no_mangle)] pub static $enumerator_global: Global<u32> = Global::new(NO_ENUMERATOR);)*
        $(#[unsafe(no_mangle)] pub static $new_global: Global<u32> = Global::new(NO_ENUMERATOR);)*
    };
}
for_each_kernel_field!(globals);

/// Where `struct filename` has the address of the name: `uptr`, the process's own, or in 7.2, which
/// does not have that any more, `name`, the kernel's copy. Only the interpreter gate reads it.
#[unsafe(no_mangle)]
static FILENAME_NAME: Global<u32> = Global::new(0xffff);
/// 1 if that address is in the kernel's memory.
#[unsafe(no_mangle)]
static NAME_IS_COPIED: Global<u32> = Global::new(0);

/// Where `struct dentry` keeps a short name itself: `d_iname`, or from 6.15 `d_shortname`. Only the USB
/// gate reads it.
#[unsafe(no_mangle)]
static DENTRY_SHORT_NAME: Global<u32> = Global::new(0xffff);

/// Offset of the byte that holds the bit-field `linux_binprm.is_check` (from 6.14), and the bit.
#[unsafe(no_mangle)]
static LINUX_BINPRM_IS_CHECK: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static LINUX_BINPRM_IS_CHECK_BIT: Global<u32> = Global::new(0);

/// 1 on kernels that give the running task as a number and not as a pointer that the verifier
/// tracks (before 5.11). The members of tasks, and of what is reached from them, are then copied,
/// which `lockdown=confidentiality` refuses; elsewhere that code is dead and does not count.
#[unsafe(no_mangle)]
pub static TASKS_ARE_COPIED: Global<u32> = Global::new(0);

/// Numbers of types in the kernel's BTF, for [`only_to_look`]; 0 where that does nothing.
#[unsafe(no_mangle)]
static TASK_TYPE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static INODE_TYPE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static DENTRY_TYPE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static OPEN_FILE_TYPE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static PATH_TYPE: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
static PROGRAM_TYPE: Global<u32> = Global::new(0);

// Macros of the kernel, which its BTF does not have. They have been the same from 5.10 to 7.2.

/// `FMODE_WRITE` (include/linux/fs.h): the file can be written through. The agent's self-test
/// proves the value after attaching.
pub const FMODE_WRITE: u32 = 1 << 1;
/// `FMODE_NOACCOUNT` (include/linux/fs.h): opened by the kernel for itself, as an overlay
/// filesystem opens the real file behind its own.
pub const FMODE_NOACCOUNT: u32 = 1 << 29;
/// `S_IFMT` (linux/stat.h): the part of a mode that says what kind of file it is.
pub const FILE_TYPE: u16 = 0o170_000;

/// `struct file`, only ever behind a pointer.
#[repr(transparent)]
pub struct File(c_void);
/// `struct inode`, likewise.
pub type Inode = inode;
/// `struct dentry`, likewise.
#[repr(transparent)]
pub struct Dentry(c_void);
/// `struct task_struct`, likewise.
#[repr(transparent)]
pub struct Task(c_void);
/// `struct vm_area_struct`, likewise.
#[repr(transparent)]
pub struct Vma(c_void);

/// # Safety
/// `base` is a kernel pointer that the verifier tracks, and `offset` that of a member of type `T`.
#[inline(always)]
pub unsafe fn load<T: Copy, B>(base: *const B, offset: &Global<u32>) -> T {
    // SAFETY: by the contract. Volatile, because the size of the load must not change: the
    // verifier checks it against the member's type.
    unsafe { base.byte_add(offset.load() as usize).cast::<T>().read_volatile() }
}

/// The same for what may have been reached from the running task.
///
/// # Safety
/// As for [`load`]; `T` is an integer, a pointer or an array of them.
#[inline(always)]
unsafe fn load_of_task<T: Copy, B>(base: *const B, offset: &Global<u32>) -> T {
    if TASKS_ARE_COPIED.load() == 0 {
        // SAFETY: by the contract.
        return unsafe { load(base, offset) };
    }
    // SAFETY: by the contract.
    unsafe { copy(base, offset) }
}

/// The same task, whose members no helper is given ([`only_to_look`]).
#[inline(always)]
pub fn look_at_task(task: *const Task) -> *const Task {
    only_to_look(task, TASK_TYPE.load())
}

/// The same inode, likewise.
#[inline(always)]
pub fn look_at_inode(inode: *const Inode) -> *const Inode {
    only_to_look(inode, INODE_TYPE.load())
}

/// The same directory entry, likewise.
#[inline(always)]
pub fn look_at_dentry(dentry: *const Dentry) -> *const Dentry {
    only_to_look(dentry, DENTRY_TYPE.load())
}

/// The same open file, likewise.
#[inline(always)]
pub fn look_at_file(file: *const File) -> *const File {
    only_to_look(file, OPEN_FILE_TYPE.load())
}

/// The same `struct path`, likewise.
#[inline(always)]
pub fn look_at_path(path: *const c_void) -> *const c_void {
    only_to_look(path, PATH_TYPE.load())
}

/// Copies a member of what may not be there any more; that gives zeros.
///
/// # Safety
/// `T` is an integer, a pointer or an array of them.
#[inline(always)]
pub unsafe fn copy<T: Copy, B>(base: *const B, offset: &Global<u32>) -> T {
    // SAFETY: by the contract; only an address is computed.
    unsafe { copy_at(base.byte_add(offset.load() as usize).cast()) }
}

/// Copies what lies at an address of the kernel; zeros if it cannot be read.
///
/// # Safety
/// `T` is an integer, a pointer or an array of them.
#[inline(always)]
pub unsafe fn copy_at<T: Copy>(address: *const c_void) -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: the helper writes `T` whole or, at an address that cannot be read, zeros; every bit
    // pattern is one of `T`.
    unsafe {
        bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address);
        value.assume_init()
    }
}

/// The file that an exec is about to run.
///
/// # Safety
/// `bprm` is the hook's `struct linux_binprm *`.
#[inline(always)]
pub unsafe fn bprm_file(bprm: *const c_void) -> *const File {
    // SAFETY: by the contract.
    unsafe { load(bprm, &LINUX_BINPRM_FILE) }
}

/// Whether an exec only asks if it could be done.
///
/// # Safety
/// `bprm` is the hook's `struct linux_binprm *`, on a kernel that has the member.
#[inline(always)]
pub unsafe fn is_exec_check(bprm: *const c_void) -> bool {
    // SAFETY: by the contract.
    let byte: u8 = unsafe { load(bprm, &LINUX_BINPRM_IS_CHECK) };
    u32::from(byte) & LINUX_BINPRM_IS_CHECK_BIT.load() != 0
}

/// Accessors that read one member of a struct behind a tracked pointer.
macro_rules! accessors {
    (by $load:ident: $($(#[$meta:meta])* $name:ident($base:ty) -> $result:ty = $offset:ident;)*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            /// The argument is a kernel pointer that the verifier tracks.
            #[inline(always)]
            pub unsafe fn $name(base: *const $base) -> $result {
                // SAFETY: by the contract.
                unsafe { $load(base, &$offset) }
            }
        )*
    };
}

accessors! { by load:
    /// The inode whose content the file gives.
    file_inode(File) -> *mut Inode = FILE_F_INODE;
    /// How the file is open: `FMODE_*`.
    file_mode(File) -> u32 = FILE_F_MODE;
    /// What it was opened with: `O_*`, and `__FMODE_EXEC`.
    file_flags(File) -> u32 = FILE_F_FLAGS;
    /// File type and permissions.
    inode_mode(Inode) -> u16 = INODE_I_MODE;
    /// `S_*` flags.
    inode_flags(Inode) -> u32 = INODE_I_FLAGS;
    /// How many hold the file open for writing; negative while writing is denied.
    inode_writers(Inode) -> i32 = INODE_I_WRITECOUNT;
    /// The inode behind a directory entry, or null.
    dentry_inode(Dentry) -> *mut Inode = DENTRY_D_INODE;
    /// What the filesystem keeps with an open file: a pointer, which is a number to the verifier.
    file_private_data(File) -> u64 = FILE_PRIVATE_DATA;
    /// What a special file stands for: the device number, in the kernel's encoding.
    inode_special_device(Inode) -> u32 = INODE_I_RDEV;
    /// The file behind a mapping, or null.
    vma_file(Vma) -> *const File = VM_AREA_STRUCT_VM_FILE;
    /// `VM_*` flags of a mapping.
    vma_flags(Vma) -> u64 = VM_AREA_STRUCT_VM_FLAGS;
    /// Not zero if a private mapping has pages of its own: somebody has written to it.
    vma_own_pages(Vma) -> usize = VM_AREA_STRUCT_ANON_VMA;
    /// The `struct vfsmount` of a `struct path`.
    path_mount(c_void) -> *const c_void = PATH_MNT;
    /// How the name of a `struct bpf_map` begins.
    bpf_map_name(c_void) -> u64 = BPF_MAP_NAME;
    /// The directory entry of a `struct path`.
    path_dentry(c_void) -> *const Dentry = PATH_DENTRY;
}

accessors! { by load_of_task:
    /// Inode number.
    inode_number(Inode) -> u64 = INODE_I_INO;
    /// Size in bytes.
    inode_size(Inode) -> u64 = INODE_I_SIZE;
    /// Process id (thread group) in the initial namespace.
    task_pid(Task) -> u32 = TASK_STRUCT_TGID;
    /// Not zero if somebody steers the task, as a debugger does.
    task_tracing(Task) -> u32 = TASK_STRUCT_PTRACE;
    /// The real parent.
    task_parent(Task) -> *const Task = TASK_STRUCT_REAL_PARENT;
    /// Its name: as two words, to keep the loads few.
    task_comm(Task) -> [u64; 2] = TASK_STRUCT_COMM;
}

/// Whether somebody steers the process that is about to run the program, as a debugger does:
/// `LSM_UNSAFE_PTRACE` (include/linux/security.h).
///
/// # Safety
/// `bprm` is the hook's `struct linux_binprm *`.
#[inline(always)]
pub unsafe fn bprm_is_traced(bprm: *const c_void) -> bool {
    const TRACED: i32 = 2;
    // SAFETY: by the contract.
    unsafe { load::<i32, _>(bprm, &LINUX_BINPRM_UNSAFE) & TRACED != 0 }
}

/// Whether a `#!` line, or binfmt_misc, has put an interpreter in the place of what was to be run:
/// the names of the two are the same string otherwise.
///
/// # Safety
/// `bprm` is the hook's `struct linux_binprm *`.
#[inline(always)]
pub unsafe fn started_by_script(bprm: *const c_void) -> bool {
    // SAFETY: by the contract; the addresses are only compared.
    unsafe {
        load::<usize, _>(bprm, &LINUX_BINPRM_INTERP)
            != load::<usize, _>(bprm, &LINUX_BINPRM_FILENAME)
    }
}

/// Whether somebody steers the task, as a debugger does.
///
/// # Safety
/// `task` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn task_is_traced(task: *const Task) -> bool {
    // SAFETY: by the contract.
    unsafe { task_tracing(task) != 0 }
}

/// When the task's process was started, in [`Process::TICK`]s since boot.
///
/// # Safety
/// `task` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn task_started(task: *const Task) -> u64 {
    // SAFETY: by the contract; a task always has a leader.
    unsafe {
        let leader: *const Task = load(look_at_task(task), &TASK_STRUCT_GROUP_LEADER);
        load::<u64, _>(leader, &TASK_STRUCT_START_BOOTTIME) / Process::TICK
    }
}

/// The program that a task runs; null for a kernel thread.
///
/// # Safety
/// `task` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn program_of(task: *const Task) -> *const Inode {
    // SAFETY: by the contract; a null pointer in the chain reads as zero.
    unsafe {
        let mm: *const c_void = load(task, &TASK_STRUCT_MM);
        let exe_file: *const File = load(mm, &MM_STRUCT_EXE_FILE);
        load(exe_file, &FILE_F_INODE)
    }
}

/// One of the words of a `union bpf_attr` (linux/bpf.h).
///
/// # Safety
/// `attributes` is the hook's `union bpf_attr *`, which has such a word.
#[inline(always)]
pub unsafe fn bpf_attribute(attributes: *const u32, at: usize) -> u32 {
    // SAFETY: by the contract.
    unsafe { attributes.add(at).read_volatile() }
}

/// Id of a `struct bpf_prog`.
///
/// # Safety
/// `program` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn bpf_program_id(program: *const c_void) -> u32 {
    // SAFETY: by the contract.
    unsafe {
        let program = only_to_look(program, PROGRAM_TYPE.load());
        load(load::<*const c_void, _>(program, &BPF_PROG_AUX), &BPF_PROG_AUX_ID)
    }
}

/// Whether short names can be read.
#[inline(always)]
pub fn has_short_names() -> bool {
    DENTRY_SHORT_NAME.load() != 0xffff
}

/// What a directory entry keeps of its name itself: the whole of it, with a zero after it, if it has
/// fewer than 32 bytes. What follows the zero is undefined.
///
/// # Safety
/// `dentry` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn short_name(dentry: *const Dentry) -> [u64; 4] {
    // SAFETY: by the contract. As four words, to keep the loads few.
    unsafe {
        let at = dentry.byte_add(DENTRY_SHORT_NAME.load() as usize).cast::<u64>();
        [
            at.read_volatile(),
            at.add(1).read_volatile(),
            at.add(2).read_volatile(),
            at.add(3).read_volatile(),
        ]
    }
}

/// The entry of the folder that a directory entry lies in; a filesystem's root is its own.
///
/// # Safety
/// `dentry` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn dentry_parent(dentry: *const Dentry) -> *const Dentry {
    // SAFETY: by the contract.
    unsafe { load(dentry, &DENTRY_D_PARENT) }
}

/// Id and start of the running process, and not of the thread of it.
#[inline(always)]
pub fn current_process() -> Process {
    // SAFETY: the task is the current one, which always has a leader.
    unsafe {
        let task = current_task();
        let leader: *const Task = load_of_task(look_at_task(task), &TASK_STRUCT_GROUP_LEADER);
        let started: u64 = load_of_task(leader, &TASK_STRUCT_START_BOOTTIME);
        Process { started: started / Process::TICK, pid: task_pid(task), reserved: 0 }
    }
}

/// Address of the file's `struct path`.
///
/// # Safety
/// `file` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn file_path(file: *const File) -> *const c_void {
    // SAFETY: by the contract; only an address is computed.
    unsafe { file.byte_add(FILE_F_PATH.load() as usize).cast() }
}

/// The open file's directory entry, only to look at.
///
/// # Safety
/// `file` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn file_dentry(file: *const File) -> *const Dentry {
    // SAFETY: by the contract.
    unsafe { path_dentry(file_path(look_at_file(file))) }
}

/// What a filesystem is known by.
#[derive(Clone, Copy)]
pub struct Filesystem {
    /// Device number in the kernel's encoding.
    pub device: u32,
    /// Magic number (`linux/magic.h`).
    pub magic: u64,
}

/// The inode's filesystem.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn inode_filesystem(inode: *const Inode) -> Filesystem {
    // SAFETY: by the contract; an inode always has a superblock.
    unsafe {
        let superblock: *const c_void = load_of_task(look_at_inode(inode), &INODE_I_SB);
        Filesystem {
            device: load_of_task(superblock, &SUPER_BLOCK_S_DEV),
            magic: load_of_task(superblock, &SUPER_BLOCK_S_MAGIC),
        }
    }
}

/// Flags of the inode's filesystem, `SB_I_*` (include/linux/fs.h).
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn inode_filesystem_flags(inode: *const Inode) -> u64 {
    // SAFETY: by the contract; an inode always has a superblock.
    unsafe {
        let superblock: *const c_void = load(look_at_inode(inode), &INODE_I_SB);
        load(superblock, &SUPER_BLOCK_S_IFLAGS)
    }
}

/// Whether the file is a memfd that is sealed against writing.
///
/// `F_ADD_SEALS` with `F_SEAL_WRITE` makes `i_mmap_writable` negative, for good, and only after
/// every writable mapping is gone (`memfd_add_seals` in mm/memfd.c, 5.10 to 6.12). Writers of a
/// memfd do not show in `i_writecount`, because it is never opened through `do_dentry_open`.
///
/// # Safety
/// `file` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn sealed_against_writing(file: *const File) -> bool {
    // SAFETY: by the contract; an open file always has a mapping.
    unsafe {
        let mapping: *const c_void = load(look_at_file(file), &FILE_F_MAPPING);
        load::<i32, _>(mapping, &ADDRESS_SPACE_I_MMAP_WRITABLE) < 0
    }
}

/// The task that is running.
#[inline(always)]
pub fn current_task() -> *const Task {
    // SAFETY: the helpers have no precondition.
    unsafe {
        if TASKS_ARE_COPIED.load() == 0 {
            bpf_get_current_task_btf() as *const Task
        } else {
            bpf_get_current_task() as *const Task
        }
    }
}

/// The program that the current process is running, or is just starting; null for a kernel thread.
/// Every load through a null or stale pointer gives zero.
#[inline(always)]
pub fn own_program() -> *const Inode {
    own_program_of(current_task())
}

/// The same, only to look at.
#[inline(always)]
pub fn look_at_own_program() -> *const Inode {
    own_program_of(look_at_task(current_task()))
}

#[inline(always)]
fn own_program_of(task: *const Task) -> *const Inode {
    // SAFETY: the task is the current one; a null or stale pointer in the chain reads as zero.
    unsafe {
        let mm: *const c_void = load_of_task(task, &TASK_STRUCT_MM);
        let exe_file: *const File = load_of_task(mm, &MM_STRUCT_EXE_FILE);
        load_of_task(exe_file, &FILE_F_INODE)
    }
}

/// Where the current process has its arguments, from the program's name to the end of the last one.
#[inline(always)]
pub fn arguments() -> (u64, u64) {
    // SAFETY: the task is the current one; a null or stale pointer in the chain reads as zero.
    unsafe {
        let mm: *const c_void = load(look_at_task(current_task()), &TASK_STRUCT_MM);
        (load(mm, &MM_STRUCT_ARG_START), load(mm, &MM_STRUCT_ARG_END))
    }
}

/// Where the name is by which the current process is just opening a file; zero if it is opening none,
/// or, unless [`name_is_copied`], if the name is the kernel's.
#[inline(always)]
pub fn name_being_opened() -> u64 {
    // SAFETY: the task is the current one; a null or stale pointer in the chain reads as zero.
    unsafe {
        let lookup: *const c_void = load(look_at_task(current_task()), &TASK_STRUCT_NAMEIDATA);
        let name: *const c_void = load(lookup, &NAMEIDATA_NAME);
        load(name, &FILENAME_NAME)
    }
}

/// Whether the name that is being opened lies in the kernel's memory, and not in the process's.
#[inline(always)]
pub fn name_is_copied() -> bool {
    NAME_IS_COPIED.load() == 1
}

/// Whether `inode` is the program that the current process is running, or is just starting.
///
/// # Safety
/// `inode` is a kernel pointer; it is only compared.
#[inline(always)]
pub unsafe fn is_own_program(inode: *const Inode) -> bool {
    core::ptr::addr_eq(look_at_own_program(), inode)
}

/// How a program is recognised by its inode.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn program_key(inode: *const Inode) -> ProgramKey {
    // SAFETY: by the contract.
    unsafe {
        ProgramKey {
            inode: inode_number(inode),
            device: inode_filesystem(inode).device,
            generation: load_of_task(inode, &INODE_I_GENERATION),
        }
    }
}
