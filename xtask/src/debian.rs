//! A Debian root filesystem with systemd, made once and kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use portcullis_ebpf_build::cache_dir;

use crate::command::{command, quietly, shown, text_of};

/// The release, which is also that of the machine that everything is developed on.
pub const RELEASE: &str = "bookworm";

/// What a small industrial device could have installed, on top of the essential packages; and what
/// the audit soak works with: a compiler, a just-in-time compiler, containers.
const PACKAGES: &str = "systemd-sysv,dbus,udev,kmod,procps,iproute2,iputils-ping,less,nano,cron,\
    logrotate,openssh-server,python3-minimal,ca-certificates,e2fsprogs,file,psmisc,strace,\
    tcc,libc6-dev,luajit,bubblewrap,\
    libestr0,libfastjson4,liblognorm5,libivykis0,libnet1,libjson-c5,libglib2.0-0,libwrap0,libpcre3,\
    libauparse0,libgssapi-krb5-2";

/// What receives events, what carries a fleet's policies, and what reads numbers. Unpacked only, below `/opt/receivers`: two
/// syslog servers cannot be installed beside each other, and nothing of them shall run in other scenarios.
/// Their libraries are above.
const RECEIVERS: &str = "rsyslog syslog-ng-core auditd nats-server prometheus";

/// Unpacks them while the packages' sources are still known to the new root. Of Prometheus only what checks
/// files for it.
const UNPACK: &str = "set -e; mkdir -p \"$1/opt/receivers\"; cd \"$1/opt/receivers\"; \
    APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" apt-get -qq download RECEIVERS; \
    dpkg-deb --fsys-tarfile prometheus_*.deb | tar x ./usr/bin/promtool; rm prometheus_*.deb; \
    for package in *.deb; do dpkg-deb -x \"$package\" .; done; rm *.deb";

/// Size of the disk. Most of it is empty and takes no room.
const DISK_SIZE: u64 = 1500 << 20;

/// The disk image; made if it is not in the cache. It has no partitions.
pub fn image() -> Result<PathBuf> {
    let folder = cache_dir()?.join("debian");
    // Another list of packages is another image.
    let image = folder.join(format!(
        "{RELEASE}-{:016x}.img",
        fingerprint(&format!("{PACKAGES}{UNIT}{RECEIVERS}{UNPACK}"))
    ));
    if image.is_file() {
        return Ok(image);
    }
    fs::create_dir_all(&folder)?;
    eprintln!("making a Debian root filesystem with systemd, to live a commissioning in");
    let work = tempfile::tempdir_in(&folder)?;
    let root = work.path().join("root");
    bootstrap(&root)?;
    configure(&root)?;
    let unfinished = work.path().join("root.img");
    fs::File::create(&unfinished)?.set_len(DISK_SIZE)?;
    quietly(Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(&unfinished))?;
    fs::rename(&unfinished, &image)?;
    // mmdebstrap may leave files that only root can remove, which we are.
    Ok(image)
}

fn fingerprint(text: &str) -> u64 {
    // FNV-1a: only has to differ for different lists.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn bootstrap(root: &Path) -> Result<()> {
    let mut bootstrap = command(
        "mmdebstrap",
        [
            "--quiet",
            "--variant=minbase",
            "--aptopt=Acquire::Retries \"3\"",
            "--aptopt=APT::Sandbox::User \"root\"",
        ],
    );
    let unpack = UNPACK.replace("RECEIVERS", RECEIVERS);
    bootstrap.arg(format!("--customize-hook={unpack}"));
    bootstrap.arg(format!("--include={PACKAGES}")).arg(RELEASE).arg(root).arg("-");
    // The machine's own sources, so that a mirror behind a firewall is used here too.
    let mut child = bootstrap
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(&bootstrap)))?;
    let mut input = child.stdin.take().context("mmdebstrap takes no sources")?;
    std::io::Write::write_all(&mut input, sources()?.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{} ended with {}:\n{}",
        shown(&bootstrap),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Debian's own entries among the machine's package sources, one in a line.
pub fn sources() -> Result<String> {
    let format = "$(CREATED_BY)|$(ORIGIN)|$(CODENAME)|deb $(REPO_URI) $(SUITE) $(COMPONENT)";
    let targets = text_of(&mut command("apt-get", ["indextargets", "--format", format]))?;
    let mut found: Vec<_> = targets
        .lines()
        .filter_map(|line| line.strip_prefix("Packages|Debian|"))
        .filter_map(|line| line.split_once('|'))
        .filter(|(codename, _)| codename.starts_with(RELEASE))
        .map(|(codename, entry)| {
            // By code name: what is stable today is not tomorrow.
            let mut words: Vec<_> = entry.split(' ').collect();
            words[2] = codename;
            words.join(" ")
        })
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() {
        bail!("this machine has no package sources of Debian {RELEASE}");
    }
    Ok(found.join("\n") + "\n")
}

fn configure(root: &Path) -> Result<()> {
    fs::write(root.join("etc/hostname"), "device\n")?;
    fs::write(root.join("etc/fstab"), "/dev/vda / ext4 rw 0 1\n")?;
    // Nobody waits for a login on the console that carries the demonstration.
    for unit in ["serial-getty@ttyS0.service", "serial-getty@ttyAMA0.service", "getty@tty1.service"]
    {
        std::os::unix::fs::symlink("/dev/null", root.join("etc/systemd/system").join(unit))?;
    }
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    fs::write(root.join("etc/systemd/system/portcullis-guest.service"), UNIT)?;
    std::os::unix::fs::symlink(
        "../portcullis-guest.service",
        wants.join("portcullis-guest.service"),
    )?;
    Ok(())
}

/// Runs the host's command when everything else has started.
const UNIT: &str = "[Unit]
Description=The command that the host wants to be run
After=multi-user.target

[Service]
Type=exec
ExecStart=/usr/bin/portcullis-guest run
StandardInput=null
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console

[Install]
WantedBy=multi-user.target
";
