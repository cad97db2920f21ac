//! Where a file comes from, as far as this machine can tell.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{event::human::Plain, import::dpkg::Owner};

/// Where a file comes from. In the order in which somebody should look: what nobody knows first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A package owns it, and it is not what the package installed.
    Changed {
        /// The package.
        package: String,
    },
    /// There is no file with this content any more where it ran.
    Gone,
    /// Others than root can put files there.
    Open {
        /// The folder.
        folder: PathBuf,
    },
    /// Only root can, and no package did.
    Folder {
        /// The folder.
        folder: PathBuf,
    },
    /// A package owns it, without a sum of it.
    Unverified {
        /// The package.
        package: String,
    },
    /// It is what a package installed.
    Package {
        /// The package.
        package: String,
    },
}

impl Origin {
    /// The origin of a file on this machine.
    pub(super) fn of(path: &Path, owner: Option<&Owner>) -> Self {
        match owner {
            Some(Owner { package, is_intact }) => {
                let package = package.clone();
                match is_intact {
                    Some(true) => Self::Package { package },
                    Some(false) => Self::Changed { package },
                    None => Self::Unverified { package },
                }
            }
            None if is_open(path) => Self::Open { folder: folder(path) },
            None => Self::Folder { folder: folder(path) },
        }
    }

    /// The origin of a file on another machine.
    pub(super) fn elsewhere(path: &Path) -> Self {
        Self::Folder { folder: folder(path) }
    }

    /// Whether a package vouches for it.
    #[must_use]
    pub fn is_package(&self) -> bool {
        matches!(self, Self::Package { .. })
    }
}

fn folder(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

/// Whether somebody else than root can write to the file, or put another one in its place.
fn is_open(path: &Path) -> bool {
    path.ancestors().any(|place| match fs::metadata(place) {
        Ok(metadata) => {
            let is_others = metadata.mode() & 0o002 != 0 || metadata.uid() != 0;
            // The group root is root's own.
            is_others || (metadata.mode() & 0o020 != 0 && metadata.gid() != 0)
        }
        Err(_) => true,
    })
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |folder: &Path| Plain(&folder.to_string_lossy()).to_string();
        match self {
            Self::Changed { package } => {
                write!(f, "of package {package}, and NOT what it installed")
            }
            Self::Gone => write!(f, "not there any more, so that nobody can look at it"),
            Self::Open { folder } => {
                write!(f, "in {}, where others than root can put files", shown(folder))
            }
            Self::Folder { folder } => write!(f, "in {}, of no package", shown(folder)),
            Self::Unverified { package } => {
                write!(f, "of package {package}, which has no sum of it")
            }
            Self::Package { package } => write!(f, "of package {package}, as it was installed"),
        }
    }
}
