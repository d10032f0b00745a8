//! The end of watching: what was counted, and whether the count is whole.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use pgfork_trace_common::Totals;

use super::{Trace, kills::Ended, nanoseconds, totals, watchlist::Watched};
use crate::output::{
    Line,
    line::{End, EndReason, Lost, LostWhat, Notice, ServerLogged, WatchedKind},
    units::counted,
};

/// Attempts to read counts that belong together.
const LAST_LOOKS: usize = 50;

impl Trace<'_> {
    /// Totals and the last line. The reader may be gone: the file still gets them.
    pub(super) fn finish(&mut self, reason: EndReason) {
        self.stand_still(&reason);
        self.last_memory_refusals();
        let _ = self.say_kills(Ended::Watching);
        let (mut lost, mut unaccounted) = (0, 0);
        let mut refused = 0;
        let mut lines = Vec::from_iter(self.comms.unsaid());
        for watched in self.watchlist.everyone() {
            let Some(counted) = self.counted(watched) else {
                continue;
            };
            refused += counted.refused + counted.child_refused;
            unaccounted += counted.missed + counted.untracked;
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
        lines.extend(skipped(&self.capture.skipped_runs()));
        lines.push(Line::End(End {
            watched_ns: nanoseconds(self.attached.elapsed()),
            refusals: refused,
            memory_refusals: self.below.memory.then_some(self.memory_refused),
            oom_kills: self.kills.oom_kills,
            lost,
            reason,
            // A record that is lost has been counted.
            accounted: unaccounted == 0 && self.capture.refusals_counted() == refused,
        }));
        self.refusals = self.refusals.max(refused + self.memory_refused);
        let now = Timestamp::now();
        for line in &lines {
            let _ = self.reporter.emit(now, line);
        }
        let _ = self.reporter.finish();
    }

    /// The kernel side's counts of a process, also of one that is gone.
    fn counted(&self, watched: &Watched) -> Option<Totals> {
        match &watched.counted {
            Some(counted) => Some(**counted),
            None => self.capture.totals(watched.id.pid),
        }
    }

    /// Begins no further attempt, and takes what there is. Only then do counts that are read one
    /// after the other belong together: refusals go on while watching ends.
    fn stand_still(&mut self, reason: &EndReason) {
        let pids: Vec<_> = self.watchlist.alive().map(|it| it.id.pid).collect();
        for pid in pids {
            self.capture.unwatch(pid);
        }
        for _ in 0..LAST_LOOKS {
            // What the kernel had sent before the end is told, but for more than was asked for.
            if *reason == EndReason::Until || self.drain().is_err() {
                self.count_the_rest();
            }
            let everyone = self.watchlist.everyone();
            let all = everyone.filter_map(|watched| self.counted(watched));
            let refused: u64 = all.map(|it| it.refused + it.child_refused).sum();
            if refused == self.capture.refusals_counted() {
                break;
            }
            // A fork that had begun is about to end.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the kernel left out of our programs' runs, where it did.
fn skipped(runs: &[(String, u64)]) -> Option<Line> {
    let all: u64 = runs.iter().map(|(_, count)| count).sum();
    let each: Vec<String> = runs
        .iter()
        .map(|(program, count)| format!("{program} {count}"))
        .collect();
    (all > 0).then(|| {
        Notice::line(
            "runs_skipped",
            format!(
                "the kernel left out {} of our programs that came while the same one ran on that processor ({}): what they would have seen is not in the verdicts of those moments",
                counted(all, "run", "runs"),
                each.join(", ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_left_out_are_said_by_program() {
        assert_eq!(skipped(&[]), None);
        let runs = [("a_fexit".to_owned(), 2), ("b_fexit".to_owned(), 1)];
        let Some(Line::Notice(notice)) = skipped(&runs) else {
            panic!("no notice");
        };
        assert!(notice.message.contains("3 runs"), "{}", notice.message);
        assert!(
            notice.message.contains("(a_fexit 2, b_fexit 1)"),
            "{}",
            notice.message
        );
    }
}
