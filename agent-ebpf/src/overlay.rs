//! Overlay filesystems: a merged file's content is that of a file in one of the layers, which can
//! be written without the merged file being opened.
//!
//! Opening a merged file calls `file_open` a second time, for the layer's file and with
//! `FMODE_NOACCOUNT` (seen on 5.10, 6.1, 6.12 and 7.2). That inode is marked. A write-open of a
//! marked inode other than through an overlay advances one number, which verdicts on merged files
//! carry; it is 0 until the first mark. Who was already writing then, and whether the descriptor still shows the layer that the
//! file is in, is read from the overlay's own structures. They are a module's, so that the verifier
//! knows no types for them: `bpf_probe_read_kernel` is used, which the strictest lockdown refuses.

use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};
use core::ffi::c_void;
use portcullis_common::{OverlayLayout, Reason};

use crate::{
    appraisal::is_regular,
    inode_storage::get_or_make,
    instructions,
    layout::{
        DENTRY_D_INODE, FILE_F_INODE, File, INODE_I_WRITECOUNT, Inode, file_private_data,
        inode_filesystem,
    },
    maps::{
        LAYERED, OVERLAY_LAYOUT, OVERLAY_WRITES, is_trusted_filesystem, remember_layer,
        was_opened_as_layer,
    },
};

/// `OVERLAYFS_SUPER_MAGIC` (linux/magic.h).
pub const MAGIC: u64 = 0x794c_7630;

/// Whether this is a merged file.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn is_merged(inode: *const Inode) -> bool {
    // SAFETY: by the contract.
    unsafe { inode_filesystem(inode).magic == MAGIC }
}

/// 1 if the kernel lets programs read its memory, else 0, and everything below is cut out.
#[unsafe(no_mangle)]
pub static MAY_READ_KERNEL: Global<u32> = Global::new(0);

/// Notes that a file is used as a layer's: an overlay filesystem is opening it.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn note_layer(inode: *mut Inode) {
    // SAFETY: by the contract.
    unsafe {
        if !is_regular(inode) {
            return;
        }
        // From now on marks are looked for.
        if writes() == 0 {
            count_write();
        }
        // Without memory for the mark, a write behind the merged file would not be noticed, so it
        // counts as one.
        if get_or_make(&LAYERED, inode).is_null() {
            count_write();
        } else if MAY_READ_KERNEL.load() != 0
            && let Ok(address) = address_of(inode)
        {
            remember_layer(address);
        }
    }
}

/// Notes that the content of a file may change.
///
/// The mark is not looked for before there is one: every open for writing comes here, and most
/// machines have no overlay. No write is missed by that. Whoever opens a merged file comes through
/// [`note_layer`] before it has the descriptor that a verdict needs, and leaves with both the mark
/// set and the number raised, whoever else is doing the same. Whoever opens the layer's file for
/// writing has raised its `i_writecount` before it comes here. So if it finds 0, the gate, which
/// reads that count before it hashes, sees it as a writer, or it has closed the file by then, and
/// what it wrote is hashed.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn note_write(inode: *mut Inode) {
    // SAFETY: by the contract.
    if writes() != 0 && !unsafe { LAYERED.get_ptr_mut(inode) }.is_null() {
        count_write();
    }
}

#[inline(always)]
fn count_write() {
    if let Some(number) = OVERLAY_WRITES.get(0) {
        // SAFETY: points to a map value.
        unsafe { instructions::add(number, 1) };
    }
}

/// The number that verdicts on merged files carry.
#[inline(always)]
pub fn writes() -> u64 {
    // SAFETY: points to a map value. Volatile, so that it is read anew each time.
    OVERLAY_WRITES.get_ptr(0).map_or(0, |number| unsafe { number.read_volatile() })
}

/// Whether a merged file can be identified through this descriptor. Where the layers cannot be
/// looked at, the policy of `generation` may trust overlay filesystems all the same.
///
/// # Errors
/// Why not.
///
/// # Safety
/// As for [`look_at_layers`].
#[inline(always)]
pub unsafe fn check_layers(
    file: *const File,
    inode: *const Inode,
    generation: u64,
) -> Result<(), Reason> {
    // SAFETY: by the contract.
    or_trusted(unsafe { look_at_layers(file, inode) }.map(drop), generation)
}

/// The same before there is a verdict: the layer's file must have been seen being opened, or it has
/// no mark, and a write behind the merged file would go unnoticed.
///
/// Addresses of inodes are enough to tell. One that was opened before there were gates, and is open
/// still, has kept its address, so that nobody else can have left it among those that were seen.
///
/// # Errors
/// Why not.
///
/// # Safety
/// As for [`look_at_layers`].
#[inline(always)]
pub unsafe fn check_layers_first(
    file: *const File,
    inode: *const Inode,
    generation: u64,
) -> Result<(), Reason> {
    // SAFETY: by the contract.
    let looked = unsafe { look_at_layers(file, inode) };
    let seen =
        looked.and_then(
            |shown| {
                if was_opened_as_layer(shown) { Ok(()) } else { Err(Reason::StaleLayer) }
            },
        );
    or_trusted(seen, generation)
}

#[inline(always)]
fn or_trusted(looked: Result<(), Reason>, generation: u64) -> Result<(), Reason> {
    match looked {
        Err(Reason::LayersUnknown) if is_trusted_filesystem(MAGIC, generation) => Ok(()),
        looked => looked,
    }
}

/// The address of the layer's inode, if what the descriptor shows is the file's content, and nobody
/// is writing to it.
///
/// # Errors
/// Why not.
///
/// # Safety
/// `file` is a kernel pointer that the verifier tracks, of an overlay filesystem, and `inode` its
/// inode.
#[inline(always)]
unsafe fn look_at_layers(file: *const File, inode: *const Inode) -> Result<u64, Reason> {
    if MAY_READ_KERNEL.load() == 0 {
        return Err(Reason::LayersUnknown);
    }
    let layout = OVERLAY_LAYOUT.get_ptr(0).ok_or(Reason::LayersUnknown)?;
    // SAFETY: points to a map value, which the agent writes once.
    let layout: OverlayLayout = unsafe { layout.read_volatile() };
    if layout.known == 0 {
        return Err(Reason::LayersUnknown);
    }
    // SAFETY: by the contract.
    let mut opened = unsafe { file_private_data(file) };
    if layout.opened_file != OverlayLayout::NONE {
        opened = read_at(opened.wrapping_add(u64::from(layout.opened_file)))?;
    }
    let shown: u64 = read_member(opened, &FILE_F_INODE)?;
    let writers: i32 = read_member(shown, &INODE_I_WRITECOUNT)?;
    if writers > 0 {
        return Err(Reason::BeingWritten);
    }
    let overlay_inode = address_of(inode)?.wrapping_sub(u64::from(layout.vfs_inode));
    let upper: u64 = read_at(overlay_inode.wrapping_add(u64::from(layout.upper_dentry)))?;
    // In a lower layer still, of which a merged file has one for ever.
    if upper == 0 {
        return Ok(shown);
    }
    let current: u64 = read_member(upper, &DENTRY_D_INODE)?;
    // Else the file was copied up after it was opened: reading shows the copy, and mapping the
    // layer that it was in.
    if current == shown { Ok(shown) } else { Err(Reason::StaleLayer) }
}

/// The address of a kernel pointer as a number, which the verifier does not give away, but reads
/// from the stack.
#[inline(always)]
fn address_of(inode: *const Inode) -> Result<u64, Reason> {
    let mut pointer = inode;
    // SAFETY: a variable of ours. Volatile, so that it lies on the stack.
    unsafe { (&raw mut pointer).write_volatile(inode) };
    read_at((&raw const pointer) as u64)
}

#[inline(always)]
fn read_member<T: Default>(structure: u64, offset: &Global<u32>) -> Result<T, Reason> {
    read_at(structure.wrapping_add(u64::from(offset.load())))
}

/// Reads kernel memory that the verifier knows no type of.
#[inline(always)]
fn read_at<T: Default>(address: u64) -> Result<T, Reason> {
    let mut value = T::default();
    // SAFETY: the helper checks the address, and writes no more than the value's size.
    let status = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast::<c_void>(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
    if status < 0 { Err(Reason::LayersUnknown) } else { Ok(value) }
}
