//! What the network's door takes from itself: the very same code, and then attacks
//! by the process that it was taken from, as root, whom permissions do not keep from anything.

// The agent's own file.
#[path = "../../../agent/src/confine.rs"]
pub(super) mod confine;

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, test_kill_process};

use self::confine::{Kept, confine};
use super::fresh;
use crate::link;

const FOLDER: &str = "/run/confined";
const SECRET: &str = "/run/confined/others/secret";
const OWN: &str = "/run/confined/own";
const SOCKETS: &str = "/run/confined/sockets";
/// A socket without a file.
const ABSTRACT: &[u8] = b"portcullis-confined";
/// The port at which it may listen.
const PORT: u16 = 7443;

/// Something that a process does to what is not its own, and the first kernel of which it cannot do it any more
/// when it is confined.
type Attack = (&'static str, [u32; 2], fn(u16) -> io::Result<()>);

const ATTACKS: &[Attack] = &[
    ("reads a password file", [5, 13], |_| fs::read("/etc/passwd").map(drop)),
    ("reads a secret", [5, 13], |_| fs::read(SECRET).map(drop)),
    ("lists a folder", [5, 13], |_| fs::read_dir("/run/confined/others").map(drop)),
    ("reads the agent's file", [5, 13], |_| fs::read("/etc/portcullis/device.toml").map(drop)),
    ("writes a new file", [5, 13], |_| fs::write("/run/confined/others/new", "")),
    ("starts a program", [5, 13], |_| Command::new("/bin/true").status().map(drop)),
    ("truncates a file", [6, 2], |_| {
        // SAFETY: the path is a string that lives for as long as the program.
        let done = unsafe { libc::truncate(c"/run/confined/others/new".as_ptr(), 0) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }),
    ("connects over TCP", [6, 7], |port| TcpStream::connect(("127.0.0.1", port)).map(drop)),
    ("listens over TCP", [6, 7], |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("signals others", [6, 12], |_| Ok(test_kill_process(Pid::INIT)?)),
    ("connects to a socket without a file", [6, 12], |_| {
        UnixStream::connect_addr(&SocketAddr::from_abstract_name(ABSTRACT)?).map(drop)
    }),
    ("connects to a socket elsewhere", [7, 1], |_| {
        UnixStream::connect("/run/confined/others/socket").map(drop)
    }),
];

fn kernel() -> Result<[u32; 2]> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(str::parse);
    Ok([numbers.next().context("a number")??, numbers.next().context("a number")??])
}

/// A confined process cannot do what it could before.
pub fn by_itself() -> Result<()> {
    link::set_loopback(true)?;
    fresh(FOLDER)?;
    for folder in [OWN, SOCKETS, "/run/confined/others", "/etc/portcullis"] {
        fs::create_dir_all(folder)?;
    }
    fs::write(SECRET, "secret")?;
    fs::write("/etc/portcullis/device.toml", "")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let _sockets = [
        UnixListener::bind(Path::new(SOCKETS).join("socket"))?,
        UnixListener::bind("/run/confined/others/socket")?,
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(ABSTRACT)?)?,
    ];
    for (name, _, attack) in ATTACKS {
        attack(port).with_context(|| format!("as a control: it {name}"))?;
    }
    let child = Command::new("portcullis-guest").args(["confined", &port.to_string()]).output()?;
    print!("{}", String::from_utf8_lossy(&child.stdout));
    ensure!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    ensure!(fs::read(SECRET)? == b"secret");
    Ok(())
}

/// The process that is confined.
pub fn attacks(port: &str) -> Result<()> {
    let (port, kernel) = (port.parse()?, kernel()?);
    let done = confine(Kept {
        read: &[],
        own: &[Path::new(OWN)],
        sockets: &[Path::new(SOCKETS)],
        listens: &[PORT],
        connects: &[],
    })?;
    println!("  {done}");
    ensure!(done.is_anything() == (kernel >= [5, 13]), "{done}");
    for (name, first, attack) in ATTACKS {
        let attacked = attack(port);
        let refused = attacked
            .as_ref()
            .is_err_and(|error| matches!(error.kind(), io::ErrorKind::PermissionDenied));
        let expected = kernel >= *first;
        ensure!(refused == expected, "{kernel:?}, it {name}: {attacked:?}");
        if !expected {
            println!("  this kernel lets it: it {name}");
        }
    }
    // What it keeps.
    fs::write(Path::new(OWN).join("new"), "")?;
    fs::rename(Path::new(OWN).join("new"), Path::new(OWN).join("file"))?;
    UnixStream::connect(Path::new(SOCKETS).join("socket"))?;
    TcpListener::bind(("127.0.0.1", PORT))?;
    Ok(())
}
