//! How many may be here at once: few who have not said yet who they are, and few of each who have.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex},
};

use crate::sync::lock;

/// Connections whose handshake is not over.
const WAITING: usize = 64;

/// Of these, from one address; or of one network, where everybody has many addresses.
const WAITING_FROM_ONE: usize = 16;

/// Connections of holders of good certificates.
const KNOWN: usize = 64;

/// Of these, of one certificate.
const KNOWN_OF_ONE: usize = 16;

#[derive(Default)]
struct Counts {
    waiting: usize,
    known: usize,
    by_address: HashMap<IpAddr, usize>,
    by_certificate: HashMap<String, usize>,
}

/// Everybody who is here.
#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<Counts>>);

enum As {
    Waiting(IpAddr),
    Known(String),
}

/// A place that is taken; it is free again when this is dropped.
pub struct Place {
    places: Places,
    taken: As,
}

/// Those who share what one attacker has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

fn give_back<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Places {
    /// A place for somebody who has just come, if there is one.
    pub fn come(&self, address: IpAddr) -> Option<Place> {
        let network = network(address);
        let mut counts = lock(&self.0);
        if counts.waiting >= WAITING {
            return None;
        }
        let from_there = counts.by_address.entry(network).or_default();
        if *from_there >= WAITING_FROM_ONE {
            return None;
        }
        *from_there += 1;
        counts.waiting += 1;
        drop(counts);
        Some(Place { places: self.clone(), taken: As::Waiting(network) })
    }
}

impl Place {
    /// A place for somebody who has shown this certificate, if there is one.
    pub fn known(self, fingerprint: &str) -> Option<Self> {
        let places = self.places.clone();
        drop(self);
        let mut counts = lock(&places.0);
        if counts.known >= KNOWN {
            return None;
        }
        let of_it = counts.by_certificate.entry(fingerprint.to_owned()).or_default();
        if *of_it >= KNOWN_OF_ONE {
            return None;
        }
        *of_it += 1;
        counts.known += 1;
        drop(counts);
        Some(Self { places, taken: As::Known(fingerprint.to_owned()) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.places.0);
        match &self.taken {
            As::Waiting(network) => {
                counts.waiting -= 1;
                give_back(&mut counts.by_address, network);
            }
            As::Known(fingerprint) => {
                counts.known -= 1;
                give_back(&mut counts.by_certificate, fingerprint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all() {
        let places = Places::default();
        let from = |text: &str| places.come(text.parse().expect("an address"));
        let taken: Vec<_> = (0..100).filter_map(|_| from("10.0.0.1")).collect();
        assert_eq!(taken.len(), WAITING_FROM_ONE);
        assert!(from("::ffff:10.0.0.1").is_none(), "the same address, written otherwise");
        // A network of them.
        let six: Vec<_> = (0..100).filter_map(|n| from(&format!("2001:db8::{n:x}"))).collect();
        assert_eq!(six.len(), WAITING_FROM_ONE);
        let other = from("10.0.0.2").expect("room for others");
        drop((taken, six, other));
        let many: Vec<_> = (0..=255).filter_map(|n| from(&format!("10.0.1.{n}"))).collect();
        assert_eq!(many.len(), WAITING);
        drop(many);
        assert!(lock(&places.0).by_address.is_empty());
        assert_eq!(lock(&places.0).waiting, 0);
    }

    #[test]
    fn one_certificate_does_not_take_all() {
        let places = Places::default();
        let known = |name: &str| {
            places.come("10.0.0.1".parse().expect("an address")).and_then(|place| place.known(name))
        };
        let ann: Vec<_> = (0..100).filter_map(|_| known("ann")).collect();
        assert_eq!(ann.len(), KNOWN_OF_ONE);
        assert!(known("bob").is_some());
        drop(ann);
        let many: Vec<_> = (0..200).filter_map(|n| known(&n.to_string())).collect();
        assert_eq!(many.len(), KNOWN);
        drop(many);
        assert!(lock(&places.0).by_certificate.is_empty());
    }
}
