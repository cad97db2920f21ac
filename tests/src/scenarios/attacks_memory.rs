//! Files that live in memory, and mappings that are more than they seem.

use std::{fs, io::Write, os::unix::fs::FileExt, path::Path, process::Command};

use anyhow::{Result, ensure};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    mm::mmap_anonymous,
};

use super::{base_policy, fresh, list};
use crate::{
    agent::Agent,
    attack::{self, Attack, Attempt, evil, exec_descriptor, good, install, map_as_code},
    events,
    mapping::{MapFlags, ProtFlags},
};

/// A memfd is not counted among a file's writers, so its content could be changed behind a
/// verdict: only sealed ones are judged by content.
pub fn files() -> Result<()> {
    let lab = fresh("/tmp/memory")?;
    let listed = lab.join("listed");
    install(&listed, &good("memfd")?)?;
    let policy = base_policy(&[&listed])?;
    let memory_file = || -> Result<fs::File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = fs::File::from(memfd_create("listed", flags)?);
        file.write_all(&good("memfd")?)?;
        Ok(file)
    };
    let changed_after_verdict = || {
        let file = memory_file()?;
        // What is listed; without gates it exits with its own code, which says nothing.
        let _ = exec_descriptor(&file);
        file.write_all_at(&evil("memfd")?, 0)?;
        exec_descriptor(&file)
    };
    let shared_memory = || shared_memory_as_code();
    let unsealed: &[&str] = &["unsealed"];
    attack::run(
        &policy,
        &[
            Attack {
                name: "memfd changed after its verdict".into(),
                attempt: &changed_after_verdict,
                reasons: unsealed,
            },
            Attack {
                name: "System V shared memory as code".into(),
                attempt: &shared_memory,
                reasons: unsealed,
            },
        ],
    )?;
    // A sealed one with listed content runs: container runtimes start themselves that way.
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let file = memory_file()?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
    let path =
        format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    if attack::is_old_kernel() {
        let mark = events::mark()?;
        let attempt = attack::exec_path(&path)?;
        ensure!(attempt == Attempt::Refused, "a sealed memfd ran: mend docs/limits.md");
        events::wait_for(mark, "the refused memfd", |event| event["reason"] == "not-appraised")?;
        attack::note("memory-files", "sealed memfds are refused on this kernel too");
        return agent.stop();
    }
    let status = Command::new(path).status()?;
    ensure!(
        status.code() == Some(i32::from(attack::GOOD)),
        "a sealed memfd with listed content: {status}"
    );
    agent.stop()
}

fn shared_memory_as_code() -> Result<Attempt> {
    // SAFETY: makes a new segment.
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o700) };
    ensure!(segment >= 0, "shmget failed");
    // SAFETY: at an address that the kernel chooses.
    let address = unsafe { libc::shmat(segment, std::ptr::null(), libc::SHM_EXEC) };
    let error = std::io::Error::last_os_error().raw_os_error();
    // SAFETY: marks the segment for removal when nobody uses it any more.
    unsafe { libc::shmctl(segment, libc::IPC_RMID, std::ptr::null_mut()) };
    if address as isize == -1 {
        ensure!(error == Some(libc::EPERM), "shmat failed with {error:?}");
        return Ok(Attempt::Refused);
    }
    // SAFETY: attached above, and nobody has the address.
    unsafe { libc::shmdt(address) };
    Ok(Attempt::Ran)
}

/// Mappings whose protection is not what was asked for, of files that are none, and of files that
/// are too large to hash.
pub fn mappings() -> Result<()> {
    let lab = fresh("/data/mappings")?;
    let data = lab.join("data");
    install(&data, b"no program, but mapped as if it were one")?;
    let giant = lab.join("giant");
    let file = fs::File::create(&giant)?;
    file.set_len(100 << 30)?;
    drop(file);
    let listed = lab.join("listed");
    install(&listed, &good("mapped by others")?)?;
    let policy = base_policy(&[])?;
    list(&policy, &listed, &["executable"])?;

    let implied = || implied_exec(&data);
    let huge = || map_as_code(&giant);
    let device = || map_as_code(Path::new("/dev/zero"));
    let others = || map_as_code(&listed);
    let wrong_kind: &[&str] = &["wrong-kind"];
    attack::run(
        &policy,
        &[
            Attack::unlisted("reading maps as code with READ_IMPLIES_EXEC", &implied),
            Attack {
                name: "a sparse file of 100 GB".into(),
                attempt: &huge,
                reasons: &["too-large"],
            },
            Attack { name: "/dev/zero as code".into(), attempt: &device, reasons: &["not-a-file"] },
            Attack {
                name: "a program mapped by another".into(),
                attempt: &others,
                reasons: wrong_kind,
            },
        ],
    )?;
    // What is no code is nobody's business.
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(attack::map(&fs::File::open(&data)?, ProtFlags::READ)? == Attempt::Ran);
    // SAFETY: a new mapping that is never touched and goes with the process.
    unsafe {
        let code = ProtFlags::READ | ProtFlags::EXEC;
        mmap_anonymous(std::ptr::null_mut(), 16, code, MapFlags::PRIVATE)
    }?;
    agent.stop()
}

/// Maps a file for reading only, in a process in which that means executing too.
fn implied_exec(path: &Path) -> Result<Attempt> {
    attack::exec(Command::new("/usr/bin/portcullis-guest").arg("map-for-reading").arg(path))
}

/// The other half of it: exits like the attacker's program if the mapping was made.
pub fn map_for_reading(path: &Path) -> Result<u8> {
    const READ_IMPLIES_EXEC: libc::c_ulong = 0x040_0000;
    // SAFETY: changes how this process maps from now on, and nothing else.
    unsafe { libc::personality(READ_IMPLIES_EXEC) };
    let attempt = attack::map(&fs::File::open(path)?, ProtFlags::READ)?;
    Ok(if attempt == Attempt::Ran { attack::EVIL } else { 126 })
}
