//! What marking a program as an interpreter costs: itself, and everybody else.

use std::{ffi::CString, fs, path::Path, thread::sleep, time::Duration};

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::{install, lower_quartile, start};
use crate::{
    agent::{Agent, Policy},
    elf,
    scenarios::list,
};

/// A program that policies mark.
const INTERPRETER: &str = "/usr/bin/bash";

/// Measures starts under a policy without marks and under one with a mark, and prints one line of
/// JSON.
pub fn interpreter() -> Result<()> {
    fs::create_dir_all("/bench")?;
    let small = install("/bench/true", &elf::program(0, b"")?)?;
    install("/bench/script", b"#!/usr/bin/bash\nexit 0\n")?;
    let bash = CString::new(INTERPRETER)?;
    let (dynamic, script) = (CString::new("/usr/bin/true")?, CString::new("/bench/script")?);
    let measure = || -> Result<Vec<(&str, u64)>> {
        Ok(vec![
            ("static, the smallest", lower_quartile(|| start(&[&small]))?),
            ("dynamic, /usr/bin/true", lower_quartile(|| start(&[&dynamic]))?),
            ("bash with a script", lower_quartile(|| start(&[&bash, &script]))?),
        ])
    };
    let plain = Policy::of(Path::new("/bench/plain"), &["/usr", "/bench"])?;
    let marking = Policy::of(Path::new("/bench/marking"), &["/usr", "/bench"])?;
    list(&marking, Path::new(INTERPRETER), &["interpreter"])?;
    // On 6.12 the first seconds after boot carry background work.
    sleep(Duration::from_secs(3));
    measure()?;
    let measured = |policy: &Policy| -> Result<_> {
        let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
        let costs = measure()?;
        agent.stop()?;
        Ok(costs)
    };
    let (before, with, after) = (measured(&plain)?, measured(&marking)?, measured(&plain)?);
    let result: Map<String, Value> = before
        .into_iter()
        .zip(with)
        .zip(after)
        .map(|(((name, before), (_, with)), (_, after))| {
            // What drifts over the run drifts out of the comparison.
            (name.to_owned(), json!({ "unmarked": before.midpoint(after), "marked": with }))
        })
        .collect();
    println!("@@result {}", Value::Object(result));
    Ok(())
}
