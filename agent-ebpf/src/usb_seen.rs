//! USB devices as the driver core sees them come, go and change, before anybody else does.
//!
//! Not the functions of usbcore: that may be a module, or be loaded later, or have compiled them into one
//! another. Every device and every interface passes `device_add` and `device_del`, which are in every
//! kernel, and are known by the name of their type. A device that is authorized or gets another
//! configuration loses its interfaces and gets new ones, so that these say what has changed.
//!
//! What is read is copied, as the driver core's pointer is not that of the USB device. Where the strictest
//! lockdown refuses that, these programs are not loaded, and the kernel's messages are left.

use aya_ebpf::{
    EbpfContext,
    btf_maps::{Array, RingBuf},
    helpers::{
        bpf_get_current_comm,
        generated::{
            bpf_get_current_pid_tgid, bpf_get_current_task, bpf_ktime_get_boot_ns,
            bpf_probe_read_kernel, bpf_probe_read_kernel_str,
        },
    },
    macros::{btf_map, fentry},
    programs::FEntryContext,
};
use core::ffi::c_void;
use portcullis_common::{
    COMM_LEN, USB_DESCRIPTORS, USB_DEVICE_DESCRIPTOR, USB_TEXT, UsbCounts, UsbLayout, UsbRecord,
    UsbText, usb_change,
};

use crate::{
    instructions,
    layout::{TASK_STRUCT_MM, copy_at},
    name::{Name, name},
};

/// Where everything is, once the agent knows it.
#[btf_map(name = "PCULLIS_USB_LAYOUT")]
static LAYOUT: Array<UsbLayout, 1> = Array::new();

/// What was counted.
#[btf_map(name = "PCULLIS_USB_COUNTS")]
static COUNTS: Array<UsbCounts, 1> = Array::new();

/// What is told. 256 KiB hold about 230 changes; the agent makes it small if nobody asks.
#[btf_map(name = "PCULLIS_USB_SEEN")]
static SEEN: RingBuf<UsbRecord, { 1 << 18 }> = RingBuf::new();

/// `int device_add(struct device *dev)`, 5.10 to 7.2.
#[fentry(function = "device_add")]
pub fn seen_device_add(ctx: FEntryContext) -> u32 {
    seen(&ctx, true);
    0
}

/// `void device_del(struct device *dev)`, 5.10 to 7.2.
#[fentry(function = "device_del")]
pub fn seen_device_del(ctx: FEntryContext) -> u32 {
    seen(&ctx, false);
    0
}

#[inline(always)]
fn seen(ctx: &FEntryContext, came: bool) {
    let Some(layout) = LAYOUT.get(0).filter(|layout| layout.known == 1) else { return };
    // The first argument as a number, with which can be reckoned.
    let device: u64 = copy(ctx.as_ptr() as u64);
    let kind: u64 = copy(device + u64::from(layout.kind));
    let kind_name: u64 = copy(kind + u64::from(layout.kind_name));
    let [first, second]: [u64; 2] = copy(kind_name);
    const DEVICE: Name = name(b"usb_device");
    const INTERFACE: Name = name(b"usb_interface");
    // Both end in the first two words.
    let found = [first, second, 0, 0];
    let (device, change) = if DEVICE.is(&found) {
        (device, if came { usb_change::ATTACHED } else { usb_change::DETACHED })
    } else if INTERFACE.is(&found) {
        let parent = copy(device + u64::from(layout.parent));
        (parent, if came { usb_change::INTERFACE_CAME } else { usb_change::INTERFACE_WENT })
    } else {
        return;
    };
    tell(layout, device, change);
}

#[inline(always)]
fn tell(layout: &UsbLayout, device: u64, change: u8) {
    let Some(counts) = COUNTS.get_ptr_mut(0) else { return };
    let is_new = change == usb_change::ATTACHED;
    // SAFETY: points to a map value.
    unsafe {
        if is_new {
            instructions::add(&(*counts).attached, 1);
        } else if change == usb_change::DETACHED {
            instructions::add(&(*counts).detached, 1);
        }
    }
    let Some(mut entry) = SEEN.reserve_untyped::<UsbRecord>(0) else {
        // SAFETY: points to a map value.
        unsafe {
            let lost =
                if is_new { &raw mut (*counts).lost_attached } else { &raw mut (*counts).lost };
            instructions::add(&*lost, 1);
        }
        return;
    };
    let usb = device - u64::from(layout.device);
    let record = entry.as_mut_ptr();
    // SAFETY: the ring gave room for the record; the helpers have no precondition.
    unsafe {
        (*record).boot_ns = bpf_ktime_get_boot_ns();
        (*record).pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*record).number = copy(usb + u64::from(layout.number));
        (*record).speed = copy(usb + u64::from(layout.speed));
        (*record).change = change;
        let authorized: u8 = copy(usb + u64::from(layout.authorized));
        (*record).authorized = u8::from(u32::from(authorized) & layout.authorized_bit != 0);
        let active: u64 = copy(usb + u64::from(layout.active));
        // At no address there is nothing.
        (*record).configuration = copy(active + u64::from(layout.value));
        let memory: u64 = copy(bpf_get_current_task() + u64::from(TASK_STRUCT_MM.load()));
        (*record).by_kernel = u8::from(memory == 0);
        (*record).comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
        text(&raw mut (*record).port, device + u64::from(layout.name));
        text(&raw mut (*record).product, usb + u64::from(layout.product));
        text(&raw mut (*record).manufacturer, usb + u64::from(layout.manufacturer));
        text(&raw mut (*record).serial, usb + u64::from(layout.serial));
        let from = (usb + u64::from(layout.descriptor)) as *const c_void;
        let to = (&raw mut (*record).device).cast();
        bpf_probe_read_kernel(to, USB_DEVICE_DESCRIPTOR as u32, from);
        let configuration: u64 = copy(usb + u64::from(layout.configurations));
        let total = u16::from_le(copy(configuration + u64::from(layout.total_length)));
        (*record).total_length = total;
        let raw: u64 = copy(copy(usb + u64::from(layout.descriptors)));
        let to = (&raw mut (*record).descriptors).cast();
        let length = u64::from(total);
        // Compared as a number of which the verifier keeps the bound.
        let length = if length > USB_DESCRIPTORS as u64 { USB_DESCRIPTORS as u64 } else { length };
        let failed = bpf_probe_read_kernel(to, length as u32, raw as *const c_void);
        (*record).descriptors_length = if failed == 0 { length as u16 } else { 0 };
        (*record).reserved = [0; 2];
    }
    entry.submit(0);
}

/// Copies the text that a pointer at `place` points to.
///
/// # Safety
/// `to` points to writable memory.
#[inline(always)]
unsafe fn text(to: *mut UsbText, place: u64) {
    let from: u64 = copy(place);
    // SAFETY: by the contract; the helper writes no more than the room.
    unsafe {
        (*to).length = if from == 0 {
            0
        } else {
            let bytes = (&raw mut (*to).bytes).cast();
            bpf_probe_read_kernel_str(bytes, USB_TEXT as u32, from as *const c_void) as i32
        };
    }
}

/// What lies at an address of the kernel; zeros if it cannot be read.
#[inline(always)]
fn copy<T: Copy>(address: u64) -> T {
    // SAFETY: `T` is an integer or an array of them everywhere in this file.
    unsafe { copy_at(address as *const c_void) }
}
