//! One refused fork: judged, completed, said.

use std::time::Instant;

use pgfork_trace_common::{Attempt, source, syscall, valid};

use super::{Stop, Trace, armed, descendants};
use crate::{
    capture::Record,
    kernel::plan::Method,
    output::{
        Closed, Line,
        line::{EndReason, Errno, Postmaster, Process, Refusal},
    },
    verdict::{self, Certainty, Verdict, client},
};

impl Trace<'_> {
    /// Judges a refused fork and says it.
    pub(super) fn refusal(&mut self, attempt: &Attempt) -> Result<(), Stop> {
        let Some(verdict) = self.judged(attempt)? else {
            return Ok(());
        };
        let above = account(attempt);
        let descends = above != attempt.tgid;
        let Some(watched) = self.watchlist.get_mut(above) else {
            return self.count_refusal();
        };
        let shown = watched.shown.clone();
        let method = self.capture.coverage().method;
        let mut refusal = refusal_of(attempt, shown, method, verdict);
        if refusal.is_for_postmaster() {
            let version = refusal.postmaster.version.as_deref();
            let (whose, child) = self
                .clients
                .of(&self.root, attempt, version, Instant::now());
            let logged = self.server_logs.of(
                &self.root,
                attempt.tgid,
                child.kind,
                attempt.lost_before,
                Instant::now(),
            );
            refusal.client = whose;
            refusal.child = Some(match logged {
                Some(kind) if child.certainty != Certainty::Observed => client::logged(kind),
                _ => child,
            });
            refusal.next_limit =
                self.next_limits
                    .after(&self.root, attempt.tgid, &refusal.verdict, Instant::now());
        }
        if descends {
            refusal.process = self.descendants.process(
                &self.root,
                (attempt.tgid, attempt.tid),
                descendants::comm(&attempt.comm),
                &refusal.postmaster,
                Instant::now(),
            );
        }
        let open = armed::is_open(ret(attempt), &refusal.verdict);
        self.emit(&Line::Refusal(Box::new(refusal)))?;
        if open {
            self.arm()?;
        }
        self.count_refusal()
    }

    /// Judges and counts a refused fork; nothing where it does not count.
    fn judged(&mut self, attempt: &Attempt) -> Result<Option<Verdict>, Closed> {
        let above = account(attempt);
        if !self.counts(above)? {
            return Ok(None);
        }
        let facts = self.gatherer.facts(attempt, Instant::now());
        let verdict = verdict::judge(attempt, &facts, self.capture.coverage_during(attempt));
        self.refusals += 1;
        if let Some(watched) = self.watchlist.get_mut(above) {
            let by_cause = if above == attempt.tgid {
                &mut watched.by_cause
            } else {
                &mut watched.child_by_cause
            };
            *by_cause.entry(verdict.cause.id().to_owned()).or_default() += 1;
        }
        Ok(Some(verdict))
    }

    /// Refusals that came behind the last one that is told: only counted, each by its cause.
    pub(super) fn count_the_rest(&mut self) {
        while let Some(record) = self.capture.next_record() {
            if let Record::Refusal(attempt) = record {
                // Nobody reads the lines of a closed pipe.
                let _ = self.judged(&attempt);
            }
        }
    }

    /// Ends watching where `--until` is reached.
    pub(super) fn count_refusal(&self) -> Result<(), Stop> {
        if self.until.is_some_and(|until| self.refusals >= until) {
            return Err(Stop::End(EndReason::Until));
        }
        Ok(())
    }
}

/// The watched process on whose account the fork was: a descendant's belongs to the one above.
fn account(attempt: &Attempt) -> u32 {
    match attempt.watched {
        0 => attempt.tgid,
        watched => watched,
    }
}

/// The kernel's result, where it could be read.
fn ret(attempt: &Attempt) -> Option<i32> {
    (attempt.valid & valid::RET != 0).then_some(attempt.ret)
}

/// Time in the kernel, where the beginning was seen.
fn duration(attempt: &Attempt) -> Option<u64> {
    let unseen = attempt.source == source::SYSCALL && attempt.syscall & syscall::ENTERED == 0;
    let time = attempt.end_ns.checked_sub(attempt.start_ns);
    time.filter(|_| !unseen)
}

fn refusal_of(
    attempt: &Attempt,
    postmaster: Postmaster,
    method: Method,
    verdict: Verdict,
) -> Refusal {
    Refusal {
        postmaster,
        process: Process {
            pid: attempt.tgid,
            tid: attempt.tid,
            comm: descendants::comm(&attempt.comm),
            ..Process::default()
        },
        client: None,
        child: None,
        syscall: verdict::call_name(attempt),
        clone_flags: (attempt.clone_flags != 0).then_some(attempt.clone_flags),
        errno: ret(attempt).map(Errno::from_ret),
        duration_ns: duration(attempt),
        method,
        verdict,
        next_limit: None,
        lost_before: attempt.lost_before,
    }
}
