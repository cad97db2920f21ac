//! Events as a line for people.

use std::fmt;

use crate::{
    control::caller::Caller,
    event::{
        AccessRefused, Body, BundleChange, CatalogChange, Decision, Event, GlassChange, PolicyId,
        Repeated,
    },
    spool::Dropped,
};

/// Shows an event as one line. Control characters, which a hostile file name may contain, are
/// escaped.
pub struct Line<'a>(pub &'a Event);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ", self.0.time)?;
        match &self.0.body {
            Body::Decision(decision) => {
                write_decision(f, decision)?;
                self.0.repeated.as_ref().map_or(Ok(()), |repeated| {
                    let Repeated { count, first, last } = repeated;
                    write!(f, "; {count} times from {first:.3} to {last:.3}")
                })
            }
            Body::Lost { gate, count } => {
                write!(f, "lost {count} events of the {gate} gate: the ring was full")
            }
            Body::AgentStarted { pid, version, backend, mode, policy, digests } => write!(
                f,
                "agent {version} started (pid {pid}): {mode} by {backend}, policy {}, {digests} digests",
                Named(policy)
            ),
            Body::ModeChanged { mode, policy, by } => {
                write!(f, "mode is now {mode}, policy {}{}", Named(policy), By(by.as_ref()))
            }
            Body::Catalog(change) => write_catalog(f, change),
            Body::BreakGlass(change) => write_glass(f, change),
            Body::Bundle(change) => write_bundle(f, change),
            Body::Usb(change) => write!(f, "{change}"),
            Body::AccessRefused(refused) => write_access(f, refused),
            Body::Signature(rejected) => write!(
                f,
                "signature on {} does not count ({}): {}",
                Plain(&rejected.path),
                rejected.reason,
                Plain(&rejected.message)
            ),
            Body::PolicyChanged { policy, digests, cause, by } => {
                let (policy, by) = (Named(policy), By(by.as_ref()));
                write!(f, "policy {policy} now has {digests} digests: {cause}{by}")
            }
            Body::Health { check, state, found, mend } => {
                write!(f, "health: {check} is {state}: {}", Plain(found))?;
                mend.as_ref().map_or(Ok(()), |mend| write!(f, "; {mend}"))
            }
            Body::Reappraisal { path, expected, found, place } => write!(
                f,
                "content of {} has changed without a write: sha256 {found} in the {}, judged as \
                 {expected}; restart the device, and compare the file with its source",
                Plain(path),
                place.replace('-', " ")
            ),
            Body::Dropped(dropped) => write_dropped(f, dropped),
            Body::Checkpoint(seal) => {
                write!(f, "records up to {} are sealed by the device's key", seal.sealed)
            }
            Body::AgentStopped { cause, gates_stay: true } => {
                write!(f, "agent stopped ({cause}); the gates stay in force")
            }
            Body::AgentStopped { cause, gates_stay: false } => {
                write!(f, "agent stopped ({cause}); the gates are down")
            }
        }
    }
}

fn write_dropped(f: &mut fmt::Formatter<'_>, dropped: &Dropped) -> fmt::Result {
    let Dropped { stage, sink, chain, first, last, count, .. } = dropped;
    let (chain, why) = (
        chain.word(),
        match *stage {
            "memory" => "the disk did not take them, and memory was full",
            _ => "the spool was full",
        },
    );
    write!(f, "{count} records ({chain} {first} to {last}) had to make room: {why}")?;
    sink.as_ref().map_or(Ok(()), |sink| write!(f, "; {} has not got them", Plain(sink)))
}

fn write_glass(f: &mut fmt::Formatter<'_>, change: &GlassChange) -> fmt::Result {
    let GlassChange { state, signed, until, message, by } = change;
    match (*state, until) {
        ("lifted", Some(until)) => write!(f, "ENFORCEMENT IS LIFTED until {until:.0} by a token")?,
        ("stop", _) => write!(f, "THE GATES GO DOWN by a token")?,
        ("over", _) => write!(f, "enforcement is not lifted any more: the policy decides again")?,
        _ => write!(f, "a token to lift enforcement, or to stop, was refused")?,
    }
    for signer in signed {
        write!(f, ", signed by {}", signer.signer.escape_debug())?;
    }
    write!(f, "{}", By(by.as_ref()))?;
    message.as_ref().map_or(Ok(()), |message| write!(f, ": {}", Plain(message)))
}

fn write_bundle(f: &mut fmt::Formatter<'_>, change: &BundleChange) -> fmt::Result {
    let BundleChange { state, bundle, signed, message, until, by } = change;
    match bundle {
        Some(bundle) => write!(f, "bundle {bundle}: {}", state.replace('-', " "))?,
        None => write!(f, "bundle {state}")?,
    }
    if let Some(until) = until {
        write!(f, " until {until:.0}, unless `portcullis policy confirm` keeps it")?;
    }
    for signer in signed {
        write!(f, ", signed by {}", signer.signer.escape_debug())?;
    }
    write!(f, "{}", By(by.as_ref()))?;
    message.as_ref().map_or(Ok(()), |message| write!(f, ": {}", Plain(message)))
}

fn write_access(f: &mut fmt::Formatter<'_>, refused: &AccessRefused) -> fmt::Result {
    let AccessRefused { reason, message, count, address, by } = refused;
    match by {
        Some(by) => write!(f, "refused over the network: {by}")?,
        None => write!(f, "refused over the network: {address}")?,
    }
    if *count > 1 {
        write!(f, " and {} more", count - 1)?;
    }
    write!(f, " ({reason}): {}", Plain(message))
}

fn write_catalog(f: &mut fmt::Formatter<'_>, change: &CatalogChange) -> fmt::Result {
    match (change.file.as_str(), &change.by) {
        ("", Some(by)) => write!(f, "catalog of {by}")?,
        (file, _) => write!(f, "catalog {}", Plain(file))?,
    }
    if let (Some(name), Some(version)) = (&change.name, change.version) {
        write!(f, " ({name} v{version})")?;
    }
    match change.state {
        "in-force" => {
            write!(f, " is in force: {} digests", change.digests)?;
            if change.withdrawn > 0 {
                write!(f, ", {} taken back", change.withdrawn)?;
            }
            let signers = change.signed.iter().map(|by| format!("{} ({})", by.signer, by.slot));
            write!(f, ", signed by {}", signers.collect::<Vec<_>>().join(" and "))?;
            for warning in change.signed.iter().flat_map(|by| &by.warnings) {
                write!(f, "; {}", Plain(warning))?;
            }
            Ok(())
        }
        "removed" => write!(f, " is gone: what it listed is not allowed by it any more"),
        "received" => {
            write!(f, " was received")?;
            change.by.as_ref().map_or(Ok(()), |by| write!(f, " from {by}"))
        }
        "taken-away" => {
            write!(f, " was taken away")?;
            change.by.as_ref().map_or(Ok(()), |by| write!(f, " by {by}"))
        }
        _ => {
            let (reason, message) = (change.reason.as_deref(), change.message.as_deref());
            write!(f, " is refused ({}): ", reason.unwrap_or_default())?;
            write!(f, "{}", Plain(message.unwrap_or_default()))
        }
    }
}

fn write_decision(f: &mut fmt::Formatter<'_>, decision: &Decision) -> fmt::Result {
    let Decision { artifact, process, .. } = decision;
    let did = match decision.outcome {
        "allow" => "allowed",
        "would-deny" => "would deny",
        "report" => "noticed",
        _ => "denied",
    };
    let (what, verb) = match decision.gate {
        "exec" => ("exec of", "run"),
        "mapping" => ("mapping of", "mapped"),
        "kernel" => ("loading into the kernel of", "loaded"),
        "memory" => ("making memory executable of", "made"),
        "interpreter" => ("interpreting of", "read"),
        "device" => ("writing to", "opened"),
        "usb" => ("changing which USB devices come alive by", "written"),
        "shield" => return write_attack(f, did, decision),
        other => (other, "done"),
    };
    match artifact {
        None => write!(f, "{did} {what} something that is no file")?,
        Some(artifact) => {
            write!(f, "{did} {what} {}", Plain(&artifact.path))?;
            if let Some(digest) = &artifact.digest {
                write!(f, " (sha256 {digest})")?;
            }
        }
    }
    write!(f, ": {}", why(decision))?;
    write!(f, "; {verb} by {} (pid {}, uid {})", Plain(&process.comm), process.pid, process.uid)?;
    if let Some(parent) = process.ancestors.first() {
        write!(f, ", parent {}", Plain(&parent.comm))?;
    }
    if let Some(mend) = mend(decision) {
        write!(f, "; {mend}")?;
    }
    Ok(())
}

/// Somebody attacked the agent or its gates. There is hardly anything that a policy could allow.
fn write_attack(f: &mut fmt::Formatter<'_>, did: &str, decision: &Decision) -> fmt::Result {
    let Decision { artifact, process, .. } = decision;
    write!(f, "{did} {}", why(decision))?;
    if let Some(artifact) = artifact {
        write!(f, " ({})", Plain(&artifact.path))?;
    }
    write!(f, "; by {} (pid {}, uid {})", Plain(&process.comm), process.pid, process.uid)?;
    if let Some(parent) = process.ancestors.first() {
        write!(f, ", parent {}", Plain(&parent.comm))?;
    }
    mend(decision).map_or(Ok(()), |mend| write!(f, "; {mend}"))
}

/// The reason in words.
#[must_use]
pub fn why(decision: &Decision) -> String {
    let policy = Named(&decision.policy);
    let place = decision.rule.as_ref().map_or_else(String::new, |rule| {
        let signed = match &rule.signers[..] {
            [] => String::new(),
            signers => format!(", signed by {}", signers.join(" and ")),
        };
        match rule.line {
            0 => format!(" ({})", Plain(&rule.file)),
            line => format!(" ({}:{line}{signed})", Plain(&rule.file)),
        }
    });
    let listed = decision.rule.as_ref().map_or_else(String::new, |rule| rule.kinds.join(" and "));
    let artifact = decision.artifact.as_ref();
    match decision.reason {
        "listed" => format!("listed in policy {policy}{place}"),
        "unlisted" => format!("not in policy {policy}"),
        "denied" => format!("denied by policy {policy}{place}"),
        "wrong-kind" => format!(
            "policy {policy} lists it as {listed}, not as {}{place}",
            decision.wanted.join(" or ")
        ),
        "being-written" => "somebody has it open for writing".into(),
        "unstable" => "it was opened for writing while it was judged".into(),
        "unsealed" => "it lives in memory and is not sealed against writing".into(),
        "not-a-file" => "it is not a regular file".into(),
        "too-large" => {
            let size = artifact.map_or(0, |artifact| artifact.size);
            format!("its {size} bytes are too many to hash")
        }
        "filesystem" => {
            let filesystem = artifact.map_or("its filesystem", |artifact| &artifact.filesystem);
            format!("content on {filesystem} can change between check and use")
        }
        "hash-failed" => {
            let status = artifact.and_then(|artifact| artifact.hash_status).unwrap_or_default();
            format!("the kernel could not hash it (error {})", status.saturating_neg())
        }
        "wrong-algorithm" => "the kernel's IMA does not use SHA-256".into(),
        "no-memory" => "the kernel had no memory for the verdict".into(),
        "policy-changed" => "the policy changed while it was hashed".into(),
        "anonymous-memory" => "the memory holds no file's content".into(),
        "changed-mapping" => "the mapping was changed since it was made, or could be".into(),
        "mounted-device" => "a mounted filesystem lies on it".into(),
        "usb-switch" => "only the agent lets USB devices in".into(),
        "agent-signal" => "a signal to the agent".into(),
        "agent-memory" => "reaching into the agent's process, or passing for it".into(),
        "gate-pins" => "removing or renaming what keeps the gates in force".into(),
        "gate-mount" => {
            "unmounting, moving or covering what the gates' pins or the agent's sockets lie on"
                .into()
        }
        "gate-objects" => "getting hold of the gates' maps, programs or links".into(),
        "gate-switch" => "having the kernel not call the gates any more".into(),
        "agent-state" => "changing what the agent keeps in its folders".into(),
        "other-bpf" => match &decision.bpf {
            Some(program) => format!("loading a BPF program, {program}"),
            None => "loading a BPF program".into(),
        },
        "verified-filesystem" => format!("policy {policy} trusts its verified filesystem"),
        "no-file" => "the kernel is given bytes from memory, which cannot be identified".into(),
        "unknown-use" => "the kernel reads it for a purpose that this version does not know".into(),
        "not-appraised" => "the file was not judged before, and cannot be judged here".into(),
        "layers-unknown" => "the layers of its overlay filesystem cannot be looked at".into(),
        "stale-layer" => {
            "the descriptor shows a layer that the file has left, or is older than the gates".into()
        }
        other => other.to_owned(),
    }
}

/// What to do if the attempt was legitimate.
fn mend(decision: &Decision) -> Option<String> {
    if decision.reason == "usb-switch" {
        return Some("to let a device in: `portcullis usb allow-once`, or add a rule".into());
    }
    if decision.reason == "other-bpf" && decision.outcome != "report" {
        return Some("to allow: set other_bpf = \"report\"".into());
    }
    let kind = decision.wanted.first()?;
    match decision.reason {
        "unlisted" => Some(format!("to allow: list this digest with kinds = [\"{kind}\"]")),
        "wrong-kind" => Some(format!("to allow: add \"{kind}\" to its kinds")),
        "being-written" | "unstable" => Some("to allow: close it first".into()),
        "unsealed" => Some("to allow: seal it with F_SEAL_WRITE, and list its digest".into()),
        "wrong-algorithm" => Some("remove ima_hash= from the kernel's command line".into()),
        "anonymous-memory" | "changed-mapping" => {
            Some("to allow: list the program's digest with kinds = [\"jit\"] as well".into())
        }
        "mounted-device" => {
            Some("to allow: unmount it first, or set mounted_devices = \"open\"".into())
        }
        "filesystem" => {
            let kind = decision.artifact.as_ref().map_or("…", |artifact| &artifact.filesystem);
            Some(format!(
                "to allow: copy it to a local filesystem, or add [[filesystem]] type = \"{kind}\""
            ))
        }
        "no-file" => Some("to allow: load it from a file whose digest is listed".into()),
        "not-appraised" => Some("to allow: map it as code from the beginning".into()),
        "stale-layer" => Some("to allow: open it anew".into()),
        "layers-unknown" => {
            Some("to allow: add [[filesystem]] type = \"overlay\", and see docs/limits.md".into())
        }
        _ => None,
    }
}

/// Who did something, if anybody did.
struct By<'a>(Option<&'a Caller>);

impl fmt::Display for By<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |by| write!(f, ", asked for by {by}"))
    }
}

/// A policy's name and version.
pub struct Named<'a>(pub &'a PolicyId);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.name.is_empty() {
            write!(f, "of generation {}", self.0.generation)
        } else {
            write!(f, "{} v{}", self.0.name, self.0.version)
        }
    }
}

/// Text from outside, without control characters.
pub struct Plain<'a>(pub &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            // Direction marks can make a name look like another.
            if character.is_control()
                || matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_on_their_line() {
        let shown = Plain("/tmp/a\n2026 allowed\u{1b}[2J\u{202e}x").to_string();
        assert_eq!(shown, "/tmp/a\\n2026 allowed\\u{1b}[2J\\u{202e}x");
    }
}
