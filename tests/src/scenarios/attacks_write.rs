//! Every call that changes a file, and every way to come by a descriptor that can.

use std::{
    fs::{self, File, OpenOptions},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{FallocateFlags, fallocate, sendfile},
    io::{ReadWriteFlags, pwritev2},
    mm::{MprotectFlags, mprotect},
    mount::{MountFlags, mount, mount_bind},
    pipe::{IoSliceRaw, SpliceFlags, pipe, splice, vmsplice},
};

use super::{
    fresh, unmount_soon,
    victim::{self, BLOCK, Change, Victim},
};
use crate::{
    attack::{c_path, is_old_kernel, note},
    mapping::{MapFlags, Mapping, ProtFlags},
    raw::{self, LoopDevice},
    ring::Ring,
};

/// Blocks of the victim.
const BLOCKS: usize = 3;

/// A05: each call that changes content, after the verdict.
pub fn calls() -> Result<()> {
    for folder in ["/data/calls", "/tmp/calls"] {
        println!(" on {folder}");
        fresh(folder)?;
        let path = Path::new(folder).join("victim");
        let victim = Victim::of_size(&path, BLOCKS * BLOCK)?;
        let mut changes = writes(&victim);
        changes.extend(without_descriptor(&victim)?);
        changes.extend(allocations(&victim));
        if folder.starts_with("/data") {
            changes.extend(descriptors(&victim));
            changes.extend(on_disk(&victim));
        }
        victim::run(&victim, &changes)?;
    }
    Ok(())
}

fn writable(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path).with_context(|| path.display().to_string())
}

/// A file of its own with the evil content, to copy from.
fn source(victim: &Victim<'_>) -> Result<File> {
    let path = victim.path.with_extension("source");
    fs::write(&path, &victim.evil)?;
    Ok(File::open(path)?)
}

fn whole(victim: &Victim<'_>, done: usize) -> Result<()> {
    ensure!(done == victim.evil.len(), "{done} of {} bytes only", victim.evil.len());
    Ok(())
}

fn writes<'v>(victim: &'v Victim<'v>) -> Vec<Change<'v>> {
    let (path, evil) = (victim.path, &victim.evil);
    vec![
        Change::new("io_uring write", move || {
            whole(victim, Ring::new()?.write(&writable(path)?.into(), evil)?)
        }),
        Change::new("io_uring open and write", move || {
            let mut ring = Ring::new()?;
            let file = ring.open(&c_path(path)?)?;
            whole(victim, ring.write(&file, evil)?)
        }),
        Change::new("io_submit", move || whole(victim, raw::submit_write(&writable(path)?, evil)?)),
        Change::new("splice from a pipe", move || {
            let (from, to) = pipe()?;
            whole(victim, rustix::io::write(&to, evil)?)?;
            move_pipe(victim, &from)
        }),
        Change::new("vmsplice and splice", move || {
            let (from, to) = pipe()?;
            // SAFETY: the memory lives, unchanged, until the pipe has been emptied below.
            let given = unsafe {
                vmsplice(&to, &[IoSliceRaw::from_slice(evil.as_slice())], SpliceFlags::GIFT)
            }?;
            whole(victim, given)?;
            move_pipe(victim, &from)
        }),
        Change::new("sendfile", move || {
            whole(victim, sendfile(writable(path)?, source(victim)?, None, evil.len())?)
        }),
        Change::new("pwritev2 with RWF_DSYNC", move || {
            let iovec = [std::io::IoSlice::new(evil)];
            whole(victim, pwritev2(writable(path)?, &iovec, 0, ReadWriteFlags::DSYNC)?)
        }),
        Change::new("pwritev2 with RWF_APPEND, after ftruncate", move || {
            let file = writable(path)?;
            file.set_len(0)?;
            let iovec = [std::io::IoSlice::new(evil)];
            whole(victim, pwritev2(file, &iovec, 0, ReadWriteFlags::APPEND)?)
        }),
        Change::new("mapped for reading, made writable later", move || {
            let file = writable(path)?;
            let mapping = Mapping::new(&file, BLOCK, ProtFlags::READ, MapFlags::SHARED)?;
            drop(file);
            // SAFETY: of a mapping that is ours, and more permissive than before.
            unsafe {
                mprotect(mapping.address(), BLOCK, MprotectFlags::READ | MprotectFlags::WRITE)
            }?;
            let mut mapping = mapping;
            mapping.write_at(0, &evil[..BLOCK]);
            Ok(())
        })
        .because(&["was-mapped"]),
        Change::new("a hole made through a mapping", move || {
            let file = writable(path)?;
            let both = ProtFlags::READ | ProtFlags::WRITE;
            let mapping = Mapping::new(&file, BLOCK, both, MapFlags::SHARED)?;
            // SAFETY: of a mapping that is ours, of which nobody has a reference.
            let done = unsafe { libc::madvise(mapping.address(), BLOCK, libc::MADV_REMOVE) };
            ensure!(done == 0, "madvise: {}", std::io::Error::last_os_error());
            Ok(file.write_all_at(evil, 0)?)
        })
        .because(&["was-mapped"]),
    ]
}

/// A file that is opened and written with no descriptor that a process could show.
fn without_descriptor<'v>(victim: &'v Victim<'v>) -> Result<Option<Change<'v>>> {
    if is_old_kernel() {
        let refused = Ring::new()?.make_room().err().and_then(|error| error.raw_os_error());
        ensure!(refused == Some(libc::EINVAL), "direct descriptors: {refused:?}");
        note("change-by-any-call", "this kernel's io_uring makes no direct descriptors");
        return Ok(None);
    }
    Ok(Some(Change::new("io_uring open and write without a descriptor", move || {
        let mut ring = Ring::new()?;
        ring.open_direct(&c_path(victim.path)?)?;
        whole(victim, ring.write_direct(&victim.evil)?)?;
        ring.close_direct()?;
        drop(ring);
        raw::wait_for_no_writer(victim.path)
    })))
}

/// Ways to a descriptor that can write.
fn descriptors<'v>(victim: &'v Victim<'v>) -> Vec<Change<'v>> {
    let (path, evil) = (victim.path, &victim.evil);
    vec![
        Change::new("an O_PATH descriptor reopened", move || {
            let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
            let again = format!("/proc/self/fd/{}", handle.as_raw_fd());
            Ok(writable(again.as_ref())?.write_all_at(evil, 0)?)
        }),
        Change::new("open_by_handle_at", move || {
            Ok(raw::open_by_handle(path)?.write_all_at(evil, 0)?)
        }),
        Change::new("a bind mount", move || {
            let (folder, name) = place(path)?;
            let other = Path::new("/run/other-mount");
            fs::create_dir_all(other)?;
            mount_bind(folder, other)?;
            let written = fs::write(other.join(name), evil);
            unmount_soon(other)?;
            Ok(written?)
        }),
        Change::new("another mount namespace", move || {
            let (folder, name) = place(path)?;
            let script = format!(
                "mount --bind {0} /mnt && cat {0}/evil > /mnt/{1} && (umount /mnt || (sleep 1; umount /mnt))",
                folder.display(),
                name.display()
            );
            fs::write(folder.join("evil"), evil)?;
            let mut shell = Command::new("/bin/busybox");
            let status = shell.args(["unshare", "-m", "sh", "-c", &script]).status()?;
            ensure!(status.success(), "{script}");
            Ok(())
        }),
    ]
}

fn place(path: &Path) -> Result<(&Path, &Path)> {
    Ok((path.parent().context("a folder")?, path.file_name().context("a name")?.as_ref()))
}

/// Empties a pipe into the victim.
fn move_pipe(victim: &Victim<'_>, from: &OwnedFd) -> Result<()> {
    let to = writable(victim.path)?;
    let mut done = 0;
    while done < victim.evil.len() {
        done += splice(from, None, &to, None, victim.evil.len() - done, SpliceFlags::empty())?;
    }
    Ok(())
}

/// `fallocate` in its modes: those that leave no program leave other content.
fn allocations<'v>(victim: &'v Victim<'v>) -> Vec<Change<'v>> {
    let path = victim.path;
    let allocate = |mode, from: usize, blocks: usize| -> Result<()> {
        Ok(fallocate(writable(path)?, mode, (from * BLOCK) as u64, (blocks * BLOCK) as u64)?)
    };
    vec![
        Change::breaking("a hole punched by fallocate", move || {
            allocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 1, 1)
        }),
        Change::breaking("fallocate beyond the end", move || {
            allocate(FallocateFlags::empty(), 0, BLOCKS + 1)
        }),
        Change::breaking("ftruncate", move || Ok(writable(path)?.set_len(BLOCK as u64)?)),
        Change::breaking("ftruncate, and back to the old size", move || {
            let file = writable(path)?;
            file.set_len(BLOCK as u64)?;
            Ok(file.set_len((BLOCKS * BLOCK) as u64)?)
        }),
    ]
}

/// What tmpfs does not have.
fn on_disk<'v>(victim: &'v Victim<'v>) -> Vec<Change<'v>> {
    let (path, evil) = (victim.path, &victim.evil);
    let allocate = |mode, from: usize, blocks: usize| -> Result<()> {
        Ok(fallocate(writable(path)?, mode, (from * BLOCK) as u64, (blocks * BLOCK) as u64)?)
    };
    vec![
        Change::breaking("a range zeroed by fallocate", move || {
            allocate(FallocateFlags::ZERO_RANGE, 1, 1)
        }),
        Change::breaking("a range collapsed by fallocate", move || {
            allocate(FallocateFlags::COLLAPSE_RANGE, 1, 1)
        }),
        Change::breaking("a range inserted by fallocate", move || {
            allocate(FallocateFlags::INSERT_RANGE, 1, 1)
        }),
        Change::new("direct I/O", move || {
            let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path)?;
            // Aligned as disks want it.
            let both = ProtFlags::READ | ProtFlags::WRITE;
            let mut page = Mapping::anonymous(evil.len(), both)?;
            page.write_at(0, evil);
            // SAFETY: within the mapping, which nobody else has a reference to.
            let content =
                unsafe { std::slice::from_raw_parts(page.address().cast::<u8>(), evil.len()) };
            Ok(file.write_all_at(content, 0)?)
        }),
        Change::new("exchanged with the boot loader's inode", move || {
            let other = path.with_extension("source");
            fs::write(&other, evil)?;
            raw::exchange_with_boot_loader(&writable(&other)?)?;
            raw::exchange_with_boot_loader(&writable(path)?)
        }),
        Change::new("a loop device over it", move || {
            let device = LoopDevice::over(path)?;
            fs::write(&device.0, evil)?;
            Ok(File::open(&device.0)?.sync_all()?)
        }),
        Change::new("another mount of the same device", move || {
            let other = Path::new("/run/other-mount");
            fs::create_dir_all(other)?;
            mount("/dev/vda", other, "ext4", MountFlags::empty(), None)?;
            let written = fs::write(other.join(path.strip_prefix("/data")?), evil);
            unmount_soon(other)?;
            Ok(written?)
        }),
    ]
}
