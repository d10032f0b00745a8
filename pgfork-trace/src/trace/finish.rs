//! The end of watching: what was counted, and whether the count is whole.

use std::time::Instant;

use jiff::Timestamp;

use super::{Trace, kills::Ended, nanoseconds, totals};
use crate::output::{
    Line,
    line::{End, EndReason, Lost, LostWhat, ServerLogged, WatchedKind},
};

impl Trace<'_> {
    /// Totals and the last line. The reader may be gone: the file still gets them.
    pub(super) fn finish(&mut self, reason: EndReason) {
        self.last_memory_refusals();
        let _ = self.say_kills(Ended::Watching);
        let mut lost = 0;
        let mut refused = 0;
        let mut lines = Vec::from_iter(self.comms.unsaid());
        for watched in self.watchlist.everyone() {
            let counted = match &watched.counted {
                Some(counted) => Some(**counted),
                None => self.capture.totals(watched.id.pid),
            };
            let Some(counted) = counted else { continue };
            refused += counted.refused + counted.child_refused;
            let losses = [
                (LostWhat::Records, counted.lost),
                (LostWhat::Returns, counted.missed),
                (LostWhat::Attempts, counted.untracked),
            ];
            for (what, count) in losses.into_iter().filter(|(_, count)| *count > 0) {
                lost += count;
                lines.push(Line::Lost(Lost { what, count }));
            }
            let mut totals = totals::totals(watched.shown.clone(), &counted, &watched.by_cause);
            totals.merged = watched.merged;
            totals::add_children(
                &mut totals,
                &counted,
                self.below,
                &watched.child_by_cause,
                &watched.memory_by_cause,
            );
            totals.oom_kills = watched.oom_kills;
            if watched.shown.kind == WatchedKind::Postmaster {
                let live = self.capture.clients();
                let clients = match &watched.counted {
                    Some(_) => &watched.clients,
                    None => &live,
                };
                let (pid, forks) = (watched.id.pid, totals.forks);
                totals.connections = totals::connections(clients, pid, forks, watched.time());
                let logged = match &watched.counted {
                    Some(_) => watched.logged.clone(),
                    None => self.server_logs.end(&self.root, pid, Instant::now()),
                };
                totals.server_log = logged.map(|(could_not_fork, partial)| ServerLogged {
                    could_not_fork,
                    partial,
                });
            }
            lines.push(Line::Totals(totals));
        }
        let events = self.capture.lost_events();
        if events > 0 {
            lost += events;
            lines.push(Line::Lost(Lost {
                what: LostWhat::Events,
                count: events,
            }));
        }
        let counted_by_kind: u64 = self.capture.refusals().iter().map(|(_, count)| count).sum();
        lines.push(Line::End(End {
            watched_ns: nanoseconds(self.attached.elapsed()),
            refusals: refused,
            memory_refusals: self.below.memory.then_some(self.memory_refused),
            oom_kills: self.kills.oom_kills,
            lost,
            reason,
            accounted: lost == 0 && counted_by_kind == refused,
        }));
        self.refusals = self.refusals.max(refused + self.memory_refused);
        let now = Timestamp::now();
        for line in &lines {
            let _ = self.reporter.emit(now, line);
        }
        let _ = self.reporter.finish();
    }
}
