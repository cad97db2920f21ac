//! Bundles and catalogs among the servers: in chunks, each with a subject of its own, so that a device can
//! read them one by one, and only those of its own and of its groups.

use std::{
    fs::File,
    io::{Seek, Write},
    path::Path,
    time::Duration,
};

use async_nats::{Client, jetstream::Context};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use super::{
    FleetError, direct,
    names::{BUNDLES, CATALOGS, Target},
    patiently,
    words::Stored,
};

/// Bytes of a chunk. What was asked for and is not sent yet is in a server's memory, for each device that it
/// serves: with these two, 256 KiB.
pub const CHUNK: usize = 128 << 10;

/// Chunks that are on their way at once.
const AT_ONCE: usize = 2;

/// How often a chunk is asked for that is not there.
const ATTEMPTS: u32 = 6;

/// What is carried in chunks. Each kind has a stream of its own, so that none takes the room of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A policy's bundle.
    Bundle,
    /// A catalog with its signatures.
    Catalog,
}

impl Kind {
    /// Where it is stored.
    #[must_use]
    pub const fn stream(self) -> &'static str {
        match self {
            Self::Bundle => BUNDLES,
            Self::Catalog => CATALOGS,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Bundle => "bundle",
            Self::Catalog => "catalog",
        }
    }

    /// What the subjects of its chunks begin with.
    #[must_use]
    pub fn prefix(self, at: &Target, sha256: &str) -> String {
        let place = match self {
            Self::Bundle => at.bundles(),
            Self::Catalog => at.catalogs(),
        };
        format!("{place}.{sha256}")
    }
}

fn subject(kind: Kind, what: &Stored, number: u64) -> String {
    format!("{}.{number}", kind.prefix(&what.at, &what.sha256))
}

/// How many chunks so many bytes are.
const fn chunks(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK as u64)
}

/// Stores something for somebody. What is there already is stored anew.
///
/// # Errors
/// If the servers do not take it.
pub async fn store(
    context: &Context,
    kind: Kind,
    at: Target,
    content: Bytes,
) -> Result<Stored, FleetError> {
    let bytes = content.len() as u64;
    let stored = Stored { at, sha256: hex::encode(Sha256::digest(&content)), bytes };
    let sending = (0..chunks(bytes)).map(|number| {
        let start = usize::try_from(number).unwrap_or(usize::MAX) * CHUNK;
        let chunk = content.slice(start..content.len().min(start + CHUNK));
        let subject = subject(kind, &stored, number);
        async move {
            let store =
                || async { context.publish(subject.clone(), chunk.clone()).await?.await.map(drop) };
            patiently("storing it", store).await
        }
    });
    stream::iter(sending).buffered(AT_ONCE).try_collect::<()>().await?;
    Ok(stored)
}

/// Brings what is stored into a file without a name in `folder`. What it says is judged by others.
///
/// # Errors
/// If it does not come wholly, or is another than was meant.
pub async fn fetch(
    client: &Client,
    kind: Kind,
    what: &Stored,
    folder: &Path,
) -> Result<File, FleetError> {
    let wrong = |why: &str| FleetError::Broken(format!("the {} {why}", kind.word()));
    let mut file = tempfile::tempfile_in(folder)?;
    let mut hash = Sha256::new();
    let mut left = what.bytes;
    let coming =
        (0..chunks(what.bytes)).map(|number| chunk(client, kind, subject(kind, what, number)));
    let mut coming = stream::iter(coming).buffered(AT_ONCE);
    while let Some(bytes) = coming.try_next().await? {
        if bytes.len() as u64 != left.min(CHUNK as u64) {
            return Err(wrong("has a part of another length"));
        }
        left -= bytes.len() as u64;
        hash.update(&bytes);
        // One chunk to a local disk; the rest of this process can wait for it.
        file.write_all(&bytes)?;
    }
    if hex::encode(hash.finalize()) != what.sha256 {
        return Err(wrong("is not the one that was meant"));
    }
    file.rewind()?;
    Ok(file)
}

async fn chunk(client: &Client, kind: Kind, subject: String) -> Result<Bytes, FleetError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match direct::last(client, kind.stream(), &subject).await {
            Ok(Some(found)) => return Ok(found.bytes),
            // A server that has fallen behind has not got it yet; another may answer the next time.
            Ok(None) if attempt < ATTEMPTS => {
                sleep(Duration::from_millis(100) * (1 << attempt)).await;
            }
            Ok(None) => {
                let why = format!("a part of the {} is not there", kind.word());
                return Err(FleetError::Broken(why));
            }
            Err(error) => return Err(error),
        }
    }
}
