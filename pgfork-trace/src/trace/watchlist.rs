//! Which processes are watched, and which might have to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use pgfork_trace_common::{ClientKey, Totals};

use super::totals;
use crate::{
    gather::text,
    host::{
        self, Pid, Root,
        process::{AnyProcess, ProcessId},
    },
    output::line,
    postgres::{self, Filter, Identity, Postmaster, Target, Why},
};

/// A process that is named like a postmaster but has no lock file yet is looked at again for this long.
const CANDIDATE_FOR: Duration = Duration::from_secs(120);

/// Ended processes that are kept apart.
const MOST_GONE: usize = 256;

/// A watched process.
pub(super) struct Watched {
    pub(super) id: ProcessId,
    pub(super) shown: line::Postmaster,
    data_dir: Option<PathBuf>,
    pub(super) by_cause: BTreeMap<String, u64>,
    /// Refused forks of its descendants.
    pub(super) child_by_cause: BTreeMap<String, u64>,
    /// Refused requests for memory of it and its descendants.
    pub(super) memory_by_cause: BTreeMap<String, u64>,
    /// OOM kills of it and its descendants.
    pub(super) oom_kills: u64,
    since: Instant,
    until: Option<Instant>,
    /// Its counts, once it has ended.
    pub(super) counted: Option<Box<Totals>>,
    /// Its connections, once it has ended: another may have its pid since.
    pub(super) clients: Vec<(ClientKey, u64)>,
    /// What its log said, once it has ended: refused forks by kind, and whether that is all.
    pub(super) logged: Option<(BTreeMap<String, u64>, bool)>,
    /// Processes of the same name that ended before, and are counted with this one.
    pub(super) merged: u64,
}

impl Watched {
    /// Counts what another one of the same name did as its own.
    fn take_over(&mut self, other: Self) {
        self.merged += 1 + other.merged;
        let causes = [
            (&mut self.by_cause, other.by_cause),
            (&mut self.child_by_cause, other.child_by_cause),
            (&mut self.memory_by_cause, other.memory_by_cause),
        ];
        for (own, theirs) in causes {
            for (cause, count) in theirs {
                *own.entry(cause).or_default() += count;
            }
        }
        self.oom_kills += other.oom_kills;
        self.counted = match (self.counted.take(), other.counted) {
            (Some(mut own), Some(theirs)) => {
                totals::add(&mut own, &theirs);
                Some(own)
            }
            (own, theirs) => own.or(theirs),
        };
    }

    /// How long it was, or has been, watched.
    pub(super) fn time(&self) -> Duration {
        let until = self.until.unwrap_or_else(Instant::now);
        until.duration_since(self.since)
    }
}

/// All that are or were watched, and candidates.
#[derive(Default)]
pub(super) struct Watchlist {
    filter: Filter,
    alive: BTreeMap<Pid, Watched>,
    gone: Vec<Watched>,
    candidates: BTreeMap<Pid, Instant>,
}

/// What a look at a candidate found.
pub(super) enum Found {
    /// A new postmaster; a predecessor in the same data directory, if there was one.
    New { pid: Pid, previous: Option<Pid> },
}

impl Watchlist {
    pub(super) fn new(filter: Filter) -> Self {
        Self {
            filter,
            ..Self::default()
        }
    }

    pub(super) fn add(&mut self, root: &Root, target: &Target) {
        let watched = match target {
            Target::Postmaster(postmaster) => watched_postmaster(root, postmaster),
            Target::Process(process) => watched_process(process),
        };
        self.alive.insert(watched.id.pid, watched);
    }

    /// It ended, with these counts and connections. Nothing if it had ended before.
    pub(super) fn remove(
        &mut self,
        pid: Pid,
        counted: Option<Totals>,
        clients: Vec<(ClientKey, u64)>,
    ) -> Option<&Watched> {
        self.candidates.remove(&pid);
        let mut watched = self.alive.remove(&pid)?;
        watched.until = Some(Instant::now());
        watched.counted = counted.map(Box::new);
        watched.clients = clients;
        if self.gone.len() >= MOST_GONE {
            self.merge_oldest();
        }
        self.gone.push(watched);
        self.gone.last()
    }

    /// It could not be watched at all.
    pub(super) fn discard(&mut self, pid: Pid) {
        self.alive.remove(&pid);
    }

    /// Whether it was named by its pid.
    pub(super) fn is_named(&self, pid: Pid) -> bool {
        self.filter.pids.contains(&pid)
    }

    /// Short-lived processes of one name may be any number: those that ended first become one.
    fn merge_oldest(&mut self) {
        let name = |watched: &Watched| match watched.shown.kind {
            line::WatchedKind::Process => watched.shown.comm.clone(),
            line::WatchedKind::Postmaster => None,
        };
        for first in 0..self.gone.len() {
            let Some(comm) = name(&self.gone[first]) else {
                continue;
            };
            let rest = self.gone.iter().skip(first + 1);
            let Some(next) = rest.clone().position(|it| name(it).as_ref() == Some(&comm)) else {
                continue;
            };
            let ended = self.gone.remove(first);
            self.gone[first + next].take_over(ended);
            return;
        }
    }

    pub(super) fn is_alive(&self, pid: Pid) -> bool {
        self.alive.contains_key(&pid)
    }

    pub(super) fn get_mut(&mut self, pid: Pid) -> Option<&mut Watched> {
        // A refusal may be read after the end of its process.
        if self.alive.contains_key(&pid) {
            return self.alive.get_mut(&pid);
        }
        self.gone
            .iter_mut()
            .rev()
            .find(|watched| watched.id.pid == pid)
    }

    pub(super) fn alive(&self) -> impl Iterator<Item = &Watched> {
        self.alive.values()
    }

    pub(super) fn everyone(&self) -> impl Iterator<Item = &Watched> {
        self.gone.iter().chain(self.alive.values())
    }

    /// Only processes named by pid were asked for, and none is left.
    pub(super) fn is_over(&self) -> bool {
        self.alive.is_empty() && !self.filter.awaits_postmasters() && self.filter.comms.is_empty()
    }

    /// A process of that name was started.
    pub(super) fn candidate(&mut self, pid: Pid, now: Instant) {
        if self.filter.awaits_postmasters() && !self.alive.contains_key(&pid) {
            self.candidates.insert(pid, now);
        }
    }

    pub(super) fn has_candidates(&self) -> bool {
        !self.candidates.is_empty()
    }

    /// Looks at the candidates again; those that became postmasters of interest are added.
    pub(super) fn look_again(&mut self, root: &Root, now: Instant) -> Vec<Found> {
        let mut found = Vec::new();
        let mut done = BTreeSet::new();
        for (&pid, &since) in &self.candidates {
            match postgres::identify(root, pid) {
                Ok(Identity::Postmaster(postmaster)) => {
                    // Without a port yet it cannot be told whether a port was asked for.
                    if postmaster.port.is_none()
                        && !self.filter.ports.is_empty()
                        && now.duration_since(since) < CANDIDATE_FOR
                    {
                        continue;
                    }
                    done.insert(pid);
                    if self.wants(root, &postmaster) {
                        found.push(*postmaster);
                    }
                }
                Ok(Identity::Candidate(candidate))
                    if candidate.why != Why::SingleUser
                        && now.duration_since(since) < CANDIDATE_FOR => {}
                _ => {
                    done.insert(pid);
                }
            }
        }
        self.candidates.retain(|pid, _| !done.contains(pid));
        found
            .into_iter()
            .map(|postmaster| self.adopt(root, &postmaster))
            .collect()
    }

    fn adopt(&mut self, root: &Root, postmaster: &Postmaster) -> Found {
        let previous = self
            .gone
            .iter()
            .rev()
            .find(|watched| watched.data_dir.as_ref() == Some(&postmaster.data_dir))
            .map(|watched| watched.id.pid);
        self.alive
            .insert(postmaster.pid, watched_postmaster(root, postmaster));
        Found::New {
            pid: postmaster.pid,
            previous,
        }
    }

    fn wants(&self, root: &Root, postmaster: &Postmaster) -> bool {
        if self.filter == Filter::default() {
            return true;
        }
        let filter = Filter {
            pids: Vec::new(),
            comms: Vec::new(),
            ..self.filter.clone()
        };
        // Each wish on its own: select() insists that all of them exist.
        let single = filter
            .ports
            .iter()
            .map(|port| Filter {
                ports: vec![*port],
                ..Filter::default()
            })
            .chain(filter.data_dirs.iter().map(|dir| Filter {
                data_dirs: vec![dir.clone()],
                ..Filter::default()
            }));
        let one = std::slice::from_ref(postmaster);
        single
            .into_iter()
            .any(|wish| postgres::select(root, one, &wish).is_ok())
    }
}

/// When a process was started, by the clock of now: what suspends and sets of the clock were
/// in between does not matter to its age.
fn started(root: &Root, id: ProcessId) -> Option<Timestamp> {
    let uptime = host::uptime(root).ok().flatten()?;
    let age = SignedDuration::try_from(id.age(uptime)).ok()?;
    Timestamp::now().checked_sub(age).ok()
}

fn watched_postmaster(root: &Root, postmaster: &Postmaster) -> Watched {
    Watched {
        id: postmaster.id(),
        shown: line::Postmaster {
            pid: postmaster.pid,
            kind: line::WatchedKind::Postmaster,
            comm: None,
            port: postmaster.port,
            data_dir: Some(text(postmaster.data_dir.as_os_str())),
            version: postmaster.version.clone(),
            unit: postmaster.unit.as_ref().map(|unit| unit.unit.clone()),
            container: postmaster
                .container
                .as_ref()
                .map(|container| container.id.clone()),
            started: started(root, postmaster.id()),
        },
        data_dir: Some(postmaster.data_dir.clone()),
        by_cause: BTreeMap::new(),
        child_by_cause: BTreeMap::new(),
        memory_by_cause: BTreeMap::new(),
        oom_kills: 0,
        since: Instant::now(),
        until: None,
        counted: None,
        clients: Vec::new(),
        logged: None,
        merged: 0,
    }
}

fn watched_process(process: &AnyProcess) -> Watched {
    Watched {
        id: process.id,
        shown: line::Postmaster {
            pid: process.id.pid,
            kind: line::WatchedKind::Process,
            comm: process
                .stat
                .comm
                .to_str()
                .map(str::to_owned)
                .or_else(|| Some(text(&process.stat.comm))),
            ..line::Postmaster::default()
        },
        data_dir: None,
        by_cause: BTreeMap::new(),
        child_by_cause: BTreeMap::new(),
        memory_by_cause: BTreeMap::new(),
        oom_kills: 0,
        since: Instant::now(),
        until: None,
        counted: None,
        clients: Vec::new(),
        logged: None,
        merged: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        capture::NO_TOTALS,
        host::fake::{FakeProcess, FakeRoot},
    };

    fn list(filter: Filter) -> (FakeRoot, Watchlist) {
        (FakeRoot::new(), Watchlist::new(filter))
    }

    fn add(fake: &FakeRoot, list: &mut Watchlist, pid: Pid, comm: &[u8]) {
        fake.process(&FakeProcess {
            comm: comm.to_vec(),
            ..FakeProcess::new(pid)
        });
        let process = host::process::any_process(fake.root(), pid);
        list.add(
            fake.root(),
            &Target::Process(Box::new(process.unwrap().unwrap())),
        );
    }

    fn forks(count: u64) -> Option<Totals> {
        Some(Totals {
            forks: count,
            ..NO_TOTALS
        })
    }

    #[test]
    fn very_many_ended_processes_are_counted_and_bounded() {
        let (fake, mut list) = list(Filter::default());
        let many = MOST_GONE as u32 + 50;
        for pid in 1..=many {
            add(
                &fake,
                &mut list,
                pid,
                if pid % 2 == 0 { b"a" } else { b"b" },
            );
            list.get_mut(pid)
                .unwrap()
                .by_cause
                .insert("commit_limit".to_owned(), 1);
            list.remove(pid, forks(u64::from(pid)), Vec::new());
        }
        let all: Vec<&Watched> = list.everyone().collect();
        assert_eq!(all.len(), MOST_GONE);
        let counted: u64 = all.iter().map(|it| 1 + it.merged).sum();
        assert_eq!(counted, u64::from(many));
        let forked: u64 = all
            .iter()
            .filter_map(|it| Some(it.counted.as_ref()?.forks))
            .sum();
        assert_eq!(forked, (1..=u64::from(many)).sum::<u64>());
        let refused: u64 = all.iter().map(|it| it.by_cause["commit_limit"]).sum();
        assert_eq!(refused, u64::from(many));
        // Those that ended last are still known by their own pid.
        assert!(list.get_mut(many).is_some());
        assert!(list.get_mut(1).is_none());
    }

    #[test]
    fn the_end_of_a_process_is_counted_once() {
        let (fake, mut list) = list(Filter::default());
        add(&fake, &mut list, 7, b"postgres");
        let client = (ClientKey::default(), 3);
        assert!(list.remove(7, forks(2), vec![client]).is_some());
        // Its end is also seen by looking, and may be reported after that.
        assert!(list.remove(7, None, Vec::new()).is_none());
        let ended = list.get_mut(7).unwrap();
        assert_eq!(ended.clients.len(), 1);
        assert_eq!(ended.counted.as_ref().unwrap().forks, 2);
    }

    #[test]
    fn only_pids_can_be_over() {
        let over = |filter: Filter| list(filter).1.is_over();
        let pids = Filter {
            pids: vec![7],
            ..Filter::default()
        };
        assert!(over(pids.clone()));
        assert!(!over(Filter::default()));
        assert!(!over(Filter {
            comms: vec!["a".to_owned()],
            ..pids.clone()
        }));
        assert!(!over(Filter {
            ports: vec![1],
            ..pids
        }));
    }
}
