use portcullis_common::UsbText;

use super::*;
use crate::usb::{
    descriptors::tests::made,
    keeper::tests::known,
    rules::{Action, Verdict},
};

const OWN: u32 = 77;

fn said(text: &str) -> UsbText {
    let mut bytes = [0xee; USB_TEXT];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes[text.len()] = 0;
    UsbText { length: i32::try_from(text.len() + 1).expect("short"), bytes }
}

/// A stick at a port, as the kernel tells of it.
fn record(change: u8, port: &str, number: u32) -> UsbRecord {
    let said_all = made(0x0781, 0x5581, &[[8, 6, 0x50]]);
    let (first, rest) = said_all.split_at(USB_DEVICE_DESCRIPTOR);
    let mut descriptors = [0xee; USB_DESCRIPTORS];
    descriptors[..rest.len()].copy_from_slice(rest);
    let length = u16::try_from(rest.len()).expect("short");
    UsbRecord {
        boot_ns: 1,
        pid: 2,
        number,
        speed: 3,
        change,
        authorized: 0,
        configuration: 0,
        by_kernel: 1,
        comm: *b"kworker/0:1\0\0\0\0\0",
        descriptors_length: length,
        total_length: length,
        port: said(port),
        product: said("Anvil"),
        manufacturer: UsbText { length: 0, bytes: [0xee; USB_TEXT] },
        serial: said("A1"),
        device: first.try_into().expect("18 bytes"),
        descriptors,
        reserved: [0; 2],
    }
}

fn decoded(record: &UsbRecord) -> Option<Seen> {
    // SAFETY: made of integers only, without padding, as is asserted where it is declared.
    let bytes = unsafe {
        std::slice::from_raw_parts(std::ptr::from_ref(record).cast::<u8>(), size_of::<UsbRecord>())
    };
    Seen::decode(bytes)
}

fn seen(change: u8, port: &str, number: u32) -> Seen {
    decoded(&record(change, port, number)).expect("a record")
}

/// What others did to a device: whether drivers may have it, and its configuration.
fn interface(change: u8, pid: u32, authorized: u8, configuration: u8) -> Seen {
    let by_kernel = u8::from(pid == 0);
    let record = record(change, "1-2", 7);
    decoded(&UsbRecord { pid, authorized, configuration, by_kernel, ..record }).expect("a record")
}

fn looked(port: &str, number: u32) -> Known {
    let device = Device { port: port.into(), number, ..Device::default() };
    let verdict = Verdict { action: Action::Hold, reason: "unlisted", rule: None };
    known(device, verdict, State::Held)
}

#[test]
fn a_record_says_everything_of_a_device() {
    let Seen { change, device, by, .. } = seen(usb_change::ATTACHED, "10-2.3", 7);
    assert_eq!((change, by), (Change::Attached, None));
    assert_eq!((device.port.as_str(), device.bus, device.number), ("10-2.3", 10, 7));
    assert_eq!((device.id().as_str(), device.speed.as_str()), ("0781:5581", "480"));
    assert_eq!((device.name.as_str(), device.manufacturer.as_str()), ("Anvil", ""));
    assert_eq!((device.serial.as_deref(), device.flaw.as_deref()), (Some("A1"), None));
    assert!(device.interfaces.contains(&Class([8, 6, 0x50])) && device.interface_count == 1);
    let all = made(0x0781, 0x5581, &[[8, 6, 0x50]]);
    assert_eq!(device.descriptors, Digest::from(Sha256::digest(all)));

    let whole = record(usb_change::INTERFACE_CAME, "1-2", 7);
    let by = decoded(&UsbRecord { by_kernel: 0, ..whole }).expect("a record").by;
    assert_eq!(by, Some(Actor { pid: 2, comm: "kworker/0:1".into() }));
    let flaw = |record: UsbRecord| decoded(&record).expect("a record").device.flaw;
    let more = flaw(UsbRecord { total_length: 900, descriptors_length: 512, ..whole });
    assert!(more.expect("flawed").contains("more descriptors"));
    let damaged = flaw(UsbRecord { device: [0; USB_DEVICE_DESCRIPTOR], ..whole });
    assert!(damaged.expect("flawed").contains("cannot be relied on"));
    let mut serial = said("A1");
    serial.bytes[0] = 0xff;
    assert!(flaw(UsbRecord { serial, ..whole }).expect("flawed").contains("as text"));
    for length in [-14, 129, i32::MAX] {
        let serial = UsbText { length, ..said("A1") };
        assert!(flaw(UsbRecord { serial, ..whole }).is_some());
    }
    // Root hubs belong to the machine.
    assert_eq!(decoded(&record(usb_change::ATTACHED, "usb1", 1)), None);
    assert_eq!(decoded(&record(9, "1-2", 7)), None);
    assert_eq!(Seen::decode(&[0; size_of::<UsbRecord>() - 1]), None);
}

/// When these tests look, in nanoseconds.
const LOOK: u64 = 100_000_000_000;

/// After the look.
fn came(number: u32) -> Seen {
    Seen { at: LOOK + 1, ..seen(usb_change::ATTACHED, "1-2", number) }
}

fn went(number: u32) -> Seen {
    Seen { at: LOOK + 1, ..seen(usb_change::DETACHED, "1-2", number) }
}

/// Long before it.
fn before(seen: Seen) -> Seen {
    Seen { at: LOOK - 20_000_000_000, ..seen }
}

fn numbers(news: &[News]) -> Vec<(State, u32)> {
    news.iter().map(|one| (one.state, one.device.number)).collect()
}

#[test]
fn what_came_and_went_is_told_once_and_nothing_else_is() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let mut take = |looked: &[Known], told: Vec<Seen>| ledger.take(looked, LOOK, told, OWN, now);
    // Looked at when it came.
    assert_eq!(take(&[looked("1-2", 1)], vec![before(came(1))]), []);
    // That went, three came and went, and the last is looked at later.
    let told = vec![went(1), came(2), went(2), came(3), went(3), came(4)];
    let news = take(&[], told);
    assert_eq!(numbers(&news), [(State::Passed, 2), (State::Passed, 3)]);
    assert_eq!(take(&[looked("1-2", 4)], vec![went(4)]), []);
    // A look and the kernel's word cross.
    assert_eq!(take(&[looked("1-2", 5)], vec![before(came(5)), went(5)]), []);
    let on_its_way_out = Seen { at: LOOK - 1, ..went(5) };
    assert_eq!(take(&[looked("1-2", 5)], vec![before(came(5)), on_its_way_out]), []);
    // Its end was lost.
    assert_eq!(take(&[], vec![came(7)]), []);
    assert_eq!(numbers(&take(&[], vec![came(8)])), [(State::Passed, 7)]);
    // Another agent's time.
    assert_eq!(take(&[], vec![seen(usb_change::DETACHED, "1-3", 9)]), []);
    // A look finds one on its way out.
    assert_eq!(take(&[], vec![came(6), went(6)]).len(), 2);
    assert!(ledger.has_told(&looked("1-2", 6), now) && !ledger.has_told(&looked("1-2", 7), now));
    // But not one that has the number of another, long gone.
    assert!(ledger.has_told(&looked("1-2", 6), now + ON_ITS_WAY_OUT / 2));
    assert!(!ledger.has_told(&looked("1-2", 6), now + ON_ITS_WAY_OUT));
}

#[test]
fn numbers_come_again_and_what_was_lost_hides_nobody() {
    let (mut ledger, now) = (Ledger::default(), Instant::now());
    let mut take = |looked: &[Known], told: Vec<Seen>| ledger.take(looked, LOOK, told, OWN, now);
    // The second of this number is the one that was looked at.
    let told = vec![came(1), went(1), came(2), went(2), came(1)];
    let news = take(&[looked("1-2", 1)], told.into_iter().map(before).collect());
    assert_eq!(numbers(&news), [(State::Passed, 1), (State::Passed, 2)]);
    assert_eq!(take(&[], vec![went(1)]), []);
    // Nobody was told of the one that was looked at, which has the number of one that went before.
    let news = take(&[looked("1-2", 3)], vec![before(came(3)), before(went(3))]);
    assert_eq!(numbers(&news), [(State::Passed, 3)]);
    assert_eq!(take(&[], vec![before(came(4))]), []);
    // Nor of the end of that, and the beginning of another, which was looked at.
    assert_eq!(numbers(&take(&[looked("1-2", 5)], vec![went(5)])), [(State::Passed, 4)]);
}

#[test]
fn who_changed_a_device_is_told_and_the_agent_and_the_kernel_are_not() {
    let came = usb_change::INTERFACE_CAME;
    let went = usb_change::INTERFACE_WENT;
    let mut ledger = Ledger::default();
    let mut states = |told: Vec<Seen>| -> Vec<_> {
        let news = ledger.take(&[looked("1-2", 7)], LOOK, told, OWN, Instant::now());
        news.into_iter().map(|news| (news.state, news.by.expect("somebody").pid)).collect()
    };
    let attached = seen(usb_change::ATTACHED, "1-2", 7);
    // Drivers get it, by the kernel's own choice or the agent's.
    assert_eq!(states(vec![attached, interface(came, 0, 1, 1), interface(came, 0, 1, 1)]), []);
    assert_eq!(states(vec![interface(went, OWN, 0, 1), interface(came, OWN, 1, 1)]), []);
    // Two interfaces each.
    let away = vec![interface(went, 5, 0, 1), interface(went, 5, 0, 1)];
    assert_eq!(states(away), [(State::Deauthorized, 5)]);
    let back = vec![interface(came, 5, 1, 1), interface(came, 5, 1, 1)];
    assert_eq!(states(back), [(State::Authorized, 5)]);
    let other = vec![interface(went, 6, 1, 1), interface(came, 6, 1, 2)];
    assert_eq!(states(other), [(State::Unconfigured, 6), (State::Configured, 6)]);
    // Was there before the programs were.
    let told = vec![interface(went, 8, 0, 1)];
    let before = Ledger::default().take(&[], LOOK, told, OWN, Instant::now());
    assert_eq!(before[0].state, State::Deauthorized);
}
