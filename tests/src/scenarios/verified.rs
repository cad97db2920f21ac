//! Filesystems that the kernel verifies as they are read, and that a policy trusts by root hash.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, mount},
    process::Signal,
};
use serde_json::Value;

use super::{base_policy, fresh, sha256, unmount_soon};
use crate::{
    agent::{Agent, PATIENCE, Policy, expect, json, text},
    attack::{Attempt, EVIL, GOOD, evil, exec_path, good, is_old_kernel, note},
    dm::{Mapped, Table},
    events,
    mapping::{MapFlags, Mapping, ProtFlags},
    twofaced::TwoFaced,
};

const SECTOR: u64 = 512;

/// The image that the host has made, on devices of this machine.
struct Image {
    root: String,
    salt: String,
    sectors: u64,
    /// The file behind the image's device.
    file: PathBuf,
    data: String,
    hashes: String,
    /// A device with an image that differs in its program only, which is the attacker's.
    evil: String,
}

impl Image {
    fn new() -> Result<Self> {
        for module in ["loop", "dm_mod", "dm_verity", "overlay"] {
            Command::new("/sbin/modprobe").args(["-q", module]).status()?;
        }
        let lab = fresh("/tmp/verified")?;
        let from = Path::new("/files/verified");
        let file = lab.join("image");
        fs::copy(from.join("image"), &file)?;
        let mut content = fs::read(&file)?;
        let exits = good_program(&content)?;
        content[exits] = EVIL;
        fs::write(lab.join("evil"), &content)?;
        let text = |name: &str| fs::read_to_string(from.join(name));
        Ok(Self {
            root: text("root")?,
            salt: text("salt")?,
            sectors: content.len() as u64 / SECTOR,
            data: loop_device(&file)?,
            hashes: loop_device(&from.join("hashes"))?,
            evil: loop_device(&lab.join("evil"))?,
            file,
        })
    }

    fn table(&self, options: &str) -> Table {
        let hash = (self.root.as_str(), self.salt.as_str());
        Table::verity(self.sectors, &self.data, &self.hashes, hash, options)
    }

    /// Hands the attacker's image out. The kernel lets no other target take the place of verity,
    /// but another table of it.
    fn evil_table(&self) -> Table {
        let hash = (self.root.as_str(), self.salt.as_str());
        let options = " 1 ignore_corruption";
        Table::verity(self.sectors, &self.evil, &self.hashes, hash, options)
    }

    /// A policy that trusts it, with more lines.
    fn policy(&self, more: &str) -> Result<Policy> {
        let policy = base_policy(&[])?;
        policy.append(&format!("\n[[filesystem]]\nverity = \"{}\"\n{more}", self.root))?;
        Ok(policy)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        for device in [&self.data, &self.hashes, &self.evil] {
            let _ = Command::new("/bin/losetup").args(["-d", device]).status();
        }
    }
}

/// Where the listed program's exit code stands in the image.
fn good_program(image: &[u8]) -> Result<usize> {
    // The first instruction loads the exit code (tests/src/elf.rs); the program's salt comes after.
    let salt = image.windows(8).position(|bytes| bytes == b"verified").context("no program")?;
    let before = image[..salt].iter().rposition(|byte| *byte == GOOD);
    before.context("no exit code")
}

/// A device that is a file.
pub fn loop_device(file: &Path) -> Result<String> {
    let output = Command::new("/bin/losetup").arg("-f").output()?;
    let device = String::from_utf8(output.stdout)?.trim().to_owned();
    let status = Command::new("/bin/losetup").arg(&device).arg(file).status()?;
    ensure!(status.success(), "losetup {device} {}", file.display());
    Ok(device)
}

fn mount_at(device: &Path, at: &Path) -> Result<PathBuf> {
    fs::create_dir_all(at)?;
    mount(device, at, "ext4", MountFlags::RDONLY, None)
        .with_context(|| format!("mounting {}", device.display()))?;
    Ok(at.join("program"))
}

fn enforce(policy: &Policy) -> Result<Agent> {
    Agent::start(policy, "enforce", &["--skip-preflight"])
}

/// Whether the program on the image runs as it was made.
fn runs(program: &Path) -> Result<bool> {
    match Command::new(program).status() {
        Ok(status) => Ok(status.code() == Some(i32::from(GOOD))),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        Err(error) => Err(error).with_context(|| program.display().to_string()),
    }
}

/// The program is refused, because its content is unlisted.
fn is_refused(program: &Path, what: &str) -> Result<()> {
    let mark = events::mark()?;
    ensure!(exec_path(program)? == Attempt::Refused, "{what}: it ran");
    let event = events::wait_for(mark, what, |event| events::is_decision(event, "deny", program))?;
    ensure!(event["reason"] == "unlisted", "{what}: {event}");
    println!("  refused: {what}");
    Ok(())
}

fn health(id: &str) -> Result<Value> {
    let status = json(&["status", "--json"])?;
    let checks = status["checks"].as_array().context("checks")?;
    checks.iter().find(|check| check["id"] == id).cloned().context("no such check")
}

/// What is trusted, without being hashed, and what comes when the device appears later.
pub fn filesystem() -> Result<()> {
    let image = Image::new()?;
    let device = Mapped::new("verified", &image.table(""))?;
    let program = mount_at(&device.node(), Path::new("/mnt/verified"))?;
    let again = mount(device.node(), "/mnt", "ext4", MountFlags::empty(), None);
    ensure!(again.is_err(), "a verified device can be mounted for writing");

    let policy = image.policy("")?;
    if is_old_kernel() {
        return not_trusted(&policy, &program, device);
    }
    let in_use = {
        let code = ProtFlags::READ | ProtFlags::EXEC;
        Mapping::new(&File::open(&program)?, 4096, code, MapFlags::PRIVATE)?
    };
    // What runs from it does not keep the policy from being enforced.
    let agent = Agent::start(&policy, "enforce", &[])?;
    drop(in_use);
    let mark = events::mark()?;
    ensure!(runs(&program)?);
    let event = events::wait_for(mark, "a verified program", |event| {
        events::is_decision(event, "allow", &program)
    })?;
    ensure!(event["reason"] == "verified-filesystem", "{event}");
    ensure!(event["artifact"]["digest"].is_null() && event["rule"]["line"].is_number(), "{event}");
    ensure!(event["rule"]["kinds"][0] == "executable", "{event}");
    for _ in 0..3 {
        ensure!(runs(&program)?);
    }
    let decided = |event: &&Value| event["artifact"]["path"] == program.to_string_lossy().as_ref();
    let count = events::all()?.iter().filter(decided).count();
    ensure!(count <= 2, "{count} events for one program and its own mapping");
    ensure!(health("verified-filesystems")?["state"] == "ok");
    let output = expect(0, &["explain", text(&program)?])?;
    ensure!(String::from_utf8_lossy(&output.stdout).contains("verified filesystem"), "{output:?}");

    // Unmounted, removed, and made anew while the agent runs.
    unmount_soon(Path::new("/mnt/verified"))?;
    device.remove()?;
    let device = Mapped::new("later", &image.table(" 1 restart_on_corruption"))?;
    let program = mount_at(&device.node(), Path::new("/mnt/verified"))?;
    let end = Instant::now() + PATIENCE;
    while !runs(&program)? {
        ensure!(Instant::now() < end, "a device that came later is not trusted");
        sleep(Duration::from_millis(20));
    }
    // The trust outlives the agent, as the gates do.
    agent.signal(Signal::KILL)?;
    ensure!(runs(&program)?, "trust has ended with the agent");

    // What a policy denies is denied here too.
    let denied = format!("\n[[deny]]\ndigest = \"{}\"\n", sha256(&program)?);
    let agent = enforce(&image.policy(&denied)?)?;
    let mark = events::mark()?;
    ensure!(!runs(&program)?, "a denied program runs from a trusted filesystem");
    events::wait_for(mark, "the denial", |event| {
        events::is_decision(event, "deny", &program) && event["reason"] == "denied"
    })?;
    agent.stop()?;
    // Kinds that are not named are judged by content.
    let agent = enforce(&image.policy("kinds = [\"library\"]\n")?)?;
    is_refused(&program, "a program on a filesystem that is trusted for libraries")?;
    ensure!(crate::attack::map_as_code(&program)? == Attempt::Ran);
    agent.stop()?;
    unmount_soon(Path::new("/mnt/verified"))?;
    device.remove()
}

/// Linux 5.10 has no place to watch devices, so that policies with a root hash are not accepted, and
/// files on the filesystem are judged by content.
fn not_trusted(policy: &Policy, program: &Path, device: Mapped) -> Result<()> {
    note("verified-filesystem", "root hashes are not trusted on this kernel");
    let output = expect(3, &["run", "--policy", text(&policy.file)?])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(said.contains("no place to watch its device") && said.lines().count() == 1, "{said}");
    let agent = enforce(&base_policy(&[])?)?;
    is_refused(program, "an unlisted program on a verified filesystem")?;
    agent.stop()?;
    let agent = enforce(&base_policy(&[program])?)?;
    ensure!(runs(program)?, "a listed program on a verified filesystem");
    agent.stop()?;
    unmount_soon(Path::new("/mnt/verified"))?;
    device.remove()
}

/// Everything that looks like the trusted filesystem and is not, or is not any more.
pub fn attacks() -> Result<()> {
    if is_old_kernel() {
        note("verified-filesystem-attacks", "root hashes are not trusted on this kernel");
        let policy = Image::new()?.policy("")?;
        return expect(3, &["run", "--policy", text(&policy.file)?]).map(drop);
    }
    let image = Image::new()?;
    let device = Mapped::new("verified", &image.table(""))?;
    let at = Path::new("/mnt/verified");
    let program = mount_at(&device.node(), at)?;

    // Without gates: a table that is exchanged changes what runs.
    device.exchange(&image.evil_table())?;
    drop_caches()?;
    ensure!(exec_path(&program)? == Attempt::Ran, "exchanging the table does not even work");
    unmount_soon(at)?;
    device.remove()?;

    let other = base_policy(&[])?;
    other.append(&format!("\n[[filesystem]]\nverity = \"{}\"\n", "5a".repeat(32)))?;
    let device = Mapped::new("verified", &image.table(""))?;
    mount_at(&device.node(), at)?;
    let agent = enforce(&other)?;
    is_refused(&program, "verified against a root hash that is not listed")?;
    agent.stop()?;

    let mut agent = enforce(&image.policy("")?)?;
    ensure!(runs(&program)?, "the trusted filesystem");

    let unverified = loop_device(Path::new("/files/verified/image"))?;
    let plain = mount_at(Path::new(&unverified), Path::new("/mnt/plain"))?;
    is_refused(&plain, "the same image without verification")?;
    unmount_soon(Path::new("/mnt/plain"))?;
    Command::new("/bin/losetup").args(["-d", &unverified]).status()?;
    fs::create_dir_all("/mnt/merged")?;
    let options = c"lowerdir=/mnt/verified:/mnt/plain";
    mount("overlay", "/mnt/merged", "overlay", MountFlags::RDONLY, Some(options))?;
    is_refused(Path::new("/mnt/merged/program"), "an overlay over it")?;
    unmount_soon(Path::new("/mnt/merged"))?;

    // Only the table changes: no hook of the filesystem is called.
    device.exchange(&image.evil_table())?;
    drop_caches()?;
    is_refused(&program, "its table exchanged under it")?;
    // What was read under the other table is still in memory.
    device.exchange(&image.table(""))?;
    is_refused(&program, "its table exchanged and put back")?;
    // The next agent knows it too.
    agent.signal(Signal::KILL)?;
    agent = enforce(&image.policy("")?)?;
    is_refused(&program, "the same after the agent was killed and started again")?;
    let check = health("verified-filesystems")?;
    ensure!(check["state"] == "warning" && check["mend"].is_string(), "{check}");

    // The number is given to another device.
    let number = device.node();
    unmount_soon(at)?;
    device.remove()?;
    let device = Mapped::at(&number, "good", &image.table(""))?;
    mount_at(&device.node(), at)?;
    let end = Instant::now() + PATIENCE;
    while !runs(&program)? {
        ensure!(Instant::now() < end, "a new device of an old number is not trusted");
        sleep(Duration::from_millis(20));
    }
    unmount_soon(at)?;
    device.remove()?;
    let device = Mapped::at(&number, "evil", &Table::linear(image.sectors, &image.evil))?;
    mount_at(&device.node(), at)?;
    is_refused(&program, "another device of the same number")?;
    unmount_soon(at)?;
    device.remove()?;
    let device = Mapped::new("first", &image.evil_table())?;
    mount_at(&device.node(), at)?;
    ensure!(exec_path(&program)? == Attempt::Refused);
    // Filled with the wrong content first, mounted when the table is right.
    device.exchange(&image.table(""))?;
    is_refused(&program, "a device that was something else first")?;
    unmount_soon(at)?;
    device.remove()?;

    agent.stop()?;
    served_on_the_device(&image, at)?;
    let agent = enforce(&image.policy("")?)?;

    let device = Mapped::new("careless", &image.table(" 1 ignore_corruption"))?;
    mount_at(&device.node(), at)?;
    sleep(Duration::from_millis(500));
    is_refused(&program, "verified with ignore_corruption")?;
    let check = health("verified-filesystems")?;
    ensure!(check["found"].as_str().is_some_and(|found| found.contains("ignore_corruption")));
    unmount_soon(at)?;
    device.remove()?;

    // A block is changed below: the kernel gives an error, and never the changed block.
    let device = Mapped::new("damaged", &image.table(""))?;
    let content = fs::read(&image.file)?;
    let file = OpenOptions::new().write(true).open(&image.file)?;
    file.write_all_at(&[EVIL], good_program(&content)? as u64)?;
    file.sync_all()?;
    drop_caches()?;
    mount_at(&device.node(), at)?;
    sleep(Duration::from_millis(500));
    match Command::new(&program).status() {
        Err(error) => println!("  a changed block: {error}"),
        Ok(status) => {
            ensure!(status.code().is_none(), "a changed block was run: {status}");
            println!("  a changed block: {status}");
        }
    }
    agent.stop()?;
    unmount_soon(at)?;
    device.remove()
}

/// The same device is mounted by FUSE, with a policy that trusts both: what a process serves is not
/// what the kernel verifies.
fn served_on_the_device(image: &Image, at: &Path) -> Result<()> {
    Command::new("/sbin/modprobe").args(["-q", "fuse"]).status()?;
    let device = Mapped::new("served", &image.table(""))?;
    let program = mount_at(&device.node(), at)?;
    let agent = enforce(&image.policy("[[filesystem]]\ntype = \"fuse\"\n")?)?;
    ensure!(runs(&program)?, "the trusted filesystem");
    unmount_soon(at)?;
    let lies = TwoFaced::mount_on(&device.node(), at, &good("blk")?, &evil("blk")?)?;
    is_refused(&program, "FUSE on the verified device")?;
    agent.stop()?;
    unmount_soon(at)?;
    lies.unmount()?;
    device.remove()
}

fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    Ok(fs::write("/proc/sys/vm/drop_caches", "3")?)
}
