//! Which catalogs a device or a group shall have, as it is said through the servers; and what became of
//! them.

use serde::{Deserialize, Serialize};

use super::words::short;
use crate::{
    artifact::digest,
    catalog::{parcel::MAX_PARCEL, shelf::MAX_KEPT},
    policy::manifest::is_name,
};

/// Bytes of a list.
pub const MAX_LIST: usize = 16 << 10;

/// Catalogs that a device or a group shall have. It replaces the list before; a device that is meant by
/// several lists has what is in any of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Each with a name of its own.
    pub catalogs: Vec<Listed>,
}

/// A catalog in a list. Only the catalog itself, which is signed, says what it is; all that stands here is a
/// hint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its maker's number for it.
    pub version: u64,
    /// SHA-256 of it with its signatures, in hexadecimal.
    pub sha256: String,
    /// Bytes of that.
    pub bytes: u64,
    /// How many digests it lists.
    #[serde(default)]
    pub digests: usize,
    /// How many it takes back.
    #[serde(default)]
    pub withdrawn: usize,
}

impl Listing {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be understood, for people.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MAX_LIST {
            return Err(format!("it has more than {MAX_LIST} bytes"));
        }
        let listing: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if listing.catalogs.len() > MAX_KEPT {
            return Err(format!("it has more than {MAX_KEPT} catalogs"));
        }
        for (index, Listed { name, sha256, bytes, .. }) in listing.catalogs.iter().enumerate() {
            if !is_name(name) {
                return Err("a catalog's name is none".into());
            }
            if listing.catalogs[..index].iter().any(|known| known.name == *name) {
                return Err(format!("catalog {name} is there twice"));
            }
            if digest::parse(sha256).is_err() {
                return Err(format!("the sha256 of catalog {name} is none"));
            }
            if !(1..=MAX_PARCEL).contains(bytes) {
                return Err(format!("catalog {name} has {bytes} bytes, which none has"));
            }
        }
        Ok(listing)
    }

    /// It as it is sent.
    ///
    /// # Errors
    /// If it has too many catalogs, for people.
    pub fn written(&self) -> Result<Vec<u8>, String> {
        let bytes = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        // Whoever reads it has the same bounds.
        Self::read(&bytes)?;
        Ok(bytes)
    }

    /// Puts catalogs in the places of those of the same names.
    pub fn put(&mut self, new: &[Listed]) {
        self.catalogs.retain(|old| !new.iter().any(|new| new.name == old.name));
        self.catalogs.extend_from_slice(new);
        self.catalogs.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

/// What became of a catalog that a device shall have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The device has it. Its status says whether it is in force.
    Here,
    /// The device says no, and does not try it again before the list or its policy is another one.
    Refused,
    /// It could not be had so far, and is tried again.
    Waiting,
    /// The device keeps it although no list has it any more.
    Stays,
}

/// What became of a catalog, as the device says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfCatalog {
    /// Its name.
    pub name: String,
    /// SHA-256 of it with its signatures, in hexadecimal.
    pub sha256: String,
    /// What became of it.
    pub state: State,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl OfCatalog {
    /// One without a reason.
    #[must_use]
    pub fn new(name: &str, sha256: &str, state: State) -> Self {
        Self { name: name.to_owned(), sha256: sha256.to_owned(), state, message: None }
    }

    /// The same with a reason that is not too long to be sent.
    #[must_use]
    pub fn because(self, why: &str) -> Self {
        Self { message: Some(short(why)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str) -> Listed {
        let sha256 = "ab".repeat(32);
        Listed { name: name.into(), version: 1, sha256, bytes: 1, digests: 1, withdrawn: 0 }
    }

    #[test]
    fn a_list_is_read_as_it_was_written_or_not_at_all() {
        let mut good = Listing::default();
        good.put(&[listed("pump"), listed("motor")]);
        let second = Listed { version: 2, ..listed("pump") };
        good.put(std::slice::from_ref(&second));
        assert_eq!(good.catalogs, [listed("motor"), second]);
        assert_eq!(Listing::read(&good.written().expect("written")), Ok(good));
        assert_eq!(Listing::read(b"{\"catalogs\":[]}"), Ok(Listing::default()));

        let long = "n".repeat(crate::policy::manifest::NAME_MAX - 2);
        let many = |count: usize| {
            let names = (0..count).map(|number| format!("{long}{number:02}"));
            let full = |name: String| Listed {
                version: u64::MAX,
                bytes: MAX_PARCEL,
                digests: usize::MAX,
                withdrawn: usize::MAX,
                ..listed(&name)
            };
            Listing { catalogs: names.map(full).collect() }
        };
        let full = many(MAX_KEPT);
        assert_eq!(Listing::read(&full.written().expect("it fits")), Ok(full));
        assert!(many(MAX_KEPT + 1).written().is_err());
        let bad = [
            Listed { name: "../x".into(), ..listed("a") },
            Listed { sha256: "ab".into(), ..listed("a") },
            Listed { bytes: 0, ..listed("a") },
            Listed { bytes: MAX_PARCEL + 1, ..listed("a") },
            listed("pump"),
        ];
        for bad in bad {
            let list = Listing { catalogs: vec![listed("pump"), bad] };
            assert!(Listing::read(&serde_json::to_vec(&list).expect("written")).is_err());
        }
        for bad in ["", "{}", "[]", "{\"catalogs\":{}}"] {
            assert!(Listing::read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(Listing::read(&vec![b' '; MAX_LIST + 1]).is_err());
    }
}
