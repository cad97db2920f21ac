//! What a device says of itself before a driver is bound: its descriptors, as the kernel keeps them in
//! the file `descriptors`. Whoever made the device chose every byte.

use std::collections::BTreeSet;

use thiserror::Error;

use super::Class;

/// The largest that are read: eight configurations (`USB_MAXCONFIG`) of 65,535 bytes, and the device's.
pub const MAX_BYTES: usize = DEVICE_BYTES + 8 * 65_535;

/// Kinds of interface that a device may have. The most that real devices have is a dozen.
const MAX_CLASSES: usize = 64;

const DEVICE_BYTES: usize = 18;
const DEVICE: u8 = 1;
const CONFIGURATION: u8 = 2;
const INTERFACE: u8 = 4;

/// What descriptors say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// The maker's number.
    pub vendor: u16,
    /// The maker's number for the product.
    pub product: u16,
    /// The device's own class; `00:00:00` if its interfaces say it.
    pub class: Class,
    /// Every kind of interface that the device can show, in any of its configurations and alternate
    /// settings.
    pub interfaces: BTreeSet<Class>,
    /// How many interfaces it has, with each of their alternate settings, in all of its configurations.
    pub interface_count: usize,
}

/// Why descriptors cannot be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// They begin with something else.
    #[error("they do not begin with a device descriptor")]
    NoDevice,
    /// A length that leads nowhere.
    #[error("a descriptor's length leads out of them")]
    Length,
    /// More than the kernel reads.
    #[error("they are longer than eight configurations can be")]
    TooLong,
    /// Configurations are missing, or there are others.
    #[error("they have {found} configurations and announce {announced}")]
    Configurations {
        /// How many there are.
        found: usize,
        /// How many the device says that it has.
        announced: u8,
    },
    /// No device needs so many.
    #[error("they have more than {MAX_CLASSES} kinds of interface")]
    TooManyInterfaces,
}

/// Reads descriptors.
///
/// They are followed from one to the next by their lengths, as the kernel does: what it keeps of a
/// configuration may be shorter than the configuration says.
///
/// # Errors
/// If they are not what USB says that they should be.
pub fn parse(bytes: &[u8]) -> Result<Descriptors, Malformed> {
    if bytes.len() > MAX_BYTES {
        return Err(Malformed::TooLong);
    }
    let (device, mut rest) = bytes.split_at_checked(DEVICE_BYTES).ok_or(Malformed::NoDevice)?;
    if usize::from(device[0]) != DEVICE_BYTES || device[1] != DEVICE {
        return Err(Malformed::NoDevice);
    }
    let mut read = Descriptors {
        vendor: u16::from_le_bytes([device[8], device[9]]),
        product: u16::from_le_bytes([device[10], device[11]]),
        class: Class([device[4], device[5], device[6]]),
        interfaces: BTreeSet::new(),
        interface_count: 0,
    };
    let mut configurations = 0;
    while !rest.is_empty() {
        let length = usize::from(rest[0]);
        let (one, after) = match rest.split_at_checked(length) {
            Some(split) if length >= 2 => split,
            _ => return Err(Malformed::Length),
        };
        match one[1] {
            CONFIGURATION => configurations += 1,
            INTERFACE if length >= 9 => {
                read.interface_count += 1;
                read.interfaces.insert(Class([one[5], one[6], one[7]]));
                if read.interfaces.len() > MAX_CLASSES {
                    return Err(Malformed::TooManyInterfaces);
                }
            }
            _ => {}
        }
        rest = after;
    }
    let announced = device[17];
    if configurations != usize::from(announced) {
        return Err(Malformed::Configurations { found: configurations, announced });
    }
    Ok(read)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Descriptors of a device with one configuration that has these interfaces.
    pub fn made(vendor: u16, product: u16, interfaces: &[[u8; 3]]) -> Vec<u8> {
        let ([v0, v1], [p0, p1]) = (vendor.to_le_bytes(), product.to_le_bytes());
        let mut bytes = vec![18, 1, 0, 2, 0, 0, 0, 64, v0, v1, p0, p1, 0, 1, 1, 2, 3, 1];
        bytes.extend([9, 2, 0xff, 0, 1, 1, 0, 0x80, 50]);
        for (number, [class, subclass, protocol]) in (0u8..).zip(interfaces) {
            bytes.extend([9, 4, number, 0, 1, *class, *subclass, *protocol, 0]);
            bytes.extend([7, 5, 0x81, 2, 0, 2, 0]);
        }
        bytes
    }

    #[test]
    fn every_interface_of_every_configuration_is_seen() {
        let mut bytes = made(0x0781, 0x5581, &[[8, 6, 0x50]]);
        bytes[17] = 2;
        bytes.extend(&made(0, 0, &[[3, 1, 1], [8, 6, 0x50]])[18..]);
        let read = parse(&bytes).expect("good");
        assert_eq!((read.vendor, read.product, read.interface_count), (0x0781, 0x5581, 3));
        assert_eq!(
            read.interfaces.into_iter().collect::<Vec<_>>(),
            [Class([3, 1, 1]), Class([8, 6, 0x50])]
        );
    }

    #[test]
    fn what_leads_nowhere_is_malformed() {
        let good = made(1, 2, &[[8, 6, 0x50]]);
        assert_eq!(parse(&[]), Err(Malformed::NoDevice));
        assert_eq!(parse(&good[1..]), Err(Malformed::NoDevice));
        assert_eq!(parse(&good[..good.len() - 1]), Err(Malformed::Length));
        for length in [0, 1, 200] {
            let mut bad = good.clone();
            bad[27] = length;
            assert_eq!(parse(&bad), Err(Malformed::Length), "{length}");
        }
        let mut bad = good.clone();
        bad[17] = 2;
        assert_eq!(parse(&bad), Err(Malformed::Configurations { found: 1, announced: 2 }));
        assert_eq!(parse(&vec![0; MAX_BYTES + 1]), Err(Malformed::TooLong));
        let many: Vec<_> = (0..=64).map(|number| [0xff, 0, number]).collect();
        assert_eq!(parse(&made(1, 2, &many)), Err(Malformed::TooManyInterfaces));
    }
}
