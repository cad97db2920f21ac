//! One life of a device between two power cuts: it starts with what the cut before has left, and changes
//! policies until the host cuts the power again. What must survive lies on the disk at `/data`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    agent::{Agent, Policy, expect, json, text},
    attack::{Attempt, evil, exec_path, install},
};

/// The operator's and the attacker's things.
const LAB: &str = "/data/lab";
/// What the agent keeps.
const STATE: &str = "/data/state";
/// Every policy whose version this divides is only tried.
const TRIED: u64 = 3;

/// Starts the agent, checks that the policy in force is one of `lowest` to `highest` and decides by itself,
/// and then pushes newer ones for ever, or none if `ends`. What was `lowest` had been answered for, and
/// `highest` had been asked for, when the power was cut.
pub fn round(lowest: u64, highest: u64, ends: bool) -> Result<()> {
    let lab = Lab::open()?;
    let more = ["--skip-preflight", "--state", STATE];
    let _agent = Agent::start(&lab.policy, "enforce", &more)?;
    let found = json(&["status", "--json"])?["policy"]["version"].as_u64().context("a version")?;
    ensure!(
        (lowest..=highest).contains(&found),
        "v{found} is in force, which is none of v{lowest} to v{highest}"
    );
    ensure!(found == 1 || found % TRIED != 0, "v{found} was only tried, and is in force");
    lab.holds(found)?;
    if found > 1 {
        // An older one that is signed as well.
        let output = expect(1, &["policy", "push", &lab.bundle(found - 1)?])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("rollback"), "{said}");
    }
    println!("@@found {found}");
    if ends {
        // The machine ends with the agent in it, as machines do.
        return Ok(());
    }
    for version in highest + 1.. {
        let bundle = lab.bundle(version)?;
        println!("@@try {version}");
        if version % TRIED == 0 {
            expect(0, &["policy", "push", &bundle, "--confirm-within", "1h"])?;
        } else {
            expect(0, &["policy", "push", &bundle])?;
            println!("@@done {version}");
        }
        lab.holds(version)?;
    }
    Ok(())
}

struct Lab {
    policy: Policy,
    program: PathBuf,
}

impl Lab {
    /// Makes everything in the first life, and finds it in later ones.
    fn open() -> Result<Self> {
        let lab = Path::new(LAB);
        let (key, program) = (lab.join("ops.pem"), lab.join("program"));
        let policy = Policy { file: lab.join("policy.toml") };
        let ready = lab.join("ready");
        if !ready.exists() {
            Policy::of(lab, &["/usr"])?;
            install(&program, &evil("power")?)?;
            expect(0, &["key", "generate", "-o", text(&key)?])?;
            policy.append(
                "\n[[signer]]\nname = \"ops\"\nslot = \"operator\"\nkey = \"ops.pub.pem\"\n\
                 signs = [\"policy\"]\n",
            )?;
            fs::write(ready, "")?;
            rustix::fs::sync();
        }
        Ok(Self { policy, program })
    }

    /// Even versions list the program, odd ones do not.
    fn bundle(&self, version: u64) -> Result<String> {
        let policy = fs::read_to_string(&self.policy.file)?;
        let mut text_of_it = policy.replace("version = 1\n", &format!("version = {version}\n"));
        ensure!(text_of_it != policy || version == 1, "{policy}");
        if version.is_multiple_of(2) {
            let digest = super::scenarios::sha256(&self.program)?;
            text_of_it.push_str(&format!(
                "\n[[allow]]\ndigest = \"{digest}\"\nkinds = [\"executable\"]\n"
            ));
        }
        let file = Path::new(LAB).join(format!("v{version}.toml"));
        fs::write(&file, text_of_it)?;
        let bundle = text(&file.with_extension("bundle"))?.to_owned();
        // What an even version let run, the next one refuses on purpose, though it has just run.
        expect(0, &["policy", "build", text(&file)?, "-o", &bundle, "--skip-preflight"])?;
        let key = Path::new(LAB).join("ops.pem");
        expect(0, &["policy", "sign", &bundle, "--key", text(&key)?])?;
        Ok(bundle)
    }

    /// This policy decides, and no other.
    fn holds(&self, version: u64) -> Result<()> {
        let expected = if version.is_multiple_of(2) { Attempt::Ran } else { Attempt::Refused };
        let came_out = exec_path(&self.program)?;
        ensure!(came_out == expected, "v{version} is in force, and the program: {came_out:?}");
        Ok(())
    }
}
