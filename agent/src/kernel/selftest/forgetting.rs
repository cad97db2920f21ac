//! Proves that verdicts go when content may change.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::kernel::{
    check::{Check, State},
    gates::{Gates, GatesError},
};

/// Verdicts must go when a file is opened for writing or truncated.
pub fn checks(gates: &Gates, folder: &Path) -> Result<Vec<Check>, GatesError> {
    let mut records = gates.records()?;
    let path = folder.join(format!("self-test-{}", std::process::id()));
    let mut checks = Vec::new();
    type Way = (&'static str, &'static str, fn(&Path) -> io::Result<()>);
    let ways: [Way; 3] = [
        ("forget-write", "opening for writing drops the verdict", |path| {
            OpenOptions::new().write(true).open(path).map(drop)
        }),
        ("forget-truncate", "truncating drops the verdict", |path| truncate(path)),
        ("forget-open-truncate", "truncating while opening drops the verdict", |path| {
            let flags = rustix::fs::OFlags::TRUNC.bits();
            let flags = i32::try_from(flags).map_err(io::Error::other)?;
            OpenOptions::new().read(true).custom_flags(flags).open(path).map(drop)
        }),
    ];
    for (id, title, change) in ways {
        let prepared = File::create(&path)
            .and_then(|mut file| file.write_all(b"x"))
            .and_then(|()| File::open(&path));
        let file = match prepared {
            Ok(file) => file,
            Err(error) => {
                let found = format!("{}: {error}", path.display());
                checks.push(Check::bad(
                    State::Unknown,
                    id,
                    title,
                    found,
                    "give the agent a writable /run",
                ));
                continue;
            }
        };
        records.claim(&file)?;
        let marked = records.get(&file)?.is_some();
        let changed = change(&path);
        let kept = records.get(&file)?.is_some();
        checks.push(match (marked, changed, kept) {
            (true, Ok(()), false) => Check::ok(id, title, "it does"),
            (_, Err(error), _) => Check::bad(
                State::Unknown,
                id,
                title,
                format!("could not be tried: {error}"),
                "report it",
            ),
            _ => Check::failed(
                id,
                title,
                "it does not: a changed file would keep its verdict",
                "do not rely on this kernel; report it with its version and configuration",
            ),
        });
    }
    // A file that cannot be removed from /run is not worth failing for.
    let _ = std::fs::remove_file(&path);
    Ok(checks)
}

/// `truncate(2)`, by path and not by descriptor, which takes another way through the kernel.
fn truncate(path: &Path) -> io::Result<()> {
    use std::{ffi::CString, os::unix::ffi::OsStrExt};
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    // SAFETY: a valid string; rustix offers truncation by descriptor only.
    if unsafe { libc::truncate(path.as_ptr(), 0) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
