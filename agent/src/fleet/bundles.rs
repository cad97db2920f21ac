//! Bundles among the servers: in chunks, each with a subject of its own, so that a device can read them
//! one by one, and only those of its own and of its groups.

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
    names::{BUNDLES, Target},
    patiently,
    words::Stored,
};

/// Bytes of a chunk: a message may have 1 MiB, as servers are set up.
pub const CHUNK: usize = 512 << 10;

/// Chunks that are on their way at once.
const AT_ONCE: usize = 4;

/// How often a chunk is asked for that is not there.
const ATTEMPTS: u32 = 6;

fn subject(bundle: &Stored, number: u64) -> String {
    format!("{}.{}.{number}", bundle.at.bundles(), bundle.sha256)
}

/// How many chunks so many bytes are.
const fn chunks(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK as u64)
}

/// Stores a bundle for somebody. What is there already is stored anew.
///
/// # Errors
/// If the servers do not take it.
pub async fn store(context: &Context, at: Target, bundle: Bytes) -> Result<Stored, FleetError> {
    let bytes = bundle.len() as u64;
    let stored = Stored { at, sha256: hex::encode(Sha256::digest(&bundle)), bytes };
    let sending = (0..chunks(bytes)).map(|number| {
        let start = usize::try_from(number).unwrap_or(usize::MAX) * CHUNK;
        let chunk = bundle.slice(start..bundle.len().min(start + CHUNK));
        let subject = subject(&stored, number);
        async move {
            let store =
                || async { context.publish(subject.clone(), chunk.clone()).await?.await.map(drop) };
            patiently("storing the bundle", store).await
        }
    });
    stream::iter(sending).buffered(AT_ONCE).try_collect::<()>().await?;
    Ok(stored)
}

/// Brings a bundle into a file without a name in `folder`. What it says is judged by others.
///
/// # Errors
/// If it does not come wholly, or is another than was meant.
pub async fn fetch(client: &Client, bundle: &Stored, folder: &Path) -> Result<File, FleetError> {
    let mut file = tempfile::tempfile_in(folder)?;
    let mut hash = Sha256::new();
    let mut left = bundle.bytes;
    let coming = (0..chunks(bundle.bytes)).map(|number| chunk(client, subject(bundle, number)));
    let mut coming = stream::iter(coming).buffered(AT_ONCE);
    while let Some(bytes) = coming.try_next().await? {
        if bytes.len() as u64 != left.min(CHUNK as u64) {
            return Err(FleetError::Broken("a part of the bundle has another length".into()));
        }
        left -= bytes.len() as u64;
        hash.update(&bytes);
        // One chunk to a local disk; the rest of this process can wait for it.
        file.write_all(&bytes)?;
    }
    if hex::encode(hash.finalize()) != bundle.sha256 {
        return Err(FleetError::Broken("the bundle is not the one that was meant".into()));
    }
    file.rewind()?;
    Ok(file)
}

async fn chunk(client: &Client, subject: String) -> Result<Bytes, FleetError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match direct::last(client, BUNDLES, &subject).await {
            Ok(Some(found)) => return Ok(found.bytes),
            // A server that has fallen behind has not got it yet; another may answer the next time.
            Ok(None) if attempt < ATTEMPTS => {
                sleep(Duration::from_millis(100) * (1 << attempt)).await;
            }
            Ok(None) => {
                return Err(FleetError::Broken("a part of the bundle is not there".into()));
            }
            Err(error) => return Err(error),
        }
    }
}
