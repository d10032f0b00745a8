//! What the numbers say: of all checks without hooks, of those that were not watched with hooks.

use pgfork_trace_common::valid;

use super::{
    super::{
        Cause,
        candidates::{Candidate, Numbers},
        errno_name,
        overcommit::STRICT,
    },
    Found,
    view::View,
};

/// No hook in the fork path: the first check in kernel order that gives this
/// errno and whose numbers fit. An earlier one that is unclear leaves it open.
pub(super) fn deduced(view: &View, candidates: &[Candidate]) -> Option<Found> {
    if let Some(found) = killed(view) {
        return Some(found);
    }
    let possible: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| view.gives(candidate.errno) && might(candidate))
        .collect();
    let candidate = *possible.first()?;
    // One that stands before it and was not read may have refused as well.
    let mut before = candidates
        .iter()
        .take_while(|it| it.cause != candidate.cause);
    if before.any(|it| it.errno == candidate.errno && matches!(it.numbers, Numbers::Absent)) {
        return None;
    }
    // Without errno, order decides nothing: an ENOMEM check may come first for an EAGAIN.
    if view.ret.is_none() && possible.iter().any(|it| it.errno != candidate.errno) {
        return None;
    }
    let why = fitting(candidate, possible.len() == 1)?;
    let errno = view
        .ret
        .map_or_else(String::new, |ret| format!(" with {}", errno_name(ret)));
    Some(Found::deduced(
        candidate.cause,
        candidate.check,
        format!("fork failed{errno}, and read right after it: {why}"),
    ))
}

/// Hooks in the fork path, and none was seen refusing: the one check that was not watched and
/// whose numbers fit. One that could not be read leaves it open.
pub(super) fn remaining(view: &View, candidates: &[Candidate]) -> Option<Found> {
    let left: Vec<&Candidate> = candidates
        .iter()
        .filter(|candidate| view.gives(candidate.errno) && view.passed(candidate).is_none())
        .collect();
    if left.iter().any(|it| matches!(it.numbers, Numbers::Absent)) {
        return None;
    }
    // One that was seen refusing, and yet not found to be the cause, is not out of the question.
    let failed = |it: &Candidate| it.check.is_some_and(|check| view.failing(check).is_some());
    let possible: Vec<&Candidate> = left
        .into_iter()
        .filter(|it| might(it) || failed(it))
        .collect();
    let candidate = *possible.first()?;
    if failed(candidate) {
        return None;
    }
    let why = fitting(candidate, possible.len() == 1)?;
    Some(Found::deduced(
        candidate.cause,
        candidate.check,
        format!(
            "the fork ended with {}, this check was not watched, all that were before it were passed, and {why}",
            errno_name(view.attempt.ret)
        ),
    ))
}

/// Whether overcommit cannot have refused this fork, whether or not it was watched: the mode was read
/// with it and is not strict, and nothing exceeds RAM and swap. In strict mode the numbers are
/// those of a moment later.
pub(super) fn no_overcommit(view: &View, candidates: &[Candidate]) -> bool {
    let does_not_fit = |cause| {
        let mut candidates = candidates.iter();
        let candidate = candidates.find(|it| it.cause == cause);
        candidate.is_some_and(|it| matches!(it.numbers, Numbers::DoNotFit(_)))
    };
    view.read(valid::OVERCOMMIT_MODE)
        && view.attempt.overcommit.mode != STRICT
        && !view.refused_by_overcommit_in_log()
        && does_not_fit(Cause::OvercommitHeuristic)
}

/// Whether its numbers leave it possible.
fn might(candidate: &Candidate) -> bool {
    matches!(
        candidate.numbers,
        Numbers::Fit(_) | Numbers::Near(_) | Numbers::Unclear(_)
    )
}

fn fitting(candidate: &Candidate, alone: bool) -> Option<&str> {
    match &candidate.numbers {
        Numbers::Fit(why) => Some(why),
        Numbers::Near(why) if alone => Some(why),
        _ => None,
    }
}

/// The OOM killer of a memory cgroup chose this very process, and its fork ended for it.
fn killed(view: &View) -> Option<Found> {
    let interrupted = view.ret.is_none_or(|ret| ret == -libc::EINTR);
    let known = view.was_killed().filter(|_| interrupted)?;
    Some(Found::deduced(
        Cause::MemcgOomKilledForker,
        None,
        known.to_owned(),
    ))
}
