//! Tells of those who are refused, but not of each: whoever knocks a thousand times a second must not
//! fill the log.

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::Told;
use crate::{event::AccessRefused, sync::lock};

/// At most one record of each reason in this time.
const EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Reason {
    told: Option<Instant>,
    /// The latest, with how many there were since the last record.
    waiting: Option<AccessRefused>,
}

/// Who was refused.
pub struct Refusals {
    tell: mpsc::Sender<Told>,
    reasons: Mutex<HashMap<&'static str, Reason>>,
}

impl Refusals {
    /// Tells of them there.
    pub fn new(tell: mpsc::Sender<Told>) -> Self {
        Self { tell, reasons: Mutex::default() }
    }

    /// Somebody was refused.
    pub fn add(&self, refused: AccessRefused) {
        let mut reasons = lock(&self.reasons);
        let reason = reasons.entry(refused.reason).or_default();
        let before = reason.waiting.take().map_or(0, |waiting| waiting.count);
        reason.waiting = Some(AccessRefused { count: refused.count + before, ..refused });
        self.tell_of(reason, Instant::now());
    }

    /// Tells of those who wait to be told of.
    pub fn tell(&self) {
        let now = Instant::now();
        lock(&self.reasons).values_mut().for_each(|reason| self.tell_of(reason, now));
    }

    fn tell_of(&self, reason: &mut Reason, now: Instant) {
        if reason.told.is_some_and(|told| now.duration_since(told) < EVERY) {
            return;
        }
        let Some(refused) = reason.waiting.take() else { return };
        reason.told = Some(now);
        if let Err(error) = self.tell.try_send(Told::Refused(Box::new(refused)))
            && let Told::Refused(refused) = error.into_inner()
        {
            // The agent has more to do now; the next record counts it.
            reason.waiting = Some(*refused);
        }
    }
}

/// How often those are told of who wait.
pub const LOOK: Duration = EVERY;

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
        let refusals = Refusals::new(tell);
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
