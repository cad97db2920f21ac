//! From what the kernel recorded to what a person wants to know.
//!
//! Runs in the agent, after the verdict and the attempt are over. The process may be gone by
//! then, so everything that must be right comes from the kernel, and the rest is optional.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use jiff::{SignedDuration, Timestamp};
use portcullis_common::{Ancestor, EventHeader, Gate, Mode, Reason};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    artifact::digest,
    catalog::SignedBy,
    event::{
        AncestorInfo, ArtifactInfo, Decision, PolicyId, ProcessInfo, RulePlace,
        bpf::BpfInfo,
        decode::{GateEvent, comm},
    },
    kernel::{filesystems, selftest::kernel_device},
};

/// The policy that events are explained with.
#[derive(Clone, Debug)]
pub struct PolicyView {
    /// Its identity.
    pub id: PolicyId,
    /// The files it was read from, by [`portcullis_common::Rule::source`].
    pub sources: Vec<String>,
    /// Who signed those of them that are signed.
    pub signed: BTreeMap<u16, Vec<SignedBy>>,
}

/// Where the unified hierarchy of control groups is mounted, with and without the older ones.
const CGROUP_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// How many ancestors are followed beyond those that the kernel recorded.
const MORE_ANCESTORS: usize = 12;

/// Turns gate events into decisions.
#[derive(Default)]
pub struct Enricher {
    /// How verdicts are enforced.
    backend: &'static str,
    /// Paths of control groups by id.
    cgroups: HashMap<u64, Option<String>>,
}

/// How many control groups are remembered; on a device with more the oldest knowledge goes.
const MAX_CGROUPS: usize = 4096;

impl Enricher {
    /// For events of the backend with this name.
    #[must_use]
    pub fn new(backend: &'static str) -> Self {
        Self { backend, ..Self::default() }
    }

    /// Everything that is to be told of an event. `policies` are those that may have decided.
    pub fn decision(&mut self, event: &GateEvent, policies: &[PolicyView]) -> Decision {
        let header = &event.header;
        let policy = policies.iter().find(|policy| policy.id.generation == header.generation);
        // Rules by a file's own signature stand in no line.
        let has_rule = header.rule.line > 0 || !header.rule.kinds.is_empty();
        let rule = policy.filter(|_| has_rule).and_then(|policy| {
            let file = policy.sources.get(usize::from(header.rule.source))?.clone();
            let signed = policy.signed.get(&header.rule.source);
            let signers = signed.into_iter().flatten().map(|by| by.signer.clone()).collect();
            let (line, kinds) = (header.rule.line, header.rule.kinds.words().collect());
            Some(RulePlace { file, line, kinds, signers })
        });
        Decision {
            backend: self.backend,
            gate: event.gate.word(),
            outcome: event.outcome.word(),
            reason: event.reason.word(),
            mode: if header.enforces == 1 { Mode::Enforce } else { Mode::Audit }.word(),
            policy: policy.map_or_else(
                || PolicyId { name: String::new(), version: 0, generation: header.generation },
                |policy| policy.id.clone(),
            ),
            rule,
            wanted: header.wanted.words().collect(),
            artifact: artifact(event),
            process: self.process(event),
            cached: header.cached == 1,
            bpf: event.bpf.as_ref().map(BpfInfo::of),
        }
    }

    fn process(&mut self, event: &GateEvent) -> ProcessInfo {
        let header = &event.header;
        ProcessInfo {
            pid: header.pid,
            tid: header.tid,
            uid: header.uid,
            gid: header.gid,
            comm: comm(&header.comm),
            cgroup: self.cgroup(header.cgroup),
            cgroup_id: header.cgroup,
            ancestors: ancestors(&header.ancestors),
        }
    }

    /// Path of a control group, by its inode number in the mounted hierarchy.
    fn cgroup(&mut self, id: u64) -> Option<String> {
        if !self.cgroups.contains_key(&id) {
            if self.cgroups.len() >= MAX_CGROUPS {
                self.cgroups.clear();
            }
            for mount in CGROUP_MOUNTS {
                self.index_cgroups(Path::new(mount), String::new(), 0);
            }
            // What is not found now was removed, and its id is not given again.
            self.cgroups.entry(id).or_default();
        }
        self.cgroups.get(&id).cloned().flatten()
    }

    fn index_cgroups(&mut self, folder: &Path, name: String, depth: u32) {
        use std::os::unix::fs::MetadataExt;
        const MAX_DEPTH: u32 = 24;
        if depth > MAX_DEPTH || self.cgroups.len() >= MAX_CGROUPS {
            return;
        }
        // A hierarchy of the older kind has numbers of its own that mean something else.
        if depth == 0 && !folder.join("cgroup.controllers").exists() {
            return;
        }
        let Ok(metadata) = fs::metadata(folder) else { return };
        let shown = if name.is_empty() { "/".to_owned() } else { name.clone() };
        self.cgroups.insert(metadata.ino(), Some(shown));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let below = format!("{name}/{}", entry.file_name().to_string_lossy());
                self.index_cgroups(&entry.path(), below, depth + 1);
            }
        }
    }
}

fn artifact(event: &GateEvent) -> Option<ArtifactInfo> {
    let header = &event.header;
    if header.device == 0 && header.inode == 0 {
        return None;
    }
    // These hooks give no path of the program.
    let is_program = event.gate == Gate::Memory || event.bpf.is_some();
    let mapped = if is_program { path_of_mapping(header) } else { None };
    let (path, path_hex) = match mapped.as_ref().map_or(event.path.as_deref(), |path| Ok(path)) {
        Ok(path) => match std::str::from_utf8(path) {
            Ok(path) => (path.to_owned(), None),
            Err(_) => (String::from_utf8_lossy(path).into_owned(), Some(hex::encode(path))),
        },
        Err(0) => ("(not known)".to_owned(), None),
        Err(errno) => {
            let why = rustix::io::Errno::from_raw_os_error(*errno);
            (format!("(path not given by the kernel: {why})"), None)
        }
    };
    let hash_failed = matches!(event.reason, Reason::HashFailed | Reason::WrongAlgorithm);
    let has_digest = !hash_failed && header.digest.iter().any(|byte| *byte != 0);
    Some(ArtifactInfo {
        path,
        path_hex,
        digest: has_digest.then(|| digest::format(&header.digest)),
        size: header.size,
        filesystem: filesystems::name(u64::from(header.filesystem)),
        device: format!("{}:{}", header.device >> 20, header.device & 0xf_ffff),
        inode: header.inode,
        hash_status: hash_failed.then_some(header.hash_status),
    })
}

/// Under which path the process runs or maps the file, if it still does.
fn path_of_mapping(header: &EventHeader) -> Option<Vec<u8>> {
    use std::os::unix::{ffi::OsStringExt, fs::MetadataExt};
    let process = Path::new("/proc").join(header.pid.to_string());
    let is_it = |file: &Path| {
        fs::metadata(file).is_ok_and(|metadata| {
            (kernel_device(metadata.dev()), metadata.ino()) == (header.device, header.inode)
        })
    };
    let program = process.join("exe");
    if is_it(&program) {
        return Some(fs::read_link(program).ok()?.into_os_string().into_vec());
    }
    let maps = fs::read(process.join("maps")).ok()?;
    let inode = header.inode.to_string();
    maps.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let range = std::str::from_utf8(fields.next()?).ok()?;
        if fields.nth(3)? != inode.as_bytes() || !is_it(&process.join("map_files").join(range)) {
            return None;
        }
        Some(fields.next()?.trim_ascii_start().to_vec())
    })
}

/// The kernel's record, continued from `/proc` where it ends before the first process.
fn ancestors(recorded: &[Ancestor]) -> Vec<AncestorInfo> {
    let mut chain: Vec<_> = recorded
        .iter()
        .take_while(|ancestor| ancestor.pid != 0)
        .map(|ancestor| AncestorInfo { pid: ancestor.pid, comm: comm(&ancestor.comm) })
        .collect();
    if chain.len() == recorded.len() {
        let mut pid = chain.last().map_or(0, |last| last.pid);
        for _ in 0..MORE_ANCESTORS {
            let Some(parent) = parent_of(pid).filter(|parent| *parent != 0) else { break };
            let name = fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
            chain.push(AncestorInfo { pid: parent, comm: name.trim_end().to_owned() });
            pid = parent;
        }
    }
    chain
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain any character, so count from its end.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Wall-clock time of a moment given as nanoseconds since boot.
#[must_use]
pub fn wall_time(boot_ns: u64) -> Timestamp {
    let now = clock_gettime(ClockId::Boottime);
    let ago = SignedDuration::new(now.tv_sec, i32::try_from(now.tv_nsec).unwrap_or_default())
        - SignedDuration::from_nanos(i64::try_from(boot_ns).unwrap_or(i64::MAX));
    Timestamp::now().checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_chain_of_parents_to_the_first_process() {
        let me = std::process::id();
        let own = Ancestor { pid: me, comm: *b"test\0\0\0\0\0\0\0\0\0\0\0\0" };
        let chain = ancestors(&[own]);
        assert_eq!(chain[0], AncestorInfo { pid: me, comm: "test".into() });
        assert_eq!(
            chain.get(1).map(|parent| parent.pid),
            Some(std::os::unix::process::parent_id())
        );
    }

    #[test]
    fn time_since_boot_becomes_wall_time() {
        let now = clock_gettime(ClockId::Boottime);
        let nanoseconds =
            u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).expect("after boot");
        let difference = Timestamp::now().duration_since(wall_time(nanoseconds)).abs();
        assert!(difference < SignedDuration::from_secs(1), "{difference}");
    }
}
