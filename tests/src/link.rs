//! A network's interface, taken down and up as a cable is pulled and plugged.

use std::{io, net::UdpSocket, os::fd::AsRawFd};

use anyhow::{Context, Result};

/// Without it no packet reaches this machine's own addresses.
const LOOPBACK: &[u8] = b"lo";

/// Takes the loopback interface down, or up again. Connections stay, and their packets get nowhere.
pub fn set_loopback(is_up: bool) -> Result<()> {
    // Any socket will do.
    let socket = UdpSocket::bind("0.0.0.0:0").context("a socket")?;
    // SAFETY: zeros are a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(LOOPBACK) {
        *to = from.cast_signed();
    }
    ask(&socket, libc::SIOCGIFFLAGS, &mut request).context("the interface's flags")?;
    let up = libc::c_short::try_from(libc::IFF_UP)?;
    // SAFETY: the call above has filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = if is_up { flags | up } else { flags & !up };
    ask(&socket, libc::SIOCSIFFLAGS, &mut request).context("setting the interface's flags")
}

fn ask(socket: &UdpSocket, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: for both requests the kernel reads and writes this structure, which outlives the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
