//! Postmasters that start: their forks are recorded from the moment that they have executed the
//! program on, because the first ones come before anybody knows what they are.

use std::time::{Duration, Instant};

use super::{Trace, watchlist::Found};
use crate::{
    host::Pid,
    output::{
        Closed, Line,
        line::{Change, Notice, PostmasterChange},
    },
};

/// How soon a process is looked at again whose C library is being mapped.
pub(super) const SOON: Duration = Duration::from_millis(2);

impl Trace<'_> {
    /// Whether a starting postmaster cannot be followed yet, and will be in a moment.
    pub(super) fn is_one_linking(&self) -> bool {
        self.watchlist
            .unfollowed(Instant::now())
            .any(|(_, has_only_begun)| has_only_begun)
    }

    /// Looks at the processes that may become postmasters.
    pub(super) fn look_again(&mut self) -> Result<(), Closed> {
        if self.watchlist.has_candidates() {
            self.look_at_candidates()?;
        }
        let before_fork = std::mem::take(&mut self.before_fork);
        self.emit_all(&before_fork)
    }

    fn look_at_candidates(&mut self) -> Result<(), Closed> {
        let now = Instant::now();
        let looked = self.watchlist.look_again(&self.root, now);
        for pid in looked.dropped {
            self.capture.forget(pid);
            self.gatherer.forget(pid);
        }
        for found in &looked.found {
            self.appeared(found)?;
        }
        let unfollowed: Vec<(Pid, bool)> = self.watchlist.unfollowed(now).collect();
        for (pid, has_only_begun) in unfollowed {
            let ready = !has_only_begun || self.capture.is_ready(pid);
            // Why it cannot be watched is said once it is a postmaster.
            if ready && self.capture.watch(pid, true).is_ok() {
                self.watchlist.follow(pid);
                self.gatherer.meet(pid);
            }
        }
        Ok(())
    }

    /// Whether a refused fork counts: that of a candidate does if it is a postmaster of interest.
    pub(super) fn counts(&mut self, pid: Pid) -> Result<bool, Closed> {
        if !self.watchlist.is_candidate(pid) {
            return Ok(true);
        }
        if let Some(found) = self.watchlist.decide(&self.root, pid) {
            self.appeared(&found)?;
            return Ok(true);
        }
        self.capture.forget(pid);
        Ok(false)
    }

    fn appeared(&mut self, found: &Found) -> Result<(), Closed> {
        let &Found {
            pid,
            previous,
            followed,
        } = found;
        // One that is followed may have ended already.
        if let Err(error) = self.follow(pid, true)
            && !followed
        {
            self.watchlist.discard(pid);
            return self.emit(&Notice::line("not_watched", error.to_string()));
        }
        let Some(watched) = self.watchlist.get_mut(pid) else {
            return Ok(());
        };
        let appeared = Line::Postmaster(PostmasterChange {
            event: if previous.is_some() {
                Change::Restarted
            } else {
                Change::Appeared
            },
            postmaster: watched.shown.clone(),
            previous_pid: previous,
            killed_by: None,
        });
        self.emit(&appeared)
    }
}
