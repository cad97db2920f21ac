//! Events: one record for each thing that a gate or the agent decided or noticed.
//!
//! The JSON form is documented in `docs/events.md`; [`SCHEMA`] is raised when a field changes its
//! meaning or goes away, not when one is added.

pub mod bpf;
pub mod decode;
pub mod enrich;
pub mod human;
pub mod json;
#[cfg(test)]
pub(crate) mod samples;
pub mod usb;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    catalog::SignedBy,
    control::caller::Caller,
    deployment::Kept,
    spool::{Dropped, seal::Seal},
};

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;

/// One record.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Counts from 1 since the agent started, without gaps; the agent's own losses are records.
    pub seq: u64,
    /// When it happened.
    pub time: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub body: Body,
    /// How many it stands for, if it is more than one.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub repeated: Option<Repeated>,
}

/// How many decisions of one kind a record stands for. The rest of it tells of the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    /// How many.
    pub count: u64,
    /// When the first was.
    pub first: Timestamp,
    /// When the latest was.
    pub last: Timestamp,
}

/// What happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Body {
    /// A gate decided.
    Decision(Box<Decision>),
    /// Events were lost before the agent could read them.
    Lost {
        /// The gate whose events they were.
        gate: &'static str,
        /// How many since the last such record.
        count: u64,
    },
    /// The gates stand.
    AgentStarted {
        /// The agent's process id.
        pid: u32,
        /// The agent's version.
        version: &'static str,
        /// How verdicts are enforced: `bpf-lsm`, or `fanotify` (degraded).
        backend: &'static str,
        /// The mode in force.
        mode: &'static str,
        /// The policy in force.
        policy: PolicyId,
        /// How many digests it has.
        digests: usize,
    },
    /// The operator changed the mode.
    ModeChanged {
        /// The mode in force from now on.
        mode: &'static str,
        /// The policy in force.
        policy: PolicyId,
        /// Who did it; none if the agent did so itself.
        by: Option<Caller>,
    },
    /// A catalog came into force, left, or was refused.
    Catalog(Box<CatalogChange>),
    /// A bundle came into force, was confirmed, taken back, or refused.
    Bundle(Box<BundleChange>),
    /// A token lifted enforcement, or its time is over, or it was refused.
    BreakGlass(Box<GlassChange>),
    /// A USB device came, went, or was judged.
    Usb(Box<usb::UsbChange>),
    /// Somebody was refused at the door to the network.
    AccessRefused(Box<AccessRefused>),
    /// A file carries a signature that does not count.
    Signature(Box<SignatureRejected>),
    /// What signers vouch for has changed, and the policy with it.
    PolicyChanged {
        /// The policy in force from now on.
        policy: PolicyId,
        /// How many digests it has.
        digests: usize,
        /// What changed it.
        cause: &'static str,
        /// Who did it; none if the agent did so itself.
        by: Option<Caller>,
    },
    /// A health check changed its state.
    Health {
        /// The check.
        check: &'static str,
        /// `ok`, `warning` or `failed`.
        state: &'static str,
        /// What was found.
        found: String,
        /// What to do about it.
        mend: Option<String>,
    },
    /// What runs is not what was judged, although nobody opened it for writing.
    Reappraisal {
        /// The file, as the process that runs it has it mapped.
        path: String,
        /// The digest that the verdict was made for.
        expected: String,
        /// The digest that was found.
        found: String,
        /// `page-cache` (what processes run) or `disk` (what they will run later).
        #[serde(rename = "where")]
        place: &'static str,
    },
    /// Records had to make room before everybody had them.
    Dropped(Box<Dropped>),
    /// The device signs where its chains of records are.
    Checkpoint(Box<Seal>),
    /// The agent ends.
    AgentStopped {
        /// Why.
        cause: &'static str,
        /// Whether the gates go on without it.
        gates_stay: bool,
    },
}

/// What became of a catalog.
#[derive(Clone, Debug, Serialize)]
pub struct CatalogChange {
    /// `in-force`, `removed` or `refused`; and of what a fleet's servers have brought, `received` or
    /// `taken-away`.
    pub state: &'static str,
    /// The file; empty if there is none here.
    pub file: String,
    /// Its maker's name for it, if it could be read.
    pub name: Option<String>,
    /// Its maker's number for it, if it could be read.
    pub version: Option<u64>,
    /// SHA-256 of its text, if it could be read.
    pub digest: Option<String>,
    /// Who signed it.
    pub signed: Vec<SignedBy>,
    /// How many digests it lists.
    pub digests: usize,
    /// How many it takes back.
    pub withdrawn: usize,
    /// Why it was refused, as a stable word.
    pub reason: Option<String>,
    /// Why it was refused, for people.
    pub message: Option<String>,
    /// Who brought it or took it away; none if it lay in the folder.
    pub by: Option<Caller>,
}

/// What a token did.
#[derive(Clone, Debug, Serialize)]
pub struct GlassChange {
    /// `lifted`, `over` or `refused`.
    pub state: &'static str,
    /// Who signed it.
    pub signed: Vec<SignedBy>,
    /// Until when enforcement is lifted.
    pub until: Option<Timestamp>,
    /// Why it was refused, for people.
    pub message: Option<String>,
    /// Who used it; none if its time is over.
    pub by: Option<Caller>,
}

/// What became of a bundle.
#[derive(Clone, Debug, Serialize)]
pub struct BundleChange {
    /// `in-force`, `trial`, `confirmed`, `reverted`, `passed-over` or `refused`.
    pub state: &'static str,
    /// Which; none if it was refused.
    pub bundle: Option<Kept>,
    /// Who signed it; told when it comes into force.
    pub signed: Vec<SignedBy>,
    /// Why it was refused or taken back, for people.
    pub message: Option<String>,
    /// When it is taken back unless it is confirmed.
    pub until: Option<Timestamp>,
    /// Who did it; none if the agent did so itself.
    pub by: Option<Caller>,
}

/// Somebody who was refused at the door to the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccessRefused {
    /// Why, as a stable word.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
    /// How many since the last such record with this reason; the rest tells of the latest.
    pub count: u64,
    /// Where they came from.
    pub address: std::net::SocketAddr,
    /// Who they are, if they have shown a certificate that counts.
    pub by: Option<Caller>,
}

/// A signature on a file that does not count.
#[derive(Clone, Debug, Serialize)]
pub struct SignatureRejected {
    /// The file; what is not UTF-8 is replaced.
    pub path: String,
    /// The exact bytes of the path in hexadecimal, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// SHA-256 of the content, if it was made.
    pub digest: Option<String>,
    /// Why, as a stable word.
    pub reason: &'static str,
    /// Why, for people, with what to do.
    pub message: String,
}

/// Which policy decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyId {
    /// The operator's name for it.
    pub name: String,
    /// The operator's number for it.
    pub version: u64,
    /// The agent's number for it, since the programs were loaded.
    pub generation: u64,
}

/// What a gate decided.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// How verdicts are enforced: `bpf-lsm`, or `fanotify` (degraded).
    pub backend: &'static str,
    /// The gate's word.
    pub gate: &'static str,
    /// `allow`, `would-deny`, `deny` or `report`.
    pub outcome: &'static str,
    /// Why, as a stable word.
    pub reason: &'static str,
    /// The mode in force.
    pub mode: &'static str,
    /// The policy that decided.
    pub policy: PolicyId,
    /// The rule that decided, if the policy has one for the digest.
    pub rule: Option<RulePlace>,
    /// What the gate was asked for.
    pub wanted: Vec<&'static str>,
    /// What was judged; none if it is no file. For memory it is the program whose memory it is, for a BPF
    /// program the one that loads it.
    pub artifact: Option<ArtifactInfo>,
    /// Who made the attempt.
    pub process: ProcessInfo,
    /// Whether the verdict was already on the inode.
    pub cached: bool,
    /// The BPF program that somebody would load, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bpf: Option<bpf::BpfInfo>,
}

/// Where a rule stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RulePlace {
    /// The policy file or manifest.
    pub file: String,
    /// Line, counted from 1.
    pub line: u32,
    /// What the digest is listed as; empty if it is denied.
    pub kinds: Vec<&'static str>,
    /// The signers that vouch for the file, if it is a catalog.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signers: Vec<String>,
}

/// A file that was judged.
#[derive(Clone, Debug, Serialize)]
pub struct ArtifactInfo {
    /// The path as the process saw it; what is not UTF-8 is replaced.
    pub path: String,
    /// The exact bytes of the path in hexadecimal, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    /// SHA-256 of the content; none if it could not be made.
    pub digest: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Filesystem's kind.
    pub filesystem: String,
    /// Filesystem's device, major and minor.
    pub device: String,
    /// Inode number.
    pub inode: u64,
    /// What the kernel's hash returned, if it failed or used another algorithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_status: Option<i32>,
}

/// A process that made an attempt.
#[derive(Clone, Debug, Serialize)]
pub struct ProcessInfo {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Thread id in the initial namespace.
    pub tid: u32,
    /// Real user id in the initial namespace.
    pub uid: u32,
    /// Real group id in the initial namespace.
    pub gid: u32,
    /// Name of the task; at exec that of the program before.
    pub comm: String,
    /// Path of the control group, if it is known.
    pub cgroup: Option<String>,
    /// Id of the control group.
    pub cgroup_id: u64,
    /// Parent first.
    pub ancestors: Vec<AncestorInfo>,
}

/// A process above another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AncestorInfo {
    /// Process id in the initial namespace.
    pub pid: u32,
    /// Name of the task.
    pub comm: String,
}
