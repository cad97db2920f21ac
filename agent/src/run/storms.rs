//! Many decisions of one kind are one record: the first few of them are told one by one, the rest of a
//! window with a number.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::{
    event::{Decision, Repeated},
    spool::chain::Chain,
};

/// How long a window is.
const WINDOW: Duration = Duration::from_secs(10);

/// How many of one kind are told one by one in a window.
const ONE_BY_ONE: u32 = 100;

/// Kinds that are watched at once. What is of more kinds than that is no storm.
const KINDS: usize = 256;

/// The same artifact, decision and reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Kind {
    gate: &'static str,
    outcome: &'static str,
    reason: &'static str,
    generation: u64,
    path: String,
    digest: Option<String>,
    /// The BPF program's type, and what it attaches to.
    bpf: Option<(String, Option<String>)>,
}

impl Kind {
    fn of(decision: &Decision) -> Self {
        let artifact = decision.artifact.as_ref();
        Self {
            gate: decision.gate,
            outcome: decision.outcome,
            reason: decision.reason,
            generation: decision.policy.generation,
            path: artifact.map(|artifact| artifact.path.clone()).unwrap_or_default(),
            digest: artifact.and_then(|artifact| artifact.digest.clone()),
            bpf: decision.bpf.as_ref().map(|bpf| (bpf.kind.clone(), bpf.attach.clone())),
        }
    }
}

struct Window {
    end: Instant,
    told: u32,
    /// What was not told one by one, and the latest of it.
    folded: Option<(Repeated, Box<Decision>)>,
}

/// What comes often.
#[derive(Default)]
pub struct Storms(HashMap<Kind, Window>);

/// One record for many.
pub struct Folded {
    /// How many, and when.
    pub repeated: Repeated,
    /// The latest of them.
    pub decision: Box<Decision>,
}

impl Storms {
    /// Takes a decision in. Gives it back if it is to be told by itself.
    pub fn take(
        &mut self,
        now: Instant,
        time: Timestamp,
        decision: Box<Decision>,
    ) -> Option<Box<Decision>> {
        if self.0.len() >= KINDS {
            self.0.retain(|_, window| window.end > now || window.folded.is_some());
        }
        let is_full = self.0.len() >= KINDS;
        let kind = Kind::of(&decision);
        let window = match self.0.get_mut(&kind) {
            Some(window) => window,
            None if is_full => return Some(decision),
            None => self.0.entry(kind).or_insert(Window { end: now, told: 0, folded: None }),
        };
        if window.end <= now && window.folded.is_none() {
            (window.end, window.told) = (now + WINDOW, 0);
        }
        if window.told < ONE_BY_ONE {
            window.told += 1;
            return Some(decision);
        }
        match &mut window.folded {
            Some((repeated, latest)) => {
                repeated.count += 1;
                repeated.last = time;
                *latest = decision;
            }
            None => {
                let repeated = Repeated { count: 1, first: time, last: time };
                window.folded = Some((repeated, decision));
            }
        }
        None
    }

    /// When the next window ends of which something is to be told.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let open = self.0.values().filter(|window| window.folded.is_some());
        open.map(|window| window.end).min()
    }

    /// What is to be told of windows that have ended by `now`, refusals first. The storm goes on until a
    /// window passes without it.
    pub fn over(&mut self, now: Instant) -> Vec<Folded> {
        let mut told = Vec::new();
        for window in self.0.values_mut().filter(|window| window.end <= now) {
            if let Some((repeated, decision)) = window.folded.take() {
                window.end = now + WINDOW;
                told.push(Folded { repeated, decision });
            }
        }
        self.0.retain(|_, window| window.end > now || window.folded.is_some());
        told.sort_by_key(|one| (Chain::of_decision(&one.decision), one.repeated.first));
        told
    }

    /// Everything that is not told yet, refusals first.
    pub fn all(&mut self) -> Vec<Folded> {
        let ends = self.0.values().map(|window| window.end).max();
        ends.map(|end| self.over(end)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{PolicyId, ProcessInfo};

    fn decision(outcome: &'static str, path: &str) -> Box<Decision> {
        Box::new(Decision {
            backend: "bpf-lsm",
            gate: "exec",
            outcome,
            reason: "unlisted",
            mode: "enforce",
            policy: PolicyId { name: "p".into(), version: 1, generation: 1 },
            rule: None,
            wanted: Vec::new(),
            artifact: Some(crate::event::ArtifactInfo {
                path: path.into(),
                path_hex: None,
                digest: None,
                size: 1,
                filesystem: "tmpfs".into(),
                device: "0:1".into(),
                inode: 1,
                hash_status: None,
            }),
            process: ProcessInfo {
                pid: 1,
                tid: 1,
                uid: 0,
                gid: 0,
                comm: "sh".into(),
                cgroup: None,
                cgroup_id: 1,
                ancestors: Vec::new(),
            },
            cached: false,
            bpf: None,
        })
    }

    #[test]
    fn storms_are_counted_exactly() {
        let (mut storms, start) = (Storms::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let time = Timestamp::now();
        let mut one_by_one = 0;
        for _ in 0..1000 {
            one_by_one += u64::from(storms.take(start, time, decision("allow", "/a")).is_some());
            one_by_one += u64::from(storms.take(start, time, decision("deny", "/b")).is_some());
        }
        assert_eq!(one_by_one, 2 * u64::from(ONE_BY_ONE));
        assert!(storms.over(at(9)).is_empty());
        let told = storms.over(at(10));
        let words: Vec<_> =
            told.iter().map(|one| (one.decision.outcome, one.repeated.count)).collect();
        let rest = 1000 - u64::from(ONE_BY_ONE);
        assert_eq!(words, [("deny", rest), ("allow", rest)]);
        // It goes on: nothing is told one by one, and nothing is forgotten.
        assert!(storms.take(at(11), time, decision("deny", "/b")).is_none());
        assert_eq!(storms.due(), Some(at(20)));
        assert_eq!(storms.all().len(), 1);
        // A window without it ends it.
        assert!(storms.over(at(40)).is_empty());
        assert!(storms.take(at(41), time, decision("deny", "/b")).is_some());
    }

    #[test]
    fn what_is_of_many_kinds_is_told_one_by_one() {
        let (mut storms, now) = (Storms::default(), Instant::now());
        for number in 0..2000 {
            let path = format!("/{number}");
            assert!(storms.take(now, Timestamp::now(), decision("deny", &path)).is_some());
        }
        assert!(storms.0.len() <= KINDS);
    }
}
