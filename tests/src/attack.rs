//! The frame of every attack: it must work without us, work and be reported in audit mode, and
//! fail and be reported in enforce mode.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt, process::ExitStatusExt},
    },
    path::Path,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    agent::{Agent, Policy, expect},
    elf, events,
    mapping::{MapFlags, Mapping, ProtFlags},
};

/// The exit code by which a program of the attacker's shows that it ran.
pub const EVIL: u8 = 66;
/// The exit code of programs that the policy lists.
pub const GOOD: u8 = 23;

/// How an attempt to run code came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The attacker's code ran.
    Ran,
    /// It did not.
    Refused,
}

/// One attack.
pub struct Attack<'a> {
    /// What it is.
    pub name: String,
    /// Tries it once; everything that it changes is made anew by the next try.
    pub attempt: &'a dyn Fn() -> Result<Attempt>,
    /// The reasons that an event about it may give.
    pub reasons: &'a [&'static str],
}

impl<'a> Attack<'a> {
    /// An attack with content that no policy knows.
    pub fn unlisted(name: impl Into<String>, attempt: &'a dyn Fn() -> Result<Attempt>) -> Self {
        Self { name: name.into(), attempt, reasons: &["unlisted"] }
    }
}

/// Runs the attacks without gates, in audit mode, in enforce mode, and without gates once more.
pub fn run(policy: &Policy, attacks: &[Attack<'_>]) -> Result<()> {
    without_gates(attacks).context("before the agent ran")?;
    let agent = Agent::start(policy, "audit", &[])?;
    for attack in attacks {
        let mark = events::mark()?;
        let attempt =
            (attack.attempt)().with_context(|| format!("{} in audit mode", attack.name))?;
        ensure!(attempt == Attempt::Ran, "{}: audit mode has stopped it", attack.name);
        events::wait_for(mark, &format!("{} in audit mode", attack.name), |event| {
            is_about(event, "would-deny", attack)
        })?;
    }
    // What has just run without the policy's leave stands in the way otherwise.
    expect(0, &["mode", "enforce", "--skip-preflight"])?;
    for attack in attacks {
        let mark = events::mark()?;
        let attempt =
            (attack.attempt)().with_context(|| format!("{} in enforce mode", attack.name))?;
        ensure!(attempt == Attempt::Refused, "{}: it worked in enforce mode", attack.name);
        events::wait_for(mark, &format!("{} in enforce mode", attack.name), |event| {
            is_about(event, "deny", attack)
        })?;
        println!("  refused: {}", attack.name);
    }
    agent.stop()?;
    without_gates(attacks).context("after the agent was stopped")
}

fn without_gates(attacks: &[Attack<'_>]) -> Result<()> {
    for attack in attacks {
        let attempt =
            (attack.attempt)().with_context(|| format!("{} without gates", attack.name))?;
        ensure!(attempt == Attempt::Ran, "{}: it does not even work without gates", attack.name);
    }
    Ok(())
}

fn is_about(event: &Value, outcome: &str, attack: &Attack<'_>) -> bool {
    event["type"] == "decision"
        && event["outcome"] == outcome
        && (attack.reasons.iter().any(|reason| event["reason"] == *reason)
            || (is_old_kernel() && event["reason"] == "not-appraised"))
}

/// Whether this is Linux 5.10: it cannot hash in its hooks, so that a file may be refused because
/// nobody has hashed it yet, and other things that the scenarios need are missing too.
pub fn is_old_kernel() -> bool {
    rustix::system::uname().release().to_bytes().starts_with(b"5.")
}

/// Says, so that it is seen although the scenario passes, what this kernel has not or does otherwise.
pub fn note(scenario: &str, what: &str) {
    println!("@@note {scenario}: {what}");
}

/// Writes a program, replacing what was there by a new file.
pub fn install(path: &Path, content: &[u8]) -> Result<()> {
    let _ = fs::remove_file(path);
    fs::write(path, content).with_context(|| path.display().to_string())?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// The attacker's program; `salt` makes its digest unique.
pub fn evil(salt: &str) -> Result<Vec<u8>> {
    elf::program(EVIL, salt.as_bytes())
}

/// A program that policies list.
pub fn good(salt: &str) -> Result<Vec<u8>> {
    elf::program(GOOD, salt.as_bytes())
}

/// What the exit of a process says about the attacker's code.
pub fn verdict(status: ExitStatus) -> Result<Attempt> {
    match (status.code(), status.signal()) {
        (Some(code), _) if code == i32::from(EVIL) => Ok(Attempt::Ran),
        // What a shell and the dynamic loader exit with if they were refused, and what kills a
        // process whose loader was.
        (Some(1 | 126 | 127), _) | (_, Some(libc::SIGSEGV | libc::SIGKILL)) => Ok(Attempt::Refused),
        _ => bail!("a process ended with {status}, which says nothing"),
    }
}

/// Runs a program to its end.
pub fn exec(command: &mut Command) -> Result<Attempt> {
    match command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) => verdict(status),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Attempt::Refused),
        Err(error) => Err(error).with_context(|| format!("{command:?}")),
    }
}

/// Runs the program at a path.
pub fn exec_path(path: impl AsRef<Path>) -> Result<Attempt> {
    exec(&mut Command::new(path.as_ref()))
}

/// `execveat` of what an open file holds, with flags besides `AT_EMPTY_PATH`. Whether the call
/// returns without an error is up to the flags.
pub fn execveat(file: &fs::File, flags: i32) -> io::Result<()> {
    let arguments = [c"program".as_ptr(), std::ptr::null()];
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: the arrays are valid and end with a null pointer.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH | flags,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs what an open file holds, by descriptor alone.
pub fn exec_descriptor(file: &fs::File) -> Result<Attempt> {
    // SAFETY: the child only execs or exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let error = execveat(file, 0).err().and_then(|error| error.raw_os_error());
        let refused = error == Some(libc::EPERM);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if refused { 126 } else { 99 }) };
    }
    ensure!(child > 0, "fork failed");
    let mut status = 0;
    // SAFETY: waits for the child that was just made.
    ensure!(unsafe { libc::waitpid(child, &raw mut status, 0) } == child, "waitpid failed");
    verdict(ExitStatus::from_raw(status))
}

/// Whether running `command` made the file that the attacker's library makes when its code runs.
pub fn library_runs(command: &mut Command) -> Result<Attempt> {
    let proof = Path::new("/run/evil-ran");
    let _ = fs::remove_file(proof);
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("{command:?}"));
    // A program that needs the library fails without it; that is not the question here.
    status?;
    Ok(if proof.exists() { Attempt::Ran } else { Attempt::Refused })
}

/// Maps the first page of a file as code, privately, as a dynamic loader does.
pub fn map_as_code(path: &Path) -> Result<Attempt> {
    map(&fs::File::open(path)?, ProtFlags::READ | ProtFlags::EXEC)
}

/// Maps the first page of a file, privately.
pub fn map(file: &fs::File, prot: ProtFlags) -> Result<Attempt> {
    match Mapping::new(file, 4096, prot, MapFlags::PRIVATE) {
        Ok(_) => Ok(Attempt::Ran),
        Err(rustix::io::Errno::PERM) => Ok(Attempt::Refused),
        Err(error) => Err(error).context("mapping"),
    }
}

/// A path for system calls.
pub fn c_path(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
