//! What refused a request where no check inside was seen: those that are no functions of their
//! own, or are not hooked on this kernel, are computed from the task's state, in the kernel's order.

use pgfork_trace_common::{Check, MemoryRefusal, memory_valid};

use super::{
    super::{Cause, Considered, Coverage, overcommit::STRICT},
    RequestFacts, Way,
    decide::{
        Decision, MAP_SHARED, bytes, flags, heuristic_refuses, huge_pages, limits_passed, mode,
    },
    evidence, function,
    merge::Call,
    way,
};
use crate::output::units;

/// `MAP_HUGETLB` (include/uapi/asm-generic/mman-common.h; the same on x86-64 and arm64).
const MAP_HUGETLB: u64 = 0x4_0000;

/// No check inside was seen: those that are no functions of their own, or are not hooked on this
/// kernel, are computed from the task's state, in the kernel's order.
pub(super) fn by_numbers(call: &Call, facts: &RequestFacts, coverage: &Coverage) -> Decision {
    let Some(outer) = &call.outer else {
        return Decision::unknown("no failing check was seen".to_owned());
    };
    if way(call) == Way::Fallocate {
        return in_tmpfs(outer, coverage);
    }
    let name = way(call).name();
    let error = super::errno_name(outer.ret);
    if outer.ret == -libc::EAGAIN {
        return locked(outer, call, facts, coverage);
    }
    if matches!(outer.ret, errno if errno == -libc::EPERM || errno == -libc::EACCES) {
        return Decision::unknown(format!(
            "{name} ended with {error}: a security module, vm.mmap_min_addr, or a sealed or read-only file; no limit gives this error"
        ));
    }
    if flags(call).is_some_and(|flags| flags & MAP_HUGETLB != 0) {
        return huge_pages(false, call, facts);
    }
    let candidates = candidates(outer, call, facts, coverage);
    let fits = candidates.iter().position(|it| it.verdict == Some(true));
    let Some(first) = fits else {
        return nothing_fits(
            format!("{name} ended with {error}, and no limit that is known would refuse it"),
            candidates,
            coverage,
        );
    };
    let mut decision = Decision::deduced(
        candidates[first].cause,
        candidates[first].check,
        format!("{name} ended with {error}, and {}", candidates[first].why),
    );
    for other in candidates.into_iter().skip(first + 1) {
        if other.verdict == Some(true) {
            decision.also_possible.push(other.considered());
        }
    }
    decision
}

fn nothing_fits(because: String, candidates: Vec<Candidate>, coverage: &Coverage) -> Decision {
    let mut decision = Decision::unknown(because);
    for candidate in candidates {
        if candidate.verdict == Some(false) {
            decision.ruled_out.push(candidate.considered());
        }
    }
    decision.not_seen = coverage
        .not_seen
        .iter()
        .filter(|(check, _)| {
            let of_memory = Check::VmMmapPgoff..Check::OomKillProcess;
            *check == Check::VmEnoughMemory || of_memory.contains(check)
        })
        .map(|(_, why)| why.clone())
        .collect();
    decision
}

/// A check that may have refused, by numbers.
struct Candidate {
    cause: Cause,
    check: Option<Check>,
    /// `None`: its numbers are not known.
    verdict: Option<bool>,
    why: String,
}

impl Candidate {
    fn considered(self) -> Considered {
        Considered {
            what: self.cause.id(),
            why: self.why,
        }
    }
}

/// In the kernel's order (`do_mmap`, then `mmap_region`): number of mappings, limits, overcommit.
fn candidates(
    outer: &MemoryRefusal,
    call: &Call,
    facts: &RequestFacts,
    coverage: &Coverage,
) -> Vec<Candidate> {
    let mut all = vec![mappings(outer, call, facts)];
    all.extend(limits(outer, call, facts));
    if !coverage.sees(Check::VmEnoughMemory) {
        all.push(unseen_overcommit(call, facts));
    } else {
        all.push(Candidate {
            cause: Cause::CommitLimit,
            check: None,
            verdict: Some(false),
            why: format!(
                "{} was watched and did not refuse",
                function(Check::VmEnoughMemory)
            ),
        });
    }
    all
}

/// `map_count` against `vm.max_map_count`: `>` in `do_mmap` and `do_brk_flags`, `>=` where a
/// mapping is split (`split_vma`), `>= max - 3` in mremap (mm/mmap.c, mm/vma.c, mm/mremap.c, 5.10
/// to 6.18; 7.2 tests for two or four further mappings instead).
fn mappings(outer: &MemoryRefusal, call: &Call, facts: &RequestFacts) -> Candidate {
    let most = match way(call) {
        Way::Mremap => facts.max_map_count.map(|max| max.saturating_sub(4)),
        Way::Mprotect => facts.max_map_count.map(|max| max.saturating_sub(1)),
        _ => facts.max_map_count,
    };
    let count = (outer.valid & memory_valid::MAP_COUNT != 0)
        .then(|| u64::try_from(outer.map_count).ok())
        .flatten();
    let verdict = count.zip(most).map(|(count, most)| count > most);
    Candidate {
        cause: Cause::MaxMapCount,
        check: None,
        verdict,
        why: match count.zip(facts.max_map_count) {
            Some((count, max)) => format!(
                "the process has {} of vm.max_map_count {}",
                units::counted(count, "mapping", "mappings"),
                units::count(max)
            ),
            None => "the number of mappings or vm.max_map_count is not known".to_owned(),
        },
    }
}

/// 5.10 inlines `may_expand_vm` into its callers in mm/mmap.c, where its refusal is not seen.
fn limits(outer: &MemoryRefusal, call: &Call, facts: &RequestFacts) -> [Candidate; 2] {
    let known = outer.valid & memory_valid::MM != 0 && outer.valid & memory_valid::RLIMITS != 0;
    let asked = bytes(call);
    let [space, data] = limits_passed(outer, asked, facts);
    // Shared mappings are no data (mm/internal.h `is_data_mapping`).
    let shared = flags(call).is_some_and(|flags| flags & MAP_SHARED != 0);
    let page = facts.host.page_size;
    let sum = |pages: u64, limit: u64, name: &str| {
        let used = units::bytes(pages.saturating_mul(page));
        let asked = asked.map_or_else(|| "?".to_owned(), units::bytes);
        match limit {
            libc::RLIM_INFINITY => format!("{name} is not set"),
            limit => format!("{used} and {asked} more, of {name} {}", units::bytes(limit)),
        }
    };
    let known = known && asked.is_some();
    [
        Candidate {
            cause: Cause::RlimitAs,
            check: Some(Check::MayExpandVm),
            verdict: known.then_some(space),
            why: format!(
                "the address space has {}",
                sum(outer.total_vm_pages, outer.rlimit_as, "RLIMIT_AS")
            ),
        },
        Candidate {
            cause: Cause::RlimitData,
            check: Some(Check::MayExpandVm),
            verdict: known.then_some(data && !shared),
            why: format!(
                "private writable memory has {}",
                sum(outer.data_vm_pages, outer.rlimit_data, "RLIMIT_DATA")
            ),
        },
    ]
}

/// `__vm_enough_memory` could not be watched.
fn unseen_overcommit(call: &Call, facts: &RequestFacts) -> Candidate {
    let check = Some(Check::VmEnoughMemory);
    if mode(call, facts) == Some(0) {
        let verdict = bytes(call).and_then(|bytes| heuristic_refuses(bytes, facts));
        return Candidate {
            cause: Cause::OvercommitHeuristic,
            check,
            verdict,
            why: "one mapping is compared with all RAM and swap".to_owned(),
        };
    }
    let promised = evidence::promised(call, facts);
    let left = promised
        .commit_limit_bytes
        .zip(promised.committed_after_bytes)
        .map(|(limit, committed)| limit.saturating_sub(committed));
    Candidate {
        cause: Cause::CommitLimit,
        check,
        verdict: match mode(call, facts) {
            Some(STRICT) => left.zip(bytes(call)).map(|(left, bytes)| bytes >= left),
            Some(_) => Some(false),
            None => None,
        },
        why: match (mode(call, facts), left) {
            (Some(STRICT), Some(left)) => {
                format!(
                    "{} were left below CommitLimit right after",
                    units::bytes(left)
                )
            }
            (Some(mode), _) if mode != STRICT => format!("vm.overcommit_memory is {mode}"),
            _ => "the commit limit is not known".to_owned(),
        },
    }
}

/// mm/shmem.c `shmem_fallocate`, 5.10 to 7.2: ENOSPC where the file would pass the tmpfs's size, or a
/// page of it does not fit below that or below the commit limit.
fn in_tmpfs(outer: &MemoryRefusal, coverage: &Coverage) -> Decision {
    let check = Check::ShmemFallocate;
    let ended = format!(
        "{} was seen returning -{}",
        function(check),
        super::errno_name(outer.ret)
    );
    if outer.ret != -libc::ENOSPC {
        return Decision::unknown(format!(
            "{ended}: the size of the tmpfs gives ENOSPC; want of memory for its pages, a seal or a quota may give this error"
        ));
    }
    if coverage.sees(Check::VmEnoughMemory) {
        return Decision::observed(
            Cause::ShmTmpfsFull,
            check,
            format!(
                "{ended}, and the commit limit, which also has it do so, was watched and did not refuse"
            ),
        );
    }
    let mut decision = Decision::deduced(Cause::ShmTmpfsFull, Some(check), ended);
    decision.also_possible.push(Considered {
        what: Cause::ShmCommitRefused.id(),
        why: "the commit limit also has it do so, and could not be watched".to_owned(),
    });
    decision
}

/// EAGAIN is what `RLIMIT_MEMLOCK` gives (mm/mmap.c `mlock_future_check`, inline on 5.10).
fn locked(
    outer: &MemoryRefusal,
    call: &Call,
    facts: &RequestFacts,
    coverage: &Coverage,
) -> Decision {
    let page = facts.host.page_size.max(1);
    let needed = memory_valid::LOCKED_VM | memory_valid::RLIMITS;
    let name = way(call).name();
    let passes = bytes(call)
        .filter(|_| outer.valid & needed == needed)
        .map(|bytes| {
            let pages = outer.locked_vm_pages.saturating_add(bytes.div_ceil(page));
            pages > outer.rlimit_memlock / page
        });
    match passes {
        Some(true) => Decision::deduced(
            Cause::RlimitMemlock,
            Some(Check::MlockFuture),
            format!(
                "{name} ended with EAGAIN, and what the process locks would pass RLIMIT_MEMLOCK"
            ),
        ),
        _ => nothing_fits(
            format!(
                "{name} ended with EAGAIN, and RLIMIT_MEMLOCK, which gives that error, has room or is not known"
            ),
            Vec::new(),
            coverage,
        ),
    }
}
