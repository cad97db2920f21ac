//! What the self-test tries, each on a file with content that no file had before.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    io::Errno,
    mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap},
};
use sha2::{Digest as _, Sha256};

use super::NOTHING;
use crate::{artifact::digest, kernel::records::Records};

/// A file that lives in memory only.
///
/// # Errors
/// If the kernel gives none.
pub fn memory_file() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // From 6.3 the right to execute is asked for; before that the flag is unknown.
    match memfd_create("portcullis-self-test", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create("portcullis-self-test", flags),
        made => made,
    }
}

/// A file with content that no file had before, sealed so that the gates can identify it.
fn unique_file() -> io::Result<(File, [u8; 32])> {
    let mut nonce = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut nonce)?;
    let content = format!("portcullis self-test {}\n", hex::encode(nonce));
    let mut file = File::from(memory_file()?);
    file.write_all(content.as_bytes())?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    Ok((file, Sha256::digest(content.as_bytes()).into()))
}

/// Where the kernel does not hash, the agent has to say what a file is.
fn vouch(records: &mut Option<Records>, file: &File, digest: [u8; 32]) -> io::Result<()> {
    if let Some(records) = records {
        let claim = records.claim(file).map_err(io::Error::other)?;
        records.fulfil(file, claim, digest).map_err(io::Error::other)?;
    }
    Ok(())
}

/// A file that the gates can identify.
fn vouched_file(records: &mut Option<Records>) -> Tried {
    let (file, digest) = unique_file()?;
    vouch(records, &file, digest)?;
    Ok((file, digest))
}

/// A file that was tried, and its digest.
pub type Tried = io::Result<(File, [u8; 32])>;

/// Maps a file as code.
pub fn mapping(records: &mut Option<Records>) -> Tried {
    let (file, digest) = vouched_file(records)?;
    map_as_code(&file)?;
    Ok((file, digest))
}

/// Has the mapping gate judge a file, whatever it says.
pub fn map_as_code(file: &File) -> io::Result<()> {
    // SAFETY: a new mapping that is never touched, unmapped at once.
    match unsafe {
        mmap(std::ptr::null_mut(), 1, ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE, file, 0)
    } {
        Ok(address) => {
            // SAFETY: just mapped with this length.
            unsafe { munmap(address, 1) }?;
        }
        Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Opens a file by a name, after the mapping gate has judged it if that is `needed`.
pub fn opening(needed: bool) -> Tried {
    let (file, digest) = unique_file()?;
    if needed {
        map_as_code(&file)?;
    }
    match File::open(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::PERM) => Err(error),
        _ => Ok((file, digest)),
    }
}

/// Maps a file for reading and makes the mapping executable afterwards.
pub fn protection() -> io::Result<File> {
    let (file, _) = unique_file()?;
    // SAFETY: a new mapping that is never touched.
    let address =
        unsafe { mmap(std::ptr::null_mut(), 1, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) }?;
    // SAFETY: the mapping is ours, and is read by nobody.
    let made = unsafe { mprotect(address, 1, MprotectFlags::READ | MprotectFlags::EXEC) };
    // SAFETY: mapped above with this length.
    unsafe { munmap(address, 1) }?;
    match made {
        Ok(()) | Err(Errno::PERM) => Ok(file),
        Err(error) => Err(error.into()),
    }
}

/// Whether the kernel takes no module any more, whoever asks.
pub fn modules_are_disabled() -> bool {
    // A kernel without modules has no such switch.
    fs::read_to_string("/proc/sys/kernel/modules_disabled")
        .map_or(true, |value| value.trim() == "1")
}

/// Loads a text as a module, from a file.
pub fn module_from_file(records: &mut Option<Records>) -> Tried {
    let (file, digest) = vouched_file(records)?;
    // SAFETY: the descriptor is open and the string is valid; a text is no module.
    let loaded =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    no_module(loaded).map(|()| (file, digest))
}

/// Loads a text as a module, from memory.
pub fn module_from_memory() -> io::Result<()> {
    let text = b"portcullis self-test: not a module, and long enough to be taken for an ELF header";
    // SAFETY: the buffer is as long as is said and the string is valid; a text is no module.
    let loaded =
        unsafe { libc::syscall(libc::SYS_init_module, text.as_ptr(), text.len(), c"".as_ptr()) };
    no_module(loaded)
}

/// Refused by the gate, or passed by it and refused as no module afterwards.
fn no_module(loaded: libc::c_long) -> io::Result<()> {
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        _ if loaded == 0 => Err(io::Error::other("a text was loaded as a module")),
        Some(Errno::PERM | Errno::NOEXEC) => Ok(()),
        _ => Err(error),
    }
}

/// Runs a text.
pub fn exec(records: &mut Option<Records>) -> Tried {
    let (file, digest) = vouched_file(records)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match start(&path) {
        // Refused by the gate, or passed by it and refused as no program afterwards.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::PERM | Errno::NOEXEC)) => {
            Ok((file, digest))
        }
        // vm.memfd_noexec=2: take our own binary, which has not been judged yet either.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => own_binary(records),
        Err(error) => Err(error),
        Ok(()) => Err(io::Error::other("a text was run as a program")),
    }
}

fn start(path: &str) -> io::Result<()> {
    let null = Stdio::null;
    Command::new(path).arg(NOTHING).stdin(null()).stdout(null()).stderr(null()).status().map(|_| ())
}

/// Starts this very binary, which does nothing then.
///
/// # Errors
/// If it does not start.
pub fn start_own_binary() -> io::Result<()> {
    start("/proc/self/exe")
}

fn own_binary(records: &mut Option<Records>) -> Tried {
    let file = File::open("/proc/self/exe")?;
    let (digest, _) = digest::of_file(&file, u64::MAX)?;
    vouch(records, &file, digest)?;
    match start("/proc/self/exe") {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::PERM) => return Err(error),
        _ => {}
    }
    Ok((file, digest))
}
