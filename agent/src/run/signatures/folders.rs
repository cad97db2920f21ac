//! Folders in which every opening of a file raises a question.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use portcullis_common::Kinds;

use crate::{
    kernel::fanotify::Group,
    policy::{Policy, source::Signs},
    sync::lock,
};

/// The most folders that are watched, those in them included: each keeps an inode in memory.
const MAX_FOLDERS: usize = 16_384;
/// How deep they are followed.
const MAX_DEPTH: u32 = 32;

/// Where they begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tops {
    /// As the policy names them: their files are looked at beforehand, too.
    named: Vec<PathBuf>,
    /// Those of the running kernel's modules, which are looked at only when they are opened:
    /// there are thousands, of which few are ever loaded.
    modules: Option<PathBuf>,
}

impl Tops {
    pub fn of(policy: &Policy) -> Self {
        let trust = &policy.trust;
        let signed = trust.kinds(Signs::FILE).union(trust.kinds(Signs::MODULE));
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let modules = Path::new("/lib/modules").join(release);
        let takes_modules = signed.intersects(Kinds::MODULE) && modules.is_dir();
        // What a process opens has no symbolic links in its path.
        let real = |path: PathBuf| path.canonicalize().unwrap_or(path);
        Self {
            named: policy.signed_folders.iter().cloned().map(real).collect(),
            modules: takes_modules.then(|| real(modules)),
        }
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.named.iter().chain(&self.modules)
    }
}

/// The folders.
#[derive(Default)]
pub struct Folders {
    /// None before they are known.
    tops: Mutex<Option<Tops>>,
    unwatched: Mutex<Vec<String>>,
}

impl Folders {
    /// Takes others, and returns whether they are others. What was watched goes on being so.
    pub fn change(&self, to: Option<Tops>) -> bool {
        let mut tops = lock(&self.tops);
        let differ = *tops != to;
        *tops = to;
        differ
    }

    fn tops(&self) -> Tops {
        lock(&self.tops).clone().unwrap_or_default()
    }

    /// Has the kernel ask about every file in them.
    pub fn watch(&self, group: &Group) {
        let mut unwatched = Vec::new();
        let mut left = MAX_FOLDERS;
        for top in self.tops().all() {
            let mut folders = Vec::new();
            walk(top, 0, &mut |folder| folders.push(folder.to_owned()), &mut |_| ());
            if folders.len() > left {
                unwatched.push(format!("all of {} (too many folders)", top.display()));
                folders.truncate(left);
            }
            left -= folders.len();
            for folder in folders {
                if let Err(error) = group.watch_folder(&folder) {
                    unwatched.push(format!("{} ({error})", folder.display()));
                }
            }
        }
        *lock(&self.unwatched) = unwatched;
    }

    /// Watches the folder of a file too, if it is a new one in a folder that is watched.
    pub fn note(&self, group: &Group, file: &Path) {
        let Some(folder) = file.parent().and_then(|folder| folder.canonicalize().ok()) else {
            return;
        };
        if self.tops().all().any(|top| folder.starts_with(top))
            && let Err(error) = group.watch_folder(&folder)
        {
            lock(&self.unwatched).push(format!("{} ({error})", folder.display()));
        }
    }

    /// Every file in the folders that the policy names.
    pub fn files(&self, mut each: impl FnMut(&Path)) {
        for top in &self.tops().named {
            walk(top, 0, &mut |_| (), &mut each);
        }
    }

    /// All of them, with those in them.
    pub fn all(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for top in self.tops().all() {
            walk(top, 0, &mut |folder| all.push(folder.to_owned()), &mut |_| ());
        }
        all.truncate(MAX_FOLDERS);
        all
    }

    pub fn unwatched(&self) -> Vec<String> {
        lock(&self.unwatched).clone()
    }
}

/// Goes through a folder without leaving its filesystem, or following symbolic links.
fn walk(top: &Path, depth: u32, folder: &mut dyn FnMut(&Path), file: &mut dyn FnMut(&Path)) {
    let Ok(own) = fs::symlink_metadata(top) else { return };
    if !own.is_dir() {
        return;
    }
    folder(top);
    if depth >= MAX_DEPTH {
        return;
    }
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_file() {
            file(&entry.path());
        } else if kind.is_dir() && entry.metadata().is_ok_and(|inner| inner.dev() == own.dev()) {
            walk(&entry.path(), depth + 1, folder, file);
        }
    }
}
