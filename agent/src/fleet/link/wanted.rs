//! Does what is wanted.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use serde::Deserialize;
use tokio::time::sleep;

use super::{Link, changes::Changes};
use crate::{
    api::{
        client::{Ask, AskError},
        content::Content,
    },
    control::PushAnswer,
    event::PolicyId,
    fleet::{
        FleetError,
        chunks::{self, Kind},
        direct::{self, Found},
        names::{Target, WANTED_STREAM},
        words::{Answered, Outcome, Stored, Wanted, What},
    },
    sync::lock,
};

/// How often something is read again that is known to be there and has not come to every server.
pub(super) const ATTEMPTS: u32 = 6;

/// Exit codes from which on the agent could not do it, rather than would not.
const UNAVAILABLE: u8 = 3;

/// What is to be done next for something that is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Step<'a> {
    Nothing,
    Push {
        bundle: &'a Stored,
        confirm_within: Option<u64>,
    },
    Confirm,
    Rollback {
        because: &'a str,
    },
    /// There is nothing to take back.
    NothingToTakeBack,
}

fn step<'a>(wanted: &'a Wanted, answered: Option<&Answered>) -> Step<'a> {
    let mine = answered.filter(|answered| answered.id == wanted.id);
    match (&wanted.what, mine.map(|mine| (mine.result, mine.confirmed))) {
        (What::Push { bundle, confirm_within, confirmed }, None | Some((Outcome::Waiting, _))) => {
            // Whoever comes late to something that is confirmed need not try it.
            Step::Push { bundle, confirm_within: confirm_within.filter(|_| !confirmed) }
        }
        (What::Push { confirmed: true, .. }, Some((Outcome::Done, false))) => Step::Confirm,
        (What::Rollback { of, because }, None | Some((Outcome::Waiting, _))) => {
            let has_done = answered.is_some_and(|answered| {
                (answered.id == *of && answered.result == Outcome::Done) || mine.is_some()
            });
            if has_done { Step::Rollback { because } } else { Step::NothingToTakeBack }
        }
        _ => Step::Nothing,
    }
}

/// What the agent answers that has changed its policy.
#[derive(Deserialize)]
struct Changed {
    policy: PolicyId,
}

impl Link {
    /// Does what is wanted, for ever.
    pub(super) async fn do_what_is_wanted(&self) -> Result<(), FleetError> {
        let mut changes = Changes::of(self, Target::changed).await?;
        let mut at_least = 0;
        loop {
            changes.looked();
            let again = match self.look(at_least).await {
                Ok(true) => self.pace.look,
                Ok(false) => self.pace.retry,
                Err(error) => {
                    tracing::warn!("what is wanted is not known: {error}");
                    self.pace.retry
                }
            };
            let said = changes.next(again).await?;
            if said.is_some() {
                // Also a way to ask how the device is.
                self.is_asked.store(true, Relaxed);
                self.news.notify_one();
            }
            at_least = said.unwrap_or(0);
        }
    }

    /// Reads what is wanted, and does it; says whether nothing is left to be tried again. It is known
    /// that there is something with at least this number.
    async fn look(&self, at_least: u64) -> Result<bool, FleetError> {
        let mut attempt = 0;
        let newest = loop {
            let (newest, number) = self.newest().await?;
            attempt += 1;
            if number >= at_least || attempt == ATTEMPTS {
                break newest;
            }
            sleep(Duration::from_millis(100) * (1 << attempt)).await;
        };
        let Some(found) = newest else { return Ok(true) };
        let answered = lock(&self.answered).clone();
        if answered.as_ref().is_some_and(|answered| found.time < answered.wanted_at) {
            // Of a server that has fallen behind.
            return Ok(true);
        }
        match Wanted::read(&found.bytes) {
            Ok(wanted) => Ok(self.act(&wanted, &found, answered).await),
            Err(why) => {
                tracing::warn!("what is wanted cannot be understood: {why}");
                Ok(true)
            }
        }
    }

    /// The latest word to this device or a group of it, and the highest number that was seen.
    async fn newest(&self) -> Result<(Option<Found>, u64), FleetError> {
        let mut newest: Option<Found> = None;
        let mut number = 0;
        for target in self.targets() {
            let (client, subject) = (&self.connection.client, target.wanted());
            let Some(found) = direct::last(client, WANTED_STREAM, &subject).await? else {
                continue;
            };
            number = number.max(found.sequence);
            let is_newer = newest
                .as_ref()
                .is_none_or(|best| (best.time, best.sequence) < (found.time, found.sequence));
            if is_newer && !found.is_deleted {
                newest = Some(found);
            }
        }
        Ok((newest, number))
    }

    async fn act(&self, wanted: &Wanted, found: &Found, before: Option<Answered>) -> bool {
        let mut now = Answered {
            id: wanted.id.clone(),
            wanted_at: found.time,
            result: Outcome::Done,
            confirmed: false,
            until: None,
            policy: None,
            message: None,
        };
        let done = match step(wanted, before.as_ref()) {
            Step::Nothing => {
                // Said again to somebody else; an older word is of no interest any more.
                if let Some(before) = before.filter(|before| before.wanted_at < found.time) {
                    self.answer(Answered { wanted_at: found.time, ..before });
                }
                return true;
            }
            Step::NothingToTakeBack => {
                now.message = Some("there is nothing of it here to take back".into());
                Ok(())
            }
            Step::Push { bundle, confirm_within } => {
                self.push(bundle, confirm_within, &mut now).await
            }
            Step::Confirm => {
                if let Some(before) = before {
                    (now.policy, now.until) = (before.policy, before.until);
                }
                self.confirm(&mut now).await
            }
            Step::Rollback { because } => {
                let of = before.and_then(|before| before.policy);
                self.take_back(of, because, &mut now).await
            }
        };
        if let Err((result, message)) = done {
            (now.result, now.message) = (result, Some(message));
        }
        let is_over = now.result != Outcome::Waiting;
        if is_over {
            self.answer(now);
        } else {
            // After a restart it is tried anew anyhow, and what was done before is needed until then.
            self.say_waiting(now);
        }
        is_over
    }

    async fn push(
        &self,
        bundle: &Stored,
        confirm_within: Option<u64>,
        now: &mut Answered,
    ) -> Result<(), (Outcome, String)> {
        if !self.targets().contains(&bundle.at) {
            let message = format!("the bundle lies at {}, which is not for this device", bundle.at);
            return Err((Outcome::Refused, message));
        }
        let client = &self.connection.client;
        let file = chunks::fetch(client, Kind::Bundle, bundle, &self.folder).await;
        let file = file.map_err(|error| (Outcome::Waiting, error.to_string()))?;
        let content = Content::file(file);
        let content = content.map_err(|error| (Outcome::Waiting, error.to_string()))?;
        let ask = Ask::Push { bundle: content, confirm_within };
        let said = self.agent.ask_json::<PushAnswer>(&self.here, &ask).await;
        let PushAnswer { policy, until, warnings, .. } = said.map_err(refused)?;
        (now.confirmed, now.until, now.policy) = (until.is_none(), until, Some(policy));
        now.message = (!warnings.is_empty()).then(|| warnings.join("; "));
        Ok(())
    }

    async fn confirm(&self, now: &mut Answered) -> Result<(), (Outcome, String)> {
        let said = self.agent.ask_json::<Changed>(&self.here, &Ask::Confirm).await;
        said.map_err(refused)?;
        (now.confirmed, now.until) = (true, None);
        Ok(())
    }

    async fn take_back(
        &self,
        of: Option<PolicyId>,
        because: &str,
        now: &mut Answered,
    ) -> Result<(), (Outcome, String)> {
        let here = self.agent.ask_json::<Changed>(&self.here, &Ask::Status).await;
        let here = here.map_err(refused)?.policy;
        let is_there = |of: &PolicyId| (&of.name, of.version) == (&here.name, here.version);
        if !of.as_ref().is_some_and(is_there) {
            // Taking back what stands now would go one step too far.
            now.message = Some("it is not in force here any more".into());
            return Ok(());
        }
        let ask = Ask::Rollback { because: because.to_owned() };
        let said = self.agent.ask_json::<Changed>(&self.here, &ask).await.map_err(refused)?;
        now.policy = Some(said.policy);
        Ok(())
    }
}

/// What the agent's no means: it says no, or it could not be asked.
pub(super) fn refused(error: AskError) -> (Outcome, String) {
    let outcome = match &error {
        AskError::Refused(refusal) if refusal.code < UNAVAILABLE => Outcome::Refused,
        _ => Outcome::Waiting,
    };
    (outcome, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";
    const OTHER: &str = "fedcba9876543210";

    fn stored() -> Stored {
        let at = Target::Group("plant-7".into());
        Stored { at, sha256: "ab".repeat(32), bytes: 1 }
    }

    fn push(confirmed: bool) -> Wanted {
        let what = What::Push { bundle: stored(), confirm_within: Some(300), confirmed };
        Wanted { id: ID.into(), what }
    }

    fn answered(id: &str, result: Outcome, confirmed: bool) -> Answered {
        Answered {
            id: id.into(),
            wanted_at: jiff::Timestamp::UNIX_EPOCH,
            result,
            confirmed,
            until: None,
            policy: None,
            message: None,
        }
    }

    #[test]
    fn everything_is_done_once() {
        let (bundle, because) = (stored(), "a test");
        let pushed = |within| Step::Push { bundle: &bundle, confirm_within: within };
        let done = |confirmed| answered(ID, Outcome::Done, confirmed);
        let other = answered(OTHER, Outcome::Done, true);
        assert_eq!(step(&push(false), None), pushed(Some(300)));
        assert_eq!(step(&push(false), Some(&other)), pushed(Some(300)));
        assert_eq!(step(&push(true), None), pushed(None), "late to what is confirmed");
        assert_eq!(step(&push(false), Some(&done(false))), Step::Nothing);
        assert_eq!(step(&push(true), Some(&done(false))), Step::Confirm);
        assert_eq!(step(&push(true), Some(&done(true))), Step::Nothing);
        let refused = answered(ID, Outcome::Refused, false);
        assert_eq!(step(&push(true), Some(&refused)), Step::Nothing);
        let waiting = answered(ID, Outcome::Waiting, false);
        assert_eq!(step(&push(false), Some(&waiting)), pushed(Some(300)));

        let what = What::Rollback { of: ID.into(), because: because.into() };
        let back = Wanted { id: OTHER.into(), what };
        assert_eq!(step(&back, Some(&done(true))), Step::Rollback { because });
        assert_eq!(step(&back, None), Step::NothingToTakeBack);
        assert_eq!(step(&back, Some(&refused)), Step::NothingToTakeBack);
        assert_eq!(step(&back, Some(&other)), Step::Nothing, "taken back already");
    }
}
