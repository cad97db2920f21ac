//! The last message of a subject, read from whichever server has it.

use async_nats::{Client, StatusCode};
use bytes::Bytes;
use jiff::Timestamp;

use super::{FleetError, patiently};

/// A message that is stored.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its number in the stream.
    pub sequence: u64,
    /// When the servers took it in.
    pub time: Timestamp,
    /// Whether it says that the key is deleted.
    pub is_deleted: bool,
    /// What it says.
    pub bytes: Bytes,
}

/// Reads the last message of `subject`; none if there is none where it was asked for. A server that has
/// fallen behind may give an older one.
///
/// # Errors
/// If nobody answers in time, or not as it should.
pub async fn last(
    client: &Client,
    stream: &str,
    subject: &str,
) -> Result<Option<Found>, FleetError> {
    let asked = format!("$JS.API.DIRECT.GET.{stream}.{subject}");
    let ask = || client.request(asked.clone(), Bytes::new());
    let answer = patiently("reading from the servers", ask).await?;
    match answer.status {
        Some(StatusCode::NOT_FOUND) => return Ok(None),
        Some(status) if !status.is_success() => {
            return Err(FleetError::Broken(format!("the servers answer {status}")));
        }
        _ => {}
    }
    let header = |name: &str| {
        let value = answer.headers.as_ref().and_then(|headers| headers.get(name));
        value.map(|value| value.as_str())
    };
    let sequence = header("Nats-Sequence").and_then(|text| text.parse().ok());
    let time = header("Nats-Time-Stamp").and_then(|text| text.parse().ok());
    let (Some(sequence), Some(time)) = (sequence, time) else {
        return Err(FleetError::Broken("an answer without its number and time".into()));
    };
    let is_deleted = header("KV-Operation").is_some();
    Ok(Some(Found { sequence, time, is_deleted, bytes: answer.payload }))
}
