//! The checks that one refusal is held against, in the kernel's order, and how their numbers stand.

use pgfork_trace_common::{Attempt, Check, valid};

use super::{
    Cause, Evidence, NprocLevelEvidence,
    overcommit::{self, STRICT},
};

pub(super) const EAGAIN: i32 = -libc::EAGAIN;
pub(super) const ENOMEM: i32 = -libc::ENOMEM;

/// How the numbers of one check stand.
pub(super) enum Numbers {
    /// They would refuse.
    Fit(String),
    /// They might refuse: what was read is not exact enough to tell.
    Unclear(String),
    /// They would not refuse.
    DoNotFit(String),
    /// They could not be read.
    Absent,
}

/// A check as a candidate, with the errno that it gives.
pub(super) struct Candidate {
    /// `None`: not in the catalogue; it only keeps others from being blamed.
    pub(super) cause: Option<Cause>,
    pub(super) what: &'static str,
    pub(super) check: Option<Check>,
    pub(super) errno: i32,
    pub(super) numbers: Numbers,
}

/// Where the kernel tests for it: kernel/fork.c `copy_process`, 5.10 to 7.2.
pub(super) fn candidates(attempt: &Attempt, evidence: &Evidence) -> Vec<Candidate> {
    vec![
        Candidate {
            cause: Some(Cause::RlimitNproc),
            what: "RLIMIT_NPROC",
            check: Some(Check::IsRlimitOverlimit),
            errno: EAGAIN,
            numbers: nproc(evidence),
        },
        Candidate {
            cause: None,
            what: "kernel.threads-max",
            check: None,
            errno: EAGAIN,
            numbers: threads(evidence),
        },
        Candidate {
            cause: None,
            what: "deadline scheduling",
            check: Some(Check::SchedFork),
            errno: EAGAIN,
            numbers: scheduling(attempt),
        },
        Candidate {
            cause: Some(Cause::CommitLimit),
            what: "strict overcommit",
            check: Some(Check::VmEnoughMemory),
            errno: ENOMEM,
            numbers: overcommit(attempt, evidence),
        },
        Candidate {
            cause: None,
            what: "pid namespace without init",
            check: Some(Check::AllocPid),
            errno: ENOMEM,
            numbers: match evidence.pid_namespace_alive {
                Some(false) => Numbers::Fit(
                    "the init process of the pid namespace for children is gone".to_owned(),
                ),
                Some(true) => {
                    Numbers::DoNotFit("the pid namespace has its init process".to_owned())
                }
                None => Numbers::Absent,
            },
        },
        Candidate {
            cause: None,
            what: "kernel.pid_max",
            check: Some(Check::AllocPid),
            errno: EAGAIN,
            numbers: pid_numbers(attempt),
        },
        Candidate {
            cause: Some(Cause::PidsCgroupMax),
            what: "pids cgroup",
            check: Some(Check::PidsCanFork),
            errno: EAGAIN,
            numbers: pids(evidence),
        },
    ]
}

fn nproc(evidence: &Evidence) -> Numbers {
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
        return if nproc.truncated {
            Numbers::Unclear(format!(
                "{text}, and there are more user namespaces above than were read"
            ))
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

fn threads(evidence: &Evidence) -> Numbers {
    let Some(threads) = evidence.threads else {
        return Numbers::Absent;
    };
    let text = format!(
        "the host has {} tasks of {} allowed",
        threads.tasks, threads.limit
    );
    if threads.tasks >= threads.limit {
        Numbers::Fit(text)
    } else {
        Numbers::DoNotFit(text)
    }
}

/// `SCHED_DEADLINE` (include/uapi/linux/sched.h): such a task may fork only with
/// the reset-on-fork flag (kernel/sched/core.c `sched_fork`, 5.10 to 7.2), which is not read.
const SCHED_DEADLINE: u32 = 6;

fn scheduling(attempt: &Attempt) -> Numbers {
    if attempt.valid & valid::POLICY == 0 {
        Numbers::Absent
    } else if attempt.state.policy == SCHED_DEADLINE {
        Numbers::Unclear(
            "the process has the policy SCHED_DEADLINE, which must not fork without SCHED_FLAG_RESET_ON_FORK".to_owned(),
        )
    } else {
        Numbers::DoNotFit("the process does not have the policy SCHED_DEADLINE".to_owned())
    }
}

/// `PIDNS_ADDING` (include/linux/pid_namespace.h): not part of the count.
const PIDNS_ADDING: u32 = 1 << 31;
/// `RESERVED_PIDS` (kernel/pid.c): not given out again once the numbers have wrapped.
const RESERVED_PIDS: i64 = 300;

/// The numbers from `RESERVED_PIDS` on are used up at the earliest when so many
/// are taken. Numbers below may be among them, so this never proves it; and only
/// 6.18 and later have the limit in the namespace.
fn pid_numbers(attempt: &Attempt) -> Numbers {
    let needed = valid::PIDNS | valid::PIDNS_PID_MAX;
    if attempt.valid & needed != needed {
        return Numbers::Absent;
    }
    let own = attempt.pidns[0];
    let taken = i64::from(own.allocated & !PIDNS_ADDING);
    let limit = i64::from(own.pid_max);
    let text = format!("the pid namespace has {taken} numbers taken below {limit}");
    if taken >= limit - RESERVED_PIDS {
        Numbers::Unclear(text)
    } else if own.level > 0 {
        // An upper level may be used up.
        Numbers::Absent
    } else {
        Numbers::DoNotFit(text)
    }
}

fn pids(evidence: &Evidence) -> Numbers {
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
    if evidence.pids_truncated {
        Numbers::Unclear(format!("{text}, and there are more above than were read"))
    } else {
        Numbers::DoNotFit(text)
    }
}

/// Right after the refusal the kernel has undone the fork's charges, so the
/// whole fork is put to the question again, not the one mapping.
fn overcommit(attempt: &Attempt, evidence: &Evidence) -> Numbers {
    let Some(overcommit) = &evidence.overcommit else {
        return Numbers::Absent;
    };
    match overcommit.overcommit_memory {
        Some(STRICT) => {}
        Some(mode) => {
            return Numbers::DoNotFit(format!("vm.overcommit_memory is {mode}, not strict"));
        }
        None => return Numbers::Absent,
    }
    if attempt.valid & valid::OVERCOMMIT_CALL != 0 {
        return Numbers::Absent;
    }
    let (Some(usable), Some(charge), Some(committed)) = (
        overcommit.usable_bytes,
        overcommit.fork_charge_bytes,
        overcommit
            .committed_bytes
            .or(overcommit.committed_after_bytes),
    ) else {
        return Numbers::Absent;
    };
    let text = format!(
        "{committed} bytes are promised, the fork asks for {charge} more, and {usable} are usable"
    );
    let skew = overcommit.counter_skew_bytes.unwrap_or(0);
    if overcommit::refuses(committed, charge, usable) {
        Numbers::Fit(text)
    } else if overcommit::refuses(committed.saturating_add(skew), charge, usable) {
        Numbers::Unclear(format!("{text}; the kernel's counter may be off by {skew}"))
    } else {
        Numbers::DoNotFit(text)
    }
}
