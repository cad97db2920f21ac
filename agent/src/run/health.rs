//! What is checked while the agent runs, and what changed since the last time.

use crate::kernel::check::{Check, State};

/// The latest state of every check.
#[derive(Clone, Debug, Default)]
pub struct Health(Vec<Check>);

impl Health {
    /// Takes in newer results, and returns those whose state differs from before. A check that is
    /// seen for the first time and is well is no change.
    pub fn update(&mut self, checks: Vec<Check>) -> Vec<Check> {
        let mut changed = Vec::new();
        for check in checks {
            match self.0.iter_mut().find(|known| known.id == check.id) {
                Some(known) => {
                    if known.state != check.state {
                        changed.push(check.clone());
                    }
                    *known = check;
                }
                None => {
                    if check.state != State::Ok {
                        changed.push(check.clone());
                    }
                    self.0.push(check);
                }
            }
        }
        changed
    }

    /// Every check.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.0
    }

    /// Those that have failed.
    #[must_use]
    pub fn failed(&self) -> Vec<&Check> {
        self.0.iter().filter(|check| check.state == State::Failed).collect()
    }

    /// The worst state: `ok`, `warning` or `failed`. What could not be tried is a warning.
    #[must_use]
    pub fn worst(&self) -> State {
        let has = |state| self.0.iter().any(|check| check.state == state);
        if has(State::Failed) {
            State::Failed
        } else if has(State::Warning) || has(State::Unknown) {
            State::Warning
        } else {
            State::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_told() {
        let ok = Check::ok("a", "a", "fine");
        let bad = Check::failed("a", "a", "broken", "mend it");
        let mut health = Health::default();
        assert_eq!(health.update(vec![ok.clone()]), []);
        assert_eq!(health.worst(), State::Ok);
        assert_eq!(health.update(vec![bad.clone()]), vec![bad.clone()]);
        assert_eq!(health.update(vec![bad]), []);
        assert_eq!(health.worst(), State::Failed);
        assert_eq!(health.update(vec![ok.clone()]), [ok]);
    }
}
