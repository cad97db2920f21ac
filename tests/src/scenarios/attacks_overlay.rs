//! Overlay filesystems: content that changes behind the merged file.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{base_policy, fresh, list};
use crate::{
    agent::{Agent, PATIENCE, Policy},
    attack::{self, Attack, Attempt, evil, exec_path, good, install, map_as_code},
    mapping::{MapFlags, Mapping, ProtFlags},
};

/// An overlay with its layers, mounted anew for each attempt, so that no inode is left from before.
struct Overlay {
    lower: PathBuf,
    upper: PathBuf,
    merged: PathBuf,
}

impl Overlay {
    fn mount(lab: &Path) -> Result<Self> {
        let at = |name: &str| lab.join(name);
        let _ = unmount(at("merged"), UnmountFlags::DETACH);
        for name in ["lower", "upper", "work", "merged"] {
            let _ = fs::remove_dir_all(at(name));
            fs::create_dir(at(name))?;
        }
        Ok(Self { lower: at("lower"), upper: at("upper"), merged: at("merged") })
    }

    /// Mounts one over a file, and returns the merged file's path.
    fn over(lab: &Path, content: &[u8]) -> Result<(Self, PathBuf)> {
        let overlay = Self::mount(lab)?;
        install(&overlay.lower.join("file"), content)?;
        overlay.merge()?;
        let file = overlay.merged.join("file");
        Ok((overlay, file))
    }

    /// Mounts it; what the layers hold by then is merged.
    fn merge(&self) -> Result<()> {
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.lower.display(),
            self.upper.display(),
            self.upper.with_file_name("work").display()
        );
        let options = std::ffi::CString::new(options)?;
        mount("overlay", &self.merged, "overlay", MountFlags::empty(), Some(&*options))
            .context("mounting an overlay")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = unmount(&self.merged, UnmountFlags::DETACH);
    }
}

/// A07, A16: layers that are written behind the merged file, before and after its verdict, and
/// descriptors that show a layer which the file has left.
pub fn behind() -> Result<()> {
    let lab = fresh("/data/overlay")?;
    let (good, evil) = (good("overlay")?, evil("overlay")?);
    let sample = lab.join("sample");
    install(&sample, &good)?;
    let policy = base_policy(&[])?;
    list(&policy, &sample, &["executable", "library"])?;
    super::modprobe("overlay")?;

    let over = |content: &[u8]| Overlay::over(lab, content);
    let runs = |file: &Path| -> Result<()> {
        let status = Command::new(file).status().context("the listed program")?;
        ensure!(status.code() == Some(i32::from(attack::GOOD)), "the listed program: {status}");
        Ok(())
    };
    let overwrite = |file: &Path| overwrite(file, &evil);

    let lower = || {
        let (overlay, file) = over(&good)?;
        runs(&file)?;
        overwrite(&overlay.lower.join("file"))?;
        exec_path(&file)
    };
    let upper = || {
        let (overlay, file) = over(&good)?;
        // Any change of the merged file copies it up.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
        runs(&file)?;
        overwrite(&overlay.upper.join("file"))?;
        exec_path(&file)
    };
    let truncated = || {
        let (overlay, file) = over(&good)?;
        runs(&file)?;
        fs::write(overlay.lower.join("file"), &evil)?;
        exec_path(&file)
    };
    let merged = || {
        let (_overlay, file) = over(&good)?;
        runs(&file)?;
        overwrite(&file)?;
        exec_path(&file)
    };
    // The same answer before and after the write, as a verdict would be made at the first.
    let both = |first: Attempt, second: Attempt| -> Result<Attempt> {
        ensure!(first == second, "judged {first:?} before the write and {second:?} after it");
        Ok(second)
    };
    let open_before = || {
        let (overlay, file) = over(&good)?;
        let writer = OpenOptions::new().write(true).open(overlay.lower.join("file"))?;
        let first = map_as_code(&file)?;
        writer.write_all_at(&evil, 0)?;
        both(first, map_as_code(&file)?)
    };
    let mapped_before = || {
        let (_overlay, file) = over(&good)?;
        let writer = OpenOptions::new().read(true).write(true).open(&file)?;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let mut mapping = Mapping::new(&writer, good.len(), rights, MapFlags::SHARED)?;
        drop(writer);
        // The merged file's inode leaves memory, and what was known of it; the mapping keeps the
        // layer's.
        fs::write("/proc/sys/vm/drop_caches", "2")?;
        let first = map_as_code(&file)?;
        mapping.write_at(0, &evil);
        both(first, map_as_code(&file)?)
    };
    let stale = || {
        let (_overlay, file) = over(&evil)?;
        let old = File::open(&file)?;
        // Copied up, with listed content.
        fs::write(&file, &good)?;
        let code = ProtFlags::READ | ProtFlags::EXEC;
        match Mapping::new(&old, evil.len(), code, MapFlags::PRIVATE) {
            Ok(mapping) => {
                let shown = mapping.read_at(0, evil.len());
                ensure!(shown == evil, "the kernel shows the copy; the attack is void");
                Ok(Attempt::Ran)
            }
            Err(rustix::io::Errno::PERM) => Ok(Attempt::Refused),
            Err(error) => Err(error.into()),
        }
    };
    let mut attacks = vec![
        Attack::unlisted("written through the merged file", &merged),
        Attack::unlisted("the lower layer's file is written", &lower),
        Attack::unlisted("the lower layer's file is replaced by O_TRUNC", &truncated),
        Attack::unlisted("the upper layer's file is written", &upper),
    ];
    if attack::is_old_kernel() {
        unknown_layers(lab, &policy, &attacks)?;
        return right_otherwise(lab, &policy, &good);
    }
    let being_written: &[&str] = &["being-written", "was-mapped"];
    attacks.extend([
        Attack {
            name: "the lower layer's file is open for writing".into(),
            attempt: &open_before,
            reasons: being_written,
        },
        Attack {
            name: "mapped for writing through a merged file that was forgotten".into(),
            attempt: &mapped_before,
            reasons: being_written,
        },
        Attack {
            name: "a descriptor from before the copy".into(),
            attempt: &stale,
            reasons: &["stale-layer"],
        },
    ]);
    attack::run(&policy, &attacks)?;
    right_otherwise(lab, &policy, &good)
}

/// Linux 5.10 says nothing about modules' types: what lies on an overlay is refused, or, if the policy
/// trusts overlays, judged without a look at the layers. The policy does afterwards.
fn unknown_layers(lab: &Path, policy: &Policy, writes: &[Attack<'_>]) -> Result<()> {
    attack::note(
        "overlay",
        "files on overlays are refused on this kernel, unless they are trusted",
    );
    let unlisted = || exec_path(&Overlay::over(lab, &evil("overlay")?)?.1);
    let mapped = || map_as_code(&Overlay::over(lab, &evil("overlay")?)?.1);
    let listed = || map_as_code(&Overlay::over(lab, &good("overlay")?)?.1);
    let tries: [(&str, &dyn Fn() -> Result<Attempt>); 3] = [
        ("exec of an unlisted file", &unlisted),
        ("mapping of an unlisted file", &mapped),
        ("mapping of a listed file", &listed),
    ];
    let attacks = tries.map(|(name, attempt)| Attack {
        name: name.into(),
        attempt,
        reasons: &["layers-unknown"],
    });
    attack::run(policy, &attacks)?;
    policy.append("\n[[filesystem]]\ntype = \"overlay\"\n")?;
    attack::run(policy, writes)
}

fn overwrite(file: &Path, content: &[u8]) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(file)?.write_all_at(content, 0)?)
}

/// A07: a descriptor that is older than the agent, so that the agent did not see its layer being
/// opened. The agent before it did, and the new one notices a write to it, or nobody did, and the
/// descriptor is refused.
pub fn kept_descriptor() -> Result<()> {
    let lab = fresh("/data/overlay")?;
    let (good, evil) = (good("kept")?, evil("kept")?);
    let sample = lab.join("sample");
    install(&sample, &good)?;
    let policy = base_policy(&[])?;
    list(&policy, &sample, &["executable", "library"])?;
    super::modprobe("overlay")?;
    if attack::is_old_kernel() {
        attack::note("overlay-kept-descriptor", "files on overlays are refused on this kernel");
    }
    let start = || Agent::start(&policy, "enforce", &["--skip-preflight"]);
    for is_seen in [true, false] {
        let before = if is_seen { Some(start()?) } else { None };
        let (overlay, file) = Overlay::over(lab, &good)?;
        let kept = File::open(&file)?;
        let code = || attack::map(&kept, ProtFlags::READ | ProtFlags::EXEC);
        if let Some(before) = before {
            before.signal(rustix::process::Signal::KILL)?;
        }
        let agent = start()?;
        // Linux 5.10 refuses whatever lies on an overlay.
        let is_known = is_seen && !attack::is_old_kernel();
        let expected = if is_known { Attempt::Ran } else { Attempt::Refused };
        ensure!(
            code()? == expected,
            "listed content, of a layer seen ({is_seen}): not {expected:?}"
        );
        if !is_seen && !attack::is_old_kernel() {
            ensure!(map_as_code(&file)? == Attempt::Ran, "listed content was refused");
        }
        overwrite(&overlay.lower.join("file"), &evil)?;
        ensure!(
            code()? == Attempt::Refused,
            "what was written behind a descriptor runs; an agent saw it being opened: {is_seen}"
        );
        agent.stop()?;
        ensure!(code()? == Attempt::Ran, "it does not even work without gates");
    }
    Ok(())
}

/// What is listed runs through the merged view, wherever it lies and whatever happens to others.
fn right_otherwise(lab: &Path, policy: &Policy, good: &[u8]) -> Result<()> {
    // The agent has to notice an overlay that is mounted for the first time.
    let _ = Command::new("/bin/rmmod").arg("overlay").status();
    let agent = Agent::start(policy, "enforce", &["--skip-preflight"])?;
    let overlay = Overlay::mount(lab)?;
    for name in ["file", "other"] {
        install(&overlay.lower.join(name), good)?;
    }
    overlay.merge()?;
    let (file, other) = (overlay.merged.join("file"), overlay.merged.join("other"));
    let runs = |file: &Path| Command::new(file).status().map(|status| status.code());
    let wanted = Some(i32::from(attack::GOOD));
    let end = Instant::now() + PATIENCE;
    while runs(&file).ok() != Some(wanted) {
        ensure!(Instant::now() < end, "a listed file of a new overlay never ran");
        sleep(Duration::from_millis(20));
    }
    // Copied up, made anew, and with another file written behind.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700))?;
    ensure!(runs(&file)? == wanted, "a listed file that was copied up was refused");
    install(&overlay.merged.join("new"), good)?;
    ensure!(runs(&overlay.merged.join("new"))? == wanted, "a listed new file was refused");
    ensure!(runs(&other)? == wanted);
    OpenOptions::new().append(true).open(overlay.lower.join("file"))?;
    ensure!(runs(&other)? == wanted, "a listed file was refused after another was written");
    ensure!(map_as_code(&other)? == Attempt::Ran);
    // In a namespace of its own, below another root, as a container has it.
    let status = Command::new("/bin/unshare")
        .args(["-m", "/bin/chroot"])
        .arg(&overlay.merged)
        .arg("/other")
        .status()?;
    ensure!(status.code() == wanted, "a listed file in a container: {status}");
    drop(overlay);
    agent.stop()
}
