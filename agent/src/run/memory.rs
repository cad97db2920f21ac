//! The agent's own memory: small, whatever starting needed.

use std::{ffi::c_void, fs};

use rustix::{
    mm::{Advice, madvise},
    thread::disable_transparent_huge_pages,
};

use super::preflight::executable_mapping;

/// Has large blocks returned to the system when they are freed, at every size: glibc would raise
/// its threshold with the first large block that is freed, which starting frees many of. And one
/// arena, as the threads hardly allocate. And no huge pages: where everybody gets them (`always`, as Debian's
/// kernels have it), `khugepaged` makes them of parts of the heap that hardly have pages, 2 MiB at a time,
/// some seconds after the start and without anything being done. Processes that it starts inherit that.
pub(super) fn keep_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_MMAP_THRESHOLD, 128 * 1024), (libc::M_ARENA_MAX, 1)] {
        // SAFETY: has no precondition.
        unsafe { libc::mallopt(parameter, value) };
    }
    if let Err(error) = disable_transparent_huge_pages(true) {
        tracing::debug!("the agent's memory may have huge pages: {error}");
    }
}

/// Gives memory back that only starting needed: the kernel's type information and the policy's
/// text are many times larger than everything that stays.
pub(super) fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no precondition.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets go of the pages of the agent's code; those that are still used come back, some at a time. Most of the
/// binary is for starting, and for commands that are no agent.
pub(super) fn release_code() {
    for (start, length) in own_code() {
        // SAFETY: these are whole pages of a private mapping of a file, which nobody has written to, and
        // the kernel lets nobody write to a program that runs: they are read again as they are.
        if let Err(error) = unsafe { madvise(start, length, Advice::LinuxDontNeed) } {
            tracing::debug!("the agent's code stays in memory: {error}");
        }
    }
}

/// Where this program's own code is, and how many bytes.
fn own_code() -> Vec<(*mut c_void, usize)> {
    let maps = fs::read("/proc/self/maps").unwrap_or_default();
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let of_line = |line: &[u8]| {
        // Where code can also be written its pages may be no file's any more.
        let is_read_only = line.splitn(3, |byte| *byte == b' ').nth(1) == Some(b"r-xp");
        let mapping = executable_mapping(line).filter(|one| is_read_only && one.path == own)?;
        let (from, to) = mapping.range.split_once('-')?;
        let number = |hex| usize::from_str_radix(hex, 16).ok();
        let (from, to) = (number(from)?, number(to)?);
        Some((std::ptr::with_exposed_provenance_mut(from), to.checked_sub(from)?))
    };
    maps.split(|byte| *byte == b'\n').filter_map(of_line).collect()
}

/// Resident memory of this process in KiB.
#[must_use]
pub fn resident_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the program's code that this process has mapped in.
    fn mapped_in() -> u64 {
        let starts: Vec<_> =
            own_code().iter().map(|(start, _)| format!("{:x}-", start.addr())).collect();
        let smaps = fs::read_to_string("/proc/self/smaps").expect("readable");
        let mut is_own = false;
        let mut total = 0;
        for line in smaps.lines() {
            if let Some(kib) = line.strip_prefix("Rss:") {
                let kib = kib.split_whitespace().next().and_then(|kib| kib.parse().ok());
                total += kib.filter(|_| is_own).unwrap_or(0);
            } else if !line.split(' ').next().is_some_and(|word| word.ends_with(':')) {
                is_own = starts.iter().any(|start| line.starts_with(start.as_str()));
            }
        }
        total
    }

    #[test]
    fn the_program_goes_on_without_its_code_in_memory() {
        for (start, length) in own_code() {
            // SAFETY: the bounds are those of a mapping that is only read.
            unsafe { madvise(start, length, Advice::LinuxPopulateRead) }.expect("Linux 5.14");
        }
        let before = mapped_in();
        release_code();
        let after = mapped_in();
        assert!(after < before, "{after} KiB after {before}");
    }
}
