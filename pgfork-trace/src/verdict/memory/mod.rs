//! From a refused request for memory to a verdict. Pure.
//!
//! What a running process asks for by mmap, brk, mremap, mprotect, or by using more stack, passes
//! other checks than a fork does (mm/mmap.c, mm/vma.c, mm/mremap.c, mm/mprotect.c, 5.10 to 7.2).

mod decide;
mod evidence;
pub mod merge;
mod numbers;
mod remedy;
#[cfg(test)]
mod tests;

pub use evidence::{HugePages, MemoryEvidence, TmpfsRoom};
pub use merge::{Merger, Request};

use pgfork_trace_common::{Check, MemoryRefusal};
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    Cause, Certainty, CheckSeen, Considered, Coverage, Facts, Remedy, Scope, TrailEntry, errno_name,
};

/// What the host says, as a verdict on memory needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestFacts {
    /// As for a fork; `pid` and `unit` are those of the watched process.
    pub host: Facts,
    /// vm.max_map_count.
    pub max_map_count: Option<u64>,
    /// The pool of huge pages of the default size.
    pub huge_pages: Option<HugePages>,
    /// The tmpfs in which room was asked for.
    pub tmpfs: Option<TmpfsRoom>,
    /// What is watched is a PostgreSQL server.
    pub server: bool,
}

/// How a process asks for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// The mmap system call.
    Mmap,
    /// The brk system call: more heap.
    Brk,
    /// The mremap system call.
    Mremap,
    /// The mprotect system call: memory that becomes writable is charged.
    Mprotect,
    /// No system call: the stack was used beyond its end, and had to grow.
    StackGrowth,
    /// The fallocate system call: room in a file of a tmpfs, as posix_fallocate asks for a shared
    /// memory segment.
    Fallocate,
    /// None of these was seen around the check: a shared memory object, or a program start.
    Other,
}

impl Way {
    /// The word used in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mmap => "mmap",
            Self::Brk => "brk",
            Self::Mremap => "mremap",
            Self::Mprotect => "mprotect",
            Self::StackGrowth => "stack growth",
            Self::Fallocate => "fallocate",
            Self::Other => "another call",
        }
    }
}

/// One call that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Asked {
    /// How.
    pub way: Way,
    /// How much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What it returned: `-ENOMEM`; absent when its return was not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returned: Option<String>,
}

/// What refused one request for memory, how sure that is, and what to change.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MemoryVerdict {
    /// Id in the catalogue of causes.
    pub cause: Cause,
    /// The limit behind a stack that could not grow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Cause>,
    /// How sure.
    pub certainty: Certainty,
    /// Why it is that sure: one sentence.
    pub because: String,
    /// Whose limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
    /// The calls, in order: a C library asks in more than one way before it gives up.
    pub asked: Vec<Asked>,
    /// The check that refused, where one was identified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<CheckSeen>,
    /// Failing returns seen in the call that decides, deepest first.
    pub trail: Vec<TrailEntry>,
    /// Numbers read at the refusal or right after it.
    pub evidence: MemoryEvidence,
    /// What to change; empty when no limit was proven.
    pub remedy: Vec<Remedy>,
    /// Other checks whose numbers also fit, in kernel order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub also_possible: Vec<Considered>,
    /// Checks that do not explain it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<Considered>,
    /// Checks that could not be watched and might matter here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
}

/// Errors of mmap and its kin that speak of limits or permission. All others say that the
/// arguments make no sense: a mistake, or a program that tries out what the kernel has.
const REFUSALS: [i32; 5] = [
    -libc::ENOMEM,
    -libc::EAGAIN,
    -libc::EPERM,
    -libc::EACCES,
    -libc::ENOSPC,
];

/// The verdict on one request; `None` where it was no refusal but a call that makes no sense.
#[must_use]
pub fn judge(
    request: &Request,
    facts: &RequestFacts,
    coverage: &Coverage,
) -> Option<MemoryVerdict> {
    let asked: Vec<Asked> = request.calls.iter().map(asked).collect();
    let (at, decision) = decide::decide(request, facts, coverage)?;
    let call = &request.calls[at];
    let evidence = evidence::collect(call, &decision, facts);
    let remedy = remedy::remedies(&decision, &evidence, facts);
    let mut trail: Vec<TrailEntry> = call.records().filter_map(trail_entry).collect();
    // `may_expand_vm` is asked twice for one mapping by 6.1 (mm/mmap.c `mmap_region`).
    trail.dedup();
    Some(MemoryVerdict {
        cause: decision.cause,
        behind: decision.behind,
        certainty: decision.certainty,
        because: decision.because,
        scope: scope(decision.behind.unwrap_or(decision.cause)),
        asked,
        check: decision.check.map(|check| check_seen(check, call)),
        trail,
        evidence,
        remedy,
        also_possible: decision.also_possible,
        ruled_out: decision.ruled_out,
        not_seen: decision.not_seen,
    })
}

fn scope(cause: Cause) -> Option<Scope> {
    match cause {
        Cause::CommitLimit
        | Cause::OvercommitHeuristic
        | Cause::ShmCommitRefused
        | Cause::HugetlbExhausted => Some(Scope::Host),
        Cause::RlimitAs
        | Cause::RlimitData
        | Cause::RlimitMemlock
        | Cause::MaxMapCount
        | Cause::AddressSpaceExhausted
        | Cause::StackGrowthRefused => Some(Scope::Process),
        _ => None,
    }
}

fn asked(call: &merge::Call) -> Asked {
    Asked {
        way: way(call),
        bytes: decide::bytes(call),
        returned: call.outer.as_ref().and_then(|outer| {
            let check = Check::from_number(outer.check)?;
            Some(returned(check, outer.ret))
        }),
    }
}

fn way(call: &merge::Call) -> Way {
    let outer = call.outer.and_then(|it| Check::from_number(it.check));
    match outer {
        Some(Check::VmMmapPgoff) => Way::Mmap,
        Some(Check::DoBrkFlags) => Way::Brk,
        Some(Check::Mremap) => Way::Mremap,
        Some(Check::Mprotect) => Way::Mprotect,
        Some(Check::ExpandDownwards) => Way::StackGrowth,
        Some(Check::ShmemFallocate) => Way::Fallocate,
        _ => Way::Other,
    }
}

/// The kernel function of a check. Where kernels differ, the name of the newest.
const fn function(check: Check) -> &'static str {
    match check {
        Check::VmEnoughMemory => "__vm_enough_memory",
        Check::VmMmapPgoff => "vm_mmap_pgoff",
        Check::DoBrkFlags => "do_brk_flags",
        Check::MayExpandVm => "may_expand_vm",
        Check::Mremap => "do_mremap",
        Check::Mprotect => "mprotect_fixup",
        Check::ExpandDownwards => "expand_downwards",
        Check::HugetlbReservePages => "hugetlb_reserve_pages",
        Check::MlockFuture => "mlock_future_ok",
        Check::GetUnmappedArea => "__get_unmapped_area",
        Check::ShmemFallocate => "shmem_fallocate",
        _ => "?",
    }
}

fn returned(check: Check, ret: i32) -> String {
    match (check, ret) {
        (_, ..0) => format!("-{}", errno_name(ret)),
        // 1 is `true`: `hugetlb_reserve_pages` of no kernel gives it for a refusal.
        (_, 0) => "false".to_owned(),
        (_, ret) => ret.to_string(),
    }
}

fn trail_entry(record: &MemoryRefusal) -> Option<TrailEntry> {
    let check = Check::from_number(record.check)?;
    Some(TrailEntry {
        function: function(check),
        returned: returned(check, record.ret),
    })
}

fn check_seen(check: Check, call: &merge::Call) -> CheckSeen {
    let seen = call.records().find(|it| it.check == check as u32);
    let outer = call.outer.and_then(|it| Check::from_number(it.check));
    CheckSeen {
        function: function(check),
        path: outer
            .filter(|outer| *outer != check)
            .map(function)
            .into_iter()
            .collect(),
        returned: seen.map(|it| returned(check, it.ret)),
    }
}

/// What the process gets: the result of the last call, where it was seen.
#[must_use]
pub fn errno(request: &Request) -> Option<i32> {
    request
        .records()
        .rev()
        .map(|record| record.ret)
        .find(|ret| *ret < 0)
}
