//! Who may change which USB devices come alive, and what the kernel programs tell of them.

use crate::COMM_LEN;

/// A process among all that there were since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Process {
    /// When it was started, in hundredths of a second since boot, as `/proc/PID/stat` tells it: ids are
    /// given again.
    pub started: u64,
    /// Its id (thread group) in the initial namespace.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

impl Process {
    /// Nanoseconds in a unit of [`Self::started`].
    pub const TICK: u64 = 10_000_000;
}

const _: () = assert!(size_of::<Process>() == 16);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for Process {}

/// Where the kernel keeps what is told of USB devices. A map and not globals, because `struct usb_device`
/// may come with a module that is loaded while the agent runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UsbLayout {
    /// 1 if the rest is known, else 0.
    pub known: u32,
    /// Offset of the name in `struct device`: `kobj.name`.
    pub name: u32,
    /// Of `parent` in it.
    pub parent: u32,
    /// Of `type` in it.
    pub kind: u32,
    /// Of `name` in `struct device_type`.
    pub kind_name: u32,
    /// Of `dev` in `struct usb_device`.
    pub device: u32,
    /// Of `descriptor` in it.
    pub descriptor: u32,
    /// Of `devnum` in it.
    pub number: u32,
    /// Of `speed` in it.
    pub speed: u32,
    /// Of the byte in it that has the bit `authorized`.
    pub authorized: u32,
    /// That bit.
    pub authorized_bit: u32,
    /// Offset of `product` in it.
    pub product: u32,
    /// Of `manufacturer` in it.
    pub manufacturer: u32,
    /// Of `serial` in it.
    pub serial: u32,
    /// Of `actconfig` in it.
    pub active: u32,
    /// Of `config` in it.
    pub configurations: u32,
    /// Of `rawdescriptors` in it.
    pub descriptors: u32,
    /// Of `desc.wTotalLength` in `struct usb_host_config`.
    pub total_length: u32,
    /// Of `desc.bConfigurationValue` in it.
    pub value: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<UsbLayout>() == 80);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for UsbLayout {}

/// What happened to a USB device.
pub mod usb_change {
    /// The device is about to be shown to drivers and programs.
    pub const ATTACHED: u8 = 1;
    /// It is about to go.
    pub const DETACHED: u8 = 2;
    /// One of its interfaces comes, because a configuration was chosen.
    pub const INTERFACE_CAME: u8 = 3;
    /// One goes, because the device is held, has another configuration or is unplugged.
    pub const INTERFACE_WENT: u8 = 4;
}

/// Room for a text of a USB device. It has 126 characters at most; what is no ASCII may be cut.
pub const USB_TEXT: usize = 128;

/// Room for the descriptors of a USB device's first configuration. Few have more.
pub const USB_DESCRIPTORS: usize = 512;

/// Bytes of a device descriptor.
pub const USB_DEVICE_DESCRIPTOR: usize = 18;

/// A text as the kernel keeps it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UsbText {
    /// Its bytes with the terminating zero, 0 if there is none, or a negative errno.
    pub length: i32,
    /// The text and its terminating zero; what follows is undefined.
    pub bytes: [u8; USB_TEXT],
}

/// What happened, and to which device, as it lies in the ring.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct UsbRecord {
    /// Nanoseconds since boot, suspend included (`CLOCK_BOOTTIME`).
    pub boot_ns: u64,
    /// Process id (thread group) of who did it, in the initial namespace.
    pub pid: u32,
    /// The kernel's number for the device on its bus.
    pub number: u32,
    /// `enum usb_device_speed` (linux/usb/ch9.h).
    pub speed: u32,
    /// One of [`usb_change`].
    pub change: u8,
    /// 1 if drivers may have it.
    pub authorized: u8,
    /// `bConfigurationValue` of the configuration that is chosen; 0 if none is.
    pub configuration: u8,
    /// 1 if the kernel did it itself, and no process.
    pub by_kernel: u8,
    /// Name of the task.
    pub comm: [u8; COMM_LEN],
    /// Bytes of [`Self::descriptors`] that are there.
    pub descriptors_length: u16,
    /// Bytes that the first configuration has.
    pub total_length: u16,
    /// The kernel's name for the device: `1-2.3`, or `usb1` for a root hub.
    pub port: UsbText,
    /// What it calls itself.
    pub product: UsbText,
    /// What it calls its maker.
    pub manufacturer: UsbText,
    /// Its serial number.
    pub serial: UsbText,
    /// Its device descriptor.
    pub device: [u8; USB_DEVICE_DESCRIPTOR],
    /// The descriptors of its first configuration, cut at the room for them; what follows is undefined.
    pub descriptors: [u8; USB_DESCRIPTORS],
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<UsbRecord>() == 1104);

/// What the kernel programs have counted of USB devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UsbCounts {
    /// Devices that came, root hubs among them.
    pub attached: u64,
    /// Devices that went.
    pub detached: u64,
    /// Devices that came, of which there was no room to tell.
    pub lost_attached: u64,
    /// Everything else of which there was no room to tell.
    pub lost: u64,
}

const _: () = assert!(size_of::<UsbCounts>() == 32);

#[cfg(feature = "agent")]
// SAFETY: `repr(C)`, made of integers only, without padding (its size is asserted above).
unsafe impl aya::Pod for UsbCounts {}
