//! USB devices that a machine's host plugs in and out while it runs, when the guest says so on its console:
//! `@@plug NAME` and `@@unplug NAME`.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::vm::empty_disk;

/// What can be plugged in, and what QEMU calls it.
const DEVICES: [(&str, &str); 3] =
    [("stick", "usb-storage"), ("keyboard", "usb-kbd"), ("network", "usb-net")];

/// The host's hand at a machine's sockets.
pub struct Hand {
    /// Short, as a socket's path must be.
    folder: TempDir,
    monitor: Option<BufReader<UnixStream>>,
}

impl Hand {
    pub fn new() -> Result<Self> {
        Ok(Self { folder: tempfile::tempdir()?, monitor: None })
    }

    /// What QEMU must be started with: a controller at which a stick, `first`, is plugged in, and a second
    /// stick to plug in.
    pub fn arguments(&self, work: &Path) -> Result<Vec<OsString>> {
        let mut monitor = OsString::from("unix:");
        monitor.push(self.socket());
        monitor.push(",server=on,wait=off");
        let mut arguments: Vec<OsString> =
            ["-device", "qemu-xhci", "-device", "usb-storage,drive=first-disk,id=first"]
                .map(OsString::from)
                .into();
        arguments.extend(["-qmp".into(), monitor]);
        for (id, disk) in [("first-disk", "stick.img"), ("stick-disk", "second.img")] {
            let mut drive = OsString::from(format!("if=none,id={id},format=raw,file="));
            drive.push(empty_disk(work, disk)?);
            arguments.extend(["-drive".into(), drive]);
        }
        Ok(arguments)
    }

    /// Does what a line of the guest asks for, if it asks for anything.
    pub fn hears(&mut self, line: &str) -> Result<()> {
        if let Some(name) = line.strip_prefix("@@plug ") {
            let known = DEVICES.iter().find(|(known, _)| *known == name);
            let (_, driver) = known.with_context(|| format!("there is no {name} to plug in"))?;
            let mut device = json!({ "driver": driver, "id": name });
            if *driver == "usb-storage" {
                device["drive"] = json!(format!("{name}-disk"));
            }
            self.ask("device_add", &device)
        } else if let Some(name) = line.strip_prefix("@@unplug ") {
            self.ask("device_del", &json!({ "id": name }))
        } else {
            Ok(())
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("qmp")
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Result<()> {
        if self.monitor.is_none() {
            let stream = UnixStream::connect(self.socket()).context("the machine's monitor")?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let monitor = self.monitor.insert(BufReader::new(stream));
            answer(monitor, &json!({ "execute": "qmp_capabilities" }))?;
        }
        let monitor = self.monitor.as_mut().context("a monitor")?;
        answer(monitor, &json!({ "execute": command, "arguments": arguments }))
    }
}

/// Sends a command and waits for the answer; what else the monitor says is of no interest.
fn answer(monitor: &mut BufReader<UnixStream>, command: &Value) -> Result<()> {
    writeln!(monitor.get_mut(), "{command}")?;
    loop {
        let mut line = String::new();
        if monitor.read_line(&mut line)? == 0 {
            bail!("the monitor has ended");
        }
        let said: Value = serde_json::from_str(&line)?;
        if said.get("return").is_some() {
            return Ok(());
        }
        if let Some(error) = said.get("error") {
            bail!("{command}: {error}");
        }
    }
}
