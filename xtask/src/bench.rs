//! `cargo xtask bench`: measurements in guest instructions, which repeat where times do not.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    build,
    kernel::Kernel,
    setup,
    vm::{Ended, Vm},
};

#[derive(clap::Subcommand)]
pub enum Bench {
    /// What a start of a program costs: bare, in audit and in enforce mode, and the first time
    Exec(Args),
}

#[derive(clap::Args)]
pub struct Args {
    /// The kernel to measure on: a series or the path of an image
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// The modules of a kernel that is named by its image
    #[arg(long, value_name = "DIR")]
    modules: Option<std::path::PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn bench(bench: &Bench) -> Result<ExitCode> {
    let Bench::Exec(args) = bench;
    setup::setup(setup::For::Machines)?;
    let kernel = Kernel::find(&args.kernel, args.modules.as_deref())?;
    let built = build::build()?;
    let command = ["portcullis-guest", "bench", "exec"].map(str::to_owned);
    let mut vm = Vm::new(&kernel, &built, &command);
    vm.icount = true;
    vm.timeout = Duration::from_secs(400);
    let (mut result, mut console) = (None, String::new());
    let ended = vm.run(|line| match line.strip_prefix("@@result ") {
        Some(found) => result = Some(found.to_owned()),
        None => console.push_str(&format!("{line}\n")),
    })?;
    let (Ended::Exited(0), Some(result)) = (ended, result) else {
        bail!("the measurement broke off ({ended:?}):\n{console}");
    };
    let mut result: Value = serde_json::from_str(&result)?;
    result["kernel"] = json!(kernel.name);
    result["unit"] = json!("guest instructions");
    if args.json {
        println!("{result}");
    } else {
        show(&result)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(result: &Value) -> Result<()> {
    let number = |pointer: &str| -> Result<f64> {
        result.pointer(pointer).and_then(Value::as_f64).with_context(|| format!("no {pointer}"))
    };
    println!(
        "Linux {}, guest instructions for a start (posix_spawn, exec, exit, wait):",
        kernel_name(result)
    );
    println!("{:<28}{:>12}{:>12}{:>10}{:>12}{:>10}", "program", "bare", "audit", "", "enforce", "");
    for (name, at) in [("static, the smallest", ""), ("dynamic, /usr/bin/true", "/dynamic")] {
        let bare = number(&format!("{at}/bare"))?;
        let more = |mode: &str| -> Result<(f64, f64)> {
            let cost = number(&format!("{at}/{mode}"))?;
            Ok((cost, (cost / bare - 1.0) * 100.0))
        };
        let ((audit, audit_more), (enforce, enforce_more)) = (more("audit")?, more("enforce")?);
        println!(
            "{name:<28}{bare:>12.0}{audit:>12.0}{audit_more:>+9.2}%{enforce:>12.0}{enforce_more:>+9.2}%"
        );
    }
    let (cold, hash) = (number("/cold_per_mib")?, number("/kernel_hash_per_mib")?);
    println!(
        "the first start costs {:.1} million more for each MiB; the kernel's SHA-256 alone {:.1} million ({:+.1}%)",
        cold / 1e6,
        hash / 1e6,
        (cold / hash - 1.0) * 100.0
    );
    Ok(())
}

fn kernel_name(result: &Value) -> &str {
    result["kernel"].as_str().unwrap_or("?")
}
