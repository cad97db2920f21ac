//! The first process of a virtual machine: mounts what is needed, runs the command, reports its
//! exit code and powers off.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead as _, BufReader, Write},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixListener, UnixStream},
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Signal, WaitOptions, wait},
    system::{RebootCommand, reboot},
};

/// Where the host has put the command.
const COMMAND: &str = "/portcullis/command";
/// The socket at which the first process can be asked for signals.
const ASKED: &[u8] = b"portcullis-init";
/// The disk that the host has attached.
const DISK: &str = "/dev/vda";

/// Runs as the first process. Never returns: the machine is powered off at the end, or the root
/// filesystem's own first process takes over.
pub fn first_process() -> ! {
    finish(boot().and_then(|()| match option("rootfs").as_str() {
        "debian" => switch_root(),
        _ => answer_signals().and_then(|()| run_command()),
    }))
}

/// Runs the command under the root filesystem's own first process, and powers off.
pub fn run_and_finish() -> ! {
    finish(run_command())
}

fn finish(code: Result<u8>) -> ! {
    let code = code.unwrap_or_else(|error| {
        println!("the guest could not run the command: {error:#}");
        255
    });
    println!("\n@@{} exit {code}", option("nonce"));
    let _ = io::stdout().flush();
    // The serial line must have sent it all.
    std::thread::sleep(Duration::from_millis(50));
    rustix::fs::sync();
    loop {
        let _ = reboot(RebootCommand::PowerOff);
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn boot() -> Result<()> {
    mounts()?;
    println!("@@{} start", option("nonce"));
    // The disk; a kernel that has these built in needs no module.
    for module in ["virtio_pci", "virtio_blk", "crc32c_generic", "ext4"] {
        let _ = Command::new("/sbin/modprobe").args(["-q", module]).status();
    }
    if Path::new(DISK).exists() {
        fs::create_dir_all("/data")?;
        mount(DISK, "/data", "ext4", MountFlags::empty(), None)
            .with_context(|| format!("mounting {DISK} on /data"))?;
    }
    Ok(())
}

/// Goes over to the disk, after copying everything there that the host has sent along.
fn switch_root() -> Result<u8> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let copies = [
        ("/usr/bin/portcullis", "/data/usr/bin/"),
        ("/usr/bin/portcullis-guest", "/data/usr/bin/"),
        ("/portcullis", "/data/"),
        ("/files", "/data/"),
        (&format!("/lib/modules/{release}"), "/data/usr/lib/modules/"),
    ];
    fs::create_dir_all("/data/usr/lib/modules")?;
    for (from, to) in copies {
        let status = Command::new("/bin/cp").args(["-a", from, to]).status()?;
        ensure!(status.success(), "copying {from} to the disk: {status}");
    }
    // What a device does once an hour or a day would come into the middle of a scenario, or not, by the clock.
    fs::write("/data/etc/crontab", "")?;
    fs::remove_dir_all("/data/etc/cron.d")?;
    for below in ["proc", "sys", "dev", "run", "tmp"] {
        // systemd mounts its own.
        let _ = unmount(format!("/{below}"), UnmountFlags::DETACH);
    }
    let error = Command::new("/bin/switch_root").args(["/data", "/sbin/init"]).exec();
    Err(error).context("switching to the disk")
}

/// Sends a signal in the name of the first process, which may send one to anybody.
pub fn signal(pid: u32, signal: Signal) -> Result<()> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(ASKED)?)
        .context("asking the first process")?;
    writeln!(stream, "{pid} {}", signal.as_raw())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    ensure!(answer == "done\n", "the first process could not send a signal: {answer}");
    Ok(())
}

/// Does what [`signal`] asks for, one after the other.
fn answer_signals() -> Result<()> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(ASKED)?)?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let answer = match BufReader::new(&stream).read_line(&mut line) {
                Ok(_) => send(line.trim()),
                Err(error) => Err(error.into()),
            };
            let _ = match answer {
                Ok(()) => writeln!(stream, "done"),
                Err(error) => writeln!(stream, "{error:#}"),
            };
        }
    });
    Ok(())
}

fn send(line: &str) -> Result<()> {
    let (pid, signal) = line.split_once(' ').context("no signal")?;
    // SAFETY: has no precondition.
    ensure!(unsafe { libc::kill(pid.parse()?, signal.parse()?) } == 0, io::Error::last_os_error());
    Ok(())
}

/// Mounts what lies below `/sys`.
pub fn mount_sys() -> Result<()> {
    mount_all(&[
        ("sysfs", "/sys", "sysfs"),
        ("securityfs", "/sys/kernel/security", "securityfs"),
        ("bpf", "/sys/fs/bpf", "bpf"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
    ])
}

fn mount_all(wanted: &[(&str, &str, &str)]) -> Result<()> {
    for (source, target, kind) in wanted {
        mount(*source, *target, *kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {target}"))?;
    }
    Ok(())
}

fn mounts() -> Result<()> {
    mount_all(&[("proc", "/proc", "proc"), ("devtmpfs", "/dev", "devtmpfs")])?;
    mount_sys()?;
    mount_all(&[("tmpfs", "/run", "tmpfs"), ("tmpfs", "/tmp", "tmpfs")])?;
    fs::create_dir_all("/dev/shm")?;
    mount("tmpfs", "/dev/shm", "tmpfs", MountFlags::empty(), None).context("mounting /dev/shm")?;
    Ok(())
}

/// One of the words that the host has put on the kernel's command line.
fn option(name: &str) -> String {
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let key = format!("portcullis.{name}=");
    words.split_whitespace().find_map(|word| word.strip_prefix(&key)).unwrap_or("?").to_owned()
}

fn run_command() -> Result<u8> {
    let bytes = fs::read(COMMAND).context(COMMAND)?;
    let mut words =
        bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(OsStr::from_bytes);
    let program = words.next().context("no command was given")?;
    let mut command = Command::new(program);
    command.args(words).env_clear();
    command.envs([
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", "/root"),
        ("TERM", "dumb"),
    ]);
    // A group of its own, as a shell would give it.
    command.process_group(0).stdin(std::process::Stdio::null()).current_dir("/root");
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let child = i32::try_from(child.id())?;
    // The first process also inherits everybody's orphans.
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get() == child => {
                return Ok(exit_code(ExitStatus::from_raw(status.as_raw())));
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the command"),
        }
    }
}

/// As a shell would report it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255)
}
