//! Programs that the policy does not list, started in every way.

use std::{
    fs,
    io::Write,
    os::unix::{fs::OpenOptionsExt, fs::symlink, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::{base_policy, fresh, list, modprobe, sha256, unmount_soon};
use crate::{
    agent::{Agent, expect},
    attack::{
        self, Attack, Attempt, evil, exec, exec_descriptor, exec_path, good, install, verdict,
    },
    events,
};

/// A01: from ext4, tmpfs, overlayfs and a loop mount made a moment ago; as root and as a user.
pub fn unlisted() -> Result<()> {
    let lab = fresh("/data/lab")?;
    let (lower, upper, work, merged) =
        (lab.join("lower"), lab.join("upper"), lab.join("work"), lab.join("merged"));
    for folder in [&lower, &upper, &work, &merged] {
        fs::create_dir(folder)?;
    }
    install(&lower.join("evil"), &evil("overlay lower")?)?;
    modprobe("overlay")?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    mount(
        "overlay",
        &merged,
        "overlay",
        MountFlags::empty(),
        Some(&*std::ffi::CString::new(options)?),
    )?;

    let ext4 = || {
        install(Path::new("/data/lab/evil"), &evil("ext4")?)?;
        exec_path("/data/lab/evil")
    };
    let tmpfs = || {
        install(Path::new("/tmp/evil"), &evil("tmpfs")?)?;
        exec_path("/tmp/evil")
    };
    let user = || {
        install(Path::new("/tmp/evil-user"), &evil("user")?)?;
        exec(Command::new("/tmp/evil-user").uid(65534).gid(65534))
    };
    let overlay_lower = || exec_path("/data/lab/merged/evil");
    let overlay_upper = || {
        install(Path::new("/data/lab/merged/new"), &evil("overlay upper")?)?;
        exec_path("/data/lab/merged/new")
    };
    let executable_only = || {
        // Without the right to read, which the kernel does not need for exec.
        let path = Path::new("/tmp/evil-x");
        install(path, &evil("execute only")?)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        exec(Command::new(path).uid(65534).gid(65534))
    };
    let result = attack::run(
        &base_policy(&[])?,
        &[
            Attack::unlisted("exec from ext4 as root", &ext4),
            Attack::unlisted("exec from tmpfs as root", &tmpfs),
            Attack::unlisted("exec from tmpfs as a user", &user),
            Attack::unlisted("exec of a file that the user may not read", &executable_only),
            // Linux 5.10 cannot tell how overlays are laid out, so that nothing on them is known.
            Attack {
                name: "exec from an overlay's lower layer".into(),
                attempt: &overlay_lower,
                reasons: &["unlisted", "layers-unknown"],
            },
            Attack {
                name: "exec from an overlay's upper layer".into(),
                attempt: &overlay_upper,
                reasons: &["unlisted", "layers-unknown"],
            },
            Attack::unlisted("exec from a loop mount made a moment ago", &loop_mount),
        ],
    );
    unmount(&merged, UnmountFlags::DETACH)?;
    result
}

fn loop_mount() -> Result<Attempt> {
    let image = Path::new("/data/lab/loop.img");
    let folder = Path::new("/data/lab/loop");
    fs::create_dir_all(folder)?;
    fs::File::create(image)?.set_len(4 << 20)?;
    for command in [
        "/bin/mke2fs -q -F /data/lab/loop.img",
        "/sbin/modprobe -q loop",
        "/bin/mount -t ext4 -o loop /data/lab/loop.img /data/lab/loop",
    ] {
        let mut words = command.split(' ');
        let program = words.next().context("a command")?;
        let output = Command::new(program).args(words).output()?;
        ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    }
    install(&folder.join("evil"), &evil("loop")?)?;
    let attempt = exec_path(folder.join("evil"));
    unmount_soon(folder)?;
    attempt
}

/// A01: from a USB stick.
pub fn usb_stick() -> Result<()> {
    for module in ["xhci_pci", "usb_storage", "sd_mod"] {
        modprobe(module)?;
    }
    fs::create_dir_all("/mnt/stick")?;
    let end = std::time::Instant::now() + crate::agent::PATIENCE;
    while mount("/dev/sda", "/mnt/stick", "ext4", MountFlags::empty(), None).is_err() {
        ensure!(std::time::Instant::now() < end, "the stick did not appear as /dev/sda");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let attempt = || {
        install(Path::new("/mnt/stick/evil"), &evil("stick")?)?;
        exec_path("/mnt/stick/evil")
    };
    let result =
        attack::run(&base_policy(&[])?, &[Attack::unlisted("exec from a USB stick", &attempt)]);
    unmount_soon(Path::new("/mnt/stick"))?;
    result
}

/// A02: through the dynamic loader, by its real name, a symlink and a copy; with the loader itself
/// allowed as a program, so that only the mapping gate is left.
pub fn loader() -> Result<()> {
    let lab = fresh("/tmp/loader")?;
    let evil = lab.join("evil");
    let mut content = fs::read("/usr/bin/true")?;
    content.extend(b"not the one that is listed");
    install(&evil, &content)?;
    let real = fs::canonicalize(loader_path()?)?;
    symlink(&real, lab.join("link"))?;
    fs::copy(&real, lab.join("copy"))?;

    // It is /usr/bin/true with another digest, and so shows that it runs by success.
    let through = |loader: &Path| -> Result<Attempt> {
        let status = Command::new(loader).arg(&evil).stderr(std::process::Stdio::null()).status();
        match status {
            Ok(status) if status.success() => Ok(Attempt::Ran),
            Ok(status) => verdict(status),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Attempt::Refused),
            Err(error) => Err(error.into()),
        }
    };
    let by_name = || through(&real);
    let by_link = || through(&lab.join("link"));
    let by_copy = || through(&lab.join("copy"));
    let attacks = |reasons: &'static [&'static str]| {
        let attempts: [(&str, &dyn Fn() -> Result<Attempt>); 3] =
            [("real name", &by_name), ("symlink", &by_link), ("copy", &by_copy)];
        attempts.map(|(how, attempt)| Attack {
            name: format!("loader by its {how}"),
            attempt,
            reasons,
        })
    };
    // As scanned, the loader is a library only, and is not even started.
    attack::run(&base_policy(&[])?, &attacks(&["wrong-kind"]))?;
    let policy = base_policy(&[])?;
    list(&policy, &real, &["executable"])?;
    attack::run(&policy, &attacks(&["unlisted"]))
}

/// The dynamic loader that programs of this machine name.
fn loader_path() -> Result<String> {
    let content = fs::read("/usr/bin/true")?;
    let start =
        content.windows(4).position(|window| window == b"/lib").context("no interpreter")?;
    let end = content[start..].iter().position(|byte| *byte == 0).context("no end")?;
    Ok(String::from_utf8(content[start..start + end].to_vec())?)
}

/// A04: files that have no name: memfd, `O_TMPFILE`, deleted.
pub fn memory() -> Result<()> {
    let memfd = |seal: bool, content: Vec<u8>| -> Result<Attempt> {
        use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
        let mut file =
            fs::File::from(memfd_create("evil", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
        file.write_all(&content)?;
        if seal {
            fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK)?;
        }
        exec_descriptor(&file)
    };
    let open_memfd = || memfd(false, evil("memfd")?);
    let sealed_memfd = || memfd(true, evil("sealed memfd")?);
    let unnamed = || {
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o700)
            .custom_flags(libc::O_TMPFILE)
            .open("/data")?;
        file.write_all(&evil("tmpfile")?)?;
        use std::os::fd::AsRawFd;
        // Opened anew for reading, as nobody may run what is open for writing.
        let again = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        drop(file);
        exec_descriptor(&again)
    };
    let deleted = || {
        let path = Path::new("/tmp/soon-gone");
        install(path, &evil("deleted")?)?;
        let file = fs::File::open(path)?;
        fs::remove_file(path)?;
        use std::os::fd::AsRawFd;
        exec_path(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    };
    let unsealed: &[&str] = &["unsealed"];
    attack::run(
        &base_policy(&[])?,
        &[
            Attack { name: "exec of a memfd".into(), attempt: &open_memfd, reasons: unsealed },
            Attack::unlisted("exec of a sealed memfd", &sealed_memfd),
            Attack::unlisted("exec of a file made with O_TMPFILE", &unnamed),
            Attack::unlisted("exec of a deleted file", &deleted),
        ],
    )
}

/// A08, A09: names decide nothing, in either direction.
pub fn content_only() -> Result<()> {
    let lab = fresh("/data/names")?;
    let listed = lab.join("listed");
    install(&listed, &good("by content")?)?;
    let policy = base_policy(&[&listed])?;

    let path = lab.join("victim");
    let restore = || install(&path, &good("by content")?);
    let rename_over = || {
        restore()?;
        // Judged once, so that a verdict exists.
        exec_good(&path)?;
        install(&lab.join("other"), &evil("renamed")?)?;
        fs::rename(lab.join("other"), &path)?;
        exec_path(&path)
    };
    let recreated = || {
        restore()?;
        exec_good(&path)?;
        fs::remove_file(&path)?;
        install(&path, &evil("recreated")?)?;
        exec_path(&path)
    };
    let bind_mounted = || {
        restore()?;
        exec_good(&path)?;
        install(&lab.join("other"), &evil("bound")?)?;
        mount_bind(lab.join("other"), &path)?;
        let attempt = exec_path(&path);
        unmount(&path, UnmountFlags::DETACH)?;
        attempt
    };
    let symlink_swapped = || {
        let link = lab.join("link");
        let _ = fs::remove_file(&link);
        restore()?;
        symlink(&path, &link)?;
        exec_good(&link)?;
        install(&lab.join("other"), &evil("swapped")?)?;
        fs::remove_file(&link)?;
        symlink(lab.join("other"), &link)?;
        exec_path(&link)
    };
    attack::run(
        &policy,
        &[
            Attack::unlisted("rename over a listed file", &rename_over),
            Attack::unlisted("unlink and create", &recreated),
            Attack::unlisted("bind mount over a listed file", &bind_mounted),
            Attack::unlisted("symlink swapped", &symlink_swapped),
        ],
    )?;

    // The other direction: a listed file runs under every name.
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    install(Path::new("/tmp/another-name"), &good("by content")?)?;
    exec_good(Path::new("/tmp/another-name"))?;
    std::os::unix::fs::chown("/tmp/another-name", Some(65534), Some(65534))?;
    exec_good(Path::new("/tmp/another-name"))?;
    fs::hard_link(&listed, lab.join("hard"))?;
    exec_good(&lab.join("hard"))?;
    fs::create_dir(lab.join("mounted"))?;
    mount_bind(lab, lab.join("mounted"))?;
    exec_good(&lab.join("mounted/listed"))?;
    unmount(lab.join("mounted"), UnmountFlags::DETACH)?;
    // In another mount namespace, below another root.
    let status = Command::new("/bin/unshare")
        .args(["-m", "/bin/chroot", "/data/names", "/listed"])
        .status()
        .context("unshare and chroot")?;
    ensure!(status.code() == Some(i32::from(attack::GOOD)), "a listed file in a chroot: {status}");
    agent.stop()
}

/// Runs a listed program, and insists that it does run.
fn exec_good(path: &Path) -> Result<()> {
    let status =
        Command::new(path).status().with_context(|| format!("{} is listed", path.display()))?;
    ensure!(
        status.code() == Some(i32::from(attack::GOOD)),
        "{} ended with {status}",
        path.display()
    );
    Ok(())
}

/// A10: scripts, and the programs that their first lines name.
pub fn scripts() -> Result<()> {
    let lab = fresh("/tmp/scripts")?;
    let script = lab.join("script");
    let shell = lab.join("shell");
    fs::copy("/usr/bin/bash", &shell)?;
    let mut other_shell = fs::read("/usr/bin/bash")?;
    other_shell.extend(b"changed");
    install(&lab.join("other-shell"), &other_shell)?;
    let text = |shell: &Path, salt: &str| {
        format!("#!{}\n# {salt}\nexit {}\n", shell.display(), attack::EVIL)
    };
    install(&script, text(&shell, "listed").as_bytes())?;
    let through_other = lab.join("through-other");
    install(&through_other, text(&lab.join("other-shell"), "listed").as_bytes())?;
    let policy = base_policy(&[])?;
    list(&policy, &script, &["script"])?;
    list(&policy, &through_other, &["script"])?;

    let unlisted = || {
        install(&lab.join("unlisted"), text(&shell, "unlisted").as_bytes())?;
        exec_path(lab.join("unlisted"))
    };
    let changed = || {
        install(&lab.join("changed"), text(&shell, "listed").as_bytes())?;
        exec_path(lab.join("changed"))?;
        fs::OpenOptions::new().append(true).open(lab.join("changed"))?.write_all(b"# changed\n")?;
        exec_path(lab.join("changed"))
    };
    let interpreter = || exec_path(&through_other);
    attack::run(
        &policy,
        &[
            Attack::unlisted("an unlisted script", &unlisted),
            Attack::unlisted("a listed script that was changed", &changed),
            Attack::unlisted("a listed script with an unlisted interpreter", &interpreter),
        ],
    )?;
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    ensure!(
        exec_path(&script)? == Attempt::Ran,
        "a listed script with a listed interpreter must run"
    );
    agent.stop()
}

/// A14: a digest that is listed for another kind of artifact; and denial by name.
pub fn kinds() -> Result<()> {
    let lab = fresh("/tmp/kinds")?;
    let (program, library, denied) = (lab.join("program"), lab.join("library"), lab.join("denied"));
    install(&program, &evil("listed as a library")?)?;
    install(&library, &fs::read("/files/libevil.so")?)?;
    install(&denied, &evil("denied")?)?;
    let policy = base_policy(&[])?;
    list(&policy, &program, &["library", "module"])?;
    list(&policy, &library, &["executable", "script"])?;
    policy
        .append(&format!("\n[[deny]]\ndigest = \"{}\"\ncomment = \"bad\"\n", sha256(&denied)?))?;

    let as_program = || exec_path(&program);
    let as_library =
        || attack::library_runs(Command::new("/usr/bin/true").env("LD_PRELOAD", &library));
    let by_name = || exec_path(&denied);
    let wrong_kind: &[&str] = &["wrong-kind"];
    attack::run(
        &policy,
        &[
            Attack {
                name: "exec of what is listed as a library".into(),
                attempt: &as_program,
                reasons: wrong_kind,
            },
            Attack {
                name: "preload of what is listed as a program".into(),
                attempt: &as_library,
                reasons: wrong_kind,
            },
            Attack {
                name: "exec of what is denied by name".into(),
                attempt: &by_name,
                reasons: &["denied"],
            },
        ],
    )?;
    // The event names the rule's place.
    let agent = Agent::start(&policy, "enforce", &["--skip-preflight"])?;
    let mark = events::mark()?;
    as_program()?;
    let event = events::wait_for(mark, "the refusal", |event| {
        events::is_decision(event, "deny", &program)
    })?;
    let rule = &event["rule"];
    ensure!(
        rule["file"] == "/run/policy/policy.toml" && rule["line"].as_u64() > Some(0),
        "{event}"
    );
    ensure!(rule["kinds"] == serde_json::json!(["library", "module"]), "{event}");
    expect(1, &["explain", "/tmp/kinds/program"])?;
    agent.stop()
}

/// While a gate hashes a large file for one task, it decides for others on the same processor.
/// Kernels without `__bpf_prog_enter_sleepable_recur` skip a program that is already running there.
pub fn while_hashing() -> Result<()> {
    let lab = fresh("/data/busy")?;
    let large = lab.join("large");
    fs::File::create(&large)?.set_len(96 << 20)?;
    fs::set_permissions(&large, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let program = lab.join("evil");
    install(&program, &evil("busy")?)?;
    let library = lab.join("library");
    install(&library, &evil("busy library")?)?;
    let agent = Agent::start(&base_policy(&[])?, "enforce", &["--skip-preflight"])?;
    // With cached verdicts nothing would be hashed, so every attempt gets content of its own.
    let (mut attempts, mut ran) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let hashing = scope.spawn(|| {
            // What is mapped is refused at once where the agent hashes; what is to be run waits.
            if attack::is_old_kernel() { exec_path(&large) } else { attack::map_as_code(&large) }
        });
        while !hashing.is_finished() {
            attempts += 1;
            install(&program, &evil(&format!("busy {attempts}"))?)?;
            ran += usize::from(exec_path(&program)? != Attempt::Refused);
            ran += usize::from(attack::map_as_code(&library)? != Attempt::Refused);
        }
        let attempt =
            hashing.join().map_err(|_| anyhow::anyhow!("the hashing thread panicked"))??;
        ensure!(attempt == Attempt::Refused, "the large file was mapped");
        Ok(())
    })?;
    println!("  {attempts} attempts while a large file was hashed, {ran} ran");
    ensure!(attempts > 3, "the hash was over too soon to show anything");
    ensure!(ran == 0, "{ran} of {attempts} attempts ran while the gate was busy");
    agent.stop()
}
