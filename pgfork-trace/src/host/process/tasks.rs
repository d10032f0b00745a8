//! Counting the tasks of a user, as `RLIMIT_NPROC` does.

use std::collections::HashMap;
use std::ffi::OsString;

use super::super::read::ReadError;
use super::super::{Pid, Root};
use super::{namespace, pids, stat, status};

/// Most distinct names that are told apart; a user can make any number of them.
const DISTINCT_NAMES: usize = 1024;

/// Tasks of one real user id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TaskCount {
    /// Threads of all processes, unreaped zombies included.
    pub tasks: u64,
    /// Processes that they belong to.
    pub processes: u64,
    /// Tasks of that user id whose user namespace could not be read, not in `tasks`.
    pub unknown_namespace: u64,
}

/// Counts the tasks whose real user id is `uid` and, if given, whose user namespace has the inode
/// `user_ns`.
///
/// The kernel counts per user id on the whole host in 5.10 (`user_struct.processes`) and per user id
/// and user namespace since 5.14 (`inc_rlimit_ucounts` in kernel/ucount.c), where a namespace's
/// tasks also count for the user who created it. Its own counter is exact; this one is a walk
/// through `/proc` while tasks come and go, and sees only its own pid namespace.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn tasks_of_uid(root: &Root, uid: u32, user_ns: Option<u64>) -> Result<TaskCount, ReadError> {
    let mut count = TaskCount::default();
    for (pid, threads) in threads_of(root, uid)? {
        match user_ns.map(|wanted| (wanted, namespace(&root.pid(pid), "user"))) {
            Some((_, None)) => count.unknown_namespace += threads,
            Some((wanted, Some(found))) if wanted != found => {}
            _ => {
                count.tasks += threads;
                count.processes += 1;
            }
        }
    }
    Ok(count)
}

/// Tasks of the real user id `uid` by the name of their process, most first, at most `top`
/// names. Beyond 1024 distinct names the further ones are not counted.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn tasks_by_comm_of_uid(
    root: &Root,
    uid: u32,
    top: usize,
) -> Result<Vec<(OsString, u64)>, ReadError> {
    let mut by_comm: HashMap<OsString, u64> = HashMap::new();
    for (pid, threads) in threads_of(root, uid)? {
        let Ok(Some(stat)) = stat(root, pid) else {
            continue;
        };
        if let Some(count) = by_comm.get_mut(&stat.comm) {
            *count += threads;
        } else if by_comm.len() < DISTINCT_NAMES {
            by_comm.insert(stat.comm, threads);
        }
    }
    let mut sorted: Vec<_> = by_comm.into_iter().collect();
    sorted.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    sorted.truncate(top);
    Ok(sorted)
}

/// Pid and number of threads of every process of `uid`. Processes that end meanwhile are left out.
fn threads_of(root: &Root, uid: u32) -> Result<impl Iterator<Item = (Pid, u64)>, ReadError> {
    Ok(pids(root)?.filter_map(move |pid| {
        let status = status(root, pid).ok()??;
        (status.uids.real == uid).then_some((pid, status.threads))
    }))
}
