//! Virtual machines: a stock kernel under software emulation, with a command to run.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{
    build::{self, Built},
    command::quietly,
    debian,
    initramfs::{self, Contents},
    kernel::{Kernel, Which},
    plug::Hand,
    setup,
};

/// What the guest's files come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rootfs {
    /// A static busybox and a few dynamic programs in memory; boots in two seconds
    Busybox,
    /// Debian with systemd on a disk; boots in ten seconds
    Debian,
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    kernel: Which,
    /// A folder that appears as /files
    #[arg(long, value_name = "DIR")]
    files: Option<PathBuf>,
    /// What the guest's files come from
    #[arg(long, value_enum, default_value = "busybox")]
    rootfs: Rootfs,
    /// Processors of the guest
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    smp: u8,
    /// Count instructions: the guest's clock advances with them, so that a run is repeatable
    #[arg(long)]
    icount: bool,
    /// Memory of the guest in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(128..))]
    mem: u32,
    /// More words for the kernel's command line
    #[arg(long, default_value = "", value_name = "WORDS")]
    append: String,
    /// Boot with UEFI: the folder of OVMF's OVMF_CODE_4M.fd and OVMF_VARS_4M.fd
    #[arg(long, value_name = "DIR")]
    uefi: Option<PathBuf>,
    /// End after this many seconds
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// A virtual machine to run once.
pub struct Vm<'a> {
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// Our binaries.
    pub built: &'a Built,
    /// A folder that appears as `/files`.
    pub files: Option<&'a Path>,
    /// Where the rest of its files come from.
    pub rootfs: Rootfs,
    /// Processors.
    pub smp: u8,
    /// Whether time is counted in instructions.
    pub icount: bool,
    /// Memory in MiB.
    pub mem: u32,
    /// More words for the kernel's command line.
    pub append: &'a str,
    /// When to give up.
    pub timeout: Duration,
    /// How long it may say nothing once it has started.
    pub silence: Duration,
    /// Whether a USB stick with an ext4 filesystem is plugged in, and more can be ([`Hand`]).
    pub usb_stick: bool,
    /// Whether a folder of the host, empty at first, can be mounted as 9p, as `share` and as
    /// `share-again`.
    pub share: bool,
    /// Whether there is a second disk, with an XFS filesystem.
    pub xfs_disk: bool,
    /// Whether its second and third serial ports are one line.
    pub serial_line: bool,
    /// A disk whose content lasts, in the place of an empty one.
    pub disk: Option<&'a Path>,
    /// The folder of its firmware, if it has UEFI.
    pub uefi: Option<&'a Path>,
    /// Its place on a network of two machines, as the two sockets: its own, and the other's.
    pub network: Option<[&'a Path; 2]>,
    /// When it loses its power.
    pub cut: Option<Cut>,
    /// What to run.
    pub command: &'a [String],
}

/// A moment at which a machine loses its power.
pub struct Cut {
    /// Counted from when it says this.
    pub line: String,
    /// How long after that.
    pub after: Duration,
}

impl<'a> Vm<'a> {
    /// The usual machine.
    pub fn new(kernel: &'a Kernel, built: &'a Built, command: &'a [String]) -> Self {
        Self {
            kernel,
            built,
            files: None,
            rootfs: Rootfs::Busybox,
            smp: 1,
            icount: false,
            mem: 1024,
            append: "",
            timeout: Duration::from_secs(600),
            silence: Duration::MAX,
            usb_stick: false,
            share: false,
            xfs_disk: false,
            serial_line: false,
            disk: None,
            uefi: None,
            network: None,
            cut: None,
            command,
        }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The command ended with this code.
    Exited(u8),
    /// Its power was cut as was asked for.
    Cut,
    /// The machine ended or hung before the command did.
    Lost(&'static str),
    /// The machine said nothing for too long, not even that it lives.
    Silent,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    if let Some(files) = args.files.as_ref().filter(|files| !files.is_dir()) {
        bail!("--files {}: no such folder", files.display());
    }
    setup::setup(match args.rootfs {
        Rootfs::Busybox => setup::For::Machines,
        Rootfs::Debian => setup::For::Demo,
    })?;
    let kernel = args.kernel.find()?;
    let built = build::build()?;
    let vm = Vm {
        files: args.files.as_deref(),
        rootfs: args.rootfs,
        smp: args.smp,
        icount: args.icount,
        mem: args.mem,
        append: &args.append,
        timeout: Duration::from_secs(args.timeout),
        uefi: args.uefi.as_deref(),
        ..Vm::new(&kernel, &built, &args.command)
    };
    let ended = vm.run(|line| {
        // Whoever reads may have gone; the machine goes on to its end.
        let _ = writeln!(std::io::stdout(), "{line}");
    })?;
    match ended {
        Ended::Exited(code) => Ok(ExitCode::from(code)),
        Ended::Cut => bail!("the guest has lost its power"),
        Ended::Lost(why) => bail!("the guest was lost: {why}"),
        Ended::Silent => bail!("the guest says nothing any more"),
    }
}

/// Words of the guest's first process for the host; a nonce keeps the command from saying them.
struct Marks {
    nonce: String,
}

impl Marks {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { nonce: format!("{:x}{:x}", std::process::id(), now.as_nanos()) }
    }

    /// The text before the mark and what it says, if the line has one.
    fn find<'l>(&self, line: &'l str) -> Option<(&'l str, &'l str)> {
        line.split_once(&format!("@@{} ", self.nonce))
    }
}

impl Vm<'_> {
    /// Boots, runs the command, and hands every line of the console to `show`.
    pub fn run(&self, mut show: impl FnMut(&str)) -> Result<Ended> {
        let work = tempfile::tempdir_in(build::work_dir()?)?;
        let archive = work.path().join("initramfs.cpio");
        initramfs::write(
            &Contents {
                kernel: self.kernel,
                built: self.built,
                files: self.files,
                command: self.command,
            },
            &archive,
        )?;
        let disk = match (self.disk, self.rootfs) {
            (Some(disk), _) => disk.to_owned(),
            (None, Rootfs::Busybox) => empty_disk(work.path(), "scratch.img")?,
            (None, Rootfs::Debian) => debian::image()?,
        };
        let mut devices = Vec::new();
        let mut hand = self.usb_stick.then(Hand::new).transpose()?;
        if let Some(hand) = &hand {
            devices = hand.arguments(work.path())?;
        }
        if self.share {
            let folder = work.path().join("share");
            fs::create_dir(&folder)?;
            // Each can be mounted once.
            for tag in ["share", "share-again"] {
                let mut share =
                    OsString::from(format!("local,mount_tag={tag},security_model=none,path="));
                share.push(&folder);
                devices.extend(["-virtfs".into(), share]);
            }
        }
        if self.xfs_disk {
            let mut drive = OsString::from("if=virtio,format=raw,file=");
            drive.push(xfs_disk(work.path())?);
            devices.extend(["-drive".into(), drive]);
        }
        if self.serial_line {
            // One end listens, the other connects to it, both in this machine.
            for (end, more) in [("near", "on,wait=off"), ("far", "off")] {
                let mut line = OsString::from(format!("socket,id={end},server={more},path="));
                line.push(work.path().join("line.sock"));
                devices.extend(["-chardev".into(), line]);
                devices.extend(["-serial".into(), format!("chardev:{end}").into()]);
            }
        }
        if let Some([own, other]) = self.network {
            let mut network = OsString::from("dgram,id=network,local.type=unix,local.path=");
            network.push(own);
            network.push(",remote.type=unix,remote.path=");
            network.push(other);
            devices.extend(["-netdev".into(), network]);
            devices.extend(["-device", "virtio-net-pci,netdev=network"].map(OsString::from));
        }
        if let Some(firmware) = self.uefi {
            let variables = work.path().join("variables.fd");
            fs::copy(firmware.join("OVMF_VARS_4M.fd"), &variables).context("OVMF's variables")?;
            let code = firmware.join("OVMF_CODE_4M.fd");
            for (path, more) in [(code, ",readonly=on"), (variables, "")] {
                let mut drive = OsString::from(format!(
                    "if=pflash,format=raw,unit={}{more},file=",
                    u8::from(more.is_empty())
                ));
                drive.push(path);
                devices.extend(["-drive".into(), drive]);
            }
        }
        // Software emulation of several processors dies in one boot of 150, before the first
        // process starts, of an int3 that the kernel's text patching left behind.
        for last_attempt in [false, true] {
            let marks = Marks::new();
            let listener = (&mut hand, &mut show);
            let (ended, early_int3) = self.boot(&archive, &disk, &devices, &marks, listener)?;
            if !early_int3 || last_attempt {
                return Ok(ended);
            }
            show("(the emulator tripped over kernel text patching; booting once more)");
        }
        Ok(Ended::Lost("unreachable"))
    }

    fn boot(
        &self,
        archive: &Path,
        disk: &Path,
        devices: &[OsString],
        marks: &Marks,
        (hand, show): (&mut Option<Hand>, &mut impl FnMut(&str)),
    ) -> Result<(Ended, bool)> {
        let mut qemu =
            self.qemu(archive, disk, marks)?.args(devices).spawn().context("cannot start qemu")?;
        let console = qemu.stdout.take().context("qemu has no console")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut reader = BufReader::new(console);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                line.clear();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let (mut end, mut is_cut) = (Instant::now() + self.timeout, false);
        let (mut ended, mut started, mut int3) =
            (Ended::Lost("it ended before the command"), false, false);
        let mut over = false;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let silence = if started { self.silence } else { Duration::MAX };
            match lines.recv_timeout(left.min(silence)) {
                Ok(line) => match marks.find(&line) {
                    Some((_, "start")) => started = true,
                    Some((before, mark)) => {
                        if !before.is_empty() {
                            show(before);
                        }
                        if let Some(code) = mark.strip_prefix("exit ") {
                            ended = Ended::Exited(code.trim().parse().unwrap_or(255));
                            over = true;
                        }
                    }
                    None => {
                        int3 |= !started && line.contains("int3");
                        if let Some(cut) = self.cut.as_ref().filter(|cut| cut.line == line) {
                            (end, is_cut) = (Instant::now() + cut.after, true);
                        }
                        if let Some(Err(error)) = hand.as_mut().map(|hand| hand.hears(&line)) {
                            show(&format!("(not plugged: {error:#})"));
                        }
                        // The firmware and the boot loader are of no interest.
                        if (started && !over) || line.contains("panic") || line.contains("Oops") {
                            show(&line);
                        }
                    }
                },
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    ended = if is_cut {
                        Ended::Cut
                    } else if silence < left {
                        Ended::Silent
                    } else {
                        Ended::Lost("it took too long")
                    };
                    break;
                }
            }
        }
        let _ = qemu.kill();
        qemu.wait()?;
        Ok((ended, int3 && !started))
    }

    fn qemu(&self, archive: &Path, disk: &Path, marks: &Marks) -> Result<Command> {
        let machine = Machine::of_host()?;
        let mut append = format!(
            "console={} quiet systemd.show_status=false panic=-1 portcullis.nonce={} portcullis.rootfs={}",
            machine.console,
            marks.nonce,
            match self.rootfs {
                Rootfs::Busybox => "busybox",
                Rootfs::Debian => "debian",
            }
        );
        let mut qemu = Command::new(machine.program);
        qemu.args(machine.arguments);
        qemu.args(["-cpu", if self.icount { machine.counted_cpu } else { machine.cpu }]);
        if self.icount {
            // One virtual nanosecond an instruction, a fixed seed and a fixed clock.
            qemu.args([
                "-accel",
                "tcg",
                "-icount",
                "shift=0,sleep=off",
                "-seed",
                "1",
                "-rtc",
                "base=2026-01-01,clock=vm",
            ]);
            append.push_str(" nokaslr norandmaps tsc=reliable nohz=off random.trust_cpu=on");
        }
        append.push(' ');
        append.push_str(self.append);
        let snapshot = if self.disk.is_some() { "off" } else { "on" };
        let mut drive = OsString::from(format!("if=virtio,format=raw,snapshot={snapshot},file="));
        drive.push(disk);
        qemu.args(["-m", &self.mem.to_string(), "-smp", &self.smp.to_string()])
            .args([
                "-display",
                "none",
                "-monitor",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
                "-nodefaults",
            ])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(archive)
            .arg("-append")
            .arg(append)
            .arg("-drive")
            .arg(drive)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        Ok(qemu)
    }
}

/// What differs between the architectures of hosts.
struct Machine {
    program: &'static str,
    arguments: &'static [&'static str],
    cpu: &'static str,
    /// A model that does not change with the host or with QEMU, for counting instructions.
    counted_cpu: &'static str,
    console: &'static str,
}

impl Machine {
    fn of_host() -> Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self {
                program: "qemu-system-x86_64",
                arguments: &[],
                cpu: "max",
                counted_cpu: "qemu64,+rdrand,+smep",
                console: "ttyS0",
            }),
            "aarch64" => Ok(Self {
                program: "qemu-system-aarch64",
                arguments: &["-machine", "virt"],
                cpu: "max",
                counted_cpu: "cortex-a57",
                console: "ttyAMA0",
            }),
            other => bail!("no virtual machine is described for {other} hosts"),
        }
    }
}

/// A disk with an empty ext4 filesystem. It has no partitions.
pub fn empty_disk(folder: &Path, name: &str) -> Result<PathBuf> {
    const SIZE: u64 = 256 << 20;
    let disk = folder.join(name);
    fs::File::create(&disk)?.set_len(SIZE)?;
    quietly(Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&disk))?;
    Ok(disk)
}

/// A disk with an empty XFS filesystem, on which files can share blocks.
fn xfs_disk(folder: &Path) -> Result<PathBuf> {
    /// What XFS needs at least.
    const SIZE: u64 = 300 << 20;
    let disk = folder.join("xfs.img");
    fs::File::create(&disk)?.set_len(SIZE)?;
    quietly(Command::new("/sbin/mkfs.xfs").arg("-q").arg(&disk))?;
    Ok(disk)
}
