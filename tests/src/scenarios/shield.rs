//! Attacks on the agent, its pins and its objects, by root with every capability (A18 to A20).

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::symlink,
            net::UnixListener,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FileType, Mode},
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{
        Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open,
        pidfd_send_signal, test_kill_process,
    },
};

use super::{base_policy, fresh, shield_bpf, unmount_soon};
use crate::{
    agent::{Agent, SOCKET, expect, json, text},
    attack::{Attempt, evil, exec_path, install, is_old_kernel, note},
    events, raw,
};

const PINS: &str = "/sys/fs/bpf/portcullis";
const BINARY: &str = "/usr/bin/portcullis";
const STATE: &str = "/var/lib/portcullis/bundles";
const KEPT: &str = "kept";
const EMPTY: &str = "empty";
/// `FS_IMMUTABLE_FL` and `FS_IOC32_SETFLAGS` (linux/fs.h).
const IMMUTABLE: u32 = 0x10;
const SET_FLAGS_32: u32 = 0x4004_6602;
const RUNTIME: &str = "/run/portcullis";
const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";

/// One attack: its name, the reason that its event gives, and whether it gets through.
type Attack<'a> = (&'static str, &'static str, Box<dyn Fn() -> io::Result<()> + 'a>);

/// Every attack works and is told of in audit mode; none does in enforce mode, whether or not the agent
/// lives.
pub fn attacked() -> Result<()> {
    let lab = fresh("/run/shield")?;
    let program = lab.join("evil");
    install(&program, &evil("shield")?)?;
    let newer = lab.join("portcullis");
    let mut binary = fs::read(BINARY)?;
    binary.push(0);
    install(&newer, &binary)?;
    let policy = base_policy(&[&newer])?;
    fs::create_dir_all(STATE)?;
    fs::write(Path::new(STATE).join(KEPT), "mine")?;
    fs::create_dir_all(Path::new(STATE).join(EMPTY))?;

    let agent = Agent::start(&policy, "audit", &[])?;
    let pid = agent.pid();
    for (name, reason, attempt) in of_agent(pid)?.into_iter().chain(of_gates()?) {
        let mark = events::mark()?;
        attempt().with_context(|| format!("audit mode has stopped it: {name}"))?;
        told(mark, name, reason, "would-deny")?;
    }
    let mark = events::mark()?;
    mount("tmpfs", PINS, "tmpfs", MountFlags::empty(), None).context("a mount over the pins")?;
    told(mark, "a mount over the pins", "gate-mount", "would-deny")?;
    unmount_soon(Path::new(PINS))?;
    let original = fs::read_to_string(&policy.file)?;
    shield_bpf::pass("report")?;
    shield_bpf::choose(&policy, &original, "deny")?;
    shield_bpf::pass("would-deny")?;
    fs::write(&policy.file, &original)?;
    // What cannot be undone, with gates that nobody needs any more.
    let mark = events::mark()?;
    unmount("/sys", UnmountFlags::DETACH).context("umount -l of what is above the pins")?;
    told(mark, "umount -l /sys", "gate-mount", "would-deny")?;
    crate::init::mount_sys()?;
    agent.stop()?;

    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let pid = agent.pid();
    let attacks = || -> Result<Vec<Attack<'_>>> {
        Ok([of_agent(pid)?, of_gates()?, of_mounts()].into_iter().flatten().collect())
    };
    for (name, reason, attempt) in attacks()? {
        let mark = events::mark()?;
        is_refused(name, &attempt)?;
        let event = told(mark, name, reason, "deny")?;
        ensure!(event["process"]["pid"].as_u64() > Some(0), "{event}");
        println!("  refused: {name}");
    }
    ordinary(pid)?;
    shield_bpf::pass("report")?;
    shield_bpf::pass_often(150)?;
    shield_bpf::choose(&policy, &original, "allow")?;
    shield_bpf::pass_in_silence()?;
    // The agent that follows, too, is none of the others.
    shield_bpf::choose(&policy, &original, "deny")?;
    shield_bpf::are_refused()?;
    let status = json(&["status", "--json"])?;
    // Where the agent hashes, that is a warning by itself.
    let expected = if is_old_kernel() { "warning" } else { "ok" };
    ensure!(status["pid"] == pid && status["health"] == expected, "{status}");
    let gates = status["gates"].as_array().context("gates")?;
    let shield = gates.iter().find(|gate| gate["gate"] == "shield").context("no shield")?;
    ensure!(shield["attached"] == true && shield["pinned"] == true, "{shield}");
    ensure!(shield["denied"].as_u64() >= Some(20), "{shield}");

    // No hook sees this one. What it leaves is as well guarded.
    agent.signal(Signal::KILL)?;
    ensure!(exec_path(&program)? == Attempt::Refused, "the gates have ended with the agent");
    for (name, _, attempt) in of_gates()?.into_iter().chain(of_mounts()) {
        is_refused(name, &attempt).context("without an agent")?;
    }
    shield_bpf::are_refused_unseen()?;
    newer_binary(&policy, &newer)?;
    expect(0, &["stop"])?;
    ensure!(exec_path(&program)? == Attempt::Ran, "the gates are still up");
    Ok(())
}

/// Another version of the agent takes over if the policy in force names it, and not otherwise.
fn newer_binary(policy: &crate::agent::Policy, newer: &Path) -> Result<()> {
    let run = || {
        Command::new(newer)
            .args(["run", "--policy", text(&policy.file)?, "--mode", "enforce", "--skip-preflight"])
            .stdin(Stdio::null())
            .output()
            .context("starting the newer version")
    };
    if is_old_kernel() {
        note("shield", "a binary that no agent has hashed is not run here");
        return Ok(());
    }
    let output = run()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("[agent] digests"), "{output:?}");
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    let digest = super::sha256(newer)?;
    let text = fs::read_to_string(&policy.file)?;
    fs::write(&policy.file, format!("{text}\n[agent]\ndigests = [\"{digest}\"]\n"))?;
    expect(0, &["policy", "reload", "--skip-preflight"])?;
    agent.signal(Signal::KILL)?;
    let agent = Agent::start_binary(newer, policy, "enforce", events::FILE, &["--skip-preflight"])?;
    ensure!(json(&["status", "--json"])?["pid"] == agent.pid());
    // It guards itself as the other did.
    is_refused("kill", &|| signal(agent.pid(), Signal::WINCH))?;
    ensure!(fs::read_dir(PINS)?.count() == 1, "the gates before are still there");
    agent.stop()
}

fn told(mark: events::Mark, name: &str, reason: &str, outcome: &str) -> Result<serde_json::Value> {
    events::wait_for(mark, name, |event| {
        event["gate"] == "shield" && event["reason"] == reason && event["outcome"] == outcome
    })
}

pub fn is_refused(name: &str, attempt: &dyn Fn() -> io::Result<()>) -> Result<()> {
    match attempt() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{name}: refused by somebody else")),
        Ok(()) => bail!("{name}: it worked"),
    }
}

/// What must go on working.
fn ordinary(agent: u32) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(agent)?).context("a pid")?;
    test_kill_process(pid).context("asking whether the agent is there")?;
    fs::read(format!("/proc/{agent}/cmdline"))?;
    rustix::thread::set_name(c"shielded").context("another prctl")?;
    let name = fs::read_to_string("/proc/thread-self/comm")?;
    ensure!(name.trim_end() == "shielded", "{name}");
    // Others' signals, mounts, and files in bpffs.
    let mut child = Command::new("/usr/bin/sleep").arg("60").spawn()?;
    child.kill()?;
    child.wait()?;
    let place = fresh("/run/mounted")?;
    mount("tmpfs", place, "tmpfs", MountFlags::empty(), None)?;
    unmount_soon(place)?;
    let folder = Path::new("/sys/fs/bpf/others");
    fs::create_dir(folder)?;
    fs::rename(folder, "/sys/fs/bpf/other")?;
    fs::remove_dir("/sys/fs/bpf/other")?;
    fs::write("/proc/sys/kernel/printk", "4 4 1 7")?;
    Ok(())
}

/// Attacks on the process.
fn of_agent(pid: u32) -> Result<Vec<Attack<'static>>> {
    let process = Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
    let held = move || pidfd_open(process, PidfdFlags::empty()).map_err(io::Error::from);
    Ok(vec![
        ("kill", "agent-signal", Box::new(move || signal(pid, Signal::WINCH))),
        (
            "a signal by pidfd",
            "agent-signal",
            Box::new(move || Ok(pidfd_send_signal(held()?, Signal::WINCH)?)),
        ),
        ("a debugger", "agent-memory", Box::new(move || traced(pid))),
        (
            "/proc/PID/mem",
            "agent-memory",
            Box::new(move || {
                OpenOptions::new().write(true).open(format!("/proc/{pid}/mem")).map(drop)
            }),
        ),
        (
            "a descriptor by pidfd_getfd",
            "agent-memory",
            Box::new(move || Ok(pidfd_getfd(held()?, 0, PidfdGetfdFlags::empty()).map(drop)?)),
        ),
        ("the agent's binary under a debugger", "agent-memory", Box::new(started_traced)),
        ("passing for another program", "agent-memory", Box::new(posing)),
    ])
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, signal)?)
}

/// A child that does something in few system calls and ends with its error number.
fn in_child(work: impl FnOnce() -> libc::c_long) -> io::Result<()> {
    // SAFETY: the child makes system calls only, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let error =
            if work() < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(99) } else { 0 };
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(error) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was just made.
    if child < 0 || unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(io::Error::last_os_error());
    }
    match ExitStatus::from_raw(status).code() {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(error)),
        None => Err(io::Error::other("the child was killed")),
    }
}

/// Takes hold of the agent as a debugger does, and lets go by ending.
fn traced(pid: u32) -> io::Result<()> {
    // SAFETY: has no precondition.
    in_child(|| unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) })
}

/// Starts the agent's binary steered by us, so that it would do what we want.
fn started_traced() -> io::Result<()> {
    let mut command = Command::new(BINARY);
    command.arg("--do-nothing");
    let steered = || {
        // SAFETY: has no precondition.
        let done = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the child makes a system call only.
    unsafe { command.pre_exec(steered) };
    let mut child = command.spawn()?;
    child.kill()?;
    child.wait().map(drop)
}

/// The kernel lets a process do so only when nothing of its own program is mapped any more, which this
/// one does not care for: that it gets so far is what counts.
fn posing() -> io::Result<()> {
    const SET_MM: i32 = 35;
    const EXE_FILE: u64 = 13;
    let binary = File::open(BINARY)?;
    // SAFETY: has no precondition.
    let done = unsafe { libc::prctl(SET_MM, EXE_FILE, binary.as_raw_fd(), 0, 0) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if done == 0 => Ok(()),
        Some(libc::EBUSY) => Ok(()),
        _ => Err(error),
    }
}

/// Attacks on pins and objects that leave things as they are.
fn of_gates() -> Result<Vec<Attack<'static>>> {
    let mut attacks = of_gates_everywhere()?;
    // No file has this name.
    let asked = raw::set_attributes(Path::new(""), 0);
    if asked.is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS)) {
        println!("  no file_setattr (Linux 6.17) in this kernel");
    } else {
        attacks.push((
            "the same by file_setattr",
            "agent-state",
            Box::new(|| {
                let kept = Path::new(STATE).join(KEPT);
                raw::set_attributes(&kept, raw::IMMUTABLE_ATTRIBUTE)?;
                raw::set_attributes(&kept, 0)
            }),
        ));
    }
    Ok(attacks)
}

fn of_gates_everywhere() -> Result<Vec<Attack<'static>>> {
    let folder = fs::read_dir(PINS)?.next().context("no pins")??.path();
    let link = folder.join("gate_kernel_load_data");
    let of = |name: &str| folder.join(name);
    let (map, layers, spare) = (of("PCULLIS_AGENTS"), of("PCULLIS_OPENED_LAYERS"), of("spare"));
    let moved = folder.with_file_name("elsewhere");
    Ok(vec![
        ("removing a pin", "gate-pins", Box::new(move || fs::remove_file(&layers))),
        ("renaming a pin", "gate-pins", Box::new(move || there_and_back(&link, &spare))),
        ("renaming the folder", "gate-pins", Box::new(move || there_and_back(&folder, &moved))),
        (
            "renaming the folder above",
            "gate-pins",
            Box::new(|| there_and_back(Path::new(PINS), Path::new("/sys/fs/bpf/elsewhere"))),
        ),
        ("a map by its pin", "gate-objects", Box::new(move || by_pin(&map))),
        ("maps by id", "gate-objects", Box::new(|| by_id(MAP_NEXT, MAP_BY_ID))),
        ("programs by id", "gate-objects", Box::new(|| by_id(PROGRAM_NEXT, PROGRAM_BY_ID))),
        ("links by id", "gate-objects", Box::new(|| by_id(LINK_NEXT, LINK_BY_ID))),
        (
            "adding to the agent's state",
            "agent-state",
            Box::new(|| {
                let other = Path::new(STATE).join("other");
                File::create(&other).and_then(|_| fs::remove_file(&other))
            }),
        ),
        (
            "adding to what a fleet's servers have brought",
            "agent-state",
            Box::new(|| {
                let other = Path::new(STATE).with_file_name("fleet").join("catalog-x.parcel");
                File::create(&other).and_then(|_| fs::remove_file(&other))
            }),
        ),
        (
            "writing to the agent's state",
            "agent-state",
            Box::new(|| {
                OpenOptions::new().append(true).open(Path::new(STATE).join(KEPT)).map(drop)
            }),
        ),
        (
            "truncating the agent's state",
            "agent-state",
            Box::new(|| {
                let path = CString::new(format!("{STATE}/{KEPT}"))?;
                // SAFETY: the path is valid and ends with a zero.
                let done = unsafe { libc::truncate(path.as_ptr(), 1) };
                if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
            }),
        ),
        (
            "removing the agent's state",
            "agent-state",
            Box::new(|| {
                let kept = Path::new(STATE).join(KEPT);
                there_and_back(&kept, &kept.with_file_name("moved"))
            }),
        ),
        (
            "a second name for the agent's state",
            "agent-state",
            Box::new(|| {
                let second = Path::new("/var/lib/second");
                fs::hard_link(Path::new(STATE).join(KEPT), second)?;
                let written = OpenOptions::new().append(true).open(second).map(drop);
                fs::remove_file(second).and(written)
            }),
        ),
        (
            "a file's second name among the agent's state",
            "agent-state",
            Box::new(|| {
                let (own, second) = (Path::new("/var/lib/own"), Path::new(STATE).join("second"));
                File::create(own)?;
                fs::hard_link(own, &second).and_then(|()| fs::remove_file(&second))
            }),
        ),
        (
            "a symbolic link among the agent's state",
            "agent-state",
            Box::new(|| {
                let link = Path::new(STATE).join("link");
                symlink("/etc", &link).and_then(|()| fs::remove_file(&link))
            }),
        ),
        (
            "a folder among the agent's state",
            "agent-state",
            Box::new(|| {
                let folder = Path::new(STATE).join("folder");
                fs::create_dir(&folder).and_then(|()| fs::remove_dir(&folder))
            }),
        ),
        (
            "removing a folder of the agent's state",
            "agent-state",
            Box::new(|| {
                let folder = Path::new(STATE).join(EMPTY);
                fs::remove_dir(&folder).and_then(|()| fs::create_dir(&folder))
            }),
        ),
        (
            "a pipe among the agent's state",
            "agent-state",
            Box::new(|| {
                let pipe = Path::new(STATE).join("pipe");
                let (kind, mode) = (FileType::Fifo, Mode::RWXU);
                rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0)?;
                fs::remove_file(&pipe)
            }),
        ),
        (
            "a socket in the runtime folder",
            "agent-state",
            Box::new(|| {
                let socket = Path::new(RUNTIME).join("other.sock");
                UnixListener::bind(&socket)?;
                fs::remove_file(&socket)
            }),
        ),
        (
            "making the agent's state immutable",
            "agent-state",
            Box::new(|| {
                immutable(&|file, flags| {
                    let value = u64::from(flags);
                    // SAFETY: the descriptor is open, and the kernel reads an integer.
                    let done = unsafe {
                        libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const value)
                    };
                    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
                })
            }),
        ),
        (
            "the same as a program of 32 bits",
            "agent-state",
            Box::new(|| immutable(&|file, flags| raw::ioctl_32(file, SET_FLAGS_32, flags))),
        ),
        (
            "another socket in the agent's place",
            "agent-state",
            Box::new(|| {
                let own = Path::new(SOCKET);
                there_and_back(own, &own.with_file_name("moved"))
            }),
        ),
        (
            "adding to the runtime folder",
            "agent-state",
            Box::new(|| {
                let other = Path::new(RUNTIME).join("other");
                File::create(&other).and_then(|_| fs::remove_file(&other))
            }),
        ),
        (
            "writing to the runtime folder",
            "agent-state",
            Box::new(|| {
                OpenOptions::new()
                    .append(true)
                    .open(Path::new(RUNTIME).join("agent.lock"))
                    .map(drop)
            }),
        ),
        (
            "renaming the runtime folder",
            "gate-pins",
            Box::new(|| there_and_back(Path::new(RUNTIME), Path::new("/run/elsewhere"))),
        ),
        (
            "kernel.ftrace_enabled",
            "gate-switch",
            Box::new(|| OpenOptions::new().write(true).open(FTRACE).map(drop)),
        ),
    ])
}

/// Makes a file of the state immutable, and lets go of it again. Filesystems without such flags answer so,
/// which shows that nobody has stopped it before.
fn immutable(command: &dyn Fn(&File, u32) -> io::Result<()>) -> io::Result<()> {
    let file = File::open(Path::new(STATE).join(KEPT))?;
    for flags in [IMMUTABLE, 0] {
        match command(&file, flags) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
            done => done?,
        }
    }
    Ok(())
}

fn there_and_back(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    fs::rename(to, from)
}

/// Attacks on what the pins lie on.
fn of_mounts() -> Vec<Attack<'static>> {
    let gone = |place: &'static str, flags| {
        Box::new(move || Ok(unmount(place, flags)?)) as Box<dyn Fn() -> io::Result<()>>
    };
    let bpffs = "/sys/fs/bpf";
    let covered = |place: &'static str, flags: MountFlags| {
        let source = if flags.contains(MountFlags::BIND) { "/run" } else { "tmpfs" };
        Box::new(move || Ok(mount(source, place, "tmpfs", flags, None)?))
            as Box<dyn Fn() -> io::Result<()>>
    };
    vec![
        ("umount", "gate-mount", gone(bpffs, UnmountFlags::empty())),
        ("umount -l", "gate-mount", gone(bpffs, UnmountFlags::DETACH)),
        ("umount -f", "gate-mount", gone(bpffs, UnmountFlags::FORCE)),
        ("umount -l of a parent", "gate-mount", gone("/sys", UnmountFlags::DETACH)),
        ("a mount over it", "gate-mount", covered(bpffs, MountFlags::empty())),
        ("a bind mount over the folder", "gate-mount", covered(PINS, MountFlags::BIND)),
        ("a mount over what is above it", "gate-mount", covered("/sys", MountFlags::empty())),
        ("a mount over the runtime folder", "gate-mount", covered(RUNTIME, MountFlags::empty())),
        ("a mount over what is above that", "gate-mount", covered("/run", MountFlags::BIND)),
        ("umount -l of what is above that", "gate-mount", gone("/run", UnmountFlags::DETACH)),
        (
            "moving it away",
            "gate-mount",
            Box::new(|| {
                let place = PathBuf::from("/run/moved");
                let _ = fs::create_dir(&place);
                let tree = rustix::mount::open_tree(
                    rustix::fs::CWD,
                    "/sys/fs/bpf",
                    rustix::mount::OpenTreeFlags::empty(),
                )?;
                Ok(rustix::mount::move_mount(
                    tree,
                    "",
                    rustix::fs::CWD,
                    &place,
                    rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                )?)
            }),
        ),
    ]
}

const OBJECT_GET: i32 = 7;
const PROGRAM_NEXT: i32 = 11;
const MAP_NEXT: i32 = 12;
const PROGRAM_BY_ID: i32 = 13;
const MAP_BY_ID: i32 = 14;
const LINK_BY_ID: i32 = 30;
const LINK_NEXT: i32 = 31;

pub fn bpf(command: i32, attributes: &mut [u64]) -> io::Result<i32> {
    // SAFETY: the attributes are as large as is said.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes))
    };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        i32::try_from(answer).map_err(io::Error::other)
    }
}

fn by_pin(pin: &Path) -> io::Result<()> {
    let path = CString::new(pin.as_os_str().as_encoded_bytes())?;
    let descriptor = bpf(OBJECT_GET, &mut [path.as_ptr() as u64, 0, 0, 0])?;
    // SAFETY: a new descriptor that nobody else has.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(())
}

/// Asks for every object of a kind. It is refused if one was.
fn by_id(next: i32, get: i32) -> io::Result<()> {
    let mut id = 0u64;
    let mut refused = Ok(());
    let mut got = 0;
    loop {
        let mut attributes = [id, 0, 0, 0];
        if bpf(next, &mut attributes).is_err() {
            break;
        }
        id = attributes[0] >> 32;
        match bpf(get, &mut [id, 0, 0, 0]) {
            Ok(descriptor) => {
                got += 1;
                // SAFETY: a new descriptor that nobody else has.
                drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
            // Gone meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => refused = Err(error),
        }
    }
    // The machine has hardly any of its own.
    if refused.is_err() && got > 12 {
        return Err(io::Error::other(format!("{got} objects are within reach")));
    }
    refused
}
