//! USB devices that this machine makes itself and plugs into itself: the kernel's gadgets, at the
//! controller that its `dummy_hcd` makes of nothing.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::agent::PATIENCE;

/// Where the kernel shows USB devices.
pub const DEVICES: &str = "/sys/bus/usb/devices";

const GADGETS: &str = "/sys/kernel/config/usb_gadget";
const CONTROLLER: &str = "dummy_udc.0";

/// A keyboard's description of its reports, as in the HID specification (appendix B.1).
const KEYBOARD: [u8; 63] = [
    0x05, 0x01, 0x09, 0x06, 0xa1, 0x01, 0x05, 0x07, 0x19, 0xe0, 0x29, 0xe7, 0x15, 0x00, 0x25, 0x01,
    0x75, 0x01, 0x95, 0x08, 0x81, 0x02, 0x95, 0x01, 0x75, 0x08, 0x81, 0x03, 0x95, 0x05, 0x75, 0x01,
    0x05, 0x08, 0x19, 0x01, 0x29, 0x05, 0x91, 0x02, 0x95, 0x01, 0x75, 0x03, 0x91, 0x03, 0x95, 0x06,
    0x75, 0x08, 0x15, 0x00, 0x25, 0x65, 0x05, 0x07, 0x19, 0x00, 0x29, 0x65, 0x81, 0x00, 0xc0,
];

/// What a device can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// A disk.
    Storage,
    /// A keyboard.
    Keyboard,
}

/// Loads what is needed. Then there is a bus on which nothing is plugged.
pub fn prepare() -> Result<()> {
    for module in [
        "dummy_hcd",
        "libcomposite",
        "usb_f_mass_storage",
        "usb_f_hid",
        "usbhid",
        "hid_generic",
        "usb_storage",
        "sd_mod",
    ] {
        let status = Command::new("/sbin/modprobe").args(["-q", module]).status()?;
        ensure!(status.success(), "modprobe {module}: {status}");
    }
    if !Path::new(GADGETS).is_dir() {
        let mounted = Command::new("/bin/mount")
            .args(["-t", "configfs", "none", "/sys/kernel/config"])
            .status()?;
        ensure!(mounted.success(), "mounting configfs: {mounted}");
    }
    Ok(())
}

/// Where devices are plugged that say this of themselves in a file of sysfs.
pub fn ports_with(file: &str, says: &str) -> Vec<String> {
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let is_it = |folder: &Path| {
        fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim_end() == says)
    };
    let found = entries.filter(|entry| is_it(&entry.path()));
    found.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The drivers that have the device at a port.
pub fn drivers_at(port: &str) -> Vec<String> {
    let interfaces = fs::read_dir(Path::new(DEVICES).join(port)).into_iter().flatten().flatten();
    let mut drivers: Vec<_> = interfaces
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{port}:")))
        .filter_map(|entry| fs::read_link(entry.path().join("driver")).ok())
        .filter_map(|driver| Some(driver.file_name()?.to_str()?.to_owned()))
        .collect();
    drivers.sort();
    drivers
}

/// A device, plugged in or not. Unplugged and taken apart when it is dropped.
pub struct Gadget {
    folder: PathBuf,
    serial: String,
}

impl Gadget {
    /// Makes a device of this serial number, and plugs it in.
    pub fn plug(serial: &str, functions: &[Function]) -> Result<Self> {
        let gadget = Self::make(serial, functions)?;
        gadget.connect()?;
        Ok(gadget)
    }

    /// Makes a device without plugging it in.
    pub fn make(serial: &str, functions: &[Function]) -> Result<Self> {
        let folder = Path::new(GADGETS).join(serial);
        let made = Self { folder: folder.clone(), serial: serial.into() };
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let write = |path: &str, content: &[u8]| {
            fs::write(folder.join(path), content).with_context(|| format!("{serial}: {path}"))
        };
        write("idVendor", b"0x0781")?;
        write("idProduct", b"0x5581")?;
        fs::create_dir(folder.join("strings/0x409"))?;
        write("strings/0x409/serialnumber", serial.as_bytes())?;
        write("strings/0x409/manufacturer", b"Acme")?;
        write("strings/0x409/product", b"Anvil")?;
        fs::create_dir(folder.join("configs/c.1"))?;
        for function in functions {
            let name = match function {
                Function::Storage => "mass_storage.0",
                Function::Keyboard => "hid.0",
            };
            let at = folder.join("functions").join(name);
            fs::create_dir(&at).with_context(|| at.display().to_string())?;
            match function {
                Function::Storage => {
                    let disk = PathBuf::from("/run/gadget.img");
                    fs::File::create(&disk)?.set_len(1 << 20)?;
                    write(&format!("functions/{name}/lun.0/file"), b"/run/gadget.img")?;
                }
                Function::Keyboard => {
                    for (file, value) in
                        [("protocol", "1"), ("subclass", "1"), ("report_length", "8")]
                    {
                        write(&format!("functions/{name}/{file}"), value.as_bytes())?;
                    }
                    write(&format!("functions/{name}/report_desc"), &KEYBOARD)?;
                }
            }
            symlink(&at, folder.join("configs/c.1").join(name))?;
        }
        Ok(made)
    }

    /// Plugs it in, and waits until the kernel has seen it.
    pub fn connect(&self) -> Result<()> {
        self.insert()?;
        self.wait("the kernel does not see it", || self.port().is_some())
    }

    /// Plugs it in.
    pub fn insert(&self) -> Result<()> {
        fs::write(self.folder.join("UDC"), CONTROLLER).context("plugging in")
    }

    /// Plugs it in after a storm. A port that was not quiet for two seconds is given up, and what is plugged
    /// in then is not looked at before it is plugged again (`hub_port_debounce` in drivers/usb/core/hub.c).
    pub fn connect_in_the_end(&self) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.insert()?;
            let soon = Instant::now() + Duration::from_secs(4);
            while Instant::now() < soon {
                if self.port().is_some() {
                    return Ok(());
                }
                sleep(Duration::from_millis(5));
            }
            ensure!(Instant::now() < end, "{}: the kernel does not see it", self.serial);
            self.disconnect()?;
        }
    }

    /// Unplugs it, and waits until the kernel has seen that.
    pub fn disconnect(&self) -> Result<()> {
        fs::write(self.folder.join("UDC"), "\n").context("unplugging")?;
        self.wait("the kernel still sees it", || self.port().is_none())
    }

    /// Plugs it in and unplugs it before the kernel knows what it is, or as soon as it does.
    pub fn flap(&self) -> Result<()> {
        self.insert()?;
        sleep(Duration::from_millis(20));
        fs::write(self.folder.join("UDC"), "\n").context("unplugging")
    }

    /// Where it is plugged.
    pub fn port(&self) -> Option<String> {
        ports_with("serial", &self.serial).pop()
    }

    /// One of its files in sysfs.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let port = self.port().with_context(|| format!("{} is not plugged in", self.serial))?;
        Ok(Path::new(DEVICES).join(port).join(name))
    }

    /// The drivers that have it.
    pub fn drivers(&self) -> Vec<String> {
        self.port().map(|port| drivers_at(&port)).unwrap_or_default()
    }

    /// Waits until these drivers, in the order of the alphabet, have it.
    pub fn bound_to(&self, drivers: &[&str]) -> Result<()> {
        self.wait(&format!("{drivers:?} do not have it"), || self.drivers() == drivers)
    }

    /// Insists that no driver gets it while one would be bound otherwise.
    pub fn never_bound(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_millis(800);
        while Instant::now() < end {
            let drivers = self.drivers();
            ensure!(drivers.is_empty(), "{} is bound to {drivers:?}", self.serial);
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn wait(&self, what: &str, done: impl Fn() -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !done() {
            ensure!(Instant::now() < end, "{}: {what}; drivers {:?}", self.serial, self.drivers());
            sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Gadget {
    fn drop(&mut self) {
        // Each step may have been done already, or never.
        let _ = fs::write(self.folder.join("UDC"), "\n");
        for name in ["mass_storage.0", "hid.0"] {
            let _ = fs::remove_file(self.folder.join("configs/c.1").join(name));
            let _ = fs::remove_dir(self.folder.join("functions").join(name));
        }
        for folder in ["configs/c.1", "strings/0x409", ""] {
            let _ = fs::remove_dir(self.folder.join(folder));
        }
    }
}
