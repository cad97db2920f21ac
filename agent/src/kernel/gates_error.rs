//! Why the gates do not stand.

use std::path::PathBuf;

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use thiserror::Error;

/// Why the gates do not stand.
#[derive(Debug, Error)]
pub enum GatesError {
    /// The object or one of its maps was refused.
    #[error("the kernel refused the programs' object: {}", brief(.0))]
    Object(#[from] EbpfError),
    /// A program was refused.
    #[error("the kernel refused program {program} for hook {hook}: {}", brief(.source))]
    Program {
        /// Name of the program.
        program: &'static str,
        /// Name of the hook.
        hook: &'static str,
        /// Why.
        source: Box<ProgramError>,
    },
    /// The kernel's type information is not readable for aya.
    #[error("the kernel's type information cannot be used: {0}")]
    Btf(#[from] aya::BtfError),
    /// A map does not do what it should.
    #[error("a map of the kernel programs failed: {0}")]
    Map(#[from] MapError),
    /// The object lacks something; the build is broken.
    #[error("the compiled programs lack `{0}`")]
    Missing(&'static str),
    /// Trust in verified filesystems cannot be kept right.
    #[error(
        "the policy lists the root hash of a filesystem, and this kernel has no place to watch its \
         device; remove [[filesystem]] verity from the policy and list digests"
    )]
    NoWatch,
    /// The word that switches policies could not be mapped.
    #[error("mapping the policy switch failed: {0}")]
    Switch(#[from] rustix::io::Errno),
    /// The policy has more digests than a map can have.
    #[error("a policy of {0} digests is too large for the kernel")]
    TooManyDigests(usize),
    /// Pinning failed.
    #[error("pinning {path} failed: {why}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A link says nothing of itself.
    #[error("asking the kernel for a link's number failed: {0}")]
    Link(String),
    /// The map of verdicts could not be shared.
    #[error("sharing the map of verdicts failed: {0}")]
    Records(#[source] std::io::Error),
    /// Which devices carry filesystems is not known.
    #[error("finding out which devices carry mounted filesystems failed: {0}")]
    Mounts(#[source] std::io::Error),
    /// The programs could not be told who the agent is.
    #[error("reading the agent's own start from /proc/self/stat failed: {0}")]
    Process(#[source] std::io::Error),
    /// The kernel's log of the programs could not be read.
    #[error("the programs' own log cannot be read: {0}")]
    Log(String),
}

/// The verifier's words fill pages; the cause stands in its last lines.
pub(super) fn brief(error: &dyn std::error::Error) -> String {
    const STATISTICS: [&str; 5] =
        ["processed ", "insns processed", "verification time", "stack depth", ":"];
    let text = error.to_string();
    let mut lines = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start)));
    let first = lines.next().unwrap_or_default();
    let first = first.split(" Verifier output:").next().unwrap_or_default();
    lines.next_back().map_or_else(|| first.to_owned(), |last| format!("{first} … {last}"))
}
