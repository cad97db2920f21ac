//! Bundles on a device: pushed, tried, confirmed, taken back, and refused.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{base_policy, fresh, reappraisal::Victim, sha256};
use crate::{
    agent::{Agent, PATIENCE, Policy, expect, json, portcullis, text},
    attack::{Attempt, evil, exec_path, install},
    events,
};

/// Where the agent keeps bundles.
pub(super) const KEPT: &str = "/var/lib/portcullis/bundles";
/// Which device this is.
pub(super) const DEVICE: &str = "/etc/portcullis/device.toml";

/// An operator's folder, with a program that policies list or not.
pub(super) struct Operator {
    folder: PathBuf,
    pub(super) policy: Policy,
    program: PathBuf,
}

impl Operator {
    /// A key, and the policy that trusts it, which is version 1 and does not list the program.
    pub(super) fn new() -> Result<Self> {
        let _ = fs::remove_dir_all(KEPT);
        let _ = fs::remove_file(DEVICE);
        let policy = base_policy(&[])?;
        let folder = policy.file.parent().context("a folder")?.to_owned();
        let program = fresh("/tmp/bundles")?.join("program");
        install(&program, &evil("bundles")?)?;
        for name in ["ops", "stranger"] {
            expect(0, &["key", "generate", "-o", text(&folder.join(name).with_extension("pem"))?])?;
        }
        policy.append(
            "\n[[signer]]\nname = \"ops\"\nslot = \"operator\"\nkey = \"ops.pub.pem\"\n\
             signs = [\"policy\"]\n",
        )?;
        Ok(Self { folder, policy, program })
    }

    pub(super) fn path(&self, name: &str) -> Result<String> {
        Ok(text(&self.folder.join(name))?.to_owned())
    }

    /// Writes a policy of this version, which lists the program or denies it.
    fn write(&self, version: u64, lists: bool) -> Result<String> {
        let policy = fs::read_to_string(&self.policy.file)?;
        let digest = sha256(&self.program)?;
        let rule = if lists {
            format!("[[allow]]\ndigest = \"{digest}\"\nkinds = [\"executable\"]\n")
        } else {
            format!("[[deny]]\ndigest = \"{digest}\"\n")
        };
        let file = self.path(&format!("v{version}.toml"))?;
        let first = "version = 1\n";
        ensure!(policy.contains(first), "{policy}");
        fs::write(&file, policy.replace(first, &format!("version = {version}\n")) + "\n" + &rule)?;
        Ok(file)
    }

    /// A bundle of it, signed.
    pub(super) fn bundle(&self, version: u64, lists: bool, more: &[&str]) -> Result<String> {
        let bundle = self.unsigned(version, lists, more)?;
        expect(0, &["policy", "sign", &bundle, "--key", &self.path("ops.pem")?])?;
        Ok(bundle)
    }

    pub(super) fn unsigned(&self, version: u64, lists: bool, more: &[&str]) -> Result<String> {
        let (policy, bundle) =
            (self.write(version, lists)?, self.path(&format!("v{version}.bundle"))?);
        let mut words = vec!["policy", "build", &policy, "-o", &bundle];
        words.extend(more);
        expect(0, &words)?;
        Ok(bundle)
    }

    /// The program runs, or it does not, and the status names this version.
    pub(super) fn holds(&self, version: u64, runs: bool, when: &str) -> Result<()> {
        // Which may be red.
        let status: Value = serde_json::from_slice(&portcullis(&["status", "--json"])?.stdout)?;
        ensure!(status["policy"]["version"] == version, "{when}: {}", status["policy"]);
        let expected = if runs { Attempt::Ran } else { Attempt::Refused };
        ensure!(exec_path(&self.program)? == expected, "{when}: not {expected:?}");
        Ok(())
    }

    /// Whether the program does not run.
    pub(super) fn is_refused(&self) -> Result<bool> {
        Ok(exec_path(&self.program)? == Attempt::Refused)
    }

    /// Ends an agent that enforces a bundle, with the token that this needs.
    pub(super) fn stop(&self, agent: Agent) -> Result<()> {
        no(&["stop"], "must be signed too")?;
        if !Path::new(DEVICE).exists() {
            name_device("")?;
        }
        let file = self.token("stop", "pump-3", "ops.pem", &["--stop"])?;
        agent.stop_with(&["--authorized", &file])
    }

    /// A token for a device, signed with a key.
    fn token(&self, name: &str, device: &str, key: &str, what: &[&str]) -> Result<String> {
        let file = self.path(name)?;
        let words = ["break-glass", "make", "--device", device];
        let rest = ["--valid-until", "2100-01-01T00:00:00Z", "-o", &file];
        expect(0, &[&words[..], what, &rest[..]].concat())?;
        expect(0, &["break-glass", "sign", &file, "--key", &self.path(key)?])?;
        Ok(file)
    }

    pub(super) fn start(&self) -> Result<Agent> {
        self.start_with(&[])
    }

    fn start_with(&self, more: &[&str]) -> Result<Agent> {
        Agent::start(&self.policy, "enforce", &[&["--skip-preflight"], more].concat())
    }
}

/// Says which device this is, and more.
pub(super) fn name_device(more: &str) -> Result<()> {
    fs::create_dir_all("/etc/portcullis")?;
    Ok(fs::write(DEVICE, format!("name = \"pump-3\"\n{more}"))?)
}

pub(super) fn wait_for(mark: events::Mark, state: &str) -> Result<Value> {
    let wanted = |event: &Value| event["type"] == "bundle" && event["state"] == state;
    events::wait_for(mark, &format!("a bundle that is {state}"), wanted)
}

/// Exits with 1, and says this.
pub(super) fn no(words: &[&str], says: &str) -> Result<()> {
    let output = expect(1, words)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains(says), "{words:?} said: {said}");
    Ok(())
}

/// The life of a policy: from push to confirmation, and back.
pub fn life() -> Result<()> {
    let operator = Operator::new()?;
    let mut victim = Victim::listed(&operator.policy)?;
    let agent = operator.start()?;
    operator.holds(1, false, "the policy file")?;
    no(&["policy", "confirm"], "nothing is tried")?;
    no(&["policy", "rollback"], "there is nothing before")?;

    let second = operator.bundle(2, true, &[])?;
    expect(0, &["policy", "verify", &second, "--policy", text(&operator.policy.file)?])?;
    let mark = events::mark()?;
    expect(0, &["policy", "push", &second])?;
    let told = wait_for(mark, "in-force")?;
    ensure!(told["signed"][0]["signer"] == "ops" && told["bundle"]["version"] == 2, "{told}");
    operator.holds(2, true, "pushed")?;
    // By hand nothing comes in any more.
    no(&["policy", "reload"], "so must the next")?;

    // Silence takes it back.
    let third = operator.bundle(3, false, &[])?;
    let mark = events::mark()?;
    expect(0, &["policy", "push", &third, "--confirm-within", "2s"])?;
    operator.holds(3, false, "on trial")?;
    ensure!(json(&["status", "--json"])?["bundle"]["until"].is_string());
    let told = wait_for(mark, "reverted")?;
    ensure!(told["message"].as_str().is_some_and(|why| why.contains("in time")), "{told}");
    operator.holds(2, true, "taken back by silence")?;

    // A word keeps it.
    expect(0, &["policy", "push", &third, "--confirm-within", "2s"])?;
    let mark = events::mark()?;
    expect(0, &["policy", "confirm"])?;
    wait_for(mark, "confirmed")?;
    sleep(Duration::from_secs(3));
    operator.holds(3, false, "confirmed")?;
    no(&["policy", "push", &second], "rollback")?;

    // Nor after the agent was killed.
    agent.signal(Signal::KILL)?;
    let agent = operator.start_with(&Victim::OFTEN)?;
    operator.holds(3, false, "after a kill")?;
    no(&["policy", "push", &second], "rollback")?;

    // Something goes wrong while it is tried, and only what is tried is taken back.
    let fourth = operator.bundle(4, true, &[])?;
    expect(0, &["policy", "push", &fourth, "--confirm-within", "1h"])?;
    operator.holds(4, true, "on trial")?;
    let mark = events::mark()?;
    victim.change_below()?;
    let told = wait_for(mark, "reverted")?;
    let why = told["message"].as_str().context("a message")?;
    ensure!(why.contains("a health check has failed since it is tried: content: "), "{told}");
    operator.holds(3, false, "taken back for its harm")?;
    victim.mend()?;

    // A trial does not outlive the agent.
    expect(0, &["policy", "push", &fourth, "--confirm-within", "1h"])?;
    operator.holds(4, true, "on trial")?;
    agent.signal(Signal::KILL)?;
    let mark = events::mark()?;
    let agent = operator.start()?;
    let told = wait_for(mark, "reverted")?;
    ensure!(told["bundle"]["version"] == 4, "{told}");
    operator.holds(3, false, "after a kill during the trial")?;

    // Back, step by step, as an operator's deliberate act.
    expect(0, &["policy", "rollback"])?;
    operator.holds(2, true, "rolled back")?;
    // Not to what nobody has signed, on the word of whoever is root.
    no(&["policy", "rollback"], "nobody has signed")?;
    operator.holds(2, true, "not rolled back")?;
    no(&["policy", "push", &second], "rollback")?;
    // A signed higher epoch is the way down.
    let again = operator.bundle(2, true, &["--epoch", "1"])?;
    expect(0, &["policy", "push", &again])?;
    operator.holds(2, true, "a higher epoch")?;
    no(&["policy", "push", &fourth], "rollback")?;
    operator.stop(agent)
}

/// Every wrong bundle is refused with its reason, and what is in force stays.
pub fn refused() -> Result<()> {
    let operator = Operator::new()?;
    let agent = operator.start()?;
    expect(0, &["policy", "push", &operator.bundle(10, false, &[])?])?;

    let refuse = |bundle: &str, says: &str| -> Result<()> {
        let mark = events::mark()?;
        let start = Instant::now();
        no(&["policy", "push", bundle], says).with_context(|| says.to_owned())?;
        ensure!(start.elapsed() < PATIENCE, "{says}: it took {:?}", start.elapsed());
        wait_for(mark, "refused")?;
        operator.holds(10, false, says)?;
        println!("  refused: {says}");
        Ok(())
    };
    refuse(&operator.unsigned(11, true, &[])?, "unsigned")?;
    let bundle = operator.unsigned(12, true, &[])?;
    expect(0, &["policy", "sign", &bundle, "--key", &operator.path("stranger.pem")?])?;
    // A raw signature names no key, so that nobody can tell a stranger's from a damaged one.
    refuse(&bundle, "bad-signature")?;

    let good = fs::read(operator.bundle(13, true, &[])?)?;
    let wrong = operator.path("wrong.bundle")?;
    let mut changed = good.clone();
    let place = good.windows(9).position(|bytes| bytes == b"[[allow]]").context("a rule")?;
    changed[place + 3] ^= 1;
    fs::write(&wrong, &changed)?;
    refuse(&wrong, "part-differs")?;
    let mut changed = good.clone();
    let place =
        good.windows(12).position(|bytes| bytes == b"\"epoch\": 0,\n").context("an epoch")?;
    changed[place + 9] = b'7';
    fs::write(&wrong, &changed)?;
    refuse(&wrong, "bad-signature")?;
    for length in [0, 100, 700, good.len() / 2, good.len() - 1] {
        fs::write(&wrong, &good[..length])?;
        let says = if length < 512 { "malformed" } else { "" };
        refuse(&wrong, says).with_context(|| format!("cut at {length}"))?;
    }
    // As large as a bundle may be, and larger; neither is read into memory.
    for size in [255_u64 << 20, 1 << 30] {
        fs::File::create(&wrong)?.set_len(size)?;
        refuse(&wrong, "malformed")?;
    }
    let mut file = fs::File::create(&wrong)?;
    file.write_all(&good[..512])?;
    file.set_len(1 << 30)?;
    refuse(&wrong, "is larger than")?;
    fs::remove_file(&wrong)?;
    ensure!(Command::new("/bin/mkfifo").arg(&wrong).status()?.success());
    refuse(&wrong, "is not a file")?;

    refuse(&operator.bundle(9, true, &[])?, "rollback")?;
    refuse(&operator.bundle(10, true, &[])?, "same-version")?;
    refuse(&operator.bundle(14, true, &["--target", "device:pump-4"])?, "other-device")?;
    name_device("groups = [\"north\"]\n")?;
    refuse(&operator.bundle(14, true, &["--target", "group:south"])?, "other-device")?;

    // What would stop the device: nothing that runs is listed.
    let policy = operator.path("narrow.toml")?;
    let narrow = format!(
        "name = \"policy\"\nversion = 15\nmode = \"enforce\"\n[[allow]]\ndigest = \"{}\"\n\
         kinds = [\"executable\"]\n[[signer]]\nname = \"ops\"\nslot = \"operator\"\n\
         key = \"ops.pub.pem\"\nsigns = [\"policy\"]\n",
        sha256(&operator.program)?
    );
    fs::write(&policy, &narrow)?;
    let bundle = operator.path("narrow.bundle")?;
    expect(0, &["policy", "build", &policy, "-o", &bundle])?;
    expect(0, &["policy", "sign", &bundle, "--key", &operator.path("ops.pem")?])?;
    refuse(&bundle, "/usr/bin/portcullis as executable")?;
    // One after which nobody could push.
    let last = narrow.split("[[signer]]").next().context("a head")?.replace("= 15", "= 16");
    fs::write(&policy, last)?;
    expect(0, &["policy", "build", &policy, "-o", &bundle])?;
    expect(0, &["policy", "sign", &bundle, "--key", &operator.path("ops.pem")?])?;
    refuse(&bundle, "/usr/bin/portcullis as executable")
        .or_else(|_| refuse(&bundle, "no-successor"))?;

    // Nothing of all that was kept.
    let kept = fs::read_dir(KEPT)?.count();
    // The state and its copy, the bundle, the same unpacked, and a copy of the policy file.
    ensure!(kept == 5, "{kept} entries in {KEPT}");
    let kib = json(&["status", "--json"])?["resident_kib"].as_u64().context("memory")?;
    ensure!(kib < 40 * 1024, "the agent has {kib} KiB resident");
    // For this device it is good.
    expect(0, &["policy", "push", &operator.bundle(17, false, &["--target", "group:north"])?])?;
    operator.holds(17, false, "for its group")?;
    break_glass(&operator)?;
    stop(&operator, agent)
}

/// The gates of a bundle go down by a signed token for that, and in no other way.
fn stop(operator: &Operator, agent: Agent) -> Result<()> {
    no(
        &["stop", "--authorized", &operator.token("a", "pump-3", "ops.pem", &["--minutes", "1"])?],
        "other-purpose",
    )?;
    let stop = operator.token("b", "pump-3", "ops.pem", &["--stop"])?;
    no(&["break-glass", "use", &stop], "other-purpose")?;
    no(
        &["stop", "--authorized", &operator.token("c", "pump-4", "ops.pem", &["--stop"])?],
        "other-device",
    )?;
    no(
        &["stop", "--authorized", &operator.token("d", "pump-3", "stranger.pem", &["--stop"])?],
        "bad-signature",
    )?;
    operator.holds(17, false, "without a good token")?;
    // Nor with the agent dead, nor by an agent with another policy, or with none of the bundles.
    agent.signal(Signal::KILL)?;
    no(&["stop"], "start the agent, and then `portcullis stop --authorized")?;
    let file = text(&operator.policy.file)?;
    no(&["run", "--policy", file, "--mode", "audit"], "another one in its place: --mode audit")?;
    no(&["run", "--policy", file, "--state", "/run/other-state"], "in its place: a policy file")?;
    let agent = operator.start()?;
    operator.holds(17, false, "after it was killed")?;
    operator.stop(agent)
}

/// Enforcement is lifted by a signed token for this device, once; not by whoever is root.
fn break_glass(operator: &Operator) -> Result<()> {
    no(&["mode", "audit"], "must be signed too")?;
    let token = |name: &str, device: &str, key: &str| {
        operator.token(name, device, key, &["--minutes", "1"])
    };
    no(&["break-glass", "use", &token("other", "pump-4", "ops.pem")?], "other-device")?;
    no(&["break-glass", "use", &token("strange", "pump-3", "stranger.pem")?], "bad-signature")?;
    operator.holds(17, false, "without a good token")?;
    let good = token("good", "pump-3", "ops.pem")?;
    let mark = events::mark()?;
    expect(0, &["break-glass", "use", &good])?;
    events::wait_for(mark, "the glass is broken", |event| {
        event["type"] == "break-glass" && event["state"] == "lifted"
    })?;
    operator.holds(17, true, "with a token")?;
    let status: Value = serde_json::from_slice(&expect(1, &["status", "--json"])?.stdout)?;
    ensure!(status["mode"] == "audit" && status["health"] == "failed", "{status}");
    expect(0, &["mode", "enforce"])?;
    operator.holds(17, false, "after the word")?;
    ensure!(json(&["status", "--json"])?["health"] != "failed");
    no(&["break-glass", "use", &good], "used")?;
    // By itself, too.
    let short = operator.token("short", "pump-3", "ops.pem", &["--for", "5s"])?;
    let mark = events::mark()?;
    expect(0, &["break-glass", "use", &short])?;
    ensure!(!operator.is_refused()?, "a token for five seconds does not lift enforcement");
    events::wait_for(mark, "its time is over", |event| {
        event["type"] == "break-glass" && event["state"] == "over"
    })?;
    let is_back = |event: &Value| event["type"] == "mode-changed" && event["mode"] == "enforce";
    events::wait_for(mark, "the mode before", is_back)?;
    operator.holds(17, false, "after its time")?;
    ensure!(json(&["status", "--json"])?["health"] != "failed");
    Ok(())
}

/// Killed at any moment of a push, the next agent has the policy before or the new one.
pub fn killed() -> Result<()> {
    kill_pushes(4)
}

/// The same so many times, at moments that are spread over a push from before its request to after its answer.
pub fn kill_pushes(kills: u64) -> Result<()> {
    /// How long a push takes depends on what else the machine does, so it is looked at again.
    const LOOK_AGAIN: u64 = 25;
    let operator = Operator::new()?;
    let mut agent = operator.start()?;
    let mut version = 1;
    let (mut old, mut new) = (0, 0);
    let mut push_takes = Duration::ZERO;
    for round in 0..kills {
        if round % LOOK_AGAIN == 0 {
            version += 1;
            push_takes = undisturbed(&operator, version)?;
            println!("  {round} kills: {old} times the policy before, {new} times the new one");
        }
        let next = version + 1;
        let bundle = operator.bundle(next, next % 2 == 0, &[])?;
        let mut push = Command::new("portcullis")
            .args(["policy", "push", &bundle])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // However many there are, they are spread evenly: multiples of the golden ratio, without the whole.
        let share = (round as f64 * 0.618_034).fract();
        sleep(push_takes.mul_f64(share * 1.1));
        agent.signal(Signal::KILL)?;
        push.wait()?;
        agent = operator.start()?;
        let found =
            json(&["status", "--json"])?["policy"]["version"].as_u64().context("version")?;
        ensure!(found == version || found == next, "v{found} between v{version} and v{next}");
        operator.holds(found, found % 2 == 0, "after a kill")?;
        if found == next {
            new += 1
        } else {
            old += 1
        }
        version = found;
    }
    println!("  {kills} kills: {old} times the policy before, {new} times the new one");
    undisturbed(&operator, version + 1)?;
    operator.stop(agent)
}

/// Pushes a bundle, and returns how long that takes if nobody disturbs it.
fn undisturbed(operator: &Operator, version: u64) -> Result<Duration> {
    let bundle = operator.bundle(version, version.is_multiple_of(2), &[])?;
    let start = Instant::now();
    expect(0, &["policy", "push", &bundle])?;
    let took = start.elapsed();
    operator.holds(version, version.is_multiple_of(2), "nobody disturbed the push")?;
    Ok(took)
}
