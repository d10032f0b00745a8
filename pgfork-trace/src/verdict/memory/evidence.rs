//! Numbers behind a verdict on memory: the task's own, as the kernel had them at the refusal,
//! completed by the host's.

use pgfork_trace_common::memory_valid;
use schemars::JsonSchema;
use serde::Serialize;

use super::{
    super::{OvercommitEvidence, overcommit},
    RequestFacts, decide,
    decide::Decision,
    merge::Call,
};

/// The pool of huge pages, right after the refusal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HugePages {
    /// Size of one.
    pub page_bytes: u64,
    /// `HugePages_Total`.
    pub total_pages: u64,
    /// `HugePages_Free`.
    pub free_pages: u64,
    /// `HugePages_Rsvd`: free ones that are promised.
    pub reserved_pages: u64,
}

impl HugePages {
    /// Pages that nobody has or was promised.
    #[must_use]
    pub const fn available(&self) -> u64 {
        self.free_pages.saturating_sub(self.reserved_pages)
    }
}

/// The tmpfs in which room was asked for, right after the refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct TmpfsRoom {
    /// Where it is mounted, for the process.
    pub mounted_on: String,
    /// Its size, in bytes; absent where it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What is left of it, in bytes. What a refused request had got is given back before that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
}

/// All numbers of one refused request; what could not be read is absent, and so is a limit that
/// is not set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryEvidence {
    /// Bytes asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_bytes: Option<u64>,
    /// Flags of the mapping (`MAP_*`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mapping_flags: Option<u64>,
    /// Address space of the process, without the request (`mm->total_vm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_vm_bytes: Option<u64>,
    /// Private writable memory of it (`mm->data_vm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_vm_bytes: Option<u64>,
    /// Stack of it (`mm->stack_vm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stack_vm_bytes: Option<u64>,
    /// Locked memory of it (`mm->locked_vm`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locked_vm_bytes: Option<u64>,
    /// `RLIMIT_AS`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit_as_bytes: Option<u64>,
    /// `RLIMIT_DATA`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit_data_bytes: Option<u64>,
    /// `RLIMIT_STACK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit_stack_bytes: Option<u64>,
    /// `RLIMIT_MEMLOCK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit_memlock_bytes: Option<u64>,
    /// Mappings of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mappings: Option<u64>,
    /// vm.max_map_count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_map_count: Option<u64>,
    /// Overcommit, where it refused or nothing else explains it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<OvercommitEvidence>,
    /// Huge pages, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// The tmpfs, where room in one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<TmpfsRoom>,
}

pub(super) fn collect(call: &Call, decision: &Decision, facts: &RequestFacts) -> MemoryEvidence {
    let page = facts.host.page_size;
    let mut evidence = MemoryEvidence {
        requested_bytes: decide::bytes(call),
        mapping_flags: decide::flags(call),
        max_map_count: facts.max_map_count,
        tmpfs: facts.tmpfs.clone(),
        ..MemoryEvidence::default()
    };
    // The deepest record stands closest to what was compared.
    if let Some(state) = call.records().next() {
        let sized = |bit, pages: u64| (state.valid & bit != 0).then(|| pages.saturating_mul(page));
        evidence.total_vm_bytes = sized(memory_valid::MM, state.total_vm_pages);
        evidence.data_vm_bytes = sized(memory_valid::MM, state.data_vm_pages);
        evidence.stack_vm_bytes = sized(memory_valid::MM, state.stack_vm_pages);
        evidence.locked_vm_bytes = sized(memory_valid::LOCKED_VM, state.locked_vm_pages);
        if state.valid & memory_valid::RLIMITS != 0 {
            let limit = |limit: u64| (limit != libc::RLIM_INFINITY).then_some(limit);
            evidence.rlimit_as_bytes = limit(state.rlimit_as);
            evidence.rlimit_data_bytes = limit(state.rlimit_data);
            evidence.rlimit_stack_bytes = limit(state.rlimit_stack);
            evidence.rlimit_memlock_bytes = limit(state.rlimit_memlock);
        }
        if state.valid & memory_valid::MAP_COUNT != 0 {
            evidence.mappings = u64::try_from(state.map_count).ok();
        }
    }
    if decision.concerns_overcommit() {
        evidence.overcommit = Some(promised(call, facts));
    }
    if decision.concerns_huge_pages() {
        evidence.huge_pages = decide::pool(call, facts);
    }
    evidence
}

/// What `__vm_enough_memory` compared, or would have.
pub(super) fn promised(call: &Call, facts: &RequestFacts) -> OvercommitEvidence {
    let page = facts.host.page_size;
    let record = call
        .records()
        .find(|it| it.valid & memory_valid::OVERCOMMIT != 0);
    let mode = decide::mode(call, facts);
    let mut evidence = OvercommitEvidence {
        overcommit_memory: mode,
        requested_bytes: match record {
            Some(record) => u64::try_from(record.overcommit.pages)
                .ok()
                .map(|pages| pages.saturating_mul(page)),
            None => decide::bytes(call),
        },
        // percpu_counter_read_positive: a negative reading counts as 0.
        committed_bytes: record
            .filter(|it| it.valid & memory_valid::COMMITTED != 0)
            .map(|it| u64::try_from(it.overcommit.committed_pages).unwrap_or(0))
            .map(|pages| pages.saturating_mul(page)),
        ..OvercommitEvidence::default()
    };
    let total_vm = record
        .map(|it| it.overcommit.total_vm_pages)
        .filter(|pages| *pages > 0)
        .or_else(|| {
            let state = call.records().next()?;
            (state.valid & memory_valid::MM != 0).then_some(state.total_vm_pages)
        });
    let privileged = record.map(|it| it.overcommit.cap_sys_admin != 0);
    overcommit::complete(&mut evidence, &facts.host, total_vm, privileged);
    evidence
}
