//! `portcullis catalog show` and `catalog diff`

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use portcullis_common::{Digest, Kinds};
use serde::Serialize;

use super::read_catalog;
use crate::{
    artifact::digest,
    cli::{Failure, OrExit, Outcome, UNAVAILABLE, output},
    event::human::Plain,
    policy::manifest::{kinds_words, path_in},
};

#[derive(clap::Args)]
pub struct Args {
    /// The catalog before
    old: PathBuf,
    /// The catalog after
    new: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What a catalog holds.
#[derive(Serialize)]
struct Shown {
    name: String,
    version: u64,
    entries: usize,
    kinds: BTreeMap<&'static str, usize>,
    withdrawn: Vec<Line>,
}

/// A digest with the path that it is listed under.
#[derive(Clone, Serialize)]
struct Line {
    digest: String,
    kinds: String,
    path: String,
}

pub fn show(file: &Path, json: bool) -> Outcome {
    let (bytes, read, name, version) = read_catalog(file)?;
    let count = |kind| read.entries.iter().filter(|entry| entry.kinds.intersects(kind)).count();
    let kinds = Kinds::WORDS.iter().map(|(kind, word)| (*word, count(*kind)));
    let lines = Lines::of(&bytes);
    let shown = Shown {
        name,
        version,
        entries: read.entries.len(),
        kinds: kinds.filter(|(_, count)| *count > 0).collect(),
        withdrawn: read
            .withdrawn
            .iter()
            .map(|(digest, line)| lines.line(digest, Kinds::NONE, *line))
            .collect(),
    };
    let text = if json {
        serde_json::to_string_pretty(&shown).or_exit(UNAVAILABLE)? + "\n"
    } else {
        let mut text = format!("{} v{}: {} entries\n", shown.name, shown.version, shown.entries);
        // Writing to a string does not fail.
        for (word, count) in &shown.kinds {
            let _ = writeln!(text, "  {count} as {word}");
        }
        for line in &shown.withdrawn {
            let _ = writeln!(text, "  taken back: {}  {}", line.digest, Plain(&line.path));
        }
        text
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What differs.
#[derive(Default, Serialize)]
struct Difference {
    added: Vec<Line>,
    removed: Vec<Line>,
    /// Listed as other kinds than before.
    changed: Vec<Line>,
    withdrawn: Vec<Line>,
}

pub fn diff(args: &Args) -> Outcome {
    let (old, new) = (listed(&args.old)?, listed(&args.new)?);
    let mut difference = Difference { withdrawn: new.withdrawn, ..Difference::default() };
    for (digest, (kinds, line)) in &new.entries {
        match old.entries.get(digest) {
            None => difference.added.push(line.clone()),
            Some((before, _)) if before != kinds => difference.changed.push(line.clone()),
            Some(_) => {}
        }
    }
    let gone = old.entries.iter().filter(|(digest, _)| !new.entries.contains_key(*digest));
    difference.removed = gone.map(|(_, (_, line))| line.clone()).collect();
    let text = if args.json {
        serde_json::to_string_pretty(&difference).or_exit(UNAVAILABLE)? + "\n"
    } else {
        let mut text = format!("{} v{} to {} v{}\n", old.name, old.version, new.name, new.version);
        let groups = [
            ("+", &difference.added),
            ("-", &difference.removed),
            ("~", &difference.changed),
            ("!", &difference.withdrawn),
        ];
        for (mark, lines) in groups {
            for line in lines {
                let _ =
                    writeln!(text, "{mark} {}  {}  {}", line.digest, line.kinds, Plain(&line.path));
            }
        }
        let _ = writeln!(
            text,
            "{} newly allowed, {} not listed any more, {} as other kinds, {} taken back",
            difference.added.len(),
            difference.removed.len(),
            difference.changed.len(),
            difference.withdrawn.len(),
        );
        text
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

struct Listed {
    name: String,
    version: u64,
    entries: BTreeMap<Digest, (Kinds, Line)>,
    withdrawn: Vec<Line>,
}

fn listed(file: &Path) -> Result<Listed, Failure> {
    let (bytes, read, name, version) = read_catalog(file)?;
    let lines = Lines::of(&bytes);
    let mut entries: BTreeMap<Digest, (Kinds, Line)> = BTreeMap::new();
    for entry in &read.entries {
        let known = entries.get(&entry.digest).map_or(Kinds::NONE, |(kinds, _)| *kinds);
        let kinds = known.union(entry.kinds);
        entries.insert(entry.digest, (kinds, lines.line(&entry.digest, kinds, entry.line)));
    }
    let withdrawn = read.withdrawn.iter();
    let withdrawn =
        withdrawn.map(|(digest, line)| lines.line(digest, Kinds::NONE, *line)).collect();
    Ok(Listed { name, version, entries, withdrawn })
}

/// A catalog's or manifest's text by lines, for the paths in it.
pub(in crate::cli) struct Lines<'a>(Vec<&'a [u8]>);

impl<'a> Lines<'a> {
    pub(in crate::cli) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes.split(|byte| *byte == b'\n').collect())
    }

    /// The path in a line, counted from 1; empty if there is none. What is not UTF-8 is replaced.
    pub(in crate::cli) fn path(&self, number: u32) -> String {
        let index = (number as usize).checked_sub(1);
        let line = index.and_then(|index| self.0.get(index)).copied().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let entry = line.strip_prefix(b"# withdrawn:").map_or(line, <[u8]>::trim_ascii_start);
        path_in(entry).unwrap_or_default().to_string_lossy().into_owned()
    }

    fn line(&self, digest: &Digest, kinds: Kinds, number: u32) -> Line {
        let path = self.path(number);
        Line { digest: digest::format(digest), kinds: kinds_words(kinds), path }
    }
}
