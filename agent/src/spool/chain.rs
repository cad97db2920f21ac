//! Records in a chain: each carries the hash of the one before it.
//!
//! There are two chains, because what was allowed has to make room before what was refused: like
//! that a chain only ever loses whole stretches, which can be told exactly.

use portcullis_common::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::event::{Body, Decision};

/// Which of the two chains a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chain {
    /// Refusals, losses, and everything that the agent itself has to say.
    Main,
    /// Decisions that let something pass: the first to make room.
    Allowed,
}

impl Chain {
    /// Both, the first to make room last.
    pub const ALL: [Self; 2] = [Self::Main, Self::Allowed];

    /// The word for it, as in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Allowed => "allowed",
        }
    }

    /// Where a record belongs.
    #[must_use]
    pub fn of(body: &Body) -> Self {
        match body {
            Body::Decision(decision) => Self::of_decision(decision),
            _ => Self::Main,
        }
    }

    /// Where a decision belongs.
    #[must_use]
    pub fn of_decision(decision: &Decision) -> Self {
        match decision.outcome {
            "deny" | "would-deny" => Self::Main,
            _ => Self::Allowed,
        }
    }
}

/// The end of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Number of the latest record in this chain; 0 if there is none.
    pub link: u64,
    /// SHA-256 of its line without the newline; zeros if there is none.
    #[serde(with = "hex")]
    pub hash: Digest,
}

/// The ends of both chains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heads {
    /// Of refusals and everything else.
    pub main: Head,
    /// Of what was allowed.
    pub allowed: Head,
}

impl Heads {
    /// The end of one chain.
    #[must_use]
    pub const fn of(&self, chain: Chain) -> &Head {
        match chain {
            Chain::Main => &self.main,
            Chain::Allowed => &self.allowed,
        }
    }

    /// The end of one chain, to be moved.
    pub const fn of_mut(&mut self, chain: Chain) -> &mut Head {
        match chain {
            Chain::Main => &mut self.main,
            Chain::Allowed => &mut self.allowed,
        }
    }
}

/// What a line says of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Counts the records of both chains over restarts.
    pub record: u64,
    /// The chain.
    pub chain: Chain,
    /// Counts the records of this chain, without gaps.
    pub link: u64,
    /// Hash of the line before in this chain.
    #[serde(with = "hex")]
    pub prev: Digest,
}

impl Place {
    /// Reads it from a line.
    ///
    /// # Errors
    /// If it is no record, for people.
    pub fn read(line: &str) -> Result<Self, String> {
        serde_json::from_str(line).map_err(|error| error.to_string())
    }
}

/// Number of the record in a line that this agent has written; much faster than reading it all.
#[must_use]
pub fn record_of(line: &[u8]) -> Option<u64> {
    let rest = line.strip_prefix(b"{\"record\":")?;
    let end = rest.iter().position(|byte| *byte == b',')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// SHA-256 of a line without its newline.
#[must_use]
pub fn hash(line: &[u8]) -> Digest {
    Sha256::digest(line).into()
}

/// Where the next record goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Number of the latest record of both chains.
    pub record: u64,
    /// The ends of the chains.
    pub heads: Heads,
}

impl End {
    /// Makes a line of an event: a JSON object, which gets its place at the front and the text for people
    /// at the back.
    pub fn link(&mut self, chain: Chain, event: &str, text: &str) -> (Place, String) {
        self.record += 1;
        let head = self.heads.of_mut(chain);
        let place = Place { record: self.record, chain, link: head.link + 1, prev: head.hash };
        let members = event.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let line = format!(
            "{{\"record\":{},\"chain\":\"{}\",\"link\":{},\"prev\":\"{}\",{},\"text\":{}}}",
            place.record,
            chain.word(),
            place.link,
            hex::encode(place.prev),
            members.unwrap_or("\"schema\":1"),
            serde_json::Value::from(text),
        );
        *head = Head { link: place.link, hash: hash(line.as_bytes()) };
        (place, line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_carry_the_hash_of_the_one_before() {
        let mut end = End::default();
        let (_, first) = end.link(Chain::Main, "{\"n\":1}", "one \"quoted\"\n");
        let (other, _) = end.link(Chain::Allowed, "{\"n\":2}", "two");
        let (place, second) = end.link(Chain::Main, "{\"n\":3}", "three");
        assert_eq!((other.record, other.link, other.prev), (2, 1, [0; 32]));
        assert_eq!((place.record, place.link, place.prev), (3, 2, hash(first.as_bytes())));
        assert_eq!(Place::read(&second), Ok(place));
        assert_eq!(record_of(second.as_bytes()), Some(3));
        let value: serde_json::Value = serde_json::from_str(&first).expect("JSON");
        assert_eq!((&value["n"], &value["text"]), (&1.into(), &"one \"quoted\"\n".into()));
        assert_eq!(record_of(b"{\"record\":x,"), None);
    }
}
