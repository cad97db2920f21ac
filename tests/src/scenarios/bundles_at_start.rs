//! What an agent starts with when what was confirmed cannot be put in force.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::bundles::{KEPT, Operator, wait_for};
use crate::{
    agent::{Agent, expect, portcullis, text},
    attack::install,
    events,
};

const SHELL: &str = "/usr/bin/busybox";

/// The confirmed policy gives way to the one before it, and at last the device audits; but gates that an
/// earlier agent has left are not replaced by ones that only watch.
pub fn falls_back() -> Result<()> {
    let operator = Operator::new()?;
    let agent = operator.start()?;
    expect(0, &["policy", "push", &operator.bundle(2, true, &[])?])?;
    let before = bundles()?;
    expect(0, &["policy", "push", &operator.bundle(3, false, &[])?])?;
    let new = bundles()?.into_iter().find(|path| !before.contains(path)).context("a bundle")?;
    // The gates keep everybody from the agent's state, and take nothing over from who brings another policy.
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

/// As the service manager starts it.
fn start(operator: &Operator) -> Result<Agent> {
    Agent::start(&operator.policy, "enforce", &[])
}

fn bundles() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(KEPT)?.map(|entry| Ok(entry?.path()));
    let all: Vec<_> = entries.collect::<Result<_>>()?;
    Ok(all.into_iter().filter(|path| path.extension().is_some_and(|end| end == "bundle")).collect())
}

fn check(id: &str) -> Result<Value> {
    // Which may be red.
    let status: Value = serde_json::from_slice(&portcullis(&["status", "--json"])?.stdout)?;
    let mut checks = status["checks"].as_array().context("checks")?.iter();
    checks.find(|check| check["id"] == id).cloned().with_context(|| format!("{id}: {status}"))
}

/// A program that no policy lists, and runs until it is killed.
fn unlisted_process() -> Result<Child> {
    let mut program = fs::read("/usr/bin/sleep")?;
    program.push(0);
    let path = Path::new("/tmp/unlisted");
    install(path, &program)?;
    Ok(Command::new(path).arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).spawn()?)
}
