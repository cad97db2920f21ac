//! The kernel's switches by which it holds devices that come: set while the policy is enforced, and
//! given back as they were found.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    UsbError,
    device::{Connect, Folder, present},
};
use crate::durable;

/// What was found, by file. It holds until the machine starts again, and so does the folder.
pub const FOUND: &str = "/run/portcullis/usb.json";

/// What root hubs of controllers begin with that come later; `usbcore.authorized_default` on the
/// kernel's command line.
const PARAMETER: &str = "/sys/module/usbcore/parameters/authorized_default";

const DEFAULT: &CStr = c"authorized_default";
const AUTHORIZED: &CStr = c"authorized";

/// Devices that come are held.
const HELD: &str = "0";
/// Devices that come are let in (`USB_AUTHORIZE_ALL` and, as a parameter, `USB_AUTHORIZE_WIRED`).
const LET_IN: &str = "1";
/// Devices that come are let in if they are built in (`USB_AUTHORIZE_INTERNAL`).
const INTERNAL: &str = "2";

/// How long gates of an agent before this one may still be on their way out, which refuse what is
/// written here.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state before the agent changed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    /// What each root hub did with devices that came, by its name.
    hubs: BTreeMap<String, String>,
    /// What root hubs began with.
    parameter: Option<String>,
    /// Devices that were held already, by port and number.
    held: BTreeSet<String>,
}

/// Where the switches are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder of devices.
    pub devices: PathBuf,
    parameter: PathBuf,
    found: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            devices: super::device::DEVICES.into(),
            parameter: PARAMETER.into(),
            found: FOUND.into(),
        }
    }
}

/// Keeps the switches as the mode wants them.
pub struct Hold {
    places: Places,
    /// None while nothing is changed.
    found: Option<Found>,
}

impl Hold {
    /// Takes over what an agent before this one had changed.
    #[must_use]
    pub fn new(places: Places) -> Self {
        // Of no use if it cannot be read: what is set now then counts as found.
        let found =
            fs::read(&places.found).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Self { places, found }
    }

    /// Whether devices that come are held by this or an agent before it.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.found.is_some()
    }

    /// Where the switches are.
    #[must_use]
    pub fn places(&self) -> &Places {
        &self.places
    }

    /// Whether the kernel's command line, or who set the parameter since, has devices held on buses to
    /// come, so that somebody must let them in.
    #[must_use]
    pub fn kernel_holds(&self) -> bool {
        let found = self.found.as_ref().and_then(|found| found.parameter.clone());
        let parameter = found.or_else(|| read(&self.places.parameter).ok());
        parameter.is_some_and(|value| value == HELD || value == INTERNAL)
    }

    /// Has every device held that comes from now on. Returns the root hubs.
    ///
    /// # Errors
    /// If a switch cannot be set, with the rest set.
    pub fn hold(&mut self) -> Result<Vec<String>, UsbError> {
        let hubs = present(&self.places.devices).hubs;
        let mut found = self.found.clone().unwrap_or_else(|| self.held_now());
        if found.parameter.is_none() {
            found.parameter = read(&self.places.parameter).ok();
        }
        // What a hub begins with that came after the parameter was set is not what it would have had.
        let later = self.found.is_some().then(|| begins_with(found.parameter.as_deref()));
        found.hubs.retain(|hub, _| hubs.contains(hub));
        for hub in &hubs {
            if !found.hubs.contains_key(hub) {
                let now = self.hub(hub).ok().and_then(|hub| hub.text(DEFAULT).ok());
                let before = later.clone().or(now).unwrap_or_else(|| LET_IN.into());
                found.hubs.insert(hub.clone(), before);
            }
        }
        if self.found.as_ref() != Some(&found) {
            // On the disk first, so that it can always be given back.
            write_found(&self.places.found, &found)?;
            self.found = Some(found);
        }
        let mut failed = None;
        let mut set = |done: Result<(), UsbError>| {
            if let Err(error) = done {
                failed.get_or_insert(error);
            }
        };
        if self.places.parameter.exists() {
            set(write_file(&self.places.parameter, HELD));
        }
        for hub in &hubs {
            set(self.hub(hub).and_then(|hub| set_default(&hub, HELD)));
        }
        failed.map_or(Ok(hubs), Err)
    }

    /// Gives everything back as it was found, with the devices that were held only because of us.
    ///
    /// # Errors
    /// If a switch cannot be set, with the rest set; then it can be tried again.
    pub fn release(&mut self) -> Result<(), UsbError> {
        let Some(found) = self.found.clone() else { return Ok(()) };
        let mut failed = None;
        let mut done = |done: Result<(), UsbError>| {
            if let Err(error) = done {
                failed.get_or_insert(error);
            }
        };
        if let Some(parameter) = &found.parameter {
            done(write_file(&self.places.parameter, parameter));
        }
        let present = present(&self.places.devices);
        for (name, before) in &found.hubs {
            if present.hubs.contains(name) {
                done(self.hub(name).and_then(|hub| set_default(&hub, before)));
            }
        }
        for port in &present.ports {
            let Ok(folder) = Folder::open(&self.places.devices, port) else { continue };
            // It may have gone meanwhile.
            let Ok(device) = folder.read() else { continue };
            let hub = format!("usb{}", device.bus);
            let lets_in = match found.hubs.get(&hub).map(String::as_str) {
                Some(LET_IN) => true,
                Some(INTERNAL) => device.connect == Connect::Internal,
                _ => false,
            };
            if !device.authorized && lets_in && !found.held.contains(&key(port, device.number)) {
                done(patiently(|| folder.write(AUTHORIZED, "1")));
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.found = None;
        match fs::remove_file(&self.places.found) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(UsbError::new(path_of(&self.places.found), error))
            }
            _ => Ok(()),
        }
    }

    fn hub(&self, name: &str) -> Result<Folder, UsbError> {
        Folder::open(&self.places.devices, name)
    }

    /// Devices that are held before the agent has held any.
    fn held_now(&self) -> Found {
        let mut found = Found::default();
        for port in present(&self.places.devices).ports {
            let device = Folder::open(&self.places.devices, &port).and_then(|folder| folder.read());
            if let Ok(device) = device
                && !device.authorized
            {
                found.held.insert(key(&port, device.number));
            }
        }
        found
    }
}

/// What says which device it is, of all that were at the port.
fn key(port: &str, number: u32) -> String {
    format!("{port}:{number}")
}

/// What a root hub begins with, by the parameter (`usb_add_hcd` in drivers/usb/core/hcd.c).
fn begins_with(parameter: Option<&str>) -> String {
    match parameter {
        Some(HELD) => HELD,
        Some(INTERNAL) => INTERNAL,
        _ => LET_IN,
    }
    .into()
}

fn set_default(hub: &Folder, value: &str) -> Result<(), UsbError> {
    if hub.text(DEFAULT).is_ok_and(|now| now == value) {
        return Ok(());
    }
    patiently(|| hub.write(DEFAULT, value))
}

/// Sets a switch once the gates of an agent before this one have gone.
pub(super) fn patiently(mut set: impl FnMut() -> Result<(), UsbError>) -> Result<(), UsbError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match set() {
            Err(error)
                if error.source.kind() == io::ErrorKind::PermissionDenied
                    && Instant::now() < end =>
            {
                sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

fn write_file(path: &Path, value: &str) -> Result<(), UsbError> {
    if read(path).is_ok_and(|now| now == value) {
        return Ok(());
    }
    patiently(|| fs::write(path, value).map_err(|error| UsbError::new(path_of(path), error)))
}

fn write_found(path: &Path, found: &Found) -> Result<(), UsbError> {
    let text = serde_json::to_vec(found).map_err(io::Error::from);
    text.and_then(|text| durable::replace(path, |out| out.write_all(&text)))
        .map_err(|error| UsbError::new(path_of(path), error))
}

fn path_of(path: &Path) -> String {
    path.display().to_string()
}

/// Gives everything back that a dead agent had changed, whose gates are down.
///
/// # Errors
/// If a switch cannot be set.
pub fn release_orphans() -> Result<(), UsbError> {
    Hold::new(Places::default()).release()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::usb::descriptors::tests::made;

    /// Files as the kernel has them for devices.
    pub struct Machine(tempfile::TempDir);

    impl Machine {
        pub fn new(parameter: &str) -> Self {
            let machine = Self(tempfile::tempdir().expect("a folder"));
            fs::write(machine.0.path().join("parameter"), parameter).expect("written");
            machine
        }

        pub fn places(&self) -> Places {
            let folder = self.0.path();
            Places {
                devices: folder.join("devices"),
                parameter: folder.join("parameter"),
                found: folder.join("run/usb.json"),
            }
        }

        pub fn hub(&self, name: &str, default: &str) {
            let folder = self.0.path().join("devices").join(name);
            fs::create_dir_all(&folder).expect("made");
            fs::write(folder.join("authorized_default"), default).expect("written");
        }

        pub fn device(&self, port: &str, authorized: &str) {
            let folder = self.0.path().join("devices").join(port);
            fs::create_dir_all(&folder).expect("made");
            let bus = port.split('-').next().expect("a bus");
            for (name, text) in [("busnum", bus), ("devnum", "4"), ("authorized", authorized)] {
                fs::write(folder.join(name), text).expect("written");
            }
            fs::write(folder.join("descriptors"), made(1, 2, &[[8, 6, 0x50]])).expect("written");
        }

        fn says(&self, file: &str) -> String {
            read(&self.0.path().join(file)).expect(file)
        }
    }

    #[test]
    fn what_was_found_is_given_back() {
        let machine = Machine::new("-1\n");
        machine.hub("usb1", "1\n");
        machine.hub("usb2", "2\n");
        machine.device("1-1", "0");
        let mut hold = Hold::new(machine.places());
        assert!(!hold.holds() && !hold.kernel_holds());
        assert_eq!(hold.hold().expect("held"), ["usb1", "usb2"]);
        // Another agent comes after it, and a controller, which begins with what was set.
        machine.hub("usb3", "0");
        for (port, now) in [("1-2", "0"), ("2-1", "0"), ("3-1", "0")] {
            machine.device(port, now);
        }
        let mut hold = Hold::new(machine.places());
        assert!(hold.holds() && !hold.kernel_holds());
        assert_eq!(hold.hold().expect("held").len(), 3);
        for hub in ["usb1", "usb2", "usb3"] {
            assert_eq!(machine.says(&format!("devices/{hub}/authorized_default")), "0");
        }
        assert_eq!(machine.says("parameter"), "0");

        hold.release().expect("released");
        assert_eq!(machine.says("parameter"), "-1");
        for (file, before) in [
            ("usb1/authorized_default", "1"),
            ("usb2/authorized_default", "2"),
            ("usb3/authorized_default", "1"),
            // Was held before any agent came.
            ("1-1/authorized", "0"),
            ("1-2/authorized", "1"),
            // Not built in.
            ("2-1/authorized", "0"),
            ("3-1/authorized", "1"),
        ] {
            assert_eq!(machine.says(&format!("devices/{file}")), before, "{file}");
        }
        assert!(!Hold::new(machine.places()).holds());
    }

    #[test]
    fn what_the_kernel_was_told_to_hold_stays_held() {
        let machine = Machine::new("0\n");
        machine.hub("usb1", "0\n");
        machine.device("1-1", "0");
        let mut hold = Hold::new(machine.places());
        assert!(hold.kernel_holds());
        hold.hold().expect("held");
        assert!(hold.kernel_holds());
        hold.release().expect("released");
        assert_eq!(machine.says("devices/usb1/authorized_default"), "0");
        assert_eq!(machine.says("devices/1-1/authorized"), "0");
    }
}
