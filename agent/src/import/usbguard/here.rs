//! The devices that are plugged in here, by the hashes that USBGuard knows devices by.

use std::{fs, path::Path};

use base64ct::{Base64, Encoding};
use sha2::{Digest, Sha256};

use crate::usb::device::{Device, Folder, is_port, present};

/// Vendor and products of root hubs, whose descriptors say the kernel's version, which USBGuard leaves out.
const ROOT_HUBS: (u16, [u16; 3]) = (0x1d6b, [1, 2, 3]);

/// A device that is plugged in, or a root hub.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it is; a root hub's port is its name, as `usb1`.
    pub device: Device,
    /// USBGuard's hash of it.
    pub hash: String,
    /// How many ports it has, if it is a hub.
    pub ports: usize,
}

impl Seen {
    /// A device with these descriptors.
    #[must_use]
    pub fn new(device: Device, descriptors: &[u8], ports: usize) -> Self {
        let mut descriptors = descriptors.to_vec();
        let (vendor, products) = ROOT_HUBS;
        if device.vendor == vendor
            && products.contains(&device.product)
            && let Some(release) = descriptors.get_mut(12..14)
        {
            release.fill(0);
        }
        let hash = Sha256::new()
            .chain_update(&device.name)
            .chain_update(format!("{:04x}{:04x}", device.vendor, device.product))
            .chain_update(device.serial.as_deref().unwrap_or_default())
            .chain_update(&descriptors)
            .finalize();
        Self { device, hash: Base64::encode_string(&hash), ports }
    }

    /// Whether it belongs to the machine, so that no policy judges it.
    #[must_use]
    pub fn is_controller(&self) -> bool {
        !is_port(&self.device.port)
    }

    /// The ports that it has, as devices there are named.
    pub(super) fn children(&self) -> impl Iterator<Item = String> + use<> {
        let start = match self.device.port.strip_prefix("usb") {
            Some(bus) => format!("{bus}-"),
            None => format!("{}.", self.device.port),
        };
        (1..=self.ports).map(move |number| format!("{start}{number}"))
    }
}

/// All that are plugged in. One whose descriptors or texts cannot be read is left out.
#[must_use]
pub fn seen(devices: &Path) -> Vec<Seen> {
    let found = present(devices);
    let look = |name: &String| {
        let folder = Folder::open(devices, name).ok()?;
        let device = folder.read().ok().filter(|device| device.flaw.is_none())?;
        let ports = fs::read_to_string(devices.join(name).join("maxchild")).ok();
        let ports = ports.and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or_default();
        Some(Seen::new(device, &folder.raw_descriptors().ok()?, ports.into()))
    };
    found.hubs.iter().chain(&found.ports).filter_map(look).collect()
}
