//! Folding repeats: a storm of equal refusals is one block and a count each second.
//!
//! A state machine fed with times; it reads no clock.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::{SignedDuration, Timestamp};

use super::line::{MemoryRefusal, Postmaster, Refusal, Refused, Repeat};
use crate::verdict::{Cause, Certainty, Scope};

/// Most kinds of refusal kept at once; the oldest is let go.
const MOST: usize = 64;

/// How often what is said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// A kind of refusal is counted at most once in this time.
    pub(super) count: SignedDuration,
    /// After this time it is shown whole again.
    pub(super) whole: SignedDuration,
}

/// What to say about one refusal.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// Counts to be shown before it.
    pub(super) repeats: Vec<Repeat>,
    /// Show it whole.
    pub(super) whole: bool,
}

/// A refusal of either kind, as far as it is folded.
pub(super) struct Kind<'a> {
    postmaster: &'a Postmaster,
    refused: Refused,
    cause: Cause,
    certainty: Certainty,
    scope: Option<&'a Scope>,
    shape: u64,
}

impl<'a> From<&'a Refusal> for Kind<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        Self {
            postmaster: &refusal.postmaster,
            refused: Refused::Fork,
            cause: refusal.verdict.cause,
            certainty: refusal.verdict.certainty,
            scope: refusal.verdict.scope.as_ref(),
            shape: shape(refusal),
        }
    }
}

impl<'a> From<&'a MemoryRefusal> for Kind<'a> {
    fn from(refusal: &'a MemoryRefusal) -> Self {
        Self {
            postmaster: &refusal.postmaster,
            refused: Refused::Memory,
            cause: refusal.verdict.cause,
            certainty: refusal.verdict.certainty,
            scope: refusal.verdict.scope.as_ref(),
            shape: memory_shape(refusal),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// Which kind; `refusals` is what was not shown yet.
    repeat: Repeat,
    shape: u64,
    /// Shown whole.
    whole: Timestamp,
    /// Anything shown.
    shown: Timestamp,
}

impl Entry {
    fn matches(&self, kind: &Kind<'_>) -> bool {
        self.shape == kind.shape
            && self.repeat.postmaster.pid == kind.postmaster.pid
            && self.repeat.refused == kind.refused
            && self.repeat.cause == kind.cause
            && self.repeat.certainty == kind.certainty
            && self.repeat.scope.as_ref() == kind.scope
    }

    fn take(&mut self, now: Timestamp) -> Option<Repeat> {
        if self.repeat.refusals == 0 {
            return None;
        }
        let taken = self.repeat.clone();
        self.repeat.refusals = 0;
        self.shown = now;
        Some(taken)
    }
}

/// Kinds of refusal seen lately, oldest first.
#[derive(Debug)]
pub(super) struct Fold {
    pace: Pace,
    entries: Vec<Entry>,
}

impl Fold {
    pub(super) const fn new(pace: Pace) -> Self {
        Self {
            pace,
            entries: Vec::new(),
        }
    }

    /// A refusal that is shown whole or counted.
    pub(super) fn see<'a>(&mut self, now: Timestamp, refusal: impl Into<Kind<'a>>) -> Seen {
        let pace = self.pace;
        let kind = refusal.into();
        let Some(entry) = self.find(&kind) else {
            return Seen {
                repeats: self.add(now, &kind, 0),
                whole: true,
            };
        };
        if over(pace.whole, entry.whole, now) {
            let repeats = entry.take(now).into_iter().collect();
            (entry.whole, entry.shown) = (now, now);
            return Seen {
                repeats,
                whole: true,
            };
        }
        entry.repeat.refusals += 1;
        let repeats = if over(pace.count, entry.shown, now) {
            entry.take(now).into_iter().collect()
        } else {
            Vec::new()
        };
        Seen {
            repeats,
            whole: false,
        }
    }

    /// A refusal that is counted in any case, until [`Self::due`] or [`Self::drain`].
    pub(super) fn count<'a>(
        &mut self,
        now: Timestamp,
        refusal: impl Into<Kind<'a>>,
    ) -> Vec<Repeat> {
        let kind = Kind {
            shape: 0,
            ..refusal.into()
        };
        match self.find(&kind) {
            Some(entry) => {
                entry.repeat.refusals += 1;
                Vec::new()
            }
            None => self.add(now, &kind, 1),
        }
    }

    /// Kinds kept.
    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Counts that are due.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Repeat> {
        let pace = self.pace;
        let due = self
            .entries
            .iter_mut()
            .filter(|entry| over(pace.count, entry.shown, now))
            .filter_map(|entry| entry.take(now))
            .collect();
        self.entries
            .retain(|entry| entry.repeat.refusals > 0 || !over(pace.whole, entry.whole, now));
        due
    }

    /// All counts, due or not.
    pub(super) fn drain(&mut self, now: Timestamp) -> Vec<Repeat> {
        self.entries
            .iter_mut()
            .filter_map(|entry| entry.take(now))
            .collect()
    }

    fn find(&mut self, kind: &Kind<'_>) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.matches(kind))
    }

    /// Adds a kind. Gives the count of the one that is let go for it.
    fn add(&mut self, now: Timestamp, kind: &Kind<'_>, refusals: u64) -> Vec<Repeat> {
        let gone = if self.entries.len() >= MOST {
            self.entries.remove(0).take(now)
        } else {
            None
        };
        self.entries.push(Entry {
            repeat: Repeat {
                postmaster: kind.postmaster.clone(),
                refused: kind.refused,
                cause: kind.cause,
                certainty: kind.certainty,
                scope: kind.scope.cloned(),
                refusals,
            },
            shape: kind.shape,
            whole: now,
            shown: now,
        });
        gone.into_iter().collect()
    }
}

/// Whether `time` has passed, or the clock was set back.
fn over(time: SignedDuration, since: Timestamp, now: Timestamp) -> bool {
    now < since || now.duration_since(since) >= time
}

/// Everything about a refusal that is no number and is shown: two refusals of
/// one shape differ in numbers only.
fn shape(refusal: &Refusal) -> u64 {
    let verdict = &refusal.verdict;
    let mut hasher = DefaultHasher::new();
    refusal.errno.as_ref().map(|it| it.number).hash(&mut hasher);
    (refusal.process.role, &refusal.process.job).hash(&mut hasher);
    verdict.stage.hash(&mut hasher);
    if let Some(check) = &verdict.check {
        (check.function, &check.returned).hash(&mut hasher);
    }
    for entry in &verdict.trail {
        (entry.function, &entry.returned).hash(&mut hasher);
    }
    without_digits(&verdict.because, &mut hasher);
    for remedy in &verdict.remedy {
        without_digits(&remedy.change, &mut hasher);
    }
    for considered in &verdict.also_possible {
        considered.what.hash(&mut hasher);
    }
    verdict.not_seen.hash(&mut hasher);
    hasher.finish()
}

/// The same for a request for memory. Which backend it was makes no difference.
fn memory_shape(refusal: &MemoryRefusal) -> u64 {
    let verdict = &refusal.verdict;
    let mut hasher = DefaultHasher::new();
    refusal.errno.as_ref().map(|it| it.number).hash(&mut hasher);
    (refusal.process.role, &refusal.process.job).hash(&mut hasher);
    verdict.behind.hash(&mut hasher);
    if let Some(check) = &verdict.check {
        (check.function, &check.returned).hash(&mut hasher);
    }
    without_digits(&verdict.because, &mut hasher);
    for considered in &verdict.also_possible {
        considered.what.hash(&mut hasher);
    }
    verdict.not_seen.hash(&mut hasher);
    hasher.finish()
}

fn without_digits(text: &str, hasher: &mut DefaultHasher) {
    for c in text.chars().filter(|c| !c.is_ascii_digit()) {
        c.hash(hasher);
    }
    '\0'.hash(hasher);
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
