//! The device's own key, which seals what it has recorded.

use std::{fs, io, path::Path};

use crate::{
    durable,
    trust::{
        key::{self, PublicKey},
        sign::{PrivateKey, raw},
    },
};

/// The private key in the agent's folder for state, readable by root only.
pub const PRIVATE: &str = "device.key";

/// The public key beside it.
pub const PUBLIC: &str = "device.pub";

/// The device's key.
pub struct DeviceKey {
    private: PrivateKey,
    /// What to tell if it is another one than before.
    replaced: Option<String>,
}

impl DeviceKey {
    /// The key in a folder; made if there is none. The public half beside it is put right.
    ///
    /// # Errors
    /// If it cannot be read or made, for people.
    pub fn open(state: &Path) -> Result<Self, String> {
        let path = state.join(PRIVATE);
        let about = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let (text, is_new) = match fs::read(&path) {
            Ok(text) => (text, false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (make(&path).map_err(|error| about(&error))?, true)
            }
            Err(error) => return Err(about(&error)),
        };
        let private = PrivateKey::read(&text).map_err(|error| about(&error))?;
        // So that a wrong kind of key is found now.
        raw(&private, b"").map_err(|error| about(&error))?;
        let beside = state.join(PUBLIC);
        let public = private.public().pem().map_err(|error| about(&error))?;
        let known = fs::read_to_string(&beside);
        if known.as_ref().is_ok_and(|text| *text == public) {
            return Ok(Self { private, replaced: None });
        }
        // What is no key any more says nothing of another one.
        let other = known.ok().and_then(|text| PublicKey::read(text.as_bytes()).ok());
        let is_lost = other.is_some_and(|other| other.id() != private.public().id());
        let replaced = is_lost.then(|| {
            let how = if is_new { "made" } else { "put there" };
            let path = path.display();
            format!("{path} was lost, and another one was {how}: give receivers the new {PUBLIC}")
        });
        durable::replace(&beside, |out| out.write_all(public.as_bytes()))
            .map_err(|error| format!("{}: {error}", beside.display()))?;
        Ok(Self { private, replaced })
    }

    /// What to tell if this is not the key that was here before.
    #[must_use]
    pub fn replaced(&self) -> Option<&str> {
        self.replaced.as_deref()
    }

    /// The public half.
    #[must_use]
    pub const fn public(&self) -> &PublicKey {
        self.private.public()
    }

    /// Signs a text. None if the library fails, which it does not with the keys that are accepted.
    #[must_use]
    pub fn sign(&self, text: &[u8]) -> Option<[u8; 64]> {
        raw(&self.private, text).ok()
    }
}

fn make(path: &Path) -> io::Result<Vec<u8>> {
    let made = key::generate_ed25519().map_err(io::Error::other)?;
    // Readable by root only from its first byte on, and whole whenever this is killed.
    durable::replace(path, |out| out.write_all(made.private.as_bytes()))?;
    Ok(made.private.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_lost_is_told_and_its_public_half_put_right() {
        let state = tempfile::tempdir().expect("a folder");
        let at = |name: &str| state.path().join(name);
        let first = DeviceKey::open(state.path()).expect("made");
        assert_eq!(first.replaced(), None);
        let public = fs::read(at(PUBLIC)).expect("written");
        for damage in [&b""[..], b"garbage"] {
            fs::write(at(PUBLIC), damage).expect("written");
            assert_eq!(DeviceKey::open(state.path()).expect("there").replaced(), None);
            assert_eq!(fs::read(at(PUBLIC)).expect("written"), public);
        }
        fs::write(at(PRIVATE), "").expect("written");
        assert!(DeviceKey::open(state.path()).is_err(), "what is damaged is not thrown away");
        fs::remove_file(at(PRIVATE)).expect("removed");
        let second = DeviceKey::open(state.path()).expect("made");
        assert!(second.replaced().is_some_and(|told| told.contains("was lost")));
        assert_ne!(fs::read(at(PUBLIC)).expect("written"), public);
    }
}
