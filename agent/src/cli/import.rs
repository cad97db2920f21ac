//! `portcullis policy import`

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, anyhow};
use portcullis_common::Kinds;

use super::{BAD_INPUT, Failure, NO, OrExit, Outcome, output, scan::kind, scan::write_file};
use crate::{
    event::human::Plain,
    import::{
        self, Form, Imported, Left, dpkg,
        usbguard::{self, Known, here},
    },
    policy::manifest,
    usb::device::DEVICES,
};

#[derive(clap::Subcommand)]
pub enum Verb {
    /// A list of `sha256sum`, GNU's or BSD's
    Sha256sum(ListArgs),
    /// A trust file of fapolicyd
    Fapolicyd(ListArgs),
    /// What dpkg has installed, verified against the packages' sums first
    Dpkg(DpkgArgs),
    /// Rules of USBGuard, as the part of a policy that is about USB
    Usbguard(UsbguardArgs),
}

#[derive(clap::Args)]
pub struct Output {
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    /// Write everything that was not carried over to this file, as JSON lines
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

#[derive(clap::Args)]
pub struct ListArgs {
    /// The list
    list: PathBuf,
    /// What the files are used as, separated by commas (default: as their content shows, for those that
    /// are on this machine)
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = kind)]
    kinds: Vec<Kinds>,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub struct DpkgArgs {
    /// Only these packages
    packages: Vec<String>,
    /// The system's root folder
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Take files too that no sum of their package covers
    #[arg(long)]
    unverified: bool,
    #[command(flatten)]
    output: Output,
}

#[derive(clap::Args)]
pub struct UsbguardArgs {
    /// The files of rules, in the order in which USBGuard reads them
    #[arg(required = true)]
    rules: Vec<PathBuf>,
    /// Carry `parent-hash` over as the ports of what is plugged in here now
    #[arg(long)]
    parents_as_ports: bool,
    #[command(flatten)]
    output: Output,
}

/// Entries that are shown at the terminal.
const SHOWN: usize = 20;

pub fn import(verb: &Verb) -> Outcome {
    let (imported, output) = match verb {
        Verb::Sha256sum(args) => (list(args, Form::Sha256sum)?, &args.output),
        Verb::Fapolicyd(args) => (list(args, Form::Fapolicyd)?, &args.output),
        Verb::Dpkg(args) => {
            check(&args.output)?;
            let bar = output::progress(0, "files looked at:");
            let imported = dpkg::import(&args.root, &args.packages, args.unverified, &bar);
            bar.finish_and_clear();
            (imported.or_exit(BAD_INPUT)?, &args.output)
        }
        Verb::Usbguard(args) => return usbguard(args),
    };
    write(imported, output)
}

fn usbguard(args: &UsbguardArgs) -> Outcome {
    check(&args.output)?;
    let here = here::seen(Path::new(DEVICES));
    let known = Known { here: &here, parents_as_ports: args.parents_as_ports };
    let part = usbguard::import(&args.rules, known).or_exit(BAD_INPUT)?;
    replace(&args.output.output, |out| out.write_all(part.text.as_bytes()))?;
    tell(part.carried, part.left, &args.output)
}

fn list(args: &ListArgs, form: Form) -> Result<Imported, Failure> {
    check(&args.output)?;
    let kinds = args.kinds.iter().copied().reduce(Kinds::union);
    import::list(&args.list, form, kinds).or_exit(BAD_INPUT)
}

/// Before anything that takes long.
fn check(output: &Output) -> Result<(), Failure> {
    let exists = output.output.symlink_metadata().is_ok();
    if exists && !output.force {
        let shown = output.output.display();
        let error = anyhow!("{shown} exists; choose another name, or replace it with --force");
        return Err(Failure { code: BAD_INPUT, error });
    }
    Ok(())
}

fn write(imported: Imported, to: &Output) -> Outcome {
    let Imported { carried, mut left } = imported;
    left.sort();
    let count = carried.len();
    replace(&to.output, |out| manifest::write(out, carried, None))?;
    tell(count, left, to)
}

/// Says what was carried over and what not.
fn tell(count: usize, left: Vec<Left>, to: &Output) -> Outcome {
    if let Some(report) = &to.report {
        replace(report, |out| {
            left.iter().try_for_each(|one| {
                serde_json::to_writer(&mut *out, one)?;
                out.write_all(b"\n")
            })
        })?;
    }
    let mut text = format!("{}: {count} carried over, {} not", to.output.display(), left.len());
    for Left { place, path, why } in left.iter().take(SHOWN) {
        let path = path.as_deref().map(|path| format!(" {}", Plain(path))).unwrap_or_default();
        text.push_str(&format!("\n  {}:{path} {}", Plain(place), Plain(why)));
    }
    if left.len() > SHOWN {
        let more = left.len() - SHOWN;
        text.push_str(&format!("\n  … and {more} more; --report FILE has all of them"));
    }
    output::note(&text);
    Ok(if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(NO) })
}

fn replace(
    path: &Path,
    content: impl FnOnce(&mut std::io::BufWriter<&std::fs::File>) -> std::io::Result<()>,
) -> Result<(), Failure> {
    write_file(path, content)
        .with_context(|| format!("cannot write {}", path.display()))
        .or_exit(BAD_INPUT)
}
