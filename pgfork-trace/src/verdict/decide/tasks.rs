//! `RLIMIT_NPROC` and kernel.threads-max: both stand before `cgroup_fork` and give EAGAIN.
//!
//! kernel/fork.c `copy_process`: in 5.10 `RLIMIT_NPROC`, `copy_creds`, threads-max; in 6.1 to 7.2
//! `copy_creds`, `RLIMIT_NPROC`, threads-max.

use pgfork_trace_common::Check;

use super::{
    super::{
        Cause, Certainty,
        candidates::{Candidate, EAGAIN, Numbers},
    },
    Found,
    view::View,
};

pub(super) fn before_cgroup_fork(view: &View, candidates: &[Candidate]) -> Option<Found> {
    if view.attempt.ret != EAGAIN || view.got_past(Check::IsRlimitOverlimit).is_some() {
        return None;
    }
    let numbers = |cause: Cause| {
        candidates
            .iter()
            .find(|it| it.cause == cause)
            .map(|it| &it.numbers)
    };
    let nproc = numbers(Cause::RlimitNproc)?;
    let threads = numbers(Cause::ThreadsMax)?;
    overlimit(view)
        .or_else(|| before_copy_creds(view, nproc))
        .or_else(|| after_copy_creds(view, nproc, threads))
}

/// `is_rlimit_overlimit` is necessary, not sufficient: exempt tasks go on to
/// `cgroup_fork`. Where that cannot be seen, the exemption alone speaks.
fn overlimit(view: &View) -> Option<Found> {
    let check = Check::IsRlimitOverlimit;
    view.failing(check)?;
    let exempt = view.evidence.nproc.as_ref().and_then(|nproc| nproc.exempt);
    if exempt != Some(false) {
        return None;
    }
    let (certainty, how_far) = if view.sees(Check::CgroupFork) {
        (Certainty::Observed, "the fork got no further")
    } else {
        (
            Certainty::Deduced,
            "how far the fork got could not be watched",
        )
    };
    Some(Found {
        cause: Cause::RlimitNproc,
        certainty,
        because: format!(
            "is_rlimit_overlimit was seen returning true, the process is not exempt, and {how_far}"
        ),
        check: Some(check),
        also: Vec::new(),
    })
}

/// Nothing else before `copy_creds` gives EAGAIN, and only in 5.10 this does.
fn before_copy_creds(view: &View, nproc: &Numbers) -> Option<Found> {
    if view.sees(Check::IsRlimitOverlimit)
        || !view.sees(Check::CopyCreds)
        || !view.sees(Check::CgroupFork)
        || view.reached(Check::CopyCreds)
        || !view.reached(Check::CopyProcess)
    {
        return None;
    }
    let Numbers::Fit(why) = nproc else {
        return None;
    };
    Some(Found::deduced(
        Cause::RlimitNproc,
        Some(Check::IsRlimitOverlimit),
        format!(
            "the fork ended with EAGAIN before copy_creds, where only RLIMIT_NPROC gives it, and {why}"
        ),
    ))
}

/// Between `copy_creds` and `cgroup_fork` only these two give EAGAIN, and kernel.threads-max has
/// no function of its own.
fn after_copy_creds(view: &View, nproc: &Numbers, threads: &Numbers) -> Option<Found> {
    let between = view.sees(Check::CopyCreds)
        && view.sees(Check::CgroupFork)
        && view.reached(Check::CopyCreds)
        && view.failing(Check::CopyCreds).is_none();
    if !between {
        return None;
    }
    let shown = match threads {
        Numbers::Fit(why) | Numbers::Close(why) | Numbers::DoNotFit(why) => {
            format!("; {why}, read right after")
        }
        Numbers::Near(_) | Numbers::Unclear(_) | Numbers::Absent => String::new(),
    };
    let where_ = "the fork ended with EAGAIN between copy_creds and cgroup_fork";
    let threads_max = |why: &str| {
        Found::deduced(
            Cause::ThreadsMax,
            None,
            format!("{where_}, {why}, so only kernel.threads-max gives it{shown}"),
        )
    };
    let exempt = view.evidence.nproc.as_ref().and_then(|nproc| nproc.exempt);
    if view.sees(Check::IsRlimitOverlimit) {
        return match (view.failing(Check::IsRlimitOverlimit), exempt) {
            (None, _) => Some(threads_max("RLIMIT_NPROC was watched and did not refuse")),
            (Some(_), Some(true)) => Some(threads_max("the process is exempt from RLIMIT_NPROC")),
            // Over the limit, and whether it applies could not be read.
            (Some(_), _) => None,
        };
    }
    if view.is_past_nproc() {
        return Some(threads_max(
            "RLIMIT_NPROC stands before that in this kernel",
        ));
    }
    match (nproc, threads) {
        (Numbers::DoNotFit(why), _) => Some(threads_max(&format!(
            "RLIMIT_NPROC does not refuse ({why})"
        ))),
        (Numbers::Fit(why), Numbers::DoNotFit(_)) => Some(Found::deduced(
            Cause::RlimitNproc,
            Some(Check::IsRlimitOverlimit),
            format!("{where_}, {why}, and kernel.threads-max is far away"),
        )),
        _ => None,
    }
}
