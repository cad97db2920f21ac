//! Taking over from gates that stand already, and taking down those that nobody stands behind.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use portcullis_common::{Authority, Digest};

use super::{
    RunError,
    catalogs::Places,
    lock::{self, Lock},
    system,
};
use crate::{
    artifact::digest,
    deployment::{HighWater, Kept, MOST_MARKS, Place, Store},
    durable,
    kernel::{
        check::{Check, State},
        pins,
        selftest::kernel_device,
        shield::{HandoverError, Shield, enter_among, standing},
    },
    policy::bundle::DEVICE_FILE,
};

/// Enters this agent among those of the gates that stand, if what is in its folder of bundles may follow
/// theirs. `only_audits` says that it was told to. From then on it may change its own state.
///
/// # Errors
/// If it may not, or they do not know its binary. Nothing has changed then.
pub fn enter(bundles: &Path, only_audits: bool) -> Result<(), RunError> {
    match Store::open(bundles) {
        Ok(store) => check(&store, only_audits)?,
        Err(error) => check(&Store::damaged(bundles), only_audits)
            .map_err(|refused| because(refused, &[error.to_string()]))?,
    }
    for folder in standing_now()? {
        enter_among(&folder)?;
    }
    Ok(())
}

/// The same refusal, with what has led to it.
#[must_use]
pub fn because(refused: RunError, why: &[String]) -> RunError {
    match refused {
        RunError::Handover(HandoverError::NoAuthority(what)) if !why.is_empty() => {
            HandoverError::NoAuthority(format!("{what}, because {}", why.join("; "))).into()
        }
        other => other,
    }
}

/// Whether gates stand that enforce.
///
/// # Errors
/// If that cannot be found out.
pub fn enforced_already() -> Result<bool, RunError> {
    for folder in standing_now()? {
        if standing(&folder)?.is_some_and(|standing| standing.active.enforces()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what an agent that was killed while it wrote has left in its folders.
pub fn sweep(places: &Places) {
    let marks = HighWater::read(Path::new(DEVICE_FILE)).unwrap_or_default();
    let marks = marks.places().filter_map(|place| match place {
        Place::Folder(folder) => Some(folder.clone()),
        Place::Variable(_) => None,
    });
    let (bundles, fleet) = (places.bundles(), places.fleet());
    let own = [places.state.clone(), bundles, fleet, places.spool(), lock::RUNTIME.into()];
    own.into_iter().chain(marks).for_each(|folder| durable::sweep(&folder));
}

/// Whether what came of the bundles may follow what stands: one that cannot be read is passed over.
///
/// # Errors
/// If it may not.
pub fn check(store: &Store, only_audits: bool) -> Result<(), RunError> {
    let bundle = store.in_force().map(digest_of);
    for folder in standing_now()? {
        if let Some(standing) = standing(&folder)? {
            standing.may_be_followed_by(bundle, only_audits).map_err(HandoverError::NoAuthority)?;
        }
    }
    Ok(())
}

/// Numbers of the devices that the agent's runtime folder, its state and its high-water marks are on, in the
/// kernel's encoding; 0 for none. Makes the folders, as they are guarded from the beginning; the runtime
/// folder is there, with the lock.
#[must_use]
pub fn state_devices(places: &Places, marks: &HighWater) -> [u32; MOST_MARKS + 2] {
    let make = |folder| DirBuilder::new().recursive(true).mode(0o700).create(folder);
    let made = make(places.bundles()).and_then(|()| make(places.fleet()));
    let state = made.map(|()| places.state.clone()).ok();
    let marks = marks.places().filter_map(|place| Some(place.file().parent()?.to_owned()));
    let runtime = Some(PathBuf::from(lock::RUNTIME));
    let mut folders = [runtime, state].into_iter().chain(marks.map(Some));
    std::array::from_fn(|_| {
        let folder = folders.next().flatten();
        let found = folder.and_then(|folder| fs::metadata(folder).ok());
        found.map_or(0, |folder| kernel_device(folder.dev()))
    })
}

/// Has the gates guard the agent's state, its high-water marks and its runtime folder, where its sockets
/// are. A mark that is not there is told elsewhere.
pub fn guard_state(shield: &mut Shield, places: &Places, marks: &HighWater) -> Check {
    let (id, title) = ("shield-state", "nobody else changes the agent's state");
    let guarded = shield.guard_state(&places.state, &[places.bundles(), places.fleet()]);
    let guarded = guarded.and_then(|()| shield.guard_closed(Path::new(lock::RUNTIME)));
    match guarded.and_then(|()| guard_marks(shield, marks)) {
        Ok(()) => Check::ok(id, title, format!("{}, {}", places.state.display(), lock::RUNTIME)),
        Err(error) => Check::bad(
            State::Warning,
            id,
            title,
            format!("{}: {error}", places.state.display()),
            "make the folder, or name another one with --state",
        ),
    }
}

/// Has the gates guard the high-water marks that are there.
///
/// # Errors
/// If there is no more room.
pub fn guard_marks(shield: &mut Shield, marks: &HighWater) -> io::Result<()> {
    for place in marks.places() {
        // Of a variable the file alone, as others have theirs beside it.
        let (Place::Folder(path) | Place::Variable(path)) = place;
        match shield.guard_closed(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            guarded => guarded?,
        }
    }
    Ok(())
}

/// What this binary is, for the gates to recognise the agent that comes after this one.
///
/// # Errors
/// If it cannot be read.
pub fn own_digest() -> Result<Digest, RunError> {
    let own = fs::File::open("/proc/self/exe").map_err(system("opening the agent's own binary"))?;
    let read = digest::of_file(&own, u64::MAX);
    Ok(read.map_err(system("reading the agent's own binary"))?.0)
}

/// By whose word a policy is in force that comes from here.
#[must_use]
pub fn authority(store: &Store) -> Authority {
    let bundles = [store.in_force(), store.state.confirmed.as_ref()];
    Authority {
        is_signed: store.in_force().is_some().into(),
        bundles: bundles.map(|kept| kept.map(digest_of).unwrap_or_default()),
    }
}

/// The same while `next` takes the place of `store`, whenever this agent is killed.
#[must_use]
pub fn authority_between(store: &Store, next: &Store) -> Authority {
    let bundles = [store.state.confirmed.as_ref(), next.state.confirmed.as_ref()];
    Authority {
        bundles: bundles.map(|kept| kept.map(digest_of).unwrap_or_default()),
        ..authority(store)
    }
}

fn digest_of(kept: &Kept) -> Digest {
    // What is no digest is the number of no bundle.
    digest::parse(&kept.sha256).unwrap_or([0xff; 32])
}

/// Takes the gates of every agent down that does not run any more. Returns how many there were.
///
/// # Errors
/// If an agent runs, bpffs refuses, or only a signature may do it.
pub fn take_down_orphans() -> Result<usize, RunError> {
    let _lock = Lock::take(Path::new(lock::RUNTIME))?;
    let folders = standing_now()?;
    for folder in &folders {
        if standing(folder)?.is_some_and(|standing| standing.is_signed()) {
            return Err(HandoverError::Signed.into());
        }
    }
    for folder in &folders {
        enter_among(folder)?;
    }
    for folder in &folders {
        pins::remove(folder).map_err(system("taking gates down"))?;
    }
    Ok(folders.len())
}

fn standing_now() -> Result<Vec<PathBuf>, RunError> {
    pins::all().map_err(system("looking for gates"))
}
