//! The journal of systemd, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): a datagram for each
//! record, `NAME=value` lines, and a length before values that have newlines.

use std::{io, os::unix::net::UnixDatagram, time::Duration};

use super::{
    Ready, Receiver,
    fields::{fields, kind, message_id, severity, text},
};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Bytes of a value. A datagram fits into the socket's buffer then, so that no file has to be sent.
const MAX_VALUE: usize = 48 << 10;

/// How long a journal that is busy is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The journal.
#[derive(Default)]
pub struct Journald {
    socket: Option<UnixDatagram>,
}

impl Receiver for Journald {
    fn deliver(&mut self, records: &[Ready]) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(SOCKET)?;
                socket.set_write_timeout(Some(PATIENCE))?;
                self.socket.insert(socket)
            }
        };
        for record in records {
            socket.send(&entry(record))?;
        }
        Ok(())
    }

    fn hang_up(&mut self) {
        self.socket = None;
    }
}

/// One record as the journal wants it.
fn entry(record: &Ready) -> Vec<u8> {
    let Ready { event, body, .. } = record;
    let kind = kind(event);
    let mut entry = Vec::new();
    add(&mut entry, "MESSAGE", text(event));
    add(&mut entry, "MESSAGE_ID", &message_id(&kind));
    add(&mut entry, "PRIORITY", &(severity(event) as u8).to_string());
    add(&mut entry, "SYSLOG_IDENTIFIER", "portcullis");
    add(&mut entry, "PORTCULLIS_KIND", &kind);
    for (name, value) in fields(event) {
        add(&mut entry, &format!("PORTCULLIS_{}", name.to_ascii_uppercase()), &value);
    }
    add(&mut entry, "PORTCULLIS_EVENT", body);
    entry
}

fn add(entry: &mut Vec<u8>, name: &str, value: &str) {
    let mut end = value.len().min(MAX_VALUE);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    let value = &value[..end];
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_values_stay_in_their_field() {
        let mut entry = Vec::new();
        add(&mut entry, "A", "b\nMESSAGE=forged");
        add(&mut entry, "B", "c");
        let expected = b"A\n\x10\0\0\0\0\0\0\0b\nMESSAGE=forged\nB=c\n";
        assert_eq!(entry, expected);
        let mut entry = Vec::new();
        add(&mut entry, "A", &"ä".repeat(MAX_VALUE));
        assert!(entry.len() <= MAX_VALUE + 3 && String::from_utf8(entry).is_ok());
    }
}
