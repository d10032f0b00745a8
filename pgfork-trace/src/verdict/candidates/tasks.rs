//! Limits on tasks and on their numbers.

use super::Numbers;
use crate::verdict::{Evidence, LogFact, NprocLevelEvidence, PidNamespaceLevel};

/// Whether so little room is left that a task that ended since may have made it.
fn is_close(tasks: u64, limit: u64) -> bool {
    limit.saturating_sub(tasks) <= 1 + limit / 64
}

pub(super) fn nproc(evidence: &Evidence) -> Numbers {
    let Some(nproc) = &evidence.nproc else {
        return Numbers::Absent;
    };
    let Some(own) = nproc.levels.first() else {
        return Numbers::Absent;
    };
    let show = |whose: &str, level: &NprocLevelEvidence| match level.limit {
        Some(limit) => format!("{whose} has {} tasks of {limit} allowed", level.tasks),
        None => format!("{whose} has {} tasks and no limit", level.tasks),
    };
    let Some(full) = nproc.levels.iter().position(NprocLevelEvidence::is_full) else {
        let text = show("the user", own);
        let close = |it: &NprocLevelEvidence| it.limit.is_some_and(|max| is_close(it.tasks, max));
        return if nproc.truncated {
            Numbers::Unclear(format!(
                "{text}, and there are more user namespaces above than were read"
            ))
        } else if nproc.exempt != Some(true) && nproc.levels.iter().any(close) {
            Numbers::Close(text)
        } else {
            Numbers::DoNotFit(text)
        };
    };
    let text = match full {
        0 => show("the user", own),
        above => show("the creator of the user namespace", &nproc.levels[above]),
    };
    match nproc.exempt {
        Some(false) => Numbers::Fit(text),
        Some(true) => Numbers::DoNotFit(format!("{text}, but the process is exempt")),
        None => Numbers::Unclear(format!(
            "{text}, and whether the process is exempt could not be read"
        )),
    }
}

pub(super) fn threads(evidence: &Evidence) -> Numbers {
    let Some(threads) = evidence.threads else {
        return Numbers::Absent;
    };
    let text = format!(
        "the host has {} tasks of {} allowed",
        threads.tasks, threads.limit
    );
    if threads.tasks >= threads.limit {
        Numbers::Fit(text)
    } else if is_close(threads.tasks, threads.limit) {
        Numbers::Close(text)
    } else {
        Numbers::DoNotFit(text)
    }
}

/// `SCHED_DEADLINE` (include/uapi/linux/sched.h): such a task may fork only with
/// the reset-on-fork flag (kernel/sched/core.c `sched_fork`, 5.10 to 7.2).
const SCHED_DEADLINE: u32 = 6;

pub(super) fn scheduling(evidence: &Evidence) -> Numbers {
    let process = evidence.process.as_ref();
    let Some(policy) = process.and_then(|it| it.policy) else {
        return Numbers::Absent;
    };
    if policy != SCHED_DEADLINE {
        return Numbers::DoNotFit("the process does not have the policy SCHED_DEADLINE".to_owned());
    }
    let text = "the process has the policy SCHED_DEADLINE";
    match process.and_then(|it| it.reset_on_fork) {
        Some(false) => Numbers::Fit(format!("{text} without SCHED_FLAG_RESET_ON_FORK")),
        Some(true) => Numbers::DoNotFit(format!("{text}, but with SCHED_FLAG_RESET_ON_FORK")),
        None => Numbers::Near(format!(
            "{text}, which must not fork without SCHED_FLAG_RESET_ON_FORK"
        )),
    }
}

/// A namespace whose init has gone takes no new process, at any level (kernel/pid.c `alloc_pid`,
/// 5.10 to 7.2).
pub(super) fn namespace(evidence: &Evidence) -> Numbers {
    if let Some(gone) = evidence.pid_namespaces.iter().position(|it| !it.alive) {
        return Numbers::Fit(match gone {
            0 => "the init process of the pid namespace for children is gone".to_owned(),
            _ => format!(
                "the init process of pid namespace {}, above that for children, is gone",
                evidence.pid_namespaces[gone].inum
            ),
        });
    }
    match evidence.pid_namespace_alive {
        Some(false) => {
            Numbers::Fit("the init process of the pid namespace for children is gone".to_owned())
        }
        Some(true) => Numbers::DoNotFit("the pid namespace has its init process".to_owned()),
        None => Numbers::Absent,
    }
}

/// `RESERVED_PIDS` (kernel/pid.c): not given out again once the numbers have wrapped.
pub(in crate::verdict) const RESERVED_PIDS: u64 = 300;

/// How the numbers of one namespace stand. Those from `RESERVED_PIDS` on are used up at the
/// earliest when so many are taken; numbers below may be among them, so only all taken prove it.
pub(in crate::verdict) fn numbers_left(level: &PidNamespaceLevel) -> Option<u64> {
    Some(level.pid_max?.saturating_sub(1).saturating_sub(level.taken))
}

/// Every level gives a number, the one for children first.
pub(super) fn pid_numbers(evidence: &Evidence) -> Numbers {
    let levels = &evidence.pid_namespaces;
    let show = |level: &PidNamespaceLevel| {
        let whose = if level.level == 0 {
            "the host".to_owned()
        } else {
            format!("pid namespace {}", level.inum)
        };
        format!(
            "{whose} has {} numbers taken below {}",
            level.taken,
            level.pid_max.unwrap_or(0)
        )
    };
    let with = |room: u64| {
        levels
            .iter()
            .find(|level| numbers_left(level).is_some_and(|left| left <= room))
    };
    if let Some(level) = with(0) {
        return Numbers::Fit(show(level));
    }
    if let Some(level) = with(RESERVED_PIDS - 1) {
        return Numbers::Near(show(level));
    }
    let all_read = levels.iter().all(|level| level.pid_max.is_some())
        && levels.last().is_some_and(|level| level.level == 0);
    match levels.iter().min_by_key(|level| numbers_left(level)) {
        Some(fullest) if all_read => Numbers::DoNotFit(show(fullest)),
        // A level that was not read may be used up.
        _ => Numbers::Absent,
    }
}

pub(super) fn pids(evidence: &Evidence) -> Numbers {
    if evidence.pids_root {
        return Numbers::DoNotFit(
            "the process is in the root cgroup, which has no limit".to_owned(),
        );
    }
    if evidence.pids.is_empty() {
        return Numbers::Absent;
    }
    let limited = || {
        evidence
            .pids
            .iter()
            .filter_map(|level| Some((level, level.limit?)))
    };
    if let Some((level, limit)) = limited().find(|(level, _)| level.is_full()) {
        return Numbers::Fit(format!(
            "cgroup {} has {} tasks of {limit} allowed",
            level.path.as_deref().unwrap_or("(unnamed)"),
            level.tasks
        ));
    }
    let fullest = limited().min_by_key(|(level, limit)| limit.saturating_sub(level.tasks));
    let text = match fullest {
        Some((level, limit)) => format!("the fullest cgroup has {} tasks of {limit}", level.tasks),
        None => "no cgroup on the path has a limit".to_owned(),
    };
    let own = evidence.pids[0].path.as_deref();
    let logged = evidence
        .kernel_log
        .iter()
        .any(|line| matches!(line, LogFact::PidsRejected { path } if Some(path.as_str()) == own));
    if logged {
        return Numbers::Fit(format!(
            "the kernel log says that the pids controller rejected a fork of this cgroup; now {text}"
        ));
    }
    if evidence.pids_truncated {
        Numbers::Unclear(format!("{text}, and there are more above than were read"))
    } else if fullest.is_some_and(|(level, limit)| is_close(level.tasks, limit)) {
        Numbers::Close(text)
    } else {
        Numbers::DoNotFit(text)
    }
}
