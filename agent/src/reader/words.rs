//! What the agent and a reading process say to each other.
//!
//! A word is its length (four bytes, the lowest first) and JSON; what the agent gives follows its word.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Bytes of a word: every mistake in a policy.
const MAX_WORD: u32 = 256 << 10;

/// Bytes of a bundle that are given at once, while only its head is read.
pub const BLOCK: usize = 512;

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// A policy file with everything that it names.
    Policy {
        /// Its name.
        #[serde(with = "hex::serde")]
        file: Vec<u8>,
    },
    /// The manifest of a bundle, and the signatures over it.
    BundleHead {
        /// Bytes of the bundle.
        length: u64,
    },
    /// A bundle with the policy in it.
    Bundle,
    /// A catalog, or the change of a key, with what signs it.
    Document {
        /// Its name.
        #[serde(with = "hex::serde")]
        file: Vec<u8>,
        /// Whether it changes a key.
        is_rotation: bool,
    },
    /// A catalog with its signatures in one.
    Parcel,
    /// A token that lifts enforcement or takes the gates down.
    Token,
}

/// What a reading process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Word {
    /// It has nothing any more but its socket.
    Alone {
        /// What was taken from it, for people.
        how: String,
    },
    /// It asks for something by name.
    Give {
        /// A file of the policy, or a piece of what is to be read.
        #[serde(with = "hex::serde")]
        name: Vec<u8>,
    },
    /// It asks for so many bytes of the bundle.
    Block {
        /// From this block on, counted from 0.
        number: u64,
    },
    /// It has read everything to the end.
    Read,
    /// It has read, and what it has read is not what it should be.
    Refused {
        /// A stable word.
        reason: String,
        /// For people.
        message: String,
    },
}

/// What the agent answers to a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Given {
    /// So many bytes follow.
    Bytes(u64),
    /// There is none of that name.
    Nothing,
    /// It cannot be read, with advice if there is any.
    Cannot(String, Option<String>),
}

/// Writes a word.
///
/// # Errors
/// If the other side is not there any more, or the word is too long.
pub fn say(out: &mut impl Write, word: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(word)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= MAX_WORD);
    let length = length.ok_or(io::ErrorKind::InvalidInput)?;
    out.write_all(&[&length.to_le_bytes()[..], &text].concat())
}

/// Waits for a word.
///
/// # Errors
/// If the other side is not there any more, or that is no word.
pub fn hear<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_WORD {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length as usize];
    from.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}
