//! One thing that must hold for the gates to hold, with what was found and the mend.

use serde::Serialize;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// The gates hold, but something is worth knowing.
    Warning,
    /// The gates cannot hold.
    Failed,
    /// Could not be tried.
    Unknown,
}

impl State {
    /// The word for it, as in JSON.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// A check that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// A stable word for it.
    pub id: &'static str,
    /// What it is about, for people.
    pub title: &'static str,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it; none if nothing is to be done.
    pub mend: Option<String>,
}

impl Check {
    /// A check that came out well.
    pub fn ok(id: &'static str, title: &'static str, found: impl Into<String>) -> Self {
        Self { id, title, state: State::Ok, found: found.into(), mend: None }
    }

    /// A check with something to be done.
    pub fn bad(
        state: State,
        id: &'static str,
        title: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self { id, title, state, found: found.into(), mend: Some(mend.into()) }
    }

    /// A check of which the gates depend and that did not come out well.
    pub fn failed(
        id: &'static str,
        title: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::bad(State::Failed, id, title, found, mend)
    }
}

/// The first check that keeps the gates from holding.
#[must_use]
pub fn first_failure(checks: &[Check]) -> Option<&Check> {
    checks.iter().find(|check| check.state == State::Failed)
}
