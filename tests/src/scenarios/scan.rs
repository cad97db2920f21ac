//! `portcullis scan` on real files, and what other programs make of its manifest.

use std::{
    ffi::OsString,
    fs,
    os::unix::{ffi::OsStringExt, fs::PermissionsExt, process::CommandExt},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::fresh;
use crate::{
    agent::{expect, text},
    attack::{good, install},
};

pub fn scan() -> Result<()> {
    let lab = fresh("/data/scan")?;
    let tree = lab.join("tree");
    fs::create_dir_all(tree.join("deep/er"))?;
    install(&tree.join("program"), &good("scan")?)?;
    fs::hard_link(tree.join("program"), tree.join("deep/linked.dat"))?;
    fs::copy("/files/libevil.so", tree.join("deep/er/no-extension"))?;
    install(&tree.join("script with blanks"), b"#!/usr/bin/env python3\n")?;
    install(&tree.join("new\nline\\back"), b"#!/bin/sh\n")?;
    install(&tree.join(OsString::from_vec(b"not-utf8-\xfe".to_vec())), b"#!/bin/sh\nexit\n")?;
    fs::write(tree.join("library.so"), b"only its name is one")?;
    std::os::unix::fs::symlink("/bin/busybox", tree.join("link"))?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        tree.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )?;
    let giant = fs::File::create(tree.join("giant"))?;
    std::io::Write::write_all(&mut &giant, &good("giant")?)?;
    giant.set_len(100 << 30)?;
    // Another filesystem below, with a program on it.
    fs::create_dir(tree.join("mounted"))?;
    mount("tmpfs", tree.join("mounted"), "tmpfs", MountFlags::empty(), None)?;
    install(&tree.join("mounted/elsewhere"), &good("elsewhere")?)?;
    let module = Command::new("/bin/find").args(["/lib/modules", "-name", "dummy.ko"]).output()?;
    let module = String::from_utf8(module.stdout)?;
    fs::copy(module.lines().next().context("the module dummy")?, tree.join("module"))?;
    let packed = Command::new("/bin/gzip").args(["-c"]).arg(tree.join("module")).output()?;
    fs::write(tree.join("packed-module"), packed.stdout)?;

    let manifest = lab.join("manifest");
    let output = expect(0, &["scan", text(&tree)?, "-o", text(&manifest)?])?;
    let summary = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(summary.contains("8 artifacts") && summary.contains("2 modules"), "{summary}");
    ensure!(
        summary.contains("/data/scan/tree/giant: larger than")
            && summary.contains("/data/scan/tree/mounted"),
        "{summary}"
    );
    ensure!(fs::read_to_string(&manifest).is_err(), "a name that is not UTF-8 was changed");
    let bytes = fs::read(&manifest)?;
    let shown = String::from_utf8_lossy(&bytes).into_owned();
    for wanted in [
        "deep/linked.dat",
        "deep/er/no-extension",
        "script with blanks",
        "new\\nline\\\\back",
        "packed-module",
    ] {
        ensure!(shown.contains(wanted), "{wanted} is missing in:\n{shown}");
    }
    for unwanted in ["library.so", "tree/link", "elsewhere", "fifo"] {
        ensure!(!shown.contains(unwanted), "{unwanted} should not be in:\n{shown}");
    }
    // What is not there is there by the same digest as sha256sum's.
    let check = Command::new("/usr/bin/sha256sum")
        .args(["--check", "--strict", "--quiet"])
        .arg(&manifest)
        .output()?;
    ensure!(check.status.success(), "sha256sum does not accept the manifest: {check:?}");

    // The same files give the same bytes.
    let again = lab.join("again");
    expect(0, &["scan", text(&tree)?, "-o", text(&again)?])?;
    ensure!(fs::read(&again)? == bytes, "two scans differ");

    // A user who may not read everything gets what may be read, and is told of the rest.
    fs::set_permissions(tree.join("deep/er"), fs::Permissions::from_mode(0o000))?;
    fs::set_permissions(lab, fs::Permissions::from_mode(0o777))?;
    let output = Command::new("portcullis")
        .args(["scan", text(&tree)?, "-o", "/data/scan/partly"])
        .uid(65534)
        .gid(65534)
        .output()?;
    let summary = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && summary.contains("deep/er: Permission denied"), "{summary}");
    unmount(tree.join("mounted"), UnmountFlags::DETACH)?;

    // The policy that begins with it is good.
    expect(0, &["policy", "init", "--from", text(&manifest)?, "-o", "/data/scan/first.toml"])?;
    let checked = expect(0, &["policy", "check", "/data/scan/first.toml"])?;
    let said = String::from_utf8(checked.stdout)?;
    // Linked names share a digest.
    ensure!(said.contains("policy first v1 (audit): 7 digests"), "{said}");
    Ok(())
}
