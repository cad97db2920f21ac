//! Tells of those who are refused, but not of each: whoever knocks a thousand times a second must not
//! fill the log.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::{sync::mpsc, time::interval};

use super::Told;
use crate::{event::AccessRefused, sync::lock};

/// At most one record of each reason in this time.
const EVERY: Duration = Duration::from_secs(10);

/// Somebody who was refused, or many of whom this is the latest.
pub trait Refused {
    /// Why, as a stable word.
    fn reason(&self) -> &'static str;

    /// How many.
    fn count(&mut self) -> &mut u64;
}

impl Refused for AccessRefused {
    fn reason(&self) -> &'static str {
        self.reason
    }

    fn count(&mut self) -> &mut u64 {
        &mut self.count
    }
}

struct Reason<R> {
    told: Option<Instant>,
    /// The latest, with how many there were since the last record.
    waiting: Option<R>,
}

impl<R> Default for Reason<R> {
    fn default() -> Self {
        Self { told: None, waiting: None }
    }
}

/// Tells of a record, or gives it back if that cannot be done now.
type Tell<R> = Box<dyn Fn(R) -> Result<(), R> + Send + Sync>;

/// Who was refused.
pub struct Refusals<R> {
    tell: Tell<R>,
    reasons: Mutex<HashMap<&'static str, Reason<R>>>,
}

impl Refusals<AccessRefused> {
    /// Tells the agent's loop of them.
    pub fn of_agent(tell: mpsc::Sender<Told>) -> Self {
        Self::new(Box::new(move |refused| {
            tell.try_send(Told::Refused(Box::new(refused))).or_else(|error| {
                match error.into_inner() {
                    Told::Refused(refused) => Err(*refused),
                    Told::Check(_) => Ok(()),
                }
            })
        }))
    }
}

impl<R: Refused> Refusals<R> {
    /// Tells of them so.
    pub fn new(tell: Tell<R>) -> Self {
        Self { tell, reasons: Mutex::default() }
    }

    /// Somebody was refused.
    pub fn add(&self, mut refused: R) {
        let mut reasons = lock(&self.reasons);
        let reason = reasons.entry(refused.reason()).or_default();
        let before = reason.waiting.take().map_or(0, |mut waiting| *waiting.count());
        let count = refused.count();
        *count = count.saturating_add(before);
        reason.waiting = Some(refused);
        self.tell_of(reason, Instant::now());
    }

    /// Tells of those who wait to be told of.
    pub fn tell(&self) {
        let now = Instant::now();
        lock(&self.reasons).values_mut().for_each(|reason| self.tell_of(reason, now));
    }

    /// Tells of them for ever, as they become due.
    pub async fn go_on(&self) {
        let mut ticks = interval(EVERY);
        loop {
            ticks.tick().await;
            self.tell();
        }
    }

    fn tell_of(&self, reason: &mut Reason<R>, now: Instant) {
        if reason.told.is_some_and(|told| now.duration_since(told) < EVERY) {
            return;
        }
        let Some(refused) = reason.waiting.take() else { return };
        reason.told = Some(now);
        // Whoever is told has more to do now, perhaps; then the next record counts it.
        reason.waiting = (self.tell)(refused).err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(reason: &'static str) -> AccessRefused {
        let address = ([10, 0, 0, 1], 1).into();
        AccessRefused { reason, message: String::new(), count: 1, address, by: None }
    }

    #[test]
    fn many_are_one_record() {
        let (tell, mut told) = mpsc::channel(8);
        let refusals = Refusals::of_agent(tell);
        for _ in 0..1000 {
            refusals.add(refused("role"));
            refusals.add(refused("no-tls"));
        }
        let mut counts = Vec::new();
        while let Ok(Told::Refused(one)) = told.try_recv() {
            counts.push((one.reason, one.count));
        }
        assert_eq!(counts, [("role", 1), ("no-tls", 1)]);
        // The rest comes later, and is not lost while the agent is busy.
        for reason in lock(&refusals.reasons).values_mut() {
            reason.told = None;
        }
        refusals.tell();
        let Ok(Told::Refused(one)) = told.try_recv() else { panic!("nothing was told") };
        assert_eq!(one.count, 999);
    }
}
