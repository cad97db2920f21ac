//! USB devices: only listed ones come alive.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::{base_policy, fresh, unmount_soon};
use crate::{
    agent::{Agent, PATIENCE, Policy, expect, json},
    events,
    gadget::{DEVICES, Function, Gadget, prepare},
    raw,
    ring::Ring,
};

/// The stick of this serial number is listed, and nothing else.
pub(super) const LISTED: &str = "GOOD1";

pub(super) fn policy() -> Result<Policy> {
    let policy = base_policy(&[])?;
    policy.append(&format!(
        "\n[usb]\n[[usb.allow]]\nid = \"0781:5581\"\nserial = \"{LISTED}\"\ninterfaces = [\"08:06:50\"]\nstorage = \"read-only\"\n"
    ))?;
    Ok(policy)
}

pub(super) fn is_about(event: &Value, state: &str, serial: &str) -> bool {
    event["type"] == "usb" && event["state"] == state && event["device"]["serial"] == serial
}

/// The switches that say what becomes of devices to come, with the module's parameter at the end.
pub(super) fn defaults() -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DEVICES)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("usb") {
            found.push(
                fs::read_to_string(entry.path().join("authorized_default"))?.trim().to_owned(),
            );
        }
    }
    found.push(fs::read_to_string(PARAMETER)?.trim().to_owned());
    Ok(found)
}

pub(super) const PARAMETER: &str = "/sys/module/usbcore/parameters/authorized_default";

/// A26: unlisted devices, others of the same make, and those that show more than they should.
pub fn held() -> Result<()> {
    prepare()?;
    let before = defaults()?;
    let policy = policy()?;
    // Every one of them comes alive without us.
    let attacks: [(&str, &[Function], &[&str]); 4] = [
        ("EVIL1", &[Function::Storage], &["usb-storage"]),
        ("KEYS1", &[Function::Keyboard], &["usbhid"]),
        ("BOTH1", &[Function::Storage, Function::Keyboard], &["usb-storage", "usbhid"]),
        // The same number as the listed stick's.
        (LISTED, &[Function::Storage, Function::Keyboard], &["usb-storage", "usbhid"]),
    ];
    let unlisted = |without: bool| -> Result<()> {
        for (serial, functions, drivers) in attacks {
            let mark = events::mark()?;
            let gadget = Gadget::plug(serial, functions)?;
            if without {
                gadget.bound_to(drivers).context("without the agent")?;
                continue;
            }
            gadget.never_bound()?;
            let event = events::wait_for(mark, serial, |event| is_about(event, "held", serial))?;
            ensure!(event["reason"] == "unlisted" && event["device"]["authorized"] == false);
            ensure!(event["to_allow"].as_str().is_some_and(|rule| rule.contains(serial)));
            gadget.disconnect()?;
            events::wait_for(mark, "its end", |event| is_about(event, "detached", serial))?;
            println!("  held: {serial}");
        }
        Ok(())
    };
    unlisted(true)?;

    // Audit changes nothing, and tells what would be.
    let agent = Agent::start(&policy, "audit", &[])?;
    ensure!(defaults()? == before, "audit mode has changed {before:?} to {:?}", defaults()?);
    let mark = events::mark()?;
    let plugged_before = Gadget::plug("EVIL2", &[Function::Storage])?;
    plugged_before.bound_to(&["usb-storage"])?;
    events::wait_for(mark, "EVIL2", |event| is_about(event, "would-hold", "EVIL2"))?;
    // What is in use is not taken away without a word.
    let refused = expect(1, &["mode", "enforce"])?;
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(told.contains("EVIL2") && told.contains("[[usb.allow]]"), "{told}");
    plugged_before.bound_to(&["usb-storage"])?;
    agent.stop()?;

    // It was plugged in before the agent started.
    let mark = events::mark()?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    events::wait_for(mark, "EVIL2", |event| is_about(event, "held", "EVIL2"))?;
    plugged_before.never_bound()?;
    ensure!(defaults()?.iter().all(|value| value == "0"), "{:?}", defaults()?);
    drop(plugged_before);
    unlisted(false)?;

    let mark = events::mark()?;
    let listed = Gadget::plug(LISTED, &[Function::Storage])?;
    listed.bound_to(&["usb-storage"])?;
    events::wait_for(mark, LISTED, |event| is_about(event, "allowed", LISTED))?;
    read_only(&listed.port().context("a port")?)?;
    let list = json(&["usb", "list", "--json"])?;
    ensure!(list["devices"][0]["state"] == "allowed", "{list}");
    // It comes again as something else.
    drop(listed);
    unlooked(&agent)?;
    let again = Gadget::plug(LISTED, &[Function::Storage, Function::Keyboard])?;
    again.never_bound()?;
    drop(again);

    // With the agent dead, devices stay held, and the next agent lets in what it should.
    let evil = Gadget::plug("EVIL3", &[Function::Storage])?;
    agent.signal(Signal::KILL)?;
    evil.never_bound()?;
    ensure!(write(&evil.file("authorized")?, "1").is_err(), "a dead agent's gate lets it in");
    drop(evil);
    let listed = Gadget::plug(LISTED, &[Function::Storage])?;
    listed.never_bound()?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    listed.bound_to(&["usb-storage"])?;
    drop(listed);

    let evil = Gadget::plug("EVIL4", &[Function::Storage])?;
    evil.never_bound()?;
    let port = evil.port().context("a port")?;
    expect(1, &["usb", "explain", &port])?;
    expect(0, &["usb", "allow-once", &port])?;
    evil.bound_to(&["usb-storage"])?;
    evil.disconnect()?;
    evil.connect()?;
    evil.never_bound()?;

    // A controller that comes later holds from its first moment.
    drop(evil);
    if is_built_in("dummy_hcd") {
        let found = drivers_devices("platform", "dummy_hcd")?;
        give_up(&found)?;
        take_again(&found)?;
    } else {
        let run = |arguments: &[&str]| Command::new(arguments[0]).args(&arguments[1..]).status();
        ensure!(
            run(&["/bin/rmmod", "dummy_hcd"])?.success()
                && run(&["/sbin/modprobe", "dummy_hcd"])?.success()
        );
    }
    ensure!(defaults()?.iter().all(|value| value == "0"), "{:?}", defaults()?);
    let evil = Gadget::plug("EVIL5", &[Function::Storage])?;
    evil.never_bound()?;
    agent.stop()?;
    // What was held because of us comes alive when we go.
    evil.bound_to(&["usb-storage"])?;
    ensure!(defaults()? == before, "{before:?} became {:?}", defaults()?);
    Ok(())
}

/// Whether a module that is there is part of the kernel, so that it cannot go.
pub(super) fn is_built_in(module: &str) -> bool {
    let folder = Path::new("/sys/module").join(module);
    // Only what was loaded says how far it has come. Not all that is built in has a folder.
    !folder.join("initstate").exists()
}

/// Devices on a bus that a driver has, by the folder of that driver.
pub(super) fn drivers_devices(bus: &str, driver: &str) -> Result<Vec<PathBuf>> {
    let folder = Path::new("/sys/bus").join(bus).join("drivers").join(driver);
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| path.is_symlink() && path.file_name() != Some("module".as_ref()));
    ensure!(!found.is_empty(), "{driver} has no devices");
    Ok(found)
}

/// The driver lets go of its devices, as if they were taken out.
pub(super) fn give_up(devices: &[PathBuf]) -> Result<()> {
    devices.iter().try_for_each(|device| tell_driver(device, "unbind"))
}

/// It takes them again.
pub(super) fn take_again(devices: &[PathBuf]) -> Result<()> {
    devices.iter().try_for_each(|device| tell_driver(device, "bind"))
}

fn tell_driver(device: &Path, what: &str) -> Result<()> {
    let name = device.file_name().and_then(|name| name.to_str()).context("a device's name")?;
    write(&device.with_file_name(what), name).with_context(|| format!("{what} {name}"))
}

/// Devices come and go while the agent does not look: the kernel has seen them.
fn unlooked(agent: &Agent) -> Result<()> {
    let mark = events::mark()?;
    agent.while_frozen(|| {
        for serial in ["FAST1", "FAST2"] {
            Gadget::plug(serial, &[Function::Storage])?.disconnect()?;
        }
        Ok(())
    })?;
    for serial in ["FAST1", "FAST2"] {
        let event =
            events::wait_for(mark, serial, |event| is_about(event, "came-and-went", serial))?;
        let device = &event["device"];
        ensure!(
            event["reason"] == "unlisted"
                && device["id"] == "0781:5581"
                && device["class"] == "00:00:00"
                && device["interfaces"][0] == "08:06:50"
                && device["name"] == "Anvil"
                && device["manufacturer"] == "Acme"
                && device["speed"] == "480"
                && device["authorized"] == false
                && device["flaw"].is_null()
                && device["port"].as_str().is_some_and(|port| port.contains('-')),
            "{event}"
        );
    }
    let about = |event: &Value| {
        event["type"] == "usb"
            && event["device"]["serial"].as_str().is_some_and(|serial| serial.starts_with("FAST"))
    };
    let told = events::since(mark)?.into_iter().filter(about).count();
    ensure!(told == 2, "{told} events about two devices");
    Ok(())
}

/// The disk of the device at a port can be read and not be written.
pub(super) fn read_only(port: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut disks = fs::read_dir("/sys/block")?.flatten().filter(|disk| {
            let at = fs::canonicalize(disk.path()).unwrap_or_default();
            at.to_string_lossy().contains(&format!("/{port}:"))
        });
        if let Some(disk) = disks.next()
            && fs::read_to_string(disk.path().join("ro"))?.trim() == "1"
        {
            let node = Path::new("/dev").join(disk.file_name());
            ensure!(fs::File::open(&node).is_ok(), "{} cannot be read", node.display());
            ensure!(write(&node, "x").is_err(), "{} can be written", node.display());
            return Ok(());
        }
        ensure!(Instant::now() < end, "no disk became read-only");
        sleep(Duration::from_millis(10));
    }
}

/// Root lets a held device in by the kernel's own switches.
pub fn guarded() -> Result<()> {
    prepare()?;
    let policy = policy()?;
    let evil = Gadget::plug("EVIL1", &[Function::Storage])?;
    evil.bound_to(&["usb-storage"])?;
    let port = evil.port().context("a port")?;
    let hub = format!("usb{}", port.split('-').next().unwrap_or_default());
    let other = fresh("/run/other-sysfs")?;
    let mounted = Command::new("/bin/mount").args(["-t", "sysfs", "none"]).arg(other).status()?;
    ensure!(mounted.success(), "mounting sysfs once more: {mounted}");
    let bound = Path::new("/run/a-switch");
    fs::write(bound, "")?;
    let device = Path::new(DEVICES).join(&port);
    let by_mount = Command::new("/bin/mount")
        .arg("--bind")
        .arg(device.join("authorized"))
        .arg(bound)
        .status()?;
    ensure!(by_mount.success(), "mounting a switch elsewhere: {by_mount}");
    let mut kept = OpenOptions::new().write(true).open(device.join("authorized"))?;

    let switches = [
        (device.join("authorized"), "1"),
        (other.join("bus/usb/devices").join(&port).join("authorized"), "1"),
        (bound.to_owned(), "1"),
        (device.join("bConfigurationValue"), "1"),
        (Path::new(DEVICES).join(&hub).join("authorized_default"), "1"),
        (Path::new(DEVICES).join(&hub).join("interface_authorized_default"), "1"),
        (Path::new(PARAMETER).to_owned(), "1"),
        (Path::new("/sys/bus/usb/drivers_probe").to_owned(), port.as_str()),
        (Path::new("/sys/bus/usb/drivers/usb-storage/new_id").to_owned(), "0781 5581"),
    ];
    for (switch, value) in &switches {
        write(switch, value).with_context(|| format!("without the agent: {}", switch.display()))?;
    }
    let agent = Agent::start(&policy, "audit", &[])?;
    let mark = events::mark()?;
    write(&switches[0].0, "1").context("in audit mode")?;
    events::wait_for(mark, "the report", |event| is_attempt(event, "would-deny", "authorized"))?;
    changed(&device)?;
    evil.bound_to(&["usb-storage"])?;
    expect(0, &["mode", "enforce", "--skip-preflight"])?;
    evil.never_bound()?;
    for (switch, value) in &switches {
        let mark = events::mark()?;
        let refused = write(switch, value).err().and_then(|error| error.raw_os_error());
        ensure!(refused == Some(libc::EPERM), "{}: {refused:?}", switch.display());
        let name = if switch == bound {
            "authorized"
        } else {
            switch.file_name().and_then(|name| name.to_str()).unwrap_or_default()
        };
        let event = events::wait_for(mark, "the refusal", |event| is_attempt(event, "deny", name))?;
        println!("  refused: {}", event["artifact"]["path"]);
    }
    let mark = events::mark()?;
    let mut ring = Ring::new()?;
    let by_ring = ring.write(&kept.try_clone()?.into(), b"1");
    let refused = by_ring.err().and_then(|error| error.downcast::<std::io::Error>().ok());
    let refused = refused.and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::EPERM), "io_uring: {refused:?}");
    events::wait_for(mark, "io_uring's", |event| is_attempt(event, "deny", "authorized"))?;
    through_usbfs(&evil)?;
    let refused = kept.write(b"1").err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::EPERM), "a descriptor from before: {refused:?}");
    evil.never_bound()?;
    // Files of sysfs that have no say in it.
    write(&device.join("power/control"), "on").context("another file of the device")?;
    let status = json(&["status", "--json"])?;
    ensure!(status["usb"]["held"] == 1 && status["usb"]["refused"] == 13, "{}", status["usb"]);

    // Being the program is no authority.
    let copied = Command::new("/usr/bin/portcullis").args(["usb", "list"]).output()?;
    ensure!(copied.status.success(), "{copied:?}");

    // Back in audit mode it comes alive, as if nothing were there.
    expect(0, &["mode", "audit"])?;
    evil.bound_to(&["usb-storage"])?;
    agent.stop()?;
    for at in [bound, other] {
        unmount_soon(at)?;
    }
    Ok(())
}

/// In audit mode others may change a device, and the kernel sees who does.
fn changed(device: &Path) -> Result<()> {
    for (file, value, state) in [
        ("authorized", "0", "deauthorized"),
        ("authorized", "1", "authorized"),
        ("bConfigurationValue", "-1", "unconfigured"),
        ("bConfigurationValue", "1", "configured"),
    ] {
        let mark = events::mark()?;
        write(&device.join(file), value)
            .with_context(|| format!("{file} {value} in audit mode"))?;
        let event = events::wait_for(mark, state, |event| is_about(event, state, "EVIL1"))?;
        let by = &event["by"];
        ensure!(by["pid"] == std::process::id() && by["comm"] != "", "{event}");
        println!("  seen: {state} by {}", by["comm"]);
    }
    Ok(())
}

/// A program drives the device itself: it would choose a configuration and claim an interface.
fn through_usbfs(evil: &Gadget) -> Result<()> {
    const SET_CONFIGURATION: libc::Ioctl = 0x8004_5505u32 as libc::Ioctl;
    const CLAIM_INTERFACE: libc::Ioctl = 0x8004_550fu32 as libc::Ioctl;
    let number =
        |name: &str| -> Result<u32> { Ok(fs::read_to_string(evil.file(name)?)?.trim().parse()?) };
    let node = format!("/dev/bus/usb/{:03}/{:03}", number("busnum")?, number("devnum")?);
    let device = OpenOptions::new().read(true).write(true).open(&node).context(node)?;
    let ask = |request: libc::Ioctl, value: u32| {
        // SAFETY: the descriptor is open, and the kernel reads one integer.
        let done = unsafe { libc::ioctl(device.as_raw_fd(), request, &raw const value) };
        (done != 0).then(|| std::io::Error::last_os_error().raw_os_error()).flatten()
    };
    let mark = events::mark()?;
    let refused = ask(SET_CONFIGURATION, 1);
    ensure!(refused == Some(libc::EPERM), "choosing a configuration: {refused:?}");
    events::wait_for(mark, "the ioctl", |event| {
        event["gate"] == "usb" && event["outcome"] == "deny"
    })?;
    let mark = events::mark()?;
    let refused =
        raw::ioctl_32(&device, 0x8004_5505, 1).err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::EPERM), "the same as a program of 32 bits: {refused:?}");
    events::wait_for(mark, "the ioctl of 32 bits", |event| {
        event["gate"] == "usb" && event["outcome"] == "deny"
    })?;
    // The kernel's own answer: what has no configuration has no interfaces.
    ensure!(ask(CLAIM_INTERFACE, 0).is_some(), "an interface of a held device was claimed");
    Ok(())
}

fn is_attempt(event: &Value, outcome: &str, name: &str) -> bool {
    event["type"] == "decision"
        && event["gate"] == "usb"
        && event["outcome"] == outcome
        && event["reason"] == "usb-switch"
        && event["artifact"]["path"].as_str().is_some_and(|path| path.ends_with(name))
}

fn write(path: &Path, value: &str) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
