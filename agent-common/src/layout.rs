//! The kernel's own layout, as far as the programs read it. No offset is written down anywhere:
//! the agent finds each of these in the running kernel's BTF and hands it to the programs as a
//! read-only global, which the verifier then treats as a constant.

use crate::Digest;

/// A struct member that the programs read, and the global that carries its byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name of the global (`u32`) in the kernel programs.
    pub global: &'static str,
    /// Name of the struct.
    pub structure: &'static str,
    /// Name of the member; may lie within anonymous structs and unions.
    pub member: &'static str,
}

/// An enumerator whose value the programs compare with, and the global that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnumValue {
    /// Name of the global (`u32`) in the kernel programs.
    pub global: &'static str,
    /// Name of the enum.
    pub enumeration: &'static str,
    /// Name of the enumerator.
    pub enumerator: &'static str,
}

/// What the global of an enumerator holds that the kernel does not have; no enumerator that is
/// looked for has this value.
pub const NO_ENUMERATOR: u32 = 0xffff;

/// Layout of the overlay filesystem's own structures, which come with a module that may be loaded
/// at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OverlayLayout {
    /// 1 if the rest is known, else 0.
    pub known: u32,
    /// Offset of `vfs_inode` in `struct ovl_inode`.
    pub vfs_inode: u32,
    /// Offset of `__upperdentry` in `struct ovl_inode`.
    pub upper_dentry: u32,
    /// Offset of `realfile` in `struct ovl_file`, which an open file's private data is from 6.13;
    /// before that it is the layer's file itself: [`Self::NONE`].
    pub opened_file: u32,
}

impl OverlayLayout {
    /// There is no such structure.
    pub const NONE: u32 = u32::MAX;
}

const _: () = assert!(size_of::<OverlayLayout>() == 16);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for OverlayLayout {}

/// Stands in the object for the call of the kernel's function that gives a file's fs-verity digest.
/// The compiler can call only what has a fixed number, and no helper will ever have this one; on
/// kernels that have the function, the agent puts its number in.
pub const FSVERITY_CALL: u32 = 0x7e51_0a5c;

/// Stands likewise for the call of `bpf_rdonly_cast`, which gives back the pointer that it is given. Where
/// the verifier makes no difference by it, the agent puts the move of a register in its place.
pub const LOOK_CALL: u32 = 0x7e51_0a5d;

/// The kernel's answer to that call (`struct fsverity_digest`, linux/fsverity.h), with room for
/// SHA-256.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub struct FsverityDigest {
    /// `FS_VERITY_HASH_ALG_*`.
    pub algorithm: u16,
    /// Bytes of digest, of which there may be more than have room.
    pub size: u16,
    /// The digest.
    pub digest: Digest,
}

const _: () = assert!(size_of::<FsverityDigest>() == 40);

/// Holder of the lists.
pub struct Fields;

/// Calls the macro `$callback` with every field and enumerator, so that the list exists once and
/// both sides can expand it into what they need.
#[macro_export]
macro_rules! for_each_kernel_field {
    ($callback:ident) => {
        $callback! {
            fields {
                LINUX_BINPRM_FILE = linux_binprm . file;
                LINUX_BINPRM_FILENAME = linux_binprm . filename;
                LINUX_BINPRM_INTERP = linux_binprm . interp;
                LINUX_BINPRM_UNSAFE = linux_binprm . unsafe;
                FILE_F_INODE = file . f_inode;
                FILE_F_PATH = file . f_path;
                FILE_F_MODE = file . f_mode;
                FILE_F_FLAGS = file . f_flags;
                FILE_F_MAPPING = file . f_mapping;
                FILE_PRIVATE_DATA = file . private_data;
                ADDRESS_SPACE_I_MMAP_WRITABLE = address_space . i_mmap_writable;
                INODE_I_INO = inode . i_ino;
                INODE_I_MODE = inode . i_mode;
                INODE_I_FLAGS = inode . i_flags;
                INODE_I_SB = inode . i_sb;
                INODE_I_SIZE = inode . i_size;
                INODE_I_WRITECOUNT = inode . i_writecount;
                SUPER_BLOCK_S_DEV = super_block . s_dev;
                SUPER_BLOCK_S_MAGIC = super_block . s_magic;
                SUPER_BLOCK_S_IFLAGS = super_block . s_iflags;
                PATH_DENTRY = path . dentry;
                PATH_MNT = path . mnt;
                DENTRY_D_INODE = dentry . d_inode;
                DENTRY_D_PARENT = dentry . d_parent;
                DENTRY_D_NAME = dentry . d_name;
                QSTR_NAME = qstr . name;
                TASK_STRUCT_TGID = task_struct . tgid;
                TASK_STRUCT_COMM = task_struct . comm;
                TASK_STRUCT_REAL_PARENT = task_struct . real_parent;
                TASK_STRUCT_GROUP_LEADER = task_struct . group_leader;
                TASK_STRUCT_START_BOOTTIME = task_struct . start_boottime;
                TASK_STRUCT_MM = task_struct . mm;
                TASK_STRUCT_PTRACE = task_struct . ptrace;
                BPF_MAP_NAME = bpf_map . name;
                BPF_PROG_AUX = bpf_prog . aux;
                BPF_PROG_AUX_ID = bpf_prog_aux . id;
                MM_STRUCT_EXE_FILE = mm_struct . exe_file;
                INODE_I_GENERATION = inode . i_generation;
                INODE_I_RDEV = inode . i_rdev;
                VM_AREA_STRUCT_VM_FILE = vm_area_struct . vm_file;
                VM_AREA_STRUCT_VM_FLAGS = vm_area_struct . vm_flags;
                VM_AREA_STRUCT_ANON_VMA = vm_area_struct . anon_vma;
                MM_STRUCT_ARG_START = mm_struct . arg_start;
                MM_STRUCT_ARG_END = mm_struct . arg_end;
                TASK_STRUCT_NAMEIDATA = task_struct . nameidata;
                NAMEIDATA_NAME = nameidata . name;
            }
            enumerators {
                HASH_ALGO_SHA256 = hash_algo . HASH_ALGO_SHA256;
                READING_FIRMWARE = kernel_read_file_id . READING_FIRMWARE;
                READING_MODULE = kernel_read_file_id . READING_MODULE;
                READING_KEXEC_IMAGE = kernel_read_file_id . READING_KEXEC_IMAGE;
                READING_KEXEC_INITRAMFS = kernel_read_file_id . READING_KEXEC_INITRAMFS;
                LOADING_FIRMWARE = kernel_load_data_id . LOADING_FIRMWARE;
                LOADING_MODULE = kernel_load_data_id . LOADING_MODULE;
                LOADING_KEXEC_IMAGE = kernel_load_data_id . LOADING_KEXEC_IMAGE;
                LOADING_KEXEC_INITRAMFS = kernel_load_data_id . LOADING_KEXEC_INITRAMFS;
            }
            newer_enumerators {
                // Seen in 7.2; up to 6.12 compressed modules are read as READING_MODULE.
                READING_MODULE_COMPRESSED = kernel_read_file_id . READING_MODULE_COMPRESSED;
            }
        }
    };
}

macro_rules! list {
    (
        fields { $($field_global:ident = $structure:ident . $member:ident;)* }
        enumerators { $($enum_global:ident = $enumeration:ident . $enumerator:ident;)* }
        newer_enumerators { $($new_global:ident = $new_enumeration:ident . $new_enumerator:ident;)* }
    ) => {
        impl Fields {
            /// Every struct member that the programs read.
            pub const OFFSETS: &'static [Field] = &[$(Field {
                global: stringify!($field_global),
                structure: stringify!($structure),
                member: stringify!($member),
            }),*];

            /// Every enumerator that the programs compare with.
            pub const ENUMERATORS: &'static [EnumValue] = &[$(EnumValue {
                global: stringify!($enum_global),
                enumeration: stringify!($enumeration),
                enumerator: stringify!($enumerator),
            }),*];

            /// Every enumerator that only newer kernels have. Where it is missing, the global keeps
            /// [`NO_ENUMERATOR`].
            pub const NEWER_ENUMERATORS: &'static [EnumValue] = &[$(EnumValue {
                global: stringify!($new_global),
                enumeration: stringify!($new_enumeration),
                enumerator: stringify!($new_enumerator),
            }),*];
        }
    };
}

for_each_kernel_field!(list);
