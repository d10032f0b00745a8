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

/// The room under every limit of postmasters that are refused forks.
#[derive(Debug, Default)]
pub(super) struct NextLimits {
    rows: HashMap<Pid, (Instant, Vec<Row>)>,
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
        let fresh = |(at, _): &(Instant, Vec<Row>)| now.duration_since(*at) < FRESH;
        if !self.rows.get(&postmaster).is_some_and(fresh) {
            let facts = check::headroom_facts(root, postmaster);
            let rows = facts.map(|facts| headroom(&facts)).unwrap_or_default();
            self.rows.insert(postmaster, (now, rows));
        }
        let (_, rows) = self.rows.get(&postmaster)?;
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
        assert_eq!(left(Certainty::Deduced, FRESH), Some(10));
    }

    #[test]
    fn a_postmaster_that_is_gone_has_no_next_limit() {
        let fake = host(60);
        let mut next = NextLimits::default();
        let verdict = verdict(Cause::CommitLimit, Certainty::Observed);
        assert_eq!(next.after(fake.root(), 701, &verdict, Instant::now()), None);
    }
}
