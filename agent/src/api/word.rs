//! What the door to the network tells the agent of itself, and of those whom it has refused: lines of JSON
//! in the body of one request, which lasts for as long as the door is there.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::refusals::Refused;

/// Where the door tells it.
pub const PATH: &str = "/v1/door";

/// Bytes of a word.
pub const MAX_WORD: usize = 64 << 10;

/// Characters of what is told for people.
const MAX_MESSAGE: usize = 300;

/// Why the door refuses somebody. Nobody is refused by it for another reason.
const REASONS: [&str; 7] = [
    "too-many",
    "too-slow",
    "no-certificate",
    "expired-certificate",
    "wrong-certificate",
    "no-tls",
    "handshake",
];

/// How many may be counted by one word.
const MAX_COUNT: u64 = 1_000_000;

/// A word of the door.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "word")]
pub enum Word {
    /// It listens.
    Listening {
        /// Where.
        address: SocketAddr,
        /// How long its certificate is good.
        good_until: Option<Timestamp>,
    },
    /// It does not, and tries again.
    CannotListen {
        /// What keeps it.
        kept_by: KeptBy,
        /// Why, for people.
        why: String,
    },
    /// It has refused somebody.
    Refused(TurnedAway),
}

/// What keeps the door from listening. What to do about it is the agent's to say, and not a stranger's who may
/// have taken the door over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeptBy {
    /// A file that cannot be read or understood.
    Files,
    /// The address or the port.
    Address,
}

/// Somebody whom the door has refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnedAway {
    /// Why, as a stable word.
    pub reason: String,
    /// Why, for people.
    pub message: String,
    /// How many since the last word of this reason.
    pub count: u64,
    /// Where they came from.
    pub address: SocketAddr,
    /// Their certificates, as in a head, if they were good.
    pub certificates: Option<String>,
}

impl TurnedAway {
    /// The reason, if it is one.
    fn known_reason(&self) -> Option<&'static str> {
        REASONS.into_iter().find(|known| *known == self.reason)
    }
}

impl Refused for TurnedAway {
    fn reason(&self) -> &'static str {
        self.known_reason().unwrap_or("handshake")
    }

    fn count(&mut self) -> &mut u64 {
        &mut self.count
    }
}

/// Text for people as far as the agent takes it from the door.
fn plain(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(MAX_MESSAGE).collect()
}

impl Word {
    /// A word as it is sent.
    pub fn line(&self) -> Option<String> {
        let mut line = serde_json::to_string(self).ok()?;
        line.push('\n');
        (line.len() <= MAX_WORD).then_some(line)
    }

    /// Reads a line as far as the agent takes it from a door that others may have taken over; none if it
    /// is nothing that a door says.
    pub fn read(line: &[u8]) -> Option<Self> {
        Some(match serde_json::from_slice(line).ok()? {
            Self::Refused(turned) => {
                turned.known_reason()?;
                let count = turned.count.clamp(1, MAX_COUNT);
                let message = plain(&turned.message);
                Self::Refused(TurnedAway { message, count, ..turned })
            }
            Self::CannotListen { kept_by, why } => Self::CannotListen { kept_by, why: plain(&why) },
            listening @ Self::Listening { .. } => listening,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(reason: &str, message: &str, count: u64) -> Word {
        Word::Refused(TurnedAway {
            reason: reason.into(),
            message: message.into(),
            count,
            address: ([10, 0, 0, 1], 7).into(),
            certificates: None,
        })
    }

    fn arrives(word: &Word) -> Option<Word> {
        Word::read(word.line().expect("short").as_bytes())
    }

    #[test]
    fn words_arrive() {
        let address = ([10, 0, 0, 1], 7443).into();
        for word in [
            Word::Listening { address, good_until: Some(Timestamp::UNIX_EPOCH) },
            Word::CannotListen { kept_by: KeptBy::Files, why: "a".into() },
            turned("too-slow", "slow", 3),
        ] {
            assert_eq!(arrives(&word), Some(word));
        }
    }

    #[test]
    fn what_is_said_too_loud_is_cut() {
        let loud = turned("no-tls", &format!("\u{1b}[2J\n{}", "x".repeat(5000)), u64::MAX);
        let expected = turned("no-tls", &format!("[2J{}", "x".repeat(MAX_MESSAGE - 3)), MAX_COUNT);
        assert_eq!(arrives(&loud), Some(expected));
        assert_eq!(arrives(&turned("no-tls", "", 0)), Some(turned("no-tls", "", 1)));
        // What the agent alone decides is not the door's to say.
        for reason in ["role", "unknown-certificate", "", "TOO-MANY"] {
            assert_eq!(arrives(&turned(reason, "", 1)), None, "{reason}");
        }
        assert_eq!(turned("no-tls", &"x".repeat(MAX_WORD), 1).line(), None);
        for garbage in [&b""[..], b"{", b"[]", b"{\"word\":\"stop\"}", &[0xff; 32]] {
            assert_eq!(Word::read(garbage), None);
        }
    }
}
