//! The Debian package: the binary with everything that a device needs besides it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{
    build,
    command::{command, quietly, text_of},
    notices, root, setup,
};

#[derive(clap::Args)]
pub struct Args {
    /// The package's version (default: that of the workspace)
    #[arg(long)]
    version: Option<String>,
}

pub fn main(args: &Args) -> Result<ExitCode> {
    setup::setup(setup::For::Building)?;
    let built = build::build()?;
    let version = args.version.as_deref().unwrap_or(env!("CARGO_PKG_VERSION"));
    let folder = build::target_dir().join("debian");
    let package = make(&built.agent, version, &folder)?;
    println!("{}", package.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes the package of this binary in a folder, and returns its path.
pub fn make(binary: &Path, version: &str, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder)?;
    let work = tempfile::tempdir_in(build::work_dir()?)?;
    let tree = work.path().join("tree");
    let sources = root().join("packaging");
    let document = tree.join("usr/share/doc/portcullis");

    put(binary, &tree.join("usr/bin/portcullis"), 0o755)?;
    for unit in ["portcullis.service", "portcullis-fleet.service", "portcullis-network.service"] {
        put(&sources.join(unit), &tree.join("lib/systemd/system").join(unit), 0o644)?;
    }
    put(&sources.join("sysusers.conf"), &tree.join("usr/lib/sysusers.d/portcullis.conf"), 0o644)?;
    put(&sources.join("tmpfiles.conf"), &tree.join("usr/lib/tmpfiles.d/portcullis.conf"), 0o644)?;
    put(&sources.join("policy.toml"), &tree.join("etc/portcullis/policy.toml"), 0o600)?;
    for name in ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"] {
        put(&root().join(name), &document.join(name), 0o644)?;
    }
    for (from, to) in [
        (root().join("docs"), document.clone()),
        (sources.join("metrics"), document.join("metrics")),
    ] {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            put(&entry.path(), &to.join(entry.file_name()), 0o644)?;
        }
    }
    put(&sources.join("debian/copyright"), &document.join("copyright"), 0o644)?;
    let notices = document.join("third-party-notices");
    fs::write(&notices, notices::text()?)?;
    quietly(command("gzip", ["-9", "-n"]).arg(&notices))?;
    manuals(&tree.join("usr/bin/portcullis"), work.path(), &tree)?;

    let control = tree.join("DEBIAN");
    for name in ["conffiles", "postinst", "prerm", "postrm"] {
        let mode = if name == "conffiles" { 0o644 } else { 0o755 };
        put(&sources.join("debian").join(name), &control.join(name), mode)?;
    }
    let architecture = text_of(&mut command("dpkg", ["--print-architecture"]))?;
    let architecture = architecture.trim();
    let size = text_of(command("du", ["--summarize", "--block-size=1024"]).arg(&tree))?;
    let size = size.split_whitespace().next().context("du says nothing")?;
    let text = fs::read_to_string(sources.join("debian/control"))?
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", size);
    fs::write(control.join("control"), text)?;

    let package = folder.join(format!("portcullis_{version}_{architecture}.deb"));
    quietly(
        command("dpkg-deb", ["--build", "--root-owner-group", "-Zgzip"]).arg(&tree).arg(&package),
    )?;
    Ok(package)
}

/// Manual pages and completions, which the binary itself writes.
fn manuals(binary: &Path, work: &Path, tree: &Path) -> Result<()> {
    let made = work.join("documentation");
    quietly(Command::new(binary).arg("documentation").arg(&made))?;
    for entry in fs::read_dir(made.join("man1"))? {
        let page = entry?;
        put(&page.path(), &tree.join("usr/share/man/man1").join(page.file_name()), 0o644)?;
    }
    // -n: without a time in it, so that the same input gives the same package.
    quietly(command("gzip", ["-9", "-n", "-r"]).arg(tree.join("usr/share/man/man1")))?;
    for (name, place) in [
        ("portcullis.bash", "usr/share/bash-completion/completions/portcullis"),
        ("_portcullis", "usr/share/zsh/vendor-completions/_portcullis"),
        ("portcullis.fish", "usr/share/fish/vendor_completions.d/portcullis.fish"),
    ] {
        put(&made.join("completions").join(name), &tree.join(place), 0o644)?;
    }
    Ok(())
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a place in no folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}
