//! Which check refused: one decision, in the kernel's order.

use pgfork_trace_common::{Attempt, Check, source, valid};

use super::{
    Cause, Certainty, Considered, Coverage, Evidence, errno_name, failed_checks,
    overcommit::{self, STRICT},
};

const EAGAIN: i32 = -libc::EAGAIN;
const ENOMEM: i32 = -libc::ENOMEM;

pub(super) struct Decision {
    pub(super) cause: Cause,
    pub(super) certainty: Certainty,
    pub(super) because: String,
    pub(super) check: Option<Check>,
    pub(super) also_possible: Vec<Considered>,
    pub(super) ruled_out: Vec<Considered>,
    pub(super) not_seen: Vec<String>,
}

/// How the numbers of one check stand: for it, against it, or absent.
enum Numbers {
    Fit(String),
    DoNotFit(String),
    Absent,
}

/// A check as a candidate, with the errno that it gives.
struct Candidate {
    cause: Option<Cause>,
    what: &'static str,
    check: Option<Check>,
    errno: i32,
    numbers: Numbers,
}

pub(super) fn decide(attempt: &Attempt, evidence: &Evidence, coverage: &Coverage) -> Decision {
    let candidates = candidates(attempt, evidence);
    let ret = (attempt.valid & valid::RET != 0).then_some(attempt.ret);
    let found = if attempt.source == source::KERNEL_CLONE {
        seen(attempt, evidence, coverage).or_else(|| nproc_by_stage(attempt, coverage, &candidates))
    } else {
        by_state(ret, &candidates)
    };
    let (cause, certainty, because, check) = found.unwrap_or_else(|| {
        (
            Cause::Unknown,
            Certainty::Unknown,
            why_unknown(attempt, ret, coverage),
            deepest(attempt),
        )
    });
    let (mut also_possible, mut ruled_out) = (Vec::new(), Vec::new());
    for candidate in candidates {
        if candidate.cause == Some(cause) {
            continue;
        }
        match candidate.numbers {
            Numbers::Fit(why) if ret.is_none_or(|ret| ret == candidate.errno) => {
                // The check itself was seen: what else is full did not refuse this fork.
                if certainty != Certainty::Observed {
                    also_possible.push(Considered {
                        what: candidate.what,
                        why,
                    });
                }
            }
            Numbers::Fit(why) => ruled_out.push(Considered {
                what: candidate.what,
                why: format!("{why}, but it gives {}", errno_name(candidate.errno)),
            }),
            Numbers::DoNotFit(why) => ruled_out.push(Considered {
                what: candidate.what,
                why,
            }),
            Numbers::Absent => {}
        }
    }
    if certainty != Certainty::Unknown {
        ruled_out.clear();
    }
    let not_seen = if certainty == Certainty::Observed {
        Vec::new()
    } else {
        coverage
            .not_seen
            .iter()
            .map(|(_, why)| why.clone())
            .collect()
    };
    Decision {
        cause,
        certainty,
        because,
        check,
        also_possible,
        ruled_out,
        not_seen,
    }
}

type Found = (Cause, Certainty, String, Option<Check>);

/// The refusing check was seen returning its error.
fn seen(attempt: &Attempt, evidence: &Evidence, coverage: &Coverage) -> Option<Found> {
    let returned = |wanted: Check| {
        failed_checks(attempt)
            .find(|(check, _)| *check == wanted)
            .map(|(_, ret)| ret)
    };
    let observed = |cause: Cause, check: Check, because: String| {
        Some((cause, Certainty::Observed, because, Some(check)))
    };
    if returned(Check::PidsCanFork) == Some(EAGAIN) && attempt.ret == EAGAIN {
        return observed(
            Cause::PidsCgroupMax,
            Check::PidsCanFork,
            "pids_can_fork was seen returning -EAGAIN in this fork".to_owned(),
        );
    }
    let strict = evidence
        .overcommit
        .as_ref()
        .and_then(|it| it.overcommit_memory)
        == Some(STRICT);
    if returned(Check::VmEnoughMemory) == Some(ENOMEM) && attempt.ret == ENOMEM && strict {
        return observed(
            Cause::CommitLimit,
            Check::VmEnoughMemory,
            "__vm_enough_memory was seen returning -ENOMEM in this fork, in strict mode".to_owned(),
        );
    }
    // is_rlimit_overlimit is necessary, not sufficient: exempt tasks go on to cgroup_fork.
    let exempt = evidence.nproc.as_ref().and_then(|nproc| nproc.exempt);
    let passed = attempt.stages & Check::CgroupFork.bit() != 0;
    if returned(Check::IsRlimitOverlimit).is_some()
        && attempt.ret == EAGAIN
        && !passed
        && coverage.sees(Check::CgroupFork)
        && exempt == Some(false)
    {
        return observed(
            Cause::RlimitNproc,
            Check::IsRlimitOverlimit,
            "is_rlimit_overlimit was seen returning true, the process is not exempt, and the fork got no further".to_owned(),
        );
    }
    None
}

/// Without `is_rlimit_overlimit` the stages decide. Before 5.14 the check comes
/// before `copy_creds` (kernel/fork.c `copy_process`, 5.10), and nothing else
/// before `copy_creds` gives EAGAIN.
fn nproc_by_stage(
    attempt: &Attempt,
    coverage: &Coverage,
    candidates: &[Candidate],
) -> Option<Found> {
    let before_creds = attempt.stages & (Check::CopyCreds.bit() | Check::CgroupFork.bit()) == 0;
    if attempt.ret != EAGAIN
        || coverage.sees(Check::IsRlimitOverlimit)
        || !coverage.sees(Check::CopyCreds)
        || !coverage.sees(Check::CgroupFork)
        || !before_creds
        || attempt.stages & Check::CopyProcess.bit() == 0
    {
        return None;
    }
    let nproc = candidates
        .iter()
        .find(|it| it.cause == Some(Cause::RlimitNproc))?;
    let Numbers::Fit(why) = &nproc.numbers else {
        return None;
    };
    Some((
        Cause::RlimitNproc,
        Certainty::Deduced,
        format!(
            "the fork ended with EAGAIN before copy_creds, where only RLIMIT_NPROC gives it, and {why}"
        ),
        Some(Check::IsRlimitOverlimit),
    ))
}

/// No hook in the fork path: the first check in kernel order that gives this
/// errno and whose numbers fit.
fn by_state(ret: Option<i32>, candidates: &[Candidate]) -> Option<Found> {
    let mut fitting = candidates
        .iter()
        .filter(|candidate| ret.is_none_or(|ret| ret == candidate.errno))
        .filter_map(|candidate| match &candidate.numbers {
            Numbers::Fit(why) => Some((candidate, why)),
            _ => None,
        });
    let (candidate, why) = fitting.next()?;
    // Without errno, order decides nothing: an ENOMEM check may come first for an EAGAIN.
    if ret.is_none() && fitting.any(|(other, _)| other.errno != candidate.errno) {
        return None;
    }
    let errno = ret.map_or_else(String::new, |ret| format!(" with {}", errno_name(ret)));
    Some((
        candidate.cause?,
        Certainty::Deduced,
        format!("fork failed{errno}, and read right after it: {why}"),
        candidate.check,
    ))
}

fn candidates(attempt: &Attempt, evidence: &Evidence) -> Vec<Candidate> {
    vec![
        Candidate {
            cause: Some(Cause::RlimitNproc),
            what: "RLIMIT_NPROC",
            check: Some(Check::IsRlimitOverlimit),
            errno: EAGAIN,
            numbers: nproc_numbers(evidence),
        },
        Candidate {
            cause: None,
            what: "kernel.threads-max",
            check: None,
            errno: EAGAIN,
            numbers: threads_numbers(evidence),
        },
        Candidate {
            cause: Some(Cause::CommitLimit),
            what: "strict overcommit",
            check: Some(Check::VmEnoughMemory),
            errno: ENOMEM,
            numbers: overcommit_numbers(attempt, evidence),
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
            cause: Some(Cause::PidsCgroupMax),
            what: "pids cgroup",
            check: Some(Check::PidsCanFork),
            errno: EAGAIN,
            numbers: pids_numbers(evidence),
        },
    ]
}

fn nproc_numbers(evidence: &Evidence) -> Numbers {
    let Some(nproc) = &evidence.nproc else {
        return Numbers::Absent;
    };
    let Some(own) = nproc.levels.first() else {
        return Numbers::Absent;
    };
    let show = |tasks: u64, limit: Option<u64>| match limit {
        Some(limit) => format!("the user has {tasks} tasks of {limit} allowed"),
        None => format!("the user has {tasks} tasks and no limit"),
    };
    match (
        nproc.levels.iter().find(|level| level.is_full()),
        nproc.exempt,
    ) {
        (Some(level), Some(false)) => Numbers::Fit(show(level.tasks, level.limit)),
        (Some(level), Some(true)) => Numbers::DoNotFit(format!(
            "{}, but the process is exempt",
            show(level.tasks, level.limit)
        )),
        (Some(_), None) => Numbers::Absent,
        (None, _) => Numbers::DoNotFit(show(own.tasks, own.limit)),
    }
}

fn threads_numbers(evidence: &Evidence) -> Numbers {
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

fn pids_numbers(evidence: &Evidence) -> Numbers {
    if evidence.pids.is_empty() {
        return Numbers::Absent;
    }
    let limited = || {
        evidence
            .pids
            .iter()
            .filter_map(|level| Some((level, level.limit?)))
    };
    match limited().find(|(level, _)| level.is_full()) {
        Some((level, limit)) => Numbers::Fit(format!(
            "cgroup {} has {} tasks of {limit} allowed",
            level.path.as_deref().unwrap_or("(unnamed)"),
            level.tasks
        )),
        None if evidence.pids_truncated => Numbers::Absent,
        None => Numbers::DoNotFit(
            match limited().min_by_key(|(level, limit)| limit.saturating_sub(level.tasks)) {
                Some((level, limit)) => {
                    format!("the fullest cgroup has {} tasks of {limit}", level.tasks)
                }
                None => "no cgroup on the path has a limit".to_owned(),
            },
        ),
    }
}

/// Right after the refusal the kernel has undone the fork's charges, so the
/// whole fork is put to the question again, not the one mapping.
fn overcommit_numbers(attempt: &Attempt, evidence: &Evidence) -> Numbers {
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
    let Some(usable) = overcommit.usable_bytes else {
        return Numbers::Absent;
    };
    let Some(charge) = overcommit.fork_charge_bytes else {
        return Numbers::Absent;
    };
    let Some(committed) = overcommit
        .committed_bytes
        .or(overcommit.committed_after_bytes)
    else {
        return Numbers::Absent;
    };
    let text = format!(
        "{committed} bytes are promised, the fork asks for {charge} more, and {usable} are usable"
    );
    if overcommit::refuses(committed, charge, usable) {
        Numbers::Fit(text)
    } else {
        Numbers::DoNotFit(text)
    }
}

/// The deepest check seen failing with the errno of the whole fork.
fn deepest(attempt: &Attempt) -> Option<Check> {
    failed_checks(attempt)
        .find(|(check, ret)| *ret == attempt.ret && *check != Check::CopyProcess)
        .map(|(check, _)| check)
}

fn why_unknown(attempt: &Attempt, ret: Option<i32>, coverage: &Coverage) -> String {
    let errno = ret.map_or_else(|| "an unknown error".to_owned(), errno_name);
    match deepest(attempt) {
        Some(check) => format!(
            "{} was seen refusing with {errno}; what it compared is not read",
            crate::kernel::plan::row(check).function()
        ),
        None if attempt.source == source::KERNEL_CLONE => {
            format!(
                "the fork ended with {errno}, and none of the {} watched checks was seen refusing",
                coverage.hooked.len()
            )
        }
        None => format!("fork failed with {errno}, and the numbers of no check that gives it fit"),
    }
}
