//! The device's own key, which seals what it has recorded.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

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
}

impl DeviceKey {
    /// The key in a folder; made if there is none.
    ///
    /// # Errors
    /// If it cannot be read or made, for people.
    pub fn open(state: &Path) -> Result<Self, String> {
        let path = state.join(PRIVATE);
        let about = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(state, &path).map_err(|error| about(&error))?
            }
            Err(error) => return Err(about(&error)),
        };
        let private = PrivateKey::read(&text).map_err(|error| about(&error))?;
        // So that a wrong kind of key is found now.
        raw(&private, b"").map_err(|error| about(&error))?;
        Ok(Self { private })
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

fn make(state: &Path, path: &Path) -> io::Result<Vec<u8>> {
    let made = key::generate_ed25519().map_err(io::Error::other)?;
    fs::create_dir_all(state)?;
    // The public half first: who finds a private key finds that too.
    durable::replace(&state.join(PUBLIC), |out| out.write_all(made.public.as_bytes()))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(made.private.as_bytes()).and_then(|()| file.sync_all());
    if let Err(error) = written {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(made.private.as_bytes().to_vec())
}
