//! The scenarios. Each proves one thing on a real kernel, from nothing to nothing: it starts the
//! agent that it needs and leaves no gates behind.

mod appraised;
mod attacks_change;
mod attacks_device;
mod attacks_exec;
mod attacks_kernel;
mod attacks_library;
mod attacks_memory;
mod attacks_overlay;
mod attacks_pinned;
mod attacks_protection;
mod attacks_served;
mod attacks_write;
mod attacks_writer;
mod bad_input;
mod bounded;
mod bundles;
mod bundles_at_start;
mod bundles_efi;
mod bundles_network;
mod catalogs;
mod catalogs_hostile;
mod churn;
mod commissioning;
pub mod confined;
mod events_broken_disk;
mod events_cut;
mod events_received;
mod events_stream;
mod execve_check;
mod fleet;
mod fleet_catalogs;
mod fsverity;
mod interpreters;
mod kernel_checks;
mod life;
mod limits;
mod memory_limit;
mod metrics;
mod package;
mod package_network;
mod policy_size;
pub mod read_apart;
mod reappraisal;
mod receivers;
mod scan;
mod shield;
mod shield_bpf;
mod signatures;
mod soak;
mod soak_debian;
pub mod two_machines;
mod two_processors;
mod usb;
mod usb_plugged;
mod usb_storm;
mod verified;
mod victim;
mod watchdog;

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::agent::{PATIENCE, Policy, text};

pub use attacks_memory::map_for_reading;
pub use attacks_protection::{executable_memory, protect_for_reading, remap_for_reading};
pub use bounded::{answer, by_hand as fork_bomb, start_refused};
pub use bundles::kill_pushes;
pub use bundles_efi::efi_mark;
pub use churn::million;
pub use events_cut::by_hand as network_cut;
pub use policy_size::many;

/// A scenario.
pub struct Scenario {
    /// Its name, for `cargo xtask test --only NAME`.
    pub name: &'static str,
    /// What the machine must be like; scenarios with the same needs share a boot.
    pub machine: &'static str,
    /// What it proves.
    pub run: fn() -> Result<()>,
}

/// That this device has enforced before: each scenario begins with a new device.
const ENFORCED: &str = "/var/lib/portcullis/enforced.json";

/// The usual machine: nothing on the kernel's command line.
const USUAL: &str = "";

const fn usual(name: &'static str, run: fn() -> Result<()>) -> Scenario {
    Scenario { name, machine: USUAL, run }
}

/// What the agent does with what it reads, whatever the kernel is.
const fn once(name: &'static str, run: fn() -> Result<()>) -> Scenario {
    on("once;", name, run)
}

const fn on(machine: &'static str, name: &'static str, run: fn() -> Result<()>) -> Scenario {
    Scenario { name, machine, run }
}

/// Every scenario. A machine is described as `FLAG,FLAG;KERNEL COMMAND LINE`, where the flags are
/// `smp2` (two processors), `usb` (a stick with an ext4 filesystem, and the host plugs in more when a
/// line says `@@plug NAME`), `share` (a folder of the host as 9p), `xfs` (a second disk), `serial` (the
/// second and third serial ports are one line), `debian` (a Debian userland instead of the small one),
/// `old` (only on a kernel whose gates cannot hash) and `once` (by default on the newest of the usual
/// kernels only).
pub const ALL: &[Scenario] = &[
    usual("exec-unlisted", attacks_exec::unlisted),
    usual("exec-through-loader", attacks_exec::loader),
    usual("exec-from-memory", attacks_exec::memory),
    usual("exec-by-content-only", attacks_exec::content_only),
    usual("exec-scripts", attacks_exec::scripts),
    usual("interpreter-scripts", interpreters::by_name),
    usual("interpreter-ordinary-use", interpreters::ordinary_use),
    usual("exec-while-hashing", attacks_exec::while_hashing),
    usual("exec-kinds", attacks_exec::kinds),
    usual("execve-check", execve_check::honoured),
    on("usb,share;", "exec-from-usb-stick", attacks_exec::usb_stick),
    usual("served-by-fuse", attacks_served::fuse),
    on("usb,share;", "served-by-host", attacks_served::shared_by_host),
    usual("library-unlisted", attacks_library::unlisted),
    on("old;", "appraised-by-agent", appraised::by_agent),
    usual("change-after-verdict", attacks_change::after_verdict),
    usual("change-while-open", attacks_change::while_open),
    on("smp2;", "change-races-with-hash", attacks_change::races_with_hash),
    on("smp2;", "first-use-at-once", two_processors::first_use),
    on("once,smp2;", "switch-on-two-processors", two_processors::switch),
    usual("change-by-any-call", attacks_write::calls),
    usual("change-by-held-writer", attacks_writer::held),
    usual("change-of-identity", attacks_writer::identity),
    on("xfs;", "change-by-clone", attacks_writer::clones),
    usual("change-of-held-pages", attacks_pinned::held_pages),
    once("churn", churn::scenario),
    once("catalogs", catalogs::join_and_leave),
    once("catalogs-taken-back", catalogs::taken_back),
    once("catalogs-bounds", catalogs::bounds),
    once("catalogs-new-key", catalogs::new_key),
    once("policy-reload", catalogs::reload),
    once("catalogs-and-time", catalogs::time),
    once("catalogs-hostile", catalogs_hostile::refused),
    once("policy-push", bundles::life),
    once("policy-push-refused", bundles::refused),
    once("policy-push-killed", bundles::killed),
    once("policy-falls-back", bundles_at_start::falls_back),
    once("policy-push-network", bundles_network::pushed),
    once("confined-by-itself", confined::by_itself),
    usual("policies-read-apart", read_apart::scenario),
    usual("signatures", signatures::first_sight),
    usual("signatures-fs-verity", signatures::verity),
    once("signatures-rejected", signatures::rejected),
    once("signatures-revoked", signatures::revoked),
    usual("signatures-modules", signatures::modules),
    usual("memory-files", attacks_memory::files),
    usual("memory-mappings", attacks_memory::mappings),
    usual("verified-filesystem", verified::filesystem),
    usual("fs-verity", fsverity::by_digest),
    usual("verified-filesystem-attacks", verified::attacks),
    usual("reappraisal", reappraisal::notices),
    usual("memory-protection", attacks_protection::of_files),
    usual("memory-without-file", attacks_protection::of_no_file),
    usual("kernel-modules", attacks_kernel::modules),
    usual("kernel-intake", attacks_kernel::others),
    usual("overlay", attacks_overlay::behind),
    usual("overlay-kept-descriptor", attacks_overlay::kept_descriptor),
    usual("usb-held", usb::held),
    usual("usb-guarded", usb::guarded),
    once("usb-storm", usb_storm::storm),
    once("usb-overflow", usb_storm::overflow),
    on("usb,once;usbcore.authorized_default=0", "usb-plugged", usb_plugged::plugged),
    usual("mounted-devices", attacks_device::mounted),
    once("events-flood", events_stream::flood),
    once("events-schema", events_stream::schema),
    once("events-full-disk", events_stream::full_disk),
    once("events-broken-disk", events_broken_disk::goes_on),
    usual("agent-ends", life::ends),
    usual("agent-restart-without-gap", life::restart_without_gap),
    usual("shield", shield::attacked),
    once("agent-refuses-to-brick", life::refuses_to_brick),
    once("agent-footprint", life::footprint),
    once("memory-limit", memory_limit::told_and_reached),
    once("agent-requests", life::requests),
    once("faults", crate::faults::scenario),
    once("bad-input", bad_input::bad_input),
    once("explain", bad_input::explain),
    on("serial,once;", "console-serial", bad_input::serial_line),
    once("policy-100000-digests", policy_size::hundred_thousand),
    once("scan", scan::scan),
    usual("known-limits", limits::known),
    on("once,smp2;", "audit-soak", soak::audit),
    on("debian;", "audit-soak-debian", soak_debian::audit),
    on("debian,once;", "events-received", events_received::received_by_all),
    on("debian,once;", "events-cut", events_cut::cut),
    on("debian,once;", "commissioning", commissioning::from_nothing),
    on("debian,packages,once;", "package", package::life),
    on("debian,packages,once;", "fleet", fleet::through_servers),
    usual("doctor", kernel_checks::good_kernel),
    on(";lsm=lockdown,yama,apparmor", "doctor-without-bpf-lsm", kernel_checks::without_bpf_lsm),
    on(";ima_hash=sha1", "doctor-with-sha1", kernel_checks::with_sha1),
    on(";lockdown=confidentiality", "lockdown", kernel_checks::locked_down),
];

/// What is also run by default on a kernel whose gates cannot hash.
pub const ALSO_OLD: &[&str] = &[
    "signatures",
    "exec-unlisted",
    "library-unlisted",
    "change-after-verdict",
    "agent-ends",
    "agent-restart-without-gap",
    "shield",
];

/// Runs the named scenarios one after the other and says how each came out.
pub fn run(names: &[&str]) -> ExitCode {
    let mut failed = false;
    for name in names {
        let Some(scenario) = ALL.iter().find(|scenario| scenario.name == *name) else {
            println!("no scenario {name}");
            failed = true;
            continue;
        };
        let start = Instant::now();
        println!("scenario {name}");
        let watched = watchdog::Watchdog::start(name);
        let done = (scenario.run)().and_then(|()| leaves_nothing());
        drop(watched);
        let seconds = start.elapsed().as_secs_f32();
        match done {
            Ok(()) => println!("@@scenario {name} ok {seconds:.1}"),
            Err(error) => {
                println!("{error:?}");
                tell_refusals();
                println!("@@scenario {name} failed {seconds:.1}");
                failed = true;
                // For those that come after it in this boot.
                let _ = Command::new("portcullis").arg("stop").status();
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// What was refused last, for whoever looks for the cause of a failure.
fn tell_refusals() {
    const SHOWN: usize = 5;
    let Ok(records) = crate::events::all() else { return };
    let refusals: Vec<_> = records.iter().filter(|record| record["outcome"] == "deny").collect();
    for record in &refusals[refusals.len().saturating_sub(SHOWN)..] {
        println!("told: {}", record["text"].as_str().unwrap_or_default());
    }
}

fn leaves_nothing() -> Result<()> {
    let pins = fs::read_dir("/sys/fs/bpf/portcullis").map_or(0, Iterator::count);
    ensure!(pins == 0, "gates are left in /sys/fs/bpf/portcullis");
    let _ = fs::remove_file(crate::events::FILE);
    // A bundle in force would be the next agent's policy, and what ran here is no matter of its.
    let _ = fs::remove_dir_all(bundles::KEPT);
    let _ = fs::remove_file(bundles::DEVICE);
    let _ = fs::remove_file(commissioning::KEPT);
    let _ = fs::remove_file(ENFORCED);
    Ok(())
}

/// A folder that is empty.
pub fn fresh(path: &str) -> Result<&Path> {
    let folder = Path::new(path);
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    Ok(folder)
}

/// Unmounts a filesystem that may be busy for a moment: on Linux 5.10 because the agent watches what is
/// mounted, and hashes files on it, elsewhere because it looks at the process that ran from there.
fn unmount_soon(at: &Path) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match unmount(at, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < end => {
                sleep(Duration::from_millis(20));
            }
            done => return done.with_context(|| format!("unmounting {}", at.display())),
        }
    }
}

/// Loads a module, if it is not loaded or built in.
fn modprobe(module: &str) -> Result<()> {
    let status = Command::new("/sbin/modprobe").args(["-q", module]).status()?;
    ensure!(status.success(), "modprobe {module}: {status}");
    Ok(())
}

/// A policy that lists the machine's own files, and the extra ones.
pub fn base_policy(listed: &[&Path]) -> Result<Policy> {
    const SCANNED: &str = "/run/base";
    let base = Path::new(SCANNED);
    if !base.join("policy.toml").exists() {
        // Not /files, where the attacker's things are.
        Policy::of(base, &["/usr"])?;
    }
    let folder = fresh("/run/policy")?;
    for name in ["base.manifest", "policy.toml"] {
        fs::copy(base.join(name), folder.join(name))?;
    }
    let policy = Policy { file: folder.join("policy.toml") };
    for path in listed {
        list(&policy, path, &["executable"])?;
    }
    Ok(policy)
}

/// Lists a file's present content in a policy.
pub fn list(policy: &Policy, path: &Path, kinds: &[&str]) -> Result<()> {
    let digest = sha256(path)?;
    policy.append(&format!(
        "\n[[allow]]\ndigest = \"{digest}\"\nkinds = {kinds:?}\npath = {:?}\n",
        text(path)?
    ))
}

/// What `sha256sum` says of a file.
pub fn sha256(path: &Path) -> Result<String> {
    let output = Command::new("/usr/bin/sha256sum").arg("--").arg(path).output()?;
    ensure!(output.status.success(), "sha256sum {}", path.display());
    let text = String::from_utf8(output.stdout)?;
    Ok(text.trim_start_matches('\\').split(' ').next().unwrap_or_default().to_owned())
}
