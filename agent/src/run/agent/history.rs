//! What has run, kept on the disk while the agent runs.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use portcullis_common::{Digest, Mode, Rule};

use super::Agent;
use crate::{
    control::{
        HistoryAnswer, Refusal,
        server::{Answer, json},
    },
    durable,
    event::Decision,
    history::{self, History, HistoryError, suspects::Suspect},
    kernel::check::{Check, State},
    run::enforced,
    sync::lock,
};

/// What has run, for other threads to read.
pub(crate) type SharedHistory = Arc<Mutex<History>>;

/// How soon something new is written after the last time. A flash memory wears out by writing.
const NEWS: Duration = Duration::from_secs(5 * 60);

/// How soon numbers and times are written that say nothing new.
const NUMBERS: Duration = Duration::from_secs(6 * 60 * 60);

/// The history and its file.
pub(super) struct Keeping {
    history: SharedHistory,
    file: PathBuf,
    /// When it was last written; none if not yet.
    written: Option<Instant>,
    /// Why it could not be read or written the last time.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Keeping {
    /// Reads what the agent before has kept.
    pub(super) fn start(file: PathBuf) -> Self {
        let (history, trouble) = match History::read(&file) {
            Ok(history) => (history, None),
            Err(HistoryError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                (History::default(), None)
            }
            Err(error) => (History::default(), Some(set_aside(&file, &error))),
        };
        let (history, trouble) = (Arc::new(Mutex::new(history)), Arc::new(Mutex::new(trouble)));
        Self { history, file, written: None, trouble }
    }

    pub(super) fn shared(&self) -> SharedHistory {
        Arc::clone(&self.history)
    }

    /// Remembers what a gate decided.
    pub(super) fn note(&self, time: Timestamp, decision: &Decision) {
        lock(&self.history).note(time, decision);
    }

    /// What has run and would be refused by `rule`.
    pub(super) fn suspects(&self, rule: impl Fn(&Digest) -> Option<Rule>) -> Vec<Suspect> {
        lock(&self.history).suspects(Timestamp::now(), rule)
    }

    fn is_due(&self) -> bool {
        let (changed, has_news) = lock(&self.history).is_changed();
        let rested = |wait| self.written.is_none_or(|written| written.elapsed() >= wait);
        (has_news && rested(NEWS)) || (changed && self.written.is_some() && rested(NUMBERS))
    }

    /// Writes it, and waits until it is on the disk.
    fn write(&mut self) -> io::Result<()> {
        let text = lock(&self.history).take_text();
        self.written = Some(Instant::now());
        history::write(&self.file, &text)
    }

    /// Writes what is not written yet.
    pub(super) fn end(&mut self) {
        let (changed, _) = lock(&self.history).is_changed();
        if changed && let Err(error) = self.write() {
            tracing::warn!("the latest history is lost: {}: {error}", self.file.display());
        }
    }

    fn check(&self) -> Check {
        let (id, title) = ("history", "what has run here is kept");
        let history = lock(&self.history);
        let since = history.since().map_or_else(String::new, |since| format!(" since {since:.0}"));
        let found = format!("{} artifacts{since}", history.len());
        let trouble = lock(&self.trouble).clone();
        match (trouble, history.forgotten()) {
            (Some(trouble), _) => {
                let mend =
                    "make room and let root write there, or choose another folder with --state";
                Check::bad(State::Warning, id, title, trouble, mend)
            }
            (None, 0) => Check::ok(id, title, found),
            (None, forgotten) => {
                let found = format!("{found}, and {forgotten} that had to make room for others");
                let mend = "stop what makes so many different programs, or list the folders that are to \
                            be trusted with `portcullis scan`";
                Check::bad(State::Warning, id, title, found, mend)
            }
        }
    }
}

/// Moves a file away that cannot be read, so that nothing of it is lost. Returns what to tell.
fn set_aside(file: &std::path::Path, error: &HistoryError) -> String {
    let aside = file.with_extension("damaged");
    match std::fs::rename(file, &aside) {
        Ok(()) => format!("{error}; it begins anew, and the old one is {}", aside.display()),
        Err(rename) => format!("{error}; it begins anew, and the old one will be lost: {rename}"),
    }
}

impl Agent {
    pub(super) fn check_history(&mut self) {
        let check = self.history.check();
        self.take_checks(vec![check]);
    }

    /// Writes the history in another thread if it is time. Called each minute.
    pub(super) fn keep_history(&mut self) {
        if durable::is_untidy() {
            tokio::task::spawn_blocking(durable::tidy);
        }
        if self.history.is_due() {
            let text = lock(&self.history.history).take_text();
            self.history.written = Some(Instant::now());
            let (file, trouble) = (self.history.file.clone(), Arc::clone(&self.history.trouble));
            tokio::task::spawn_blocking(move || {
                let written = history::write(&file, &text);
                let told = |error| format!("{} cannot be written: {error}", file.display());
                *lock(&trouble) = written.err().map(told);
            });
        }
        self.check_history();
    }

    /// Enforcement begins, so that what it refuses is refused by decision, now and after a restart.
    pub(super) fn enforcement_begins(&mut self) {
        let rule = |digest: &Digest| self.gates.rule(digest).ok().flatten();
        lock(&self.history.history).settle(rule);
        let kept = enforced::begins(&self.places.enforced(), &self.view().id);
        self.check_enforced("that this device has enforced", kept);
        self.keep_given();
    }

    /// Somebody has decided that the device audits.
    pub(super) fn enforcement_ends(&mut self) {
        let kept = enforced::ends(&self.places.enforced());
        self.check_enforced("that this device audits", kept);
    }

    fn check_enforced(&mut self, what: &str, kept: io::Result<()>) {
        let (id, title) = ("enforced", "the next start knows whether this device enforces");
        let file = self.places.enforced();
        let check = match kept {
            Ok(()) => Check::ok(id, title, file.display().to_string()),
            Err(error) => {
                let found = format!("it will not know {what}: {}: {error}", file.display());
                let mend = "make room and let root write there, and say `portcullis mode` again";
                Check::bad(State::Warning, id, title, found, mend)
            }
        };
        self.take_checks(vec![check]);
    }

    /// Another policy is enforced, so that what it refuses is refused by decision.
    pub(super) fn settle_dropped(&mut self) {
        if self.mode() == Mode::Enforce {
            let rule = |digest: &Digest| self.gates.rule(digest).ok().flatten();
            lock(&self.history.history).settle_dropped(rule);
        }
    }

    /// Lets what ran from a path without the policy's leave not stand in the way any more.
    pub(super) fn expect_denied(&mut self, path: &str) -> Answer {
        match lock(&self.history.history).expect_denied(path) {
            0 => {
                let message = format!(
                    "nothing has run from {} without the policy's leave; `portcullis history --refused`",
                    path.escape_debug()
                );
                Answer::Refused(Refusal { code: 1, message })
            }
            count => json(&serde_json::json!({ "settled": count })),
        }
    }

    /// Writes the history for whoever wants to read it.
    pub(super) fn write_history(&mut self) -> Answer {
        match self.history.write() {
            Ok(()) => json(&HistoryAnswer { file: self.history.file.clone() }),
            Err(error) => {
                let message = format!("{} cannot be written: {error}", self.history.file.display());
                Answer::Refused(Refusal { code: 3, message })
            }
        }
    }
}
