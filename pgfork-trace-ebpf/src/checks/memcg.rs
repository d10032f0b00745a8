//! A memory cgroup at its limit: which one, and why nothing could be done.

use pgfork_trace_common::{Attempt, Check, MemcgSeen, valid};

use crate::{
    attempt,
    checks::stages::note_result,
    kernel::{self, offset, read, read_at},
};

/// `try_to_free_mem_cgroup_pages` was entered with the cgroup whose limit was hit
/// (mm/memcontrol.c `try_charge`, 5.10 to 7.2): that one refuses, or an ancestor did.
#[inline(always)]
pub fn reclaiming(memcg: u64) {
    let Some(attempt) = attempt::open() else {
        return;
    };
    attempt.stages |= Check::TryToFreeMemCgroupPages.bit();
    read_counters(attempt, memcg);
    attempt.valid |= valid::MEMCG_RECLAIM;
    attempt.memcg.reclaims += 1;
}

/// The tracepoint of the same function, which does not name the cgroup.
#[inline(always)]
pub fn reclaim_began() {
    if let Some(attempt) = attempt::open() {
        attempt.stages |= Check::TryToFreeMemCgroupPages.bit();
        attempt.memcg.reclaims += 1;
    }
}

/// `mem_cgroup_out_of_memory` returned: false means that nobody could be killed.
#[inline(always)]
pub fn out_of_memory(ret: u64, memcg: u64) {
    if ret as u8 != 0 {
        return;
    }
    if let Some(attempt) = attempt::open() {
        nobody_killed(attempt, memcg);
    }
}

/// The same with the argument that the kprobe kept.
#[inline(always)]
pub fn out_of_memory_stashed(ret: u64) {
    if ret as u8 != 0 {
        return;
    }
    if let Some(attempt) = attempt::open() {
        let memcg = attempt.memcg_stash;
        nobody_killed(attempt, memcg);
    }
}

/// Keeps the argument until the kretprobe: other checks run in between.
#[inline(always)]
pub fn stash(memcg: u64) {
    if let Some(attempt) = attempt::open() {
        attempt.memcg_stash = memcg;
    }
}

#[inline(always)]
fn nobody_killed(attempt: &mut Attempt, memcg: u64) {
    read_counters(attempt, memcg);
    attempt.valid |= valid::MEMCG_OOM;
    note_result(attempt, Check::MemCgroupOutOfMemory, Some(0));
}

/// `__memcg_kmem_charge` refused: the kernel memory limit of cgroup v1 (5.10).
#[inline(always)]
pub fn kmem_refused(ret: i32, memcg: u64) {
    if ret >= 0 {
        return;
    }
    if let Some(attempt) = attempt::open() {
        if memcg != 0 {
            read_counters(attempt, memcg);
        }
        note_result(attempt, Check::MemcgKmemCharge, Some(ret));
    }
}

#[inline(never)]
fn read_counters(attempt: &mut Attempt, memcg: u64) {
    let seen = &mut attempt.memcg;
    *seen = MemcgSeen {
        reclaims: seen.reclaims,
        cgroup_id: 0,
        usage: 0,
        max: 0,
        memsw_usage: 0,
        memsw_max: 0,
        kmem_usage: 0,
        kmem_max: 0,
        oom_kill_disable: 0,
    };
    if let Some(id) = kernel::cgroup_id_of_memcg(memcg) {
        seen.cgroup_id = id;
    }
    if let Some(usage) = read_at(memcg, offset!(memcg_usage)) {
        seen.usage = usage;
    }
    if let Some(max) = read_at(memcg, offset!(memcg_max)) {
        seen.max = max;
    }
    if let Some(usage) = read_at(memcg, offset!(memcg_memsw_usage)) {
        seen.memsw_usage = usage;
    }
    if let Some(max) = read_at(memcg, offset!(memcg_memsw_max)) {
        seen.memsw_max = max;
        attempt.valid |= valid::MEMCG_MEMSW;
    }
    if let Some(usage) = read_at(memcg, offset!(memcg_kmem_usage)) {
        seen.kmem_usage = usage;
    }
    if let Some(max) = read_at(memcg, offset!(memcg_kmem_max)) {
        seen.kmem_max = max;
        attempt.valid |= valid::MEMCG_KMEM;
    }
    if let Some(at) = offset!(memcg_oom_kill_disable)
        && let Some(disabled) = read::<u8>(memcg + at)
    {
        seen.oom_kill_disable = disabled as u32;
        attempt.valid |= valid::MEMCG_OOM_DISABLE;
    }
}
