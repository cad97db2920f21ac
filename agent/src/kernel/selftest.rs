//! Proves that what is attached is really called, on files that did not exist before.
//!
//! A kernel may accept programs and never call them (no `bpf` in `lsm=`, `ftrace_enabled=0`), so
//! the only proof is an event for an exec and for a mapping that were made for it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    process::{Command, Stdio},
};

use aya::maps::{MapData, RingBuf};
use portcullis_common::{Counter, Gate, Outcome, Reason};
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, major, memfd_create, minor},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use sha2::{Digest as _, Sha256};

use crate::{
    artifact::digest,
    event::decode::GateEvent,
    kernel::{
        check::{Check, State},
        gates::{Gates, GatesError},
    },
};

/// The hidden argument with which our own binary does nothing and succeeds.
pub const NOTHING: &str = "--do-nothing";

/// What the self-test found.
pub struct SelfTest {
    /// Its checks.
    pub checks: Vec<Check>,
    /// Events of others that came by.
    pub others: Vec<GateEvent>,
    /// What the test itself has added to the gates' numbers.
    pub own: Vec<(Gate, Counter, u64)>,
}

/// Device number in the kernel's own encoding, which is not that of system calls.
#[must_use]
pub fn kernel_device(device: u64) -> u32 {
    major(device) << 20 | minor(device)
}

/// Device number of memfds in the kernel's encoding.
///
/// # Errors
/// If the kernel gives no memfd.
pub fn memfd_device() -> io::Result<u32> {
    let file = File::from(memory_file()?);
    Ok(kernel_device(file.metadata()?.dev()))
}

fn memory_file() -> Result<OwnedFd, Errno> {
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

/// Runs all of it. `folder` is writable and not on a filesystem that the gates refuse.
///
/// # Errors
/// If the kernel side cannot be read.
pub fn run(
    gates: &mut Gates,
    ring: &mut RingBuf<MapData>,
    folder: &Path,
) -> Result<SelfTest, GatesError> {
    let mut test = Test { ring, others: Vec::new(), own: Vec::new() };
    let mut checks = vec![test.mapping(), test.exec()];
    checks.extend(invalidation(gates, folder)?);
    Ok(SelfTest { checks, others: test.others, own: test.own })
}

/// Proves the mapping gate once more, while the agent runs.
pub fn mapping_again(ring: &mut RingBuf<MapData>) -> SelfTest {
    let mut test = Test { ring, others: Vec::new(), own: Vec::new() };
    let checks = vec![test.mapping()];
    SelfTest { checks, others: test.others, own: test.own }
}

struct Test<'a> {
    ring: &'a mut RingBuf<MapData>,
    others: Vec<GateEvent>,
    own: Vec<(Gate, Counter, u64)>,
}

impl Test<'_> {
    fn mapping(&mut self) -> Check {
        let (id, title) = ("mapping-gate", "mapping as code is judged");
        let attempt = || -> io::Result<_> {
            let (file, digest) = unique_file()?;
            // SAFETY: a new mapping that is never touched, unmapped at once.
            match unsafe {
                mmap(
                    std::ptr::null_mut(),
                    1,
                    ProtFlags::READ | ProtFlags::EXEC,
                    MapFlags::PRIVATE,
                    &file,
                    0,
                )
            } {
                Ok(address) => {
                    // SAFETY: just mapped with this length.
                    unsafe { munmap(address, 1) }?;
                }
                Err(Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
            Ok((file, digest))
        };
        self.judge(id, title, Gate::Mapping, attempt())
    }

    fn exec(&mut self) -> Check {
        let (id, title) = ("exec-gate", "exec is judged");
        let attempt = || -> io::Result<_> {
            let (file, digest) = unique_file()?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            match start(&path) {
                // Refused by the gate, or passed by it and refused as no program afterwards.
                Err(error)
                    if matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::PERM | Errno::NOEXEC)
                    ) =>
                {
                    Ok((file, digest))
                }
                // vm.memfd_noexec=2: take our own binary, which has not been judged yet either.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => own_binary(),
                Err(error) => Err(error),
                Ok(()) => Err(io::Error::other("a text was run as a program")),
            }
        };
        self.judge(id, title, Gate::Exec, attempt())
    }

    /// Looks for the event that the attempt must have left.
    fn judge(
        &mut self,
        id: &'static str,
        title: &'static str,
        gate: Gate,
        attempt: io::Result<(File, [u8; 32])>,
    ) -> Check {
        let seen = attempt.and_then(|(file, expected)| {
            let metadata = file.metadata()?;
            Ok((self.event_of(gate, kernel_device(metadata.dev()), metadata.ino()), expected))
        });
        match seen {
            Err(error) => Check::failed(
                id,
                title,
                format!("the self-test could not be made: {error}"),
                "report it with the kernel's version and configuration",
            ),
            Ok((None, _)) => Check::failed(
                id,
                title,
                "the program is attached and was not called",
                "see the rows about BPF and ftrace; report it if they are in order",
            ),
            Ok((Some(event), _)) if event.reason == Reason::WrongAlgorithm => Check::failed(
                id,
                title,
                format!(
                    "called, but IMA hashes with algorithm {} instead of SHA-256",
                    event.header.hash_status
                ),
                "remove ima_hash= from the kernel's command line, or use a kernel with CONFIG_IMA_DEFAULT_HASH_SHA256=y",
            ),
            Ok((Some(event), expected)) if event.header.digest == expected => Check::ok(
                id,
                title,
                format!("called, with the right digest ({}…)", &digest::format(&expected)[..12]),
            ),
            Ok((Some(event), _)) => Check::failed(
                id,
                title,
                format!("called, but with a wrong digest ({})", event.reason.word()),
                "do not rely on this kernel; report it with its version and configuration",
            ),
        }
    }

    fn event_of(&mut self, gate: Gate, device: u32, inode: u64) -> Option<GateEvent> {
        let mut found = None;
        while let Some(item) = self.ring.next() {
            let Ok(event) = GateEvent::decode(&item) else { continue };
            let of_file = event.header.device == device && event.header.inode == inode;
            if of_file && event.gate == gate {
                self.own.extend(counted(&event));
                found = Some(event);
            } else if !of_file {
                self.others.push(event);
            }
        }
        found
    }
}

/// What the gate has counted for one of its events.
fn counted(event: &GateEvent) -> impl Iterator<Item = (Gate, Counter, u64)> + use<> {
    let gate = event.gate;
    let outcome = match event.outcome {
        Outcome::Allow => Counter::Allowed,
        Outcome::WouldDeny => Counter::WouldDeny,
        Outcome::Deny => Counter::Denied,
        Outcome::Report => Counter::Reported,
    };
    let undecided = u64::from(event.reason.cannot_decide());
    [
        (gate, outcome, 1),
        (gate, Counter::CannotDecide, undecided),
        (gate, Counter::Hashed, 1),
        (gate, Counter::HashedBytes, event.header.size),
    ]
    .into_iter()
}

fn start(path: &str) -> io::Result<()> {
    let null = Stdio::null;
    Command::new(path).arg(NOTHING).stdin(null()).stdout(null()).stderr(null()).status().map(|_| ())
}

fn own_binary() -> io::Result<(File, [u8; 32])> {
    match start("/proc/self/exe") {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::PERM) => return Err(error),
        _ => {}
    }
    let file = File::open("/proc/self/exe")?;
    let (digest, _) = digest::of_file(&file, u64::MAX)?;
    Ok((file, digest))
}

/// Verdicts must go when a file is opened for writing or truncated.
fn invalidation(gates: &mut Gates, folder: &Path) -> Result<Vec<Check>, GatesError> {
    let path = folder.join(format!("self-test-{}", std::process::id()));
    let mut checks = Vec::new();
    type Way = (&'static str, &'static str, fn(&Path) -> io::Result<()>);
    let ways: [Way; 3] = [
        ("forget-write", "opening for writing drops the verdict", |path| {
            OpenOptions::new().write(true).open(path).map(drop)
        }),
        ("forget-truncate", "truncating drops the verdict", |path| truncate(path)),
        ("forget-open-truncate", "truncating while opening drops the verdict", |path| {
            let flags = rustix::fs::OFlags::TRUNC.bits();
            let flags = i32::try_from(flags).map_err(io::Error::other)?;
            OpenOptions::new().read(true).custom_flags(flags).open(path).map(drop)
        }),
    ];
    for (id, title, change) in ways {
        let prepared = File::create(&path)
            .and_then(|mut file| file.write_all(b"x"))
            .and_then(|()| File::open(&path));
        let file = match prepared {
            Ok(file) => file,
            Err(error) => {
                let found = format!("{}: {error}", path.display());
                checks.push(Check::bad(
                    State::Unknown,
                    id,
                    title,
                    found,
                    "give the agent a writable /run",
                ));
                continue;
            }
        };
        gates.mark(&file)?;
        let marked = gates.verdict(&file)?.is_some();
        let changed = change(&path);
        let kept = gates.verdict(&file)?.is_some();
        checks.push(match (marked, changed, kept) {
            (true, Ok(()), false) => Check::ok(id, title, "it does"),
            (_, Err(error), _) => Check::bad(
                State::Unknown,
                id,
                title,
                format!("could not be tried: {error}"),
                "report it",
            ),
            _ => Check::failed(
                id,
                title,
                "it does not: a changed file would keep its verdict",
                "do not rely on this kernel; report it with its version and configuration",
            ),
        });
    }
    // A file that cannot be removed from /run is not worth failing for.
    let _ = std::fs::remove_file(&path);
    Ok(checks)
}

/// `truncate(2)`, by path and not by descriptor, which takes another way through the kernel.
fn truncate(path: &Path) -> io::Result<()> {
    use std::{ffi::CString, os::unix::ffi::OsStrExt};
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: a valid string; rustix offers truncation by descriptor only.
    if unsafe { libc::truncate(path.as_ptr(), 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
