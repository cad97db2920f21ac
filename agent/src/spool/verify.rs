//! Whether records are all there, unchanged and in order.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

use portcullis_common::Digest;
use serde::Deserialize;

use super::{
    chain::{Chain, Place, hash},
    seal::Seal,
};
use crate::trust::key::PublicKey;

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// The file.
    pub file: PathBuf,
    /// Line, counted from 1.
    pub line: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// What is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where.
    pub at: At,
    /// What, for people.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Records, without those that are there twice.
    pub records: u64,
    /// Records that are there twice, as receivers get them after a broken connection.
    pub again: u64,
    /// Checkpoints that one of the keys has signed.
    pub checkpoints: u64,
    /// Records that no checkpoint covers yet.
    pub unsealed: u64,
    /// What the device itself has told to be missing.
    pub told: Vec<String>,
    /// What is not as it was written, in the order of the files.
    pub findings: Vec<Finding>,
}

/// The members of a line that matter here.
#[derive(Deserialize)]
struct Line {
    #[serde(flatten)]
    place: Place,
    #[serde(rename = "type")]
    kind: String,
    sealed: Option<u64>,
    heads: Option<super::chain::Heads>,
    key: Option<String>,
    signature: Option<String>,
}

/// A `dropped` record.
#[derive(Clone, Deserialize)]
struct Told {
    stage: String,
    sink: Option<String>,
    #[serde(rename = "of")]
    chain: Chain,
    first: u64,
    last: u64,
    count: u64,
    #[serde(with = "hex", rename = "before")]
    prev: Digest,
}

/// A record that was seen.
struct Seen {
    hash: Digest,
    at: At,
}

/// Records that are missing between two.
struct Gap {
    chain: Chain,
    first: u64,
    last: u64,
    /// Hash of the record before, and where that is.
    before: (Digest, At),
    /// The record after.
    after: At,
}

#[derive(Default)]
struct Looking {
    report: Report,
    /// The latest record of each chain.
    ends: HashMap<&'static str, (u64, Digest, At)>,
    seen: HashMap<(&'static str, u64), Seen>,
    gaps: Vec<Gap>,
    told: Vec<Told>,
    since_seal: u64,
}

/// Looks at files: the parts of one log in any order, or what a receiver has kept.
///
/// # Errors
/// If a file cannot be read.
pub fn verify(files: &[PathBuf], keys: &[PublicKey]) -> io::Result<Report> {
    let mut files: Vec<_> =
        files.iter().map(|file| Ok((first_record(file)?, file))).collect::<io::Result<_>>()?;
    files.sort();
    let mut looking = Looking::default();
    for (_, file) in files {
        looking.file(file, keys)?;
    }
    Ok(looking.end())
}

/// Number of the first record in a file; the greatest if there is none.
fn first_record(file: &Path) -> io::Result<u64> {
    let about =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
    let reader = BufReader::new(File::open(file).map_err(about)?);
    for line in reader.split(b'\n') {
        if let Ok(line) = std::str::from_utf8(&line.map_err(about)?)
            && let Ok(place) = Place::read(line)
        {
            return Ok(place.record);
        }
    }
    Ok(u64::MAX)
}

impl Looking {
    fn file(&mut self, file: &Path, keys: &[PublicKey]) -> io::Result<()> {
        let mut latest = 0;
        let mut reader = BufReader::new(File::open(file)?);
        for number in 1.. {
            let mut bytes = Vec::new();
            if reader.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let at = At { file: file.to_owned(), line: number };
            let is_whole = bytes.pop_if(|byte| *byte == b'\n').is_some();
            let line = std::str::from_utf8(&bytes).map_err(|error| error.to_string());
            let line = line.and_then(|text| {
                serde_json::from_str::<Line>(text).map_err(|error| error.to_string())
            });
            match line {
                Ok(line) => self.line(&line, &bytes, at, &mut latest, keys),
                // If the record should be there, the one after it misses it.
                Err(_) if !is_whole => self.report.told.push(format!(
                    "{at}: ends in the middle of a record: it is being written just now, or was cut off"
                )),
                Err(why) => self.find(at, format!("is no record: {why}")),
            }
        }
        Ok(())
    }

    fn find(&mut self, at: At, what: String) {
        self.report.findings.push(Finding { at, what });
    }

    fn line(&mut self, line: &Line, bytes: &[u8], at: At, latest: &mut u64, keys: &[PublicKey]) {
        let Place { record, chain, link, prev } = line.place;
        let (word, own) = (chain.word(), hash(bytes));
        if let Some(seen) = self.seen.get(&(word, link)) {
            if seen.hash == own {
                self.report.again += 1;
            } else {
                let what =
                    format!("says that it is {word} {link}, as {} does, and is another", seen.at);
                self.find(at, what);
            }
            return;
        }
        if record <= *latest {
            let what =
                format!("record {record} stands after record {latest}: the order was changed");
            self.find(at.clone(), what);
        }
        *latest = record.max(*latest);
        match self.ends.get(word).cloned() {
            Some((before, head, place)) if link == before + 1 => {
                if prev != head {
                    let what = format!("was changed: {at} carries another hash of it");
                    self.find(place, what);
                }
            }
            Some((before, head, place)) if link > before => self.gaps.push(Gap {
                chain,
                first: before + 1,
                last: link - 1,
                before: (head, place),
                after: at.clone(),
            }),
            // What comes late was told above; its hash is known by who stands after it.
            Some(_) => {}
            None => {
                if link > 1 {
                    let what = format!("begins with {word} {link}: what was before is not here");
                    self.report.told.push(what);
                }
            }
        }
        if self.ends.get(word).is_none_or(|(before, ..)| link > *before) {
            self.ends.insert(word, (link, own, at.clone()));
        }
        self.seen.insert((word, link), Seen { hash: own, at: at.clone() });
        self.report.records += 1;
        self.since_seal += 1;
        match line.kind.as_str() {
            "checkpoint" => self.seal(line, at, keys),
            "dropped" => {
                if let Ok(told) = serde_json::from_slice::<Told>(bytes) {
                    self.told.push(told);
                }
            }
            _ => {}
        }
    }

    fn seal(&mut self, line: &Line, at: At, keys: &[PublicKey]) {
        let (Some(sealed), Some(heads), Some(key), Some(signature)) =
            (line.sealed, line.heads, line.key.clone(), line.signature.clone())
        else {
            return self.find(at, "is a checkpoint without its members: it was changed".into());
        };
        let seal = Seal { sealed, heads, key, signature };
        if !keys.iter().any(|key| hex::encode(key.id()) == seal.key) {
            let key = &seal.key;
            return self.find(at, format!("is sealed by another key than was given: {key}"));
        }
        if !keys.iter().any(|key| seal.is_by(key)) {
            return self.find(at, "its signature is wrong: it was changed".into());
        }
        if line.place.link != heads.main.link + 1 || line.place.prev != heads.main.hash {
            let what = "carries the seal of another place: it was moved or changed";
            return self.find(at, what.into());
        }
        for chain in Chain::ALL {
            let head = heads.of(chain);
            let seen = self.seen.get(&(chain.word(), head.link));
            if let Some(seen) = seen
                && seen.hash != head.hash
            {
                let what = format!("was changed: the checkpoint at {at} has another hash of it");
                let place = seen.at.clone();
                if !self.report.findings.iter().any(|finding| finding.at == place) {
                    self.find(place, what);
                }
            } else if seen.is_none()
                && let Some((last, _, place)) = self.ends.get(chain.word()).cloned()
                && last < head.link
            {
                // In the other chain nothing may follow that would show it.
                let (first, after) = (last + 1, at.clone());
                let before = (self.ends[chain.word()].1, place);
                self.gaps.push(Gap { chain, first, last: head.link, before, after });
                self.ends.insert(chain.word(), (head.link, head.hash, at.clone()));
            }
        }
        self.report.checkpoints += 1;
        self.since_seal = 0;
    }

    fn end(mut self) -> Report {
        for gap in std::mem::take(&mut self.gaps) {
            self.gap(&gap);
        }
        self.report.unsealed = self.since_seal;
        self.report.findings.sort_by(|one, other| one.at.cmp(&other.at));
        self.report
    }

    fn gap(&mut self, gap: &Gap) {
        let word = gap.chain.word();
        let missing = |link: &u64| !self.seen.contains_key(&(word, *link));
        let Some(first) = (gap.first..=gap.last).find(missing) else { return };
        let of_chain: Vec<_> = self.told.iter().filter(|told| told.chain == gap.chain).collect();
        let mut next = first;
        // Told one after the other, whatever the order in which they were told.
        while let Some(told) = of_chain.iter().find(|told| told.first <= next && next <= told.last)
        {
            if next == gap.first && told.first == next && told.prev != gap.before.0 {
                let what = format!("was changed: the device has told another hash of it ({word})");
                let at = gap.before.1.clone();
                return self.find(at, what);
            }
            next = told.last + 1;
        }
        if next > gap.last {
            let told = of_chain.iter().filter(|told| told.last >= first && told.first <= gap.last);
            for told in told {
                let Told { stage, sink, first, last, count, .. } = (*told).clone();
                let sink = sink.map(|sink| format!(" for the sink {sink}")).unwrap_or_default();
                let what = format!(
                    "{word} {first} to {last}: the device has dropped {count} records{sink} ({stage})"
                );
                self.report.told.push(what);
            }
            return;
        }
        let (at, after) = (gap.before.1.clone(), &gap.after);
        let count =
            (next..=gap.last).filter(|link| !self.seen.contains_key(&(word, *link))).count();
        let what = format!(
            "{count} records are missing between this one and {after}: {word} {next} to {}",
            gap.last
        );
        self.find(at, what);
    }
}
