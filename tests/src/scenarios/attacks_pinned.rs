//! Content that changes although nobody has the file open any more: the kernel itself still holds
//! pages of it, for I/O that was started through a mapping that is gone.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    thread,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mm::{UserfaultfdFlags, userfaultfd},
    pipe::pipe,
    process::Signal,
};

use super::{
    fresh,
    victim::{BLOCK, Victim},
};
use crate::{
    agent::Agent,
    attack::{self, Attack, Attempt, exec_path, install, map_as_code},
    mapping::{MapFlags, Mapping, ProtFlags},
    ring::Ring,
};

/// Size of the victim: there is room behind its end.
const LENGTH: usize = 3000;

const MAPPED: &[&str] = &["was-mapped"];

/// Pages that were mapped for writing and are written without the mapping, and bytes after the end
/// of a file, which no hash sees and every mapping shows.
pub fn held_pages() -> Result<()> {
    for folder in ["/tmp/pinned", "/data/pinned"] {
        println!(" on {folder}");
        fresh(folder)?;
        let path = Path::new(folder).join("victim");
        let victim = Victim::of_size(&path, LENGTH)?;
        let by_ring = || by_registered_buffer(&victim);
        let by_copy = || by_slow_copy(&victim);
        let after_end = || behind_the_end(&victim);
        let mut attacks = vec![
            Attack {
                name: "process_vm_writev that is held up, then exec".into(),
                attempt: &by_copy,
                reasons: MAPPED,
            },
            Attack {
                name: "code after the end of the file".into(),
                attempt: &after_end,
                reasons: MAPPED,
            },
        ];
        // io_uring does not take pages of other filesystems for long.
        if folder.starts_with("/tmp") {
            attacks.push(Attack {
                name: "buffer registered with io_uring, then exec".into(),
                attempt: &by_ring,
                reasons: MAPPED,
            });
        }
        attack::run(&victim.policy()?, &attacks)?;
    }
    through_restart()
}

/// An agent that is killed leaves what it has seen to the next one.
fn through_restart() -> Result<()> {
    let path = Path::new("/tmp/pinned/victim");
    let victim = Victim::of_size(path, LENGTH)?;
    let policy = victim.policy()?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let (file, mapping) = mapped(&victim)?;
    let ring = Ring::new()?;
    let _buffer = ring.register(&mapping, BLOCK)?;
    drop((file, mapping));
    agent.signal(Signal::KILL)?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(map_as_code(path)? == Attempt::Refused, "forgotten when the agent was killed");
    // Others are judged as ever, and a copy is another file.
    victim.restore()?;
    agent.stop()
}

/// The listed file, mapped for writing.
fn mapped(victim: &Victim<'_>) -> Result<(File, Mapping)> {
    install(victim.path, &victim.good)?;
    let file = OpenOptions::new().read(true).write(true).open(victim.path)?;
    let both = ProtFlags::READ | ProtFlags::WRITE;
    let mapping = Mapping::new(&file, BLOCK, both, MapFlags::SHARED)?;
    Ok((file, mapping))
}

/// This is when verdicts are made: nobody has the file open, and it has the listed content.
fn judged(victim: &Victim<'_>) -> Result<()> {
    ensure!(fs::read(victim.path)? == victim.good);
    let mapped = map_as_code(victim.path)?;
    // What is listed exits with its own code, which says nothing; what is refused, with EPERM.
    let ran = exec_path(victim.path);
    ensure!(
        ran.is_err() == (mapped == Attempt::Ran),
        "mapping was {mapped:?} and exec {ran:?} for the same file"
    );
    Ok(())
}

fn by_registered_buffer(victim: &Victim<'_>) -> Result<Attempt> {
    let (file, mapping) = mapped(victim)?;
    let mut ring = Ring::new()?;
    let buffer = ring.register(&mapping, BLOCK)?;
    drop(mapping);
    drop(file);
    judged(victim)?;
    let (from, to) = pipe()?;
    File::from(to).write_all(&victim.evil)?;
    ensure!(ring.read_fixed(&from, buffer)? == LENGTH, "the ring read only a part");
    ensure!(fs::read(victim.path)? == victim.evil, "the page was not written");
    exec_path(victim.path)
}

fn by_slow_copy(victim: &Victim<'_>) -> Result<Attempt> {
    let (file, mapping) = mapped(victim)?;
    let slow = SlowPage::new()?;
    let (from, to) = (slow.page.address() as usize, mapping.address() as usize);
    let this = i32::try_from(std::process::id())?;
    let copying = thread::spawn(move || {
        let iovec = |address| libc::iovec { iov_base: address as *mut _, iov_len: LENGTH };
        let (local, remote) = (iovec(from), iovec(to));
        // SAFETY: copies between two areas of this process; the kernel checks both.
        unsafe { libc::process_vm_writev(this, &raw const local, 1, &raw const remote, 1, 0) }
    });
    // The kernel has the victim's page by now, and waits for the other one.
    slow.wait()?;
    drop(mapping);
    drop(file);
    judged(victim)?;
    slow.fill(&victim.evil)?;
    let copied = copying.join().ok().context("the copying thread")?;
    ensure!(copied == LENGTH as isize, "process_vm_writev gave {copied}");
    ensure!(fs::read(victim.path)? == victim.evil, "the page was not written");
    exec_path(victim.path)
}

/// A file of which the listed content is all that anybody reads, with other code in the rest of
/// its last page.
fn behind_the_end(victim: &Victim<'_>) -> Result<Attempt> {
    const CODE: &[u8] = b"EVILCODE";
    let place = BLOCK - CODE.len();
    let (file, mut mapping) = mapped(victim)?;
    mapping.write_at(place, CODE);
    drop((file, mapping));
    ensure!(fs::read(victim.path)? == victim.good, "the content has changed");
    let code = ProtFlags::READ | ProtFlags::EXEC;
    match Mapping::new(&File::open(victim.path)?, BLOCK, code, MapFlags::PRIVATE) {
        Ok(mapping) => {
            ensure!(mapping.read_at(place, CODE.len()) == CODE, "the rest of the page was cleared");
            Ok(Attempt::Ran)
        }
        Err(rustix::io::Errno::PERM) => Ok(Attempt::Refused),
        Err(error) => Err(error).context("mapping"),
    }
}

/// A page of memory that is not there until it is filled: whoever reads it waits.
struct SlowPage {
    faults: OwnedFd,
    page: Mapping,
}

impl SlowPage {
    fn new() -> Result<Self> {
        // linux/userfaultfd.h: structs as arrays of their 64-bit members.
        const API: u64 = 0xaa;
        const MODE_MISSING: u64 = 1;
        let both = ProtFlags::READ | ProtFlags::WRITE;
        let page = Mapping::anonymous(BLOCK, both)?;
        // SAFETY: only the page above is put under it.
        let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) }?;
        let slow = Self { faults, page };
        slow.ask(0xc018_aa3f, &mut [API, 0, 0])?;
        slow.ask(0xc020_aa00, &mut [slow.address(), BLOCK as u64, MODE_MISSING, 0])?;
        Ok(slow)
    }

    fn address(&self) -> u64 {
        self.page.address() as u64
    }

    fn ask(&self, request: libc::c_ulong, words: &mut [u64]) -> Result<()> {
        // SAFETY: the array is as large as the request's number says.
        let done = unsafe { libc::ioctl(self.faults.as_raw_fd(), request, words.as_mut_ptr()) };
        ensure!(done == 0, "userfaultfd {request:#x}: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Waits until somebody waits for the page.
    fn wait(&self) -> Result<()> {
        let mut message = [0; 32];
        File::from(self.faults.try_clone()?).read_exact(&mut message)?;
        Ok(())
    }

    fn fill(&self, content: &[u8]) -> Result<()> {
        let mut page = content.to_owned();
        page.resize(BLOCK, 0);
        self.ask(0xc028_aa03, &mut [self.address(), page.as_ptr() as u64, BLOCK as u64, 0, 0])
    }
}
