//! How agents begin and end.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{base_policy, fresh, sha256};
use crate::{
    agent::{Agent, Policy, SOCKET, expect, json, text},
    attack::{Attempt, evil, exec_path, good, install},
    events,
};

/// SIGTERM, SIGKILL and `stop`, in both modes; a second agent; a status without an agent.
pub fn ends() -> Result<()> {
    fresh("/tmp/ends")?;
    let program = Path::new("/tmp/ends/evil");
    install(program, &evil("ends")?)?;
    let policy = base_policy(&[])?;
    let is_refused = || -> Result<bool> { Ok(exec_path(program)? == Attempt::Refused) };

    expect(3, &["status"])?;
    // Audit ends with the agent.
    let agent = Agent::start(&policy, "audit", &[])?;
    let output = expect(3, &["run", "--policy", text(&policy.file)?])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains(&format!("another agent runs (pid {})", agent.pid())), "{said}");
    ensure!(said.lines().count() == 1, "{said}");
    ensure!(agent.signal(Signal::TERM)?.code() == Some(0), "SIGTERM is an orderly end");
    sleep(Duration::from_millis(300));
    ensure!(!is_refused()?);
    ensure!(fs::read_dir("/sys/fs/bpf/portcullis")?.next().is_none(), "audit gates were left");

    // Enforcement does not.
    for signal in [Signal::TERM, Signal::KILL] {
        let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
        ensure!(is_refused()?);
        agent.signal(signal)?;
        ensure!(is_refused()?, "{signal:?} has ended enforcement");
        let output = expect(3, &["status"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains("gates that it left are in force"), "{said}");
        // The place is not free for a socket of somebody else.
        let taken = UnixListener::bind(SOCKET).err().context("a socket in the agent's place")?;
        ensure!(taken.kind() == std::io::ErrorKind::AddrInUse, "{taken}");
        ensure!(fs::remove_file(SOCKET).is_err(), "the socket can be removed");
    }
    expect(0, &["stop"])?;
    ensure!(!is_refused()?, "the gates are still up after `stop`");
    // Nothing to stop is no failure.
    expect(0, &["stop"])?;
    Ok(())
}

/// A program that tries to run in a loop never succeeds while agents are killed and started again.
pub fn restart_without_gap() -> Result<()> {
    fresh("/tmp/gap")?;
    let program = Path::new("/tmp/gap/evil");
    install(program, &evil("gap")?)?;
    let policy = base_policy(&[])?;
    let first = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let (done, attempts, ran) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let last = thread::scope(|scope| -> Result<Agent> {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                attempts.fetch_add(1, Ordering::Relaxed);
                if !matches!(exec_path(program), Ok(Attempt::Refused)) {
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let restarts = || -> Result<Agent> {
            let mut agent = first;
            for signal in [Signal::KILL, Signal::TERM, Signal::KILL] {
                agent.signal(signal)?;
                agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
            }
            Ok(agent)
        };
        let last = restarts();
        done.store(true, Ordering::Relaxed);
        last
    })?;
    let (attempts, ran) = (attempts.into_inner(), ran.into_inner());
    println!("  {attempts} attempts through three restarts, {ran} ran");
    ensure!(attempts > 50 && ran == 0, "{ran} of {attempts} attempts ran");
    // Only the latest agent's gates are left, so the cost does not add up.
    ensure!(fs::read_dir("/sys/fs/bpf/portcullis")?.count() == 1);
    last.stop()
}

/// `enforce` is refused over a policy that lists nothing, or not what runs now; and the mode stays.
pub fn refuses_to_brick() -> Result<()> {
    let lab = fresh("/run/brick")?;
    let head = "name = \"p\"\nversion = 1\nmode = \"enforce\"\n";
    let empty = Policy { file: lab.join("empty.toml") };
    fs::write(&empty.file, head)?;
    let output = expect(1, &["run", "--policy", text(&empty.file)?])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("lists no digest"), "{output:?}");

    // Lists something, but not what runs.
    let program = lab.join("listed");
    install(&program, &good("brick")?)?;
    let narrow = Policy { file: lab.join("narrow.toml") };
    fs::write(
        &narrow.file,
        format!("{head}[[allow]]\ndigest = \"{}\"\nkinds = [\"executable\"]\n", sha256(&program)?),
    )?;
    let output = expect(1, &["run", "--policy", text(&narrow.file)?])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.contains("/usr/bin/portcullis as executable") && said.contains("--skip-preflight"),
        "{said}"
    );
    ensure!(
        fs::read_dir("/sys/fs/bpf/portcullis").map_or(0, Iterator::count) == 0,
        "gates were left"
    );

    let agent = Agent::start(&narrow, "audit", &[])?;
    let output = expect(1, &["mode", "enforce"])?;
    ensure!(
        String::from_utf8_lossy(&output.stderr).contains("in use, or were lately"),
        "{output:?}"
    );
    ensure!(json(&["status", "--json"])?["mode"] == "audit");
    agent.stop()?;

    // The whole system is listed: the same question has another answer.
    let agent = Agent::start(&base_policy(&[])?, "audit", &[])?;
    expect(0, &["mode", "enforce"])?;
    ensure!(String::from_utf8(expect(0, &["mode"])?.stdout)? == "enforce\n");
    expect(0, &["mode", "audit"])?;
    agent.stop()
}

/// Memory with 10,000 digests, and time that passes without work.
pub fn footprint() -> Result<()> {
    const DIGESTS: usize = 10_000;
    const LIMIT_KIB: u64 = 18 * 1024;
    let policy = base_policy(&[])?;
    let folder = Path::new("/run/policy");
    let mut list = String::new();
    for number in 0..DIGESTS {
        list.push_str(&format!("{:064x}  /opt/file{number}\n", number + 1));
    }
    fs::write(folder.join("more"), list)?;
    let text = fs::read_to_string(&policy.file)?;
    let text = text.replace(
        "include = [\"base.manifest\"]",
        "include = [\"base.manifest\", { path = \"more\", kinds = [\"library\"] }]",
    );
    fs::write(&policy.file, text)?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    // Some work, so that everything has been touched that will be.
    let mark = events::mark()?;
    install(Path::new("/tmp/footprint"), &evil("footprint")?)?;
    for _ in 0..200 {
        exec_path("/tmp/footprint")?;
    }
    // Half of them are one record, which comes ten seconds later.
    events::wait_for(mark, "what came often", |event| event["count"].as_u64() > Some(1))?;
    sleep(Duration::from_secs(3));
    let before = ticks(agent.pid())?;
    sleep(Duration::from_secs(10));
    let used = ticks(agent.pid())? - before;
    // At rest: on a slow machine the events of that work may take longer to be written.
    let status = json(&["status", "--json"])?;
    ensure!(status["digests"].as_u64() > Some(DIGESTS as u64), "{status}");
    let kib = status["resident_kib"].as_u64().context("resident memory")?;
    let memory = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let parts: Vec<_> = memory.lines().filter(|line| line.starts_with("Rss")).collect();
    ensure!(kib < LIMIT_KIB, "the agent has {kib} KiB resident: {parts:?}");
    ensure!(memory.contains("THP_enabled:\t0"), "the agent may get huge pages: {memory}");
    println!(
        "  {kib} KiB resident with {DIGESTS} digests, {used} ticks of processor time in 10 idle seconds"
    );
    ensure!(used == 0, "the agent used {used} ticks while nothing happened");
    agent.stop()
}

/// Processor time of a process in clock ticks.
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// The socket: for root only, and unimpressed by what is sent to it.
pub fn requests() -> Result<()> {
    let agent = Agent::start(&base_policy(&[])?, "audit", &[])?;
    let ask = |bytes: &[u8]| -> Result<String> {
        let mut stream = UnixStream::connect(SOCKET)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        // The agent may hang up before it has everything.
        let _ = stream.write_all(bytes);
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    };
    for request in [
        &b"\n"[..],
        b"{}\n",
        b"[1,2]\n",
        b"{\"request\":\"nothing\"}\n",
        b"{\"request\":\"mode\",\"mode\":\"off\",\"skip_preflight\":true}\n",
        b"{\"request\":\"rule\",\"digest\":\"xyz\"}\n",
        b"\xff\xfe\n",
        &[b'a'; 100_000],
    ] {
        let answer = ask(request).unwrap_or_default();
        // A request that is not text, or too long, may get no answer; it gets nothing else.
        if !answer.is_empty() {
            let answer: Value = serde_json::from_str(&answer)?;
            ensure!(answer["refused"]["code"] == 2, "{answer}");
        }
    }
    // Many that say nothing do not keep one that does from being served.
    let idle: Vec<_> = (0..40).map(|_| UnixStream::connect(SOCKET)).collect::<Result<_, _>>()?;
    let answer: Value = serde_json::from_str(&ask(b"{\"request\":\"status\"}\n")?)?;
    ensure!(answer["mode"] == "audit", "{answer}");
    drop(idle);
    // Others than root do not even reach it.
    let output = Command::new("portcullis").args(["status"]).uid(65534).gid(65534).output()?;
    ensure!(output.status.code() == Some(3), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("ask as root"), "{output:?}");
    let output = Command::new("portcullis").args(["stop"]).uid(65534).gid(65534).output()?;
    ensure!(output.status.code() == Some(3), "{output:?}");

    // A follower sees what happens from now on, and a closed one is no trouble.
    let mut follower = Command::new("portcullis")
        .args(["events", "--follow", "--json"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(follower.stdout.take().context("output")?).lines();
    let program = Path::new("/tmp/followed");
    install(program, &evil("followed")?)?;
    sleep(Duration::from_millis(500));
    exec_path(program)?;
    let end = Instant::now() + crate::agent::PATIENCE;
    loop {
        ensure!(Instant::now() < end, "the follower saw nothing");
        let Some(line) = lines.next() else { bail!("the follower ended") };
        let event: Value = serde_json::from_str(&line?)?;
        if events::is_decision(&event, "would-deny", program) {
            break;
        }
    }
    follower.kill()?;
    follower.wait()?;
    exec_path(program)?;
    json(&["status", "--json"])?;
    agent.stop()?;

    stopped_while_it_starts()?;
    closed_terminal()
}

/// An agent that cannot be asked yet is waited for: gates that come up after they were said to be down would
/// be nobody's wish.
fn stopped_while_it_starts() -> Result<()> {
    let mut agent =
        Agent::launch(Path::new("portcullis"), &base_policy(&[])?, "enforce", events::FILE, &[])?;
    let end = Instant::now() + crate::agent::PATIENCE;
    let starting = format!("the agent (pid {}) is starting", agent.pid());
    loop {
        let output = expect(3, &["status"])?;
        if String::from_utf8_lossy(&output.stderr).contains(&starting) {
            break;
        }
        ensure!(Instant::now() < end && agent.has_ended()?.is_none(), "{output:?}");
    }
    agent.stop()
}

/// Standard output that nobody reads any more, and SIGHUP: the agent goes on.
fn closed_terminal() -> Result<()> {
    let policy = base_policy(&[])?;
    let mut child = Command::new("portcullis")
        .args(["run", "--policy", text(&policy.file)?, "--mode", "audit"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut output = child.stdout.take().context("output")?;
    output.read_exact(&mut [0])?;
    drop(output);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::HUP)?;
    let program = Path::new("/tmp/closed");
    install(program, &evil("closed")?)?;
    for _ in 0..3 {
        ensure!(exec_path(program)? == Attempt::Ran);
    }
    sleep(Duration::from_millis(300));
    let status = json(&["status", "--json"])?;
    ensure!(
        status["sinks"][0]["name"] == "stdout" && status["sinks"][0]["lost"].as_u64() > Some(0),
        "{status}"
    );
    expect(0, &["stop"])?;
    ensure!(child.wait()?.success());
    sleep(Duration::from_millis(300));
    Ok(())
}
