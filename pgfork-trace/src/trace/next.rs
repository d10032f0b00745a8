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
