//! What the kernel logged shortly before a refusal.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    host::{
        Root,
        kmsg::{Entry, Follower},
    },
    output::escape,
    verdict::LogFact,
};

/// A line this old still belongs to a refusal: the log is looked at four times a second, and
/// times in it are of another clock, which drifts.
const RECENT: Duration = Duration::from_secs(2);
/// Most lines kept.
const MOST_LINES: usize = 64;

/// The kernel log from the start of this program on, where it may be read.
#[derive(Debug)]
pub(super) struct Log {
    follower: Option<Follower>,
    lines: VecDeque<(Instant, LogFact)>,
}

impl Log {
    pub(super) fn start(root: &Root) -> Self {
        Self {
            follower: Follower::start(root).ok(),
            lines: VecDeque::new(),
        }
    }

    pub(super) fn fetch(&mut self, now: Instant) {
        let Some(follower) = &mut self.follower else {
            return;
        };
        for entry in follower.fetch() {
            if self.lines.len() == MOST_LINES {
                self.lines.pop_front();
            }
            self.lines.push_back((now, fact(entry)));
        }
        self.lines
            .retain(|(at, _)| now.saturating_duration_since(*at) < RECENT);
    }

    /// Lines from shortly before `now` on.
    pub(super) fn recent(&mut self, now: Instant) -> Vec<LogFact> {
        self.fetch(now);
        self.lines.iter().map(|(_, fact)| fact.clone()).collect()
    }
}

fn fact(entry: Entry) -> LogFact {
    let text = |name: String| escape::from_bytes(name.as_bytes());
    match entry {
        Entry::CommitRefused(pid) => LogFact::CommitRefused { pid },
        Entry::PidsRejected(path) => LogFact::PidsRejected { path: text(path) },
        Entry::NothingKillable => LogFact::NothingKillable,
        Entry::CgroupOutOfMemory(pid, path) => LogFact::CgroupOutOfMemory {
            pid,
            path: text(path),
        },
        Entry::CgroupKilled(pid) => LogFact::CgroupKilled { pid },
        Entry::HostKilled(pid) => LogFact::HostKilled { pid },
        Entry::AllocationFailed(comm) => LogFact::AllocationFailed { comm: text(comm) },
        Entry::AuditOutOfMemory => LogFact::AuditOutOfMemory,
    }
}
