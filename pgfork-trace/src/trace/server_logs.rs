//! What servers say in their own logs of the forks that were refused to them.
//!
//! A postmaster has one thread, and writes one line for each fork that it is refused: the lines
//! are in the order of the refusals. The line is written a moment after the refusal was recorded,
//! and may not be there when that is told; then it counts in the totals only.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::Trace;
use crate::{
    host::{Pid, Root},
    output::line::WatchedKind,
    postgres::fork_log::{ForkLog, Said},
    verdict::client::ChildKind,
};

/// At most so often is one log looked at.
const PAUSE: Duration = Duration::from_millis(250);
/// A log is looked at again for so long after a refusal.
const AFTER: Duration = Duration::from_secs(2);
/// Most lines that wait for the record of their refusal.
const MOST_WAITING: usize = 4096;

/// Which line belongs to which refusal, while that is certain.
#[derive(Debug, Default)]
struct Order {
    said: VecDeque<ChildKind>,
    /// Refusals that were told before their line was read.
    owed: u64,
    /// Records lost when the last one came.
    lost: u64,
    broken: bool,
}

impl Order {
    fn line(&mut self, kind: ChildKind) {
        if self.owed > 0 {
            self.owed -= 1;
        } else {
            self.said.push_back(kind);
        }
    }

    /// The line of this refusal, which the kernel side saw to be for `seen`.
    fn refused(&mut self, seen: ChildKind, lost: u64) -> Option<ChildKind> {
        self.broken |= lost != self.lost || self.said.len() > MOST_WAITING;
        if self.broken {
            return None;
        }
        let Some(kind) = self.said.pop_front() else {
            self.owed += 1;
            return None;
        };
        let client = kind == ChildKind::ClientBackend;
        let agrees = match seen {
            ChildKind::ClientBackend => client,
            ChildKind::Unknown => true,
            _ => !client,
        };
        self.broken = !agrees;
        agrees.then_some(kind)
    }
}

/// One server's log.
#[derive(Debug)]
struct ServerLog {
    log: ForkLog,
    order: Order,
    counted: BTreeMap<&'static str, u64>,
    partial: bool,
    read: Option<Instant>,
    /// When a refusal was last told.
    refused: Option<Instant>,
}

impl ServerLog {
    fn take(&mut self, said: &Said) {
        if said.gap {
            self.partial = true;
            self.order.broken = true;
        }
        for kind in &said.refused {
            *self.counted.entry(kind.name()).or_default() += 1;
            self.order.line(*kind);
        }
    }

    fn look(&mut self, root: &Root, pid: Pid, now: Instant) {
        self.read = Some(now);
        let said = self.log.read(root, pid);
        self.take(&said);
    }

    fn may_look(&self, now: Instant) -> bool {
        self.read.is_none_or(|at| now.duration_since(at) >= PAUSE)
    }

    /// Whether the last look came too soon after the last refusal to have seen its line for sure.
    fn may_have_more(&self) -> bool {
        let until = self.refused.map(|at| at + AFTER);
        until.is_some_and(|until| self.read.is_none_or(|at| at < until))
    }
}

/// The logs of all servers that are watched; `None` for one whose log cannot be read.
#[derive(Debug, Default)]
pub(super) struct ServerLogs(HashMap<Pid, Option<ServerLog>>);

impl ServerLogs {
    /// Begins to follow the log of a postmaster, at its end.
    fn follow(&mut self, root: &Root, pid: Pid) {
        self.0.entry(pid).or_insert_with(|| {
            Some(ServerLog {
                log: ForkLog::begin(root, pid)?,
                order: Order::default(),
                counted: BTreeMap::new(),
                partial: false,
                read: None,
                refused: None,
            })
        });
    }

    /// What the log says of a refusal that is about to be told; `seen` is what the kernel side saw.
    pub(super) fn of(
        &mut self,
        root: &Root,
        pid: Pid,
        seen: ChildKind,
        lost: u64,
        now: Instant,
    ) -> Option<ChildKind> {
        let log = self.0.get_mut(&pid)?.as_mut()?;
        log.refused = Some(now);
        if log.order.said.is_empty() && log.may_look(now) {
            log.look(root, pid, now);
        }
        log.order.refused(seen, lost)
    }

    /// Looks where a refusal was told a moment ago.
    fn tick(&mut self, root: &Root, now: Instant) {
        for (pid, log) in &mut self.0 {
            if let Some(log) = log
                && log.may_have_more()
                && log.may_look(now)
            {
                log.look(root, *pid, now);
            }
        }
    }

    /// Counts by kind, with a last look where the server still runs; the second says that not all
    /// was read. `None` where the log cannot be read or says nothing.
    pub(super) fn end(
        &mut self,
        root: &Root,
        pid: Pid,
        now: Instant,
    ) -> Option<(BTreeMap<String, u64>, bool)> {
        let mut log = self.0.remove(&pid)??;
        if log.may_have_more() {
            log.look(root, pid, now);
        }
        let counted = log.counted.into_iter();
        let counted: BTreeMap<String, u64> = counted
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        (!counted.is_empty()).then_some((counted, log.partial))
    }
}

impl Trace<'_> {
    /// Follows the logs of the postmasters that are watched.
    pub(super) fn look_at_logs(&mut self) {
        for watched in self.watchlist.alive() {
            if watched.shown.kind == WatchedKind::Postmaster {
                self.server_logs.follow(&self.root, watched.id.pid);
            }
        }
        self.server_logs.tick(&self.root, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{FakeProcess, FakeRoot};
    use ChildKind::{AutovacuumWorker, BackgroundWorker, ClientBackend, Unknown, Worker};

    #[test]
    fn lines_belong_to_refusals_in_their_order() {
        let mut order = Order::default();
        order.line(AutovacuumWorker);
        order.line(ClientBackend);
        order.line(BackgroundWorker);
        assert_eq!(order.refused(Worker, 0), Some(AutovacuumWorker));
        assert_eq!(order.refused(ClientBackend, 0), Some(ClientBackend));
        assert_eq!(order.refused(Unknown, 0), Some(BackgroundWorker));
        // The line comes after its refusal was told: it is not the next one's.
        assert_eq!(order.refused(Worker, 0), None);
        order.line(AutovacuumWorker);
        order.line(BackgroundWorker);
        assert_eq!(order.refused(Worker, 0), Some(BackgroundWorker));
    }

    #[test]
    fn once_in_doubt_no_line_is_given_to_a_refusal() {
        let mut order = Order::default();
        order.line(BackgroundWorker);
        order.line(BackgroundWorker);
        assert_eq!(order.refused(ClientBackend, 0), None, "it contradicts");
        assert_eq!(order.refused(Worker, 0), None);
        let mut order = Order::default();
        order.line(ClientBackend);
        assert_eq!(order.refused(Worker, 0), None);
        let mut order = Order::default();
        order.line(BackgroundWorker);
        order.line(BackgroundWorker);
        assert_eq!(order.refused(Worker, 1), None, "a record was lost");
        assert_eq!(order.refused(Worker, 1), None);
    }

    #[test]
    fn a_log_is_followed_counted_and_looked_at_only_so_often() {
        let fake = FakeRoot::new();
        fake.process(&FakeProcess::new(700));
        fake.write("proc/700/cmdline", "postgres\0");
        fake.write("log", "LOG:  could not fork worker process: before\n");
        fake.link("proc/700/fd/2", fake.path("log"));
        let append = |text: &str| {
            let old = std::fs::read_to_string(fake.path("log")).unwrap();
            std::fs::write(fake.path("log"), old + text).unwrap();
        };
        let mut logs = ServerLogs::default();
        logs.follow(fake.root(), 700);
        let start = Instant::now();
        append("LOG:  could not fork autovacuum worker process: x\n");
        let mut of = |now| logs.of(fake.root(), 700, Worker, 0, now);
        assert_eq!(of(start), Some(AutovacuumWorker));
        append("LOG:  could not fork worker process: x\n");
        assert_eq!(of(start + PAUSE / 2), None);
        logs.tick(fake.root(), start + PAUSE);
        append("LOG:  could not fork new process for connection: x\n");
        let (counted, partial) = logs.end(fake.root(), 700, start + PAUSE * 2).unwrap();
        let expected = [
            ("autovacuum_worker", 1),
            ("background_worker", 1),
            ("client_backend", 1),
        ];
        let counted: Vec<(&str, u64)> = counted
            .iter()
            .map(|(name, count)| (name.as_str(), *count))
            .collect();
        assert_eq!((counted.as_slice(), partial), (&expected[..], false));
        assert_eq!(logs.end(fake.root(), 700, start), None);
        // No log, no word.
        logs.follow(fake.root(), 701);
        assert_eq!(logs.of(fake.root(), 701, Worker, 0, start), None);
    }
}
