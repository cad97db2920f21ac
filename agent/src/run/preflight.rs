//! Would this policy stop what runs now? Asked before enforcing it.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use portcullis_common::{Digest, Kinds, Rule, fsverity_key};

use crate::{
    artifact::{MAX_HASHED_BYTES, digest, fsverity},
    history::suspects::Suspect,
    kernel::verity,
    policy::{Policy, manifest::kinds_words},
    run::signatures,
    scan,
};

/// Something that runs, or must be able to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// Where it lies.
    pub path: PathBuf,
    /// What it is used as.
    pub kind: Kinds,
    /// Its digest, if it could be made.
    pub digest: Option<Digest>,
    /// The device that it lies on, as system calls number it.
    pub device: u64,
    /// Its fs-verity digest, if it has one.
    pub fsverity: Option<Digest>,
    /// Who uses it, or when it was used, for people.
    pub told: String,
    /// Whether the device cannot be repaired without it: the first process, the shell, the agent, and
    /// what these have mapped.
    pub is_vital: bool,
}

impl std::fmt::Display for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.path.display().to_string();
        let digest = self.digest.as_ref().map_or("no digest".into(), digest::format);
        let kind = kinds_words(self.kind);
        write!(f, "{} as {kind} (sha256 {digest}), {}", path.escape_debug(), self.told)
    }
}

/// Those of `in_use` that the gates would refuse by `rule`, and that do not lie on a device whose
/// files may be used as what `verified` says.
pub fn refused(
    in_use: Vec<InUse>,
    rule: impl Fn(&Digest) -> Option<Rule>,
    verified: impl Fn(u64) -> Kinds,
) -> Vec<InUse> {
    let allows = |one: &InUse| match one.digest.as_ref().and_then(&rule) {
        Some(rule) if rule.denied == 1 => false,
        Some(rule) if rule.kinds.intersects(one.kind) => true,
        _ => {
            let single = one.fsverity.and_then(|digest| rule(&fsverity_key(&digest)));
            single.is_some_and(|rule| rule.kinds.intersects(one.kind))
                || verified(one.device).intersects(one.kind)
        }
    };
    in_use.into_iter().filter(|one| !allows(one)).collect()
}

/// What runs now, or has run as `suspects` tell and could again, and would be refused by `policy`. Reads
/// every file once, which takes a while.
#[must_use]
pub fn would_refuse(policy: &Policy, suspects: Vec<Suspect>) -> Vec<InUse> {
    let mut in_use = in_use();
    add_suspects(&mut in_use, suspects);
    let verified = verified_kinds(policy);
    let verified = |device| verified.get(&device).copied().unwrap_or_default();
    let refused = refused(in_use, |digest| policy.rule(digest), verified);
    signatures::without_signed(refused, policy)
}

/// What the policy would let files be used as because their device is verified, by device.
#[must_use]
pub fn verified_kinds(policy: &Policy) -> HashMap<u64, Kinds> {
    let listed = &policy.verified_filesystems;
    if listed.is_empty() {
        return HashMap::new();
    }
    let found = verity::mounted(|root| listed.iter().any(|one| one.root == *root));
    // What cannot be looked at is judged by its content, here as later.
    let found = found.map(|found| found.verified).unwrap_or_default();
    let kinds = |root| {
        let same = listed.iter().filter(|one| one.root == root);
        same.fold(Kinds::NONE, |kinds, one| kinds.union(one.kinds))
    };
    found.iter().map(|one| (one.device, kinds(one.root))).collect()
}

/// Programs without which nobody gets in again.
const INDISPENSABLE: [&str; 2] = ["/sbin/init", "/bin/sh"];

/// Everything that runs now, in the order of paths. Reads every file once, which takes a while.
///
/// Sees programs and mapped libraries of all processes; scripts, which the kernel does not tell
/// from other arguments of their interpreter, it cannot see.
#[must_use]
pub fn in_use() -> Vec<InUse> {
    let mut search = Search::default();
    for path in INDISPENSABLE {
        if let Ok(path) = fs::canonicalize(path) {
            search.file(&path, &path, Kinds::EXECUTABLE, ("used by getting in again", true));
        }
    }
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            search.process(&entry.path());
        }
    }
    search.found.sort_by(|a, b| a.path.cmp(&b.path));
    search.found
}

/// Adds what has run and could again: the file is still there, or was within a few days.
pub fn add_suspects(in_use: &mut Vec<InUse>, suspects: Vec<Suspect>) {
    let known: HashSet<_> = in_use.iter().map(|one| (one.digest, one.kind)).collect();
    for suspect in suspects {
        if suspect.digest.is_some() && known.contains(&(suspect.digest, suspect.kinds)) {
            continue;
        }
        let still_there = suspect.digest.and_then(|digest| present(&suspect.path, &digest));
        let (device, fsverity) = match still_there {
            Some(found) => found,
            None if suspect.is_recent => (0, None),
            None => continue,
        };
        let Suspect { path, digest, kinds: kind, told, .. } = suspect;
        in_use.push(InUse { path, kind, digest, device, fsverity, told, is_vital: false });
    }
}

/// The device and fs-verity digest of a file, if it is there with this content.
fn present(path: &Path, expected: &Digest) -> Option<(u64, Option<Digest>)> {
    let file = scan::open(path).ok()?;
    let metadata = file.metadata().ok().filter(fs::Metadata::is_file)?;
    let (digest, _) = digest::of_file(&file, MAX_HASHED_BYTES).ok()?;
    (digest == *expected).then(|| (metadata.dev(), fsverity::measured(&file)))
}

#[derive(Default)]
struct Search {
    /// Where in `found` a file is, by device, inode number and use.
    seen: HashMap<(u64, u64, Kinds), usize>,
    found: Vec<InUse>,
}

impl Search {
    /// A process may end meanwhile; what cannot be read any more does not run any more.
    fn process(&mut self, process: &Path) {
        let program = process.join("exe");
        let Ok(own) = fs::metadata(&program) else { return };
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let pid = process.file_name().unwrap_or_default().to_string_lossy();
        let told = format!("used by {} (pid {pid})", comm.trim_end().escape_debug());
        let is_vital = pid == "1" || pid.parse() == Ok(std::process::id());
        let user = (told.as_str(), is_vital);
        let shown = fs::read_link(&program).unwrap_or_default();
        self.file(&program, &shown, Kinds::EXECUTABLE, user);

        let maps = fs::read(process.join("maps")).unwrap_or_default();
        for line in maps.split(|byte| *byte == b'\n') {
            let Some(mapping) = executable_mapping(line) else { continue };
            // Opens the very file that is mapped, even if it was deleted or lies in a container.
            let file = process.join("map_files").join(&mapping.range);
            match fs::metadata(&file) {
                Ok(metadata) if (metadata.dev(), metadata.ino()) != (own.dev(), own.ino()) => {
                    self.file(&file, &mapping.path, Kinds::LIBRARY, user);
                }
                _ => {}
            }
        }
    }

    fn file(&mut self, file: &Path, shown: &Path, kind: Kinds, (told, is_vital): (&str, bool)) {
        let Ok(metadata) = fs::metadata(file) else { return };
        if !metadata.is_file() {
            return;
        }
        match self.seen.entry((metadata.dev(), metadata.ino(), kind)) {
            Entry::Occupied(known) => {
                self.found[*known.get()].is_vital |= is_vital;
                return;
            }
            Entry::Vacant(new) => new.insert(self.found.len()),
        };
        let opened = File::open(file);
        let fsverity = opened.as_ref().ok().and_then(fsverity::measured);
        let digest = opened
            .and_then(|opened| digest::of_file(&opened, MAX_HASHED_BYTES))
            .map(|(digest, _)| digest);
        self.found.push(InUse {
            path: shown.to_owned(),
            kind,
            digest: digest.ok(),
            device: metadata.dev(),
            fsverity,
            told: told.to_owned(),
            is_vital,
        });
    }
}

/// Paths by which everything that runs now can be opened, whatever its name has become: the
/// indispensable first.
#[must_use]
pub fn places_in_use() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = INDISPENSABLE.iter().map(PathBuf::from).collect();
    places.push("/proc/self/exe".into());
    let mut seen = HashSet::new();
    let mut add = |place: PathBuf| {
        // A process may end meanwhile.
        let Ok(metadata) = fs::metadata(&place) else { return };
        if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
            places.push(place);
        }
    };
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = process.path();
        let maps = fs::read(process.join("maps")).unwrap_or_default();
        if maps.is_empty() {
            continue;
        }
        add(process.join("exe"));
        let mappings = maps.split(|byte| *byte == b'\n').filter_map(executable_mapping);
        mappings.for_each(|mapping| add(process.join("map_files").join(mapping.range)));
    }
    places
}

/// A file that is mapped as code.
pub(super) struct Mapping {
    /// As `map_files` names it.
    pub range: String,
    /// As `maps` tells it.
    pub path: PathBuf,
    /// Which file it is, among all: device and inode number as the kernel has them.
    pub file: (u64, u64),
}

/// A line of `/proc/PID/maps`, if it is of a file that is mapped as code.
pub(super) fn executable_mapping(line: &[u8]) -> Option<Mapping> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let range = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    let permissions = fields.next()?;
    let (_offset, device, inode) = (fields.next()?, fields.next()?, fields.next()?);
    let path = fields.next()?.trim_ascii_start();
    let is_code = permissions.get(2) == Some(&b'x') && inode != b"0";
    if !is_code {
        return None;
    }
    let (major, minor) = std::str::from_utf8(device).ok()?.split_once(':')?;
    let number = |hex| u64::from_str_radix(hex, 16).ok();
    let file =
        (number(major)? << 32 | number(minor)?, std::str::from_utf8(inode).ok()?.parse().ok()?);
    Some(Mapping { range, path: OsStr::from_bytes(path).into(), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_policy_would_stop_this_very_process() {
        let refused = refused(in_use(), |_| None, |_| Kinds::NONE);
        let own = fs::read_link("/proc/self/exe").expect("own binary");
        assert!(
            refused
                .iter()
                .any(|one| { one.path == own && one.kind == Kinds::EXECUTABLE && one.is_vital }),
            "{refused:?}"
        );
        let shell = fs::canonicalize("/bin/sh").expect("a shell");
        assert!(refused.iter().any(|one| one.path == shell && one.is_vital), "{refused:?}");
    }

    #[test]
    fn a_policy_that_lists_everything_stops_nothing() {
        let everything = Kinds::EXECUTABLE.union(Kinds::LIBRARY);
        let refused = refused(
            in_use(),
            |_| Some(Rule { kinds: everything, ..Rule::default() }),
            |_| Kinds::NONE,
        );
        assert_eq!(refused, []);
        let refused = super::refused(in_use(), |_| None, |_| everything);
        assert_eq!(refused, []);
    }

    #[test]
    fn only_mapped_code_counts() {
        let line = b"7f00-7f10 r-xp 00000000 08:01 42                         /lib/a b.so";
        let mapping = executable_mapping(line).expect("code");
        assert_eq!(
            (mapping.range.as_str(), mapping.path.clone()),
            ("7f00-7f10", PathBuf::from("/lib/a b.so"))
        );
        assert_eq!(mapping.file, (8 << 32 | 1, 42));
        assert!(executable_mapping(b"7f00-7f10 r--p 00000000 08:01 42   /lib/a.so").is_none());
        assert!(executable_mapping(b"7f00-7f10 r-xp 00000000 00:00 0    [vdso]").is_none());
    }
}
