//! The changes of state at whose moments faults strike.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    device::{Baseline, CATALOGS, Device, at},
    invariants,
};
use crate::{
    agent::{PATIENCE, expect},
    attack::{Attempt, exec_path},
};

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A bundle is pushed for good.
    Push,
    /// A bundle is pushed on trial.
    Trial,
    /// What is tried is confirmed.
    Confirm,
    /// What is in force is taken back.
    Rollback,
    /// The agent starts.
    Restart,
    /// The policy file is read anew.
    Reload,
    /// Enforcement begins.
    Mode,
    /// A catalog is dropped in.
    Catalog,
    /// Many records are written.
    Records,
}

impl Moment {
    /// Those that there are while a signed bundle is in force.
    pub const SIGNED: [Self; 7] = [
        Self::Push,
        Self::Trial,
        Self::Confirm,
        Self::Rollback,
        Self::Restart,
        Self::Catalog,
        Self::Records,
    ];
    /// Those that there are while a policy file is in force.
    pub const FILE: [Self; 5] =
        [Self::Reload, Self::Mode, Self::Restart, Self::Catalog, Self::Records];

    /// Does everything that comes before, without a fault.
    pub fn prepare(self, device: &mut Device) -> Result<Change> {
        let old = device.version;
        let mut change = Change {
            moment: self,
            old,
            new: old,
            client: None,
            words: Vec::new(),
            files: Vec::new(),
        };
        match self {
            Self::Push => {
                change.new = device.next();
                let bundle = device.bundle(change.new)?;
                change.says(&["policy", "push", &bundle]);
            }
            Self::Trial => {
                change.new = device.next();
                let bundle = device.bundle(change.new)?;
                change.says(&["policy", "push", &bundle, "--confirm-within", "1h"]);
            }
            Self::Confirm => {
                change.new = device.next();
                let bundle = device.bundle(change.new)?;
                expect(0, &["policy", "push", &bundle, "--confirm-within", "1h"])?;
                change.says(&["policy", "confirm"]);
            }
            Self::Rollback => {
                let newer = device.next();
                expect(0, &["policy", "push", &device.bundle(newer)?])?;
                device.version = newer;
                (change.old, change.new) = (newer, old);
                change.says(&["policy", "rollback"]);
            }
            Self::Restart => device.kill()?,
            Self::Reload => {
                change.new = device.next();
                change.says(&["policy", "reload", "--skip-preflight"]);
            }
            Self::Mode => {
                expect(0, &["mode", "audit"])?;
                change.says(&["mode", "enforce", "--skip-preflight"]);
            }
            Self::Catalog => {
                device.catalog = device.next();
                change.files = device.sign_catalog(device.catalog)?.into();
            }
            Self::Records => {}
        }
        Ok(change)
    }
}

/// A change on its way.
pub struct Change {
    pub moment: Moment,
    /// What is in force before.
    pub old: u64,
    /// What is in force afterwards.
    pub new: u64,
    client: Option<Child>,
    words: Vec<String>,
    files: Vec<PathBuf>,
}

/// What the operator was told.
pub enum Told {
    /// It is done.
    Done,
    /// It is not, and everything is as it was.
    Stays,
    /// Nobody knows.
    Unknown,
}

impl Change {
    fn says(&mut self, words: &[&str]) {
        self.words = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Lets it begin.
    pub fn begin(&mut self, device: &mut Device) -> Result<()> {
        match self.moment {
            Moment::Restart => device.launch()?,
            Moment::Reload => device.write(self.new, device.file())?,
            Moment::Catalog => {
                for file in &self.files {
                    let name = file.file_name().context("a name")?;
                    fs::copy(file, PathBuf::from(CATALOGS).join(name))?;
                }
            }
            Moment::Records => refuse_some(40)?,
            _ => {}
        }
        if !self.words.is_empty() {
            let client = Command::new("portcullis")
                .args(&self.words)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            self.client = Some(client);
        }
        Ok(())
    }

    /// Waits until it has come out, or the agent has gone.
    pub fn wait(&mut self, device: &mut Device) -> Result<Told> {
        match (self.moment, &mut self.client) {
            (Moment::Records, _) => refuse_some(40)?,
            (Moment::Restart, _) => {
                if device.has_ended()? {
                    return Ok(Told::Unknown);
                }
                device.comes_up()?;
            }
            (_, Some(client)) => {
                let end = Instant::now() + 2 * PATIENCE;
                while client.try_wait()?.is_none() {
                    ensure!(Instant::now() < end, "`portcullis {}` hangs", self.words.join(" "));
                    sleep(Duration::from_millis(5));
                }
            }
            _ => {}
        }
        let Some(client) = self.client.take() else { return Ok(Told::Unknown) };
        let output = client.wait_with_output()?;
        if output.status.success() {
            return Ok(Told::Done);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !said.trim().is_empty(),
            "`portcullis {}` fails without a word",
            self.words.join(" ")
        );
        println!("  it says: {}", said.trim());
        let stays = said.contains("stays in force") || said.contains("still a trial");
        Ok(if stays { Told::Stays } else { Told::Unknown })
    }

    /// What may be in force now, by what the operator was told and whether the agent was started again.
    pub fn may(&self, told: &Told, restarted: bool) -> Vec<u64> {
        let Self { old, new, .. } = *self;
        match (self.moment, told, restarted) {
            (Moment::Trial, _, true) => vec![old],
            (Moment::Reload, _, true) => vec![new],
            // What is tried stays that, with an agent.
            (Moment::Confirm, Told::Stays, false) => vec![new],
            (Moment::Confirm, Told::Unknown, false) => vec![new],
            (_, Told::Done, _) => vec![new],
            (_, Told::Stays, _) => vec![old],
            (_, Told::Unknown, _) => vec![old, new],
        }
    }

    /// Goes back to what is between faults: nothing is tried, and enforced is what is written.
    pub fn settle(&self, device: &mut Device) -> Result<()> {
        match self.moment {
            Moment::Trial | Moment::Confirm if device.version == self.new => {
                let status = device.status()?;
                if status["bundle"]["until"].is_string() {
                    expect(0, &["policy", "confirm"])?;
                }
            }
            Moment::Reload if device.version == self.old => {
                expect(0, &["policy", "reload", "--skip-preflight"])?;
                device.version = self.new;
            }
            _ => {}
        }
        let is_file = device.baseline == Baseline::File;
        device.after_restart = device.version;
        if is_file && self.moment == Moment::Reload {
            invariants::all(device, &[self.new])?;
        }
        Ok(())
    }
}

/// Refused starts of as many different programs.
pub fn refuse_some(count: u32) -> Result<()> {
    for number in 0..count {
        let path = at(&format!("evil-{number}"));
        let _ = fs::remove_file(&path);
        fs::hard_link(at("evil"), &path)?;
        let came_out = exec_path(&path)?;
        fs::remove_file(&path)?;
        ensure!(came_out == Attempt::Refused, "an unlisted program has run");
    }
    Ok(())
}
