//! BPF programs that others than the agent load.

use std::fmt;

use portcullis_common::BpfLoad;
use serde::Serialize;

use super::{decode::comm, human::Plain};

/// `BPF_PROG_TYPE_*` (linux/bpf.h, up to 7.2) by their numbers, as words.
const TYPES: [&str; 33] = [
    "unspec",
    "socket-filter",
    "kprobe",
    "sched-cls",
    "sched-act",
    "tracepoint",
    "xdp",
    "perf-event",
    "cgroup-skb",
    "cgroup-sock",
    "lwt-in",
    "lwt-out",
    "lwt-xmit",
    "sock-ops",
    "sk-skb",
    "cgroup-device",
    "sk-msg",
    "raw-tracepoint",
    "cgroup-sock-addr",
    "lwt-seg6local",
    "lirc-mode2",
    "sk-reuseport",
    "flow-dissector",
    "cgroup-sysctl",
    "raw-tracepoint-writable",
    "cgroup-sockopt",
    "tracing",
    "struct-ops",
    "ext",
    "lsm",
    "sk-lookup",
    "syscall",
    "netfilter",
];

/// `enum bpf_attach_type` (linux/bpf.h, up to 7.2) by its numbers, likewise.
const ATTACHES: [&str; 58] = [
    "cgroup-inet-ingress",
    "cgroup-inet-egress",
    "cgroup-inet-sock-create",
    "cgroup-sock-ops",
    "sk-skb-stream-parser",
    "sk-skb-stream-verdict",
    "cgroup-device",
    "sk-msg-verdict",
    "cgroup-inet4-bind",
    "cgroup-inet6-bind",
    "cgroup-inet4-connect",
    "cgroup-inet6-connect",
    "cgroup-inet4-post-bind",
    "cgroup-inet6-post-bind",
    "cgroup-udp4-sendmsg",
    "cgroup-udp6-sendmsg",
    "lirc-mode2",
    "flow-dissector",
    "cgroup-sysctl",
    "cgroup-udp4-recvmsg",
    "cgroup-udp6-recvmsg",
    "cgroup-getsockopt",
    "cgroup-setsockopt",
    "trace-raw-tp",
    "trace-fentry",
    "trace-fexit",
    "modify-return",
    "lsm-mac",
    "trace-iter",
    "cgroup-inet4-getpeername",
    "cgroup-inet6-getpeername",
    "cgroup-inet4-getsockname",
    "cgroup-inet6-getsockname",
    "xdp-devmap",
    "cgroup-inet-sock-release",
    "xdp-cpumap",
    "sk-lookup",
    "xdp",
    "sk-skb-verdict",
    "sk-reuseport-select",
    "sk-reuseport-select-or-migrate",
    "perf-event",
    "trace-kprobe-multi",
    "lsm-cgroup",
    "struct-ops",
    "netfilter",
    "tcx-ingress",
    "tcx-egress",
    "trace-uprobe-multi",
    "cgroup-unix-connect",
    "cgroup-unix-sendmsg",
    "cgroup-unix-recvmsg",
    "cgroup-unix-getpeername",
    "cgroup-unix-getsockname",
    "netkit-primary",
    "netkit-peer",
    "trace-kprobe-session",
    "trace-uprobe-session",
];

/// The type whose programs can attach to what has the number 0.
const CGROUP_SKB: u32 = 8;

/// A BPF program that somebody would load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BpfInfo {
    /// What it is, as a word; a number if this version does not know it.
    #[serde(rename = "type")]
    pub kind: String,
    /// What it attaches to, likewise; none if that was not said.
    pub attach: Option<String>,
    /// The name that it is given; none if it is given none.
    pub name: Option<String>,
}

impl BpfInfo {
    /// From what the kernel was told.
    #[must_use]
    pub fn of(load: &BpfLoad) -> Self {
        let word = |known: &[&str], number: u32| {
            let found = usize::try_from(number).ok().and_then(|number| known.get(number));
            found.map_or_else(|| number.to_string(), |word| (*word).to_owned())
        };
        let is_said = load.attach != 0 || load.kind == CGROUP_SKB;
        Self {
            kind: word(&TYPES, load.kind),
            attach: is_said.then(|| word(&ATTACHES, load.attach)),
            name: Some(comm(&load.name)).filter(|name| !name.is_empty()),
        }
    }
}

impl fmt::Display for BpfInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(attach) = &self.attach {
            write!(f, " for {attach}")?;
        }
        self.name.as_ref().map_or(Ok(()), |name| write!(f, ", called {}", Plain(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(kind: u32, attach: u32, name: &[u8]) -> BpfInfo {
        let mut padded = [0; 16];
        padded[..name.len()].copy_from_slice(name);
        BpfInfo::of(&BpfLoad { kind, attach, name: padded })
    }

    #[test]
    fn programs_are_told_in_words() {
        assert_eq!(load(29, 27, b"spy").to_string(), "lsm for lsm-mac, called spy");
        assert_eq!(load(15, 6, b"").to_string(), "cgroup-device for cgroup-device");
        assert_eq!(load(1, 0, b"").to_string(), "socket-filter");
        assert_eq!(load(8, 0, b"").to_string(), "cgroup-skb for cgroup-inet-ingress");
        assert_eq!(
            load(33, u32::MAX, b"\x1b[2J").to_string(),
            "33 for 4294967295, called \\u{1b}[2J"
        );
    }
}
