//! What the kernel programs tell of devices, and which of it nobody has looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::Buf;
use portcullis_common::{
    COMM_LEN, Digest, USB_DESCRIPTORS, USB_DEVICE_DESCRIPTOR, USB_TEXT, UsbRecord, usb_change,
};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{
    Class, descriptors,
    device::{Device, is_port},
    keeper::{Known, State},
};
use crate::event::decode::{self, array};

/// Who changed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Name of the task.
    pub comm: String,
}

/// Nanoseconds since boot, with time in which the machine was suspended: the clock of the records.
#[must_use]
pub fn boot_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default()
}

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Attached,
    Detached,
    InterfaceCame,
    InterfaceWent,
}

/// One record of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When, as [`boot_ns`] counts.
    at: u64,
    change: Change,
    /// The device as it was then. How it is connected is not known.
    device: Device,
    /// Who did it; none if the kernel did itself.
    by: Option<Actor>,
}

impl Seen {
    /// Reads one entry of the ring. None if it is no such record, or about a root hub.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<UsbRecord>() {
            return None;
        }
        // In the order of the struct's members; a test holds the two together.
        let bytes = &mut bytes;
        let at = bytes.get_u64_ne();
        let (pid, number, speed) = (bytes.get_u32_ne(), bytes.get_u32_ne(), bytes.get_u32_ne());
        let change = match bytes.get_u8() {
            usb_change::ATTACHED => Change::Attached,
            usb_change::DETACHED => Change::Detached,
            usb_change::INTERFACE_CAME => Change::InterfaceCame,
            usb_change::INTERFACE_WENT => Change::InterfaceWent,
            _ => return None,
        };
        let (authorized, configuration) = (bytes.get_u8() != 0, bytes.get_u8());
        let by_kernel = bytes.get_u8() != 0;
        let comm = array::<COMM_LEN>(bytes);
        let (length, total) = (usize::from(bytes.get_u16_ne()), usize::from(bytes.get_u16_ne()));
        let port = text(bytes).ok()??;
        let texts = [text(bytes), text(bytes), text(bytes)];
        let is_no_text = texts.iter().any(Result::is_err);
        let [name, manufacturer, serial] = texts.map(Result::unwrap_or_default);
        let first = array::<USB_DEVICE_DESCRIPTOR>(bytes);
        let rest = array::<USB_DESCRIPTORS>(bytes);
        if !is_port(&port) {
            return None;
        }
        let said = [&first[..], &rest[..length.min(USB_DESCRIPTORS)]].concat();
        let mut device = Device {
            bus: port.split('-').next().and_then(|bus| bus.parse().ok()).unwrap_or_default(),
            port,
            number,
            vendor: u16::from_le_bytes([first[8], first[9]]),
            product: u16::from_le_bytes([first[10], first[11]]),
            class: Some(Class([first[4], first[5], first[6]])),
            name: name.unwrap_or_default(),
            manufacturer: manufacturer.unwrap_or_default(),
            serial,
            speed: speed_of(speed).into(),
            configuration: (configuration != 0).then(|| configuration.to_string()),
            authorized,
            ..Device::default()
        };
        match descriptors::parse(&said) {
            Ok(read) => {
                device.interfaces = read.interfaces;
                device.interface_count = read.interface_count;
                device.descriptors = Digest::from(Sha256::digest(&said));
            }
            Err(_) if length < total || first[17] > 1 => {
                device.flaw = Some("it has more descriptors than the kernel told of".into());
            }
            Err(why) => {
                device.flaw = Some(format!("its descriptors cannot be relied on: {why}"));
            }
        }
        if is_no_text {
            device.flaw.get_or_insert_with(|| "its names cannot be read as text".into());
        }
        let by = (!by_kernel).then(|| Actor { pid, comm: decode::comm(&comm) });
        Some(Self { at, change, device, by })
    }
}

/// A text; none if there is none, and `Err` if it is no text.
fn text(bytes: &mut &[u8]) -> Result<Option<String>, ()> {
    let length = bytes.get_i32_ne();
    let bytes = array::<USB_TEXT>(bytes);
    match usize::try_from(length) {
        Ok(0) => Ok(None),
        Ok(length) if length <= USB_TEXT => {
            String::from_utf8(bytes[..length - 1].to_vec()).map(Some).map_err(drop)
        }
        _ => Err(()),
    }
}

/// As the kernel shows it in `speed` (`speed_show` in drivers/usb/core/sysfs.c), by `enum
/// usb_device_speed`.
fn speed_of(number: u32) -> &'static str {
    match number {
        1 => "1.5",
        0 | 2 => "12",
        3 | 4 => "480",
        5 => "5000",
        6 => "10000",
        _ => "unknown",
    }
}

/// What is to be told of what the kernel saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// [`State::Passed`], [`State::Authorized`], [`State::Deauthorized`] or [`State::Configured`].
    pub state: State,
    /// The device as it was then.
    pub device: Device,
    /// Who did it; none if the kernel did itself.
    pub by: Option<Actor>,
}

struct Entry {
    device: Device,
    /// Whether somebody has looked at it.
    looked: bool,
    /// When it was told that it went before anybody looked.
    passed: Option<Instant>,
}

/// A look finds a device for so long, at most, after the kernel has told that it goes. After that it is another
/// one with the same number.
const ON_ITS_WAY_OUT: Duration = Duration::from_secs(10);

/// What the kernel has told of each port. There are only so many ports.
#[derive(Default)]
pub struct Ledger {
    ports: BTreeMap<String, Entry>,
}

impl Ledger {
    /// Takes what a look has found, and then what the kernel has told until after it: the programs are
    /// called before a device can be looked at, so that every device that was looked at was told.
    /// Returns what nobody would know from looking. What this process did is known.
    ///
    /// `looked_at` is when the look began, as [`boot_ns`] counts: there are 127 numbers on a bus, which come
    /// again, so that one with the number of a device that was there then may have gone before.
    pub fn take(
        &mut self,
        looked: &[Known],
        looked_at: u64,
        told: impl IntoIterator<Item = Seen>,
        own: u32,
        now: Instant,
    ) -> Vec<News> {
        let looked: BTreeSet<_> = looked
            .iter()
            .filter(|known| known.state != State::Detached)
            .map(|known| (known.device.port.as_str(), known.device.number))
            .collect();
        let on_its_way_out = u64::try_from(ON_ITS_WAY_OUT.as_nanos()).unwrap_or(u64::MAX);
        let mut news = Vec::new();
        for seen in told {
            let Seen { at, change, device, by } = seen;
            if matches!(change, Change::Attached | Change::Detached)
                && at.saturating_add(on_its_way_out) >= looked_at
                && let Some(entry) = self.ports.get_mut(&device.port)
            {
                // It was there when it was looked at.
                entry.looked |= looked.contains(&(device.port.as_str(), entry.device.number));
            }
            let entry = self.ports.get_mut(&device.port);
            let entry = entry.filter(|entry| entry.device.number == device.number);
            match (change, entry) {
                (Change::Attached, _) => {
                    let entry = Entry { device: device.clone(), looked: false, passed: None };
                    let before = self.ports.insert(device.port.clone(), entry);
                    // That it went was lost.
                    news.extend(before.and_then(passed));
                }
                (Change::Detached, Some(entry)) if !entry.looked && entry.passed.is_none() => {
                    entry.passed = Some(now);
                    // As it was when it came, or was changed last.
                    let device = entry.device.clone();
                    news.push(News { state: State::Passed, device, by: None });
                }
                (Change::Detached, _) => {
                    // If it is another one that went, the end of this one was lost.
                    news.extend(self.ports.remove(&device.port).and_then(passed));
                }
                (Change::InterfaceCame | Change::InterfaceWent, entry) => {
                    let mut device = device;
                    if change == Change::InterfaceWent {
                        device.configuration = None;
                    }
                    // Of devices that were there before the programs, nothing is known yet.
                    let changed = match entry {
                        Some(entry) => {
                            let changed = difference(&entry.device, &device);
                            entry.device.authorized = device.authorized;
                            entry.device.configuration = device.configuration.clone();
                            changed
                        }
                        None => {
                            let known =
                                Entry { device: device.clone(), looked: true, passed: None };
                            self.ports.insert(device.port.clone(), known);
                            Some(if device.configuration.is_some() {
                                State::Configured
                            } else if device.authorized {
                                State::Unconfigured
                            } else {
                                State::Deauthorized
                            })
                        }
                    };
                    if let (Some(state), Some(by)) = (changed, by.filter(|by| by.pid != own)) {
                        news.push(News { state, device, by: Some(by) });
                    }
                }
            }
        }
        for (port, entry) in &mut self.ports {
            entry.looked |= looked.contains(&(port.as_str(), entry.device.number));
        }
        news
    }

    /// Whether a look has found a device on its way out, of which was told that it came and went.
    #[must_use]
    pub fn has_told(&self, known: &Known, now: Instant) -> bool {
        let entry = self.ports.get(&known.device.port);
        entry.filter(|entry| entry.device.number == known.device.number).is_some_and(|entry| {
            let since = entry.passed.map(|passed| now.saturating_duration_since(passed));
            since.is_some_and(|since| since < ON_ITS_WAY_OUT)
        })
    }
}

fn passed(entry: Entry) -> Option<News> {
    let unseen = !entry.looked && entry.passed.is_none();
    unseen.then_some(News { state: State::Passed, device: entry.device, by: None })
}

fn difference(before: &Device, now: &Device) -> Option<State> {
    match (before.authorized, now.authorized) {
        (false, true) => Some(State::Authorized),
        (true, false) => Some(State::Deauthorized),
        _ if before.configuration == now.configuration => None,
        _ if now.configuration.is_some() => Some(State::Configured),
        _ => Some(State::Unconfigured),
    }
}

#[cfg(test)]
mod tests;
