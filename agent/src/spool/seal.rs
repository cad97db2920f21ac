//! Checkpoints: the device signs where its chains are.

use serde::{Deserialize, Serialize};

use super::{
    chain::{End, Heads},
    key::DeviceKey,
    segments::Lane,
};
use crate::trust::{Scheme, key::PublicKey};

/// Where both chains were, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Number of the latest record before this one.
    pub sealed: u64,
    /// The ends of the chains.
    pub heads: Heads,
    /// The key that signed: SHA-256 of its DER form.
    pub key: String,
    /// Ed25519 over [`Self::statement`], in hexadecimal.
    pub signature: String,
}

impl Seal {
    /// Signs where the chains are.
    #[must_use]
    pub fn sign(end: &End, key: &DeviceKey) -> Option<Self> {
        let mut seal = Self {
            sealed: end.record,
            heads: end.heads,
            key: hex::encode(key.public().id()),
            signature: String::new(),
        };
        seal.signature = hex::encode(key.sign(seal.statement().as_bytes())?);
        Some(seal)
    }

    /// What is signed.
    #[must_use]
    pub fn statement(&self) -> String {
        let Self { sealed, heads: Heads { main, allowed }, key, .. } = self;
        format!(
            "portcullis checkpoint 1\nkey {key}\nrecord {sealed}\nmain {} {}\nallowed {} {}\n",
            main.link,
            hex::encode(main.hash),
            allowed.link,
            hex::encode(allowed.hash)
        )
    }

    /// Whether the key has signed this.
    #[must_use]
    pub fn is_by(&self, key: &PublicKey) -> bool {
        let signature = hex::decode(&self.signature).unwrap_or_default();
        self.key == hex::encode(key.id())
            && key.verify(self.statement().as_bytes(), Scheme::Ed25519, &signature).is_ok()
    }
}

/// What the latest checkpoint in the newest file of a chain says.
#[must_use]
pub fn latest(lane: &Lane) -> Option<Heads> {
    #[derive(Deserialize)]
    struct Line {
        r#type: String,
        heads: Heads,
    }
    let text = std::fs::read_to_string(&lane.segments().last()?.path).ok()?;
    let lines = text.lines().rev().filter(|line| line.contains("\"checkpoint\""));
    let mut lines = lines.filter_map(|line| serde_json::from_str::<Line>(line).ok());
    Some(lines.find(|line| line.r#type == "checkpoint")?.heads)
}
