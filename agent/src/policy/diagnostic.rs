//! Mistakes in what an operator wrote, with the place and the mend.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file it is in.
    pub file: PathBuf,
    /// Line, counted from 1; 0 if the file as a whole is meant.
    pub line: u32,
    /// Column in characters, counted from 1; 0 as for `line`.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What was meant or what to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A mistake that concerns the whole file.
    pub fn whole_file(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: 0, column: 0, message: message.into(), help: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with advice, if there is any.
    #[must_use]
    pub fn with_optional_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file name with a newline in it must not forge a line of output.
        write!(f, "{}", self.file.display().to_string().escape_debug())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(help) = &self.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

/// How many mistakes are shown; a file of another format has one on every line.
const SHOWN: usize = 50;

/// All mistakes that were found in one go, in the order of their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// `Err` with the mistakes if there are any.
    ///
    /// # Errors
    /// If `found` is not empty.
    pub fn check(mut found: Vec<Diagnostic>) -> Result<(), Self> {
        if found.is_empty() {
            return Ok(());
        }
        found.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        found.dedup();
        Err(Self(found))
    }

    /// The mistakes.
    #[must_use]
    pub fn as_slice(&self) -> &[Diagnostic] {
        &self.0
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{diagnostic}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n… and {more} more mistakes"),
        }
    }
}

impl std::error::Error for Diagnostics {}

/// A text with its file's name, to turn byte offsets into places.
pub struct Text<'a> {
    file: &'a Path,
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Text<'a> {
    /// Indexes the lines.
    #[must_use]
    pub fn new(file: &'a Path, text: &'a str) -> Self {
        let after_newlines =
            text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        Self { file, text, line_starts: std::iter::once(0).chain(after_newlines).collect() }
    }

    /// Line of a byte offset, counted from 1.
    #[must_use]
    pub fn line(&self, offset: usize) -> u32 {
        u32::try_from(self.line_starts.partition_point(|start| *start <= offset))
            .unwrap_or(u32::MAX)
    }

    /// A mistake at a byte offset.
    #[must_use]
    pub fn at(&self, offset: usize, message: impl Into<String>) -> Diagnostic {
        let line = self.line(offset);
        let start = self.line_starts.get(line as usize - 1).copied().unwrap_or_default();
        let before = self.text.get(start..offset).map_or(0, |text| text.chars().count());
        Diagnostic {
            file: self.file.to_owned(),
            line,
            column: u32::try_from(before + 1).unwrap_or(u32::MAX),
            message: message.into(),
            help: None,
        }
    }
}

/// The one of `known` that was probably meant by `written`, if any is close.
#[must_use]
pub fn closest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&written.to_lowercase(), word), word))
        .filter(|(distance, word)| *distance <= 1 + word.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_and_lines_from_one() {
        let text = Text::new(Path::new("p.toml"), "äb = 1\ncd = 2\n");
        let mistake = text.at(text.text.find("cd").expect("there"), "x");
        assert_eq!((mistake.line, mistake.column), (2, 1));
        let mistake = text.at(text.text.find('=').expect("there"), "x");
        assert_eq!((mistake.line, mistake.column), (1, 4));
        assert_eq!(text.at(text.text.len(), "end").line, 3);
    }

    #[test]
    fn suggests_only_what_is_close() {
        assert_eq!(closest("digets", ["digest", "kinds"]), Some("digest"));
        assert_eq!(closest("Enforced", ["audit", "enforce"]), Some("enforce"));
        assert_eq!(closest("colour", ["digest", "kinds"]), None);
    }

    #[test]
    fn a_newline_in_a_file_name_forges_no_line() {
        let shown = Diagnostic::whole_file(Path::new("a\nb"), "bad").to_string();
        assert_eq!(shown, "a\\nb: bad");
    }
}
