//! Every check there is, in the order in which they find the most for the least time.

use std::{
    collections::VecDeque,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use portcullis_ebpf_build::tools_dir;

use crate::{
    build::{self, Built},
    command::{cargo, command, quietly, run, text_of},
    kernel::{Kernel, OLD, SERIES},
    package, power, root, setup, signatures, signed, two_machines,
    vm::{Ended, Rootfs, Vm},
};

#[derive(clap::Args)]
pub struct Args {
    /// Test on this series (5.10, newest …) or image only (may be given several times; default: 6.1,
    /// 6.12, and a few on 5.10)
    #[arg(long)]
    kernel: Vec<String>,
    /// The modules of a kernel that is named by its image
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Run only the scenarios with these names, and none of the other checks
    #[arg(long, value_name = "SCENARIO")]
    only: Vec<String>,
}

/// Scenarios that share a boot at most, so that a machine that dies takes few with it and all
/// processors have work.
const BATCH: usize = 8;

/// Machines that run at a time, for each two processors. Each is idle for a third of its time: where gates
/// are taken down the kernel waits for 0.1 s (Linux 6.1: 0.2 s) at each hook until no processor is in it.
const MACHINES: usize = 3;

/// What are no scenarios within one machine.
const POWER_CUTS: &str = "power-cuts";
const TWO_MACHINES: &str = "two-machines";

/// How long a batch may take.
const TIMEOUT: Duration = Duration::from_secs(900);

/// A machine tells every 15 seconds that it lives. One that does not for so long has been frozen by its
/// emulator: a kernel that hangs says so itself (its watchdogs need 20 to 120 seconds), and a program
/// that hangs is found by the guest.
const SILENCE: Duration = Duration::from_secs(180);

pub fn test(args: &Args) -> Result<ExitCode> {
    let start = Instant::now();
    setup::setup(setup::For::Tests)?;
    let is_whole = args.only.is_empty();
    if is_whole {
        step("format", format)?;
    }
    let series: Vec<_> = SERIES.iter().chain([&OLD]).map(|name| (*name).to_owned()).collect();
    let kernels = if args.kernel.is_empty() { &series } else { &args.kernel };
    let kernels: Vec<_> = kernels
        .iter()
        .map(|kernel| {
            Kernel::find(kernel, args.modules.as_deref())
                .with_context(|| format!("the tests need a {kernel} kernel; without it: --kernel"))
        })
        .collect::<Result<_>>()?;
    // Compilers leave processors idle towards their ends, so the binaries that devices get are built
    // beside the other checks, and the first machines run beside them too.
    let state = Checks { compile: AtomicBool::new(is_whole), failed: AtomicBool::new(false) };
    let state = &state;
    let (checked, failed) = thread::scope(|scope| {
        let checks = is_whole.then(|| scope.spawn(|| state.note(checks(state))));
        let failed = build::build().and_then(|built| scenarios(&built, &kernels, args, state));
        let checked = checks.map_or(Ok(()), |checks| match checks.join() {
            Ok(checked) => checked,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        (checked, failed)
    });
    println!("\nall checks took {} s", start.elapsed().as_secs());
    checked?;
    let failed = failed?;
    if failed == 0 {
        println!("everything passed");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("{failed} scenarios FAILED");
        Ok(ExitCode::FAILURE)
    }
}

/// How far the checks are that need no machine.
struct Checks {
    /// Whether they still compile something, which keeps processors busy.
    compile: AtomicBool,
    failed: AtomicBool,
}

impl Checks {
    fn note(&self, outcome: Result<()>) -> Result<()> {
        self.failed.store(outcome.is_err(), Relaxed);
        self.compile.store(false, Relaxed);
        outcome
    }
}

/// What needs no machine.
fn checks(state: &Checks) -> Result<()> {
    let tests = |more: &[&'static str]| {
        run(cargo(["test", "--workspace", "--quiet"]).args(more).current_dir(root()))
    };
    step("lints", lints)?;
    step("unit tests, compiled", || tests(&["--no-run"]))?;
    state.compile.store(false, Relaxed);
    step("unit tests", || tests(&[]))?;
    step("licences and sources", licences)
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    println!("== {name}");
    check().with_context(|| format!("{name} failed"))?;
    println!("   {name} ok, {} s", start.elapsed().as_secs());
    Ok(())
}

fn format() -> Result<()> {
    for folder in [root(), root().join("agent-ebpf"), root().join("fuzz")] {
        run(cargo(["fmt", "--all", "--check"]).current_dir(folder))?;
    }
    Ok(())
}

fn lints() -> Result<()> {
    let arguments =
        ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
    run(cargo(arguments).current_dir(root()))
}

/// Licences, duplicate and banned dependencies, and where dependencies come from. Advisories need
/// a database that is not in the registry: `cargo deny check advisories` where it can be had.
fn licences() -> Result<()> {
    let deny = tools_dir()?.join("bin/cargo-deny");
    for manifest in ["Cargo.toml", "agent-ebpf/Cargo.toml"] {
        let mut check = Command::new(&deny);
        check.arg("--log-level=error").arg("--manifest-path").arg(root().join(manifest));
        check.arg("--config").arg(root().join("deny.toml"));
        run(check.args(["check", "bans", "licenses", "sources"]))?;
    }
    Ok(())
}

/// Scenarios that run in one machine.
struct Batch<'a> {
    kernel: &'a Kernel,
    machine: String,
    names: Vec<String>,
}

/// Runs the scenarios on every kernel, and returns how many failed. One machine at a time until the
/// other checks have compiled everything.
fn scenarios(built: &Built, kernels: &[Kernel], args: &Args, checks: &Checks) -> Result<usize> {
    let mut batches = batches(built, kernels, args)?;
    let folder = tempfile::tempdir_in(build::work_dir()?)?;
    let files =
        Files { usual: folder.path().join("usual"), packages: folder.path().join("packages") };
    make_files(&files, built, kernels)?;
    // The longest first, so that no machine is left alone at the end.
    batches.sort_by_key(|batch| {
        let has = |flag| batch.machine.contains(flag);
        // Installing packages takes as long as five others.
        (!has("smp2"), !has("packages"), std::cmp::Reverse(batch.names.len()))
    });
    let total: usize = batches.iter().map(|batch| batch.names.len()).sum();
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let workers = (processors * MACHINES / 2).max(1);
    println!("== {total} scenarios on {} kernels, in {} machines", kernels.len(), batches.len());
    let start = Instant::now();
    let queue = Mutex::new(VecDeque::from(batches));
    let failed = Mutex::new(0);
    thread::scope(|scope| {
        let (queue, failed, files) = (&queue, &failed, &files);
        for worker in 0..workers {
            scope.spawn(move || {
                let left = || queue.lock().unwrap_or_else(PoisonError::into_inner);
                while worker > 0 && checks.compile.load(Relaxed) && !left().is_empty() {
                    thread::sleep(Duration::from_millis(200));
                }
                // Taken in a statement of its own: in a loop's condition the lock would be held until
                // the batch has run, and one machine would wait for the other.
                let next = || left().pop_front().filter(|_| !checks.failed.load(Relaxed));
                while let Some(batch) = next() {
                    let bad = run_batch(built, files, &batch);
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) += bad;
                }
            });
        }
    });
    println!("   the machines took {} s", start.elapsed().as_secs());
    Ok(failed.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What scenarios find in `/files`.
struct Files {
    /// The attacker's things, in every machine.
    usual: PathBuf,
    /// Our own packages, in those that install them.
    packages: PathBuf,
}

fn make_files(files: &Files, built: &Built, kernels: &[Kernel]) -> Result<()> {
    let usual = &files.usual;
    fs::create_dir(usual)?;
    attackers_files(usual)?;
    fsverity_image(&usual.join("fsverity"))?;
    verified_image(built, &usual.join("verified"))?;
    signed::make(built, &usual.join("signed"))?;
    signatures::make(built, kernels, &usual.join("libevil.so"), &usual.join("signatures"))?;
    // What is installed, and what it is upgraded to: the same program in another binary.
    package::make(&built.agent, "0.0.1", &files.packages)?;
    let next = usual.join("next");
    let mut binary = fs::read(&built.agent)?;
    binary.push(0);
    fs::write(&next, binary)?;
    package::make(&next, "0.0.2", &files.packages)?;
    fs::remove_file(next)?;
    Ok(())
}

/// What the attacks need that cannot be made inside of the machine: compiled libraries, and a
/// filesystem.
fn attackers_files(folder: &Path) -> Result<()> {
    let image = folder.join("small.ext4");
    fs::File::create(&image)?.set_len(1 << 20)?;
    quietly(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-O", "^has_journal"]).arg(&image))?;
    let source = |name: &str| root().join("tests/files").join(name);
    let library = folder.join("libevil.so");
    quietly(
        Command::new("gcc")
            .args(["-shared", "-fPIC", "-Wl,-soname,libevil.so", "-o"])
            .arg(&library)
            .arg(source("evil.c")),
    )?;
    quietly(
        Command::new("gcc")
            .arg("-o")
            .arg(folder.join("needs_evil"))
            .arg(source("needs_evil.c"))
            .arg(&library),
    )?;
    Ok(())
}

/// A filesystem that can have files with fs-verity, which some kernels want the page's size for.
fn fsverity_image(image: &Path) -> Result<()> {
    let options = ["-q", "-b", "4096", "-O", "verity,^has_journal"];
    quietly(command("/sbin/mkfs.ext4", options).arg(image).arg("4M")).map(drop)
}

/// An image that the kernel can verify as it is read, with its hashes and its root hash.
fn verified_image(built: &Built, folder: &Path) -> Result<()> {
    let content = folder.join("content");
    fs::create_dir_all(&content)?;
    let (image, hashes) = (folder.join("image"), folder.join("hashes"));
    let program = content.join("program");
    quietly(Command::new(&built.guest).args(["write-program", "23", "verified"]).arg(program))?;
    quietly(
        command("/sbin/mkfs.ext4", ["-q", "-b", "4096", "-O", "^has_journal", "-d"])
            .arg(&content)
            .arg(&image)
            .arg("2M"),
    )?;
    let output = quietly(
        command("/sbin/veritysetup", ["format", "--hash", "sha256"]).arg(&image).arg(&hashes),
    )?;
    let text = String::from_utf8(output.stdout)?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| format!("veritysetup names no {name}"))
    };
    // What the guest makes the device from.
    fs::write(folder.join("root"), value("Root hash:")?)?;
    fs::write(folder.join("salt"), value("Salt:")?)?;
    Ok(())
}

fn batches<'a>(built: &Built, kernels: &'a [Kernel], args: &Args) -> Result<Vec<Batch<'a>>> {
    let only = &args.only;
    let list = text_of(Command::new(&built.guest).arg("list"))?;
    let mut all: Vec<(&str, &str, &str)> = list
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once('\t')?;
            let (machine, kernels) = rest.split_once('\t')?;
            Some((name, machine, kernels))
        })
        .collect();
    ensure!(!all.is_empty(), "the guest program lists no scenario");
    all.push((POWER_CUTS, "power,once", "usual"));
    all.push((TWO_MACHINES, "two,once", "usual"));
    for name in only {
        ensure!(
            all.iter().any(|(known, ..)| known == name),
            "no scenario {name}; there are:\n{list}"
        );
    }
    all.retain(|(name, ..)| only.is_empty() || only.iter().any(|wanted| wanted == name));
    // Those with the same needs together.
    all.sort_by_key(|(_, machine, _)| *machine);
    let mut batches = Vec::new();
    for kernel in kernels {
        let runs = |machine: &str, where_from: &str| {
            let flags = machine.split(';').next().unwrap_or_default();
            let has = |wanted: &str| flags.split(',').any(|flag| flag == wanted);
            let is_for_old = has("old");
            // What does not depend on the kernel is tried on one of those that are the default.
            let is_the_one = SERIES.last().is_some_and(|last| *last == kernel.name);
            if has("once") && args.kernel.is_empty() && !is_the_one {
                return false;
            }
            match (kernel.is_old(), is_for_old) {
                (false, is_for_old) => !is_for_old,
                // Everything, if this kernel was asked for.
                (true, is_for_old) => is_for_old || where_from == "all" || !args.kernel.is_empty(),
            }
        };
        let on_kernel: Vec<_> =
            all.iter().copied().filter(|(_, machine, kernels)| runs(machine, kernels)).collect();
        for same in on_kernel.chunk_by(|(_, a, _), (_, b, _)| a == b) {
            for few in same.chunks(BATCH) {
                batches.push(Batch {
                    kernel,
                    machine: same[0].1.to_owned(),
                    names: few.iter().map(|(name, ..)| (*name).to_owned()).collect(),
                });
            }
        }
    }
    Ok(batches)
}

/// Cuts the power of a few machines.
fn power_cuts(built: &Built, kernel: &Kernel) -> Result<()> {
    /// A run by hand has more: `cargo xtask power-cuts`.
    const CUTS: u64 = 2;
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    power::cuts(kernel, built, kernel.needs(), CUTS, seed, |_| {})
}

/// Runs what has machines of its own, if this is its name, and returns how many scenarios failed.
fn run_special(built: &Built, kernel: &Kernel, name: &str) -> Option<usize> {
    let start = Instant::now();
    let done = match name {
        POWER_CUTS => power_cuts(built, kernel),
        TWO_MACHINES => two_machines::on_one_network(kernel, built, kernel.needs(), &|_| {}),
        _ => return None,
    };
    let seconds = start.elapsed().as_secs_f32();
    let shown = match &done {
        Ok(()) => format!("   {:>6} ok     {name} ({seconds:.1} s)\n", kernel.name),
        Err(error) => format!("   {:>6} FAILED {name}: {error:#}\n", kernel.name),
    };
    let _ = std::io::stdout().write_all(shown.as_bytes());
    Some(usize::from(done.is_err()))
}

/// Runs one machine, once more if it was frozen, and returns how many scenarios failed.
fn run_batch(built: &Built, files: &Files, batch: &Batch<'_>) -> usize {
    let Batch { kernel, machine, names } = batch;
    if let Some(failed) = names.first().and_then(|name| run_special(built, kernel, name)) {
        return failed;
    }
    let mut names = names.clone();
    for last_attempt in [false, true] {
        let batch = Batch { kernel, machine: machine.clone(), names };
        match run_machine(built, files, &batch) {
            Outcome::Done(failed) => return failed,
            Outcome::Frozen(left) => names = left,
        }
        let what = if last_attempt {
            "FAILED the emulator froze again"
        } else {
            "NOTE   the emulator froze without a word; once more"
        };
        let shown = format!("   {:>6} {what}: {names:?}\n", kernel.name);
        let _ = std::io::stdout().write_all(shown.as_bytes());
    }
    names.len().max(1)
}

/// How a machine came out.
enum Outcome {
    /// So many scenarios failed.
    Done(usize),
    /// It froze, before any failed, and these have not passed.
    Frozen(Vec<String>),
}

/// Runs one machine and says how each scenario came out.
fn run_machine(built: &Built, files: &Files, batch: &Batch<'_>) -> Outcome {
    let Batch { kernel, machine, names } = batch;
    let mut console = String::new();
    let mut passed = Vec::new();
    let ended = boot(built, files, batch, |line| {
        if line.starts_with("@@alive ") {
            return;
        }
        console.push_str(line);
        console.push('\n');
        // What a scenario wants to be seen although it passed.
        if let Some(note) = line.strip_prefix("@@note ") {
            let shown = format!("   {:>6} NOTE   {note}\n", kernel.name);
            let _ = std::io::stdout().write_all(shown.as_bytes());
        }
        let words: Vec<_> = line.split(' ').collect();
        if let ["@@scenario", name, outcome, seconds] = words[..] {
            // One write, as several machines talk at the same time.
            let shown = format!("   {:>6} {outcome:<6} {name} ({seconds} s)\n", kernel.name);
            let _ = std::io::stdout().write_all(shown.as_bytes());
            if outcome == "ok" {
                passed.push(name.to_owned());
            }
        }
    });
    let failed: Vec<_> = names.iter().filter(|name| !passed.contains(name)).collect();
    if failed.is_empty() && matches!(ended, Ok(Ended::Exited(0))) {
        return Outcome::Done(0);
    }
    let kept = keep_console(kernel, names, &console);
    let why = match ended {
        Ok(Ended::Silent) if !has_failed(&console) => {
            return Outcome::Frozen(failed.into_iter().cloned().collect());
        }
        Ok(Ended::Silent) => "; the machine says nothing any more".into(),
        Ok(Ended::Exited(_)) => String::new(),
        Ok(Ended::Cut) => "; it has lost its power".into(),
        Ok(Ended::Lost(why)) => format!("; the machine was lost: {why}"),
        Err(error) => format!("; the machine did not run: {error:#}"),
    };
    let tail: String = failed.iter().map(|name| said_by(name, &console)).collect();
    let shown = format!(
        "   {:>6} FAILED {failed:?} on machine {machine:?}{why}; console: {kept}\n{tail}",
        kernel.name
    );
    let _ = std::io::stdout().write_all(shown.as_bytes());
    Outcome::Done(failed.len().max(1))
}

fn has_failed(console: &str) -> bool {
    let failed = |line: &str| line.starts_with("@@scenario ") && line.contains(" failed ");
    console.lines().any(failed)
}

/// The last that a scenario said, for whoever has only this output. A hang is told with every process.
fn said_by(name: &str, console: &str) -> String {
    const SHOWN: usize = 100;
    let (first, last) = (format!("scenario {name}"), format!("@@scenario {name} "));
    let from = console.lines().skip_while(|line| *line != first);
    let mut lines: Vec<_> = from.take_while(|line| !line.starts_with(&last)).collect();
    if lines.is_empty() {
        lines = console.lines().collect();
    }
    let shown = &lines[lines.len().saturating_sub(SHOWN)..];
    shown.iter().map(|line| format!("      | {line}\n")).collect()
}

fn boot(built: &Built, files: &Files, batch: &Batch<'_>, show: impl FnMut(&str)) -> Result<Ended> {
    let (flags, append) = batch.machine.split_once(';').unwrap_or_default();
    let mut words: Vec<String> = ["portcullis-guest", "scenario"].map(str::to_owned).into();
    words.extend(batch.names.iter().cloned());
    let mut vm = Vm::new(batch.kernel, built, &words);
    vm.files = Some(&files.usual);
    for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
        match flag {
            "smp2" => vm.smp = 2,
            "old" | "once" => {}
            "usb" => vm.usb_stick = true,
            "share" => vm.share = true,
            "xfs" => vm.xfs_disk = true,
            "serial" => vm.serial_line = true,
            "debian" => vm.rootfs = Rootfs::Debian,
            "packages" => vm.files = Some(&files.packages),
            other => bail!("a machine with {other} is not known"),
        }
    }
    // A word that comes later wins.
    // The log has room for what every task does, which is told of a scenario that hangs.
    let append = format!("log_buf_len=2M {} {append}", batch.kernel.needs());
    vm.append = &append;
    vm.timeout = TIMEOUT;
    vm.silence = SILENCE;
    vm.run(show)
}

fn keep_console(kernel: &Kernel, names: &[String], console: &str) -> String {
    let first = names.first().map_or("none", String::as_str);
    let keep = || -> Result<PathBuf> {
        let folder = build::work_dir()?.join("consoles");
        fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{}-{first}.log", kernel.name));
        fs::write(&path, console)?;
        Ok(path)
    };
    keep().map_or_else(
        |error| format!("could not be kept: {error:#}"),
        |path| path.display().to_string(),
    )
}
