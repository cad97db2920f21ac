//! Memory that becomes executable after it was mapped.

use std::{
    ffi::c_void,
    fs::{self, File, OpenOptions},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    io::Errno,
    mm::{MprotectFlags, mmap_anonymous, mprotect},
};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, Policy, expect},
    attack::{self, Attack, Attempt, evil, good, install, map_as_code},
    events,
    mapping::{MapFlags, Mapping, ProtFlags},
};

/// This program, which policies mark or do not mark.
const OWN: &str = "/usr/bin/portcullis-guest";
const LENGTH: usize = 4096;

/// A12: a mapping of a file that is made executable follows the verdict of the file, and is refused
/// where there is none.
pub fn of_files() -> Result<()> {
    let lab = fresh("/data/protection")?;
    let file = lab.join("evil");
    let listed = lab.join("listed");
    install(&listed, &good("protection")?)?;
    let policy = base_policy(&[])?;
    list(&policy, &listed, &["library"])?;
    // A new file for each attempt: what was judged once is known.
    let anew = || -> Result<&Path> {
        install(&file, &evil("protection")?)?;
        Ok(&file)
    };

    let later = || protect(&mapped(anew()?, ProtFlags::READ)?, read_exec());
    let key = || {
        let mapping = mapped(anew()?, ProtFlags::READ)?;
        // SAFETY: of a mapping that is ours; -1 is no key, as with mprotect.
        let done =
            unsafe { libc::syscall(libc::SYS_pkey_mprotect, mapping.address(), LENGTH, 5, -1) };
        answer(if done == 0 { Ok(()) } else { Err(last_error()) })
    };
    let shared = || {
        let opened = File::open(anew()?)?;
        let mapping = Mapping::new(&opened, LENGTH, ProtFlags::READ, MapFlags::SHARED)?;
        protect(&mapping, read_exec())
    };
    let implied = || in_child("protect-for-reading", anew()?);
    let remapped = || in_child("remap-for-reading", anew()?);
    let known_evil = || {
        // Judged, and so known, but not allowed.
        let _ = map_as_code(anew()?)?;
        protect(&mapped(&file, ProtFlags::READ)?, read_exec())
    };
    let while_open = || {
        // A verdict that was right when it was made.
        install(&listed, &good("protection")?)?;
        ensure!(map_as_code(&listed)? == Attempt::Ran, "the listed library cannot be mapped");
        let mapping = mapped(&listed, ProtFlags::READ)?;
        let _writer = OpenOptions::new().write(true).open(&listed)?;
        protect(&mapping, read_exec())
    };
    // On Linux 5.10 the agent hashes what is opened in a folder of listed libraries, as here.
    let reason = if attack::is_old_kernel() { "unlisted" } else { "not-appraised" };
    let not_appraised = &[reason];
    let with_reasons =
        |name: &str, attempt, reasons| Attack { name: name.into(), attempt, reasons };
    let mut attacks = vec![
        with_reasons("mprotect of an unlisted file", &later, not_appraised),
        with_reasons("pkey_mprotect of an unlisted file", &key, not_appraised),
        with_reasons("mprotect of a shared mapping", &shared, not_appraised),
        with_reasons("mprotect to reading with READ_IMPLIES_EXEC", &implied, not_appraised),
        with_reasons("mprotect of a file that is known and unlisted", &known_evil, &["unlisted"]),
        with_reasons(
            "mprotect of a file that is open for writing",
            &while_open,
            &["being-written"],
        ),
    ];
    // Linux 5.10 asks nobody about this call (L22).
    if !attack::is_old_kernel() {
        let name = "remap_file_pages with READ_IMPLIES_EXEC";
        attacks.push(with_reasons(name, &remapped, &["being-written"]));
    }
    attack::run(&policy, &attacks)?;

    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    if attack::is_old_kernel() {
        ensure!(remapped()? == Attempt::Ran, "L22 is closed: take it out of docs/limits.md");
        attack::note("memory-protection", "remap_file_pages asks nobody on this kernel (L22)");
    }
    install(&listed, &good("protection")?)?;
    ensure!(map_as_code(&listed)? == Attempt::Ran);
    let attempt = protect(&mapped(&listed, ProtFlags::READ)?, read_exec())?;
    ensure!(attempt == Attempt::Ran, "a judged and listed library was refused");
    // What was made executable by a listed mapping stays so whatever is done to it in between.
    let mapping = mapped(&listed, ProtFlags::READ | ProtFlags::EXEC)?;
    ensure!(protect(&mapping, MprotectFlags::READ)? == Attempt::Ran);
    ensure!(protect(&mapping, read_exec())? == Attempt::Ran);
    // The event of a refusal names the file although the hook gives no path.
    let mark = events::mark()?;
    ensure!(later()? == Attempt::Refused);
    let event = events::wait_for(mark, "the refusal", |event| event["reason"] == reason)?;
    ensure!(event["gate"] == "memory" && event["artifact"]["inode"].as_u64() > Some(0), "{event}");
    agent.stop()
}

/// A12: executable memory that holds no file's content is reported, refused or allowed, as the
/// policy chooses; programs that are marked may always have it.
pub fn of_no_file() -> Result<()> {
    let lab = fresh("/data/protection")?;
    let listed = lab.join("listed");
    install(&listed, &good("protection")?)?;
    let policy = |choice: &str| -> Result<Policy> {
        let policy = base_policy(&[])?;
        list(&policy, &listed, &["library"])?;
        let text = fs::read_to_string(&policy.file)?;
        fs::write(&policy.file, format!("anonymous_memory = \"{choice}\"\n{text}"))?;
        Ok(policy)
    };

    let at_once = || {
        let all = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        anonymous(all).map(|made| if made.is_some() { Attempt::Ran } else { Attempt::Refused })
    };
    let later = || {
        let memory = anonymous(ProtFlags::READ | ProtFlags::WRITE)?.context("plain memory")?;
        // SAFETY: of a mapping that is ours.
        answer(unsafe { mprotect(memory, LENGTH, read_exec()) })
    };
    let changed = || {
        let mut mapping = mapped(&listed, ProtFlags::READ | ProtFlags::WRITE)?;
        ensure!(map_as_code(&listed)? == Attempt::Ran);
        mapping.write_at(0, &evil("written over a private mapping")?);
        protect(&mapping, read_exec())
    };
    let made_writable = || {
        let mapping = mapped(&listed, read_exec_mapping())?;
        protect(&mapping, MprotectFlags::READ | MprotectFlags::WRITE | MprotectFlags::EXEC)
    };
    type Tried<'t> = (&'static str, &'t dyn Fn() -> Result<Attempt>, &'static [&'static str]);
    let attacks: [Tried<'_>; 4] = [
        ("anonymous memory, writable and executable", &at_once, &["anonymous-memory"]),
        ("anonymous memory, executable later", &later, &["anonymous-memory"]),
        ("a listed file's private mapping, changed", &changed, &["changed-mapping"]),
        ("a listed file's private mapping, made writable", &made_writable, &["changed-mapping"]),
    ];

    // Without an agent too.
    let (name, attempt, reasons) = attacks[1];
    attack::run(&policy("deny")?, &[Attack { name: name.into(), attempt, reasons }])?;

    println!(" reported");
    let told = || -> Result<usize> {
        Ok(events::all()?.iter().filter(|event| event["outcome"] == "report").count())
    };
    let before = told()?;
    let agent = Agent::start(&policy("report")?, "enforce", &["--skip-preflight"])?;
    let mark = events::mark()?;
    for (name, attempt, _) in attacks {
        ensure!(attempt()? == Attempt::Ran, "{name}: refused although it should be reported only");
    }
    let event = events::wait_for(mark, "executable memory", |event| event["outcome"] == "report")?;
    ensure!(
        event["gate"] == "memory"
            && event["artifact"]["path"] == OWN
            && event["wanted"] == serde_json::json!(["jit"]),
        "{event}"
    );

    println!(" refused");
    policy("deny")?;
    expect(0, &["policy", "reload"])?;
    for (name, attempt, reasons) in attacks {
        let mark = events::mark()?;
        ensure!(attempt()? == Attempt::Refused, "{name}: it worked in enforce mode");
        events::wait_for(mark, name, |event| {
            event["outcome"] == "deny" && reasons.iter().any(|reason| event["reason"] == *reason)
        })?;
    }
    let told = told()? - before;
    ensure!(told == 1, "a program that does it again and again was told of {told} times");
    // In audit mode a program is told of once under each policy.
    expect(0, &["mode", "audit"])?;
    expect(0, &["policy", "reload"])?;
    let (name, attempt, reasons) = attacks[2];
    let mark = events::mark()?;
    ensure!(attempt()? == Attempt::Ran, "{name}: audit mode has stopped it");
    events::wait_for(mark, name, |event| {
        event["outcome"] == "would-deny" && reasons.iter().any(|reason| event["reason"] == *reason)
    })?;
    // What has just run is refused by decision.
    expect(0, &["mode", "enforce", "--skip-preflight"])?;

    println!(" allowed, to all and to marked programs");
    for (choice, marked) in [("allow", false), ("deny", true)] {
        let policy = policy(choice)?;
        if marked {
            list(&policy, Path::new(OWN), &["jit"])?;
        }
        expect(0, &["policy", "reload"])?;
        let before = row()?;
        // A mark is noticed when a program is started.
        for what in ["anonymous-memory", "plain"] {
            let status = Command::new(OWN).args(["executable-memory", what]).status()?;
            ensure!(status.code() == Some(i32::from(attack::EVIL)), "{choice}, {what}: {status}");
        }
        let row = row()?;
        for number in ["denied", "reported"] {
            ensure!(row[number] == before[number], "{choice}: {row} after {before}");
        }
    }
    agent.stop()
}

/// The memory gate's numbers.
fn row() -> Result<serde_json::Value> {
    let status = crate::agent::json(&["status", "--json"])?;
    let rows = status["gates"].as_array().context("gates")?;
    Ok(rows.iter().find(|row| row["gate"] == "memory").context("the memory gate")?.clone())
}

/// For a child with a mark: asks for executable memory, and exits like the attacker's program if it
/// gets it.
pub fn executable_memory(what: &str) -> Result<u8> {
    let first = if what == "plain" {
        ProtFlags::READ | ProtFlags::WRITE
    } else {
        ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC
    };
    let Some(memory) = anonymous(first)? else { return Ok(126) };
    // SAFETY: of a mapping that is ours.
    let attempt = answer(unsafe { mprotect(memory, LENGTH, read_exec()) })?;
    Ok(if attempt == Attempt::Ran { attack::EVIL } else { 126 })
}

/// For a child in which reading means executing too: makes a mapping readable.
pub fn protect_for_reading(path: &Path) -> Result<u8> {
    let mapping = mapped(path, ProtFlags::empty())?;
    reading_implies_executing();
    let attempt = protect(&mapping, MprotectFlags::READ)?;
    Ok(if attempt == Attempt::Ran { attack::EVIL } else { 126 })
}

/// For a child in which reading means executing too: maps pages of a shared mapping anew, which the
/// kernel once did without asking anybody (mended in 6.12 and in later releases of 6.1).
pub fn remap_for_reading(path: &Path) -> Result<u8> {
    // Only a mapping that could be written counts as shared, which the call wants.
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mapping = Mapping::new(&file, LENGTH, ProtFlags::READ, MapFlags::SHARED)?;
    reading_implies_executing();
    // SAFETY: of a mapping that is ours and that nobody reads.
    let done = unsafe { libc::remap_file_pages(mapping.address(), LENGTH, 0, 0, 0) };
    let attempt = answer(if done == 0 { Ok(()) } else { Err(last_error()) })?;
    if attempt == Attempt::Refused {
        return Ok(126);
    }
    let maps = fs::read_to_string("/proc/self/maps")?;
    let start = format!("{:x}-", mapping.address() as usize);
    let line = maps.lines().find(|line| line.starts_with(&start)).context("the mapping")?;
    let is_code = line.split(' ').nth(1).is_some_and(|rights| rights.contains('x'));
    Ok(if is_code { attack::EVIL } else { 126 })
}

fn reading_implies_executing() {
    const READ_IMPLIES_EXEC: libc::c_ulong = 0x040_0000;
    // SAFETY: changes how this process maps from now on, and nothing else.
    unsafe { libc::personality(READ_IMPLIES_EXEC) };
}

fn in_child(verb: &str, path: &Path) -> Result<Attempt> {
    attack::exec(Command::new(OWN).arg(verb).arg(path))
}

fn mapped(path: &Path, prot: ProtFlags) -> Result<Mapping> {
    Ok(Mapping::new(&File::open(path)?, LENGTH, prot, MapFlags::PRIVATE)?)
}

fn read_exec() -> MprotectFlags {
    MprotectFlags::READ | MprotectFlags::EXEC
}

fn read_exec_mapping() -> ProtFlags {
    ProtFlags::READ | ProtFlags::EXEC
}

fn protect(mapping: &Mapping, flags: MprotectFlags) -> Result<Attempt> {
    // SAFETY: of a mapping that is ours and that nobody reads.
    answer(unsafe { mprotect(mapping.address(), LENGTH, flags) })
}

/// New memory without a file, or none if it is refused. It goes with the process.
fn anonymous(prot: ProtFlags) -> Result<Option<*mut c_void>> {
    // SAFETY: at an address that the kernel chooses.
    match unsafe { mmap_anonymous(std::ptr::null_mut(), LENGTH, prot, MapFlags::PRIVATE) } {
        Ok(memory) => Ok(Some(memory)),
        Err(Errno::PERM) => Ok(None),
        Err(error) => Err(error).context("memory"),
    }
}

fn answer(done: Result<(), Errno>) -> Result<Attempt> {
    match done {
        Ok(()) => Ok(Attempt::Ran),
        Err(Errno::PERM) => Ok(Attempt::Refused),
        Err(error) => bail!("protecting memory: {error}"),
    }
}

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
