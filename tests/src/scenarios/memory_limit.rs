//! A bound on the agent's control group is one on verdicts, too: L87.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, Policy, check},
    attack::{Attempt, good, map_as_code},
};

const ROOT: &str = "/sys/fs/cgroup";

/// More than there is memory for verdicts when a group is full: pages that it has already have room for some.
const MANY: usize = 20_000;

/// Such a bound is told; when it is reached, files without a verdict are refused, and others are not.
pub fn told_and_reached() -> Result<()> {
    let lab = fresh("/tmp/memory-limit")?;
    let content = good("memory-limit")?;
    let known = lab.join("known");
    fs::write(&known, &content)?;
    let policy = base_policy(&[])?;
    list(&policy, &known, &["library"])?;

    fs::write(format!("{ROOT}/cgroup.subtree_control"), "+memory").context("memory groups")?;
    let group = Path::new(ROOT).join("agent");
    fs::create_dir(&group)?;
    let limit = group.join("memory.max");

    let agent = started_in(&group, &policy)?;
    ensure!(check("memory-limit")?["state"] == "ok");
    agent.stop()?;
    fs::write(&limit, (512 << 20).to_string())?;
    let mut agent = started_in(&group, &policy)?;
    let told = check("memory-limit")?;
    let found = told["found"].as_str().unwrap_or_default();
    ensure!(
        told["state"] == "warning" && found.starts_with("/sys/fs/cgroup/agent/memory.max is 536"),
        "{told}"
    );
    ensure!(map_as_code(&known)? == Attempt::Ran);

    fs::write(&limit, fs::read_to_string(group.join("memory.current"))?)?;
    let mut refused = None;
    for number in 0..MANY {
        let path = lab.join(number.to_string());
        fs::write(&path, &content)?;
        if map_as_code(&path)? == Attempt::Refused {
            refused = Some(path);
            break;
        }
    }
    let refused = refused.context("L87 is closed: take it out of docs/limits.md")?;
    ensure!(map_as_code(&known)? == Attempt::Ran, "a file that has a verdict is refused");
    fs::write(&limit, "max")?;
    ensure!(map_as_code(&refused)? == Attempt::Ran, "a listed file stays refused");

    // The kernel has ended it, to have memory.
    ensure!(agent.has_ended()?.is_some(), "the agent has not been ended");
    Agent::start(&policy, "enforce", &["--skip-preflight"])?.stop()?;
    fs::remove_dir(&group).context("the group")?;
    Ok(fs::remove_dir_all(lab)?)
}

/// Starts an agent in a group; this process is there only meanwhile.
fn started_in(group: &Path, policy: &Policy) -> Result<Agent> {
    let enter = |group: &Path| {
        let written = fs::write(group.join("cgroup.procs"), std::process::id().to_string());
        written.with_context(|| group.display().to_string())
    };
    enter(group)?;
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"]);
    enter(Path::new(ROOT))?;
    agent
}
