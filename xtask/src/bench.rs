//! `cargo xtask bench`: measurements, mostly in guest instructions, which repeat where times do not.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    build,
    command::{command, run},
    kernel::Which,
    root, setup,
    vm::{Ended, Vm},
};

#[derive(clap::Subcommand)]
pub enum Bench {
    /// What a start of a program costs: bare, in audit and in enforce mode, and the first time
    Exec(Args),
    /// What a start of the agent costs
    Start(Args),
    /// What opening, reading, writing and mapping of files costs: bare and in enforce mode
    Write(Args),
    /// What the gate at USB's switches costs whoever reads and writes files
    Usb(Args),
    /// What marking a program as an interpreter costs: itself, and everybody else
    Interpreter(Args),
    /// How late a real-time task wakes up, and how long a start takes, while large files are hashed
    Realtime(Args),
    /// How many decisions there can be in a second, and what telling of one costs with each sink
    Events(Args),
    /// What memory grows by a million opens for writing; in seconds of an emulated machine
    Churn(Args),
    /// What a signed catalog of 200,000 digests costs beside a plain manifest: memory, and time of an
    /// emulated machine
    Catalog(Args),
    /// How long it takes until simulated devices have a policy through three servers on this machine
    Fleet(FleetArgs),
}

#[derive(clap::Args)]
pub struct FleetArgs {
    /// How many devices
    #[arg(long, default_value = "5000")]
    devices: usize,
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    kernel: Which,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// The unit test of the same name, optimised and with more devices.
fn fleet(args: &FleetArgs) -> Result<ExitCode> {
    setup::setup(setup::For::Tests)?;
    let name = "fleet::tests::scale::many_devices_have_a_policy_soon";
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments =
        ["test", "--release", "--package", "portcullis", "--lib", "--", "--exact", name];
    run(command(&cargo, arguments)
        .arg("--nocapture")
        .env("PORTCULLIS_FLEET_DEVICES", args.devices.to_string())
        .current_dir(root()))?;
    Ok(ExitCode::SUCCESS)
}

pub fn bench(bench: &Bench) -> Result<ExitCode> {
    let (name, args) = match bench {
        Bench::Exec(args) => ("exec", args),
        Bench::Start(args) => ("start", args),
        Bench::Write(args) => ("write", args),
        Bench::Usb(args) => ("usb", args),
        Bench::Interpreter(args) => ("interpreter", args),
        Bench::Realtime(args) => ("realtime", args),
        Bench::Events(args) => ("events", args),
        Bench::Churn(args) => ("churn", args),
        Bench::Catalog(args) => ("catalog", args),
        Bench::Fleet(args) => return fleet(args),
    };
    setup::setup(setup::For::Machines)?;
    let kernel = args.kernel.find()?;
    let built = build::build()?;
    let command = ["portcullis-guest", "bench", name].map(str::to_owned);
    let mut vm = Vm::new(&kernel, &built, &command);
    vm.icount = !matches!(bench, Bench::Churn(_) | Bench::Catalog(_));
    vm.timeout = Duration::from_secs(600);
    let (mut result, mut console) = (None, String::new());
    let ended = vm.run(|line| match line.strip_prefix("@@result ") {
        Some(found) => result = Some(found.to_owned()),
        None => console.push_str(&format!("{line}\n")),
    })?;
    let (Ended::Exited(0), Some(result)) = (ended, result) else {
        bail!("the measurement broke off ({ended:?}):\n{console}");
    };
    let measured: Value = serde_json::from_str(&result)?;
    let mut result = measured.clone();
    result["kernel"] = json!(kernel.name);
    if vm.icount {
        result["unit"] = json!("guest instructions");
    }
    if args.json {
        println!("{result}");
    } else {
        match bench {
            Bench::Exec(_) => show(&result)?,
            Bench::Start(_) => {
                println!(
                    "Linux {}, millions of guest instructions for a start of the agent:",
                    kernel.name
                );
                for part in ["agent", "kernel"] {
                    let spent = measured[part].as_u64().with_context(|| format!("no {part}"))?;
                    println!("{part:<8}{:>8}", spent / 1_000_000);
                }
            }
            Bench::Write(_) => {
                let what = "guest instructions for calls on files, 4096 bytes each";
                let title = format!("Linux {}, {what}", kernel.name);
                show_pairs(&title, &measured, ["bare", "enforce"])?;
            }
            Bench::Usb(_) => {
                let what = "guest instructions for calls on files, in enforce mode, [usb] or not";
                let title = format!("Linux {}, {what}", kernel.name);
                show_pairs(&title, &measured, ["without", "with"])?;
            }
            Bench::Interpreter(_) => {
                let what = "guest instructions for a start, in enforce mode";
                let title = format!("Linux {}, {what}", kernel.name);
                show_pairs(&title, &measured, ["unmarked", "marked"])?;
            }
            Bench::Realtime(_) => {
                let what = "guest instructions beside large programs that are started anew";
                let title = format!("Linux {}, {what}", kernel.name);
                show_pairs(&title, &measured, ["bare", "enforce"])?;
            }
            Bench::Events(_) => show_events(&kernel.name, &measured),
            Bench::Churn(_) => show_growth(&kernel.name, &measured),
            Bench::Catalog(_) => show_catalog(&kernel.name, &measured),
            // Needs no machine, and has shown what it found.
            Bench::Fleet(_) => {}
        }
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

/// Instructions by name, under two conditions.
fn show_pairs(title: &str, measured: &Value, conditions: [&str; 2]) -> Result<()> {
    let [first, second] = conditions;
    println!("{title}:");
    println!("{:<28}{first:>12}{second:>12}{:>10}{:>10}", "", "", "");
    for (name, costs) in measured.as_object().context("no result")? {
        let number = |at: &str| costs[at].as_f64().with_context(|| format!("no {at}"));
        let (first, second) = (number(first)?, number(second)?);
        let more = second - first;
        println!(
            "{name:<28}{first:>12.0}{second:>12.0}{more:>+10.0}{:>+9.2}%",
            more / first * 100.0
        );
    }
    Ok(())
}

fn show_events(kernel: &str, measured: &Value) {
    let flood = &measured["flood"];
    println!("Linux {kernel}, where a second is a billion guest instructions:");
    println!("{} refused mappings of one file, all of them told or counted:", flood["decisions"]);
    for (what, rate) in [
        ("beside the agent, on its processor", &flood["all"]),
        ("into the ring, the agent held back", &flood["into_the_ring"]),
        ("into a full ring", &flood["into_a_full_ring"]),
    ] {
        let (a_second, instructions) = (&rate["a_second"], &rate["instructions"]);
        println!("{what:<36}{a_second:>8} a second, {instructions:>6} instructions each");
    }
    println!(
        "beside the agent {} were told and {} lost; it has {} KiB",
        flood["told"], flood["lost"], flood["agent_kib"]
    );
    println!("{:<20}{:>14}{:>16}{:>12}", "sink", "instructions", "records a", "agent at");
    println!("{:<20}{:>14}{:>16}{:>12}", "", "for a record", "second's work", "most, KiB");
    for (name, sink) in measured["sinks"].as_object().into_iter().flatten() {
        println!(
            "{name:<20}{:>14}{:>16}{:>12}",
            sink["instructions"].to_string(),
            sink["a_second"].to_string(),
            sink["agent_kib"].to_string()
        );
    }
}

fn show_growth(kernel: &str, measured: &Value) {
    println!(
        "Linux {kernel}: {} opens for writing in {} s",
        measured["opens_for_writing"], measured["seconds"]
    );
    for (what, at) in [("agent, resident", "agent_kib"), ("kernel, unreclaimable", "kernel_kib")] {
        println!("{what:<28}{} KiB, then {} KiB", measured[at]["before"], measured[at]["after"]);
    }
}

fn show_catalog(kernel: &str, measured: &Value) {
    let (catalog, manifest) = (&measured["catalog"], &measured["manifest"]);
    println!(
        "Linux {kernel}, {} digests; 1 ms is a million guest instructions:",
        measured["digests"]
    );
    println!("{:<44}{:>12}{:>12}", "", "catalog", "manifest");
    let row = |what: &str, catalog: &Value, manifest: &Value| {
        let shown =
            |value: &Value| if value.is_null() { "-".to_owned() } else { value.to_string() };
        println!("{what:<44}{:>12}{:>12}", shown(catalog), shown(manifest));
    };
    row("signing, ms", &measured["sign_ms"], &Value::Null);
    row("start of the agent, ms", &catalog["start_ms"], &manifest["start_ms"]);
    row("from the drop until in force, ms", &catalog["in_force_ms"], &Value::Null);
    row("from the removal until out of force, ms", &catalog["removed_ms"], &Value::Null);
    row("agent before, KiB", &catalog["before"]["agent_kib"], &Value::Null);
    row("agent at most, KiB", &catalog["peak_kib"], &manifest["peak_kib"]);
    for (what, at) in [("agent", "agent_kib"), ("kernel", "kernel_kib")] {
        let (with, plain) = (&catalog["with"][at], &manifest["with"][at]);
        row(&format!("{what} with it, KiB"), with, plain);
    }
    row("agent afterwards, KiB", &catalog["after"]["agent_kib"], &Value::Null);
    let kernel = [&catalog["before"]["kernel_kib"], &catalog["after"]["kernel_kib"]];
    row("kernel before, KiB", kernel[0], &Value::Null);
    row("kernel afterwards, KiB", kernel[1], &Value::Null);
    let (count, longest) = (&catalog["starts"]["count"], &catalog["starts"]["longest_ms"]);
    println!("{count} starts meanwhile, none refused, the longest took {longest} ms");
}

fn kernel_name(result: &Value) -> &str {
    result["kernel"].as_str().unwrap_or("?")
}
