//! Which limit refuses next, read seldom: a storm of refusals must not become a storm of reading.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{
    check,
    host::{Pid, Root},
    verdict::{
        Certainty, Verdict,
        headroom::{NextLimit, Row, headroom, next},
    },
};

/// Rows are read anew after this time.
const FRESH: Duration = Duration::from_secs(5);

/// Rows, when they were read, and how long that took.
#[derive(Debug)]
struct Known {
    at: Instant,
    took: Duration,
    rows: Vec<Row>,
}

impl Known {
    /// What takes long is read as seldom as to take this part of the time at most.
    const PART: u32 = 20;

    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < FRESH.max(self.took * Self::PART)
    }
}

/// The room under every limit of postmasters that are refused forks.
#[derive(Debug, Default)]
pub(super) struct NextLimits {
    rows: HashMap<Pid, Known>,
}

impl NextLimits {
    /// What refuses this postmaster next. Only behind a proven cause: what is not known to be in
    /// the way cannot be out of it.
    pub(super) fn after(
        &mut self,
        root: &Root,
        postmaster: Pid,
        verdict: &Verdict,
        now: Instant,
    ) -> Option<NextLimit> {
        if verdict.certainty == Certainty::Unknown {
            return None;
        }
        if !self
            .rows
            .get(&postmaster)
            .is_some_and(|it| it.is_fresh(now))
        {
            let began = Instant::now();
            let facts = check::headroom_facts(root, postmaster);
            let took = began.elapsed();
            let known = Known {
                at: now + took,
                took,
                rows: facts.map(|facts| headroom(&facts)).unwrap_or_default(),
            };
            self.rows.insert(postmaster, known);
        }
        let rows = &self.rows.get(&postmaster)?.rows;
        next(rows, verdict.cause, verdict.scope.as_ref())
    }

    /// Forgets a process that ended.
    pub(super) fn forget(&mut self, pid: Pid) {
        self.rows.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        host::fake::{FakeProcess, FakeRoot},
        output::samples,
        verdict::{Cause, headroom::Limit},
    };

    fn verdict(cause: Cause, certainty: Certainty) -> Verdict {
        samples::verdict(cause, certainty, "so")
    }

    /// A postmaster on a host with this many tasks of a hundred.
    fn host(tasks: u32) -> FakeRoot {
        let fake = FakeRoot::new();
        fake.data_dir("pg", "/pg", 700, 5432);
        fake.process(&FakeProcess::postgres(700, "pg"));
        fake.write("proc/sys/kernel/threads-max", "100\n");
        set_tasks(&fake, tasks);
        fake
    }

    fn set_tasks(fake: &FakeRoot, tasks: u32) {
        fake.write("proc/loadavg", format!("0 0 0 1/{tasks} 900\n"));
    }

    #[test]
    fn read_once_in_a_while_and_only_behind_a_proven_cause() {
        let fake = host(60);
        let mut next = NextLimits::default();
        let now = Instant::now();
        let mut left = |certainty, after: Duration| {
            let verdict = verdict(Cause::CommitLimit, certainty);
            let found = next.after(fake.root(), 700, &verdict, now + after)?;
            assert_eq!(found.limit, Limit::ThreadsMax);
            found.room
        };
        assert_eq!(left(Certainty::Unknown, Duration::ZERO), None);
        assert_eq!(left(Certainty::Observed, Duration::ZERO), Some(40));
        set_tasks(&fake, 90);
        let almost = FRESH - Duration::from_millis(1);
        assert_eq!(left(Certainty::Deduced, almost), Some(40));
        // However long the first look took.
        assert_eq!(left(Certainty::Deduced, FRESH * 100), Some(10));
    }

    #[test]
    fn what_takes_long_is_read_more_seldom() {
        let at = Instant::now();
        let known = |took| Known {
            at,
            took,
            rows: Vec::new(),
        };
        let quick = known(Duration::from_millis(10));
        assert!(!quick.is_fresh(at + FRESH));
        let slow = known(FRESH);
        assert!(slow.is_fresh(at + FRESH * 19));
        assert!(!slow.is_fresh(at + FRESH * 20));
    }

    #[test]
    fn a_postmaster_that_is_gone_has_no_next_limit() {
        let fake = host(60);
        let mut next = NextLimits::default();
        let verdict = verdict(Cause::CommitLimit, Certainty::Observed);
        assert_eq!(next.after(fake.root(), 701, &verdict, Instant::now()), None);
    }
}
