//! The agent's side of the shield: tells the kernel programs what they guard, and who is an agent.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, Map, MapData, MapError},
};
use portcullis_common::{Active, Authority, Digest, FileId, Process, SHOW_MOUNT};
use rustix::mount::UnmountFlags;
use thiserror::Error;

use crate::{
    kernel::{
        check::{Check, State},
        gates_error::{GatesError, brief},
        mountpoints,
        pins::{self, Pins},
        process,
        selftest::kernel_device,
    },
    run::lock::RUNTIME,
};

/// Maps that an agent which takes over looks at, by the names of their pins.
const AGENTS: &str = "PCULLIS_AGENTS";
const AUTHORITY: &str = "PCULLIS_AUTHORITY";
pub(super) const ACTIVE: &str = "PCULLIS_ACTIVE";

/// Keys of the map of objects, beside the id (`ObjectKind` in the programs).
const PROGRAM: u32 = 1 << 30;
const LINK: u32 = 2 << 30;

/// Why an agent cannot take over from another one.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The gates in force do not know this binary.
    #[error(
        "the gates in force do not take this binary for the agent's ({0}); name its digest in the policy \
         that is in force, [agent] digests, and start it then; `portcullis status` of the version \
         before shows what is in force"
    )]
    Stranger(String),
    /// The policy that would be in force has not the authority of the one that is.
    #[error(
        "the policy in force came in a signed bundle, and this would put another one in its place: \
         {0}; start the agent with the state folder that has the bundle, and without --mode audit"
    )]
    NoAuthority(String),
    /// The gates that a dead agent left came from a signed bundle.
    #[error(
        "the gates that the agent has left enforce a signed bundle; start the agent, and then \
         `portcullis stop --authorized TOKEN`"
    )]
    Signed,
    /// The gates in force could not be told who this is.
    #[error("the gates in force cannot be told of this agent: {0}")]
    Failed(String),
}

/// What the kernel programs are told.
pub struct Shield {
    agents: HashMap<MapData, u32, u64>,
    programs: HashMap<MapData, Digest, u8>,
    files: HashMap<MapData, FileId, u8>,
    objects: HashMap<MapData, u32, u8>,
    folders: HashMap<MapData, FileId, u8>,
    mounts: HashMap<MapData, u64, u64>,
    round: Array<MapData, u64>,
    authority: Array<MapData, Authority>,
    /// This agent's own binary.
    own: Option<Digest>,
    /// Programs that the kernel has refused, with why.
    refused: Vec<String>,
    /// Numbers of the mounts that are guarded.
    shown: BTreeSet<u64>,
    /// Where the pins are, once they are.
    pinned: Option<PathBuf>,
}

impl Shield {
    /// Takes the maps, and enters this process as an agent.
    ///
    /// # Errors
    /// If a map is missing or cannot be written.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, GatesError> {
        let mut shield = Self {
            agents: take(ebpf, AGENTS)?,
            programs: take(ebpf, "PCULLIS_AGENT_PROGRAMS")?,
            files: take(ebpf, "PCULLIS_AGENT_FILES")?,
            objects: take(ebpf, "PCULLIS_OBJECTS")?,
            folders: take(ebpf, "PCULLIS_FOLDERS")?,
            mounts: take(ebpf, "PCULLIS_MOUNTS")?,
            round: take(ebpf, "PCULLIS_ROUND")?,
            authority: take(ebpf, AUTHORITY)?,
            own: None,
            refused: Vec::new(),
            shown: BTreeSet::new(),
            pinned: None,
        };
        enter(&mut shield.agents)?;
        Ok(shield)
    }

    /// Takes in why the kernel has no program of these.
    pub fn note_refused(&mut self, error: &GatesError) {
        self.refused.push(error.to_string());
    }

    /// Guards a program.
    ///
    /// # Errors
    /// If there is no more room.
    pub fn guard_program(&mut self, id: u32) -> Result<(), MapError> {
        self.objects.insert(PROGRAM | id, 1, 0)
    }

    /// Guards a link.
    ///
    /// # Errors
    /// If there is no more room.
    pub fn guard_link(&mut self, id: u32) -> Result<(), MapError> {
        self.objects.insert(LINK | id, 1, 0)
    }

    /// Tells which binaries are the agent's: its own, and those that the policy names.
    ///
    /// # Errors
    /// If there is no more room.
    pub fn trust_programs(&mut self, named: &[Digest]) -> Result<(), GatesError> {
        let wanted: BTreeSet<Digest> = named.iter().copied().chain(self.own).collect();
        let known = self.programs.keys().collect::<Result<BTreeSet<_>, _>>()?;
        for digest in wanted.difference(&known) {
            self.programs.insert(digest, 1, 0)?;
        }
        for digest in known.difference(&wanted) {
            self.programs.remove(digest)?;
        }
        // Asked for only where programs cannot ask for digests.
        if let Ok(own) = file_id(Path::new("/proc/self/exe")) {
            self.files.insert(own, 1, 0)?;
        }
        Ok(())
    }

    /// Takes in what this agent's own binary is, which counts from the next [`Self::trust_programs`].
    pub fn set_own(&mut self, own: Digest) {
        self.own = Some(own);
    }

    /// Tells by whose word the policy is in force.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_authority(&mut self, authority: Authority) -> Result<(), GatesError> {
        Ok(self.authority.set(0, authority, 0)?)
    }

    /// Pins what the next agent has to find, and guards the pins.
    ///
    /// # Errors
    /// If bpffs refuses.
    pub fn pin(&mut self, pins: &Pins) -> Result<(), GatesError> {
        let failed =
            |path: PathBuf| move |error| GatesError::Pin { path: path.clone(), why: brief(&error) };
        let path = pins.of(AGENTS);
        self.agents.map().pin(&path).map_err(failed(path))?;
        let path = pins.of(AUTHORITY);
        self.authority.map().pin(&path).map_err(failed(path))?;
        let folder = pins.folder();
        let root = Path::new(pins::ROOT);
        for above in folder.ancestors() {
            let closed = if above.starts_with(root) { FileId::CLOSED } else { 0 };
            self.guard_folder(above, FileId::ON_THE_WAY | closed)
                .map_err(|error| GatesError::Pin { path: above.to_owned(), why: error })?;
        }
        self.pinned = Some(folder.to_owned());
        Ok(())
    }

    /// Guards what the agent keeps on the disk: the folder's own files, and those of folders in it.
    ///
    /// # Errors
    /// If a folder is not there.
    pub fn guard_state(&mut self, state: &Path, within: &[PathBuf]) -> io::Result<()> {
        within.iter().try_for_each(|folder| self.guard_closed(folder))?;
        self.guard_closed(state)
    }

    /// Guards a file, or a folder and the files in it.
    ///
    /// # Errors
    /// If it is not there.
    pub fn guard_closed(&mut self, path: &Path) -> io::Result<()> {
        let path = fs::canonicalize(path)?;
        for above in path.ancestors().skip(1) {
            // Of one folder in another that is guarded, the stronger guard stays.
            let known = file_id(above).ok().and_then(|above| self.folders.get(&above, 0).ok());
            self.guard_folder(above, known.unwrap_or_default() | FileId::ON_THE_WAY)
                .map_err(io::Error::other)?;
        }
        self.guard_folder(&path, FileId::ON_THE_WAY | FileId::CLOSED).map_err(io::Error::other)
    }

    fn guard_folder(&mut self, folder: &Path, how: u8) -> Result<(), String> {
        let folder = file_id(folder).map_err(|error| error.to_string())?;
        self.folders.insert(folder, how, 0).map_err(|error| error.to_string())
    }

    /// Shows the kernel programs the mounts that the pins and the runtime folder lie on and below. To be
    /// done again when something was mounted.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn guard_mounts(&mut self) -> Result<Check, GatesError> {
        let (id, title) = ("shield", "nobody else reaches the agent and its gates");
        let Some(pinned) = self.pinned.clone() else {
            return Ok(Check::bad(
                State::Warning,
                id,
                title,
                "the gates are not pinned, so they end with the agent",
                "mount -t bpf bpf /sys/fs/bpf, and start the agent again",
            ));
        };
        let places: Vec<_> = pinned.ancestors().chain(Path::new(RUNTIME).ancestors()).collect();
        // What was shown stays guarded, also if somebody has mounted something over it.
        let now = mountpoints::ids_at(&places).unwrap_or_default();
        if !self.shown.is_empty() && self.shown.is_subset(&now) {
            return Ok(self.check(id, title, self.shown.len()));
        }
        let round = self.round.get(&0, 0)? + 1;
        self.round.set(0, round, 0)?;
        for place in places {
            // The hook is asked before the kernel refuses these flags; what is no mount is refused
            // before.
            let _ = rustix::mount::unmount(place, UnmountFlags::from_bits_retain(SHOW_MOUNT));
        }
        let known = self.mounts.iter().collect::<Result<Vec<_>, _>>()?;
        let shown = known.iter().filter(|(_, seen)| *seen == round).count();
        for (mount, _) in known.iter().filter(|(_, seen)| *seen != round) {
            self.mounts.remove(mount)?;
        }
        self.shown = if shown == 0 { BTreeSet::new() } else { now };
        Ok(self.check(id, title, self.shown.len()))
    }

    fn check(&self, id: &'static str, title: &'static str, mounts: usize) -> Check {
        let warning =
            |found: String, mend: &str| Check::bad(State::Warning, id, title, found, mend);
        if !self.refused.is_empty() {
            let found = format!("not all of it: {}", self.refused.join("; "));
            return warning(found, "report it with the kernel's version and configuration");
        }
        if mounts == 0 {
            let found =
                "what the pins lie on can be unmounted: the kernel does not show its mounts";
            return warning(found.into(), "report it with the kernel's version and configuration");
        }
        let namespace = |process: &str| fs::metadata(format!("/proc/{process}/ns/mnt"));
        let is_own = match (namespace("self"), namespace("1")) {
            (Ok(own), Ok(first)) => own.ino() != first.ino(),
            _ => false,
        };
        if is_own {
            let found =
                "the agent has a mount namespace of its own, and guards the pins there only";
            return warning(
                found.into(),
                "start it in the device's own (no PrivateTmp=, ProtectSystem= and the like)",
            );
        }
        Check::ok(
            id,
            title,
            format!("its memory, its pins, its sockets and the {mounts} mounts below them"),
        )
    }
}

fn enter(agents: &mut HashMap<MapData, u32, u64>) -> Result<(), GatesError> {
    let Process { started, pid, .. } = process::own().map_err(GatesError::Process)?;
    Ok(agents.insert(pid, started, 0)?)
}

fn file_id(path: &Path) -> io::Result<FileId> {
    let state = fs::metadata(path)?;
    Ok(FileId { inode: state.ino(), device: kernel_device(state.dev()), reserved: 0 })
}

/// What gates that stand already say of themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// By whose word.
    pub authority: Authority,
    /// What is in force.
    pub active: Active,
}

impl Standing {
    /// Whether only a signature may take them down.
    #[must_use]
    pub fn is_signed(&self) -> bool {
        self.authority.is_signed != 0 && self.active.enforces()
    }

    /// Whether a policy of this authority may take their place.
    ///
    /// # Errors
    /// If it may not, with what it is.
    pub fn may_be_followed_by(
        &self,
        bundle: Option<Digest>,
        only_audits: bool,
    ) -> Result<(), String> {
        if !self.is_signed() {
            return Ok(());
        }
        if only_audits {
            return Err("--mode audit".into());
        }
        match bundle {
            _ if self.authority.bundles.contains(&bundle.unwrap_or_default()) => Ok(()),
            Some(_) => Err("another bundle".into()),
            None => Err("a policy file".into()),
        }
    }
}

/// What the gates in a folder of pins say; none if they are of a kind that says nothing.
///
/// # Errors
/// If they do not let this process ask.
pub fn standing(folder: &Path) -> Result<Option<Standing>, HandoverError> {
    let Some(authority) = pinned(&folder.join(AUTHORITY))? else { return Ok(None) };
    let Some(active) = pinned(&folder.join(ACTIVE))? else { return Ok(None) };
    let failed = |error: MapError| HandoverError::Failed(brief(&error));
    let authority: Array<_, Authority> = Map::Array(authority).try_into().map_err(failed)?;
    let active: Array<_, u64> = Map::Array(active).try_into().map_err(failed)?;
    Ok(Some(Standing {
        authority: authority.get(&0, 0).map_err(failed)?,
        active: Active(active.get(&0, 0).map_err(failed)?),
    }))
}

/// Enters this process among the agents of gates that stand already. To be done only by whoever has
/// made sure that it may.
///
/// # Errors
/// If they do not take this binary for the agent's.
pub fn enter_among(folder: &Path) -> Result<(), HandoverError> {
    let Some(agents) = pinned(&folder.join(AGENTS))? else { return Ok(()) };
    let agents: Result<HashMap<_, u32, u64>, _> = Map::HashMap(agents).try_into();
    let failed = |error: &dyn std::error::Error| HandoverError::Failed(brief(error));
    let mut agents = agents.map_err(|error| failed(&error))?;
    enter(&mut agents).map_err(|error| failed(&error))
}

fn pinned(path: &Path) -> Result<Option<MapData>, HandoverError> {
    // Asked first, as the error below does not tell one from the other.
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    match MapData::from_pin(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) => Err(HandoverError::Stranger(brief(&error))),
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<M, GatesError> {
    Ok(ebpf.take_map(name).ok_or(GatesError::Missing(name))?.try_into()?)
}

#[cfg(test)]
mod tests {
    use portcullis_common::{Choices, Mode};

    use super::*;

    fn standing(mode: Mode, is_signed: u64, first: u8, second: u8) -> Standing {
        let authority = Authority { is_signed, bundles: [[first; 32], [second; 32]] };
        Standing { authority, active: Active::new(1, mode, Choices::NONE) }
    }

    #[test]
    fn only_what_is_in_force_follows_a_signed_bundle() {
        let signed = standing(Mode::Enforce, 1, 7, 6);
        assert_eq!(signed.may_be_followed_by(Some([7; 32]), false), Ok(()));
        assert_eq!(signed.may_be_followed_by(Some([6; 32]), false), Ok(()));
        assert!(signed.may_be_followed_by(Some([5; 32]), false).is_err());
        assert!(signed.may_be_followed_by(Some([7; 32]), true).is_err(), "only to audit");
        assert!(signed.may_be_followed_by(None, false).is_err(), "a policy file");
        // A trial of the first bundle ends with the agent.
        let first = standing(Mode::Enforce, 1, 7, 0);
        assert_eq!(first.may_be_followed_by(None, false), Ok(()));
        for free in [standing(Mode::Audit, 1, 7, 7), standing(Mode::Enforce, 0, 0, 0)] {
            assert_eq!(free.may_be_followed_by(None, true), Ok(()));
        }
    }
}
