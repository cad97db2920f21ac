//! A listed file whose content is changed after its verdict, and both ways to use it afterwards.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{base_policy, list};
use crate::{
    agent::Policy,
    attack::{self, Attack, Attempt, evil, exec_path, good, install, map_as_code},
};

/// Size of a filesystem's block, which some ways to change a file work with.
pub const BLOCK: usize = 4096;

/// A listed and an unlisted program of the same size, and where the listed one lies.
pub struct Victim<'a> {
    pub path: &'a Path,
    pub good: Vec<u8>,
    pub evil: Vec<u8>,
}

impl<'a> Victim<'a> {
    /// The smallest programs.
    pub fn new(path: &'a Path) -> Result<Self> {
        Ok(Self { path, good: good("victim")?, evil: evil("victim")? })
    }

    /// Programs of this many bytes.
    pub fn of_size(path: &'a Path, bytes: usize) -> Result<Self> {
        let mut victim = Self::new(path)?;
        victim.good.resize(bytes, 1);
        victim.evil.resize(bytes, 1);
        Ok(victim)
    }

    /// A new file with the listed content, judged once by both gates.
    pub fn restore(&self) -> Result<()> {
        install(self.path, &self.good)?;
        self.is_good()
    }

    /// Uses the file, which has the listed content, in both ways.
    pub fn is_good(&self) -> Result<()> {
        let status = Command::new(self.path).status().context("the listed program")?;
        ensure!(
            status.code() == Some(i32::from(attack::GOOD)),
            "the listed program ended with {status}"
        );
        ensure!(map_as_code(self.path)? == Attempt::Ran, "the listed program cannot be mapped");
        Ok(())
    }

    /// A policy that lists the good content.
    pub fn policy(&self) -> Result<Policy> {
        install(self.path, &self.good)?;
        let policy = base_policy(&[])?;
        list(&policy, self.path, &["executable", "library"])?;
        Ok(policy)
    }
}

/// A way to change the victim.
pub struct Change<'c> {
    name: String,
    apply: Box<dyn Fn() -> Result<()> + 'c>,
    runs: bool,
    reasons: &'static [&'static str],
}

impl<'c> Change<'c> {
    /// One that puts the evil program in the victim's place.
    pub fn new(name: impl Into<String>, apply: impl Fn() -> Result<()> + 'c) -> Self {
        Self { name: name.into(), apply: Box::new(apply), runs: true, reasons: &["unlisted"] }
    }

    /// One after which the victim is no program any more, so that it is only mapped.
    pub fn breaking(name: impl Into<String>, apply: impl Fn() -> Result<()> + 'c) -> Self {
        Self { runs: false, ..Self::new(name, apply) }
    }

    /// The same change, with other reasons to be refused.
    pub fn because(self, reasons: &'static [&'static str]) -> Self {
        Self { reasons, ..self }
    }
}

/// Tries every change, followed by exec and by mapping as code. Each change finds a victim that
/// has verdicts of both gates.
pub fn run(victim: &Victim<'_>, changes: &[Change<'_>]) -> Result<()> {
    type Try<'c> = (String, Box<dyn Fn() -> Result<Attempt> + 'c>, &'static [&'static str]);
    let mut attempts: Vec<Try<'_>> = Vec::new();
    for Change { name, apply, runs, reasons } in changes {
        if *runs {
            let by_exec = move || {
                victim.restore()?;
                apply()?;
                exec_path(victim.path)
            };
            attempts.push((format!("{name}, then exec"), Box::new(by_exec), reasons));
        }
        let by_mapping = move || {
            victim.restore()?;
            apply()?;
            map_as_code(victim.path)
        };
        attempts.push((format!("{name}, then map"), Box::new(by_mapping), reasons));
    }
    let attacks: Vec<_> = attempts
        .iter()
        .map(|(name, attempt, reasons)| Attack { name: name.clone(), attempt, reasons })
        .collect();
    attack::run(&victim.policy()?, &attacks)
}
