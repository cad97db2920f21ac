//! Whether memory for verdicts can run out although the device has some.
//!
//! The kernel keeps verdicts with files' inodes, and charges them to the control group in which the agent
//! was when it made the map. Where that group may not grow, nor one that it is in, there is no memory for
//! another verdict, and the kernel also ends the agent: a file that has no verdict yet is refused then.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::kernel::check::{Check, State};

/// Where the hierarchies of control groups are, with the files that say how large a group may become. Of
/// the second version, alone and beside the first; of the first.
const UNIFIED: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
const UNIFIED_LIMITS: [&str; 2] = ["memory.max", "memory.high"];
const FIRST_VERSION: &str = "/sys/fs/cgroup/memory";
const FIRST_VERSION_LIMITS: [&str; 1] = ["memory.limit_in_bytes"];

/// No machine has so many bytes: what the first version calls a group without a limit.
const NO_LIMIT: u64 = 1 << 60;

/// Looks at the groups in which this process is.
#[must_use]
pub fn check() -> Check {
    let (id, title) = ("memory-limit", "memory for verdicts is what the device has");
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match smallest(&groups, |file| fs::read_to_string(file).ok()) {
        None => Check::ok(id, title, "no control group of the agent has a limit"),
        Some((file, bytes)) => Check::bad(
            State::Warning,
            id,
            title,
            format!(
                "{} is {bytes} bytes: files that have no verdict yet are refused once it is reached",
                file.display()
            ),
            "take MemoryMax= and MemoryHigh= from the agent's unit and its slices, and restart it",
        ),
    }
}

/// The smallest limit of the groups that `groups` (as in `/proc/PID/cgroup`) names and of those above
/// them, and where it is written.
fn smallest(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<(PathBuf, u64)> {
    let mut found: Option<(PathBuf, u64)> = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (roots, names): (&[&str], &[&str]) = if controllers.is_empty() {
            (&UNIFIED, &UNIFIED_LIMITS)
        } else if controllers.split(',').any(|controller| controller == "memory") {
            (&[FIRST_VERSION], &FIRST_VERSION_LIMITS)
        } else {
            continue;
        };
        for root in roots {
            let group = Path::new(root).join(group.trim_start_matches('/'));
            let above = group.ancestors().take_while(|folder| folder.starts_with(root));
            for file in above.flat_map(|folder| names.iter().map(|name| folder.join(name))) {
                let limit = read(&file).and_then(|text| text.trim().parse::<u64>().ok());
                let known = found.as_ref().map_or(NO_LIMIT, |(_, known)| *known);
                if let Some(limit) = limit.filter(|limit| *limit < known) {
                    found = Some((file, limit));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(groups: &str, files: &[(&str, &str)]) -> Option<(String, u64)> {
        let read = |file: &Path| {
            let known = files.iter().find(|(path, _)| Path::new(path) == file);
            known.map(|(_, text)| format!("{text}\n"))
        };
        smallest(groups, read).map(|(file, bytes)| (file.display().to_string(), bytes))
    }

    #[test]
    fn the_smallest_of_all_groups_counts() {
        let unit = "/sys/fs/cgroup/system.slice/portcullis.service/memory.max";
        let slice = "/sys/fs/cgroup/system.slice/memory.high";
        let groups = "0::/system.slice/portcullis.service\n";
        assert_eq!(of(groups, &[]), None);
        assert_eq!(of(groups, &[(unit, "max"), (slice, "max")]), None);
        assert_eq!(of(groups, &[(unit, "4096"), (slice, "max")]), Some((unit.into(), 4096)));
        assert_eq!(of(groups, &[(unit, "4096"), (slice, "512")]), Some((slice.into(), 512)));
        assert_eq!(of("0::/\n", &[(unit, "4096")]), None);
        assert_eq!(of("", &[(unit, "4096")]), None);
    }

    #[test]
    fn groups_of_the_first_version_have_limits_too() {
        let groups = "12:pids:/p\n8:memory,hugetlb:/m/agent\n0::/system.slice\n";
        let limit = "/sys/fs/cgroup/memory/m/memory.limit_in_bytes";
        assert_eq!(of(groups, &[(limit, "9223372036854771712")]), None);
        assert_eq!(of(groups, &[(limit, "65536")]), Some((limit.into(), 65536)));
        let beside = "/sys/fs/cgroup/unified/system.slice/memory.max";
        assert_eq!(of(groups, &[(limit, "65536"), (beside, "7")]), Some((beside.into(), 7)));
        assert_eq!(of(groups, &[("/sys/fs/cgroup/memory/p/memory.limit_in_bytes", "1")]), None);
    }
}
