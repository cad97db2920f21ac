//! USB devices at an emulated controller: one that is there when the machine starts, and those that the
//! host plugs in and out.

use std::{
    fs,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    base_policy, modprobe,
    usb::{PARAMETER, defaults, drivers_devices, give_up, is_built_in, read_only, take_again},
};
use crate::{
    agent::{Agent, PATIENCE, Policy, expect, json, text},
    events,
    gadget::{DEVICES, drivers_at, ports_with},
};

/// Vendor of QEMU's sticks.
const STICK: &str = "46f4";

const KEYBOARD_RULE: &str =
    "[[usb.allow]]\nid = \"0627:0001\"\ninterfaces = { all_of = [\"03:*:*\"] }\n";

/// The kernel holds what is there from the beginning; the agent lets in what is listed, as many as may be,
/// at the sockets that the policy names; and takes nothing away that is in use without a word.
pub fn plugged() -> Result<()> {
    for module in ["xhci_pci", "usb_storage", "sd_mod", "usbhid", "hid_generic"] {
        modprobe(module)?;
    }
    ensure!(fs::read_to_string(PARAMETER)?.trim() == "0", "not by the kernel's command line");
    let first = first_port()?;
    stays_held(&first)?;
    let before = defaults()?;
    ensure!(before.iter().all(|value| value == "0"), "{before:?}");

    let policy = base_policy(&[])?;
    let folder = policy.file.parent().context("a folder")?.to_owned();
    let key = folder.join("ops.pem");
    expect(0, &["key", "generate", "-o", text(&key)?])?;
    policy.append(&format!(
        "\n[[signer]]\nname = \"ops\"\nslot = \"operator\"\nkey = \"ops.pub.pem\"\nsigns = [\"policy\"]\n\
         [usb]\n[[usb.allow]]\nid = \"46f4:0001\"\ninterfaces = [\"08:06:50\"]\nconnect = [\"unknown\"]\n\
         at_most = 1\nstorage = \"read-only\"\n{KEYBOARD_RULE}"
    ))?;
    let mark = events::mark()?;
    let agent = Agent::start(&policy, "enforce", &[])?;
    told(mark, "allowed", &first)?;
    bound(&first, &["usb-storage"])?;
    read_only(&first)?;
    let status = json(&["status", "--json"])?;
    let check = |id: &str| {
        status["checks"].as_array().and_then(|all| all.iter().find(|check| check["id"] == id))
    };
    for id in ["usb-early", "usb-seen"] {
        ensure!(check(id).is_some_and(|check| check["state"] == "ok"), "{id}: {status}");
    }

    // The rule lets in one.
    let second = plug("stick", "held", "too-many")?;
    stays_held(&second)?;
    let keyboard = plug("keyboard", "allowed", "listed")?;
    bound(&keyboard, &["usbhid"])?;
    let network = plug("network", "held", "unlisted")?;
    stays_held(&network)?;

    // A policy under which the keyboard is not listed, nor the stick at this socket.
    let listed = fs::read_to_string(&policy.file)?;
    let narrow = listed.replace(KEYBOARD_RULE, "").replace("[\"unknown\"]", "[\"external\"]");
    refused(&policy, &narrow, &key, [&first, &keyboard])?;
    bound(&keyboard, &["usbhid"])?;
    bound(&first, &["usb-storage"])?;
    unplug("keyboard", &keyboard)?;
    let mark = events::mark()?;
    expect(0, &["policy", "reload", "--skip-preflight"])?;
    told(mark, "held", &first)?;
    bound(&first, &[])?;
    fs::write(&policy.file, &listed)?;
    let mark = events::mark()?;
    expect(0, &["policy", "reload"])?;
    let mut ports = [&first, &second];
    ports.sort();
    told(mark, "allowed", ports[0])?;

    let [let_in, held] = reloaded(&network)?;
    let mark = events::mark()?;
    unplug("first", &first)?;
    let left = if let_in == first {
        // There is room for it now.
        told(mark, "allowed", &held)?;
        held
    } else {
        let_in
    };
    bound(&left, &["usb-storage"])?;
    agent.stop()?;
    bound(&left, &["usb-storage"])?;
    // Nobody had let it in before the agent, and nobody does after it.
    stays_held(&network)?;
    ensure!(defaults()? == before, "{before:?} became {:?}", defaults()?);
    Ok(())
}

/// usbcore and everything above it goes, and comes while the agent runs; where it is part of the kernel, the
/// controllers do. Returns the stick that was let in, and the other.
fn reloaded(network: &str) -> Result<[String; 2]> {
    if is_built_in("usbcore") {
        let controllers = drivers_devices("pci", "xhci_hcd")?;
        give_up(&controllers)?;
        let mark = events::mark()?;
        take_again(&controllers)?;
        return judged_again(mark, network);
    }
    for module in ["usb_storage", "usbhid", "xhci_pci", "xhci_hcd", "usbcore"] {
        // Some have gone with others, or were never there.
        let _ = std::process::Command::new("/bin/rmmod").arg(module).status();
    }
    ensure!(!Path::new("/sys/module/usbcore").exists(), "usbcore is in use");
    let mark = events::mark()?;
    for module in ["xhci_pci", "usb_storage", "sd_mod"] {
        modprobe(module)?;
    }
    judged_again(mark, network)
}

fn judged_again(mark: events::Mark, network: &str) -> Result<[String; 2]> {
    let stick = |state: &str| -> Result<String> {
        let event = events::wait_for(mark, &format!("a stick that is {state}"), |event| {
            event["type"] == "usb"
                && event["state"] == state
                && event["device"]["id"] == "46f4:0001"
        })?;
        Ok(event["device"]["port"].as_str().context("a port")?.to_owned())
    };
    let ports = [stick("allowed")?, stick("held")?];
    told(mark, "held", network)?;
    bound(&ports[0], &["usb-storage"])?;
    stays_held(&ports[1])?;
    Ok(ports)
}

/// Neither by `policy reload` nor by `policy push`.
fn refused(policy: &Policy, narrow: &str, key: &Path, in_use: [&str; 2]) -> Result<()> {
    let warns = |words: &[&str]| -> Result<()> {
        let told = String::from_utf8_lossy(&expect(1, words)?.stderr).into_owned();
        let names_all = in_use.iter().all(|port| told.contains(&format!("{port}: ")));
        ensure!(names_all && told.contains("THIS MAY BE YOUR KEYBOARD"), "{words:?}: {told}");
        Ok(())
    };
    fs::write(&policy.file, narrow)?;
    warns(&["policy", "reload"])?;
    let file = policy.file.with_file_name("narrow.toml");
    fs::write(&file, narrow.replace("version = 1\n", "version = 2\n"))?;
    let bundle = policy.file.with_file_name("narrow.bundle");
    expect(0, &["policy", "build", text(&file)?, "-o", text(&bundle)?])?;
    expect(0, &["policy", "sign", text(&bundle)?, "--key", text(key)?])?;
    warns(&["policy", "push", text(&bundle)?])
}

/// The host plugs a device in; returns its port.
fn plug(name: &str, state: &str, reason: &str) -> Result<String> {
    let (mark, before) = (events::mark()?, ports());
    println!("@@plug {name}");
    let end = Instant::now() + PATIENCE;
    let port = loop {
        if let Some(port) = ports().into_iter().find(|port| !before.contains(port)) {
            break port;
        }
        ensure!(Instant::now() < end, "no {name} at {:?}", ports());
        sleep(Duration::from_millis(10));
    };
    let event = told(mark, state, &port)?;
    ensure!(event["reason"] == reason, "{event}");
    println!("  {name} at {port}: {} {state}", event["device"]["id"]);
    Ok(port)
}

/// Where devices are.
fn ports() -> Vec<String> {
    let names = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.contains('-') && !name.contains(':')).collect()
}

fn unplug(name: &str, port: &str) -> Result<()> {
    let mark = events::mark()?;
    println!("@@unplug {name}");
    told(mark, "detached", port).map(drop)
}

fn told(mark: events::Mark, state: &str, port: &str) -> Result<Value> {
    events::wait_for(mark, &format!("{port} {state}"), |event| {
        event["type"] == "usb" && event["state"] == state && event["device"]["port"] == port
    })
}

fn first_port() -> Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(port) = ports_with("idVendor", STICK).pop() {
            return Ok(port);
        }
        ensure!(Instant::now() < end, "no stick at {:?}", ports());
        sleep(Duration::from_millis(10));
    }
}

fn bound(port: &str, drivers: &[&str]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while drivers_at(port) != drivers {
        ensure!(Instant::now() < end, "{port}: {:?} and not {drivers:?}", drivers_at(port));
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// No driver gets it while one would be bound otherwise.
fn stays_held(port: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_millis(500);
    while Instant::now() < end {
        ensure!(drivers_at(port).is_empty(), "{port} is bound to {:?}", drivers_at(port));
        sleep(Duration::from_millis(10));
    }
    let authorized = fs::read_to_string(Path::new(DEVICES).join(port).join("authorized"))?;
    ensure!(authorized.trim() == "0", "{port}: {authorized}");
    Ok(())
}
