//! Proves that what is attached is really called, on files that did not exist before.
//!
//! A kernel may accept programs and never call them (no `bpf` in `lsm=`, `ftrace_enabled=0`), so
//! the only proof is an event for an exec and for a mapping that were made for it.

mod attempts;
mod forgetting;

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

use aya::maps::{MapData, RingBuf};
use portcullis_common::{Counter, Gate, Outcome, Reason};
use rustix::fs::{major, minor};

use crate::{
    artifact::digest,
    event::decode::GateEvent,
    kernel::{
        check::Check,
        gates::{Gates, GatesError},
        layout::Hashing,
        records::Records,
    },
};

pub use attempts::{map_as_code, memory_file, start_own_binary};

/// The hidden argument with which our own binary does nothing and succeeds.
pub const NOTHING: &str = "--do-nothing";

/// What the self-test found.
#[derive(Default)]
pub struct SelfTest {
    /// Its checks.
    pub checks: Vec<Check>,
    /// Events of others that came by.
    pub others: Vec<GateEvent>,
    /// What the test itself has added to the gates' numbers.
    pub own: Vec<(Gate, Counter, u64)>,
}

/// Device number in the kernel's own encoding, which is not that of system calls.
#[must_use]
pub fn kernel_device(device: u64) -> u32 {
    major(device) << 20 | minor(device)
}

/// Device number of memfds in the kernel's encoding.
///
/// # Errors
/// If the kernel gives no memfd.
pub fn memfd_device() -> io::Result<u32> {
    let file = File::from(memory_file()?);
    Ok(kernel_device(file.metadata()?.dev()))
}

/// Runs all of it. `folder` is writable and not on a filesystem that the gates refuse.
///
/// # Errors
/// If the kernel side cannot be read.
pub fn run(
    gates: &mut Gates,
    ring: &mut RingBuf<MapData>,
    folder: &Path,
) -> Result<SelfTest, GatesError> {
    let mut test = Test { ring, records: records(gates)?, others: Vec::new(), own: Vec::new() };
    let mut checks =
        vec![test.mapping(), test.exec(), test.memory(), test.module(), test.module_from_memory()];
    if gates.is_asked_for(Gate::Interpreter) {
        let needed = gates.scripts_need_appraisal();
        gates.watch_own_opens(true)?;
        checks.push(test.interpreter(needed));
        gates.watch_own_opens(false)?;
    }
    checks.extend(forgetting::checks(gates, folder)?);
    Ok(SelfTest { checks, others: test.others, own: test.own })
}

/// Proves the mapping gate once more, while the agent runs.
///
/// # Errors
/// If the kernel side cannot be reached.
pub fn mapping_again(gates: &Gates, ring: &mut RingBuf<MapData>) -> Result<SelfTest, GatesError> {
    let mut test = Test { ring, records: records(gates)?, others: Vec::new(), own: Vec::new() };
    let checks = vec![test.mapping()];
    Ok(SelfTest { checks, others: test.others, own: test.own })
}

/// The inodes' records, if the agent has to fill them.
fn records(gates: &Gates) -> Result<Option<Records>, GatesError> {
    (gates.hashing() == Hashing::Agent).then(|| gates.records()).transpose()
}

struct Test<'a> {
    ring: &'a mut RingBuf<MapData>,
    records: Option<Records>,
    others: Vec<GateEvent>,
    own: Vec<(Gate, Counter, u64)>,
}

impl Test<'_> {
    fn mapping(&mut self) -> Check {
        let tried = attempts::mapping(&mut self.records);
        self.judge("mapping-gate", "mapping as code is judged", Gate::Mapping, tried)
    }

    fn interpreter(&mut self, judged_before: bool) -> Check {
        let (id, title) = ("interpreter-gate", "scripts of marked interpreters are judged");
        self.judge(id, title, Gate::Interpreter, attempts::opening(judged_before))
    }

    fn exec(&mut self) -> Check {
        let tried = attempts::exec(&mut self.records);
        self.judge("exec-gate", "exec is judged", Gate::Exec, tried)
    }

    fn module(&mut self) -> Check {
        let (id, title) = ("module-gate", "loading a module is judged");
        if attempts::modules_are_disabled() {
            // The kernel refuses before it asks.
            return Check::ok(id, title, "kernel.modules_disabled is 1: none can be loaded");
        }
        let tried = attempts::module_from_file(&mut self.records);
        self.judge(id, title, Gate::Kernel, tried)
    }

    fn module_from_memory(&mut self) -> Check {
        let (id, title) = ("module-from-memory-gate", "loading a module from memory is judged");
        if attempts::modules_are_disabled() {
            return Check::ok(id, title, "kernel.modules_disabled is 1: none can be loaded");
        }
        match attempts::module_from_memory() {
            Err(error) => not_made(id, title, &error),
            Ok(()) => match self.find(Gate::Kernel, |event| {
                event.reason == Reason::NoFile && event.header.pid == std::process::id()
            }) {
                Some(_) => Check::ok(id, title, "called"),
                None => not_called(id, title),
            },
        }
    }

    /// Here a digest cannot be made, so the proof is that the file is known not to be appraised.
    fn memory(&mut self) -> Check {
        let (id, title) = ("memory-gate", "memory that becomes executable is judged");
        let seen = attempts::protection().and_then(|file| file.metadata());
        match seen {
            Err(error) => not_made(id, title, &error),
            Ok(file) => match self.event_of(Gate::Memory, kernel_device(file.dev()), file.ino()) {
                Some(event) if event.reason == Reason::NotAppraised => {
                    Check::ok(id, title, "called")
                }
                Some(event) => Check::failed(
                    id,
                    title,
                    format!("called, but it decided by {}", event.reason.word()),
                    "do not rely on this kernel; report it with its version and configuration",
                ),
                None => not_called(id, title),
            },
        }
    }

    /// Looks for the event that the attempt must have left.
    fn judge(
        &mut self,
        id: &'static str,
        title: &'static str,
        gate: Gate,
        attempt: io::Result<(File, [u8; 32])>,
    ) -> Check {
        let seen = attempt.and_then(|(file, expected)| {
            let metadata = file.metadata()?;
            Ok((self.event_of(gate, kernel_device(metadata.dev()), metadata.ino()), expected))
        });
        match seen {
            Err(error) => not_made(id, title, &error),
            Ok((None, _)) => not_called(id, title),
            Ok((Some(event), _)) if event.reason == Reason::WrongAlgorithm => Check::failed(
                id,
                title,
                format!(
                    "called, but IMA hashes with algorithm {} instead of SHA-256",
                    event.header.hash_status
                ),
                "remove ima_hash= from the kernel's command line, or use a kernel with CONFIG_IMA_DEFAULT_HASH_SHA256=y",
            ),
            Ok((Some(event), expected)) if event.header.digest == expected => Check::ok(
                id,
                title,
                format!("called, with the right digest ({}…)", &digest::format(&expected)[..12]),
            ),
            Ok((Some(event), _)) => Check::failed(
                id,
                title,
                format!("called, but with a wrong digest ({})", event.reason.word()),
                "do not rely on this kernel; report it with its version and configuration",
            ),
        }
    }

    fn event_of(&mut self, gate: Gate, device: u32, inode: u64) -> Option<GateEvent> {
        self.find(gate, |event| event.header.device == device && event.header.inode == inode)
    }

    /// The event of `gate` that the attempt has left. What else it has left is dropped, and what
    /// others did is kept for later.
    fn find(&mut self, gate: Gate, is_own: impl Fn(&GateEvent) -> bool) -> Option<GateEvent> {
        let mut found = None;
        while let Some(item) = self.ring.next() {
            let Ok(event) = GateEvent::decode(&item) else { continue };
            if !is_own(&event) {
                self.others.push(event);
            } else {
                self.own.extend(counted(&event));
                if event.gate == gate {
                    found = Some(event);
                }
            }
        }
        found
    }
}

fn not_made(id: &'static str, title: &'static str, error: &io::Error) -> Check {
    Check::failed(
        id,
        title,
        format!("the self-test could not be made: {error}"),
        "report it with the kernel's version and configuration",
    )
}

fn not_called(id: &'static str, title: &'static str) -> Check {
    Check::failed(
        id,
        title,
        "the program is attached and was not called",
        "see the rows about BPF and ftrace; report it if they are in order",
    )
}

/// What the gate has counted for one of its events.
pub fn counted(event: &GateEvent) -> impl Iterator<Item = (Gate, Counter, u64)> + use<> {
    let gate = event.gate;
    let outcome = match event.outcome {
        Outcome::Allow => Counter::Allowed,
        Outcome::WouldDeny => Counter::WouldDeny,
        Outcome::Deny => Counter::Denied,
        Outcome::Report => Counter::Reported,
    };
    let undecided = u64::from(event.reason.cannot_decide());
    // Only the kernel's own hashing is counted.
    let hashed = u64::from(event.header.hash_status != 0);
    [
        (gate, outcome, 1),
        (gate, Counter::CannotDecide, undecided),
        (gate, Counter::Hashed, hashed),
        (gate, Counter::HashedBytes, hashed * event.header.size),
    ]
    .into_iter()
}
