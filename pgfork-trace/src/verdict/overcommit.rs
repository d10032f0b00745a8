//! The arithmetic of `__vm_enough_memory` (mm/util.c, 5.10 to 7.2).
//!
//! Strict mode refuses unless `vm_committed_as`, with the request already
//! added, is below `allowed`:
//!
//! ```text
//! allowed = CommitLimit
//!         - admin_reserve                       unless cap_sys_admin
//!         - min(total_vm / 32, user_reserve)    total_vm of the forking process
//! ```

use pgfork_trace_common::{Attempt, valid};

use super::{Facts, evidence::OvercommitEvidence, privilege};

/// Strict mode of vm.overcommit_memory.
pub(crate) const STRICT: i32 = 2;
/// Heuristic mode.
pub(crate) const HEURISTIC: i32 = 0;

/// The mode that the kernel side read, or as `/proc` had it up to a fifth of a second before.
pub(crate) fn mode(attempt: &Attempt, facts: &Facts) -> Option<i32> {
    let read = attempt.valid & valid::OVERCOMMIT_MODE != 0;
    read.then_some(attempt.overcommit.mode)
        .or_else(|| facts.overcommit.map(|settings| settings.mode))
}

pub(super) fn collect(attempt: &Attempt, facts: &Facts) -> Option<OvercommitEvidence> {
    let page = facts.page_size;
    let call = (attempt.valid & valid::OVERCOMMIT_CALL != 0).then_some(attempt.overcommit);
    let mode = mode(attempt, facts);
    let total_vm_pages = call
        .map(|call| call.total_vm_pages)
        .filter(|pages| *pages > 0)
        .or_else(|| (attempt.valid & valid::MM != 0).then_some(attempt.state.total_vm_pages));
    let total_vm_bytes = total_vm_pages.map(|pages| pages.saturating_mul(page));
    if mode != Some(STRICT) && call.is_none() {
        return mode.map(|mode| OvercommitEvidence {
            overcommit_memory: Some(mode),
            largest_mapping_bytes: facts.largest_mapping_bytes,
            total_vm_bytes,
            mem_total_bytes: facts.memory.map(|memory| memory.mem_total),
            swap_total_bytes: facts.memory.map(|memory| memory.swap_total),
            mem_available_bytes: facts.memory.map(|memory| memory.mem_available),
            ..OvercommitEvidence::default()
        });
    }
    // The call's own argument, else what `cap_vm_enough_memory` (security/commoncap.c) asks.
    let privileged = call.map_or_else(
        || privilege::has(attempt, privilege::CAP_SYS_ADMIN),
        |call| Some(call.cap_sys_admin != 0),
    );
    let mut evidence = OvercommitEvidence {
        overcommit_memory: mode,
        requested_bytes: call
            .and_then(|call| u64::try_from(call.pages).ok())
            .map(|pages| pages.saturating_mul(page)),
        fork_charge_bytes: facts.fork_charge_bytes,
        largest_mapping_bytes: facts.largest_mapping_bytes,
        total_vm_bytes,
        // percpu_counter_read_positive: a negative reading counts as 0.
        committed_bytes: (attempt.valid & valid::COMMITTED != 0)
            .then(|| u64::try_from(attempt.overcommit.committed_pages).unwrap_or(0))
            .map(|pages| pages.saturating_mul(page)),
        backend_commit_bytes: facts.backends.commit_bytes,
        ..OvercommitEvidence::default()
    };
    complete(&mut evidence, facts, total_vm_pages, privileged);
    Some(evidence)
}

/// Adds what the host's facts say: limit, both reserves as they are for a process with
/// `total_vm_pages`, and what is usable of it.
pub(super) fn complete(
    evidence: &mut OvercommitEvidence,
    facts: &Facts,
    total_vm_pages: Option<u64>,
    privileged: Option<bool>,
) {
    let page = facts.page_size;
    if let Some(memory) = &facts.memory {
        evidence.commit_limit_bytes = Some(memory.commit_limit);
        evidence.committed_after_bytes = Some(memory.committed_as);
        evidence.mem_total_bytes = Some(memory.mem_total);
        evidence.mem_available_bytes = Some(memory.mem_available);
        evidence.swap_total_bytes = Some(memory.swap_total);
        evidence.counter_skew_bytes = Some(counter_skew(memory.mem_total, facts.cpus, page));
    }
    if let Some(settings) = &facts.overcommit {
        evidence.overcommit_ratio = Some(settings.ratio);
        evidence.overcommit_bytes = Some(settings.kbytes.saturating_mul(1024));
        let admin_pages = settings.admin_reserve_kbytes.saturating_mul(1024) / page;
        evidence.admin_reserve_bytes =
            privileged.map(|spared| if spared { 0 } else { admin_pages * page });
        let user_pages = settings.user_reserve_kbytes.saturating_mul(1024) / page;
        evidence.user_reserve_bytes =
            total_vm_pages.map(|total| (total / 32).min(user_pages) * page);
    }
    evidence.usable_bytes = usable(evidence);
}

fn usable(evidence: &OvercommitEvidence) -> Option<u64> {
    let reserves = evidence
        .admin_reserve_bytes?
        .saturating_add(evidence.user_reserve_bytes?);
    Some(evidence.commit_limit_bytes?.saturating_sub(reserves))
}

/// Most that `percpu_counter_read` may differ from the exact sum, in bytes:
/// `vm_committed_as_batch` for each CPU (mm/mm_init.c `mm_compute_batch`, 5.10 to 7.2:
/// in strict mode RAM / CPUs / 256, at least 32 pages and twice the CPUs).
fn counter_skew(mem_total: u64, cpus: u64, page: u64) -> u64 {
    let cpus = cpus.max(1);
    let batch_pages = (mem_total / page / cpus / 256).max(2 * cpus).max(32);
    batch_pages * cpus * page
}

/// How many more processes fit that each keep `kept_bytes` and need `charge_bytes` of it at their
/// fork.
pub(super) fn fitting(
    committed_bytes: u64,
    charge_bytes: u64,
    kept_bytes: u64,
    usable_bytes: u64,
) -> u64 {
    let kept = kept_bytes.max(charge_bytes).max(1);
    if refuses(committed_bytes, kept, usable_bytes) {
        return 0;
    }
    (usable_bytes - 1 - committed_bytes) / kept
}

/// Whether the check would refuse `request_bytes` on top of `committed_bytes`.
pub(super) fn refuses(committed_bytes: u64, request_bytes: u64, usable_bytes: u64) -> bool {
    committed_bytes.saturating_add(request_bytes) >= usable_bytes
}
