//! The console at a terminal like those at the end of a serial line, which do not say how large they are.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountFlags, mount},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};

use crate::agent::PATIENCE;

/// Looks at the refusals, which have to show `wanted`, and leaves.
pub fn shows(wanted: &str) -> Result<()> {
    make_terminals()?;
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = open(ptsname(&ours, Vec::new())?, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let end = || -> Result<Stdio> { Ok(Stdio::from(theirs.try_clone()?)) };
    let before = tcgetattr(&theirs)?.local_modes;
    ensure!(before.contains(LocalModes::ICANON | LocalModes::ECHO), "no usual terminal");
    let mut console = Command::new("portcullis")
        .args(["console", "--every", "1"])
        .env("TERM", "vt100")
        .stdin(end()?)
        .stdout(end()?)
        .stderr(end()?)
        .spawn()?;
    let mut keys = File::from(ours.try_clone()?);
    let said = said_by(ours);
    let mut screen = vt100::Parser::default();
    wait_for(&said, &mut screen, &["ENFORCE", "GATE", "1 Overview", wanted])?;
    keys.write_all(b"5")?;
    wait_for(&said, &mut screen, &["ENFORCE", "kernel type information", "1 Overview"])?;
    ensure!(!tcgetattr(&theirs)?.local_modes.contains(LocalModes::ECHO), "keys are shown");
    keys.write_all(b"q")?;
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = console.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            console.kill()?;
            bail!("the console does not end");
        }
        // Whoever writes to a terminal waits for it to be read.
        let _ = said.recv_timeout(Duration::from_millis(50));
    };
    ensure!(status.success(), "{status}");
    ensure!(tcgetattr(&theirs)?.local_modes == before, "the terminal is not as it was");
    Ok(())
}

/// A system that boots in two seconds has none.
fn make_terminals() -> Result<()> {
    const TERMINALS: &str = "/dev/pts";
    if !Path::new(TERMINALS).join("ptmx").exists() {
        fs::create_dir_all(TERMINALS)?;
        mount("devpts", TERMINALS, "devpts", MountFlags::empty(), c"mode=600")?;
    }
    Ok(())
}

/// What comes out at our end, piece by piece.
fn said_by(ours: OwnedFd) -> Receiver<Vec<u8>> {
    let (sender, said) = channel();
    thread::spawn(move || {
        let (mut ours, mut piece) = (File::from(ours), [0; 4096]);
        while let Ok(length @ 1..) = ours.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    said
}

/// Waits until a terminal of the usual size would show all of that at once.
fn wait_for(said: &Receiver<Vec<u8>>, screen: &mut vt100::Parser, wanted: &[&str]) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match said.recv_timeout(Duration::from_millis(200)) {
            Ok(piece) => screen.process(&piece),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the terminal has gone"),
        }
        let shown = screen.screen().contents();
        if wanted.iter().all(|wanted| shown.contains(wanted)) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the console never shows {wanted:?}, but\n{shown}");
    }
}
