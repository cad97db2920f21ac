//! Writers that somebody else holds, and files and filesystems that take another's place.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::ioctl_ficlone,
    io::IoSlice,
    mount::{MountFlags, mount},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};

use super::{
    fresh, unmount_soon,
    victim::{self, BLOCK, Change, Victim},
};
use crate::{
    attack::{self, Attack, Attempt, exec_path, install, map_as_code},
    raw::{self, LoopDevice},
};

/// A writer that was there before the verdict would be made, and is not where one would look.
pub fn held() -> Result<()> {
    fresh("/data/held")?;
    let path = Path::new("/data/held/victim");
    let victim = Victim::of_size(path, BLOCK)?;
    let in_child = || {
        let mut child =
            Command::new("/bin/cat").stdin(Stdio::piped()).stdout(prepared(&victim)?).spawn()?;
        let judged = map_as_code(path)?;
        let mut input = child.stdin.take().context("standard input")?;
        input.write_all(&victim.evil)?;
        drop(input);
        ensure!(child.wait()?.success(), "cat failed");
        used_again(&victim, judged)
    };
    let in_socket = || {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        send(&ours, prepared(&victim)?)?;
        // Nobody has the file open now, but for the message on its way.
        let judged = map_as_code(path)?;
        receive(&theirs)?.write_all_at(&victim.evil, 0)?;
        used_again(&victim, judged)
    };
    let in_loop_device = || {
        drop(prepared(&victim)?);
        let device = LoopDevice::over(path)?;
        let judged = map_as_code(path)?;
        fs::write(&device.0, &victim.evil)?;
        File::open(&device.0)?.sync_all()?;
        drop(device);
        raw::wait_for_no_writer(path)?;
        used_again(&victim, judged)
    };
    let attack =
        |name: &str, attempt| Attack { name: name.into(), attempt, reasons: &["being-written"] };
    attack::run(
        &victim.policy()?,
        &[
            attack("a writer that a child has inherited", &in_child),
            attack("a writer on its way through a socket", &in_socket),
            attack("a writer that a loop device has", &in_loop_device),
        ],
    )
}

/// A new file with the listed content, of which there has been no verdict, open for writing.
fn prepared(victim: &Victim<'_>) -> Result<File> {
    install(victim.path, &victim.good)?;
    Ok(OpenOptions::new().write(true).open(victim.path)?)
}

/// What became of a file that was used once while there was a writer, and written afterwards.
fn used_again(victim: &Victim<'_>, judged: Attempt) -> Result<Attempt> {
    ensure!(fs::read(victim.path)? == victim.evil, "the file was not written");
    let ran = exec_path(victim.path)?;
    ensure!(ran == judged, "{judged:?} while there was a writer, and {ran:?} after it wrote");
    Ok(ran)
}

fn send(socket: &OwnedFd, file: File) -> Result<()> {
    let descriptors = [file.as_fd()];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut room);
    ensure!(message.push(SendAncillaryMessage::ScmRights(&descriptors)), "no room");
    sendmsg(socket, &[IoSlice::new(b"x")], &mut message, SendFlags::empty())?;
    Ok(())
}

fn receive(socket: &OwnedFd) -> Result<File> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut room);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [rustix::io::IoSliceMut::new(&mut byte)],
        &mut message,
        RecvFlags::empty(),
    )?;
    for part in message.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = part {
            return Ok(descriptors.next().context("no descriptor")?.into());
        }
    }
    bail!("no descriptor came")
}

/// Another file under the numbers of one that has a verdict.
pub fn identity() -> Result<()> {
    fresh("/data/identity")?;
    let path = Path::new("/data/identity/victim");
    let victim = Victim::of_size(path, BLOCK)?;
    let same_inode_number = || {
        victim.restore()?;
        let before = fs::metadata(path)?.ino();
        for _ in 0..100 {
            fs::remove_file(path)?;
            install(path, &victim.evil)?;
            if fs::metadata(path)?.ino() == before {
                return exec_path(path);
            }
        }
        bail!("inode number {before} did not come again")
    };
    let images = [Path::new("/data/identity/a.img"), Path::new("/data/identity/b.img")];
    let mounted = Path::new("/data/identity/mounted");
    fs::create_dir(mounted)?;
    let inside = mounted.join("victim");
    // The same filesystem twice, with the same numbers for other content.
    fs::copy("/files/small.ext4", images[0])?;
    on_loop(images[0], mounted, || install(&inside, &victim.good))?;
    fs::copy(images[0], images[1])?;
    on_loop(images[1], mounted, || {
        Ok(OpenOptions::new().write(true).open(&inside)?.write_all_at(&victim.evil, 0)?)
    })?;
    let within = Victim { path: &inside, good: victim.good.clone(), evil: victim.evil.clone() };
    let same_device_number = || {
        let first = on_loop(images[0], mounted, || {
            within.is_good()?;
            numbers(&inside)
        })?;
        let (second, attempt) =
            on_loop(images[1], mounted, || Ok((numbers(&inside)?, exec_path(&inside)?)))?;
        ensure!(first == second, "the numbers differ: {first:?} and {second:?}");
        Ok(attempt)
    };
    let changed_between = || {
        let image = Path::new("/data/identity/c.img");
        fs::copy(images[0], image)?;
        on_loop(image, mounted, || within.is_good())?;
        let mut content = Vec::new();
        File::open(image)?.read_to_end(&mut content)?;
        let place = content
            .chunks(1024)
            .position(|chunk| victim.good.starts_with(chunk))
            .context("the program is not in the image")?;
        OpenOptions::new()
            .write(true)
            .open(image)?
            .write_all_at(&victim.evil, place as u64 * 1024)?;
        on_loop(image, mounted, || exec_path(&inside))
    };
    attack::run(
        &victim.policy()?,
        &[
            Attack::unlisted("another file with the same inode number", &same_inode_number),
            Attack::unlisted("another image with the same device number", &same_device_number),
            Attack::unlisted("an image that was changed while it was unmounted", &changed_between),
        ],
    )
}

fn numbers(path: &Path) -> Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Does something while an image is mounted.
fn on_loop<T>(image: &Path, at: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let device = LoopDevice::over(image)?;
    mount(&device.0, at, "ext4", MountFlags::empty(), None)?;
    let done = work();
    unmount_soon(at)?;
    done
}

/// Blocks that two files share, which only some filesystems have.
pub fn clones() -> Result<()> {
    Command::new("/sbin/modprobe").args(["-q", "xfs"]).status()?;
    let disk = Path::new("/mnt");
    mount("/dev/vdb", disk, "xfs", MountFlags::empty(), None)?;
    let path = disk.join("victim");
    let victim = Victim::of_size(&path, 2 * BLOCK)?;
    let source = || -> Result<File> {
        let source = path.with_extension("source");
        fs::write(&source, &victim.evil)?;
        Ok(File::open(source)?)
    };
    let writable = || OpenOptions::new().write(true).open(&path);
    victim::run(
        &victim,
        &[
            Change::new("FICLONE", || Ok(ioctl_ficlone(writable()?, source()?)?)),
            Change::new("FICLONERANGE", || {
                raw::clone_range(&source()?, &writable()?, victim.evil.len() as u64)
            }),
            Change::new("FICLONE, after deduplication", || {
                let same = path.with_extension("same");
                fs::write(&same, &victim.good)?;
                // The victim, of which both descriptors only read, stays what it is.
                raw::deduplicate(
                    &File::open(&same)?,
                    &File::open(&path)?,
                    victim.good.len() as u64,
                )?;
                victim.is_good()?;
                Ok(ioctl_ficlone(writable()?, source()?)?)
            }),
        ],
    )?;
    unmount_soon(disk)
}
