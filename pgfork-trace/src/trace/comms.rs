//! Processes that are watched for their name (`--comm`): those that run, those that execute a
//! program of that name, and those that were forked with it and never execute one.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    time::{Duration, Instant},
};

use pgfork_trace_common::MAX_WATCHED;

use super::Trace;
use crate::{
    host::{Pid, Root, process},
    output::{
        Line,
        line::{Change, Notice, PostmasterChange},
    },
    postgres::{self, Identity, Target},
};

/// How often `/proc` is looked through.
const PAUSE: Duration = Duration::from_secs(2);
/// Places of the kernel side's table that are left to what is watched for another reason.
const LEFT_FREE: usize = 16;
/// Longest name that the kernel keeps (`TASK_COMM_LEN` less the NUL, include/linux/sched.h,
/// 5.10 to 7.2).
pub(crate) const COMM_LENGTH: usize = 15;
/// So often a process is tried, a tick apart: right after it has executed a program its C library
/// is not mapped yet.
const MOST_TRIES: u32 = 8;
/// Processes named that could not be watched; further ones are only counted.
const MOST_SAID: usize = 5;

/// The names, and what is known of processes that have one.
#[derive(Debug, Default)]
pub(super) struct Comms {
    names: Vec<Vec<u8>>,
    looked: Option<Instant>,
    /// Could not be watched so far.
    refused: BTreeMap<Pid, Tried>,
    said: usize,
    full: bool,
}

/// A process that could not be watched, by its start, and how often it was tried.
#[derive(Clone, Copy, Debug)]
struct Tried {
    start_ticks: u64,
    times: u32,
}

impl Comms {
    pub(super) fn new(names: &[String]) -> Self {
        let cut = |name: &String| {
            let bytes = name.as_bytes();
            bytes[..bytes.len().min(COMM_LENGTH)].to_vec()
        };
        Self {
            names: names.iter().map(cut).collect(),
            ..Self::default()
        }
    }

    fn is_named(&self, comm: &OsStr) -> bool {
        self.names.iter().any(|name| name == comm.as_bytes())
    }

    /// Whether it is time to look through `/proc`.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        let due = !self.names.is_empty()
            && self
                .looked
                .is_none_or(|looked| now.duration_since(looked) >= PAUSE);
        if due {
            self.looked = Some(now);
        }
        due
    }

    /// All processes of these names that are not `known`, in the order of their pids.
    pub(super) fn look(&mut self, root: &Root, known: impl Fn(Pid) -> bool) -> Vec<Target> {
        let Ok(pids) = process::pids(root) else {
            return Vec::new();
        };
        let mut pids: Vec<Pid> = pids.collect();
        pids.sort_unstable();
        self.refused
            .retain(|pid, _| pids.binary_search(pid).is_ok());
        pids.into_iter()
            .filter(|pid| !known(*pid))
            .filter_map(|pid| self.target(root, pid))
            .collect()
    }

    /// This process, if it has one of the names and may be watched.
    pub(super) fn target(&self, root: &Root, pid: Pid) -> Option<Target> {
        if self.names.is_empty() || pid == std::process::id() {
            return None;
        }
        let stat = process::stat(root, pid).ok().flatten()?;
        if stat.kernel_thread
            || stat.state == 'Z'
            || !self.is_named(&stat.comm)
            || self
                .refused
                .get(&pid)
                .is_some_and(|it| it.start_ticks == stat.start_ticks && it.times >= MOST_TRIES)
        {
            return None;
        }
        if let Ok(Identity::Postmaster(postmaster)) = postgres::identify(root, pid) {
            return Some(Target::Postmaster(postmaster));
        }
        let process = process::any_process(root, pid).ok().flatten()?;
        Some(Target::Process(Box::new(process)))
    }

    /// Whether one more may be watched; the second says that this is the first one refused.
    pub(super) fn has_room(&mut self, watched: usize) -> (bool, bool) {
        let room = watched + LEFT_FREE < MAX_WATCHED as usize;
        let first = !room && !self.full;
        self.full = !room;
        (room, first)
    }

    /// Those that are to be tried again soon.
    fn retried(&self) -> Vec<Pid> {
        let open = self.refused.iter().filter(|(_, it)| it.times < MOST_TRIES);
        open.map(|(pid, _)| *pid).collect()
    }

    /// It could not be watched; whether to say so.
    fn could_not_be(&mut self, target: &Target) -> bool {
        let (pid, start_ticks) = match target {
            Target::Postmaster(postmaster) => (postmaster.pid, postmaster.start_ticks),
            Target::Process(process) => (process.id.pid, process.id.start_ticks),
        };
        let tried = self.refused.entry(pid).or_insert(Tried {
            start_ticks,
            times: 0,
        });
        if tried.start_ticks != start_ticks {
            *tried = Tried {
                start_ticks,
                times: 0,
            };
        }
        tried.times += 1;
        if tried.times < MOST_TRIES {
            return false;
        }
        self.said += 1;
        self.said <= MOST_SAID
    }

    /// It is watched.
    fn is_watched(&mut self, pid: Pid) {
        self.refused.remove(&pid);
    }

    /// How many could not be watched, where not each was said.
    pub(super) fn unsaid(&self) -> Option<Line> {
        let more = self.said.checked_sub(MOST_SAID).filter(|more| *more > 0)?;
        Some(Notice::line(
            "not_watched",
            format!("{more} more processes of the names asked for could not be watched"),
        ))
    }
}

impl Trace<'_> {
    /// Watches processes of the names asked for that run by now; what there is to say of it.
    pub(super) fn look_for_named(&mut self) -> Vec<Line> {
        let watchlist = &self.watchlist;
        let found = if self.comms.is_due(Instant::now()) {
            self.comms.look(&self.root, |pid| watchlist.is_alive(pid))
        } else {
            let again = self.comms.retried().into_iter();
            let found = again.filter_map(|pid| self.comms.target(&self.root, pid));
            found.collect()
        };
        found
            .iter()
            .filter_map(|target| self.watch_named(target))
            .collect()
    }

    /// The same for one that has just executed a program.
    pub(super) fn look_at_named(&mut self, pid: Pid) -> Option<Line> {
        if self.watchlist.is_alive(pid) {
            return None;
        }
        let target = self.comms.target(&self.root, pid)?;
        self.watch_named(&target)
    }

    fn watch_named(&mut self, target: &Target) -> Option<Line> {
        let (room, first) = self.comms.has_room(self.watchlist.alive().count());
        if !room {
            return first.then(|| {
                Notice::line(
                    "too_many_processes",
                    format!(
                        "{} processes are watched, and no more can be: further ones of that name are not",
                        self.watchlist.alive().count()
                    ),
                )
            });
        }
        let pid = target.pid();
        let is_postmaster = matches!(target, Target::Postmaster(_));
        if let Err(error) = self.follow(pid, is_postmaster) {
            let said = self.comms.could_not_be(target);
            return said.then(|| Notice::line("not_watched", error.to_string()));
        }
        self.comms.is_watched(pid);
        self.watchlist.add(&self.root, target);
        let postmaster = self.watchlist.get_mut(pid)?.shown.clone();
        Some(Line::Postmaster(PostmasterChange {
            event: Change::Appeared,
            postmaster,
            previous_pid: None,
            killed_by: None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::{FakeProcess, FakeRoot};

    fn named(pid: Pid, comm: &[u8]) -> FakeProcess {
        FakeProcess {
            comm: comm.to_vec(),
            ..FakeProcess::new(pid)
        }
    }

    fn pids(targets: &[Target]) -> Vec<Pid> {
        targets.iter().map(Target::pid).collect()
    }

    #[test]
    fn finds_those_of_the_name_and_no_others() {
        let fake = FakeRoot::new();
        fake.process(&named(20, b"pgbouncer"));
        fake.process(&named(10, b"pgbouncer"));
        fake.process(&named(30, b"pgbouncer2"));
        // As the kernel cuts it.
        fake.process(&named(40, b"logical-replica"));
        fake.process(&FakeProcess {
            state: 'Z',
            ..named(50, b"pgbouncer")
        });
        fake.process(&FakeProcess {
            flags: 0x0020_0000,
            ..named(60, b"pgbouncer")
        });
        let names = ["pgbouncer".to_owned(), "logical-replication".to_owned()];
        let mut comms = Comms::new(&names);
        assert_eq!(pids(&comms.look(fake.root(), |_| false)), [10, 20, 40]);
        assert_eq!(pids(&comms.look(fake.root(), |pid| pid == 10)), [20, 40]);
        assert!(Comms::default().look(fake.root(), |_| false).is_empty());
        assert!(comms.target(fake.root(), 30).is_none());
        assert!(comms.target(fake.root(), 999).is_none());
    }

    #[test]
    fn a_postmaster_of_that_name_is_one() {
        let fake = FakeRoot::new();
        fake.data_dir("pg", "/pg", 700, 5432);
        fake.process(&FakeProcess::postgres(700, "pg"));
        let comm = FakeProcess::postgres(700, "pg").comm;
        let name = String::from_utf8(comm).unwrap();
        let mut comms = Comms::new(&[name]);
        let found = comms.look(fake.root(), |_| false);
        assert!(matches!(&found[..], [Target::Postmaster(it)] if it.pid == 700));
    }

    #[test]
    fn what_could_not_be_watched_is_not_tried_again_until_it_is_another() {
        let fake = FakeRoot::new();
        fake.process(&named(10, b"a"));
        let mut comms = Comms::new(&["a".to_owned()]);
        let found = comms.look(fake.root(), |_| false);
        let give_up = |comms: &mut Comms| {
            for _ in 1..MOST_TRIES {
                assert!(!comms.could_not_be(&found[0]));
            }
            comms.could_not_be(&found[0])
        };
        // Its C library may be mapped a moment later.
        assert!(!comms.could_not_be(&found[0]));
        assert_eq!(comms.retried(), [10]);
        assert_eq!(comms.look(fake.root(), |_| false).len(), 1);
        comms.is_watched(10);
        assert!(comms.retried().is_empty());
        assert!(give_up(&mut comms));
        assert!(comms.retried().is_empty());
        assert!(comms.look(fake.root(), |_| false).is_empty());
        fake.process(&FakeProcess {
            start_ticks: 77_777,
            ..named(10, b"a")
        });
        assert_eq!(comms.look(fake.root(), |_| false).len(), 1);
        assert_eq!(comms.unsaid(), None);
        for _ in 1..MOST_SAID {
            comms.is_watched(10);
            assert!(give_up(&mut comms));
        }
        comms.is_watched(10);
        assert!(!give_up(&mut comms));
        assert!(
            matches!(comms.unsaid(), Some(Line::Notice(it)) if it.message.starts_with("1 more"))
        );
    }

    #[test]
    fn looks_every_two_seconds_and_only_with_a_name() {
        let start = Instant::now();
        assert!(!Comms::default().is_due(start));
        let mut comms = Comms::new(&["a".to_owned()]);
        assert!(comms.is_due(start));
        assert!(!comms.is_due(start + PAUSE - Duration::from_millis(1)));
        assert!(comms.is_due(start + PAUSE));
    }

    #[test]
    fn a_full_table_is_said_once_each_time_it_fills() {
        let mut comms = Comms::new(&["a".to_owned()]);
        let most = MAX_WATCHED as usize - LEFT_FREE;
        assert_eq!(comms.has_room(most - 1), (true, false));
        assert_eq!(comms.has_room(most), (false, true));
        assert_eq!(comms.has_room(most), (false, false));
        assert_eq!(comms.has_room(most - 1), (true, false));
        assert_eq!(comms.has_room(most), (false, true));
    }
}
