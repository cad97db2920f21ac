//! Calls of the kernel that no library here wraps.

use std::{
    fs::File,
    io::Error,
    os::fd::{AsRawFd, FromRawFd},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::attack::c_path;

fn ioctl(file: &File, request: libc::c_ulong, words: &mut [u64], name: &str) -> Result<()> {
    // SAFETY: the array is as large as the request's number says.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), request, words.as_mut_ptr()) };
    ensure!(done == 0, "{name}: {}", Error::last_os_error());
    Ok(())
}

/// `FS_XFLAG_IMMUTABLE` (linux/fs.h).
pub const IMMUTABLE_ATTRIBUTE: u64 = 8;

/// `file_setattr`, from Linux 6.17, which no library has yet: sets a file's flags without opening it.
pub fn set_attributes(path: &Path, flags: u64) -> std::io::Result<()> {
    /// `__NR_file_setattr`, the same on all architectures (asm-generic/unistd.h).
    const FILE_SETATTR: libc::c_long = 469;
    let path = c_path(path).map_err(Error::other)?;
    // `struct file_attr` (linux/fs.h): flags, and four numbers of 32 bits.
    let attributes = [flags, 0, 0];
    // SAFETY: the path ends with a zero, and the kernel reads so many bytes.
    let done = unsafe {
        libc::syscall(
            FILE_SETATTR,
            libc::AT_FDCWD,
            path.as_ptr(),
            attributes.as_ptr(),
            size_of_val(&attributes),
            0,
        )
    };
    if done == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

/// What a program of 32 bits asks of a file, with one integer: such a system call is open to everybody
/// (`int 0x80`), and the kernel has an entry of its own for it (`compat_sys_ioctl`).
pub fn ioctl_32(file: &File, request: u32, value: u32) -> std::io::Result<()> {
    /// `__NR_ioctl` of 32 bits (asm/unistd_32.h).
    const IOCTL: u32 = 54;
    let size = size_of::<u32>();
    // Where such a program's pointers reach.
    // SAFETY: maps fresh memory.
    let place = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            size,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE | rustix::mm::MapFlags::from_bits_retain(MAP_32BIT),
        )?
    };
    // SAFETY: the mapping has room for it.
    unsafe { place.cast::<u32>().write(value) };
    let answer: i32;
    // SAFETY: the kernel reads one integer at `place`. It keeps all registers but the answer's; those of
    // 64-bit programs beyond r7 it may clear.
    unsafe {
        std::arch::asm!(
            "xchg {file}, rbx",
            "int 0x80",
            "xchg {file}, rbx",
            file = inout(reg) u64::from(file.as_raw_fd().unsigned_abs()) => _,
            inlateout("eax") IOCTL => answer,
            in("ecx") request,
            in("edx") place.addr(),
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    // SAFETY: it was mapped above, and nobody else knows it.
    unsafe { rustix::mm::munmap(place, size)? };
    if answer < 0 { Err(Error::from_raw_os_error(-answer)) } else { Ok(()) }
}

/// `MAP_32BIT` (asm/mman.h).
const MAP_32BIT: u32 = 0x40;

/// Where on its disk the beginning of a file lies, in bytes.
pub fn place_on_disk(file: &File) -> Result<u64> {
    /// `FS_IOC_FIEMAP` (linux/fs.h).
    const FIEMAP: libc::c_ulong = 0xc020_660b;
    /// `FIEMAP_FLAG_SYNC` (linux/fiemap.h).
    const SYNC: u64 = 1;
    // `struct fiemap` with room for one `struct fiemap_extent`.
    let mut words = [0, u64::MAX, SYNC, 1, 0, 0, 0, 0, 0, 0, 0];
    ioctl(file, FIEMAP, &mut words, "FIEMAP")?;
    ensure!(words[2] >> 32 == 1, "a file without a place on the disk");
    Ok(words[5])
}

/// Writes to the beginning of a file through Linux AIO; returns how much was written.
pub fn submit_write(file: &File, content: &[u8]) -> Result<usize> {
    /// `IOCB_CMD_PWRITE` (linux/aio_abi.h).
    const PWRITE: u64 = 1;
    // `struct iocb` and `struct io_event` as their 64-bit words.
    let descriptor = u64::try_from(file.as_raw_fd())?;
    let mut request =
        [0, 0, PWRITE | descriptor << 32, content.as_ptr() as u64, content.len() as u64, 0, 0, 0];
    let requests = [request.as_mut_ptr()];
    let mut event = [0u64; 4];
    let mut context: libc::c_ulong = 0;
    // SAFETY: writes the context.
    let done = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
    ensure!(done == 0, "io_setup: {}", Error::last_os_error());
    // SAFETY: the request and the content live until the event is here.
    let done = unsafe { libc::syscall(libc::SYS_io_submit, context, 1, requests.as_ptr()) };
    ensure!(done == 1, "io_submit: {}", Error::last_os_error());
    let no_timeout = std::ptr::null::<libc::timespec>();
    // SAFETY: there is room for one event.
    let done = unsafe {
        libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), no_timeout)
    };
    ensure!(done == 1, "io_getevents: {}", Error::last_os_error());
    // SAFETY: nothing is under way in it.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    Ok(usize::try_from(event[2])?)
}

/// Opens a file for writing by its handle, as file servers do.
pub fn open_by_handle(path: &Path) -> Result<File> {
    const ROOM: usize = libc::MAX_HANDLE_SZ as usize;
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        content: [u8; ROOM],
    }
    let name = c_path(path)?;
    let mut handle = Handle { bytes: u32::try_from(ROOM)?, kind: 0, content: [0; ROOM] };
    let mut mount = 0;
    // SAFETY: the handle has the room that it says it has.
    let done = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            name.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    };
    ensure!(done == 0, "name_to_handle_at: {}", Error::last_os_error());
    let folder = File::open(path.parent().context("a folder")?)?;
    // SAFETY: the handle was filled in above.
    let descriptor = unsafe {
        libc::open_by_handle_at(folder.as_raw_fd(), (&raw mut handle).cast(), libc::O_RDWR)
    };
    ensure!(descriptor >= 0, "open_by_handle_at: {}", Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Waits until nobody has a file open for writing: what io_uring closes, it closes later.
pub fn wait_for_no_writer(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    for _ in 0..200 {
        // SAFETY: asks for a lease, which the kernel refuses while there are writers.
        let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        if done == 0 {
            return Ok(());
        }
        sleep(Duration::from_millis(10));
    }
    bail!("{} stays open for writing", path.display())
}

/// Exchanges the first blocks of two files on ext4, as defragmentation does.
pub fn exchange_extents(origin: &File, donor: &File, blocks: u64) -> Result<()> {
    // `EXT4_IOC_MOVE_EXT` with `struct move_extent` (fs/ext4/ext4.h).
    let donor = u64::try_from(donor.as_raw_fd())?;
    let mut request = [donor << 32, 0, 0, blocks, 0];
    ioctl(origin, 0xc028_660f, &mut request, "EXT4_IOC_MOVE_EXT")?;
    ensure!(request[4] == blocks, "{} of {blocks} blocks were moved", request[4]);
    Ok(())
}

/// Exchanges a file's content with that of ext4's hidden inode for boot loaders.
pub fn exchange_with_boot_loader(file: &File) -> Result<()> {
    ioctl(file, 0x6611, &mut [], "EXT4_IOC_SWAP_BOOT")
}

/// Makes the beginning of a file share the blocks of another.
pub fn clone_range(from: &File, to: &File, length: u64) -> Result<()> {
    // `FICLONERANGE` with `struct file_clone_range` (linux/fs.h).
    let from = u64::try_from(from.as_raw_fd())?;
    ioctl(to, 0x4020_940d, &mut [from, 0, length, 0], "FICLONERANGE")
}

/// Makes the beginnings of two files, which must be equal, share their blocks.
pub fn deduplicate(from: &File, to: &File, length: u64) -> Result<()> {
    // `FIDEDUPERANGE` with `struct file_dedupe_range` for one destination (linux/fs.h).
    let to = u64::try_from(to.as_raw_fd())?;
    let mut request = [0, length, 1, to, 0, 0, 0];
    ioctl(from, 0xc018_9436, &mut request, "FIDEDUPERANGE")?;
    ensure!(request[5] == length, "{} of {length} bytes were shared", request[5]);
    Ok(())
}

/// A block device over a file.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    /// The first one, which nobody else uses here.
    pub fn over(path: &Path) -> Result<Self> {
        let _ = Command::new("/sbin/modprobe").args(["-q", "loop"]).status();
        let device = PathBuf::from("/dev/loop0");
        let done = Command::new("/bin/busybox").arg("losetup").arg(&device).arg(path).status()?;
        ensure!(done.success(), "losetup {}", path.display());
        Ok(Self(device))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("/bin/busybox").args(["losetup", "-d"]).arg(&self.0).status();
    }
}
