//! Package lists of other Debian releases than the machine's own, kept apart from it: nothing of
//! the machine's configuration is changed, and nothing is installed from them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use portcullis_ebpf_build::cache_dir;

use crate::{
    command::{command, quietly, text_of},
    debian,
};

/// Debian's keys of all its releases, as `debian-archive-keyring` installs them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Lists older than this are fetched anew before the newest kernel is looked for.
const FRESH: Duration = Duration::from_secs(7 * 24 * 3600);

/// Package lists to ask: the machine's own, or those of another release.
pub struct Suite {
    release: Option<&'static str>,
    options: Vec<String>,
    lists: Option<PathBuf>,
}

impl Suite {
    /// The machine's own lists.
    pub fn own() -> Self {
        Self { release: None, options: Vec::new(), lists: None }
    }

    /// Those of another release, by its code name. Fetched by [`Self::update`].
    pub fn of(release: &'static str) -> Result<Self> {
        let folder = cache_dir()?.join("suites").join(release);
        let lists = folder.join("lists");
        let sources = folder.join("sources.list");
        fs::create_dir_all(lists.join("partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        fs::write(&sources, sources_of(release)?)?;
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let options = vec![
            option("Dir::Etc::SourceList", &sources),
            option("Dir::Etc::SourceParts", Path::new("/dev/null")),
            option("Dir::State::Lists", &lists),
            option("Dir::Cache", &folder.join("cache")),
            "Acquire::Languages=none".to_owned(),
        ];
        Ok(Self { release: Some(release), options, lists: Some(lists) })
    }

    /// How it is called in messages.
    pub fn name(&self) -> String {
        self.release.map_or_else(
            || "the machine's package lists".to_owned(),
            |release| format!("Debian's release {release}"),
        )
    }

    /// Whether its lists were fetched lately. The machine's own are not ours to fetch.
    pub fn is_fresh(&self) -> bool {
        let Some(lists) = &self.lists else { return true };
        let age = || SystemTime::now().duration_since(lists.metadata().ok()?.modified().ok()?).ok();
        let has_lists = fs::read_dir(lists).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.path().is_file() && entry.file_name() != "lock")
        });
        has_lists && age().is_some_and(|age| age < FRESH)
    }

    /// Fetches the lists. Does nothing for the machine's own.
    pub fn update(&self) -> Result<()> {
        let Some(lists) = &self.lists else { return Ok(()) };
        eprintln!("fetching the package lists of {}", self.name());
        quietly(self.apt("apt-get").arg("update")).with_context(|| {
            format!(
                "cannot fetch the package lists of {}; if keys are missing, install the newest \
                 debian-archive-keyring",
                self.name()
            )
        })?;
        // The folder's age says when, even if nothing in it has changed.
        let _ = fs::File::open(lists).and_then(|folder| folder.set_modified(SystemTime::now()));
        Ok(())
    }

    /// Names of packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = text_of(self.apt("apt-cache").args(["pkgnames", prefix]))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Downloads packages into a folder.
    pub fn download(&self, packages: &[String], to: &Path) -> Result<()> {
        quietly(self.apt("apt-get").arg("download").args(packages).current_dir(to))?;
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = command(program, ["-q", "-o", "APT::Sandbox::User=root"]);
        apt.args(["-o", "Acquire::Retries=3"]);
        for option in &self.options {
            apt.arg("-o").arg(option);
        }
        apt
    }
}

/// The machine's own Debian sources with another release in the place of its own, so that the same
/// mirror is asked.
fn sources_of(release: &str) -> Result<String> {
    // The unstable release has neither updates nor security updates beside it.
    let is_wanted = |suite: &str| match suite.strip_prefix(debian::RELEASE) {
        Some("") => true,
        Some("-security") => release != "sid",
        _ => false,
    };
    let signed = if Path::new(KEYRING).is_file() {
        format!(" [signed-by={KEYRING}]")
    } else {
        String::new()
    };
    let mut list = String::new();
    for line in debian::sources()?.lines() {
        let words: Vec<_> = line.split(' ').collect();
        if let ["deb", address, suite, components @ ..] = words.as_slice()
            && is_wanted(suite)
        {
            let suite = suite.replacen(debian::RELEASE, release, 1);
            list.push_str(&format!("deb{signed} {address} {suite} {}\n", components.join(" ")));
        }
    }
    ensure!(!list.is_empty(), "the machine's package sources name no Debian {}", debian::RELEASE);
    Ok(list)
}
