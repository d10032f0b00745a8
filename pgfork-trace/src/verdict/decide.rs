//! Which check refused: one decision, in the kernel's order.

use pgfork_trace_common::{Attempt, Check, source, valid};

use super::{
    Cause, Certainty, Considered, Coverage, Evidence,
    candidates::{Candidate, EAGAIN, ENOMEM, Numbers, candidates},
    errno_name, failed_checks,
    overcommit::STRICT,
    returned,
};
use crate::kernel::plan;

pub(super) struct Decision {
    pub(super) cause: Cause,
    pub(super) certainty: Certainty,
    pub(super) because: String,
    pub(super) check: Option<Check>,
    pub(super) also_possible: Vec<Considered>,
    pub(super) ruled_out: Vec<Considered>,
    pub(super) not_seen: Vec<String>,
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
            deepest(attempt).map(|(check, _)| check),
        )
    });
    let mut decision = Decision {
        cause,
        certainty,
        because,
        check,
        also_possible: Vec::new(),
        ruled_out: Vec::new(),
        not_seen: Vec::new(),
    };
    // The check itself was seen: what else is full did not refuse this fork.
    if certainty != Certainty::Observed {
        decision.weigh_others(&candidates, attempt, ret, coverage);
    }
    decision
}

impl Decision {
    /// Says of every other candidate how it stands, and what could not be seen.
    fn weigh_others(
        &mut self,
        candidates: &[Candidate],
        attempt: &Attempt,
        ret: Option<i32>,
        coverage: &Coverage,
    ) {
        self.not_seen
            .extend(coverage.not_seen.iter().map(|(_, why)| why.clone()));
        let mut chosen = false;
        for candidate in candidates {
            if candidate.cause == Some(self.cause) {
                chosen = true;
                continue;
            }
            let what = candidate.what;
            let gives_it = ret.is_none_or(|ret| ret == candidate.errno);
            if gives_it && let Some(why) = passed(candidate, attempt, coverage) {
                self.ruled_out.push(Considered { what, why });
                continue;
            }
            match &candidate.numbers {
                Numbers::Fit(why) | Numbers::Unclear(why) if gives_it => {
                    self.also_possible.push(Considered {
                        what,
                        why: why.clone(),
                    });
                }
                Numbers::Fit(why) => self.ruled_out.push(Considered {
                    what,
                    why: format!("{why}, but it gives {}", errno_name(candidate.errno)),
                }),
                Numbers::DoNotFit(why) => self.ruled_out.push(Considered {
                    what,
                    why: why.clone(),
                }),
                // Earlier in the kernel's order than what is blamed, or nothing is.
                Numbers::Absent if gives_it && !chosen => {
                    self.not_seen
                        .push(format!("the numbers of {what} could not be read"));
                }
                Numbers::Unclear(_) | Numbers::Absent => {}
            }
        }
        if self.certainty == Certainty::Unknown {
            self.also_possible.extend(seccomp(attempt));
        } else {
            self.ruled_out.clear();
        }
    }
}

/// `SECCOMP_MODE_FILTER` (include/uapi/linux/seccomp.h).
const SECCOMP_FILTER: u32 = 2;

/// A filter answers before the kernel's own checks, with any errno that it likes:
/// `kernel_clone` is then not reached, so only the return of `fork` shows it.
fn seccomp(attempt: &Attempt) -> Option<Considered> {
    let filtered = attempt.source == source::LIBC_FORK
        && attempt.valid & valid::SECCOMP != 0
        && attempt.state.seccomp_mode == SECCOMP_FILTER;
    filtered.then(|| Considered {
        what: "seccomp filter",
        why: "the process has one, and it may refuse with any error".to_owned(),
    })
}

/// Why hooks speak against a candidate: the fork got past its check, or its
/// check was watched and not seen refusing.
fn passed(candidate: &Candidate, attempt: &Attempt, coverage: &Coverage) -> Option<String> {
    if attempt.source != source::KERNEL_CLONE {
        return None;
    }
    // kernel.threads-max is tested right before cgroup_fork.
    let check = candidate.check.unwrap_or(Check::IsRlimitOverlimit);
    if let Some(later) = got_past(attempt, check) {
        return Some(format!(
            "the fork got past it, as far as {}",
            plan::row(later).function()
        ));
    }
    let check = candidate.check?;
    let watched = coverage.sees(check) && failing(attempt, check).is_none();
    watched.then(|| {
        format!(
            "{} was watched and did not refuse",
            plan::row(check).function()
        )
    })
}

/// A stage after `check` that this fork reached.
fn got_past(attempt: &Attempt, check: Check) -> Option<Check> {
    Check::ALL
        .into_iter()
        .filter(|later| *later > check && later.is_stage())
        .find(|later| attempt.stages & later.bit() != 0)
}

/// What this check returned when it failed.
fn failing(attempt: &Attempt, wanted: Check) -> Option<i32> {
    failed_checks(attempt)
        .find(|(check, _)| *check == wanted)
        .map(|(_, ret)| ret)
}

type Found = (Cause, Certainty, String, Option<Check>);

/// The refusing check was seen returning its error.
fn seen(attempt: &Attempt, evidence: &Evidence, coverage: &Coverage) -> Option<Found> {
    if failing(attempt, Check::PidsCanFork) == Some(EAGAIN) && attempt.ret == EAGAIN {
        return Some((
            Cause::PidsCgroupMax,
            Certainty::Observed,
            "pids_can_fork was seen returning -EAGAIN in this fork".to_owned(),
            Some(Check::PidsCanFork),
        ));
    }
    let strict = evidence
        .overcommit
        .as_ref()
        .and_then(|it| it.overcommit_memory)
        == Some(STRICT);
    if failing(attempt, Check::VmEnoughMemory) == Some(ENOMEM) && attempt.ret == ENOMEM && strict {
        return Some((
            Cause::CommitLimit,
            Certainty::Observed,
            "__vm_enough_memory was seen returning -ENOMEM in this fork, in strict mode".to_owned(),
            Some(Check::VmEnoughMemory),
        ));
    }
    nproc_seen(attempt, evidence, coverage)
}

/// `is_rlimit_overlimit` is necessary, not sufficient: exempt tasks go on to
/// `cgroup_fork`. Where that cannot be seen, the exemption alone speaks.
fn nproc_seen(attempt: &Attempt, evidence: &Evidence, coverage: &Coverage) -> Option<Found> {
    let check = Check::IsRlimitOverlimit;
    failing(attempt, check)?;
    let exempt = evidence.nproc.as_ref().and_then(|nproc| nproc.exempt);
    if attempt.ret != EAGAIN || got_past(attempt, check).is_some() || exempt != Some(false) {
        return None;
    }
    let (certainty, how_far) = if coverage.sees(Check::CgroupFork) {
        (Certainty::Observed, "the fork got no further")
    } else {
        (
            Certainty::Deduced,
            "how far the fork got could not be watched",
        )
    };
    Some((
        Cause::RlimitNproc,
        certainty,
        format!(
            "is_rlimit_overlimit was seen returning true, the process is not exempt, and {how_far}"
        ),
        Some(check),
    ))
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
/// errno and whose numbers fit. An earlier one that is unclear leaves it open.
fn by_state(ret: Option<i32>, candidates: &[Candidate]) -> Option<Found> {
    let mut possible = candidates
        .iter()
        .filter(|candidate| ret.is_none_or(|ret| ret == candidate.errno))
        .filter(|candidate| matches!(candidate.numbers, Numbers::Fit(_) | Numbers::Unclear(_)));
    let candidate = possible.next()?;
    let Numbers::Fit(why) = &candidate.numbers else {
        return None;
    };
    // Without errno, order decides nothing: an ENOMEM check may come first for an EAGAIN.
    if ret.is_none() && possible.any(|other| other.errno != candidate.errno) {
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

/// The deepest check that was seen ending the fork.
fn deepest(attempt: &Attempt) -> Option<(Check, i32)> {
    let ended = |check: Check, ret: i32| match check {
        Check::CopyProcess | Check::KernelClone => false,
        // These two may fail and the fork go on.
        Check::IsRlimitOverlimit | Check::MemCgroupOutOfMemory => false,
        // A null pointer ends it with an errno of the caller's choice.
        _ => ret == attempt.ret || ret == 0,
    };
    failed_checks(attempt)
        .find(|(check, ret)| ended(*check, *ret))
        .or_else(|| {
            // Nobody could be killed for memory: the next best witness of an ENOMEM.
            let out_of_memory = Check::MemCgroupOutOfMemory;
            (attempt.ret == ENOMEM)
                .then(|| failing(attempt, out_of_memory))
                .flatten()
                .map(|ret| (out_of_memory, ret))
        })
}

fn why_unknown(attempt: &Attempt, ret: Option<i32>, coverage: &Coverage) -> String {
    let errno = ret.map_or_else(|| "an unknown error".to_owned(), errno_name);
    match deepest(attempt) {
        Some((check, value)) => format!(
            "the fork ended with {errno} after {} was seen returning {}; what it compared is not read",
            plan::row(check).function(),
            returned(check, value)
        ),
        None if attempt.source == source::KERNEL_CLONE => format!(
            "the fork ended with {errno}, and none of the {} watched checks was seen refusing",
            coverage.hooked.len()
        ),
        None => format!(
            "fork failed with {errno}, and the numbers of no check in the catalogue prove that it refused"
        ),
    }
}
