//! `cargo xtask demo`: a commissioning in a virtual machine, or its audit part on this host.

use std::{
    env,
    io::Write,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    kernel::Which,
    setup,
    vm::{Ended, Rootfs, Vm},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    kernel: Which,
    /// Do the audit part on this machine, if its kernel can hold the gates
    #[arg(long)]
    here: bool,
}

pub fn demo(args: &Args) -> Result<ExitCode> {
    if args.here {
        return here();
    }
    setup::setup(setup::For::Demo)?;
    let kernel = args.kernel.find()?;
    let built = build::build()?;
    println!("booting Debian on Linux {} under software emulation …", kernel.name);
    let start = Instant::now();
    let command = ["portcullis-guest", "demo"].map(str::to_owned);
    let mut vm = Vm::new(&kernel, &built, &command);
    vm.rootfs = Rootfs::Debian;
    vm.timeout = Duration::from_secs(300);
    let ended = vm.run(|line| {
        // Whoever reads may have gone; the machine goes on to its end.
        let _ = writeln!(std::io::stdout(), "{line}");
    })?;
    println!("(the demonstration took {} s)", start.elapsed().as_secs());
    match ended {
        Ended::Exited(code) => Ok(ExitCode::from(code)),
        Ended::Lost(why) => bail!("the virtual machine was lost: {why}"),
        Ended::Silent => bail!("the virtual machine says nothing any more"),
        Ended::Cut => bail!("the virtual machine has lost its power"),
    }
}

fn here() -> Result<ExitCode> {
    setup::setup(setup::For::Building)?;
    let built = build::build()?;
    let folder = built.agent.parent().context("a binary in no folder")?.to_owned();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(folder).chain(env::split_paths(&path)))?;
    // What keeps the gates from holding here is said by doctor, with the mend.
    let doctor = Command::new(&built.agent).arg("doctor").status()?;
    if !doctor.success() {
        println!(
            "\nthe audit part is not possible here, see above; `cargo xtask demo` shows it all in a virtual machine"
        );
        return Ok(ExitCode::from(3));
    }
    let status = Command::new(&built.guest).args(["demo", "here"]).env("PATH", path).status()?;
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
}
