//! Writing to people and pipes.

use std::{
    fmt::Display,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Failure, OrExit, UNAVAILABLE};
use crate::{
    catalog::SignedBy,
    confine::{ConfineError, Confined},
    event::human::Plain,
};

/// Writes to standard output. That nobody reads any more is not an error: `portcullis … | head`
/// ends quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.or_exit(UNAVAILABLE),
    }
}

/// Writes an error to standard error, whatever becomes of it.
pub fn error(message: &str) {
    let _ = writeln!(io::stderr(), "portcullis: {message}");
}

/// An error about a file, with what to do about it if that is known.
pub fn about(file: &Path, error: &impl Display, help: Option<String>) -> anyhow::Error {
    let help = help.map_or_else(String::new, |help| format!("; {help}"));
    anyhow::anyhow!("{}: {error}{help}", file.display())
}

/// Writes a note to standard error, whatever becomes of it.
pub fn note(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// Says what a process that is there for long cannot do any more. That it can is no reason not to work: its
/// unit and its user confine it as well.
pub fn confined(done: Result<Confined, ConfineError>) {
    match done {
        Ok(confined) if confined.is_anything() => note(&confined.to_string()),
        Ok(nothing) => error(&nothing.to_string()),
        Err(why) => error(&format!("not confined by itself: {why}")),
    }
}

/// Who signed something, and how that is known, in lines that begin with `indent`.
pub fn signed(by: &SignedBy, indent: &str) -> String {
    let how = match (&by.algorithm[..], &by.key[..]) {
        ("", _) | (_, "") => String::new(),
        (algorithm, key) => format!(", {algorithm}, key {}…", &key[..key.len().min(12)]),
    };
    let mut text = format!("{indent}signed by {} ({}{how})\n", by.signer, by.slot);
    for certificate in &by.chain {
        text.push_str(&format!("{indent}  certificate of {}\n", Plain(certificate)));
    }
    for warning in &by.warnings {
        text.push_str(&format!("{indent}  warning: {}\n", Plain(warning)));
    }
    text
}

/// A table without borders, as wide as the terminal at most; in a pipe each row is one line.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    if let Ok(size) = rustix::termios::tcgetwinsize(io::stdout())
        && size.ws_col > 0
    {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(size.ws_col);
    }
    table
}

/// A bar for `total` things, or a spinner if that is 0. Drawn on a terminal only.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    let (bar, style) = if total > 0 {
        (ProgressBar::new(total), "{msg} [{bar:40}] {human_pos}/{human_len} {eta}")
    } else {
        (ProgressBar::new_spinner(), "{spinner} {msg} {human_pos} ({elapsed})")
    };
    // The template is ours, so it is known to be valid; a bar without it still counts.
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
