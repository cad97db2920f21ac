//! The gate at the switches by which USB devices come alive.
//!
//! A device is held by the kernel itself (`authorized_default` of its root hub); no program can stop a
//! driver from being bound. The agent releases what the policy lists, by writing to the device's
//! `authorized`. These programs see to it that nobody else does, whether the agent lives or not.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use portcullis_common::{Active, Choices, Gate, Kinds, Outcome, Reason};

use crate::{
    appraisal::Appraisal,
    instructions,
    judge::{Hook, count_outcome, outcome},
    layout::{
        Dentry, FILE_TYPE, File, Inode, current_process, dentry_parent, file_dentry, file_inode,
        inode_filesystem, inode_mode, inode_special_device, look_at_dentry, short_name,
    },
    maps::{active, is_usb_agent},
    name::{Name, name},
    report::{Report, report_with_names},
};

/// `MAY_WRITE` (include/linux/fs.h).
const MAY_WRITE: i32 = 2;
/// `SYSFS_MAGIC` (linux/magic.h).
const SYSFS: u64 = 0x6265_6572;
/// `S_IFCHR` (linux/stat.h).
const CHARACTER_DEVICE: u16 = 0o020_000;
/// `USB_DEVICE_MAJOR` (include/linux/usb.h).
const USB_DEVICE_MAJOR: u32 = 189;
/// `USBDEVFS_SETCONFIGURATION` (linux/usbdevice_fs.h).
const SET_CONFIGURATION: u32 = 0x8004_5505;

/// Folders above a switch that are looked at: a device lies below seven hubs at most, and each is a
/// folder.
const DEPTH: usize = 9;

const AUTHORIZED: Name = name(b"authorized");
const AUTHORIZED_DEFAULT: Name = name(b"authorized_default");
const INTERFACE_AUTHORIZED_DEFAULT: Name = name(b"interface_authorized_default");
const CONFIGURATION: Name = name(b"bConfigurationValue");
const REMOVE: Name = name(b"remove");
const DRIVERS_PROBE: Name = name(b"drivers_probe");
const DRIVERS_AUTOPROBE: Name = name(b"drivers_autoprobe");
const BIND: Name = name(b"bind");
const UNBIND: Name = name(b"unbind");
const NEW_ID: Name = name(b"new_id");
const REMOVE_ID: Name = name(b"remove_id");
const USB: Name = name(b"usb");
const DRIVERS: Name = name(b"drivers");
const PARAMETERS: Name = name(b"parameters");
const USBCORE: Name = name(b"usbcore");

/// `int file_permission(struct file *file, int mask)`, 5.10 to 7.2: before each write, also through
/// descriptors that were opened before this program was attached.
#[lsm(hook = "file_permission")]
pub fn gate_usb(ctx: LsmContext) -> i32 {
    let mask: i32 = ctx.arg(1);
    if mask & MAY_WRITE == 0 {
        return 0;
    }
    let file: *const File = ctx.arg(0);
    // SAFETY: the hook's first argument is a `struct file *`.
    let filesystem = unsafe { inode_filesystem(file_inode(file)).magic };
    if filesystem == SYSFS { written(file) } else { 0 }
}

/// A function of its own, so that everybody else's writes do not pay for saving registers.
#[inline(never)]
fn written(file: *const File) -> i32 {
    if !is_in_force() {
        return 0;
    }
    // SAFETY: the only caller passes the hook's argument, a `struct file *`.
    unsafe {
        let dentry = file_dentry(file);
        if is_switch(dentry) { judge(file_inode(file), dentry) } else { 0 }
    }
}

/// `int file_ioctl(struct file *file, unsigned int cmd, unsigned long arg)`, 5.10 to 7.2.
#[lsm(hook = "file_ioctl")]
pub fn gate_usb_ioctl(ctx: LsmContext) -> i32 {
    // SAFETY: the hook's first argument is a `struct file *`.
    unsafe { commanded(ctx.arg(0), ctx.arg(1)) }
}

/// `int file_ioctl_compat(struct file *file, unsigned int cmd, unsigned long arg)`, from 6.8 and in the
/// later releases of those before: the system calls of programs of 32 bits, which everybody can make.
#[lsm(hook = "file_ioctl_compat")]
pub fn gate_usb_ioctl_compat(ctx: LsmContext) -> i32 {
    // SAFETY: as above.
    unsafe { commanded(ctx.arg(0), ctx.arg(1)) }
}

/// # Safety
/// `file` is a `struct file *` that the verifier tracks.
#[inline(always)]
unsafe fn commanded(file: *const File, command: u32) -> i32 {
    if command != SET_CONFIGURATION || !is_in_force() {
        return 0;
    }
    // SAFETY: by the contract.
    unsafe {
        let inode = file_inode(file);
        let is_usb = inode_mode(inode) & FILE_TYPE == CHARACTER_DEVICE
            && inode_special_device(inode) >> 20 == USB_DEVICE_MAJOR;
        if is_usb { judge(inode, file_dentry(file)) } else { 0 }
    }
}

#[inline(always)]
fn is_in_force() -> bool {
    let active = active();
    active != Active::NONE && active.choices().contains(Choices::USB)
}

/// Whether a file of sysfs has a say in which USB devices come alive. By its names: they do not depend
/// on where sysfs is mounted.
///
/// # Safety
/// `dentry` is a kernel pointer that the verifier tracks.
#[inline(always)]
unsafe fn is_switch(dentry: *const Dentry) -> bool {
    // SAFETY: by the contract; an entry always has a parent, which may be itself.
    unsafe {
        let dentry = look_at_dentry(dentry);
        let file = short_name(dentry);
        let of_device = AUTHORIZED.is(&file)
            || AUTHORIZED_DEFAULT.is(&file)
            || INTERFACE_AUTHORIZED_DEFAULT.is(&file)
            || CONFIGURATION.is(&file)
            || REMOVE.is(&file);
        let of_driver =
            BIND.is(&file) || UNBIND.is(&file) || NEW_ID.is(&file) || REMOVE_ID.is(&file);
        let of_bus = DRIVERS_PROBE.is(&file) || DRIVERS_AUTOPROBE.is(&file);
        let first = dentry_parent(dentry);
        let folder = short_name(first);
        if of_bus {
            return USB.is(&folder);
        }
        if !of_device && !of_driver {
            return false;
        }
        let second = dentry_parent(first);
        let above = short_name(second);
        if of_driver {
            return DRIVERS.is(&above) && USB.is(&short_name(dentry_parent(second)));
        }
        if PARAMETERS.is(&folder) {
            return USBCORE.is(&above);
        }
        let mut ancestor = first;
        let mut depth = 0;
        while depth < DEPTH {
            if is_root_hub(&short_name(ancestor)) {
                return true;
            }
            ancestor = dentry_parent(ancestor);
            depth += 1;
        }
        false
    }
}

/// Whether it is the name of a root hub: `usb` and a number. Thunderbolt has `authorized` too.
#[inline(always)]
fn is_root_hub(name: &[u64; 4]) -> bool {
    let digit = (name[0] >> 24) as u8;
    name[0] & 0x00ff_ffff == u64::from_le_bytes(*b"usb\0\0\0\0\0") && digit.is_ascii_digit()
}

/// # Safety
/// `inode` and `dentry` are kernel pointers that the verifier tracks.
#[inline(always)]
unsafe fn judge(inode: *const Inode, dentry: *const Dentry) -> i32 {
    let active = active();
    let outcome = outcome(active, !is_usb_agent(current_process()));
    let reason = Reason::UsbSwitch;
    count_outcome(Gate::Usb, outcome, reason);
    // What the agent does is told by itself.
    if outcome as u8 == Outcome::Allow as u8 {
        return 0;
    }
    let hook = Hook { gate: Gate::Usb, sleeps: false, hashes: false };
    let appraisal = Appraisal::new(active);
    let told = Report { hook, outcome, reason, wanted: Kinds::NONE, appraisal: &appraisal };
    // SAFETY: by the contract.
    unsafe { report_with_names(&told, inode, dentry) };
    instructions::refusal(outcome as u8 == Outcome::Deny as u8)
}
