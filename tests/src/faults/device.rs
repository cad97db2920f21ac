//! The device that faults strike, with its operator: what is in force on it, and what may be.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    agent::{Agent, PATIENCE, Policy, expect, portcullis, text},
    attack::{Attempt, evil, exec_path, good, install},
    events, scenarios,
};

/// What the agent keeps, on a real disk.
pub const STATE: &str = "/data/faults/state";
/// Its high-water marks, elsewhere.
pub const MARKS: &str = "/run/faults-marks/portcullis";
/// What the operator has, which no fault strikes.
pub const LAB: &str = "/run/faults";
/// The folder of catalogs: open to everybody, so that it stays writable for the test.
pub const CATALOGS: &str = "/run/faults-catalogs";
const PROGRAMS: &str = "/tmp/faults";
const DEVICE_FILE: &str = "/etc/portcullis/device.toml";

/// What is in force between faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// A signed bundle, so that root may not stop the agent.
    Signed,
    /// A policy file.
    File,
}

/// The device.
pub struct Device {
    /// Nobody runs after some faults.
    pub agent: Option<Agent>,
    pub baseline: Baseline,
    policy: Policy,
    plain: String,
    /// The version in force.
    pub version: u64,
    /// What the version in force is if the agent is started again.
    pub after_restart: u64,
    /// The highest that was ever used.
    used: u64,
    /// The catalog in force; 0 for none.
    pub catalog: u64,
    tokens: u64,
    /// Checks that are never well in this machine.
    usual: Vec<String>,
}

impl Device {
    /// A new device on which a signed bundle is in force.
    pub fn new() -> Result<Self> {
        let lab = Path::new(LAB);
        fs::create_dir_all(lab)?;
        fs::create_dir_all(PROGRAMS)?;
        for folder in [CATALOGS, STATE, MARKS] {
            let _ = fs::remove_dir_all(folder);
        }
        fs::create_dir_all(CATALOGS)?;
        fs::create_dir_all(Path::new(MARKS).parent().context("a folder")?)?;
        fs::create_dir_all("/etc/portcullis")?;
        fs::write(DEVICE_FILE, format!("name = \"pump-3\"\nhigh_water = [{MARKS:?}]\n"))?;
        let base = scenarios::base_policy(&[])?;
        for name in ["base.manifest", "policy.toml"] {
            fs::copy(base.file.with_file_name(name), lab.join(name))?;
        }
        for name in ["ops", "plant"] {
            let key = lab.join(name).with_extension("pem");
            if !key.exists() {
                expect(0, &["key", "generate", "-o", text(&key)?])?;
            }
        }
        install(&at("listed"), &good("faults")?)?;
        install(&at("evil"), &evil("faults, unlisted")?)?;
        install(&at("program"), &evil("faults, by turns")?)?;
        install(&at("cataloged"), &evil("faults, by catalogs")?)?;
        let policy = Policy { file: lab.join("policy.toml") };
        scenarios::list(&policy, &at("listed"), &["executable"])?;
        policy.append(
            "\n[[signer]]\nname = \"ops\"\nslot = \"operator\"\nkey = \"ops.pub.pem\"\n\
             signs = [\"policy\"]\n[[signer]]\nname = \"plant\"\nslot = \"operator\"\n\
             key = \"plant.pub.pem\"\nkinds = [\"executable\"]\nsigns = [\"catalog\"]\n",
        )?;
        let plain = fs::read_to_string(&policy.file)?;
        let mut device = Self {
            agent: None,
            baseline: Baseline::File,
            policy,
            plain,
            version: 1,
            after_restart: 1,
            used: 1,
            catalog: 0,
            tokens: 0,
            usual: Vec::new(),
        };
        device.start()?;
        device.usual = device.bad_checks()?.into_iter().map(|(id, _)| id).collect();
        device.go_signed()?;
        Ok(device)
    }

    /// Has an agent run, with this in force.
    pub fn be(&mut self, baseline: Baseline) -> Result<()> {
        if baseline != self.baseline {
            self.start_if_none()?;
            self.stop()?;
            for folder in [STATE, MARKS] {
                let _ = fs::remove_dir_all(folder);
            }
            fs::write(&self.policy.file, &self.plain)?;
            (self.version, self.after_restart, self.baseline) = (1, 1, Baseline::File);
            self.start()?;
            if baseline == Baseline::Signed {
                self.go_signed()?;
            }
        }
        self.start_if_none()
    }

    fn go_signed(&mut self) -> Result<()> {
        self.baseline = Baseline::Signed;
        let version = self.next();
        expect(0, &["policy", "push", &self.bundle(version)?])?;
        (self.version, self.after_restart) = (version, version);
        Ok(())
    }

    fn start_if_none(&mut self) -> Result<()> {
        if self.agent.is_none() { self.start() } else { Ok(()) }
    }

    /// Starts an agent and waits for it.
    pub fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.comes_up()
    }

    /// Starts an agent.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.agent.is_none(), "an agent runs already");
        let _ = fs::remove_file(events::FILE);
        let more = ["--skip-preflight", "--state", STATE, "--catalogs", CATALOGS];
        let binary = Path::new("portcullis");
        let launched = Agent::launch(binary, &self.policy, "enforce", events::FILE, &more)?;
        self.agent = Some(launched);
        Ok(())
    }

    /// Waits until it is there.
    pub fn comes_up(&mut self) -> Result<()> {
        let launched = self.agent.take().context("no agent was started")?;
        self.agent = Some(launched.comes_up()?);
        self.version = self.after_restart;
        Ok(())
    }

    /// Kills it in the way that no hook sees.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(agent) = self.agent.take() {
            agent.signal(Signal::KILL)?;
        }
        Ok(())
    }

    /// Takes note of an agent that has ended; whether it has.
    pub fn has_ended(&mut self) -> Result<bool> {
        let has = match &mut self.agent {
            Some(agent) => agent.has_ended()?.is_some(),
            None => true,
        };
        if has {
            self.agent = None;
        }
        Ok(has)
    }

    /// Takes the gates down as an operator does.
    pub fn stop(&mut self) -> Result<()> {
        let Some(agent) = self.agent.take() else { bail!("no agent runs") };
        let plain = portcullis(&["stop"])?;
        if plain.status.success() {
            return self.ended(agent);
        }
        self.tokens += 1;
        let file = format!("{LAB}/stop{}", self.tokens);
        let words = ["break-glass", "make", "--stop", "--device", "pump-3"];
        let rest = ["--valid-until", "2100-01-01T00:00:00Z", "-o", &file];
        expect(0, &[&words[..], &rest[..]].concat())?;
        expect(0, &["break-glass", "sign", &file, "--key", &format!("{LAB}/ops.pem")])?;
        expect(0, &["stop", "--authorized", &file])?;
        self.ended(agent)
    }

    fn ended(&self, mut agent: Agent) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while agent.has_ended()?.is_none() {
            ensure!(Instant::now() < end, "the agent was stopped and does not end");
            sleep(Duration::from_millis(10));
        }
        // Programs may fire for a moment after their last pin has gone.
        while exec_path(at("evil"))? != Attempt::Ran {
            ensure!(Instant::now() < end, "the gates stand although the agent was stopped");
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A number for a policy or a catalog that comes next.
    pub fn next(&mut self) -> u64 {
        self.used += 1;
        self.used
    }

    /// The policy file as this version: even ones list the program.
    pub fn write(&self, version: u64, file: &Path) -> Result<()> {
        let head = "version = 1\n";
        ensure!(self.plain.contains(head), "{}", self.plain);
        let mut policy = self.plain.replace(head, &format!("version = {version}\n"));
        if version.is_multiple_of(2) {
            let digest = scenarios::sha256(&at("program"))?;
            policy
                .push_str(&format!("[[allow]]\ndigest = \"{digest}\"\nkinds = [\"executable\"]\n"));
        }
        Ok(fs::write(file, policy)?)
    }

    /// The file that the agent is given.
    pub fn file(&self) -> &Path {
        &self.policy.file
    }

    /// A signed bundle of this version.
    pub fn bundle(&self, version: u64) -> Result<String> {
        let file = Path::new(LAB).join("next.toml");
        self.write(version, &file)?;
        let bundle = format!("{LAB}/next.bundle");
        expect(0, &["policy", "build", text(&file)?, "-o", &bundle, "--skip-preflight"])?;
        expect(0, &["policy", "sign", &bundle, "--key", &format!("{LAB}/ops.pem")])?;
        Ok(bundle)
    }

    /// A signed catalog of this version: even ones list a program. Returns its files.
    pub fn sign_catalog(&self, version: u64) -> Result<[PathBuf; 2]> {
        let listed = if version.is_multiple_of(2) { "cataloged" } else { "listed" };
        let (manifest, catalog) = (format!("{LAB}/c.manifest"), format!("{LAB}/pump.catalog"));
        let digest = scenarios::sha256(&at(listed))?;
        fs::write(
            &manifest,
            format!(
                "# portcullis manifest 1\n# kinds: executable\n{digest}  {}\n# end: 1 entries\n",
                text(&at(listed))?
            ),
        )?;
        let number = version.to_string();
        let from = ["catalog", "make", "--from", &manifest, "--name", "pump"];
        expect(0, &[&from[..], &["--version", &number, "-o", &catalog]].concat())?;
        expect(0, &["catalog", "sign", &catalog, "--key", &format!("{LAB}/plant.pem")])?;
        Ok([format!("{catalog}.sig").into(), catalog.into()])
    }

    /// What the agent says of itself.
    pub fn status(&self) -> Result<Value> {
        let output = portcullis(&["status", "--json"])?;
        ensure!(
            matches!(output.status.code(), Some(0 | 1)),
            "`portcullis status` gave {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Checks that are not well and usually are, with what they say.
    pub fn bad_checks(&self) -> Result<Vec<(String, String)>> {
        let status = self.status()?;
        let checks = status["checks"].as_array().context("no checks")?;
        let told = |check: &Value, what: &str| check[what].as_str().unwrap_or_default().to_owned();
        let bad = checks.iter().filter(|check| check["state"] != "ok");
        let bad = bad.map(|check| (told(check, "id"), told(check, "found")));
        Ok(bad.filter(|(id, _)| !self.usual.contains(id)).collect())
    }

    /// Puts the operator's clock and files away, and stops the agent.
    pub fn end(mut self) -> Result<()> {
        self.start_if_none()?;
        self.stop()?;
        for folder in [STATE, MARKS, CATALOGS, LAB, PROGRAMS] {
            let _ = fs::remove_dir_all(folder);
        }
        let _ = fs::remove_file(DEVICE_FILE);
        Ok(())
    }
}

/// One of the programs.
pub fn at(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

/// Copies a folder with everything in it.
pub fn copy(from: &str, to: &str) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("/bin/cp").args(["-a", from, to]).status()?;
    ensure!(status.success(), "copying {from} to {to}: {status}");
    Ok(())
}
