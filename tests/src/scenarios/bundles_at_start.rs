//! What an agent starts with when what was confirmed cannot be put in force.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::bundles::{KEPT, Operator, name_device, no, wait_for};
use crate::{
    agent::{Agent, check, expect, text},
    attack::install,
    events,
};

const SHELL: &str = "/usr/bin/busybox";
/// Where the agent keeps its high-water mark: another filesystem than that of its state.
const MARKS: &str = "/tmp/boot/portcullis";
/// Where a backup of what the agent keeps lies.
pub(super) const BACKUP: &str = "/tmp/backup-of-bundles";

/// The confirmed policy gives way to the one before it, and at last the device audits; but gates that an
/// earlier agent has left are not replaced by ones that only watch.
pub fn falls_back() -> Result<()> {
    let operator = Operator::new()?;
    fs::create_dir_all(Path::new(MARKS).parent().context("a folder")?)?;
    name_device(&format!("high_water = [{MARKS:?}]\n"))?;
    let agent = operator.start()?;
    let second = operator.bundle(2, true, &[])?;
    expect(0, &["policy", "push", &second])?;
    let before = bundles()?;
    copy(KEPT, BACKUP)?;
    let third = operator.bundle(3, false, &[])?;
    expect(0, &["policy", "push", &third])?;
    let new = bundles()?.into_iter().find(|path| !before.contains(path)).context("a bundle")?;
    mark_is_guarded()?;
    // The gates keep everybody from the agent's state, and take nothing over from who brings another policy.
    operator.stop(agent)?;

    // A backup of the state brings an older policy back, and everybody hears of it.
    fs::remove_dir_all(KEPT)?;
    copy(BACKUP, KEPT)?;
    let mark = events::mark()?;
    let agent = start(&operator)?;
    let told = wait_for(mark, "set-back")?;
    ensure!(told["bundle"]["version"] == 3, "{told}");
    operator.holds(2, true, "the state is that of a backup")?;
    ensure!(check("high-water")?["state"] == "failed");
    no(&["policy", "push", &second], "is older than policy v3")?;
    // Nor does it bring back the token with which the gates were taken down after it was made.
    no(&["stop", "--authorized", &operator.path("stop")?], "used")?;
    expect(0, &["policy", "push", &third])?;
    operator.holds(3, false, "pushed again")?;
    ensure!(check("high-water")?["state"] == "ok");
    operator.stop(agent)?;

    // A bundle that has lost its end.
    let whole = fs::read(&new)?;
    fs::write(&new, &whole[..whole.len() / 2])?;
    let mark = events::mark()?;
    let agent = start(&operator)?;
    let told = wait_for(mark, "passed-over")?;
    ensure!(told["bundle"]["version"] == 3, "{told}");
    operator.holds(2, true, "the newest is damaged")?;
    ensure!(check("bundles")?["state"] == "failed");
    operator.stop(agent)?;
    fs::write(&new, &whole)?;

    // What an attacker has started before the agent does not keep it from starting.
    let mut unlisted = unlisted_process()?;
    let agent = start(&operator)?;
    operator.holds(3, false, "the newest is whole again, and something unlisted runs")?;
    ensure!(check("bundles")?["state"] == "ok");
    let told = check("ran-before")?;
    let found = told["found"].as_str().context("what was found")?;
    ensure!(told["state"] == "warning" && found.contains("/tmp/unlisted"), "{told}");
    unlisted.kill()?;
    unlisted.wait()?;

    // No policy lists the shell any more: whoever enforces one locks everybody out.
    agent.signal(Signal::KILL)?;
    let shell = fs::read(SHELL)?;
    let mut other = shell.clone();
    other.push(0);
    install(Path::new(SHELL), &other)?;
    let words = ["run", "--policy", text(&operator.policy.file)?, "--mode", "enforce"];
    let output = expect(1, &words)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("the gates of the agent before stay") && said.contains(SHELL), "{said}");
    // Nobody runs that could be asked for a status.
    ensure!(operator.is_refused()?, "the gates of the agent before have gone");
    // Nor can anybody take them down without an agent that knows which tokens were used.
    expect(1, &["stop"])?;
    install(Path::new(SHELL), &shell)?;
    operator.stop(start(&operator)?)?;

    install(Path::new(SHELL), &other)?;
    let mark = events::mark()?;
    let agent = start(&operator)?;
    let told = wait_for(mark, "passed-over")?;
    ensure!(told["bundle"]["version"] == 3, "{told}");
    operator.holds(3, true, "nothing can be enforced")?;
    let told = check("bundles")?;
    let found = told["found"].as_str().context("what was found")?;
    ensure!(told["state"] == "failed" && found.contains("IN AUDIT MODE"), "{told}");
    agent.stop()?;
    // It comes back by itself.
    install(Path::new(SHELL), &shell)?;
    let agent = start(&operator)?;
    operator.holds(3, false, "the shell is the listed one again")?;
    operator.stop(agent)
}

pub(super) fn copy(from: &str, to: &str) -> Result<()> {
    ensure!(Command::new("/bin/cp").args(["-a", from, to]).status()?.success(), "{from} to {to}");
    Ok(())
}

/// Nobody but the agent changes what it keeps elsewhere.
fn mark_is_guarded() -> Result<()> {
    let (mark, other) = (Path::new(MARKS).join("newest.json"), Path::new("/tmp/boot/other.json"));
    let said = fs::read_to_string(&mark)?;
    ensure!(said.contains("\"version\":3"), "{said}");
    fs::write(other, said.replace(":3", ":2"))?;
    let attacks = [
        ("written", fs::write(&mark, "{}")),
        ("removed", fs::remove_file(&mark)),
        ("replaced", fs::rename(other, &mark)),
        ("taken away", fs::rename(&mark, "/tmp/boot/newest.json")),
        ("taken away with its folder", fs::rename(MARKS, "/tmp/boot/elsewhere")),
    ];
    for (name, attempt) in attacks {
        let refused = attempt.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        ensure!(refused, "the mark was {name}");
    }
    ensure!(fs::read_to_string(&mark)? == said);
    // What lies beside is nobody's concern.
    Ok(fs::rename(other, "/tmp/boot/another.json")?)
}

/// As the service manager starts it.
fn start(operator: &Operator) -> Result<Agent> {
    Agent::start(&operator.policy, "enforce", &[])
}

fn bundles() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(KEPT)?.map(|entry| Ok(entry?.path()));
    let all: Vec<_> = entries.collect::<Result<_>>()?;
    Ok(all.into_iter().filter(|path| path.extension().is_some_and(|end| end == "bundle")).collect())
}

/// A program that no policy lists, and runs until it is killed.
fn unlisted_process() -> Result<Child> {
    let mut program = fs::read("/usr/bin/sleep")?;
    program.push(0);
    let path = Path::new("/tmp/unlisted");
    install(path, &program)?;
    Ok(Command::new(path).arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
}
