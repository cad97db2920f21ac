//! The console at a terminal like those at the end of a serial line, which do not say how large they are; and
//! at the end of one.

use std::{
    fs::{self, File},
    io::{Read, Write},
    num::NonZeroU16,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountFlags, mount},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};

use crate::agent::PATIENCE;

/// Lines and columns of a screen that is larger than those at the end of serial lines.
const LARGER: (NonZeroU16, NonZeroU16) =
    (NonZeroU16::MIN.saturating_add(59), NonZeroU16::MIN.saturating_add(199));

/// A terminal: what it shows, and its keys.
struct Terminal {
    said: Receiver<Vec<u8>>,
    keys: File,
    screen: vt100::Parser,
    /// The same on a larger screen, which shows what would not fit.
    larger: vt100::Parser,
    bytes: usize,
}

/// Looks at the refusals, which have to show `wanted`, and leaves.
pub fn shows(wanted: &str) -> Result<()> {
    make_terminals()?;
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = open(ptsname(&ours, Vec::new())?, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    let mut terminal = Terminal::at(ours)?;
    let before = usual_modes(&theirs)?;
    let console = start(&theirs, "vt100", &["portcullis"])?;
    terminal.is_used(console, &theirs, wanted, |_| Ok(()))?;
    ensure!(usual_modes(&theirs)? == before, "the terminal is not as it was");
    Ok(())
}

/// The same over a serial line of the machine, whose other end is the terminal: as slow and as fast as they
/// are, as a getty would leave it.
pub fn shows_over_a_line(wanted: &str) -> Result<()> {
    let port = |name: &str| open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    let ours = port("/dev/ttyS2")?;
    let mut raw = tcgetattr(&ours)?;
    raw.make_raw();
    tcsetattr(&ours, OptionalActions::Flush, &raw)?;
    // One for both, as its thread reads on.
    let mut terminal = Terminal::at(ours)?;
    for (term, speed, says_its_size) in [("vt100", 9_600, false), ("linux", 115_200, true)] {
        let theirs = port("/dev/ttyS1")?;
        for end in [theirs.as_fd(), terminal.keys.as_fd()] {
            let mut modes = tcgetattr(end)?;
            modes.set_speed(speed)?;
            tcsetattr(end, OptionalActions::Flush, &modes)?;
        }
        terminal.is_switched_on_again();
        let (ws_row, ws_col) = if says_its_size { (24, 80) } else { (0, 0) };
        tcsetwinsize(&theirs, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })?;
        let before = usual_modes(&theirs)?;
        let start_at = Instant::now();
        let console = start(&theirs, term, &["setsid", "-c", "portcullis"])?;
        terminal.is_used(console, &theirs, wanted, |terminal| {
            println!(
                "  {term} at {speed} baud: {} bytes in {:.1} s",
                terminal.bytes,
                start_at.elapsed().as_secs_f32()
            );
            // A key of three bytes, as a terminal sends it and as a line without a buffer delivers it.
            terminal.press(b"\x1b[C")?;
            terminal.waits_for(&["from the policy file of this device"])?;
            for byte in *b"\x1b[D" {
                terminal.press(&[byte])?;
                thread::sleep(Duration::from_millis(30));
            }
            terminal.waits_for(&["kernel type information"])?;
            // Noise on the line, and the key that mends the page.
            terminal.screen.process(b"\x1b[12;1Hnoise\xff\xfe");
            terminal.press(b"l")?;
            terminal.waits_for_no("noise")
        })?;
        // Its session has ended, and hung up what was open.
        let after = usual_modes(&port("/dev/ttyS1")?)?;
        ensure!(after == before, "the terminal is not as it was");
    }
    Ok(())
}

fn start(theirs: &OwnedFd, term: &str, command: &[&str]) -> Result<Child> {
    let end = || -> Result<Stdio> { Ok(Stdio::from(theirs.try_clone()?)) };
    let mut words = command.iter().chain(&["console", "--every", "1"]);
    let console = Command::new(words.next().context("no program")?)
        .args(words)
        .env("TERM", term)
        .stdin(end()?)
        .stdout(end()?)
        .stderr(end()?)
        .spawn()?;
    Ok(console)
}

fn usual_modes(theirs: &OwnedFd) -> Result<LocalModes> {
    let modes = tcgetattr(theirs)?.local_modes;
    ensure!(modes.contains(LocalModes::ICANON | LocalModes::ECHO), "no usual terminal");
    Ok(modes)
}

impl Terminal {
    fn at(ours: OwnedFd) -> Result<Self> {
        Ok(Self {
            keys: File::from(ours.try_clone()?),
            said: said_by(ours),
            screen: vt100::Parser::default(),
            larger: vt100::Parser::new(LARGER.0, LARGER.1, 0),
            bytes: 0,
        })
    }

    fn is_used(
        &mut self,
        mut console: Child,
        theirs: &OwnedFd,
        wanted: &str,
        more: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let done = self.pages(theirs, wanted).and_then(|()| more(self));
        let ended = done.and_then(|()| self.leaves(&mut console));
        // Or it would hold the line.
        let _ = console.kill();
        let _ = console.wait();
        ended
    }

    fn is_switched_on_again(&mut self) {
        while self.said.try_recv().is_ok() {}
        (self.screen, self.bytes) = (vt100::Parser::default(), 0);
        self.larger = vt100::Parser::new(LARGER.0, LARGER.1, 0);
    }

    fn pages(&mut self, theirs: &OwnedFd, wanted: &str) -> Result<()> {
        self.waits_for(&["ENFORCE", "GATE", "1 Overview", wanted])?;
        self.is_whole()?;
        self.press(b"5")?;
        self.waits_for(&["ENFORCE", "kernel type information", "1 Overview"])?;
        self.is_whole()?;
        let modes = tcgetattr(theirs)?.local_modes;
        ensure!(!modes.contains(LocalModes::ECHO), "keys are shown");
        Ok(())
    }

    fn press(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.keys.write_all(bytes)?)
    }

    fn leaves(&mut self, console: &mut Child) -> Result<()> {
        self.press(b"q")?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = console.try_wait()? {
                ensure!(status.success(), "{status}");
                return Ok(());
            }
            ensure!(Instant::now() < end, "the console does not end");
            // Whoever writes to a terminal waits for it to be read.
            let _ = self.said.recv_timeout(Duration::from_millis(50));
        }
    }

    fn hear(&mut self) -> Result<String> {
        match self.said.recv_timeout(Duration::from_millis(200)) {
            Ok(piece) => {
                self.bytes += piece.len();
                self.screen.process(&piece);
                self.larger.process(&piece);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the terminal has gone"),
        }
        Ok(self.screen.screen().contents())
    }

    /// Waits until it would show all of that at once.
    fn waits_for(&mut self, wanted: &[&str]) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = self.hear()?;
            if wanted.iter().all(|wanted| shown.contains(wanted)) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the console never shows {wanted:?}, but\n{shown}");
        }
    }

    fn waits_for_no(&mut self, unwanted: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let shown = self.hear()?;
            if !shown.contains(unwanted) && shown.contains("1 Overview") {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{unwanted:?} stays on the page:\n{shown}");
        }
    }

    /// The page has its first line and its last, and nothing beyond 80 columns and 24 lines.
    fn is_whole(&self) -> Result<()> {
        let shown = self.screen.screen().contents();
        let lines: Vec<_> = shown.lines().collect();
        ensure!(
            lines.len() == 24
                && lines[0].starts_with(" Portcullis on ")
                && lines[23].starts_with(" 1 Overview ")
                && lines[23].ends_with("q quit"),
            "not a whole page:\n{shown}"
        );
        let wide = self.larger.screen();
        let beyond: String = wide.rows(80, 120).collect();
        ensure!(beyond.trim().is_empty(), "wider than 80 columns: {}", beyond.trim());
        let below: String = wide.rows(0, 200).skip(24).collect();
        ensure!(below.trim().is_empty(), "more than 24 lines: {}", below.trim());
        Ok(())
    }
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
