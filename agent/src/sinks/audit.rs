//! The kernel's audit: refusals, USB devices, and changes of the policy or the mode, as user records.
//!
//! Types of include/uapi/linux/audit.h and, for what the kernel only passes on, of libaudit.h.

use std::{fmt::Write as _, io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink,
    netlink::SocketAddrNetlink, recv, sendto, socket_with, sockopt,
};
use serde_json::Value;

use super::{Ready, Receiver, fields::fields};

/// `AUDIT_USER_AVC`: the kernel passes it on even if audit is off.
const USER_AVC: u16 = 1107;
/// `AUDIT_USER_MAC_POLICY_LOAD`.
const USER_MAC_POLICY_LOAD: u16 = 2310;
/// `AUDIT_USER_DEVICE`.
const USER_DEVICE: u16 = 1137;

const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const FLAGS: u16 = 1 | 4;

/// Bytes of a header (`struct nlmsghdr`).
const HEADER: usize = 16;

/// Bytes of a text: `MAX_AUDIT_MESSAGE_LENGTH` is 8970, and the kernel writes something before it.
const MAX_TEXT: usize = 8000;

const PATIENCE: Duration = Duration::from_secs(5);

/// The kernel's audit.
#[derive(Default)]
pub struct Audit {
    socket: Option<OwnedFd>,
    sequence: u32,
}

impl Audit {
    fn send(&mut self, kind: u16, text: &str) -> io::Result<()> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let flags = SocketFlags::CLOEXEC;
                let protocol = Some(netlink::AUDIT);
                let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
                sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
                self.socket.insert(socket)
            }
        };
        self.sequence = self.sequence.wrapping_add(1);
        let message = packet(kind, self.sequence, text);
        sendto(socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        loop {
            let mut answer = [0; 512];
            let (length, _) = recv(socket, &mut answer, RecvFlags::empty())?;
            if let Some(errno) = answered(&answer[..length.min(answer.len())], self.sequence) {
                return if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) };
            }
        }
    }
}

fn packet(kind: u16, sequence: u32, text: &str) -> Vec<u8> {
    // With its NUL, as the kernel takes it for a string.
    let length = HEADER + text.len() + 1;
    let mut packet = Vec::with_capacity(length + 3);
    packet.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
    packet.extend_from_slice(&kind.to_ne_bytes());
    packet.extend_from_slice(&FLAGS.to_ne_bytes());
    packet.extend_from_slice(&sequence.to_ne_bytes());
    packet.extend_from_slice(&0_u32.to_ne_bytes());
    packet.extend_from_slice(text.as_bytes());
    packet.push(0);
    packet.resize(length.next_multiple_of(4), 0);
    packet
}

/// The error number in the kernel's answer to a packet; none if it is about something else.
fn answered(answer: &[u8], sequence: u32) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let about = u32::from_ne_bytes(answer.get(8..12)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR && about == sequence).then_some(error.saturating_neg())
}

/// What is of interest there, with its type.
fn record(event: &Value) -> Option<(u16, String)> {
    let outcome = event["outcome"].as_str();
    let (kind, op, success) = match (event["type"].as_str()?, outcome) {
        ("decision", Some("deny")) => (USER_AVC, "deny", false),
        ("decision", Some("would-deny")) => (USER_AVC, "would-deny", true),
        ("usb", _) => (USER_DEVICE, "usb", event["state"] == "allowed"),
        ("mode-changed", _) => (USER_MAC_POLICY_LOAD, "mode", true),
        ("policy-changed", _) => (USER_MAC_POLICY_LOAD, "policy", true),
        ("bundle" | "catalog" | "break-glass", _) => {
            (USER_MAC_POLICY_LOAD, event["type"].as_str()?, event["state"] != "refused")
        }
        _ => return None,
    };
    let mut text = format!("op={op}");
    for (name, value) in fields(event) {
        let name = match name {
            "path" => "exe_path",
            // These mean the sender in audit's own records.
            "pid" => "subj_pid",
            "uid" => "subj_uid",
            "comm" => "subj_comm",
            other => other,
        };
        let _ = write!(text, " {name}={}", encoded(&value));
    }
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text.push_str(if success { " res=success" } else { " res=failed" });
    Some((kind, text))
}

/// As audit writes what comes from outside: between quotes, or in hexadecimal if that could be misread.
fn encoded(value: &str) -> String {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'\'';
    if !value.is_empty() && value.bytes().all(is_word) {
        value.to_owned()
    } else if value.bytes().all(is_plain) {
        format!("\"{value}\"")
    } else {
        hex::encode_upper(value)
    }
}

impl Receiver for Audit {
    fn deliver(&mut self, records: &[Ready]) -> io::Result<()> {
        for (kind, text) in records.iter().filter_map(|one| record(&one.event)) {
            self.send(kind, &text)
                .map_err(|error| io::Error::other(format!("the kernel's audit: {error}")))?;
        }
        Ok(())
    }

    fn hang_up(&mut self) {
        self.socket = None;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hostile_names_forge_nothing() {
        let event = json!({
            "record": 7, "type": "decision", "outcome": "deny", "gate": "exec", "reason": "unlisted",
            "artifact": { "path": "/tmp/x' res=success\n" }, "process": { "pid": 9, "comm": "sh" },
        });
        let (kind, text) = record(&event).expect("of interest");
        assert_eq!(kind, USER_AVC);
        assert_eq!(
            text,
            "op=deny record=7 type=decision outcome=deny gate=exec reason=unlisted \
             exe_path=2F746D702F7827207265733D737563636573730A subj_pid=9 subj_comm=sh res=failed"
        );
        assert_eq!(encoded("/usr/bin/true"), "\"/usr/bin/true\"");
        assert_eq!(record(&json!({ "type": "decision", "outcome": "allow" })), None);
    }

    #[test]
    fn the_kernels_answer_is_read() {
        let mut answer = packet(NLMSG_ERROR, 5, "");
        answer.truncate(HEADER);
        answer.extend_from_slice(&(-libc::EPERM).to_ne_bytes());
        assert_eq!(answered(&answer, 5), Some(libc::EPERM));
        assert_eq!(answered(&answer, 6), None);
        assert_eq!(answered(&answer[..10], 5), None);
        assert_eq!(packet(USER_AVC, 1, "abc").len() % 4, 0);
    }
}
