//! Takes from a process without privilege what it does not need any more, by itself (Landlock): files and
//! folders, ports, other processes. What a unit of systemd takes from it is there besides; this holds wherever
//! it is started.

use std::{fmt, fs, io, path::Path};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope,
};
use thiserror::Error;

/// The newest kernel interface whose rights are taken away: 9 is Linux 7.1, which has sockets in folders.
const NEWEST: ABI = ABI::V9;

/// Where random numbers are, for libraries that find no `getrandom` in a static binary.
const RANDOM: [&str; 2] = ["/dev/random", "/dev/urandom"];

/// What a process keeps. What is not there is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept<'a> {
    /// Files, and folders with what is in them, that it reads.
    pub read: &'a [&'a Path],
    /// Folders in which it does what it likes.
    pub own: &'a [&'a Path],
    /// Folders with sockets that it connects to. Before Linux 7.1 it may connect to all that permissions let
    /// it.
    pub sockets: &'a [&'a Path],
    /// TCP ports at which it listens.
    pub listens: &'a [u16],
    /// TCP ports that it connects to.
    pub connects: &'a [u16],
}

/// Why nothing could be taken away.
#[derive(Debug, Error)]
pub enum ConfineError {
    /// It would hold for this thread, and not for those that are there already.
    #[error("there are {0} threads already")]
    Threads(usize),
    /// The kernel does not say how many threads there are.
    #[error("counting threads: {0}")]
    Uncounted(#[from] io::Error),
    /// The kernel refuses it.
    #[error(transparent)]
    Kernel(#[from] RulesetError),
}

/// What the kernel has taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confined(Option<ABI>);

impl Confined {
    /// Whether it is anything at all.
    #[must_use]
    pub const fn is_anything(self) -> bool {
        self.0.is_some()
    }

    fn has(self, first: ABI) -> bool {
        self.0.is_some_and(|abi| abi as i32 >= first as i32)
    }
}

impl fmt::Display for Confined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(abi) = self.0 else {
            return f.write_str(
                "not confined by itself: this kernel has no Landlock (Linux 5.13), it is not among its security \
                 modules (`lsm=`), or the unit forbids it",
            );
        };
        write!(f, "confined by itself (Landlock {}): files", abi as i32)?;
        for (first, what) in [
            (ABI::V4, "TCP ports"),
            (ABI::V6, "signals to others and abstract sockets"),
            (ABI::V9, "sockets in folders"),
        ] {
            if self.has(first) {
                write!(f, ", {what}")?;
            }
        }
        Ok(())
    }
}

/// Keeps this process from everything else, for good, as far as the kernel can. It must not have other
/// threads yet.
///
/// # Errors
/// If there are other threads, or the kernel can and does not.
pub fn confine(kept: Kept<'_>) -> Result<Confined, ConfineError> {
    match fs::read_dir("/proc/self/task")?.count() {
        0 | 1 => confine_thread(kept),
        threads => Err(ConfineError::Threads(threads)),
    }
}

/// The same for this thread only, and those that it starts.
///
/// # Errors
/// If the kernel can and does not.
pub fn confine_thread(kept: Kept<'_>) -> Result<Confined, ConfineError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = AccessFs::from_all(NEWEST) & !(AccessFs::Execute | AccessFs::ResolveUnix);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?
        .scope(Scope::Signal | Scope::AbstractUnixSocket)?
        .create()?;
    for path in RANDOM {
        ruleset = beneath(ruleset, Path::new(path), AccessFs::ReadFile.into())?;
    }
    for (paths, rights) in
        [(kept.read, read), (kept.own, own), (kept.sockets, AccessFs::ResolveUnix.into())]
    {
        for path in paths {
            ruleset = beneath(ruleset, path, rights)?;
        }
    }
    for port in kept.listens {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::BindTcp))?;
    }
    for port in kept.connects {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    let RestrictionStatus { landlock, .. } = ruleset.restrict_self()?;
    Ok(Confined(match landlock {
        LandlockStatus::Available { effective_abi, .. } => Some(effective_abi),
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => None,
    }))
}

fn beneath(
    ruleset: RulesetCreated,
    path: &Path,
    rights: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    // What is not there is not reached.
    let Ok(opened) = PathFd::new(path) else { return Ok(ruleset) };
    let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
    ruleset.add_rule(PathBeneath::new(opened, rights))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::{UnixListener, UnixStream},
        thread,
    };

    use super::*;

    /// Runs `attack` in a thread that is confined; none on a kernel without Landlock.
    fn confined<T: Send>(kept: Kept<'_>, attack: impl FnOnce(Confined) -> T + Send) -> Option<T> {
        thread::scope(|scope| {
            let run = || {
                let confined = confine_thread(kept).expect("the kernel can, or cannot");
                confined.is_anything().then(|| attack(confined))
            };
            scope.spawn(run).join().expect("no panic")
        })
    }

    #[test]
    fn a_process_reaches_only_what_it_keeps() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["own", "read", "others"] {
            fs::create_dir(at(name)).expect("made");
            fs::write(at(name).join("file"), name).expect("written");
        }
        let (own, read, others) = (at("own"), at("read"), at("others"));
        let (own_port, other) =
            (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
        let (own_port, other) = (own_port.expect("a port"), other.expect("a port"));
        let [own_port, other] =
            [own_port, other].map(|one| (one.local_addr().expect("a port"), one));
        let socket = at("read").join("socket");
        let _listener = UnixListener::bind(&socket).expect("a socket");
        let port = own_port.0.port();
        let free =
            TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a port");
        let kept = Kept {
            read: &[&read, Path::new("/nowhere")],
            own: &[&own],
            sockets: &[&read],
            listens: &[free.port()],
            connects: &[port],
        };
        confined(kept, |confined| {
            let denied = |what: io::Result<()>, name: &str| {
                let error = what.expect_err(name);
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{name}: {error}");
            };
            // Root is no exception, which these tests may run as.
            for file in ["/etc/shadow", "/etc/passwd", "/proc/self/environ"] {
                denied(fs::File::open(file).map(drop), file);
            }
            denied(fs::read(others.join("file")).map(drop), "another file");
            denied(fs::read_dir(&others).map(drop), "another folder");
            denied(fs::write(read.join("file"), "x"), "a file that is only read");
            denied(fs::write(others.join("new"), "x"), "a new file elsewhere");
            denied(fs::remove_file(others.join("file")), "removing");
            denied(
                std::process::Command::new("/bin/true").status().map(drop),
                "starting a program",
            );
            if confined.has(ABI::V4) {
                denied(TcpStream::connect(other.0).map(drop), "another port");
                denied(TcpListener::bind("127.0.0.1:0").map(drop), "listening");
                TcpStream::connect(own_port.0).expect("its port");
                TcpListener::bind(free).expect("its own port");
            }
            // What it keeps.
            fs::File::open("/dev/urandom").expect("random numbers");
            fs::read(read.join("file")).expect("read");
            fs::write(own.join("new"), "x").expect("written");
            fs::rename(own.join("new"), own.join("file")).expect("renamed");
            UnixStream::connect(&socket).expect("its socket");
        });
        fs::read(at("others").join("file")).expect("other threads are not confined");
    }

    #[test]
    fn it_does_not_hold_for_threads_that_are_there() {
        // Tests run in threads.
        assert!(matches!(confine(Kept::default()), Err(ConfineError::Threads(2..))));
    }

    #[test]
    fn what_the_kernel_gives_is_told() {
        let told = |abi| Confined(abi).to_string();
        assert!(told(None).starts_with("not confined"));
        assert_eq!(told(Some(ABI::V2)), "confined by itself (Landlock 2): files");
        let six = "confined by itself (Landlock 6): files, TCP ports, signals to others and abstract sockets";
        assert_eq!(told(Some(ABI::V6)), six);
    }
}
