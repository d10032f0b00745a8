//! Which check refused: one decision, in the kernel's order.
//!
//! With hooks: a check that was seen refusing for a reason of its own; a memory cgroup, which may
//! refuse any allocation; a function that got no memory; checks without a function of their own,
//! by how far the fork came; and last, what remains when all that was watched is taken away.
//! Without hooks: the same checks by the state right after.

mod arguments;
mod before;
mod memory;
mod numbers;
mod returned;
mod stages;
mod tasks;
mod view;

use pgfork_trace_common::{Attempt, Check, source, syscall::ANSWERED_BEFORE};

use super::{
    Cause, Certainty, Considered, Coverage, Evidence,
    candidates::{Candidate, EMFILE, Numbers, candidates},
    errno_name, returned as shown,
};
use view::View;

const EINVAL: i32 = -libc::EINVAL;
const CLONE_PIDFD: u64 = 0x1000;

pub(super) struct Decision {
    pub(super) cause: Cause,
    pub(super) certainty: Certainty,
    pub(super) because: String,
    pub(super) check: Option<Check>,
    pub(super) also_possible: Vec<Considered>,
    pub(super) also_full: Vec<Considered>,
    pub(super) ruled_out: Vec<Considered>,
    pub(super) not_seen: Vec<String>,
}

/// A cause, and what else would explain the same.
struct Found {
    cause: Cause,
    certainty: Certainty,
    because: String,
    check: Option<Check>,
    /// Not among the candidates: they have no numbers.
    also: Vec<Considered>,
}

impl Found {
    fn observed(cause: Cause, check: Check, because: String) -> Self {
        Self {
            cause,
            certainty: Certainty::Observed,
            because,
            check: Some(check),
            also: Vec::new(),
        }
    }

    fn deduced(cause: Cause, check: Option<Check>, because: String) -> Self {
        Self {
            cause,
            certainty: Certainty::Deduced,
            because,
            check,
            also: Vec::new(),
        }
    }

    fn or(mut self, what: &'static str, why: &str) -> Self {
        self.also.push(Considered {
            what,
            why: why.to_owned(),
        });
        self
    }
}

pub(super) fn decide(attempt: &Attempt, evidence: &Evidence, coverage: &Coverage) -> Decision {
    let view = View::new(attempt, evidence, coverage);
    let candidates = candidates(attempt, evidence);
    let found = match (attempt.source == source::KERNEL_CLONE, view.hooked()) {
        _ if attempt.source == source::EXECVE => Some(tasks::execve(&view)),
        (true, _) => returned::for_its_own_reason(&view)
            .or_else(|| memory::cgroup(&view))
            .or_else(|| stages::killed_in_copy_mm(&view))
            .or_else(|| returned::without_memory(&view, &candidates))
            .or_else(|| tasks::before_cgroup_fork(&view, &candidates))
            .or_else(|| stages::inline(&view))
            .or_else(|| numbers::remaining(&view, &candidates))
            .or_else(|| stages::kernel_memory(&view, &candidates)),
        (false, true) => before::kernel_clone(&view),
        (false, false) if view.seen(ANSWERED_BEFORE) => before::kernel_clone(&view),
        (false, false) => arguments::refused(&view)
            .or_else(|| stages::dying_by_state(&view))
            .or_else(|| numbers::deduced(&view, &candidates))
            .or_else(|| before::without_hooks(&view, &candidates)),
    };
    let found = found.unwrap_or_else(|| Found {
        cause: Cause::Unknown,
        certainty: Certainty::Unknown,
        because: why_unknown(&view),
        check: view.deepest().map(|(check, _)| check),
        also: before::possible(&view),
    });
    let mut decision = Decision {
        cause: found.cause,
        certainty: found.certainty,
        because: found.because,
        check: found.check,
        also_possible: Vec::new(),
        also_full: Vec::new(),
        ruled_out: Vec::new(),
        not_seen: Vec::new(),
    };
    // What the kernel log tells of the checks behind is of another fork: this one came to none.
    let unlogged = Evidence {
        kernel_log: Vec::new(),
        ..evidence.clone()
    };
    decision.name_what_is_full(&view, &self::candidates(attempt, &unlogged));
    // The check itself was seen: what else is full did not refuse this fork.
    if found.certainty != Certainty::Observed && attempt.source != source::EXECVE {
        decision.weigh_others(&view, &candidates);
        decision.also_possible.extend(found.also);
    }
    decision
}

impl Decision {
    /// Limits behind the one that refused that would refuse as well.
    fn name_what_is_full(&mut self, view: &View, candidates: &[Candidate]) {
        if self.certainty == Certainty::Unknown {
            return;
        }
        let place = candidates.iter().position(|it| it.cause == self.cause);
        let behind = candidates.iter().enumerate().filter(|(at, candidate)| {
            // What may have refused instead is told as that.
            let told = self.certainty != Certainty::Observed
                && view.gives(candidate.errno)
                && !view.ended_before(candidate)
                && view.passed(candidate).is_none();
            place.is_some_and(|place| *at > place) && !told
        });
        for (_, candidate) in behind {
            if let Numbers::Fit(why) = &candidate.numbers {
                self.also_full.push(Considered {
                    what: candidate.what,
                    why: why.clone(),
                });
            }
        }
    }

    /// Says of every other candidate how it stands, and what could not be seen.
    fn weigh_others(&mut self, view: &View, candidates: &[Candidate]) {
        self.not_seen
            .extend(view.coverage.not_seen.iter().map(|(_, why)| why.clone()));
        let mut chosen = false;
        for candidate in candidates {
            if candidate.cause == self.cause {
                chosen = true;
                continue;
            }
            let what = candidate.what;
            let gives_it = view.gives(candidate.errno);
            if gives_it && let Some(why) = view.passed(candidate) {
                self.ruled_out.push(Considered { what, why });
                continue;
            }
            if self.certainty != Certainty::Unknown && view.ended_before(candidate) {
                continue;
            }
            match &candidate.numbers {
                Numbers::Fit(why) | Numbers::Near(why) | Numbers::Unclear(why) if gives_it => {
                    self.also_possible.push(Considered {
                        what,
                        why: why.clone(),
                    });
                }
                Numbers::Close(why) if gives_it && self.certainty == Certainty::Unknown => {
                    self.also_possible.push(Considered {
                        what,
                        why: format!("{why}, and it may have been more a moment ago"),
                    });
                }
                Numbers::Fit(why) => self.ruled_out.push(Considered {
                    what,
                    why: format!("{why}, but it gives {}", errno_name(candidate.errno)),
                }),
                Numbers::DoNotFit(why) | Numbers::Close(why) => {
                    self.ruled_out.push(Considered {
                        what,
                        why: why.clone(),
                    });
                }
                // Earlier in the kernel's order than what is blamed, or nothing is.
                Numbers::Absent if gives_it && !chosen => {
                    self.not_seen
                        .push(format!("the numbers of {what} could not be read"));
                }
                Numbers::Near(_) | Numbers::Unclear(_) | Numbers::Absent => {}
            }
        }
        if self.certainty != Certainty::Unknown {
            self.ruled_out.clear();
        }
    }
}

/// kernel/fork.c `copy_process`, 5.10 to 7.2: right behind `alloc_pid` a descriptor is taken for it.
fn pidfd(view: &View) -> &'static str {
    let asked = view.flags(CLONE_PIDFD) == Some(true) && view.reached(Check::AllocPid);
    if asked && view.gives(EMFILE) {
        "; a pidfd was asked for, and a process that has as many files open as RLIMIT_NOFILE allows gets this error for it"
    } else {
        ""
    }
}

fn why_unknown(view: &View) -> String {
    let errno = view
        .ret
        .map_or_else(|| "an unknown error".to_owned(), errno_name);
    match view.deepest() {
        Some((check @ Check::AllocPid, EINVAL)) => format!(
            "{} was seen returning -EINVAL, though no certain number was asked for: in 7.2 also where the first process of a pid namespace would not be its number 1",
            view::name(check)
        ),
        Some((check, value)) => format!(
            "the fork ended with {errno} after {} was seen returning {}; what it compared is not read",
            view::name(check),
            shown(check, value)
        ),
        None if view.attempt.source == source::KERNEL_CLONE => format!(
            "the fork ended with {errno}, and none of the {} watched checks was seen refusing{}",
            view.coverage.hooked.len(),
            pidfd(view)
        ),
        None if view.hooked() || view.seen(ANSWERED_BEFORE) => format!(
            "fork failed with {errno}, and the kernel's fork path was not reached; what answered could not be read"
        ),
        None => format!(
            "fork failed with {errno}, and the numbers of no check in the catalogue prove that it refused"
        ),
    }
}
