//! What is sent to an agent: bytes, or a file that need not fit into memory.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};

/// Bytes of a file that are read at once.
const PART: usize = 64 << 10;

/// What is sent.
#[derive(Clone, Debug)]
pub enum Content {
    /// All of it.
    Bytes(Bytes),
    /// A file from its beginning, of as many bytes as it had when it was given.
    File {
        /// The file.
        file: Arc<File>,
        /// Bytes that are sent already.
        sent: u64,
        /// Bytes that it has.
        length: u64,
    },
}

impl Content {
    /// A file from its beginning.
    ///
    /// # Errors
    /// If its length is not known.
    pub fn file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::File { file: Arc::new(file), sent: 0, length })
    }
}

impl Default for Content {
    fn default() -> Self {
        Self::Bytes(Bytes::new())
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match &mut *self {
            Self::Bytes(bytes) if bytes.is_empty() => None,
            Self::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Self::File { sent, length, .. } if *sent >= *length => None,
            Self::File { file, sent, length } => {
                let left = usize::try_from(*length - *sent).unwrap_or(PART);
                let mut part = vec![0; left.min(PART)];
                // From a local disk, and most likely from memory.
                Some(match file.read_at(&mut part, *sent) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => {
                        part.truncate(read);
                        *sent += read as u64;
                        Ok(part.into())
                    }
                    Err(error) => Err(error),
                })
            }
        };
        Poll::Ready(next.map(|bytes| bytes.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::File { sent, length, .. } => sent >= length,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { sent, length, .. } => length.saturating_sub(*sent),
        })
    }
}
