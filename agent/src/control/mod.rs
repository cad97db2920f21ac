//! How the commands talk to the agent: one JSON request in a line over a local socket that only
//! root can open, one JSON answer in a line. Only `events` is answered with more lines.

pub mod caller;
pub mod client;
pub mod server;

use portcullis_common::Mode;
use serde::{Deserialize, Serialize};

use crate::{
    catalog::{Refused, SignedBy, shelf::Kept},
    event::{PolicyId, usb::UsbChange},
    kernel::check::Check,
    run::{preflight::InUse, reappraise::Pass, sink::SinkStatus},
};

/// Where the agent listens.
pub const SOCKET: &str = "/run/portcullis/agent.sock";

/// Version of requests and answers.
pub const PROTOCOL: u32 = 1;

/// The longest request in bytes.
pub const MAX_REQUEST: u64 = 64 * 1024;

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What holds now.
    Status,
    /// The latest records, as lines of text.
    Events {
        /// Whether to go on with new ones.
        follow: bool,
        /// Whether as JSON, or else for people.
        json: bool,
    },
    /// What the policy says about a digest.
    Rule {
        /// 64 hexadecimal digits.
        digest: String,
    },
    /// What the policy lets files on a device be used as without looking at them.
    Verified {
        /// The device, as system calls number it.
        device: u64,
    },
    /// What the signatures are worth that a file carries itself.
    Signature {
        /// Its absolute path.
        path: String,
    },
    /// Change the mode.
    Mode {
        /// `audit` or `enforce`.
        mode: String,
        /// Whether to change it even if that stops what runs now.
        skip_preflight: bool,
    },
    /// Put the policy file in force as it is now.
    Reload {
        /// Whether to do so even if that stops what runs now.
        skip_preflight: bool,
    },
    /// Put a bundle in force.
    Push {
        /// The absolute path of the file.
        path: String,
        /// Take it back unless it is confirmed within so many seconds.
        confirm_within: Option<u64>,
    },
    /// Keep a catalog that a fleet's servers have brought.
    TakeCatalog {
        /// The absolute path of it with its signatures in one file.
        path: String,
    },
    /// Take away a catalog that a fleet's servers have brought.
    TakeCatalogAway {
        /// Its name.
        name: String,
    },
    /// Keep the bundle that is tried.
    Confirm,
    /// Put in force what was before the bundle that is in force.
    Rollback {
        /// Why, for the event.
        cause: String,
    },
    /// Write what has run here to the disk, and say where that is.
    History,
    /// Let what ran from a path without the policy's leave not stand in the way of enforcement any more.
    ExpectDenied {
        /// The path, as the history tells it.
        path: String,
    },
    /// Lift enforcement for some minutes.
    BreakGlass {
        /// The token's text.
        token: String,
    },
    /// Every USB device, and what became of it.
    Usb,
    /// Let a USB device in until it is unplugged.
    UsbAllowOnce {
        /// Where it is plugged: `1-2`.
        port: String,
    },
    /// Take the gates down and end.
    Stop {
        /// The text of a token that allows it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
    },
}

/// Why a request was not done.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Refusal {
    /// The exit code that the command should have.
    pub code: u8,
    /// One line for people.
    pub message: String,
}

/// What holds now.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// [`PROTOCOL`].
    pub schema: u32,
    /// The agent's process id.
    pub pid: u32,
    /// The agent's version.
    pub version: &'static str,
    /// When the agent started.
    pub started: jiff::Timestamp,
    /// How verdicts are enforced: `bpf-lsm` or `fanotify`.
    pub backend: &'static str,
    /// Whether less holds than the kernel's gates would give.
    pub degraded: bool,
    /// The mode in force.
    pub mode: &'static str,
    /// The policy in force.
    pub policy: PolicyId,
    /// How many digests it has.
    pub digests: usize,
    /// The files it was read from.
    pub sources: Vec<String>,
    /// The bundle that the policy came in; none if it is the policy file that the agent was given.
    pub bundle: Option<BundleStatus>,
    /// Who may vouch for artifacts: name, slot and kinds.
    pub signers: Vec<String>,
    /// Catalogs in force.
    pub catalogs: Vec<CatalogStatus>,
    /// What lies in their folder and is not in force.
    pub refused: Vec<Refused>,
    /// What a fleet's servers have brought, in force or not.
    pub kept: Vec<Kept>,
    /// Whether all is well: `ok`, `warning` or `failed`.
    pub health: &'static str,
    /// What was checked.
    pub checks: Vec<Check>,
    /// The gates.
    pub gates: Vec<GateStatus>,
    /// Where records go.
    pub sinks: Vec<SinkStatus>,
    /// What became of USB devices; none if the policy says nothing about them.
    pub usb: Option<UsbStatus>,
    /// Number of the latest record.
    pub events: u64,
    /// Resident memory of the agent in KiB.
    pub resident_kib: Option<u64>,
    /// The latest pass over what runs; none if none has ended.
    pub reappraisal: Option<Pass>,
}

/// What became of USB devices.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UsbStatus {
    /// How many rules the policy has for them.
    pub rules: usize,
    /// Devices that drivers may have.
    pub allowed: usize,
    /// Devices that they may not have.
    pub held: usize,
    /// Devices that they have because the mode is audit.
    pub would_hold: usize,
    /// Attempts of others to let devices in.
    pub refused: u64,
    /// Devices that have come since the agent began to watch, and root hubs.
    pub attached: u64,
    /// Those that have gone.
    pub detached: u64,
    /// How often the kernel had more to tell of devices than the agent could take, so that it looked for
    /// itself.
    pub overruns: u64,
    /// Devices that came, of which the kernel programs had no room to tell; none if these do not count.
    #[serde(default)]
    pub lost_attached: Option<u64>,
    /// Everything else of which they had none.
    #[serde(default)]
    pub lost: Option<u64>,
}

/// The answer to a question for USB devices.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UsbAnswer {
    /// The mode in force.
    pub mode: String,
    /// The policy in force.
    pub policy: PolicyId,
    /// Whether the policy says anything about USB.
    pub judged: bool,
    /// Every device, if it does.
    pub devices: Vec<UsbChange>,
}

/// The bundle in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleStatus {
    /// The policy's name.
    pub policy: String,
    /// The policy's number.
    pub version: u64,
    /// Counts deliberate downgrades.
    pub epoch: u64,
    /// SHA-256 of its manifest, in hexadecimal.
    pub sha256: String,
    /// When it is taken back unless it is confirmed; none if it is.
    pub until: Option<jiff::Timestamp>,
}

/// The answer to a bundle that was put in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushAnswer {
    /// The policy in force now.
    pub policy: PolicyId,
    /// How many digests it has.
    pub digests: usize,
    /// The mode in force now.
    pub mode: String,
    /// When it is taken back unless it is confirmed; none if it is in force for good.
    pub until: Option<jiff::Timestamp>,
    /// What is odd and no reason to refuse it, for people.
    pub warnings: Vec<String>,
}

/// The answer to a catalog that was taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TakenAnswer {
    /// What is kept.
    pub kept: Kept,
    /// Its maker's number for it.
    pub version: u64,
}

/// Where the history lies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistoryAnswer {
    /// The file, as it was written just now.
    pub file: std::path::PathBuf,
}

/// A catalog in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CatalogStatus {
    /// The file.
    pub file: String,
    /// Its maker's name for it.
    pub name: String,
    /// Its maker's number for it.
    pub version: u64,
    /// How many digests it lists.
    pub digests: usize,
    /// How many it takes back.
    pub withdrawn: usize,
    /// Who signed it.
    pub signed: Vec<SignedBy>,
}

/// State of a gate.
#[derive(Clone, Debug, Serialize)]
pub struct GateStatus {
    /// Its name.
    pub gate: &'static str,
    /// Whether a program stands there.
    pub attached: bool,
    /// Whether it would outlive the agent.
    pub pinned: bool,
    /// What it counted, by name.
    #[serde(flatten)]
    pub counters: std::collections::BTreeMap<&'static str, u64>,
}

/// What the policy says about a digest.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuleAnswer {
    /// The mode in force.
    pub mode: String,
    /// Name and version of the policy in force.
    pub policy: String,
    /// The rule, if there is one.
    pub rule: Option<RuleFound>,
}

/// A rule with its place.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct RuleFound {
    /// The kinds that the digest is listed as.
    pub kinds: Vec<String>,
    /// Whether it is denied.
    pub denied: bool,
    /// The policy file or manifest.
    pub file: String,
    /// Line, counted from 1.
    pub line: u32,
    /// Who signed the file, if it is a catalog.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signed: Vec<SignedBy>,
}

/// The answer to a policy that was read anew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// The policy in force now.
    pub policy: PolicyId,
    /// How many digests it has.
    pub digests: usize,
}

/// What the signatures are worth that a file carries itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureAnswer {
    /// What the file may be used as by those that count.
    pub kinds: Vec<String>,
    /// Who made those that count.
    pub signed: Vec<SignedBy>,
    /// Those that do not.
    pub refused: Vec<SignatureRefused>,
}

/// Why a signature on a file does not count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureRefused {
    /// As a stable word.
    pub reason: String,
    /// For people, with what to do.
    pub message: String,
}

/// The answer to a change of mode.
#[derive(Clone, Debug, Serialize)]
pub struct ModeAnswer {
    /// The mode in force now.
    pub mode: &'static str,
}

/// The answer to a change of mode that would stop what runs.
#[must_use]
pub fn preflight_refusal(refused: &[InUse]) -> Refusal {
    /// More would scroll the first line away.
    const SHOWN: usize = 20;
    let mut message =
        format!("the policy would refuse {} files that are in use, or were lately:", refused.len());
    for one in refused.iter().take(SHOWN) {
        message.push_str(&format!("\n  {one}"));
    }
    if refused.len() > SHOWN {
        message.push_str(&format!("\n  … and {} more", refused.len() - SHOWN));
    }
    message.push_str(
        "\nadd them to the policy (`portcullis policy learn` makes a list to choose from), deny those by \
         name that shall not run, or enforce all the same with --skip-preflight",
    );
    Refusal { code: 1, message }
}

/// The mode with this name.
#[must_use]
pub fn mode_named(word: &str) -> Option<Mode> {
    Mode::ALL.iter().copied().find(|mode| mode.word() == word)
}
