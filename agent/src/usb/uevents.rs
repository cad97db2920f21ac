//! The kernel's word that devices came or went.
//!
//! What it says is not relied on: whoever is root can send the like. It only says when to look.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recv, socket_with,
    },
};

/// The kernel's own messages; those of group 2 are udev's.
const KERNEL: u32 = 1;

/// The largest message (`UEVENT_BUFFER_SIZE`, and a path in front of it).
const ROOM: usize = 8192;

/// Messages that are read before the agent does something else.
const BATCH: usize = 256;

/// What is told between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Something of USB has changed, or may have, as messages were lost.
    pub usb: bool,
    /// A disk has come.
    pub disk: bool,
    /// How many USB devices have come.
    pub attached: u64,
    /// How many have gone.
    pub detached: u64,
    /// How often the kernel had more to tell than there was room for.
    pub overruns: u64,
}

/// A socket at which the kernel tells of devices.
pub struct Uevents {
    socket: OwnedFd,
}

impl AsRawFd for Uevents {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Uevents {
    /// Listens.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self { socket })
    }

    /// Reads what was told. The second value says whether there may be more.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn read(&self) -> io::Result<(Told, bool)> {
        let mut told = Told::default();
        let mut message = [0; ROOM];
        for _ in 0..BATCH {
            match recv(&self.socket, &mut message, RecvFlags::empty()) {
                Ok((length, _)) => {
                    let one = read(&message[..length.min(ROOM)]);
                    told.usb |= one.usb;
                    told.disk |= one.disk;
                    told.attached += one.attached;
                    told.detached += one.detached;
                }
                // There were more than the socket holds: whoever is there is found by looking.
                Err(Errno::NOBUFS) => {
                    (told.usb, told.disk) = (true, true);
                    told.overruns += 1;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok((told, false)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok((told, true))
    }
}

fn read(message: &[u8]) -> Told {
    let mut words = message.split(|byte| *byte == 0);
    let has = |wanted: &[u8]| message.split(|byte| *byte == 0).any(|word| word == wanted);
    let is_core = words.next().is_some_and(|first| first.ends_with(b"/module/usbcore"));
    let is_usb = has(b"SUBSYSTEM=usb");
    let is_device = is_usb && has(b"DEVTYPE=usb_device");
    Told {
        usb: is_usb || is_core,
        disk: has(b"SUBSYSTEM=block") && has(b"ACTION=add"),
        attached: u64::from(is_device && has(b"ACTION=add")),
        detached: u64::from(is_device && has(b"ACTION=remove")),
        overruns: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usb_and_new_disks_are_of_interest() {
        let none = Told::default();
        let usb = b"bind@/devices/x/usb1/1-2\0ACTION=bind\0DEVPATH=/x\0SUBSYSTEM=usb\0SEQNUM=9\0";
        assert_eq!(read(usb), Told { usb: true, ..none });
        let came = b"add@/x\0ACTION=add\0SUBSYSTEM=usb\0DEVTYPE=usb_device\0";
        assert_eq!(read(came), Told { usb: true, attached: 1, ..none });
        let interface = b"add@/x\0ACTION=add\0SUBSYSTEM=usb\0DEVTYPE=usb_interface\0";
        assert_eq!(read(interface), Told { usb: true, ..none });
        let went = b"remove@/x\0ACTION=remove\0SUBSYSTEM=usb\0DEVTYPE=usb_device\0";
        assert_eq!(read(went), Told { usb: true, detached: 1, ..none });
        let core = b"add@/module/usbcore\0ACTION=add\0SUBSYSTEM=module\0";
        assert_eq!(read(core), Told { usb: true, ..none });
        let disk = b"add@/devices/x/sda\0ACTION=add\0SUBSYSTEM=block\0";
        assert_eq!(read(disk), Told { disk: true, ..none });
        let other = b"change@/devices/x/sda\0ACTION=change\0SUBSYSTEM=block\0";
        assert_eq!(read(other), Told::default());
        assert_eq!(read(b""), Told::default());
    }
}
