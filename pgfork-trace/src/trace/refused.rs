//! One refused fork: judged, completed, said.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, time::Instant};

use pgfork_trace_common::{Attempt, valid};

use super::{Stop, Trace, armed};
use crate::{
    gather::text,
    kernel::plan::Method,
    output::{
        Line,
        line::{EndReason, Errno, Postmaster, Process, Refusal},
    },
    verdict::{self, Verdict},
};

impl Trace<'_> {
    /// Judges a refused fork and says it.
    pub(super) fn refusal(&mut self, attempt: &Attempt) -> Result<(), Stop> {
        let facts = self.gatherer.facts(attempt, Instant::now());
        let verdict = verdict::judge(attempt, &facts, self.capture.coverage());
        self.refusals += 1;
        let Some(watched) = self.watchlist.get_mut(attempt.tgid) else {
            return Ok(());
        };
        *watched
            .by_cause
            .entry(verdict.cause.id().to_owned())
            .or_default() += 1;
        let shown = watched.shown.clone();
        let method = self.capture.coverage().method;
        let mut refusal = refusal_of(attempt, shown, method, verdict);
        if refusal.is_for_postmaster() {
            let version = refusal.postmaster.version.as_deref();
            let (client, child) = self
                .clients
                .of(&self.root, attempt, version, Instant::now());
            refusal.client = client;
            refusal.child = Some(child);
            refusal.next_limit =
                self.next_limits
                    .after(&self.root, attempt.tgid, &refusal.verdict, Instant::now());
        }
        let open = armed::is_open(ret(attempt), &refusal.verdict);
        self.emit(&Line::Refusal(Box::new(refusal)))?;
        if open {
            self.arm()?;
        }
        if self.until.is_some_and(|until| self.refusals >= until) {
            return Err(Stop::End(EndReason::Until));
        }
        Ok(())
    }
}

/// The kernel's result, where it could be read.
fn ret(attempt: &Attempt) -> Option<i32> {
    (attempt.valid & valid::RET != 0).then_some(attempt.ret)
}

fn refusal_of(
    attempt: &Attempt,
    postmaster: Postmaster,
    method: Method,
    verdict: Verdict,
) -> Refusal {
    let mut comm = attempt.comm.split(|byte| *byte == 0);
    let comm = OsStr::from_bytes(comm.next().unwrap_or_default());
    Refusal {
        postmaster,
        process: Process {
            pid: attempt.tgid,
            tid: attempt.tid,
            comm: Some(text(comm)),
        },
        client: None,
        child: None,
        clone_flags: (attempt.clone_flags != 0).then_some(attempt.clone_flags),
        errno: ret(attempt).map(Errno::from_ret),
        duration_ns: attempt.end_ns.checked_sub(attempt.start_ns),
        method,
        verdict,
        next_limit: None,
        lost_before: attempt.lost_before,
    }
}
