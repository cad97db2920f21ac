//! From the ring's bytes to a checked record. Nothing here trusts the bytes: a kernel program of
//! another version may have written them.

use bytes::Buf;
use portcullis_common::{
    ANCESTORS, Ancestor, BpfLoad, COMM_LEN, DIGEST_LEN, Event, EventHeader, Gate, Kinds, Outcome,
    PATH_LONG, PATH_SHORT, PathStatus, Reason, Rule,
};
use thiserror::Error;

/// Why bytes are no event.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Too short for the fixed part.
    #[error("an event of {0} bytes, which is too short")]
    Short(usize),
    /// A number that no gate, outcome or reason has.
    #[error("an event with {field} {value}, which this version does not know")]
    Unknown {
        /// What the number stands for.
        field: &'static str,
        /// The number.
        value: u8,
    },
}

/// An event of a gate, decoded.
#[derive(Clone, Debug)]
pub struct GateEvent {
    /// The fixed part.
    pub header: EventHeader,
    /// The gate.
    pub gate: Gate,
    /// What happened to the attempt.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// The path as the process saw it, or (`header.names`) within its filesystem; or a positive
    /// errno.
    pub path: Result<Vec<u8>, i32>,
    /// The BPF program that somebody would load, if it is about one.
    pub bpf: Option<BpfLoad>,
}

impl GateEvent {
    /// Reads one entry of the ring.
    ///
    /// # Errors
    /// If it is too short, or has a number that this version does not know.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() < EventHeader::SIZE {
            return Err(DecodeError::Short(bytes.len()));
        }
        let (whole, bytes) = (bytes.len(), &mut bytes);
        // In the order of the struct's members; `read_everything` holds the two together.
        let header = EventHeader {
            boot_ns: bytes.get_u64_ne(),
            generation: bytes.get_u64_ne(),
            cgroup: bytes.get_u64_ne(),
            inode: bytes.get_u64_ne(),
            size: bytes.get_u64_ne(),
            digest: array::<DIGEST_LEN>(bytes),
            rule: Rule {
                kinds: Kinds(bytes.get_u8()),
                denied: bytes.get_u8(),
                source: bytes.get_u16_ne(),
                line: bytes.get_u32_ne(),
            },
            device: bytes.get_u32_ne(),
            filesystem: bytes.get_u32_ne(),
            pid: bytes.get_u32_ne(),
            tid: bytes.get_u32_ne(),
            uid: bytes.get_u32_ne(),
            gid: bytes.get_u32_ne(),
            hash_status: bytes.get_i32_ne(),
            path_status: bytes.get_i32_ne(),
            gate: bytes.get_u8(),
            outcome: bytes.get_u8(),
            reason: bytes.get_u8(),
            wanted: Kinds(bytes.get_u8()),
            cached: bytes.get_u8(),
            enforces: bytes.get_u8(),
            names: bytes.get_u8(),
            bpf: bytes.get_u8(),
            comm: array::<COMM_LEN>(bytes),
            ancestors: [(); ANCESTORS]
                .map(|()| Ancestor { pid: bytes.get_u32_ne(), comm: array::<COMM_LEN>(bytes) }),
        };
        let unknown = |field, value| DecodeError::Unknown { field, value };
        let bpf = match header.bpf {
            0 => None,
            _ if bytes.len() < BpfLoad::SIZE => return Err(DecodeError::Short(whole)),
            _ => Some(BpfLoad {
                kind: bytes.get_u32_ne(),
                attach: bytes.get_u32_ne(),
                name: array::<COMM_LEN>(bytes),
            }),
        };
        Ok(Self {
            gate: Gate::from_u8(header.gate).ok_or(unknown("gate", header.gate))?,
            outcome: Outcome::from_u8(header.outcome).ok_or(unknown("outcome", header.outcome))?,
            reason: Reason::from_u8(header.reason).ok_or(unknown("reason", header.reason))?,
            path: match header.path(bytes.len()) {
                // Its place was taken.
                _ if bpf.is_some() => Err(0),
                PathStatus::Length(length) if header.names == 1 => Ok(joined(&bytes[..length])),
                PathStatus::Length(length) => Ok(bytes[..length].to_vec()),
                PathStatus::Errno(errno) => Err(errno),
            },
            bpf,
            header,
        })
    }
}

/// A path from the names of a file and of the folders above it, each in a room of its own.
fn joined(names: &[u8]) -> Vec<u8> {
    let room = if names.len() > PATH_SHORT {
        Event::<PATH_LONG>::NAME_ROOM
    } else {
        Event::<PATH_SHORT>::NAME_ROOM
    };
    let names = names.chunks(room).map(|room| room.split(|byte| *byte == 0).next());
    let names: Vec<_> =
        names.map(Option::unwrap_or_default).take_while(|name| name != b"/").collect();
    let mut path = Vec::new();
    for name in names.iter().rev() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    path
}

pub(crate) fn array<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let mut array = [0; N];
    bytes.copy_to_slice(&mut array);
    array
}

/// A task's name without its padding; what is not UTF-8 is replaced.
#[must_use]
pub fn comm(padded: &[u8; COMM_LEN]) -> String {
    let name = padded.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that count up, so that every member has a value of its own, with a path of three.
    fn sample() -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..EventHeader::SIZE).map(|at| at.to_le_bytes()[0]).collect();
        let set = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| {
            bytes[at..at + value.len()].copy_from_slice(value);
        };
        set(&mut bytes, std::mem::offset_of!(EventHeader, path_status), &4i32.to_ne_bytes());
        set(&mut bytes, std::mem::offset_of!(EventHeader, gate), &[1, 2, 20]);
        set(&mut bytes, std::mem::offset_of!(EventHeader, bpf), &[0]);
        bytes.extend(b"/tm\0garbage");
        bytes
    }

    #[test]
    fn reads_everything_where_the_kernel_side_puts_it() {
        let bytes = sample();
        let event = GateEvent::decode(&bytes).expect("whole");
        let header = event.header;
        assert_eq!(
            (event.gate, event.outcome, event.reason),
            (Gate::Mapping, Outcome::Deny, Reason::TooLarge)
        );
        assert_eq!(event.path, Ok(b"/tm".to_vec()));
        // Each member must hold the bytes at its own offset in the struct.
        macro_rules! same {
            ($($member:ident),+) => {$(
                let at = std::mem::offset_of!(EventHeader, $member);
                assert_eq!(header.$member.to_ne_bytes()[..], bytes[at..][..size_of_val(&header.$member)]);
            )+};
        }
        same!(
            boot_ns,
            generation,
            cgroup,
            inode,
            size,
            device,
            filesystem,
            pid,
            tid,
            uid,
            gid,
            hash_status
        );
        let at = |offset: usize, length: usize| bytes[offset..offset + length].to_vec();
        assert_eq!(
            header.digest.to_vec(),
            at(std::mem::offset_of!(EventHeader, digest), DIGEST_LEN)
        );
        assert_eq!(header.comm.to_vec(), at(std::mem::offset_of!(EventHeader, comm), COMM_LEN));
        let last = &header.ancestors[ANCESTORS - 1];
        assert_eq!(last.comm.to_vec(), at(EventHeader::SIZE - COMM_LEN, COMM_LEN));
        assert_eq!(
            header.rule.line.to_ne_bytes().to_vec(),
            at(std::mem::offset_of!(EventHeader, rule) + 4, 4)
        );
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let whole = sample();
        assert_eq!(GateEvent::decode(&whole[..100]).expect_err("short"), DecodeError::Short(100));
        for field in ["gate", "outcome", "reason"] {
            let mut bytes = whole.clone();
            let at = std::mem::offset_of!(EventHeader, gate)
                + ["gate", "outcome", "reason"]
                    .iter()
                    .position(|name| *name == field)
                    .expect("one");
            bytes[at] = 250;
            let expected = DecodeError::Unknown { field, value: 250 };
            assert_eq!(GateEvent::decode(&bytes).expect_err("unknown"), expected);
        }
    }

    #[test]
    fn a_program_that_is_loaded_takes_the_place_of_the_path() {
        let mut bytes = sample();
        bytes.truncate(EventHeader::SIZE);
        bytes[std::mem::offset_of!(EventHeader, bpf)] = 1;
        bytes.extend(29u32.to_ne_bytes());
        bytes.extend(27u32.to_ne_bytes());
        bytes.extend(b"others\0\0\0\0\0\0\0\0\0");
        let short = GateEvent::decode(&bytes).expect_err("a byte is missing");
        assert_eq!(short, DecodeError::Short(EventHeader::SIZE + BpfLoad::SIZE - 1));
        bytes.push(0);
        let event = GateEvent::decode(&bytes).expect("whole");
        let load = event.bpf.expect("a program");
        assert_eq!((load.kind, load.attach, comm(&load.name)), (29, 27, "others".into()));
        assert_eq!(event.path, Err(0));
    }

    #[test]
    fn names_become_a_path() {
        for room in [32, 256] {
            let mut names = vec![0; 8 * room];
            for (at, name) in ["x.so", "lib", "usr", "/", "/", "/", "/", "/"].iter().enumerate() {
                names[at * room..][..name.len()].copy_from_slice(name.as_bytes());
            }
            assert_eq!(joined(&names[..8 * room - 1]), b"/usr/lib/x.so");
        }
        assert_eq!(joined(b""), b"");
    }

    #[test]
    fn a_path_that_was_not_given_is_an_error_number() {
        let at = std::mem::offset_of!(EventHeader, path_status);
        for (status, expected) in [
            (-36, Err(36)),
            (0, Err(0)),
            (9999, Err(0)),
            (-9999, Err(0)),
            (i32::MIN, Err(0)),
            (1, Ok(Vec::new())),
        ] {
            let mut bytes = sample();
            bytes[at..at + 4].copy_from_slice(&i32::to_ne_bytes(status));
            assert_eq!(GateEvent::decode(&bytes).expect("whole").path, expected);
        }
    }
}
