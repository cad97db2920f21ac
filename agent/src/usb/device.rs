//! A USB device as sysfs shows it, whether a driver is bound or not.

use std::{
    collections::BTreeSet,
    ffi::CStr,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use portcullis_common::Digest;
use rustix::fs::{Mode, OFlags, open, openat};
use sha2::{Digest as _, Sha256};

use super::{
    Class, UsbError,
    descriptors::{self, MAX_BYTES},
};

/// Where the kernel shows the devices of all buses.
pub const DEVICES: &str = "/sys/bus/usb/devices";

/// The longest text that is read. A string of USB has 126 characters.
const MAX_TEXT: usize = 1024;

/// What kind of socket a device is at, as the firmware told the kernel (`connect_type` of the port). What
/// a hub says of its own ports does not count: anybody can bring a hub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connect {
    /// Built in, or at a socket inside of the case.
    Internal,
    /// At a socket that everybody can reach.
    External,
    /// At a socket that the firmware says is not used.
    Unused,
    /// The firmware does not say it, as it never does of the ports of a hub that was plugged in.
    #[default]
    Unknown,
}

impl Connect {
    /// Every one with the word that policies use.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("internal", Self::Internal),
        ("external", Self::External),
        ("unused", Self::Unused),
        ("unknown", Self::Unknown),
    ];

    /// The word that policies use.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
            Self::Unused => "unused",
            Self::Unknown => "unknown",
        }
    }
}

/// What a device is. Names and numbers are what the device says, which anybody can make it say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The kernel's name for the place: bus, and ports from hub to hub, as `1-2.3`.
    pub port: String,
    /// The kernel's number for the bus.
    pub bus: u32,
    /// The kernel's number on that bus, which a device that comes again does not have.
    pub number: u32,
    /// The maker's number.
    pub vendor: u16,
    /// The maker's number for the product.
    pub product: u16,
    /// The device's own class, if its descriptors can be read.
    pub class: Option<Class>,
    /// What the device calls itself.
    pub name: String,
    /// What the device calls its maker.
    pub manufacturer: String,
    /// Its serial number; none if it has none.
    pub serial: Option<String>,
    /// Every kind of interface that it can show.
    pub interfaces: BTreeSet<Class>,
    /// How many interfaces it has, with each of their alternate settings, in all of its configurations.
    pub interface_count: usize,
    /// SHA-256 of its descriptors.
    pub descriptors: Digest,
    /// How it is connected.
    pub connect: Connect,
    /// Bits in a second, as the kernel tells it in millions.
    pub speed: String,
    /// Which of its configurations is chosen; none while it is held.
    pub configuration: Option<String>,
    /// Whether the kernel lets drivers have it.
    pub authorized: bool,
    /// What is wrong with what it says, so that no rule can let it in.
    pub flaw: Option<String>,
}

impl Device {
    /// Vendor and product as policies write them.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{:04x}:{:04x}", self.vendor, self.product)
    }

    /// Whether it may be a keyboard.
    #[must_use]
    pub fn may_be_keyboard(&self) -> bool {
        self.interfaces.iter().any(|class| class.may_be_keyboard())
    }

    /// What it is for, for people.
    #[must_use]
    pub fn kinds(&self) -> String {
        let words: BTreeSet<_> = self.interfaces.iter().map(|class| class.word()).collect();
        if words.is_empty() {
            return "of unknown kind".into();
        }
        words.into_iter().collect::<Vec<_>>().join(" and ")
    }
}

/// A device's folder, held open: whatever comes to the same port later is another folder.
pub struct Folder {
    folder: OwnedFd,
    port: String,
}

impl Folder {
    /// Opens the device at a port.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(devices: &Path, port: &str) -> Result<Self, UsbError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(devices.join(port), flags, Mode::empty())
            .map_err(|error| UsbError::new(format!("USB device {port}"), error))?;
        Ok(Self { folder, port: port.to_owned() })
    }

    /// Its descriptors as the kernel keeps them, and no more of them than can be read.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn raw_descriptors(&self) -> Result<Vec<u8>, UsbError> {
        self.bytes(c"descriptors", MAX_BYTES + 1)
            .map_err(|error| UsbError::new(format!("USB device {}", self.port), error))
    }

    fn file(&self, name: &CStr, flags: OFlags) -> io::Result<File> {
        Ok(openat(&self.folder, name, flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn bytes(&self, name: &CStr, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        self.file(name, OFlags::RDONLY)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A file's text without the newline that the kernel adds; `Err` if it cannot be read or is no
    /// text.
    pub(super) fn text(&self, name: &CStr) -> io::Result<String> {
        let mut bytes = self.bytes(name, MAX_TEXT)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// Writes to one of the device's switches.
    ///
    /// # Errors
    /// If the kernel refuses, or the device is gone.
    pub fn write(&self, name: &CStr, text: &str) -> Result<(), UsbError> {
        self.file(name, OFlags::WRONLY)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| {
                UsbError::new(format!("{} of USB device {}", shown(name), self.port), error)
            })
    }

    /// Reads everything that says what the device is.
    ///
    /// # Errors
    /// If the device is gone.
    pub fn read(&self) -> Result<Device, UsbError> {
        let gone = |error| UsbError::new(format!("USB device {}", self.port), error);
        let number = |name: &CStr| -> Result<u32, UsbError> {
            let text = self.text(name).map_err(gone)?;
            text.trim().parse().map_err(|_| gone(io::ErrorKind::InvalidData.into()))
        };
        let mut device = Device {
            port: self.port.clone(),
            bus: number(c"busnum")?,
            number: number(c"devnum")?,
            authorized: number(c"authorized")? != 0,
            ..Device::default()
        };
        let raw = self.bytes(c"descriptors", MAX_BYTES + 1).map_err(gone)?;
        device.descriptors = Sha256::digest(&raw).into();
        match descriptors::parse(&raw) {
            Ok(read) => {
                (device.vendor, device.product) = (read.vendor, read.product);
                device.class = Some(read.class);
                device.interfaces = read.interfaces;
                device.interface_count = read.interface_count;
            }
            Err(why) => {
                device.flaw = Some(format!("its descriptors cannot be relied on: {why}"));
                let hex =
                    |name| self.text(name).ok().and_then(|t| u16::from_str_radix(&t, 16).ok());
                device.vendor = hex(c"idVendor").unwrap_or_default();
                device.product = hex(c"idProduct").unwrap_or_default();
            }
        }
        let mut said = |name: &CStr| match self.text(name) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // What is no text equals nothing that a policy can say.
            Err(_) => {
                let what = shown(name);
                device.flaw.get_or_insert_with(|| format!("its {what} cannot be read as text"));
                None
            }
        };
        let (name, manufacturer, serial) =
            (said(c"product"), said(c"manufacturer"), said(c"serial"));
        device.name = name.unwrap_or_default();
        device.manufacturer = manufacturer.unwrap_or_default();
        device.serial = serial;
        // Not `removable`, for which the kernel also takes a hub's word
        // (`set_usb_port_removable` in drivers/usb/core/hub.c).
        device.connect = match self.text(c"port/connect_type").as_deref() {
            Ok("hardwired") => Connect::Internal,
            Ok("hotplug") => Connect::External,
            Ok("not used") => Connect::Unused,
            _ => Connect::Unknown,
        };
        device.speed = self.text(c"speed").unwrap_or_default();
        let configuration = self.text(c"bConfigurationValue").unwrap_or_default();
        device.configuration = Some(configuration).filter(|value| !value.is_empty());
        // One that was going meanwhile has seemed to have no serial number and no name. The kernel takes
        // its number away before these.
        if number(c"devnum")? != device.number {
            return Err(gone(io::ErrorKind::NotFound.into()));
        }
        Ok(device)
    }
}

fn shown(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

/// What lies in the folder of devices.
#[derive(Debug, Default)]
pub struct Present {
    /// Root hubs, which belong to the machine: `usb1`.
    pub hubs: Vec<String>,
    /// Devices, by port; those at hubs come after them.
    pub ports: Vec<String>,
}

/// Who is there. None if the kernel has no USB, or not yet.
#[must_use]
pub fn present(devices: &Path) -> Present {
    let mut found = Present::default();
    for entry in std::fs::read_dir(devices).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.strip_prefix("usb").is_some_and(is_number) {
            found.hubs.push(name);
        } else if is_port(&name) {
            found.ports.push(name);
        }
    }
    found.hubs.sort();
    found.ports.sort();
    found
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether it is the kernel's name for a device's place: `1-2.3`, and not of an interface, `1-2.3:1.0`.
#[must_use]
pub fn is_port(name: &str) -> bool {
    name.split_once('-').is_some_and(|(bus, ports)| {
        is_number(bus) && ports.split('.').all(is_number) && ports.split('.').count() <= 7
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::usb::descriptors::tests::made;

    #[test]
    fn places_are_told_from_interfaces_and_hubs() {
        for good in ["1-2", "2-1.4", "10-1.2.3.4.5.6.7"] {
            assert!(is_port(good), "{good}");
        }
        for bad in ["usb1", "1-2:1.0", "1-", "-1", "1-2.", "a-1", "1-1.2.3.4.5.6.7.8", "../1-1"] {
            assert!(!is_port(bad), "{bad}");
        }
    }

    #[test]
    fn a_device_is_what_its_files_say() {
        let devices = tempfile::tempdir().expect("a folder");
        let folder = devices.path().join("1-2");
        fs::create_dir(&folder).expect("made");
        let write = |name: &str, content: &[u8]| fs::write(folder.join(name), content).expect(name);
        let read = || Folder::open(devices.path(), "1-2").and_then(|folder| folder.read());
        assert!(read().is_err());
        for (name, text) in [("busnum", "1\n"), ("devnum", "7\n"), ("authorized", "0\n")] {
            write(name, text.as_bytes());
        }
        write("descriptors", &made(0x0781, 0x5581, &[[8, 6, 0x50]]));
        write("serial", b"A\nB\n");
        // A hub says of its ports what it likes.
        write("removable", b"fixed\n");
        assert_eq!(read().expect("whole").connect, Connect::Unknown);
        fs::create_dir(folder.join("port")).expect("made");
        write("port/connect_type", b"hotplug\n");
        let device = read().expect("whole");
        assert_eq!((device.id().as_str(), device.number), ("0781:5581", 7));
        assert_eq!(device.serial.as_deref(), Some("A\nB"));
        assert_eq!((device.connect, device.flaw.clone()), (Connect::External, None));
        assert!(!device.authorized && !device.may_be_keyboard());

        write("serial", b"\xff\xfe\n");
        let device = read().expect("whole");
        assert_eq!(device.flaw.as_deref(), Some("its serial cannot be read as text"));
        write("serial", b"1\n");
        write("descriptors", b"\x12\x01");
        write("idVendor", b"0781\n");
        let device = read().expect("whole");
        assert_eq!((device.vendor, device.interfaces.len()), (0x0781, 0));
        assert!(device.flaw.expect("flawed").starts_with("its descriptors cannot be relied on"));
    }
}
