//! Driving the agent from inside a virtual machine, with the commands that a user would type.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    net::sockopt::socket_peercred,
    process::{Pid, Signal},
};
use serde_json::Value;

use crate::{events, init};

/// What an agent says to whoever has started it.
pub const LOG: &str = "/run/agent.log";

/// Where it is asked.
pub const SOCKET: &str = "/run/portcullis/agent.sock";

/// How long anything may take that the agent does. Software emulation is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `portcullis` with arguments, whatever comes out.
pub fn portcullis(arguments: &[&str]) -> Result<Output> {
    Command::new("portcullis")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("starting portcullis")
}

/// Runs `portcullis` and insists that it exits with `code`.
pub fn expect(code: i32, arguments: &[&str]) -> Result<Output> {
    let output = portcullis(arguments)?;
    ensure!(
        output.status.code() == Some(code),
        "portcullis {} gave {} instead of {code}:\n{}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    Ok(output)
}

/// Runs `portcullis`, insists on success, and reads its output as JSON.
pub fn json(arguments: &[&str]) -> Result<Value> {
    Ok(serde_json::from_slice(&expect(0, arguments)?.stdout)?)
}

/// What the agent says of itself, which may be red.
pub fn status() -> Result<Value> {
    Ok(serde_json::from_slice(&portcullis(&["status", "--json"])?.stdout)?)
}

/// One of the checks in it.
pub fn check(id: &str) -> Result<Value> {
    let status = status()?;
    let mut checks = status["checks"].as_array().context("checks")?.iter();
    checks.find(|check| check["id"] == id).cloned().with_context(|| format!("{id}: {status}"))
}

/// A policy in a folder of its own.
pub struct Policy {
    /// The policy file.
    pub file: PathBuf,
}

impl Policy {
    /// Lists everything that a scan of `paths` finds.
    pub fn of(folder: &Path, paths: &[&str]) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let manifest = folder.join("base.manifest");
        let mut arguments = vec!["scan", "-o", text(&manifest)?];
        arguments.extend(paths);
        expect(0, &arguments)?;
        let file = folder.join("policy.toml");
        expect(0, &["policy", "init", "--force", "--from", text(&manifest)?, "-o", text(&file)?])?;
        Ok(Self { file })
    }

    /// Appends lines to the policy file.
    pub fn append(&self, lines: &str) -> Result<()> {
        let mut policy = fs::read_to_string(&self.file)?;
        policy.push_str(lines);
        Ok(fs::write(&self.file, policy)?)
    }
}

/// The resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A path as text.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}

/// An agent that runs in the background.
pub struct Agent {
    child: Child,
}

impl Agent {
    /// Starts it and waits until its gates stand.
    pub fn start(policy: &Policy, mode: &str, more: &[&str]) -> Result<Self> {
        Self::start_with(policy, mode, events::FILE, more)
    }

    /// The same with an event file of its own.
    pub fn start_with(policy: &Policy, mode: &str, events: &str, more: &[&str]) -> Result<Self> {
        Self::start_binary(Path::new("portcullis"), policy, mode, events, more)
    }

    /// The same with a binary of its own.
    pub fn start_binary(
        binary: &Path,
        policy: &Policy,
        mode: &str,
        events: &str,
        more: &[&str],
    ) -> Result<Self> {
        Self::launch(binary, policy, mode, events, more)?.comes_up()
    }

    /// Starts it and does not wait for anything.
    pub fn launch(
        binary: &Path,
        policy: &Policy,
        mode: &str,
        events: &str,
        more: &[&str],
    ) -> Result<Self> {
        let log = fs::File::create(LOG)?;
        let child = Command::new(binary)
            .args(["run", "--policy", text(&policy.file)?, "--mode", mode, "--events", events])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("starting the agent")?;
        Ok(Self { child })
    }

    /// Waits until its gates stand.
    pub fn comes_up(mut self) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.has_ended()? {
                bail!("the agent ended with {status}: {}", fs::read_to_string(LOG)?);
            }
            if self.listens() {
                return Ok(self);
            }
            sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        bail!("the agent did not come up in {PATIENCE:?}: {}", fs::read_to_string(LOG)?)
    }

    /// Whether it can be asked; found out without starting a program, which might be refused. Its predecessor's
    /// socket may be there still: what that was just starting when it was killed has it until it runs, and
    /// nobody answers there.
    fn listens(&self) -> bool {
        let connected = UnixStream::connect(SOCKET);
        let listener = connected.and_then(|stream| Ok(socket_peercred(&stream)?));
        listener.is_ok_and(|listener| listener.pid == Pid::from_child(&self.child))
    }

    /// How it has ended; none if it runs.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        resident_kib(self.pid())
    }

    /// Ends it with `portcullis stop`, which takes the gates down too.
    pub fn stop(self) -> Result<()> {
        self.stop_with(&[])
    }

    /// The same with more arguments.
    pub fn stop_with(mut self, more: &[&str]) -> Result<()> {
        expect(0, &[&["stop"], more].concat())?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the agent ended with {status}: {}", fs::read_to_string(LOG)?);
        Ok(())
    }

    /// Stops it where it is while something is done, in the way that no hook sees, as a machine does that
    /// has other work.
    pub fn while_frozen<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let group = Path::new("/sys/fs/cgroup").join(format!("frozen-{}", self.pid()));
        fs::create_dir(&group).context("a control group")?;
        fs::write(group.join("cgroup.procs"), self.pid().to_string())?;
        fs::write(group.join("cgroup.freeze"), "1")?;
        let end = Instant::now() + PATIENCE;
        while !fs::read_to_string(group.join("cgroup.events"))?.contains("frozen 1") {
            ensure!(Instant::now() < end, "the agent does not freeze");
            sleep(Duration::from_millis(5));
        }
        let done = work();
        fs::write(group.join("cgroup.freeze"), "0")?;
        fs::write("/sys/fs/cgroup/cgroup.procs", self.pid().to_string())?;
        fs::remove_dir(&group)?;
        done
    }

    /// Sends it a signal and returns how it ended. In enforce mode nobody could but the first process;
    /// it is killed in the way that no hook sees, where the kernel has that (from 5.14).
    pub fn signal(mut self, signal: Signal) -> Result<ExitStatus> {
        let group = Path::new("/sys/fs/cgroup").join(format!("ended-{}", self.pid()));
        if signal == Signal::KILL && Path::new("/sys/fs/cgroup").join("cgroup.procs").exists() {
            fs::create_dir(&group)?;
            if group.join("cgroup.kill").exists() {
                fs::write(group.join("cgroup.procs"), self.pid().to_string())?;
                fs::write(group.join("cgroup.kill"), "1")?;
                let status = self.child.wait()?;
                // It is busy until the process is gone for good.
                let _ = fs::remove_dir(&group);
                return Ok(status);
            }
            fs::remove_dir(&group)?;
        }
        init::signal(self.pid(), signal)?;
        Ok(self.child.wait()?)
    }
}
