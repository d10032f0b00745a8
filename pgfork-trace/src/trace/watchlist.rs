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
/// Right after it has executed a program, the C library of a process is not mapped yet.
const LINKING: Duration = Duration::from_secs(1);

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
    candidates: BTreeMap<Pid, Candidate>,
}

/// A process that is called like a postmaster.
struct Candidate {
    since: Instant,
    /// What its arguments say; `None` for what is not starting as a postmaster.
    starting: Option<Box<Postmaster>>,
    /// Its forks are recorded already, and judged once it is known what it is.
    followed: bool,
}

/// A new postmaster.
pub(super) struct Found {
    pub(super) pid: Pid,
    /// A predecessor in the same data directory.
    pub(super) previous: Option<Pid>,
    /// Its forks were recorded before it was known.
    pub(super) followed: bool,
}

/// What a look at the candidates found.
#[derive(Default)]
pub(super) struct Looked {
    pub(super) found: Vec<Found>,
    /// Followed, and no postmasters of interest.
    pub(super) dropped: Vec<Pid>,
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
    pub(super) fn candidate(&mut self, root: &Root, pid: Pid, now: Instant) {
        if self.filter.awaits_postmasters() && !self.alive.contains_key(&pid) {
            let starting = postgres::starting(root, pid).ok().flatten();
            let candidate = Candidate {
                since: now,
                starting: starting.map(Box::new),
                followed: false,
            };
            self.candidates.insert(pid, candidate);
        }
    }

    pub(super) fn has_candidates(&self) -> bool {
        !self.candidates.is_empty()
    }

    pub(super) fn is_candidate(&self, pid: Pid) -> bool {
        self.candidates.contains_key(&pid) && !self.alive.contains_key(&pid)
    }

    /// Starting postmasters whose forks are not recorded yet, and whether each has only begun.
    pub(super) fn unfollowed(&self, now: Instant) -> impl Iterator<Item = (Pid, bool)> {
        self.candidates
            .iter()
            .filter(|(_, it)| !it.followed && it.starting.is_some())
            .map(move |(pid, it)| (*pid, now.duration_since(it.since) < LINKING))
    }

    /// The forks of this candidate are recorded from now on.
    pub(super) fn follow(&mut self, pid: Pid) {
        if let Some(candidate) = self.candidates.get_mut(&pid) {
            candidate.followed = true;
        }
    }

    /// Looks at the candidates again; those that became postmasters of interest are added.
    pub(super) fn look_again(&mut self, root: &Root, now: Instant) -> Looked {
        let mut postmasters = Vec::new();
        let mut done = BTreeSet::new();
        for (&pid, candidate) in &self.candidates {
            let waits = now.duration_since(candidate.since) < CANDIDATE_FOR;
            match postgres::identify(root, pid) {
                Ok(Identity::Postmaster(postmaster)) => {
                    // Without a port yet it cannot be told whether a port was asked for.
                    if postmaster.port.is_none() && !self.filter.ports.is_empty() && waits {
                        continue;
                    }
                    done.insert(pid);
                    if self.wants(root, &postmaster) {
                        postmasters.push(*postmaster);
                    }
                }
                Ok(Identity::Candidate(it)) if it.why != Why::SingleUser && waits => {}
                // Its last records may not have been read yet; that of its end comes behind them.
                Ok(Identity::Gone | Identity::Other { .. }) if candidate.followed && waits => {}
                _ => {
                    done.insert(pid);
                }
            }
        }
        let mut looked = Looked::default();
        for postmaster in &postmasters {
            looked.found.push(self.adopt(root, postmaster));
        }
        for pid in done {
            let followed = self.candidates.remove(&pid).is_some_and(|it| it.followed);
            // It may be watched for its name.
            if followed && !self.alive.contains_key(&pid) {
                looked.dropped.push(pid);
            }
        }
        looked
    }

    /// A candidate was refused a fork, so what it is has to be known now. It may have ended, or
    /// have given its lock file back: then what its arguments said counts.
    pub(super) fn decide(&mut self, root: &Root, pid: Pid) -> Option<Found> {
        let postmaster = match postgres::identify(root, pid) {
            Ok(Identity::Postmaster(postmaster)) => Some(postmaster),
            Ok(Identity::Child { .. }) => None,
            Ok(Identity::Candidate(it)) if it.why == Why::SingleUser => None,
            _ => self.candidates.get_mut(&pid)?.starting.take(),
        };
        let wanted = postmaster.filter(|postmaster| self.wants(root, postmaster));
        let found = wanted.map(|postmaster| self.adopt(root, &postmaster));
        self.candidates.remove(&pid);
        found
    }

    fn adopt(&mut self, root: &Root, postmaster: &Postmaster) -> Found {
        let previous = self
            .gone
            .iter()
            .rev()
            .find(|watched| watched.data_dir.as_ref() == Some(&postmaster.data_dir))
            .map(|watched| watched.id.pid);
        let candidate = self.candidates.remove(&postmaster.pid);
        self.alive
            .insert(postmaster.pid, watched_postmaster(root, postmaster));
        Found {
            pid: postmaster.pid,
            previous,
            followed: candidate.is_some_and(|it| it.followed),
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

    fn arguments(fake: &FakeRoot, pid: Pid, arguments: &[&str]) {
        fake.write(format!("proc/{pid}/cmdline"), arguments.join("\0"));
    }

    /// Has just executed the program; its data directory is not its working directory yet.
    fn executed(fake: &FakeRoot, list: &mut Watchlist, arguments: &[&str]) {
        fake.process(&FakeProcess::postgres(700, "elsewhere"));
        self::arguments(fake, 700, arguments);
        list.candidate(fake.root(), 700, Instant::now());
    }

    #[test]
    fn a_starting_postmaster_is_followed_before_it_has_a_lock_file() {
        let (fake, mut list) = list(Filter::default());
        executed(&fake, &mut list, &["postgres", "-D", "/pg"]);
        let now = Instant::now();
        let follows = |list: &Watchlist, at| list.unfollowed(at).collect::<Vec<_>>();
        assert!(list.look_again(fake.root(), now).found.is_empty());
        assert_eq!(follows(&list, now), [(700, true)]);
        assert_eq!(follows(&list, now + LINKING * 2), [(700, false)]);
        list.follow(700);
        assert_eq!(follows(&list, now), []);
        fake.data_dir("pg", "/pg", 700, 5432);
        fake.process(&FakeProcess::postgres(700, "pg"));
        let looked = list.look_again(fake.root(), now);
        assert!(looked.found[0].followed && looked.dropped.is_empty());
        assert!(list.is_alive(700) && !list.is_candidate(700));
    }

    #[test]
    fn a_refused_postmaster_is_known_by_its_arguments_when_it_has_ended() {
        for is_zombie in [false, true] {
            let (fake, mut list) = list(Filter::default());
            fake.data_dir("proc/700/root/pg", "/pg", 1, 5432);
            executed(&fake, &mut list, &["postgres", "-D", "/pg"]);
            list.follow(700);
            if is_zombie {
                fake.process(&FakeProcess {
                    state: 'Z',
                    ..FakeProcess::postgres(700, "elsewhere")
                });
            } else {
                fake.remove("proc/700");
            }
            // Its record may still be on its way.
            let looked = list.look_again(fake.root(), Instant::now());
            assert!(looked.dropped.is_empty() && list.is_candidate(700));
            assert!(list.decide(fake.root(), 700).is_some_and(|it| it.followed));
            let shown = &list.get_mut(700).unwrap().shown;
            assert_eq!(shown.kind, line::WatchedKind::Postmaster);
            assert_eq!(shown.data_dir.as_deref(), Some("/pg"));
            assert_eq!(shown.version.as_deref(), Some("15"));
        }
    }

    #[test]
    fn what_is_no_postmaster_is_dropped_and_its_refusals_are_not_told() {
        for other in [
            ["postgres", "--single"],
            ["postgres", "--boot"],
            ["postgres: app db [local] idle", ""],
        ] {
            let (fake, mut list) = list(Filter::default());
            executed(&fake, &mut list, &other);
            assert_eq!(list.unfollowed(Instant::now()).count(), 0, "{other:?}");
            assert!(list.decide(fake.root(), 700).is_none(), "{other:?}");
        }
        // By its lock file, whatever its arguments say.
        let (fake, mut list) = list(Filter::default());
        executed(&fake, &mut list, &["postgres", "-D", "/pg"]);
        list.follow(700);
        fake.data_dir("pg", "/pg", -700, 5432);
        fake.process(&FakeProcess::postgres(700, "pg"));
        assert!(list.decide(fake.root(), 700).is_none());
        list.candidate(fake.root(), 700, Instant::now());
        list.follow(700);
        assert_eq!(list.look_again(fake.root(), Instant::now()).dropped, [700]);
        assert!(!list.is_alive(700));
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
