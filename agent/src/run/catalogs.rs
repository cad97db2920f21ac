//! The folder of catalogs while the agent runs, and that of what a fleet's servers have brought: what lies
//! there joins the policy, and leaves with it.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use indicatif::ProgressBar;
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::{
    io::{
        Interest,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    time::{Instant, sleep_until},
};

use crate::{
    catalog::{
        Catalog, Reading, Refused, read_folder,
        shelf::{Kept, Shelf},
        versions::Versions,
    },
    durable,
    kernel::{
        allowlist::Allowlist,
        check::{Check, State},
        gates::GatesError,
    },
    policy::Policy,
    reader::{Checked, NO_READER},
};

/// A clock that shows an earlier time was not set: this version had not been made then.
const EARLIEST: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// How long the folder must rest before it is read, as a catalog and its signature come one after
/// the other.
const REST: Duration = Duration::from_millis(300);

/// How often the folder is read although nothing has changed, because certificates expire.
const DAILY: Duration = Duration::from_secs(24 * 60 * 60);

/// Where catalogs lie and where is kept what they were.
#[derive(Clone, Debug)]
pub struct Places {
    /// The folder of catalogs.
    pub folder: PathBuf,
    /// What survives a restart.
    pub state: PathBuf,
}

impl Places {
    /// Where bundles are kept.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.state.join("bundles")
    }

    /// What has run here.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.state.join(crate::history::FILE)
    }

    /// Whether this device has enforced a policy.
    #[must_use]
    pub fn enforced(&self) -> PathBuf {
        self.state.join(super::enforced::FILE)
    }

    /// Where records wait for their receivers.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }

    /// The folder of catalogs that a fleet's servers have brought.
    #[must_use]
    pub fn fleet(&self) -> PathBuf {
        self.state.join("fleet")
    }

    /// What lies in it.
    #[must_use]
    pub fn shelf(&self) -> Shelf {
        Shelf::new(self.fleet())
    }

    /// Which versions of catalogs were in force.
    #[must_use]
    pub fn versions(&self) -> PathBuf {
        self.state.join("catalogs.json")
    }
}

/// A policy with its catalogs, ready to be put in force.
pub struct Prepared {
    /// The policy with what the catalogs add.
    pub policy: Policy,
    /// Its rules in the kernel, if kernel programs enforce it.
    pub rules: Option<Allowlist>,
    /// What the folder held.
    pub found: Found,
}

/// What the folder held, without the digests themselves.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// In force.
    pub catalogs: Vec<Catalog>,
    /// Not in force.
    pub refused: Vec<Refused>,
    /// What the fleet's servers have brought, in force or not.
    pub kept: Vec<Kept>,
    /// Health of all.
    pub checks: Vec<Check>,
    /// How many digests each catalog lists and takes back, as [`Self::catalogs`] keeps none.
    pub counts: Vec<(usize, usize)>,
}

/// The time, if the clock can be right.
#[must_use]
pub fn now() -> Option<Timestamp> {
    Some(Timestamp::now()).filter(|now| *now >= EARLIEST)
}

/// Reads the folder, and makes of the policy and what it holds a new one. What is in force is
/// remembered on the disk before it can be.
#[must_use]
pub fn read(base: &Policy, places: &Places, check: Checked) -> (Policy, Found) {
    if base.trust.is_empty() {
        return (base.clone(), Found::default());
    }
    let mut checks = Vec::new();
    let file = places.versions();
    let mut versions = Versions::load(&file).unwrap_or_else(|error| {
        checks.push(bad_versions(error.to_string()));
        Versions::none(&file)
    });
    let recovered = versions.recovered.take();
    if let Some(why) = &recovered {
        checks.push(bad_versions(format!("{why}; its copy was used")));
    }
    let mut trust = base.trust.clone();
    let mut reading =
        read_folder(&places.folder, &places.shelf(), &mut trust, &versions, (&check, now()));
    if (reading.remember(&mut versions) || recovered.is_some())
        && let Err(error) = versions.store()
    {
        checks.push(bad_versions(error.to_string()));
    }
    if checks.is_empty() {
        durable::mend_copy(&file);
        checks.push(Check::ok(VERSIONS.0, VERSIONS.1, format!("kept in {}", file.display())));
    }
    checks.push(health(&reading));
    let mut policy = base.with_catalogs(&reading.catalogs);
    policy.trust = trust;
    let counts = reading.catalogs.iter().map(|one| (one.entries.len(), one.withdrawn.len()));
    let counts = counts.collect();
    for catalog in &mut reading.catalogs {
        // They are in the policy now; a million of them would stay here twice.
        catalog.entries = Vec::new();
        catalog.withdrawn = Vec::new();
    }
    let Reading { catalogs, refused, kept } = reading;
    (policy, Found { catalogs, refused, kept, checks, counts })
}

/// The same with the rules in the kernel.
///
/// # Errors
/// If the kernel has no memory for the rules.
pub fn prepare(base: &Policy, places: &Places, in_kernel: bool) -> Result<Prepared, GatesError> {
    let (policy, found) = read(base, places, Checked { at_start: false });
    let rules = if in_kernel {
        Some(Allowlist::fill(&policy.rules, policy.room(), &ProgressBar::hidden())?)
    } else {
        None
    };
    Ok(Prepared { policy, rules, found })
}

const VERSIONS: (&str, &str) = ("catalog-versions", "old catalogs cannot come back");

fn bad_versions(found: String) -> Check {
    let mend = "make the folder writable (run --state); a damaged file can be removed with its copy, \
                which forgets which versions were in force";
    Check::bad(State::Warning, VERSIONS.0, VERSIONS.1, found, mend)
}

/// What a status page says of the folder.
fn health(reading: &Reading) -> Check {
    let (id, title) = ("catalogs", "catalogs are good and in date");
    // What a newer one replaces is as it should be.
    let refused = reading.refused.iter().find(|one| one.reason != "superseded");
    let warned = reading.catalogs.iter().find_map(|catalog| {
        let warning = catalog.by.iter().flat_map(|by| &by.warnings).next()?;
        Some(format!("{}: {warning}", catalog.path.display()))
    });
    if let Some(Refused { path, message, .. }) = refused {
        let found = format!("{}: {message}", path.display());
        let mend = "mend or remove it; `portcullis catalog verify` looks at it closely";
        Check::bad(State::Warning, id, title, found, mend)
    } else if let Some(found) = warned {
        let mend = "it stays in force; have the signer's certificate renewed, and sign anew";
        Check::bad(State::Warning, id, title, found, mend)
    } else {
        Check::ok(id, title, format!("{} in force", reading.catalogs.len()))
    }
}

/// Watches the folders.
pub struct Watch {
    base: Arc<Policy>,
    places: Places,
    /// None while the kernel does not let us watch anything.
    changes: Option<AsyncFd<OwnedFd>>,
    /// How the folders looked when they were read last.
    seen: Vec<Look>,
    read: Instant,
    /// When it has rested long enough.
    due: Option<Instant>,
    /// Whether it is being read.
    pub busy: bool,
}

/// A file in the folder, as far as its change would show.
type Look = (PathBuf, u64, u64, i64, i64);

impl Watch {
    /// Starts to watch, and makes the folder if it is not there. If the kernel does not let us watch
    /// anything, the look each minute remains.
    #[must_use]
    pub fn start(base: Arc<Policy>, places: Places) -> Self {
        let mut watch = Self {
            base,
            places,
            changes: None,
            seen: Vec::new(),
            read: Instant::now(),
            due: None,
            busy: false,
        };
        // Without the folders, the look each minute remains.
        for folder in watch.folders() {
            let _ = fs::create_dir_all(folder);
        }
        watch.begin();
        watch.seen = watch.look();
        watch
    }

    fn folders(&self) -> [PathBuf; 2] {
        [self.places.folder.clone(), self.places.fleet()]
    }

    fn begin(&mut self) {
        for folder in self.folders() {
            self.begin_in(&folder);
        }
    }

    fn begin_in(&mut self, folder: &Path) {
        use inotify::WatchFlags as On;
        let on = On::CLOSE_WRITE
            | On::MOVED_TO
            | On::MOVED_FROM
            | On::DELETE
            | On::DELETE_SELF
            | On::MOVE_SELF
            | On::ONLYDIR;
        let mut begun = || -> io::Result<()> {
            let changes = match &self.changes {
                Some(changes) => changes,
                None => self.changes.insert(listen()?),
            };
            Ok(inotify::add_watch(changes.get_ref(), folder, on).map(drop)?)
        };
        if let Err(error) = begun() {
            tracing::warn!("{} is not watched: {error}", folder.display());
        }
    }

    /// Waits until the folder has changed and come to rest.
    ///
    /// # Errors
    /// If the kernel does not tell any more.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let due = self.due.filter(|_| !self.busy);
            let rest = async move {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = rest => {
                    self.due = None;
                    return Ok(());
                }
                ready = told(self.changes.as_ref()) => {
                    let (mut ready, changes) = ready?;
                    drain(changes.get_ref().as_fd());
                    ready.clear_ready();
                    self.due = Some(Instant::now() + REST);
                }
            }
        }
    }

    /// Notices what the kernel did not tell, and what only time changes; also for what was `refused` because
    /// no process could be started that reads it first.
    pub fn look_again(&mut self, refused: &[Refused]) {
        // Another folder may have been moved or mounted there.
        self.begin();
        let is_unread = refused.iter().any(|one| one.reason == NO_READER);
        if self.look() != self.seen || is_unread || self.read.elapsed() > DAILY {
            self.due = Some(Instant::now());
        }
    }

    /// The policy without catalogs.
    #[must_use]
    pub fn base(&self) -> &Arc<Policy> {
        &self.base
    }

    /// Whether what was read is of the policy that is to be joined.
    #[must_use]
    pub fn is_of(&self, base: &Arc<Policy>) -> bool {
        Arc::ptr_eq(&self.base, base)
    }

    /// What reads the folder now.
    pub fn work(&mut self) -> (Arc<Policy>, Places) {
        self.busy = true;
        self.read = Instant::now();
        self.seen = self.look();
        (Arc::clone(&self.base), self.places.clone())
    }

    fn look(&self) -> Vec<Look> {
        let mut looks: Vec<Look> = self
            .folders()
            .into_iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let state = entry.metadata().ok()?;
                let (size, inode) = (state.len(), state.ino());
                Some((entry.path(), size, inode, state.ctime(), state.ctime_nsec()))
            })
            .collect();
        looks.sort();
        looks
    }
}

fn listen() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
    let changes = inotify::init(flags)?;
    // SAFETY: the descriptor is owned, stays the same and is closed when it is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(changes, Interest::READABLE) }?)
}

/// Waits until something is told, for ever if nothing ever is.
async fn told(
    changes: Option<&AsyncFd<OwnedFd>>,
) -> io::Result<(AsyncFdReadyGuard<'_, OwnedFd>, &AsyncFd<OwnedFd>)> {
    match changes {
        Some(changes) => Ok((changes.readable().await?, changes)),
        None => std::future::pending().await,
    }
}

/// Takes what was told; the folder is looked at as a whole.
fn drain(changes: std::os::fd::BorrowedFd<'_>) {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    while reader.next().is_ok() {}
}
