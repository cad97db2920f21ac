//! Measures in guest instructions: under QEMU's `icount` the guest's clock advances one nanosecond
//! for each instruction, so that a clock reads as a counter.

mod catalog;
mod events;
mod interpreter;
mod realtime;
mod start;
mod write;

pub use catalog::catalog;
pub use events::{events, flood_alone};
pub use interpreter::interpreter;
pub use realtime::{cyclictest, realtime};
pub use start::start as agent_start;
pub use write::{usb, write};

use std::{
    ffi::{CStr, CString},
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::{
    agent::{Agent, Policy, expect},
    elf,
};

/// Measurements of which the lower quartile counts: the rest carries the kernel's own work.
const ROUNDS: usize = 1000;

/// Starts before the first that counts.
const WARM_UP: usize = 50;

/// Size of the files that are hashed, in MiB.
const COLD_MIB: usize = 8;

fn now() -> u64 {
    let time = clock_gettime(ClockId::MonotonicRaw);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// Starts a program with its arguments, of which the first names it, and waits for it. `posix_spawn` shares the parent's memory until the exec, so
/// that the size of this process does not hide what the exec costs.
fn start(words: &[&CStr]) -> Result<()> {
    let program = words.first().context("no program")?;
    let mut arguments: Vec<_> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    arguments.push(std::ptr::null_mut());
    let environment = [std::ptr::null_mut()];
    let mut child = 0;
    // SAFETY: the arrays are valid and end with a null pointer; no attributes are asked for.
    let error = unsafe {
        libc::posix_spawn(
            &raw mut child,
            program.as_ptr(),
            std::ptr::null(),
            std::ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    if error != 0 {
        let error = std::io::Error::from_raw_os_error(error);
        return Err(error).with_context(|| format!("{program:?} did not start"));
    }
    let mut status = 0;
    // SAFETY: waits for the child that was just made.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(waited == child && status == 0, "{program:?} ended with status {status:#x}");
    Ok(())
}

/// Instructions for one start, as the lower quartile of many.
fn per_exec(program: &CStr) -> Result<u64> {
    lower_quartile(|| start(&[program]))
}

/// Instructions that `work` takes, as the lower quartile of many times.
fn lower_quartile(mut work: impl FnMut() -> Result<()>) -> Result<u64> {
    for _ in 0..WARM_UP {
        work()?;
    }
    let mut costs = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let before = now();
        work()?;
        costs.push(now() - before);
    }
    costs.sort_unstable();
    Ok(costs[ROUNDS / 4])
}

/// Writes a program and returns its name for exec.
fn install(path: &str, content: &[u8]) -> Result<CString> {
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(CString::new(path)?)
}

/// Measures exec and prints one line of JSON.
pub fn exec() -> Result<()> {
    fs::create_dir_all("/bench")?;
    let small = install("/bench/true", &elf::program(0, b"")?)?;
    let dynamic = CString::new("/usr/bin/true")?;
    let large: Vec<u8> = (0..COLD_MIB << 20).map(|at| (at >> 8 ^ at).to_le_bytes()[0]).collect();
    for file in 0..4 {
        install(&format!("/bench/cold{file}"), &elf::program(0, &[&large[..], &[file]].concat())?)?;
    }
    let policy = Policy::of(Path::new("/bench/policy"), &["/"])?;
    // On 6.12 the first seconds after boot carry background work.
    sleep(Duration::from_secs(3));

    let programs = [&small, &dynamic];
    let measure =
        || -> Result<Vec<u64>> { programs.iter().map(|program| per_exec(program)).collect() };
    // The first round of all is a few hundred instructions dearer, whatever comes first.
    measure()?;
    // Not after the agent as well: on 6.12 a start is 23,000 instructions dearer once it has gone, with no
    // program left.
    let bare = measure()?;
    let agent = Agent::start(&policy, "audit", &[])?;
    let audit = measure()?;
    expect(0, &["mode", "enforce", "--skip-preflight"])?;
    let enforce = measure()?;
    agent.stop()?;
    // Last, as it leaves the page cache other than it was.
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let cold = cold()?;
    agent.stop()?;
    let result = json!({
        "bare": bare[0],
        "audit": audit[0],
        "enforce": enforce[0],
        "dynamic": { "bare": bare[1], "audit": audit[1], "enforce": enforce[1] },
        "cold_per_mib": cold,
        "kernel_hash_per_mib": kernel_hash(&large)?,
    });
    println!("@@result {result}");
    Ok(())
}

/// Instructions that the first start of a file costs above the second, for each MiB.
fn cold() -> Result<u64> {
    let mut costs = Vec::new();
    for file in 0..4 {
        let program = CString::new(format!("/bench/cold{file}"))?;
        let before = now();
        start(&[&program])?;
        let between = now();
        start(&[&program])?;
        costs.push((between - before).saturating_sub(now() - between));
    }
    costs.sort_unstable();
    Ok(costs[costs.len() / 2] / COLD_MIB as u64)
}

/// Instructions for each MiB of the kernel's own SHA-256 over data in memory (`AF_ALG`).
fn kernel_hash(data: &[u8]) -> Result<u64> {
    for module in ["af_alg", "algif_hash", "sha256_generic"] {
        let _ = std::process::Command::new("/sbin/modprobe").args(["-q", module]).status();
    }
    let mut address = libc::sockaddr_alg {
        salg_family: u16::try_from(libc::AF_ALG)?,
        salg_type: [0; 14],
        salg_feat: 0,
        salg_mask: 0,
        salg_name: [0; 64],
    };
    address.salg_type[..4].copy_from_slice(b"hash");
    address.salg_name[..6].copy_from_slice(b"sha256");
    // SAFETY: has no precondition.
    let socket =
        unsafe { libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    ensure!(socket >= 0, "no AF_ALG: {}", std::io::Error::last_os_error());
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the address is of the length that is given.
    let bound = unsafe { libc::bind(socket, (&raw const address).cast(), length) };
    ensure!(bound == 0, "no sha256 in the kernel: {}", std::io::Error::last_os_error());
    // SAFETY: the socket is bound; no address is asked for.
    let operation = unsafe { libc::accept(socket, std::ptr::null_mut(), std::ptr::null_mut()) };
    ensure!(operation >= 0, "accept: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else has.
    let mut operation = unsafe { <fs::File as std::os::fd::FromRawFd>::from_raw_fd(operation) };
    let mut costs = Vec::new();
    for _ in 0..4 {
        let start = now();
        operation.write_all(data).context("hashing")?;
        costs.push(now() - start);
    }
    costs.sort_unstable();
    Ok(costs[1] / COLD_MIB as u64)
}
