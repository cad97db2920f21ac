//! What dpkg has installed, verified against the packages' own sums first.
//!
//! The sums are MD5: they tell a file that was changed by accident, and not one that an attacker has
//! made to fit. What goes into the manifest is SHA-256 of what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use indicatif::ProgressBar;
use md5::{Digest as _, Md5};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::{ImportError, Imported, read};
use crate::{policy::manifest::Found, scan};

const STATUS: &str = "var/lib/dpkg/status";
const DIVERSIONS: &str = "var/lib/dpkg/diversions";
const INFO: &str = "var/lib/dpkg/info";

/// An installed package.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Package {
    name: String,
    architecture: String,
    /// Configuration files with their sums.
    conffiles: BTreeMap<PathBuf, String>,
}

/// Reads what packages have installed below `root`: of all of them if `wanted` is empty. What no sum
/// covers is taken only if `unverified` says so. `progress` counts files.
///
/// # Errors
/// If dpkg's own files cannot be read, or a package is not installed.
pub fn import(
    root: &Path,
    wanted: &[String],
    unverified: bool,
    progress: &ProgressBar,
) -> Result<Imported, ImportError> {
    let status = root.join(STATUS);
    let all = packages(&String::from_utf8_lossy(&read(&status)?));
    let is_wanted = |package: &Package| {
        let full = format!("{}:{}", package.name, package.architecture);
        wanted.is_empty() || wanted.iter().any(|name| *name == package.name || *name == full)
    };
    let chosen: Vec<_> = all.into_iter().filter(is_wanted).collect();
    for name in wanted {
        let plain = name.split(':').next().unwrap_or_default();
        if !chosen.iter().any(|package| package.name == plain) {
            return Err(ImportError::new(&status, format!("package {name} is not installed")));
        }
    }
    let diversions = match root.join(DIVERSIONS) {
        path if path.exists() => diversions(&read(&path)?),
        _ => BTreeMap::new(),
    };
    let directory = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| ImportError::new(root, io::Error::from(error)))?;
    let open = |path: &Path| -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW;
        // Links and `..` of another system's files must not lead out of it.
        let inside = path.strip_prefix("/").unwrap_or(path);
        Ok(openat2(&directory, inside, flags, Mode::empty(), ResolveFlags::IN_ROOT)?.into())
    };
    let mut imported = Imported::default();
    for package in &chosen {
        let Some(list) = info(root, package, "list") else {
            imported.leave(package.name.clone(), Path::new(""), "dpkg has no list of its files");
            continue;
        };
        let sums = match info(root, package, "md5sums") {
            Some(path) => sums(&read(&path)?),
            None => BTreeMap::new(),
        };
        for path in read(&list)?.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            progress.inc(1);
            let listed = Path::new(OsStr::from_bytes(path));
            let expected = sums.get(listed).or_else(|| package.conffiles.get(listed));
            let place = match diversions.get(listed) {
                Some((elsewhere, by)) if *by != package.name => elsewhere.as_path(),
                _ => listed,
            };
            let found = open(place)
                .map_err(|error| error.to_string())
                .and_then(|file| look(&file, place, expected.map(String::as_str), unverified));
            match found {
                Ok(None) => {}
                Ok(Some(found)) => imported.carried.push(found),
                // Folders and links are listed too, and a link is the file that it leads to.
                Err(_) if is_no_file(&root.join(place.strip_prefix("/").unwrap_or(place))) => {}
                Err(why) => imported.leave(package.name.clone(), place, why),
            }
        }
    }
    // Files of one content in two packages are one entry each; the writer sorts them.
    Ok(imported)
}

/// Which package a file belongs to, and whether it still is what the package installed; nothing is known
/// of that if no sum covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The package's name.
    pub package: String,
    /// Whether the content is as it was installed.
    pub is_intact: Option<bool>,
}

/// The packages that own files on this machine. Where dpkg has installed nothing, nobody owns anything.
pub fn owners(paths: &BTreeSet<PathBuf>) -> BTreeMap<PathBuf, Owner> {
    let root = Path::new("/");
    let status = read(&root.join(STATUS)).unwrap_or_default();
    let mut found = BTreeMap::new();
    for package in packages(&String::from_utf8_lossy(&status)) {
        let list = info(root, &package, "list").and_then(|list| read(&list).ok());
        let mut sums_of_package = None;
        for line in list.unwrap_or_default().split(|byte| *byte == b'\n') {
            let listed = Path::new(OsStr::from_bytes(line));
            let Some(path) = place_of(listed, paths) else { continue };
            let sums = sums_of_package.get_or_insert_with(|| {
                let file = info(root, &package, "md5sums").and_then(|path| read(&path).ok());
                sums(&file.unwrap_or_default())
            });
            let expected = sums.get(listed).or_else(|| package.conffiles.get(listed));
            let is_intact = expected.map(|expected| {
                let sum = File::open(&path).and_then(|file| md5_of(&file));
                sum.is_ok_and(|sum| sum == *expected)
            });
            found.insert(path, Owner { package: package.name.clone(), is_intact });
        }
    }
    found
}

/// Under which of these paths a listed file lies: packages may list what is in `/usr/bin` as being in
/// `/bin`, which is a link to it.
fn place_of(listed: &Path, paths: &BTreeSet<PathBuf>) -> Option<PathBuf> {
    if let Some(path) = paths.get(listed) {
        return Some(path.clone());
    }
    let merged = Path::new("/usr").join(listed.strip_prefix("/").ok()?);
    paths
        .get(&merged)
        .filter(|path| listed.canonicalize().is_ok_and(|real| real == **path))
        .cloned()
}

fn is_no_file(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| !metadata.is_file())
}

fn look(
    file: &File,
    path: &Path,
    expected: Option<&str>,
    unverified: bool,
) -> Result<Option<Found>, String> {
    let Some((kinds, digest)) = scan::look(file, path)? else { return Ok(None) };
    match expected {
        Some(expected) if md5_of(file).map_err(|error| error.to_string())? != expected => {
            return Err(
                "is not what the package installed; `apt-get install --reinstall` restores it"
                    .into(),
            );
        }
        None if !unverified => {
            return Err("has no sum in its package; --unverified lists it as it is".into());
        }
        _ => {}
    }
    // Between the two readings it may have been changed; what is listed is what was verified.
    match scan::look(file, path)? {
        Some((_, again)) if again == digest => {
            Ok(Some(Found { kinds, path: path.to_owned(), digest }))
        }
        _ => Err("it changed while it was read".into()),
    }
}

fn md5_of(file: &File) -> io::Result<String> {
    use std::io::Seek as _;
    let mut file = file;
    file.rewind()?;
    let (mut hasher, mut buffer) = (Md5::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// One of dpkg's files about a package; those of packages that can be there for several architectures
/// have it in their name.
fn info(root: &Path, package: &Package, what: &str) -> Option<PathBuf> {
    let Package { name, architecture, .. } = package;
    let names = [format!("{name}:{architecture}.{what}"), format!("{name}.{what}")];
    names.iter().map(|name| root.join(INFO).join(name)).find(|path| path.exists())
}

/// The installed packages in dpkg's status.
fn packages(status: &str) -> Vec<Package> {
    let mut found = Vec::new();
    for paragraph in status.split("\n\n") {
        let mut package = Package::default();
        let (mut is_installed, mut field) = (false, "");
        for line in paragraph.lines() {
            if let Some(more) = line.strip_prefix(' ') {
                if field == "Conffiles" {
                    let mut words = more.split(' ');
                    // A third word says that the file is obsolete.
                    if let (Some(path), Some(sum), None) =
                        (words.next(), words.next(), words.next())
                    {
                        package.conffiles.insert(path.into(), sum.into());
                    }
                }
                continue;
            }
            let Some((name, value)) = line.split_once(':') else { continue };
            field = name;
            match name {
                "Package" => package.name = value.trim().into(),
                "Architecture" => package.architecture = value.trim().into(),
                "Status" => is_installed = value.trim().ends_with(" installed"),
                _ => {}
            }
        }
        // A name is part of a path here.
        let is_plain = !package.name.is_empty()
            && !package.name.contains('/')
            && !package.architecture.contains('/');
        if is_installed && is_plain {
            found.push(package);
        }
    }
    found
}

/// The sums of a package by path.
fn sums(text: &[u8]) -> BTreeMap<PathBuf, String> {
    let line = |line: &[u8]| -> Option<(PathBuf, String)> {
        let (sum, path) = line.split_at_checked(32)?;
        let path = path.strip_prefix(b"  ")?;
        let path = Path::new("/").join(OsStr::from_bytes(path));
        Some((path, String::from_utf8(sum.to_ascii_lowercase()).ok()?))
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Where files lie that another package has moved aside, with the package that did.
fn diversions(text: &[u8]) -> BTreeMap<PathBuf, (PathBuf, String)> {
    let lines: Vec<_> = text.split(|byte| *byte == b'\n').collect();
    let path = |line: &[u8]| PathBuf::from(OsStr::from_bytes(line));
    let triples = lines.chunks_exact(3);
    triples
        .map(|one| (path(one[0]), (path(one[1]), String::from_utf8_lossy(one[2]).into_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SCRIPT: &[u8] = b"#!/bin/sh\necho pump\n";

    struct Root(tempfile::TempDir);

    impl Root {
        /// A system with the package `pump`, whose files are as they were installed.
        fn new() -> Self {
            let root = Self(tempfile::tempdir().expect("a folder"));
            root.write(
                STATUS,
                "Package: pump\nStatus: install ok installed\nArchitecture: all\nConffiles:\n \
                 /etc/init.d/pump 00000000000000000000000000000000\n /etc/old \
                 00000000000000000000000000000000 obsolete\nDescription: a pump\n of a plant\n\n\
                 Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\n",
            );
            let sum = hex::encode(Md5::digest(SCRIPT));
            root.write(
                &format!("{INFO}/pump.md5sums"),
                format!("{sum}  usr/bin/pump\n{sum}  usr/bin/moved\n"),
            );
            root.write(
                &format!("{INFO}/pump.list"),
                "/.\n/usr\n/usr/bin\n/usr/bin/pump\n/usr/bin/link\n/usr/bin/moved\n/usr/share/text\n",
            );
            root.write(DIVERSIONS, "/usr/bin/moved\n/usr/bin/moved.real\nother\n");
            root.write("usr/bin/pump", SCRIPT);
            root.write("usr/bin/moved.real", SCRIPT);
            root.write("usr/share/text", "no program");
            std::os::unix::fs::symlink("pump", root.0.path().join("usr/bin/link")).expect("linked");
            root
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, content).expect("written");
        }

        fn import(&self, unverified: bool) -> (Vec<String>, Vec<String>) {
            let imported = import(self.0.path(), &[], unverified, &ProgressBar::hidden());
            let imported = imported.expect("readable");
            let carried = imported.carried.iter().map(|found| found.path.display().to_string());
            let left = imported
                .left
                .iter()
                .map(|left| format!("{} {}", left.path.as_deref().unwrap_or_default(), left.why));
            (carried.collect(), left.collect())
        }
    }

    #[test]
    fn what_is_as_it_was_installed_is_carried_over() {
        let root = Root::new();
        let (carried, left) = root.import(false);
        assert_eq!(carried, ["/usr/bin/pump", "/usr/bin/moved.real"]);
        assert_eq!(left, [""; 0]);
    }

    #[test]
    fn what_was_changed_or_has_no_sum_is_shown() {
        let root = Root::new();
        root.write("usr/bin/pump", "#!/bin/sh\nevil\n");
        root.write("etc/init.d/pump", SCRIPT);
        root.write("usr/lib/late", SCRIPT);
        root.write(
            &format!("{INFO}/pump.list"),
            "/usr/bin/pump\n/etc/init.d/pump\n/usr/lib/late\n/usr/lib/missing\n",
        );
        let (carried, left) = root.import(false);
        assert_eq!(carried, [""; 0]);
        assert!(left[0].starts_with("/usr/bin/pump is not what the package installed"), "{left:?}");
        assert!(left[1].starts_with("/etc/init.d/pump is not what"), "{left:?}");
        assert!(left[2].starts_with("/usr/lib/late has no sum"), "{left:?}");
        assert!(left[3].starts_with("/usr/lib/missing No such file"), "{left:?}");
        assert_eq!(root.import(true).0, ["/usr/lib/late"]);
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let root = Root::new();
        fs::remove_dir_all(root.0.path().join("usr/bin")).expect("removed");
        std::os::unix::fs::symlink("/bin", root.0.path().join("usr/bin")).expect("linked");
        root.write(&format!("{INFO}/pump.list"), "/usr/bin/sh\n/../../../../../bin/sh\n");
        assert_eq!(root.import(true).0, [""; 0]);
    }

    #[test]
    fn only_installed_packages_with_plain_names_count() {
        let status = "Package: a\nStatus: install ok installed\n\nPackage: b\nStatus: deinstall ok \
                      config-files\n\nPackage: ../../etc/c\nStatus: install ok installed\n";
        let names: Vec<_> = packages(status).into_iter().map(|package| package.name).collect();
        assert_eq!(names, ["a"]);
        let root = Root::new();
        let wanted = ["gone".to_owned()];
        let error =
            import(root.0.path(), &wanted, false, &ProgressBar::hidden()).expect_err("gone");
        assert!(error.to_string().ends_with("package gone is not installed"), "{error}");
    }
}
