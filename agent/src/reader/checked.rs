//! What has each kind of thing read first, and what is read only once.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    os::unix::ffi::OsStrExt,
    path::Path,
    sync::{Mutex, PoisonError},
};

use portcullis_common::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    Same, Task, Trouble,
    give::{Blocks, Pieces},
    start::Start,
};
use crate::{
    policy::{bundle::Head, trust::Why},
    trust::{Anchor, Trust},
};

/// What is wrong with the form of something that was read to the end.
pub type Form = Result<(), Why>;

/// Documents that are known.
const MAX_KNOWN: usize = 1024;

/// Bytes of what is wrong with one of them.
const MAX_KNOWN_MESSAGE: usize = 512;

/// What this agent has had read to the end, and what was wrong with it. Catalogs are read again whenever one
/// of them changes.
static KNOWN: Mutex<BTreeMap<Digest, Form>> = Mutex::new(BTreeMap::new());

fn failed(trouble: &Trouble, what: impl fmt::Display) -> Why {
    tracing::error!("{what} is refused: {trouble}");
    (trouble.reason(), format!("{trouble}{}", mend(trouble)))
}

const fn mend(trouble: &Trouble) -> &'static str {
    match trouble {
        Trouble::Start(_) => {
            "; the agent's binary must be allowed to start, with /proc mounted and a process to spare"
        }
        _ => "",
    }
}

/// The certificates that lead to trust, for chains to be built as the agent will.
fn anchors(trust: &Trust) -> Vec<&[u8]> {
    let certificates = trust.signers.iter().filter_map(|signer| match &signer.anchor {
        Anchor::Certificate(one) => Some(one.der()),
        Anchor::Key(_) => None,
    });
    certificates.collect()
}

/// Has a policy file read with everything that it names. Returns these files, to be read once more.
///
/// # Errors
/// If they cannot be read to the end, or what is wrong with them.
pub fn policy(file: &Path) -> Result<Same, Why> {
    let mut files = Same::default();
    let task = Task::Policy { file: file.as_os_str().as_bytes().to_vec() };
    let read = Start::default().read(&task, &mut files);
    read.map_err(|trouble| failed(&trouble, file.display()))??;
    Ok(files)
}

/// Has the head of a bundle read, and reads it.
///
/// # Errors
/// If it cannot be read to the end, or what is wrong with it.
pub fn head(file: &File, length: u64, trust: &Trust) -> Result<Head, Why> {
    let anchors = anchors(trust);
    let mut blocks = Blocks::of(file, &anchors);
    let read = Start::default().read(&Task::BundleHead { length }, &mut blocks);
    read.map_err(|trouble| failed(&trouble, "a bundle"))??;
    Head::parse(blocks.given(length), length)
}

/// Has a bundle read, and the policy in it.
///
/// # Errors
/// As for [`policy`].
pub fn bundle(bytes: &[u8], trust: &Trust) -> Result<(), Why> {
    let pieces = [("bundle", bytes)];
    let read = Start::default().read(&Task::Bundle, &mut Pieces(&pieces, &anchors(trust)));
    read.map_err(|trouble| failed(&trouble, "a bundle"))?
}

/// Has a token read. Where no process can be started, the way back in must not depend on it, and the agent
/// reads it alone: it has some thousand bytes.
///
/// # Errors
/// If it cannot be read to the end, or what is wrong with it.
pub fn token(text: &str, trust: &Trust) -> Result<(), Why> {
    let pieces = [("token", text.as_bytes())];
    match Start::default().read(&Task::Token, &mut Pieces(&pieces, &anchors(trust))) {
        Ok(form) => form,
        Err(trouble @ Trouble::Start(_)) => {
            tracing::warn!("a token is read by the agent itself: {trouble}");
            Ok(())
        }
        Err(trouble) => Err(failed(&trouble, "a token")),
    }
}

/// Looks at documents before they are read.
pub trait Check: fmt::Debug + Sync {
    /// Has one read. Returns what is wrong with it.
    ///
    /// # Errors
    /// If it cannot be read to the end.
    fn check(&self, task: &Task, pieces: &[(&str, &[u8])], trust: &Trust) -> Result<Form, Why>;
}

/// Where nothing can be lost: commands, and what was looked at before.
#[derive(Clone, Copy, Debug)]
pub struct Unchecked;

impl Check for Unchecked {
    fn check(&self, _: &Task, _: &[(&str, &[u8])], _: &Trust) -> Result<Form, Why> {
        Ok(Ok(()))
    }
}

/// In the agent.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// Whether the agent starts: then it reads itself what no process can be started for, as it must start.
    pub at_start: bool,
}

impl Check for Checked {
    fn check(&self, task: &Task, pieces: &[(&str, &[u8])], trust: &Trust) -> Result<Form, Why> {
        let anchors = anchors(trust);
        let print = print(task, pieces, &anchors);
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(form) = known().get(&print) {
            return Ok(form.clone());
        }
        match Start::default().read(task, &mut Pieces(pieces, &anchors)) {
            Ok(form) => {
                let is_short = |(_, message): &Why| message.len() <= MAX_KNOWN_MESSAGE;
                if form.as_ref().err().is_none_or(is_short) {
                    let mut known = known();
                    if known.len() >= MAX_KNOWN {
                        known.clear();
                    }
                    known.insert(print, form.clone());
                }
                Ok(form)
            }
            Err(trouble @ Trouble::Start(_)) if self.at_start => {
                tracing::warn!("a catalog is read by the agent itself: {trouble}");
                Ok(Ok(()))
            }
            Err(trouble) => Err(failed(&trouble, shown(task))),
        }
    }
}

fn shown(task: &Task) -> String {
    match task {
        Task::Document { file, .. } => String::from_utf8_lossy(file).into_owned(),
        _ => "a catalog".into(),
    }
}

/// What a document is, byte for byte, with what it is tried with.
fn print(task: &Task, pieces: &[(&str, &[u8])], anchors: &[&[u8]]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(format!("{task:?}"));
    for (name, bytes) in pieces {
        hash.update(format!("\n{name} {}\n", bytes.len()));
        hash.update(bytes);
    }
    for anchor in anchors {
        hash.update(format!("\nanchor {}\n", anchor.len()));
        hash.update(anchor);
    }
    hash.finalize().into()
}
