//! What our binary contains of others' works, with their licences: whoever passes it on has to pass these on
//! too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::{
    build,
    command::{cargo, command, text_of},
    root,
};

/// How files with a licence or a notice begin, in capitals.
const NAMES: [&str; 5] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];

/// What a static binary contains that is no crate: its library, by which its package is found, and what it is.
const LINKED: [(&str, &str); 2] = [
    (
        "libc.a",
        "the GNU C Library (LGPL-2.1-or-later: whoever wants another one in it builds Portcullis anew)",
    ),
    ("libgcc.a", "libgcc (GPL-3.0-or-later with the GCC Runtime Library Exception)"),
];

/// All of it as text.
pub fn text() -> Result<String> {
    let target = build::host_target()?;
    let mut crates = linked(&root().join("agent"), &target)?;
    crates.extend(linked(&root().join("agent-ebpf"), &target)?);

    let mut text = String::from(
        "The binary of Portcullis contains, besides our own work, that of others:\n\n",
    );
    let mut by_notice = BTreeMap::<String, BTreeSet<&str>>::new();
    for (name, Crate { licence, folder }) in &crates {
        writeln!(text, "{name:<40} {licence}")?;
        for notice in notices(folder)? {
            by_notice.entry(notice).or_default().insert(name);
        }
    }
    writeln!(text, "{:<40} MIT OR Apache-2.0", "the Rust standard library")?;
    for (library, what) in LINKED {
        let (package, version) = package_of(library)?;
        writeln!(text, "{what}: {package} {version}")?;
        let from = Path::new("/usr/share/doc").join(package).join("copyright");
        let notice = fs::read_to_string(&from).with_context(|| from.display().to_string())?;
        by_notice.entry(notice).or_default().insert(library);
    }
    for (notice, names) in by_notice {
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        write!(text, "\n{:=<78}\n{names}\n{:-<78}\n{notice}\n", "", "")?;
    }
    Ok(text)
}

/// A crate of others.
struct Crate {
    licence: String,
    /// Where its source is.
    folder: PathBuf,
}

/// Crates of others, by name and version, that the package in a folder is linked with on a target. What only
/// helps to compile, as macros do, is not among them.
fn linked(folder: &Path, target: &str) -> Result<BTreeMap<String, Crate>> {
    /// What `cargo metadata` tells.
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        version: String,
        license: Option<String>,
        /// None for our own.
        source: Option<String>,
        manifest_path: PathBuf,
    }
    let told =
        |command: &mut Command| text_of(command.args(["--quiet", "--locked"]).current_dir(folder));
    // It knows the sources, and more crates than are linked: features are not looked at.
    let version = ["metadata", "--format-version", "1"];
    let all = told(cargo(version).args(["--filter-platform", target]))?;
    let all: Metadata = serde_json::from_str(&all).context("what cargo metadata says")?;
    let edges = ["tree", "--edges", "normal,no-proc-macro", "--prefix", "none"];
    let tree = told(cargo(edges).args(["--target", target]))?;
    // aya v0.14.0
    let in_tree: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let others = all.packages.into_iter().filter(|package| package.source.is_some());
    let linked = others.filter(|one| in_tree.contains(&(one.name.as_str(), one.version.as_str())));
    linked
        .map(|Package { name, version, license, manifest_path, .. }| {
            let name = format!("{name} {version}");
            let folder = manifest_path.parent().context("a manifest in no folder")?.to_owned();
            let licence = license.unwrap_or_else(|| "its own, see below".into());
            Ok((name, Crate { licence, folder }))
        })
        .collect()
}

/// Debian's package that a static library is from, and its version.
fn package_of(library: &str) -> Result<(String, String)> {
    let path = text_of(&mut command("gcc", [format!("-print-file-name={library}").as_str()]))?;
    let path = fs::canonicalize(path.trim()).with_context(|| format!("gcc knows no {library}"))?;
    let found = text_of(command("dpkg", ["--search"]).arg(path))?;
    let name = found.split(':').next().unwrap_or_default().to_owned();
    let shown = "--showformat=${Version}\n";
    let version = text_of(&mut command("dpkg-query", ["--show", shown, &name]))?;
    Ok((name, version.lines().next().unwrap_or_default().to_owned()))
}

/// The texts of licences and notices in a crate's folder.
fn notices(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if NAMES.iter().any(|begin| name.starts_with(begin)) && entry.file_type()?.is_file() {
            let text = fs::read(entry.path())?;
            texts.push(String::from_utf8_lossy(&text).trim().replace("\r\n", "\n"));
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_named_and_what_only_helps_is_not() {
        let text = text().expect("told");
        let names: Vec<_> = text.lines().map_while(|line| line.split("  ").next()).collect();
        let has = |name: &str| names.iter().any(|one| one.starts_with(&format!("{name} ")));
        for linked in ["aya", "aya-ebpf", "tokio", "rustls", "ring"] {
            assert!(has(linked), "{linked} is missing");
        }
        // A macro, a dependency of tests, one of a build script, and one of another system.
        for other in ["serde_derive", "rcgen", "portcullis-ebpf-build", "windows-sys"] {
            assert!(!has(other), "{other} is there");
        }
        assert!(text.contains("GNU C Library"));
    }
}
