//! Sends what happens on the device. What the agent still remembers is sent after a break; the rest of
//! a longer one is counted.

use async_nats::HeaderMap;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::{sync::mpsc, time::sleep};

use super::{Link, state::Cursor};
use crate::{
    api::client::{Ask, AskError},
    fleet::{connect::by_chance, names},
};

/// Events that wait to be sent. The agent remembers as many, and is asked anew if they are more.
const QUEUE: usize = 1024;

/// Events that are on their way at once.
const BATCH: usize = 64;

/// Bytes of an event.
const MAX_EVENT: usize = 512 << 10;

/// An event as far as it is of interest here.
#[derive(Deserialize)]
struct Numbered {
    record: Option<u64>,
    time: Option<Timestamp>,
}

struct Event {
    line: String,
    cursor: Option<Cursor>,
}

impl Link {
    /// Sends events, for ever.
    pub(super) async fn send_events(&self) {
        let mut cursor = self.kept.cursor();
        loop {
            let (sender, mut waiting) = mpsc::channel(QUEUE);
            let following = async {
                let ask = Ask::Events { follow: true, json: true };
                let followed = self.agent.lines(&self.here, &ask, |line| {
                    let told = sender.try_send(line.to_owned());
                    told.map_err(|_| AskError::Broken("events come faster than they go".into()))
                });
                let ended = followed.await;
                drop(sender);
                ended
            };
            let sending = async {
                let mut lines = Vec::new();
                while waiting.recv_many(&mut lines, BATCH).await > 0 {
                    self.send(std::mem::take(&mut lines), &mut cursor).await;
                }
            };
            let (ended, ()) = tokio::join!(following, sending);
            if let Err(error) = ended {
                tracing::info!("following events: {error}");
            }
            sleep(by_chance(self.pace.poll)).await;
        }
    }

    /// Sends events until the servers have them.
    async fn send(&self, lines: Vec<String>, cursor: &mut Cursor) {
        let mut events = Vec::with_capacity(lines.len());
        for line in lines {
            events.extend(numbered(line, cursor));
        }
        let Some(last) = events.iter().rev().find_map(|event| event.cursor) else {
            // Nothing new, or nothing that counts.
            self.publish_all(&events).await;
            return;
        };
        self.publish_all(&events).await;
        if let Err(error) = self.kept.keep_cursor(last) {
            tracing::error!("{}: {error}", self.folder.display());
        }
    }

    async fn publish_all(&self, events: &[Event]) {
        while let Err(error) = self.publish(events).await {
            tracing::warn!("events are not taken: {error}");
            sleep(by_chance(self.pace.retry)).await;
        }
    }

    async fn publish(&self, events: &[Event]) -> Result<(), String> {
        let subject = names::events(&self.device);
        let mut acks = Vec::with_capacity(events.len());
        for Event { line, cursor } in events {
            let mut headers = HeaderMap::new();
            if let Some(Cursor { record, time }) = cursor {
                // What is sent twice within the servers' window is stored once.
                let time = time.unwrap_or_default().as_microsecond();
                headers.insert("Nats-Msg-Id", format!("{}.{record}.{time}", self.device));
            }
            let bytes = Bytes::copy_from_slice(line.as_bytes());
            let sent = self.context.publish_with_headers(subject.clone(), headers, bytes).await;
            acks.push(sent.map_err(|error| error.to_string())?);
        }
        for ack in acks {
            ack.await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

fn lost(count: u64) -> Event {
    let line = format!("{{\"type\":\"lost\",\"stage\":\"fleet\",\"count\":{count}}}");
    Event { line, cursor: None }
}

/// The events of a line: none if it was sent before; two if there is a gap before it.
fn numbered(line: String, cursor: &mut Cursor) -> Vec<Event> {
    let Ok(Numbered { record: Some(record), time }) = serde_json::from_str(&line) else {
        return vec![Event { line, cursor: None }];
    };
    // A record with an old number and a new time: the device's records have begun anew.
    if record <= cursor.record && (time.is_none() || time <= cursor.time) {
        return Vec::new();
    }
    let gap = record.saturating_sub(cursor.record + 1);
    let is_known = cursor.record > 0 && record > cursor.record;
    let is_too_long = line.len() > MAX_EVENT;
    *cursor = Cursor { record, time };
    let mut events = Vec::new();
    if is_known && gap > 0 {
        events.push(lost(gap));
    }
    let line = if is_too_long { lost(1).line } else { line };
    events.push(Event { line, cursor: Some(*cursor) });
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_is_sent_once_and_gaps_are_told() {
        let line = |record: u64, second: u64| {
            format!("{{\"record\":{record},\"time\":\"2026-01-01T00:00:{second:02}Z\"}}")
        };
        let mut cursor = Cursor::default();
        let mut sent = |text: String| {
            let events = numbered(text, &mut cursor).into_iter();
            events.map(|event| event.line).collect::<Vec<_>>()
        };
        assert_eq!(sent(line(7, 1)), [line(7, 1)], "what was before is of no interest");
        assert_eq!(sent(line(8, 2)), [line(8, 2)]);
        assert_eq!(sent(line(7, 1)), [""; 0]);
        assert_eq!(sent(line(8, 2)), [""; 0]);
        let told = sent(line(12, 3));
        assert_eq!(told, [lost(3).line, line(12, 3)]);
        assert_eq!(sent(line(1, 4)), [line(1, 4)], "the records have begun anew");
        assert_eq!(sent(line(2, 5)), [line(2, 5)]);
        assert_eq!(sent("{\"type\":\"lost\"}".into()), ["{\"type\":\"lost\"}"]);
        let long = format!("{{\"record\":3,\"x\":\"{}\"}}", "y".repeat(MAX_EVENT));
        assert_eq!(sent(long), [lost(1).line]);
    }
}
