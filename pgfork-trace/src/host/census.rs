//! One walk through `/proc`: every process, and which numbers of the pid space are taken.

use std::collections::HashSet;
use std::ffi::OsString;

use super::process::{self, namespace};
use super::read::{self, ReadError};
use super::{Pid, Root};

/// A process as the census has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Pid in the tool's pid namespace.
    pub pid: Pid,
    /// Parent, 0 when outside of the tool's pid namespace.
    pub parent: Pid,
    /// Name of the main thread, any bytes.
    pub comm: OsString,
    /// State letter; `Z` is a zombie, which still counts as a task.
    pub state: char,
    /// A thread of the kernel.
    pub kernel_thread: bool,
    /// Start, in ticks of 1/[`super::USER_HZ`] s since boot.
    pub start_ticks: u64,
    /// Real user id. `None` when the process ended before it could be asked.
    pub uid: Option<u32>,
    /// Tasks of the process.
    pub threads: u64,
    /// Times that its main thread went to sleep.
    pub switches: Option<u64>,
}

/// All processes and what they take of the pid space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Census {
    /// By pid.
    pub processes: Vec<Seen>,
    /// Numbers taken in the tool's own pid namespace, by tasks, and by process groups and sessions
    /// whose first process has ended, in order.
    pub numbers: Vec<Pid>,
    /// Lowest number that is given to a new task here, see [`pid_cursor`].
    pub lowest: Pid,
    /// What was not in its format.
    pub unread: Vec<String>,
}

/// Numbers below this are only given out before the first wrap (`RESERVED_PIDS`, include/linux/pid.h
/// or kernel/pid.c, 5.10 to 7.2).
pub const RESERVED_PIDS: Pid = 300;

/// Takes the census. Processes that end meanwhile are left out.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn census(root: &Root) -> Result<Census, ReadError> {
    // `alloc_pid`, kernel/pid.c: from the cursor to the end, and then again from 300. Numbers
    // below 300 are given out once, before the cursor has passed them.
    let mut found = Census::default();
    let last = read::noted(pid_cursor(root), &mut found.unread).unwrap_or(RESERVED_PIDS);
    found.lowest = last.saturating_add(1).min(RESERVED_PIDS);
    let mut numbers = HashSet::new();
    for pid in process::pids(root)? {
        let Ok(Some(stat)) = process::stat(root, pid) else {
            continue;
        };
        let status = process::status(root, pid).ok().flatten();
        let threads = status.as_ref().map_or(1, |status| status.threads);
        numbers.extend([pid, stat.group, stat.session]);
        if threads > 1 {
            numbers.extend(thread_ids(root, pid));
        }
        found.processes.push(Seen {
            pid,
            parent: stat.parent,
            comm: stat.comm,
            state: stat.state,
            kernel_thread: stat.kernel_thread,
            start_ticks: stat.start_ticks,
            uid: status.as_ref().map(|status| status.uids.real),
            threads,
            switches: status.and_then(|status| status.voluntary_switches),
        });
    }
    found.numbers = numbers.into_iter().collect();
    found.numbers.sort_unstable();
    found.processes.sort_unstable_by_key(|seen| seen.pid);
    Ok(found)
}

fn thread_ids(root: &Root, pid: Pid) -> Vec<Pid> {
    let Ok(entries) = std::fs::read_dir(root.pid(pid).join("task")) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The number given out last in the tool's pid namespace: field 5 of `/proc/loadavg`
/// (fs/proc/loadavg.c, 5.10 to 7.2).
///
/// # Errors
/// When the field is there and not a number.
pub fn pid_cursor(root: &Root) -> Result<Option<Pid>, ReadError> {
    let path = root.proc().join("loadavg");
    let Some(text) = read::small(&path, 256)? else {
        return Ok(None);
    };
    let Some(field) = read::fields(&text).nth(4) else {
        return Ok(None);
    };
    match read::parse(field) {
        Some(last) => Ok(Some(last)),
        None => Err(ReadError::parse(&path, 1, "the last pid as field 5", field)),
    }
}

impl Census {
    /// Tasks of the real user id `uid`, and if `user_ns` is given, only those in that user
    /// namespace. The second number is of tasks whose namespace could not be read.
    #[must_use]
    pub fn tasks_of(&self, root: &Root, uid: u32, user_ns: Option<u64>) -> (u64, u64) {
        let (mut tasks, mut unknown) = (0_u64, 0_u64);
        let add = |sum: &mut u64, threads: u64| *sum = sum.saturating_add(threads);
        for seen in self.processes.iter().filter(|seen| seen.uid == Some(uid)) {
            match user_ns.map(|wanted| (wanted, namespace(&root.pid(seen.pid), "user"))) {
                // The namespace of a zombie is gone from /proc, and that of a child is its parent's.
                Some((_, None)) if seen.state != 'Z' => add(&mut unknown, seen.threads),
                Some((wanted, Some(found))) if wanted != found => {}
                _ => add(&mut tasks, seen.threads),
            }
        }
        (tasks, unknown)
    }

    /// Tasks of `uid` by the name of their process, most first, at most `top` names.
    #[must_use]
    pub fn names_of(&self, uid: u32, top: usize) -> Vec<(OsString, u64)> {
        let mut by_name = std::collections::HashMap::<&OsString, u64>::new();
        for seen in self.processes.iter().filter(|seen| seen.uid == Some(uid)) {
            let sum = by_name.entry(&seen.comm).or_default();
            *sum = sum.saturating_add(seen.threads);
        }
        let mut sorted: Vec<_> = by_name
            .into_iter()
            .map(|(name, tasks)| (name.clone(), tasks))
            .collect();
        sorted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        sorted.truncate(top);
        sorted
    }

    /// How many numbers are taken of those that are given out while kernel.pid_max is `max`.
    #[must_use]
    pub fn taken_below(&self, max: u64) -> u64 {
        let counts = |number: &&Pid| **number >= self.lowest && u64::from(**number) < max;
        self.numbers.iter().filter(counts).count() as u64
    }

    /// Children of `pid`.
    pub fn children(&self, pid: Pid) -> impl Iterator<Item = &Seen> {
        self.processes.iter().filter(move |seen| seen.parent == pid)
    }

    /// Tasks in the pid namespace `wanted`, without those in namespaces below it.
    #[must_use]
    pub fn tasks_in(&self, root: &Root, wanted: u64) -> u64 {
        let in_it = |seen: &&Seen| namespace(&root.pid(seen.pid), "pid") == Some(wanted);
        let threads = self.processes.iter().filter(in_it).map(|seen| seen.threads);
        threads.fold(0, u64::saturating_add)
    }

    /// Whether the pid namespace `wanted` has a living first process: without one, nothing can be
    /// forked into it (`disable_pid_allocation`, kernel/pid.c, 5.10 to 7.2). `None` when namespaces
    /// cannot be read.
    #[must_use]
    pub fn namespace_has_init(&self, root: &Root, wanted: u64) -> Option<bool> {
        let mut unreadable = false;
        for seen in self.processes.iter().filter(|seen| !seen.kernel_thread) {
            match namespace(&root.pid(seen.pid), "pid") {
                Some(found) if found == wanted => {
                    let status = process::status(root, seen.pid).ok().flatten();
                    let own = status.and_then(|status| status.ns_pids.last().copied());
                    if own == Some(1) && seen.state != 'Z' {
                        return Some(true);
                    }
                }
                Some(_) => {}
                None => unreadable |= seen.state != 'Z',
            }
        }
        (!unreadable).then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeProcess, FakeRoot};
    use super::*;

    #[test]
    fn counts_numbers_users_and_children() {
        let fake = FakeRoot::new();
        fake.write("proc/loadavg", "0 0 0 1/5 5000\n");
        for pid in [1, 700, 701, 702] {
            fake.process(&FakeProcess {
                parent: if pid > 700 { 700 } else { 1 },
                threads: if pid == 702 { 3 } else { 1 },
                ..FakeProcess::new(pid)
            });
        }
        for tid in [702, 703, 704] {
            fake.write(format!("proc/702/task/{tid}/x"), "");
        }
        let census = census(fake.root()).unwrap();
        assert_eq!(census.lowest, 300);
        // 700, 701, 702, 703, 704; pid 1 and group 1 are below the lowest.
        assert_eq!(census.taken_below(32768), 5);
        // Numbers above a limit that was lowered later take no room below it.
        assert_eq!(census.taken_below(702), 2);
        assert_eq!(census.children(700).count(), 2);
        assert_eq!(census.tasks_of(fake.root(), 26, None), (6, 0));
        assert_eq!(
            census.tasks_of(fake.root(), 26, Some(4_026_531_837)),
            (6, 0)
        );
        assert_eq!(census.tasks_of(fake.root(), 26, Some(7)), (0, 0));
        assert_eq!(census.names_of(26, 1), [("sh".into(), 6)]);
    }

    #[test]
    fn a_young_namespace_uses_low_numbers_too() {
        let fake = FakeRoot::new();
        fake.write("proc/loadavg", "0 0 0 1/5 12\n");
        fake.process(&FakeProcess::new(1));
        let census = census(fake.root()).unwrap();
        assert_eq!((census.lowest, census.taken_below(100)), (13, 0));
        fake.write("proc/loadavg", "0 0 0 1/5 many\n");
        let census = super::census(fake.root()).unwrap();
        assert_eq!((census.lowest, census.processes.len()), (300, 1));
        assert!(
            census.unread[0].contains("loadavg\":1"),
            "{:?}",
            census.unread
        );
    }
}
