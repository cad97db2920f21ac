//! Faults that strike while the agent works.

use std::{
    fs::{self, File},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
    mount::{MountFlags, mount_remount},
    process::{Pid, Resource, Rlimit, Signal, prlimit},
    time::{ClockId, Timespec, clock_gettime, clock_settime},
};

use super::device::Device;
use crate::{agent::PATIENCE, init};

/// The filesystem of the agent's state.
const DISK: &str = "/data";
const FILLER: &str = "/data/filler";
const GROUP: &str = "/sys/fs/cgroup/faults";

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The agent is killed.
    Kill,
    /// It is stopped for so many milliseconds.
    Stop(u64),
    /// It gets no more memory than so many KiB, and the kernel kills it for that.
    Memory(u64),
    /// It has so many descriptors left.
    Descriptors(u64),
    /// The disk is full.
    Full,
    /// The disk is read-only.
    ReadOnly,
    /// The clock jumps by so many seconds.
    Clock(i64),
}

/// A fault that lasts, and how it is mended.
pub struct Lasting {
    fault: Fault,
    /// Clocks when it began.
    clocks: (Timespec, Timespec),
    pid: Option<u32>,
    limit: Option<Rlimit>,
}

impl Fault {
    /// Lets it strike.
    pub fn begin(self, device: &mut Device) -> Result<Lasting> {
        let clocks = (clock_gettime(ClockId::Realtime), clock_gettime(ClockId::Boottime));
        let pid = device.agent.as_ref().map(crate::agent::Agent::pid);
        let mut lasting = Lasting { fault: self, clocks, pid, limit: None };
        match (self, pid) {
            (Self::Kill, _) => device.kill()?,
            (Self::Stop(_), Some(pid)) => init::signal(pid, Signal::STOP)?,
            (Self::Memory(kib), Some(pid)) => squeeze(pid, kib)?,
            (Self::Descriptors(left), Some(pid)) => {
                let open = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
                let limit = Some(open as u64 + left);
                lasting.limit = Some(limit_descriptors(pid, limit)?);
            }
            (Self::Full, _) => fill()?,
            (Self::ReadOnly, _) => make_read_only()?,
            (Self::Clock(seconds), _) => {
                let mut now = clock_gettime(ClockId::Realtime);
                now.tv_sec = (now.tv_sec + seconds).max(1);
                clock_settime(ClockId::Realtime, now)?;
            }
            // Nobody runs that it could strike.
            (_, None) => {}
        }
        Ok(lasting)
    }

    /// Whether the agent should be there afterwards.
    pub fn spares_the_agent(self) -> bool {
        !matches!(self, Self::Kill | Self::Memory(_))
    }
}

impl Lasting {
    /// Mends it.
    pub fn end(self, device: &Device) -> Result<()> {
        let is_alive = device.agent.is_some();
        match (self.fault, self.pid.filter(|_| is_alive)) {
            (Fault::Stop(_), Some(pid)) => init::signal(pid, Signal::CONT)?,
            (Fault::Descriptors(_), Some(pid)) => {
                if let Some(limit) = self.limit {
                    limit_descriptors(pid, limit.current)?;
                }
            }
            (Fault::Memory(_), pid) => {
                if let Some(pid) = pid {
                    fs::write("/sys/fs/cgroup/cgroup.procs", pid.to_string())?;
                }
                let end = Instant::now() + PATIENCE;
                // Busy until the killed process is gone for good.
                while fs::remove_dir(GROUP).is_err() && Path::new(GROUP).exists() {
                    ensure!(Instant::now() < end, "the control group stays");
                    sleep(Duration::from_millis(10));
                }
            }
            (Fault::Full, _) => fs::remove_dir_all(FILLER)?,
            (Fault::ReadOnly, _) => {
                mount_remount(DISK, MountFlags::empty(), "")
                    .context("mounting it writable again")?;
            }
            (Fault::Clock(_), _) => {
                let (real, boot) = self.clocks;
                let passed = clock_gettime(ClockId::Boottime).tv_sec - boot.tv_sec;
                let now = Timespec { tv_sec: real.tv_sec + passed, ..real };
                clock_settime(ClockId::Realtime, now)?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn limit_descriptors(pid: u32, soft: Option<u64>) -> Result<Rlimit> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    let now =
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: soft, maximum: Some(1 << 19) });
    // A limit above the present one needs no privilege that root has not.
    now.context("limiting descriptors")
}

/// Its memory cannot grow any more.
fn squeeze(pid: u32, kib: u64) -> Result<()> {
    fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")
        .context("memory control groups")?;
    fs::create_dir(GROUP).context("a control group")?;
    fs::write(format!("{GROUP}/memory.max"), (kib << 10).to_string())?;
    // What has ended cannot be moved.
    let _ = fs::write(format!("{GROUP}/cgroup.procs"), pid.to_string());
    Ok(())
}

/// Leaves no block free, for root either.
fn fill() -> Result<()> {
    fs::create_dir_all(FILLER)?;
    let (mut size, mut number) = (64_u64 << 20, 0);
    while size >= 4096 {
        number += 1;
        let file = File::create(format!("{FILLER}/{number}"));
        match file.map_err(|error| Errno::from_io_error(&error)) {
            Ok(file) => match fallocate(&file, FallocateFlags::empty(), 0, size) {
                Ok(()) => continue,
                Err(Errno::NOSPC) => {}
                Err(error) => return Err(error).context("filling the disk"),
            },
            Err(Some(Errno::NOSPC)) => {}
            Err(error) => anyhow::bail!("filling the disk: {error:?}"),
        }
        size /= 2;
    }
    Ok(())
}

/// As a filesystem makes itself when it finds a fault.
fn make_read_only() -> Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sysrq-trigger", "u").context("making filesystems read-only")?;
    let end = Instant::now() + PATIENCE;
    loop {
        match File::create("/data/probe") {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => return Ok(()),
            _ => ensure!(Instant::now() < end, "the disk does not become read-only"),
        }
        sleep(Duration::from_millis(10));
    }
}
