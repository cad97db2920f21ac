//! What the kernel itself takes in: modules, kexec images, firmware, and what no policy can list.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, expect},
    attack::{self, Attack, Attempt},
    events,
};

/// `MODULE_INIT_COMPRESSED_FILE` (linux/module.h).
const COMPRESSED: i32 = 4;

/// A13: modules that the policy does not list, in every way into the kernel.
pub fn modules() -> Result<()> {
    let lab = fresh("/data/modules")?;
    let installed = module_file("dummy")?;
    let original = fs::read(&installed)?;
    // A byte more at the end leaves a module that works, without a signature.
    let changed = [&original[..], b"\0"].concat();
    let file = lab.join("changed.ko");
    fs::write(&file, &changed)?;
    let packed = lab.join("changed.ko.xz");
    let output = Command::new("/usr/bin/xz")
        .args(["--check=crc32", "--lzma2=dict=1MiB", "--stdout"])
        .arg(&file)
        .output()
        .context("xz")?;
    ensure!(output.status.success(), "xz: {}", String::from_utf8_lossy(&output.stderr));
    fs::write(&packed, output.stdout)?;

    let from_file = || loaded(finit_module(&File::open(&file)?, 0));
    let from_memory = || {
        // SAFETY: the buffer is as long as is said, and the string is valid.
        let done = unsafe {
            libc::syscall(libc::SYS_init_module, changed.as_ptr(), changed.len(), c"".as_ptr())
        };
        loaded(done)
    };
    let from_memory_file = || {
        let memory =
            File::from(rustix::fs::memfd_create("module", rustix::fs::MemfdFlags::CLOEXEC)?);
        std::io::Write::write_all(&mut &memory, &changed)?;
        loaded(finit_module(&memory, 0))
    };
    let compressed = || loaded(finit_module(&File::open(&packed)?, COMPRESSED));
    let on_demand = || {
        // What asks for the device makes the kernel start modprobe, which finds the changed file.
        let aside = installed.with_extension("aside");
        fs::rename(&installed, &aside)?;
        symlink(&file, &installed)?;
        let asked = Command::new("/bin/ip").args(["link", "add", "type", "dummy"]).output();
        fs::remove_file(&installed)?;
        fs::rename(&aside, &installed)?;
        asked?;
        // Nobody says why it was not.
        if is_loaded("dummy")? { loaded(0) } else { Ok(Attempt::Refused) }
    };
    let no_file: &[&str] = &["no-file"];
    let mut attacks = vec![
        Attack::unlisted("finit_module of a changed module", &from_file),
        Attack { name: "init_module from memory".into(), attempt: &from_memory, reasons: no_file },
        Attack {
            name: "finit_module from a memfd".into(),
            attempt: &from_memory_file,
            reasons: &["unsealed"],
        },
        Attack::unlisted("a changed module, loaded on demand through modprobe", &on_demand),
    ];
    // Linux 6.1 of Debian cannot unpack modules, and 5.10 does not know the flag.
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    if attack::is_old_kernel() || release.starts_with("6.1.") {
        let done = finit_module(&File::open(&packed)?, COMPRESSED);
        let error = std::io::Error::last_os_error().raw_os_error();
        ensure!(
            done == -1 && matches!(error, Some(libc::EINVAL | libc::EOPNOTSUPP)),
            "a compressed module: {error:?}"
        );
        attack::note("kernel-modules", "this kernel takes no compressed modules");
    } else {
        attacks.push(Attack::unlisted("finit_module of a compressed module", &compressed));
    }
    attack::run(&base_policy(&[])?, &attacks)?;

    // What is listed is loaded, by hand and on demand.
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    ensure!(loaded(finit_module(&File::open(&installed)?, 0))? == Attempt::Ran);
    let asked = Command::new("/bin/ip").args(["link", "add", "type", "dummy"]).status()?;
    ensure!(asked.success() && is_loaded("dummy")?, "a listed module was not loaded on demand");
    let _ = Command::new("/bin/rmmod").arg("dummy").status();
    agent.stop()?;

    // A digest that is listed as something else is no module.
    let policy = base_policy(&[])?;
    list(&policy, &file, &["executable", "library", "firmware"])?;
    let wrong_kind: &[&str] = &["wrong-kind"];
    attack::run(
        &policy,
        &[Attack {
            name: "a module that is listed as other kinds".into(),
            attempt: &from_file,
            reasons: wrong_kind,
        }],
    )
}

/// Where a module lies.
fn module_file(name: &str) -> Result<PathBuf> {
    let output = Command::new("/bin/find")
        .args(["/lib/modules/", "-name", &format!("{name}.ko")])
        .output()?;
    let found = String::from_utf8(output.stdout)?;
    Ok(found.lines().next().with_context(|| format!("no module {name}"))?.into())
}

fn finit_module(file: &File, flags: i32) -> libc::c_long {
    // SAFETY: the descriptor is open, and the string is valid.
    unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) }
}

fn is_loaded(name: &str) -> Result<bool> {
    Ok(fs::read_to_string("/proc/modules")?.lines().any(|line| line.starts_with(name)))
}

/// Whether the module dummy went in; takes it out again.
fn loaded(done: libc::c_long) -> Result<Attempt> {
    let error = std::io::Error::last_os_error();
    if done != 0 && !is_loaded("dummy")? {
        ensure!(
            done == -1 && matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOENT)),
            "loading the module: {error}"
        );
        return Ok(Attempt::Refused);
    }
    // SAFETY: the string is valid.
    let removed = unsafe { libc::syscall(libc::SYS_delete_module, c"dummy".as_ptr(), 0) };
    ensure!(removed == 0, "dummy cannot be removed: {}", std::io::Error::last_os_error());
    Ok(Attempt::Ran)
}

/// A13: kernels for kexec, firmware, and what the kernel reads for purposes of its own.
pub fn others() -> Result<()> {
    // Before the firmware is there, as a scan would list it.
    let unlisted = base_policy(&[])?;
    let lab = fresh("/data/intake")?;
    let image = lab.join("image");
    fs::write(&image, vec![7; 8192])?;
    fs::create_dir_all("/lib/firmware")?;
    fs::write("/lib/firmware/regulatory.db", b"not what the kernel signed")?;

    let kexec_file = || {
        // Without gates the kernel says that this is no image.
        // SAFETY: the descriptor is open and the command line is valid and counted with its end.
        let done = unsafe {
            libc::syscall(
                libc::SYS_kexec_file_load,
                File::open(&image)?.as_raw_fd(),
                -1,
                1,
                c"".as_ptr(),
                KEXEC_FILE_NO_INITRAMFS,
            )
        };
        passed(done)
    };
    let kexec_memory = || {
        // No segments: whatever was loaded is unloaded.
        // SAFETY: no memory is named.
        let done = unsafe { libc::syscall(libc::SYS_kexec_load, 0, 0, 0, 0) };
        passed(done)
    };
    let firmware = || {
        let mark = KernelLog::now()?;
        let status = Command::new("/sbin/modprobe").arg("cfg80211").status()?;
        ensure!(status.success(), "modprobe cfg80211: {status}");
        let read = mark.wait_for("what became of regulatory.db", |line| {
            line.contains("regulatory.db")
                && ["malformed", "failed"].iter().any(|end| line.contains(end))
        })?;
        let removed = Command::new("/bin/rmmod").arg("cfg80211").status()?;
        ensure!(removed.success(), "rmmod cfg80211: {removed}");
        // Either it could not be read, or it was read and is not what it should be.
        Ok(if read.contains("malformed") { Attempt::Ran } else { Attempt::Refused })
    };
    let no_file: &[&str] = &["no-file"];
    attack::run(
        &unlisted,
        &[
            Attack::unlisted("kexec_file_load of an unlisted image", &kexec_file),
            Attack { name: "kexec_load".into(), attempt: &kexec_memory, reasons: no_file },
            Attack::unlisted("unlisted firmware", &firmware),
        ],
    )?;

    let policy = base_policy(&[])?;
    list(&policy, Path::new("/lib/firmware/regulatory.db"), &["firmware"])?;
    list(&policy, &image, &["kexec"])?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(firmware()? == Attempt::Ran, "listed firmware was refused");
    ensure!(kexec_file()? == Attempt::Ran, "a listed image was refused");
    let mark = events::mark()?;
    ensure!(kexec_memory()? == Attempt::Refused);
    let event = events::wait_for(mark, "kexec_load", |event| event["reason"] == "no-file")?;
    ensure!(
        event["artifact"].is_null()
            && event["gate"] == "kernel"
            && event["wanted"] == serde_json::json!(["kexec"])
            && event["process"]["comm"].is_string(),
        "{event}"
    );
    expect(0, &["status"])?;
    agent.stop()
}

/// `KEXEC_FILE_NO_INITRAMFS` (linux/kexec.h).
const KEXEC_FILE_NO_INITRAMFS: libc::c_long = 4;

/// Whether a call got past the gate, whatever the kernel said then.
fn passed(done: libc::c_long) -> Result<Attempt> {
    let error = std::io::Error::last_os_error();
    let refused = done != 0 && error.raw_os_error() == Some(libc::EPERM);
    Ok(if refused { Attempt::Refused } else { Attempt::Ran })
}

/// What the kernel says from a moment on.
struct KernelLog(BufReader<File>);

impl KernelLog {
    fn now() -> Result<Self> {
        let file =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?;
        Ok(Self(BufReader::new(file)))
    }

    /// The first line that is wanted; waits for it.
    fn wait_for(mut self, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let end = std::time::Instant::now() + crate::agent::PATIENCE;
        let mut line = String::new();
        loop {
            line.clear();
            match self.0.read_line(&mut line) {
                Ok(_) if wanted(&line) => return Ok(line),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                Err(error) => return Err(error).context("/dev/kmsg"),
            }
            ensure!(std::time::Instant::now() < end, "the kernel did not say {what}");
        }
    }
}
