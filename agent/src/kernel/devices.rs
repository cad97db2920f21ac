//! The kernel's side of trust in verified filesystems: the programs that watch the device mapper,
//! and the maps behind them.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf,
    maps::{HashMap, Map, MapData, MapError},
    programs::{
        FEntry,
        links::{FdLink, PinnedLink},
    },
};
use portcullis_common::{Active, Kinds, SLOTS, VerifiedDevice, tables};
use rustix::io::Errno;

use crate::{
    kernel::{
        check::{Check, State},
        gates::{Gates, GatesError},
        pins::Pins,
        selftest::kernel_device,
        verity::{self, Found},
    },
    policy::source::VerifiedFilesystem,
};

/// A program and the kernel function that it is called from.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the function.
    pub function: &'static str,
}

/// Everything that is watched.
pub const WATCHES: [Watch; 3] = [
    Watch { program: "watch_capacity", function: "set_capacity" },
    Watch { program: "watch_capacity_notify", function: "set_capacity_and_notify" },
    Watch { program: "watch_removal", function: "del_gendisk" },
];

/// Name of the map that is handed on to the next agent, and of its pin.
const TABLES: &str = "PCULLIS_DEVICE_TABLES";

/// `BPF_NOEXIST` and `BPF_EXIST` (linux/bpf.h).
const ONLY_NEW: u64 = 1;
const ONLY_OLD: u64 = 2;

enum Attached {
    Held(FdLink),
    Pinned(#[expect(dead_code, reason = "is held")] PinnedLink),
}

/// The programs and maps, if the policy lists a root hash.
pub struct Devices {
    tables: HashMap<MapData, u32, u32>,
    verified: HashMap<MapData, u32, VerifiedDevice>,
    /// The map of tables once more, for pinning it.
    handle: MapData,
    /// For asking the kernel about the programs.
    programs: Vec<OwnedFd>,
    links: Vec<(Watch, Attached)>,
    /// What the policy of each slot lists.
    listed: [Vec<VerifiedFilesystem>; SLOTS as usize],
}

impl Devices {
    /// Loads the programs; nothing is attached, and nothing is trusted.
    ///
    /// # Errors
    /// If the kernel refuses a program.
    pub fn load(ebpf: &mut Ebpf, btf: &Btf) -> Result<Self, GatesError> {
        let mut programs = Vec::new();
        for watch in WATCHES {
            let program = program(ebpf, watch)?;
            program.load(watch.function, btf).map_err(refused(watch))?;
            let fd = program.fd().map_err(refused(watch))?;
            programs.push(fd.as_fd().try_clone_to_owned().map_err(MapError::IoError)?);
        }
        let handle = duplicate(ebpf, TABLES)?;
        Ok(Self {
            handle,
            programs,
            tables: take(ebpf, TABLES)?,
            verified: take(ebpf, "PCULLIS_VERIFIED_DEVICES")?,
            links: Vec::new(),
            listed: Default::default(),
        })
    }

    /// Attaches the programs.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self, ebpf: &mut Ebpf) -> Result<(), GatesError> {
        let mut links = Vec::new();
        for watch in WATCHES {
            let program = program(ebpf, watch)?;
            let link = program.attach().map_err(refused(watch))?;
            let link = program.take_link(link).map_err(refused(watch))?;
            links.push((watch, Attached::Held(link.into())));
        }
        self.links = links;
        Ok(())
    }

    /// Pins the programs, so that trust also ends while no agent runs, and what the next agent has
    /// to know.
    ///
    /// # Errors
    /// If the bpffs refuses.
    pub fn pin(&mut self, pins: &Pins) -> Result<(), GatesError> {
        let failed = |path: &Path, why: String| GatesError::Pin { path: path.to_owned(), why };
        for (watch, link) in std::mem::take(&mut self.links) {
            let path = pins.of(watch.program);
            let link = match link {
                Attached::Held(link) => {
                    Attached::Pinned(link.pin(&path).map_err(|e| failed(&path, e.to_string()))?)
                }
                pinned => pinned,
            };
            self.links.push((watch, link));
        }
        let path = pins.of(TABLES);
        self.handle.pin(&path).map_err(|error| failed(&path, error.to_string()))
    }

    /// Takes in the devices that were there before the programs were. For them nobody knows
    /// whether they have had another table, except for an agent that ran before.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn adopt(&mut self, predecessors: &[PathBuf]) -> Result<(), GatesError> {
        for device in present() {
            match self.tables.insert(device, tables::ONE, ONLY_NEW) {
                // The programs were faster, and know better.
                Ok(()) => {}
                Err(error) if errno(&error) == Some(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for folder in predecessors {
            // An agent whose policy listed no root hash has none.
            let Ok(pinned) = MapData::from_pin(folder.join(TABLES)) else { continue };
            let Ok(theirs) = HashMap::<_, u32, u32>::try_from(Map::HashMap(pinned)) else {
                continue;
            };
            for (device, had) in theirs.iter().flatten() {
                if had != tables::ONE && self.tables.get(&device, 0).is_ok() {
                    self.tables.insert(device, had, 0)?;
                }
            }
        }
        Ok(())
    }

    /// Prepares a slot for a policy that is not in force yet.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn prepare(
        &mut self,
        generation: u64,
        listed: &[VerifiedFilesystem],
    ) -> Result<(), GatesError> {
        let slot = Active::slot(generation) as usize;
        self.listed[slot] = listed.to_vec();
        let devices: Vec<u32> = self.verified.keys().flatten().collect();
        for device in devices {
            let Ok(mut known) = self.verified.get(&device, 0) else { continue };
            known.kinds[slot] = Kinds::NONE;
            // A device that has gone meanwhile must not come back by this.
            match self.verified.insert(device, known, ONLY_OLD) {
                Ok(()) => {}
                Err(error) if errno(&error) == Some(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Looks at what is mounted, and lets the kernel know what the policy of `generation` trusts.
    ///
    /// The order makes it right. The filesystem is held, so its device cannot go and its number
    /// cannot be given again. A table that comes after the device was put into the map of tables
    /// is counted there. One that came before is the one that is looked at, or is just being
    /// exchanged: then the device is suspended.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn refresh(&mut self, generation: u64) -> Result<Check, GatesError> {
        if self.have_missed() {
            return self.distrust_everything();
        }
        let slot = Active::slot(generation) as usize;
        let listed = &self.listed[slot];
        let wanted = |root: &_| listed.iter().any(|filesystem| filesystem.root == *root);
        let Found { verified, refused } = match verity::mounted(wanted) {
            Ok(found) => found,
            Err(error) => return Ok(unknown(&error.to_string())),
        };
        let (mut trusted, mut not) = (Vec::new(), Vec::new());
        for one in &verified {
            let device = kernel_device(one.device);
            let shown = format!("{} ({})", one.path.display(), verity::shown(one.device));
            if !matches!(self.tables.get(&device, 0), Ok(tables::ONE)) {
                not.push(format!("{shown} has had another table, and what was read then may stay"));
                continue;
            }
            let mut known = self.verified.get(&device, 0).unwrap_or_default();
            known.kinds[slot] = Kinds::NONE;
            for filesystem in listed.iter().filter(|filesystem| filesystem.root == one.root) {
                known.kinds[slot] = known.kinds[slot].union(filesystem.kinds);
                known.lines[slot] = filesystem.line;
            }
            self.verified.insert(device, known, 0)?;
            if verity::still_verified(one).unwrap_or(false) {
                trusted.push(shown);
            } else {
                let _ = self.verified.remove(&device);
                not.push(format!("{shown} is being changed"));
            }
        }
        not.extend(refused.into_iter().map(|one| format!("{}: {}", one.path.display(), one.why)));
        Ok(summary(&trusted, &not))
    }

    /// Whether a program was not called when it should have been. The kernel skips a tracing
    /// program that another task on the same processor is in the middle of, and counts that.
    fn have_missed(&self) -> bool {
        self.programs.iter().any(|program| {
            let info = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
            let text = std::fs::read_to_string(info).unwrap_or_default();
            text.lines()
                .find_map(|line| line.strip_prefix("recursion_misses:"))
                .is_none_or(|count| count.trim() != "0")
        })
    }

    /// Any of the devices may have got another table unseen.
    fn distrust_everything(&mut self) -> Result<Check, GatesError> {
        let devices: Vec<u32> = self.tables.keys().flatten().collect();
        for device in devices {
            self.tables.insert(device, tables::SEVERAL, 0)?;
        }
        let found = "a change of a device may have been missed, so none is trusted any more";
        let mend = "make the devices anew, mount them, and start the agent again";
        Ok(Check::bad(State::Warning, ID, TITLE, found, mend))
    }

    /// What the policy of `generation` lets files on a device be used as, by the number that
    /// system calls use.
    #[must_use]
    pub fn kinds(&self, device: u64, generation: u64) -> Kinds {
        let device = kernel_device(device);
        match (self.tables.get(&device, 0), self.verified.get(&device, 0)) {
            (Ok(tables::ONE), Ok(known)) => known.kinds[Active::slot(generation) as usize],
            _ => Kinds::NONE,
        }
    }
}

impl Gates {
    /// Takes in the devices that were there before the programs, and what the agents knew of them
    /// whose pins are in these folders.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn adopt_devices(&mut self, predecessors: &[PathBuf]) -> Result<(), GatesError> {
        self.devices.as_mut().map_or(Ok(()), |devices| devices.adopt(predecessors))
    }

    /// Looks at what is mounted, and trusts what the policy in force lists. `None` if it lists no
    /// root hash.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn refresh_devices(&mut self) -> Result<Option<Check>, GatesError> {
        let generation = self.active().generation();
        self.devices.as_mut().map(|devices| devices.refresh(generation)).transpose()
    }

    /// What the policy in force lets files on a device be used as without looking at them, by the
    /// number that system calls use.
    #[must_use]
    pub fn verified_kinds(&self, device: u64) -> Kinds {
        let generation = self.active().generation();
        self.devices.as_ref().map_or(Kinds::NONE, |devices| devices.kinds(device, generation))
    }
}

const ID: &str = "verified-filesystems";
const TITLE: &str = "filesystems that are trusted by their root hash";

fn summary(trusted: &[String], not: &[String]) -> Check {
    let mend = "make the device anew with a plain verity table, and mount it read-only; until then \
                its files are judged by their content";
    match (trusted, not) {
        ([], []) => Check::ok(ID, TITLE, "none of those that the policy lists is mounted"),
        (trusted, []) => Check::ok(ID, TITLE, trusted.join(", ")),
        (_, not) => {
            Check::bad(State::Warning, ID, TITLE, format!("not trusted: {}", not.join(", ")), mend)
        }
    }
}

fn unknown(why: &str) -> Check {
    let mend = "give the agent /proc and /dev/mapper/control; until then files are judged by their \
                content";
    Check::bad(State::Unknown, ID, TITLE, format!("cannot be looked at: {why}"), mend)
}

/// The device mapper's devices, by the kernel's number.
fn present() -> Vec<u32> {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let is_mapped = |entry: &std::fs::DirEntry| entry.path().join("dm").is_dir();
    entries
        .filter(is_mapped)
        .filter_map(|entry| {
            let text = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let (high, low) = text.trim_end().split_once(':')?;
            Some(high.parse::<u32>().ok()? << 20 | low.parse::<u32>().ok()?)
        })
        .collect()
}

fn program(ebpf: &mut Ebpf, watch: Watch) -> Result<&mut FEntry, GatesError> {
    let program = ebpf.program_mut(watch.program).ok_or(GatesError::Missing(watch.program))?;
    program.try_into().map_err(refused(watch))
}

fn refused(watch: Watch) -> impl Fn(aya::programs::ProgramError) -> GatesError {
    move |source| GatesError::Program {
        program: watch.program,
        hook: watch.function,
        source: Box::new(source),
    }
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(error) => Errno::from_io_error(&error.io_error),
        _ => None,
    }
}

fn duplicate(ebpf: &Ebpf, name: &'static str) -> Result<MapData, GatesError> {
    let Some(Map::HashMap(data)) = ebpf.map(name) else { return Err(GatesError::Missing(name)) };
    let fd = data.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?;
    Ok(MapData::from_fd(fd)?)
}

fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, GatesError> {
    Ok(ebpf.take_map(name).ok_or(GatesError::Missing(name))?.try_into()?)
}
