//! The Debian package on a clean Debian: installed, enforced, upgraded without a gap, purged.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{package_network, sha256};
use crate::{
    agent::{expect, json, portcullis},
    attack::{Attempt, evil, exec_path, install},
};

const EVIL: &str = "/tmp/evil";
const POLICY: &str = "/etc/portcullis/policy.toml";

/// Runs a line, insists on success, and returns what it printed.
pub(super) fn sh(line: &str) -> Result<String> {
    let output = Command::new("/bin/sh").args(["-c", line]).output()?;
    let all = [&output.stdout[..], &output.stderr].concat();
    let all = String::from_utf8_lossy(&all).into_owned();
    ensure!(output.status.success(), "`{line}` gave {}: {all}", output.status);
    Ok(all)
}

fn agents_pid() -> Result<String> {
    Ok(sh("systemctl show --property=MainPID --value portcullis")?.trim().to_owned())
}

/// What the agent's unit is given besides: a system call that is not on its list ends the agent, where it is
/// only refused otherwise, so that the list is known to have all that is called.
const STRICT: &str = "/etc/systemd/system/portcullis.service.d/strict.conf";

pub(super) fn forbid_strictly() -> Result<()> {
    fs::create_dir_all(Path::new(STRICT).parent().context("a folder")?)?;
    fs::write(STRICT, "[Service]\nSystemCallErrorNumber=kill\n")?;
    sh("systemctl daemon-reload").map(drop)
}

/// Fails if the agent called what is not on the list since [`forbid_strictly`].
pub(super) fn nothing_was_forbidden() -> Result<()> {
    let ended = sh("journalctl --no-pager -u portcullis | grep -E 'status=[0-9]+/SYS' || true")?;
    ensure!(ended.is_empty(), "it called what is not on the list: {ended}");
    fs::remove_file(STRICT)?;
    sh("systemctl daemon-reload").map(drop)
}

/// From `dpkg --install` to `dpkg --purge`.
pub fn life() -> Result<()> {
    install(Path::new(EVIL), &evil("package")?)?;
    forbid_strictly()?;
    sh(
        "systemctl is-system-running --wait > /dev/null; dpkg --install /files/portcullis_0.0.1_*.deb",
    )?;
    sh("systemctl is-active portcullis && systemctl is-enabled portcullis")?;
    let status: Value = serde_json::from_slice(&portcullis(&["status", "--json"])?.stdout)?;
    ensure!(status["mode"] == "audit" && status["backend"] == "bpf-lsm", "{status}");
    let failed = |check: &&Value| check["state"] == "failed";
    let failed = status["checks"].as_array().context("checks")?.iter().find(failed);
    ensure!(failed.is_none(), "{failed:?}");
    for file in [
        "/usr/share/man/man1/portcullis-policy-push.1.gz",
        "/usr/share/bash-completion/completions/portcullis",
        "/usr/share/doc/portcullis/commissioning.md",
        "/usr/share/doc/portcullis/copyright",
        "/usr/share/doc/portcullis/third-party-notices.gz",
    ] {
        ensure!(Path::new(file).is_file(), "no {file}");
    }
    ensure!(exec_path(EVIL)? == Attempt::Ran, "audit mode has stopped something");
    println!("  {}", sh("systemd-analyze security --no-pager portcullis | tail -n 1")?.trim());
    only_what_is_listed()?;

    // Everything that is installed, and the package that comes next with its scripts.
    sh("mkdir /root/next && dpkg-deb --raw-extract /files/portcullis_0.0.2_*.deb /root/next")?;
    expect(
        0,
        &["scan", "-o", "/etc/portcullis/device.manifest", "/usr", "/var/lib/dpkg", "/root/next"],
    )?;
    let next = sha256(Path::new("/root/next/usr/bin/portcullis"))?;
    ensure!(next != sha256(Path::new("/usr/bin/portcullis"))?, "it would be no upgrade");
    let policy = format!(
        "name = \"device\"\nversion = 2\nmode = \"enforce\"\ninclude = [\"device.manifest\"]\n\
         [agent]\ndigests = [\"{next}\"]\n"
    );
    fs::write(POLICY, &policy)?;
    sh("systemctl restart portcullis")?;
    ensure!(json(&["status", "--json"])?["mode"] == "enforce");
    let pki = package_network::before()?;
    upgrade()?;
    package_network::after(&pki)?;
    ensure!(sh("dpkg-query --show --showformat '${Version}' portcullis")? == "0.0.2");
    ensure!(fs::read_to_string(POLICY)? == policy, "the operator's policy was replaced");

    // The service manager brings it back when it was killed, and the gates decide meanwhile.
    let before = agents_pid()?;
    sh("systemctl kill --signal=KILL portcullis")?;
    ensure!(exec_path(EVIL)? == Attempt::Refused, "the gates have gone with the agent");
    sh(
        "for i in $(seq 100); do systemctl is-active --quiet portcullis && exit 0; sleep 0.3; done; exit 1",
    )?;
    ensure!(agents_pid()? != before, "it was not started again");

    sh("dpkg --purge portcullis")?;
    nothing_was_forbidden()?;
    ensure!(exec_path(EVIL)? == Attempt::Ran, "gates are left");
    for left in ["/etc/portcullis", "/var/lib/portcullis", "/usr/bin/portcullis", "/run/portcullis"]
    {
        ensure!(!Path::new(left).exists(), "{left} is left");
    }
    Ok(())
}

/// The agent's system calls are those of a list, and what it has no business with is not on it.
fn only_what_is_listed() -> Result<()> {
    let status = fs::read_to_string(format!("/proc/{}/status", agents_pid()?))?;
    ensure!(status.contains("Seccomp:\t2"), "no filter: {status}");
    let list = sh("systemctl show --property=SystemCallFilter --value portcullis")?;
    let list: Vec<_> = list.split_whitespace().collect();
    ensure!(list.contains(&"bpf") && !list[0].starts_with('~'), "no list: {list:?}");
    for call in [
        "ptrace",
        "process_vm_writev",
        "pidfd_getfd",
        "setns",
        "unshare",
        "kexec_load",
        "reboot",
        "swapon",
        "settimeofday",
        "open_by_handle_at",
        "keyctl",
        "setuid",
        "chown",
        "io_uring_setup",
        "delete_module",
        "pivot_root",
        "move_mount",
        "userfaultfd",
        "iopl",
        "acct",
        "quotactl",
        "personality",
    ] {
        ensure!(!list.contains(&call), "{call} is on the list");
    }
    Ok(())
}

/// Tries to start what no policy lists, again and again, while the package is upgraded.
fn upgrade() -> Result<()> {
    let (over, tries) = (AtomicBool::new(false), AtomicU64::new(0));
    let before = agents_pid()?;
    thread::scope(|scope| {
        let attacker = scope.spawn(|| -> Result<()> {
            while !over.load(Relaxed) {
                ensure!(exec_path(EVIL)? == Attempt::Refused, "it ran during the upgrade");
                tries.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        let upgraded = sh("dpkg --install /files/portcullis_0.0.2_*.deb");
        over.store(true, Relaxed);
        let attacked = attacker.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?;
        upgraded.map(drop).and(attacked)
    })?;
    let tries = tries.into_inner();
    println!("  {tries} attempts during the upgrade, all refused");
    ensure!(tries > 10 && agents_pid()? != before, "{tries} attempts, agent {before}");
    ensure!(json(&["status", "--json"])?["mode"] == "enforce");
    Ok(())
}
