//! A bundle or a catalog on its way: from the network to the disk, without passing through memory.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use http_body_util::BodyExt;
use hyper::{
    StatusCode,
    body::{Body, Incoming},
};
use tokio::{
    fs::File,
    io::AsyncWriteExt,
    time::{Instant, timeout, timeout_at},
};

/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(20);

/// Bytes that must come in a second, on the whole.
const SLOWEST: u64 = 4 << 10;

/// Copies of a bundle that are made: this one, the one that is kept, and its parts.
const COPIES: u64 = 3;

/// Bytes that must stay free.
const RESERVE: u64 = 16 << 20;

/// Bytes that are thrown away of what was refused, so that the answer can be read.
const THROWN_AWAY: usize = 16 << 20;

/// How long is thrown away.
const FAREWELL: Duration = Duration::from_secs(5);

/// Why it was not taken: HTTP's code, the exit code, and for people.
pub type Rejected = (StatusCode, u8, String);

/// A file on the disk that has no name there, so that it is gone when this is, however that ends.
#[derive(Debug)]
pub struct Upload(OwnedFd);

impl Upload {
    /// Where it can be read in this process while this is there.
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// Whether a body of this length can be taken now, where it may have `limit` bytes.
///
/// # Errors
/// If it is too large, for that or for the disk.
pub fn check_length(folder: &Path, body: &impl Body, limit: u64) -> Result<u64, Rejected> {
    let length = said_length(body, limit)?;
    let free = free(folder).map_err(|error| disk(folder, &error))?;
    if free < length.saturating_mul(COPIES).saturating_add(RESERVE) {
        let message = format!(
            "{} has {} MiB free, which is too little for this; make room on the device",
            folder.display(),
            free >> 20
        );
        return Err((StatusCode::INSUFFICIENT_STORAGE, 3, message));
    }
    Ok(length)
}

/// How long a body says that it is, where it may have `limit` bytes.
///
/// # Errors
/// If it does not, or is longer.
pub fn said_length(body: &impl Body, limit: u64) -> Result<u64, Rejected> {
    let Some(length) = body.size_hint().exact() else {
        let message = "say how long it is (Content-Length)";
        return Err((StatusCode::LENGTH_REQUIRED, 2, message.into()));
    };
    if length > limit {
        let message = format!("it has at most {limit} bytes");
        return Err((StatusCode::PAYLOAD_TOO_LARGE, 2, message));
    }
    Ok(length)
}

fn free(folder: &Path) -> io::Result<u64> {
    fs::create_dir_all(folder)?;
    let found = rustix::fs::statvfs(folder)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn disk(folder: &Path, error: &io::Error) -> Rejected {
    (StatusCode::INSUFFICIENT_STORAGE, 3, format!("{}: {error}", folder.display()))
}

/// Takes a body of this length to the disk.
///
/// # Errors
/// If it comes too slowly or not wholly, or the disk is full; then nothing of it is left.
pub async fn receive(folder: &Path, mut body: Incoming, length: u64) -> Result<Upload, Rejected> {
    let slow = |_| (StatusCode::REQUEST_TIMEOUT, 3, "it comes too slowly".to_owned());
    let on_disk = |error| disk(folder, &error);
    let mut file = File::from_std(tempfile::tempfile_in(folder).map_err(on_disk)?);
    let end = Instant::now() + SILENCE + Duration::from_secs(length / SLOWEST);
    loop {
        let next = timeout(SILENCE, body.frame());
        let Some(frame) = timeout_at(end, next).await.map_err(slow)?.map_err(slow)? else { break };
        let frame = frame.map_err(|error| {
            (StatusCode::BAD_REQUEST, 3, format!("it did not come wholly: {error}"))
        })?;
        if let Ok(bytes) = frame.into_data() {
            file.write_all(&bytes).await.map_err(on_disk)?;
        }
    }
    file.flush().await.map_err(on_disk)?;
    Ok(Upload(file.into_std().await.into()))
}

/// Reads on for a while what was refused: a connection that is closed with something unread takes the
/// answer back.
pub fn throw_away(mut body: Incoming) {
    tokio::spawn(timeout(FAREWELL, async move {
        let mut left = THROWN_AWAY;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
            if left == 0 {
                return;
            }
        }
    }));
}
