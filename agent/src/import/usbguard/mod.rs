//! USBGuard's rules, carried over to the part of a policy that is about USB.
//!
//! What comes of it never lets in a device that USBGuard's rules would not let in.

mod carry;
pub mod here;
pub mod language;

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

pub use carry::Known;
use carry::{Carried, carry};
use language::{Target, Written};

use super::{ImportError, Left, read};
use crate::{
    event::human::Plain,
    policy::{quoted, source::Source},
    usb::{
        rules::{Action, Rule},
        written::text_of,
    },
};

/// What came of rules.
#[derive(Debug)]
pub struct UsbPart {
    /// `[usb]`, to be appended to a policy.
    pub text: String,
    /// How many of USBGuard's rules are in it, with those that are in it changed.
    pub carried: usize,
    /// What is not carried over, or not as it was.
    pub left: Vec<Left>,
}

/// Reads rules, of which the first that is about a device decides. Several files are read as one, in
/// this order.
///
/// # Errors
/// If a file cannot be read, or a line is none that USBGuard would start with.
pub fn import(files: &[PathBuf], known: Known<'_>) -> Result<UsbPart, ImportError> {
    let parsed = files.iter().map(|file| {
        let rules = language::parse(&read(file)?).map_err(|mistakes| {
            let shown: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
            ImportError::new(file, shown.join("; "))
        })?;
        Ok((file.as_path(), rules))
    });
    carried(&parsed.collect::<Result<Vec<_>, _>>()?, known)
}

/// Carries rules over, each with the file that it is of.
///
/// # Errors
/// If what is made of them is no policy, which is a mistake of this program.
pub fn carried(rules: &[(&Path, Vec<Written>)], known: Known<'_>) -> Result<UsbPart, ImportError> {
    let mut part = Maker::default();
    for (file, rules) in rules {
        for rule in rules {
            part.take(file, rule, known);
        }
    }
    let text = part.text(rules.iter().map(|(file, _)| *file));
    // Nobody should find it when the policy is applied.
    let whole = format!("name = \"p\"\nversion = 1\nmode = \"audit\"\n{text}");
    if let Err(mistakes) = Source::parse(Path::new("usb.toml"), &whole) {
        let file = rules.first().map_or(Path::new(""), |(file, _)| *file);
        return Err(ImportError::new(file, format!("cannot be written as a policy: {mistakes}")));
    }
    Ok(UsbPart { text, carried: part.carried, left: part.left })
}

#[derive(Default)]
struct Maker {
    body: String,
    carried: usize,
    left: Vec<Left>,
    /// What all devices get that come so far, and the place of the rule that says it.
    rest: Option<(Action, String)>,
}

impl Maker {
    fn take(&mut self, file: &Path, written: &Written, known: Known<'_>) {
        let place = format!("{}:{}", file.display(), written.line);
        if let Some((_, end)) = &self.rest {
            let why = format!("is never reached: {end} is about all devices that come so far");
            self.leave(&place, why);
            return;
        }
        match carry(written, known) {
            Carried::Nothing(why) => self.leave(&place, why),
            Carried::Controller => {
                self.carried += 1;
                self.comment(&place, "is about a controller: it belongs to the machine");
            }
            Carried::Rules(rules, lost) => {
                self.carried += 1;
                let is_for_all = rules.iter().any(is_about_all);
                let rest = match written.target {
                    Target::Allow => Action::Allow,
                    // Not all devices are to be thrown off the bus because of some.
                    Target::Reject if lost.is_empty() => Action::Reject,
                    Target::Reject | Target::Block => Action::Hold,
                };
                if !lost.is_empty() {
                    let lost = lost.join("; ");
                    let why = match written.target {
                        Target::Allow => format!("is carried over in part: it {lost}"),
                        _ if is_for_all => format!(
                            "{lost}. As nothing else in it says what it keeps out, nothing after it is \
                             carried over"
                        ),
                        _ => format!("{lost}. Without that it keeps out more"),
                    };
                    self.leave(&place, why);
                }
                if is_for_all {
                    self.rest = Some((rest, place));
                    return;
                }
                for rule in &rules {
                    self.rule(&place, rule, written);
                }
            }
        }
    }

    fn leave(&mut self, place: &str, why: String) {
        self.comment(place, &why);
        self.left.push(Left { place: place.to_owned(), path: None, why });
    }

    fn comment(&mut self, place: &str, why: &str) {
        let _ = writeln!(self.body, "\n# {}: {}", Plain(place), Plain(why));
    }

    fn rule(&mut self, place: &str, rule: &Rule, written: &Written) {
        let _ = write!(self.body, "\n# {}\n{}", Plain(place), text_of(rule));
        let labels = written.label.iter().flat_map(|set| &set.values);
        for label in labels.take(1) {
            let _ = writeln!(self.body, "comment = {}", quoted(&String::from_utf8_lossy(label)));
        }
    }

    fn text<'a>(&self, files: impl Iterator<Item = &'a Path>) -> String {
        let names: Vec<_> =
            files.map(|file| Plain(&file.display().to_string()).to_string()).collect();
        let default = self.rest.as_ref().map_or(Action::Hold, |(action, _)| *action);
        let default = default.word();
        format!(
            "# USB devices by the rules of USBGuard in {}.\n[usb]\ndefault = \"{default}\"\norder = \
             \"first\"\n{}",
            names.join(", "),
            self.body
        )
    }
}

fn is_about_all(rule: &Rule) -> bool {
    *rule == Rule::new(rule.action, rule.line)
}

#[cfg(test)]
mod tests;
