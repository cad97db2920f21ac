//! Where the files of a policy lay when it was written. That decides nothing: a path in a policy is
//! a comment. It says where looking is worth it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use portcullis_common::Kinds;
use toml::de::{DeTable, DeValue};

use super::{
    Policy,
    manifest::{KINDS, path_in},
};

/// Path and kinds of every entry that names an absolute path. What cannot be read any more, or has
/// changed since, is left out.
#[must_use]
pub fn of(policy: &Policy) -> Vec<(PathBuf, Kinds)> {
    let Some((first, manifests)) = policy.sources.split_first() else { return Vec::new() };
    let mut places = of_policy(first);
    for manifest in manifests {
        places.extend(of_manifest(&fs::read(manifest).unwrap_or_default()));
    }
    places.retain(|(path, _)| path.is_absolute());
    places
}

fn of_policy(file: &Path) -> Vec<(PathBuf, Kinds)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let Ok(table) = DeTable::parse(&text) else { return Vec::new() };
    let entries = match table.get_ref().get("allow").map(|value| value.get_ref()) {
        Some(DeValue::Array(entries)) => entries.iter(),
        _ => return Vec::new(),
    };
    let place = |entry: &DeTable<'_>| {
        let path = entry.get("path")?.get_ref().as_str()?;
        let words = match entry.get("kinds")?.get_ref() {
            DeValue::Array(words) => words.iter().filter_map(|word| word.get_ref().as_str()),
            _ => return None,
        };
        Some((path.into(), Kinds::of_words(words)))
    };
    entries.filter_map(|entry| place(entry.get_ref().as_table()?)).collect()
}

fn of_manifest(bytes: &[u8]) -> Vec<(PathBuf, Kinds)> {
    let mut places = Vec::new();
    // A plain list does not say; anything is possible.
    let mut current = Kinds(!0);
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if let Some(words) = line.strip_prefix(KINDS.as_bytes()) {
            current = Kinds::of_words(String::from_utf8_lossy(words).split_whitespace());
        } else if let Some(path) = path_in(line) {
            places.push((path, current));
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_where_they_stand() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let a = "a".repeat(64);
        let policy = write(
            "p.toml",
            &format!(
                "name = \"p\"\n[[allow]]\ndigest = \"{a}\"\nkinds = [\"library\"]\npath = \"/x\"\n\
                 [[allow]]\ndigest = \"{a}\"\nkinds = [\"script\"]\n"
            ),
        );
        let manifest = write(
            "m",
            &format!("# portcullis manifest 1\n# kinds: library\n\\{a}  /a\\\\b\n{a} *c\n"),
        );
        let policy = Policy { sources: vec![policy, manifest, "gone".into()], ..Policy::empty() };
        let expected = [("/x".into(), Kinds::LIBRARY), ("/a\\b".into(), Kinds::LIBRARY)];
        assert_eq!(of(&policy), expected);
    }
}
