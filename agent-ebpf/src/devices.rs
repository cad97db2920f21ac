//! Filesystems that are trusted as a whole, because the kernel verifies every block of their
//! device against a root hash that the policy lists (dm-verity).
//!
//! The agent finds out which devices those are. What it found must not outlive the device's table:
//! tables are exchanged under mounted filesystems, and numbers of devices are given again. No
//! security hook is called then, but every new table sets the disk's capacity before it takes
//! effect (`__bind` in drivers/md/dm.c, 5.10 to 6.12), and every removal calls `del_gendisk`.
//!
//! A device that ever had a second table is never trusted again. What was read under another one
//! stays in memory, and would pass for verified.

use aya_ebpf::{
    Global,
    btf_maps::HashMap,
    macros::{btf_map, fentry},
    programs::FEntryContext,
};
use core::ffi::c_void;
use portcullis_common::{Active, Kinds, Rule, VerifiedDevice, tables};

use crate::layout::{Filesystem, Inode, inode_filesystem, load};

/// Magic numbers of squashfs, erofs and ext4 (linux/magic.h), which read from their one device
/// only. The same device can be mounted by others afterwards: by FUSE, as fuseblk, whose content
/// a process serves.
const DEVICE_ONLY: [u64; 3] = [0x7371_7368, 0xe0f5_e1e2, 0xef53];

/// How many tables each device of the device mapper has had, by the kernel's device number. A
/// device that found no room here is not trusted.
#[btf_map(name = "PCULLIS_DEVICE_TABLES")]
static DEVICE_TABLES: HashMap<u32, u32, 1024> = HashMap::new();

/// What the agent has found out, by the kernel's device number.
#[btf_map(name = "PCULLIS_VERIFIED_DEVICES")]
static VERIFIED_DEVICES: HashMap<u32, VerifiedDevice, 64> = HashMap::new();

// Not among the fields that every kernel must have: these programs are loaded only for policies
// that list a root hash. An offset that was not set lies outside of every struct.
#[unsafe(no_mangle)]
static GENDISK_PART0: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static GENDISK_DISK_NAME: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static BLOCK_DEVICE_BD_DEV: Global<u32> = Global::new(0xffff);
#[unsafe(no_mangle)]
static BLOCK_DEVICE_BD_NR_SECTORS: Global<u32> = Global::new(0xffff);

/// The rule for a file because of the filesystem that it lies on, if that is trusted for one of
/// the `wanted` kinds.
///
/// # Safety
/// `inode` is a kernel pointer that the verifier tracks.
#[inline(always)]
pub unsafe fn verified(inode: *const Inode, generation: u64, wanted: Kinds) -> Option<Rule> {
    // SAFETY: by the contract.
    let Filesystem { device, magic } = unsafe { inode_filesystem(inode) };
    let found = VERIFIED_DEVICES.get_ptr(&device)?;
    if !DEVICE_ONLY.contains(&magic) {
        return None;
    }
    let had = DEVICE_TABLES.get_ptr(&device)?;
    // SAFETY: points to a map value. Volatile, because another processor may be changing it.
    if unsafe { had.read_volatile() } != tables::ONE {
        return None;
    }
    // SAFETY: points to a map value.
    let found = unsafe { found.read() };
    let first = Active::slot(generation) == 0;
    let (kinds, line) =
        if first { (found.kinds[0], found.lines[0]) } else { (found.kinds[1], found.lines[1]) };
    kinds.intersects(wanted).then_some(Rule { kinds, denied: 0, source: 0, line })
}

/// `void set_capacity(struct gendisk *disk, sector_t sectors)`, 5.10 to 6.12.
#[fentry(function = "set_capacity")]
pub fn watch_capacity(ctx: FEntryContext) -> u32 {
    // SAFETY: the function's first argument is a `struct gendisk *`.
    unsafe { new_table(ctx.arg(0)) };
    0
}

/// `bool set_capacity_and_notify(struct gendisk *disk, sector_t size)`, from 5.11: the other way
/// to set it, into which the compiler may have copied the first.
#[fentry(function = "set_capacity_and_notify")]
pub fn watch_capacity_notify(ctx: FEntryContext) -> u32 {
    // SAFETY: as above.
    unsafe { new_table(ctx.arg(0)) };
    0
}

/// `void del_gendisk(struct gendisk *disk)`: the device goes, and its number is free.
#[fentry(function = "del_gendisk")]
pub fn watch_removal(ctx: FEntryContext) -> u32 {
    // SAFETY: the function's first argument is a `struct gendisk *`.
    if let Some((device, _)) = unsafe { mapped_device(ctx.arg(0)) } {
        // That nothing was known of it is no failure.
        let _ = VERIFIED_DEVICES.remove(&device);
        let _ = DEVICE_TABLES.remove(&device);
    }
    0
}

/// # Safety
/// `disk` is a `struct gendisk *` that the verifier tracks.
#[inline(always)]
unsafe fn new_table(disk: *const c_void) {
    // SAFETY: by the contract.
    let Some((device, sectors)) = (unsafe { mapped_device(disk) }) else { return };
    // Nothing could have been read from a device without a capacity.
    let had = if sectors == 0 { tables::ONE } else { tables::SEVERAL };
    // Without room for it, the device is not trusted.
    let _ = DEVICE_TABLES.insert(&device, &had, 0);
    // That it was not trusted is no failure.
    let _ = VERIFIED_DEVICES.remove(&device);
}

/// Number and present size of a disk, if it is one that the device mapper has made.
///
/// # Safety
/// `disk` is a `struct gendisk *` that the verifier tracks.
#[inline(always)]
unsafe fn mapped_device(disk: *const c_void) -> Option<(u32, u64)> {
    // SAFETY: by the contract; a disk always has a block device.
    unsafe {
        // The name is the kernel's own, «dm-» and the minor number (`alloc_dev` in dm.c).
        let name: u32 = load(disk, &GENDISK_DISK_NAME);
        if name & 0x00ff_ffff != u32::from_le_bytes(*b"dm-\0") {
            return None;
        }
        let block: *const c_void = load(disk, &GENDISK_PART0);
        Some((load(block, &BLOCK_DEVICE_BD_DEV), load(block, &BLOCK_DEVICE_BD_NR_SECTORS)))
    }
}
