//! When the checks on hot paths are watched as well. Pure: the clock is given.
//!
//! Charging memory and copying page tables happen all the time, to everyone: probes there cost
//! everyone something. They are attached only after a refusal that the base set cannot explain.

use std::time::{Duration, Instant};

use crate::verdict::{Cause, Certainty, Verdict};

/// How long after the last refusal of that kind.
pub(super) const ARMED_FOR: Duration = Duration::from_secs(180);
/// After a failure, not tried again for this long.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(180);

/// What is attached, and until when.
#[derive(Debug)]
pub(super) struct Armed {
    /// How long they stay after the last refusal.
    pub(super) stays: Duration,
    until: Option<Instant>,
    not_before: Option<Instant>,
    /// Nothing can be added here: not tried again.
    useless: bool,
}

/// Whether the base set leaves open which allocation failed, and why.
pub(super) fn is_open(ret: Option<i32>, verdict: &Verdict) -> bool {
    ret == Some(-libc::ENOMEM)
        && match verdict.certainty {
            Certainty::Observed => false,
            Certainty::Unknown => true,
            Certainty::Deduced => matches!(
                verdict.cause,
                Cause::KernelMemoryExhausted
                    | Cause::KernelStackAllocFailed
                    | Cause::PageTableAllocFailed
                    | Cause::FdTableAllocFailed
                    | Cause::MemcgNoVictim
                    | Cause::MemcgOomKillDisabled
                    | Cause::MemcgKmemLimitV1
                    | Cause::MemcgDyingTask
                    | Cause::OvercommitHeuristic
            ),
        }
}

impl Armed {
    pub(super) const fn new(stays: Duration) -> Self {
        Self {
            stays,
            until: None,
            not_before: None,
            useless: false,
        }
    }

    /// An open refusal was seen; whether to attach now.
    pub(super) fn refusal(&mut self, now: Instant) -> bool {
        if self.until.is_some() {
            self.until = Some(now + self.stays);
            return false;
        }
        !self.useless && self.not_before.is_none_or(|then| now >= then)
    }

    /// That many probes were attached; whether that changes anything.
    pub(super) fn attached(&mut self, probes: usize, now: Instant) -> bool {
        if probes == 0 {
            self.useless = true;
            return false;
        }
        self.until = Some(now + self.stays);
        true
    }

    /// Attaching failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.not_before = Some(now + RETRY_AFTER);
    }

    /// Whether to detach now.
    pub(super) fn is_over(&mut self, now: Instant) -> bool {
        let over = self.until.is_some_and(|until| now >= until);
        if over {
            self.until = None;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::samples;

    const SECOND: Duration = Duration::from_secs(1);

    fn verdict(cause: Cause, certainty: Certainty) -> Verdict {
        samples::verdict(cause, certainty, "so")
    }

    #[test]
    fn only_an_unexplained_enomem_is_open() {
        let open = |ret, cause, certainty| is_open(ret, &verdict(cause, certainty));
        let enomem = Some(-libc::ENOMEM);
        assert!(open(enomem, Cause::Unknown, Certainty::Unknown));
        assert!(open(
            enomem,
            Cause::KernelMemoryExhausted,
            Certainty::Deduced
        ));
        assert!(open(
            enomem,
            Cause::PageTableAllocFailed,
            Certainty::Deduced
        ));
        assert!(open(enomem, Cause::MemcgNoVictim, Certainty::Deduced));
        assert!(!open(enomem, Cause::MemcgNoVictim, Certainty::Observed));
        assert!(!open(enomem, Cause::CommitLimit, Certainty::Observed));
        assert!(!open(enomem, Cause::CommitLimit, Certainty::Deduced));
        assert!(open(enomem, Cause::OvercommitHeuristic, Certainty::Deduced));
        assert!(!open(enomem, Cause::PidNamespaceDying, Certainty::Deduced));
        for ret in [Some(-libc::EAGAIN), None] {
            assert!(!open(ret, Cause::Unknown, Certainty::Unknown));
        }
    }

    #[test]
    fn stays_for_three_minutes_after_the_last_one() {
        let mut armed = Armed::new(ARMED_FOR);
        let start = Instant::now();
        assert!(!armed.is_over(start));
        assert!(armed.refusal(start));
        assert!(armed.attached(4, start));
        // Once is enough.
        assert!(!armed.refusal(start + 100 * SECOND));
        assert!(!armed.is_over(start + 180 * SECOND));
        assert!(!armed.is_over(start + 279 * SECOND));
        assert!(armed.is_over(start + 280 * SECOND));
        // Detached once, and ready for the next.
        assert!(!armed.is_over(start + 281 * SECOND));
        assert!(armed.refusal(start + 282 * SECOND));
    }

    #[test]
    fn failure_is_not_tried_at_each_refusal() {
        let mut armed = Armed::new(ARMED_FOR);
        let start = Instant::now();
        assert!(armed.refusal(start));
        armed.failed(start);
        assert!(!armed.refusal(start + 179 * SECOND));
        assert!(armed.refusal(start + 180 * SECOND));
        // Nothing to attach on this kernel: that does not change.
        assert!(!armed.attached(0, start));
        assert!(!armed.refusal(start + 9999 * SECOND));
        assert!(!armed.is_over(start + 9999 * SECOND));
    }
}
