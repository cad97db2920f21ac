//! What comes from outside is read by a process that has nothing, before the agent looks at it: what such a
//! process cannot do, what it looks like from outside, and what the agent does when it does not come back.

// The agent's own file. It is beside the other one there.
#[path = "../../../agent/src/alone.rs"]
mod alone;

use std::{
    fmt::Write as _,
    fs, io,
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Output},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{
    bundles::{Operator, no, wait_for},
    confined::confine,
    fresh,
};
use crate::{
    agent::{self, PATIENCE, expect, portcullis},
    events, link,
};

const FOLDER: &str = "/run/alone";
const FILE: &str = "/run/alone/file";

/// Something that a process does to what is not its own.
type Attack = (&'static str, fn() -> io::Result<()>);

const ATTACKS: &[Attack] = &[
    ("reads-a-file", || fs::read(FILE).map(drop)),
    ("writes-a-file", || fs::write(FILE, "")),
    ("makes-a-file", || fs::File::create("/run/alone/new").map(drop)),
    ("starts-a-program", || Command::new("/bin/true").status().map(drop)),
    ("starts-a-thread", || {
        thread::Builder::new().spawn(|| ())?.join().map_err(|_| io::Error::other("a panic"))
    }),
    ("opens-a-socket", || TcpListener::bind("127.0.0.1:0").map(drop)),
    ("signals-the-first-process", || Ok(test_kill_process(Pid::INIT)?)),
    ("looks-into-another-process", || {
        let (pid, none) =
            (std::os::unix::process::parent_id(), std::ptr::null_mut::<libc::c_void>());
        // SAFETY: attaches to a process, and reads and writes no memory.
        let done = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, none) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }),
    ("makes-memory-executable", || {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let code = ProtFlags::READ | ProtFlags::EXEC;
        // SAFETY: a mapping at a free place, which nothing uses.
        unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, code, MapFlags::PRIVATE) }?;
        Ok(())
    }),
    ("asks-for-bpf", || {
        // SAFETY: gets no memory; the kernel says that there is no such program.
        let done = unsafe { libc::syscall(libc::SYS_bpf, 13, 0, 0) };
        let error = io::Error::last_os_error();
        if done < 0 && error.raw_os_error() == Some(libc::EPERM) { Err(error) } else { Ok(()) }
    }),
];

/// The process that attacks, alone or as a control.
pub fn attack(name: &str, is_alone: bool) -> Result<()> {
    let (_, attack) = ATTACKS.iter().find(|(known, _)| *known == name).context("no attack")?;
    if is_alone {
        println!("  {}", alone::alone()?);
    }
    attack()?;
    println!("  it {name}");
    Ok(())
}

fn try_attack(name: &str, how: &str) -> Result<Output> {
    Ok(Command::new("portcullis-guest").args(["alone", name, how]).output()?)
}

/// Nothing is left to such a process; and the agent goes on whatever becomes of one.
pub fn scenario() -> Result<()> {
    fresh(FOLDER)?;
    fs::write(FILE, "content")?;
    link::set_loopback(true)?;
    for (name, _) in ATTACKS {
        let control = try_attack(name, "control")?;
        ensure!(control.status.success(), "as a control, it {name}: {control:?}");
        fs::write(FILE, "content")?;
        let attacked = try_attack(name, "alone")?;
        let said = String::from_utf8_lossy(&attacked.stdout).into_owned();
        ensure!(said.contains("without capabilities"), "{name}: {attacked:?}");
        ensure!(attacked.status.signal() == Some(libc::SIGSYS), "{name}: {attacked:?}");
        ensure!(fs::read(FILE)? == b"content", "{name}");
        if *name == ATTACKS[0].0 {
            print!("{said}");
        }
    }
    println!("  {} attacks, each ended by the kernel", ATTACKS.len());
    from_outside()
}

/// A policy that takes a while to be read.
fn make_long(operator: &Operator) -> Result<()> {
    let mut list = String::new();
    for number in 0..30_000 {
        writeln!(list, "{:064x}  /opt/file{number}", number + 1)?;
    }
    fs::write(operator.path("more")?, list)?;
    let policy = fs::read_to_string(&operator.policy.file)?;
    let longer = policy.replace(
        "include = [\"base.manifest\"]",
        "include = [\"base.manifest\", { path = \"more\", kinds = [\"library\"] }]",
    );
    ensure!(longer != policy, "{policy}");
    Ok(fs::write(&operator.policy.file, longer)?)
}

/// Waits for a process that reads, and sends it a signal. Returns it with what the kernel says of it.
fn hunt(signal: Signal) -> Result<(Pid, String)> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.parse().ok().and_then(Pid::from_raw) else { continue };
            let at = |file: &str| fs::read_to_string(format!("/proc/{name}/{file}"));
            if !at("cmdline").is_ok_and(|line| line.split('\0').any(|word| word == "read-policy")) {
                continue;
            }
            let Ok(status) = at("status") else { continue };
            if status.contains("Seccomp:\t2") && kill_process(pid, signal).is_ok() {
                return Ok((pid, status));
            }
        }
        // It reads for longer than this.
        sleep(Duration::from_millis(2));
    }
    bail!("no process reads")
}

/// Does something with the agent while a process that reads gets a signal.
fn while_hunting(
    words: &[&str],
    signal: Signal,
    then: impl FnOnce(Pid, &str) -> Result<()>,
) -> Result<Output> {
    thread::scope(|scope| {
        let hunter = scope.spawn(move || hunt(signal));
        let asked = scope.spawn(move || portcullis(words));
        let (pid, status) = hunter.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        then(pid, &status)?;
        asked.join().map_err(|_| anyhow::anyhow!("a panic"))?
    })
}

/// It was not put in force, for this reason, and the same agent is there with the policy before.
fn refused(output: &Output, says: [&str; 2], version: u64, pid: u32) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && says.iter().all(|part| said.contains(part)), "{said}");
    println!("  {}", said.trim());
    let status = agent::status()?;
    ensure!(status["policy"]["version"] == version, "{}", status["policy"]);
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "the agent is gone");
    Ok(())
}

fn from_outside() -> Result<()> {
    let operator = Operator::new()?;
    make_long(&operator)?;
    let agent = operator.start()?;
    let policy = fs::read_to_string(&operator.policy.file)?;
    let reload = ["policy", "reload", "--skip-preflight"];

    // What would fill the memory of the agent.
    let bomb = policy.clone() + "signed = [" + &"1,".repeat(12 << 20) + "]\n";
    fs::write(&operator.policy.file, bomb)?;
    let output = portcullis(&reload)?;
    refused(&output, ["refused (reader-failed)", "memory allocation"], 1, agent.pid())?;
    fs::write(&operator.policy.file, &policy)?;
    expect(0, &reload)?;

    // From outside, while it reads.
    let second = operator.bundle(2, true, &[])?;
    let push = ["policy", "push", second.as_str()];
    let mark = events::mark()?;
    let output = while_hunting(&push, Signal::STOP, |pid, status| {
        for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            ensure!(status.contains(&format!("{line}:\t0000000000000000")), "{status}");
        }
        for line in ["NoNewPrivs:\t1", "Uid:\t65534\t65534\t65534\t65534", "Groups:\t \n"] {
            ensure!(status.contains(line), "no {line}: {status}");
        }
        let at = |file: &str| format!("/proc/{}/{file}", pid.as_raw_nonzero());
        let limits = fs::read_to_string(at("limits"))?;
        for limit in [
            "Max processes             0",
            "Max open files            0",
            "Max file size             0",
        ] {
            ensure!(limits.contains(limit), "no {limit}: {limits}");
        }
        // It runs the agent's binary, so that nobody debugs it, root not either.
        let mem = fs::OpenOptions::new().read(true).write(true).open(at("mem"));
        ensure!(mem.is_err(), "root may write its memory");
        ensure!(fs::read_dir(at("fd"))?.count() == 3, "it has more than three descriptors");
        Ok(kill_process(pid, Signal::KILL)?)
    })?;
    refused(&output, ["refused (reader-failed)", "was killed"], 1, agent.pid())?;
    let told = wait_for(mark, "refused")?;
    ensure!(told["message"].as_str().is_some_and(|why| why.contains("reader-failed")), "{told}");

    // Stopped, and not continued.
    let output = while_hunting(&push, Signal::STOP, |_, _| {
        // The agent waits for it in a thread of its own, and answers others.
        ensure!(agent::status()?["policy"]["version"] == 1);
        Ok(())
    })?;
    refused(&output, ["refused (reader-failed)", "did nothing for 20 seconds"], 1, agent.pid())?;

    // And undisturbed.
    let began = Instant::now();
    expect(0, &push)?;
    println!("  pushed in {:.1} s", began.elapsed().as_secs_f32());
    operator.holds(2, true, "pushed")?;
    no(&["policy", "push", "/run/alone/file"], "it is no bundle")?;
    operator.stop(agent)
}
