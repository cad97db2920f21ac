//! USBGuard and Portcullis decide about the same devices by the same rules. By hand, as it needs USBGuard's
//! packages, unpacked in /files (docs/testing.md).

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    agent::{PATIENCE, json},
    gadget::{Function, Gadget, prepare},
};

const FOLDER: &str = "/run/beside";

/// Files of rules, and whether all of each is carried over as it is.
const RULES: [(&str, &str, bool); 5] = [
    ("sticks", "allow with-interface equals { 08:*:* }\n", true),
    (
        "first",
        "allow id 0781:5581 serial \"GOOD1\" with-interface one-of { 08:*:* }\n\
         reject with-interface all-of { 08:*:* 03:*:* }\nblock id 0781:* with-interface { 08:06:50 }\n\
         allow with-interface match-all { 03:*:* 09:*:* }\n",
        true,
    ),
    (
        "sets",
        "block with-interface one-of { 03:00:01 03:01:01 }\n\
         allow id one-of { 1050:* 0781:5581 } serial one-of { \"GOOD1\" \"EVIL1\" } with-connect-type \
         \"unknown\"\nreject\n",
        true,
    ),
    (
        "overlapping",
        "allow with-interface equals { 08:*:* 08:*:* }\nallow id 0781:5581 with-interface none-of { 08:*:* }\n",
        false,
    ),
    (
        "lost",
        "block serial \"EVIL1\" if true\nallow id 0781:5581 hash \"AAAA\"\nallow with-interface 08:06:50\n",
        false,
    ),
];

const DEVICES: [(&str, &[Function]); 5] = [
    ("GOOD1", &[Function::Storage]),
    ("EVIL1", &[Function::Storage]),
    ("KEYS1", &[Function::Keyboard]),
    ("BOTH1", &[Function::Storage, Function::Keyboard]),
    ("GOOD1", &[Function::Storage, Function::Keyboard]),
];

/// Shows a table of what both decide. Where the import says that all was carried over they have to be
/// equal, and ours may never let in what USBGuard does not.
pub fn beside() -> Result<()> {
    prepare()?;
    fs::create_dir_all(FOLDER)?;
    let folder = Path::new(FOLDER);
    let mut wrong = 0;
    println!("{:<12} {:<6} {:<18} {:<8} {:<8}", "rules", "serial", "functions", "USBGuard", "ours");
    for (name, rules, is_whole) in RULES {
        let file = folder.join(format!("{name}.conf"));
        fs::write(&file, rules)?;
        let policy = imported(&file, is_whole)?;
        for (serial, functions) in DEVICES {
            let gadget = Gadget::plug(serial, functions)?;
            let ours = ours(&policy, &gadget.port().context("a port")?)?;
            gadget.disconnect()?;
            let daemon = Daemon::start(&file)?;
            let theirs = daemon.decides(&gadget)?;
            drop(daemon);
            drop(gadget);
            let kinds: Vec<_> = functions
                .iter()
                .map(|function| if *function == Function::Storage { "disk" } else { "keyboard" })
                .collect();
            let is_wrong =
                if is_whole { ours != theirs } else { ours == "allow" && theirs != "allow" };
            wrong += usize::from(is_wrong);
            let mark = if is_wrong { "  WRONG" } else { "" };
            println!("{name:<12} {serial:<6} {:<18} {theirs:<8} {ours:<8}{mark}", kinds.join(" "));
        }
    }
    ensure!(wrong == 0, "{wrong} decisions are wrong");
    Ok(())
}

/// Imports rules into a policy.
fn imported(rules: &Path, is_whole: bool) -> Result<PathBuf> {
    let part = rules.with_extension("part");
    let done = Command::new("portcullis")
        .args(["policy", "import", "usbguard", "--force", "-o"])
        .args([&part, rules])
        .status()?;
    ensure!(done.code() == Some(if is_whole { 0 } else { 1 }), "{}: {done}", rules.display());
    let policy = rules.with_extension("toml");
    let text =
        format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{}", fs::read_to_string(part)?);
    fs::write(&policy, text)?;
    Ok(policy)
}

/// What Portcullis would do with the device at a port, in USBGuard's words.
fn ours(policy: &Path, port: &str) -> Result<&'static str> {
    let policy = policy.to_str().context("a plain path")?;
    let list = json(&["usb", "list", "--json", "--policy", policy])?;
    let devices = list["devices"].as_array().context("devices")?;
    let device = devices.iter().find(|one| one["device"]["port"] == port).context("the device")?;
    Ok(match device["state"].as_str() {
        Some("allowed") => "allow",
        Some("would-hold") => "block",
        Some("would-reject") => "reject",
        other => bail!("{other:?}"),
    })
}

/// USBGuard's daemon with a file of rules.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(rules: &Path) -> Result<Self> {
        let folder = Path::new(FOLDER);
        let (log, settings) = (folder.join("log"), folder.join("daemon.conf"));
        let _ = fs::remove_file(&log);
        fs::write(
            &settings,
            format!(
                "RuleFile={}\nImplicitPolicyTarget=block\nPresentDevicePolicy=apply-policy\n\
                 PresentControllerPolicy=keep\nInsertedDevicePolicy=apply-policy\n\
                 AuthorizedDefault=none\nRestoreControllerDeviceState=false\n\
                 DeviceManagerBackend=uevent\nDeviceRulesWithPort=false\nAuditBackend=FileAudit\n\
                 AuditFilePath={}\n",
                rules.display(),
                log.display()
            ),
        )?;
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|folder| format!("/files/{folder}"))
            .join(":");
        let out = fs::File::create(folder.join("daemon.log"))?;
        let child = Command::new("/files/usr/sbin/usbguard-daemon")
            .args(["-P", "-k", "-c"])
            .arg(&settings)
            .env("LD_LIBRARY_PATH", libraries)
            .stdout(Stdio::null())
            .stderr(out)
            .spawn()
            .context("usbguard-daemon")?;
        // It has the root hubs hold what comes.
        let end = Instant::now() + PATIENCE;
        while !holds()? {
            if Instant::now() > end {
                bail!("{}", fs::read_to_string(folder.join("daemon.log"))?);
            }
            sleep(Duration::from_millis(20));
        }
        Ok(Self { child, log })
    }

    /// Plugs a device in, and returns what becomes of it.
    fn decides(&self, gadget: &Gadget) -> Result<&'static str> {
        gadget.connect()?;
        let end = Instant::now() + PATIENCE;
        loop {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            for target in ["allow", "block", "reject"] {
                let is_applied = |line: &str| {
                    line.contains("Policy.Device.Update")
                        && line.contains("0781:5581")
                        && line.contains(&format!("target.new='{target}'"))
                };
                if log.lines().any(is_applied) {
                    return Ok(target);
                }
            }
            if Instant::now() > end {
                bail!("USBGuard says nothing: {log}");
            }
            sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for (hub, _) in hubs().unwrap_or_default() {
            let _ = fs::write(hub, "1");
        }
    }
}

/// The switches of root hubs, and where they stand.
fn hubs() -> Result<Vec<(PathBuf, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(crate::gadget::DEVICES)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("usb") {
            let file = entry.path().join("authorized_default");
            let value = fs::read_to_string(&file)?.trim().to_owned();
            found.push((file, value));
        }
    }
    Ok(found)
}

fn holds() -> Result<bool> {
    Ok(hubs()?.iter().all(|(_, value)| value == "0"))
}
