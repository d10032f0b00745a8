//! Which check refused a request for memory: one procedure over the records of each call.

use pgfork_trace_common::{Check, MemoryRefusal, memory_valid};

use super::{
    super::{Cause, Certainty, Considered, Coverage, overcommit::STRICT},
    HugePages, REFUSALS, RequestFacts, Way, function,
    merge::{Call, Request},
    numbers::by_numbers,
    way,
};

/// `MAP_SHARED`, also part of `MAP_SHARED_VALIDATE` (include/uapi/linux/mman.h).
pub(super) const MAP_SHARED: u64 = 0x01;

/// Where the flags name a size, as its logarithm (include/uapi/asm-generic/hugetlb_encode.h).
const MAP_HUGE_SHIFT: u32 = 26;

/// What decides, before numbers and remedies are put to it.
#[derive(Clone, Debug)]
pub(super) struct Decision {
    pub(super) cause: Cause,
    /// The limit behind a refused stack growth.
    pub(super) behind: Option<Cause>,
    /// The stack growth was refused by `RLIMIT_STACK`.
    pub(super) stack_limit: bool,
    pub(super) certainty: Certainty,
    pub(super) because: String,
    pub(super) check: Option<Check>,
    pub(super) also_possible: Vec<Considered>,
    pub(super) ruled_out: Vec<Considered>,
    pub(super) not_seen: Vec<String>,
    huge: bool,
}

impl Decision {
    fn new(cause: Cause, certainty: Certainty, check: Option<Check>, because: String) -> Self {
        Self {
            cause,
            behind: None,
            stack_limit: false,
            certainty,
            because,
            check,
            also_possible: Vec::new(),
            ruled_out: Vec::new(),
            not_seen: Vec::new(),
            huge: false,
        }
    }

    pub(super) fn observed(cause: Cause, check: Check, because: String) -> Self {
        Self::new(cause, Certainty::Observed, Some(check), because)
    }

    pub(super) fn deduced(cause: Cause, check: Option<Check>, because: String) -> Self {
        Self::new(cause, Certainty::Deduced, check, because)
    }

    pub(super) fn unknown(because: String) -> Self {
        Self::new(Cause::Unknown, Certainty::Unknown, None, because)
    }

    pub(super) fn concerns_overcommit(&self) -> bool {
        let about = |cause| {
            matches!(
                cause,
                Cause::CommitLimit
                    | Cause::OvercommitHeuristic
                    | Cause::ShmCommitRefused
                    | Cause::Unknown
            )
        };
        about(self.cause) || self.behind.is_some_and(about)
    }

    pub(super) fn concerns_huge_pages(&self) -> bool {
        self.huge || self.cause == Cause::HugetlbExhausted
    }

    /// Smaller is better known.
    const fn doubt(&self) -> u8 {
        match self.certainty {
            Certainty::Observed => 0,
            Certainty::Deduced => 1,
            Certainty::Unknown => 2,
        }
    }
}

/// The decision on a request, and the call that it is about: the first of those that are known
/// best. `None` where every call failed for its arguments.
pub(super) fn decide(
    request: &Request,
    facts: &RequestFacts,
    coverage: &Coverage,
) -> Option<(usize, Decision)> {
    let mut all: Vec<(usize, Decision)> = request
        .calls
        .iter()
        .enumerate()
        .filter(|(_, call)| is_refusal(call))
        .map(|(at, call)| (at, of_call(call, facts, coverage)))
        .collect();
    let best = all
        .iter()
        .enumerate()
        .min_by_key(|(_, (_, decision))| decision.doubt())
        .map(|(at, _)| at)?;
    let (at, mut decision) = all.remove(best);
    for (other, second) in all {
        let known = second.cause != Cause::Unknown && second.cause != decision.cause;
        if known
            && !decision
                .also_possible
                .iter()
                .any(|it| it.what == second.cause.id())
        {
            decision.also_possible.push(Considered {
                what: second.cause.id(),
                why: format!(
                    "{}, asked for the same memory, was refused by this: {}",
                    way(&request.calls[other]).name(),
                    second.because
                ),
            });
        }
    }
    if request.calls.iter().all(|call| way(call) == Way::Brk) {
        decision.because +=
            "; only brk was seen refused: the C library then asks by mmap, and may have got it";
    }
    Some((at, decision))
}

/// A check that refused was seen, or the error speaks of a limit or of permission.
fn is_refusal(call: &Call) -> bool {
    let Some(outer) = call.outer.filter(|_| call.inner.is_empty()) else {
        return true;
    };
    // Any other error of a growing stack is an access far from it: a mistake of the program.
    if way(call) == Way::StackGrowth {
        return outer.ret == -libc::ENOMEM;
    }
    REFUSALS.contains(&outer.ret) || outer.ret >= 0
}

pub(super) fn bytes(call: &Call) -> Option<u64> {
    call.records()
        .rev()
        .find(|it| it.valid & memory_valid::BYTES != 0 && it.bytes > 0)
        .map(|it| it.bytes)
}

pub(super) fn flags(call: &Call) -> Option<u64> {
    call.outer
        .filter(|it| it.check == Check::VmMmapPgoff as u32)
        .map(|it| it.flags)
}

/// vm.overcommit_memory, as the refusing check had it, else as it was right after.
pub(super) fn mode(call: &Call, facts: &RequestFacts) -> Option<i32> {
    call.records()
        .find(|it| it.valid & memory_valid::OVERCOMMIT_MODE != 0)
        .map(|it| it.overcommit.mode)
        .or_else(|| facts.host.overcommit.map(|it| it.mode))
}

fn of_call(call: &Call, facts: &RequestFacts, coverage: &Coverage) -> Decision {
    let decision = match inner_check(call) {
        Some((Check::MayExpandVm, record)) if may_have_passed(call, coverage) => {
            asked_once(record, call, facts)
        }
        Some((check, record)) => seen(check, record, call, facts),
        None => by_numbers(call, facts, coverage),
    };
    if way(call) == Way::StackGrowth {
        return stack(decision, call, facts);
    }
    decision
}

/// To 6.12, `mmap_region` (mm/mmap.c) asks `may_expand_vm` again, without the pages of mappings that
/// the new one replaces: one refusal without a failing call around it may have been no refusal.
fn may_have_passed(call: &Call, coverage: &Coverage) -> bool {
    call.outer.is_none() && call.inner.len() == 1 && coverage.sees(Check::VmMmapPgoff)
}

fn asked_once(record: &MemoryRefusal, call: &Call, facts: &RequestFacts) -> Decision {
    let inner = expand(record, call, facts);
    let mut decision = Decision::unknown(format!(
        "{} was seen refusing, but no call around it was seen failing: shmat was refused, or a mapping in place of others, which the kernel then allowed",
        function(Check::MayExpandVm)
    ));
    decision.check = Some(Check::MayExpandVm);
    decision.also_possible = match inner.cause {
        Cause::Unknown => inner.also_possible,
        cause => vec![Considered {
            what: cause.id(),
            why: inner.because,
        }],
    };
    decision
}

/// The deepest check with a meaning of its own.
fn inner_check(call: &Call) -> Option<(Check, &MemoryRefusal)> {
    call.inner
        .iter()
        .find_map(|it| Some((Check::from_number(it.check)?, it)))
}

/// A check was seen refusing.
fn seen(check: Check, record: &MemoryRefusal, call: &Call, facts: &RequestFacts) -> Decision {
    let name = function(check);
    match check {
        Check::VmEnoughMemory => enough_memory(record, call, facts),
        Check::MayExpandVm => expand(record, call, facts),
        Check::MlockFuture => Decision::observed(
            Cause::RlimitMemlock,
            check,
            format!("{name} was seen refusing: what the process locks would pass RLIMIT_MEMLOCK"),
        ),
        Check::HugetlbReservePages => huge_pages(true, call, facts),
        Check::GetUnmappedArea if record.ret == -libc::ENOMEM => Decision::observed(
            Cause::AddressSpaceExhausted,
            check,
            format!("{name} was seen returning -ENOMEM: no hole in the address space was found"),
        ),
        _ => Decision::unknown(format!(
            "{name} was seen refusing, for a reason that its result does not tell"
        )),
    }
}

fn enough_memory(record: &MemoryRefusal, call: &Call, facts: &RequestFacts) -> Decision {
    let check = Check::VmEnoughMemory;
    let name = function(check);
    let shared = flags(call).is_some_and(|flags| flags & MAP_SHARED != 0);
    let place = match way(call) {
        Way::Fallocate => {
            "; it was asked for a page of a file in a tmpfs, which has ENOSPC made of it (mm/shmem.c)"
        }
        Way::Other => {
            "; no mmap, brk or other call was seen around it: shared memory (shmget, /dev/shm), or a program start"
        }
        _ => "",
    };
    // The mode is that of a moment later then, and another one refused so small a request.
    let too_small = record.valid & memory_valid::OVERCOMMIT_MODE == 0
        && heuristic_refuses(record.bytes, facts) == Some(false);
    let mut decision = match mode(call, facts) {
        Some(STRICT) => Decision::observed(
            Cause::CommitLimit,
            check,
            format!("{name} was seen returning -ENOMEM, in strict mode{place}"),
        ),
        Some(0) if !too_small => Decision::observed(
            Cause::OvercommitHeuristic,
            check,
            format!(
                "{name} was seen returning -ENOMEM in heuristic mode, which refuses only what is larger than RAM and swap{place}"
            ),
        ),
        other => {
            let larger = heuristic_refuses(record.bytes, facts) == Some(true);
            let cause = if larger {
                Cause::OvercommitHeuristic
            } else {
                Cause::CommitLimit
            };
            let mode = other.map_or_else(
                || "the mode could not be read".to_owned(),
                |mode| format!("vm.overcommit_memory was {mode} right after"),
            );
            Decision::deduced(
                cause,
                Some(check),
                format!("{name} was seen returning -ENOMEM; {mode}{place}"),
            )
        }
    };
    if shared {
        decision.because = format!(
            "{}; the mapping is shared, so all of it is charged at once",
            decision.because
        );
    }
    if shared || way(call) == Way::Fallocate {
        decision.cause = Cause::ShmCommitRefused;
    }
    decision
}

/// Mode 0: `pages > totalram_pages() + total_swap_pages` (mm/util.c `__vm_enough_memory`, 5.10 to 7.2).
pub(super) fn heuristic_refuses(bytes: u64, facts: &RequestFacts) -> Option<bool> {
    let memory = facts.host.memory?;
    Some(bytes > memory.mem_total.saturating_add(memory.swap_total))
}

/// `RLIMIT_AS` before `RLIMIT_DATA`, as `may_expand_vm` tests them (mm/mmap.c, mm/vma.c, 5.10 to 7.2).
pub(super) fn limits_passed(
    record: &MemoryRefusal,
    asked: Option<u64>,
    facts: &RequestFacts,
) -> [bool; 2] {
    let needed = memory_valid::MM | memory_valid::RLIMITS;
    let Some(asked) = asked.filter(|_| record.valid & needed == needed) else {
        return [false; 2];
    };
    let page = facts.host.page_size.max(1);
    let pages = asked.div_ceil(page);
    [
        record.total_vm_pages.saturating_add(pages) > record.rlimit_as / page,
        record.data_vm_pages.saturating_add(pages) > record.rlimit_data / page,
    ]
}

fn asked_of(record: &MemoryRefusal, call: &Call) -> Option<u64> {
    (record.valid & memory_valid::BYTES != 0 && record.bytes > 0)
        .then_some(record.bytes)
        .or_else(|| bytes(call))
}

fn expand(record: &MemoryRefusal, call: &Call, facts: &RequestFacts) -> Decision {
    let check = Check::MayExpandVm;
    let name = function(check);
    let limited = |limit| record.valid & memory_valid::RLIMITS != 0 && limit != libc::RLIM_INFINITY;
    match limits_passed(record, asked_of(record, call), facts) {
        [true, _] => Decision::observed(
            Cause::RlimitAs,
            check,
            format!(
                "{name} was seen refusing, and the address space with this request passes RLIMIT_AS"
            ),
        ),
        [false, true] => Decision::observed(
            Cause::RlimitData,
            check,
            format!(
                "{name} was seen refusing, and private writable memory with this request passes RLIMIT_DATA"
            ),
        ),
        [false, false] => match (limited(record.rlimit_as), limited(record.rlimit_data)) {
            (true, false) => Decision::deduced(
                Cause::RlimitAs,
                Some(check),
                format!(
                    "{name} was seen refusing; its numbers were not seen, and RLIMIT_DATA is not set"
                ),
            ),
            (false, true) => Decision::deduced(
                Cause::RlimitData,
                Some(check),
                format!(
                    "{name} was seen refusing; its numbers were not seen, and RLIMIT_AS is not set"
                ),
            ),
            _ => {
                let mut decision = Decision::unknown(format!(
                    "{name} was seen refusing; which of RLIMIT_AS and RLIMIT_DATA it was, its numbers do not tell"
                ));
                decision.check = Some(check);
                decision.also_possible = [Cause::RlimitAs, Cause::RlimitData]
                    .map(|cause| Considered {
                        what: cause.id(),
                        why: format!("{name} tests both"),
                    })
                    .to_vec();
                decision
            }
        },
    }
}

/// The pool that was asked: known for the default size, which a mapping has that names none.
pub(super) fn pool(call: &Call, facts: &RequestFacts) -> Option<HugePages> {
    let log = flags(call).unwrap_or(0) >> MAP_HUGE_SHIFT & 0x3f;
    facts
        .huge_pages
        .filter(|pool| pool.page_bytes > 0)
        .filter(|pool| log == 0 || pool.page_bytes == 1 << log)
}

/// Whether the pool has what was asked for; `None` where that cannot be told.
fn pool_is_short(call: &Call, facts: &RequestFacts) -> Option<bool> {
    let pool = pool(call, facts)?;
    let pages = bytes(call)?.div_ceil(pool.page_bytes);
    Some(pages > pool.available())
}

pub(super) fn huge_pages(was_seen: bool, call: &Call, facts: &RequestFacts) -> Decision {
    let check = Check::HugetlbReservePages;
    let what = if was_seen {
        format!("{} was seen refusing", function(check))
    } else {
        "a mapping of huge pages ended with ENOMEM".to_owned()
    };
    let mut decision = match (pool_is_short(call, facts), was_seen) {
        (Some(true), true) => Decision::observed(
            Cause::HugetlbExhausted,
            check,
            format!("{what}, and the pool has fewer huge pages than were asked for"),
        ),
        (Some(true), false) => Decision::deduced(
            Cause::HugetlbExhausted,
            Some(check),
            format!("{what}, and the pool has fewer huge pages than were asked for"),
        ),
        (None, true) => Decision::deduced(
            Cause::HugetlbExhausted,
            Some(check),
            format!("{what}; the pool of huge pages of this size is not known"),
        ),
        (Some(false), _) => Decision::unknown(format!(
            "{what}, although the pool had enough right after: the limit of a hugetlbfs mount, or a hugetlb cgroup"
        )),
        (None, false) => Decision::unknown(format!(
            "{what}; the pool of huge pages of this size is not known"
        )),
    };
    decision.huge = true;
    decision
}

/// The stack could not grow, for any of these reasons (mm/mmap.c or mm/vma.c `acct_stack_growth`):
/// `RLIMIT_AS`, `RLIMIT_STACK`, `RLIMIT_MEMLOCK`, overcommit; or another mapping is too close.
fn stack(inner: Decision, call: &Call, facts: &RequestFacts) -> Decision {
    let record = call.outer.as_ref();
    let observed = format!(
        "{} was seen refusing to let the stack grow: the process gets SIGSEGV",
        function(Check::ExpandDownwards)
    );
    let known = inner.cause != Cause::Unknown && !call.inner.is_empty();
    let at_limit = record.is_some_and(|it| stack_is_full(it, facts));
    let mut decision =
        Decision::observed(Cause::StackGrowthRefused, Check::ExpandDownwards, observed);
    if known {
        decision.because = format!("{}; {}", decision.because, inner.because);
        decision.behind = Some(inner.cause);
    } else if at_limit {
        decision.because += ", and it is as large as RLIMIT_STACK allows";
        decision.stack_limit = true;
    } else if inner.cause != Cause::Unknown {
        decision.because = format!(
            "{}; by the numbers it was {}: {}",
            decision.because,
            inner.cause.id(),
            inner.because
        );
        decision.behind = Some(inner.cause);
        decision.certainty = Certainty::Deduced;
    } else {
        decision.because +=
            "; which limit is behind it is not known (RLIMIT_STACK, or another mapping close by)";
    }
    decision.also_possible = inner.also_possible;
    decision.not_seen = inner.not_seen;
    decision
}

fn stack_is_full(record: &MemoryRefusal, facts: &RequestFacts) -> bool {
    let needed = memory_valid::MM | memory_valid::RLIMITS;
    if record.valid & needed != needed || record.rlimit_stack == libc::RLIM_INFINITY {
        return false;
    }
    let page = facts.host.page_size.max(1);
    let growth = if record.valid & memory_valid::BYTES != 0 {
        record.bytes.max(page)
    } else {
        page
    };
    record
        .stack_vm_pages
        .saturating_mul(page)
        .saturating_add(growth)
        > record.rlimit_stack
}
