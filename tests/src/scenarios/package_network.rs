//! A device whose agent listened to the network itself, as it was before there was a door: the upgrade opens
//! one, as an unprivileged user, and lets it read what was root's alone.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::package::sh;
use crate::{door, pki::Pki};

const OWN: &str = "/etc/portcullis/api";
const ADDRESS: &str = "127.0.0.1:7443";
/// What the package manager remembers of the door, which is nothing where it was not part of the package.
const REMEMBERED: &str =
    "/var/lib/systemd/deb-systemd-helper-enabled/portcullis-network.service.dsh-also";

/// As such a device was before.
pub(super) fn before() -> Result<Pki> {
    ensure!(sh("systemctl is-enabled portcullis-network || true")?.trim() == "disabled");
    // Started by mistake, it says that there is nothing to do, and is no failure.
    sh("systemctl start portcullis-network")?;
    let state = sh("systemctl show --property=ActiveState --value portcullis-network")?;
    ensure!(state.trim() == "inactive", "{state}");
    let journal = sh("journalctl --no-pager -u portcullis-network")?;
    ensure!(journal.contains("there is nothing to do: /etc/portcullis/device.toml"), "{journal}");

    let pki = Pki::new("/root/pki")?;
    for name in ["pump-3", "ann"] {
        pki.make_for(name, &[name, "127.0.0.1"])?;
    }
    fs::create_dir_all(OWN)?;
    fs::set_permissions(OWN, fs::Permissions::from_mode(0o700))?;
    for name in ["pump-3.pem", "pump-3.key", "ca.pem"] {
        let file = Path::new(OWN).join(name);
        fs::copy(pki.path(name), &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    }
    let device = "/etc/portcullis/device.toml";
    fs::write(
        device,
        format!(
            "name = \"pump-3\"\n[api]\nlisten = \"{ADDRESS}\"\ncertificate = \"{OWN}/pump-3.pem\"\n\
             key = \"{OWN}/pump-3.key\"\nclient_ca = \"{OWN}/ca.pem\"\n[[api.client]]\nname = \"ann\"\n\
             role = \"viewer\"\n"
        ),
    )?;
    fs::set_permissions(device, fs::Permissions::from_mode(0o600))?;
    fs::remove_file(REMEMBERED).context("it was never remembered")?;
    Ok(pki)
}

/// The same operators reach it as before.
pub(super) fn after(pki: &Pki) -> Result<()> {
    println!("  {}", door::check("ok", ADDRESS)?["found"]);
    let words = ["status", "--json"];
    let output = Pki::ask_at(&pki.folder, "pump-3=127.0.0.1", 0, "ann", &words)?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(said.to_string().contains("\"mode\":\"enforce\""), "{said}");
    let pid = sh("systemctl show --property=MainPID --value portcullis-network")?;
    let status = fs::read_to_string(format!("/proc/{}/status", pid.trim()))?;
    let user = sh("id --user portcullis-network")?;
    let uid = format!("Uid:\t{}", user.trim());
    for line in [&uid[..], "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        ensure!(status.contains(line), "no {line}: {status}");
    }
    println!(
        "  {}",
        sh("systemd-analyze security --no-pager portcullis-network | tail -n 1")?.trim()
    );
    sh("systemctl is-enabled portcullis-network")?;
    let confined = sh("journalctl --no-pager -u portcullis-network | grep 'confined by itself'")?;
    println!("  {}", confined.lines().last().unwrap_or_default());
    ensure!(!confined.contains("not confined"), "{confined}");

    // With the agent it is stopped, and with the agent it comes again.
    sh("systemctl restart portcullis")?;
    door::check("ok", ADDRESS)?;
    // Whoever takes it out of use is listened to.
    sh("systemctl disable --now portcullis-network")?;
    let check = door::check("warning", "is not there")?;
    ensure!(
        check["mend"].as_str().is_some_and(|mend| mend.contains("systemctl enable --now")),
        "{check}"
    );
    sh("dpkg --install /files/portcullis_0.0.2_*.deb")?;
    ensure!(sh("systemctl is-active portcullis-network || true")?.trim() == "inactive");
    sh("systemctl enable --now portcullis-network")?;
    door::check("ok", ADDRESS)?;
    Ok(())
}
