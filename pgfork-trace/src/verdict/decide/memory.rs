//! Memory cgroups: any allocation of a fork may be the one that is refused, so the stage says
//! nothing (mm/memcontrol.c `try_charge`, 5.10; `try_charge_memcg`, 6.1 to 7.2).

use pgfork_trace_common::Check;

use super::{
    super::{Cause, LogFact, candidates::ENOMEM},
    Found,
    stages::AS_ENOMEM,
    view::{View, name},
};

pub(super) fn cgroup(view: &View) -> Option<Found> {
    if view.attempt.ret != ENOMEM {
        return None;
    }
    no_victim(view)
        .or_else(|| killed(view))
        .or_else(|| kernel_memory(view))
        .or_else(|| oom_kill_disabled(view))
        .or_else(|| dying(view))
}

/// The OOM killer found nobody, and the charge was refused for it.
fn no_victim(view: &View) -> Option<Found> {
    let check = Check::MemCgroupOutOfMemory;
    view.failing(check)?;
    Some(Found::observed(
        Cause::MemcgNoVictim,
        check,
        format!(
            "{} was seen returning false in this fork, which ended with ENOMEM; {}",
            name(check),
            view.how_far()
        ),
    ))
}

/// A process that is being killed gets no more memory (mm/memcontrol.c `try_charge_memcg`, 6.1 to
/// 7.2), and everything that it is interrupted in while memory is copied becomes ENOMEM.
fn killed(view: &View) -> Option<Found> {
    let known = view.was_killed()?;
    Some(Found::deduced(
        Cause::MemcgOomKilledForker,
        view.deepest().map(|(check, _)| check),
        format!(
            "{known}, and the fork ended with ENOMEM; {}",
            view.how_far()
        ),
    ))
}

/// mm/memcontrol.c `__memcg_kmem_charge`, 5.10: the charge to memory comes first, and fails only
/// after reclaim; the limit of kernel memory refuses at once.
fn kernel_memory(view: &View) -> Option<Found> {
    let check = Check::MemcgKmemCharge;
    if view.failing(check) == Some(ENOMEM) {
        let charged = if view.sees(Check::TryCharge) {
            view.failing(Check::TryCharge).is_none()
        } else {
            view.sees(Check::TryToFreeMemCgroupPages)
                && !view.reached(Check::TryToFreeMemCgroupPages)
        };
        return charged.then(|| {
            let because = format!(
                "{} was seen returning -ENOMEM in this fork, and the charge to memory itself was not refused",
                name(check)
            );
            Found::observed(Cause::MemcgKmemLimitV1, check, because)
        });
    }
    let memcg = view.evidence.memcg.as_ref()?;
    let (_, level) = memcg.refusing_kernel_memory()?;
    let reclaimed = view.reached(Check::TryToFreeMemCgroupPages);
    (!view.sees(check) && !reclaimed).then(|| {
        let because = format!(
            "the fork ended with ENOMEM, and a cgroup has {} bytes of kernel memory of {}; {}",
            level.kmem_usage_bytes.unwrap_or(0),
            level.kmem_limit_bytes.unwrap_or(0),
            view.how_far()
        );
        Found::deduced(Cause::MemcgKmemLimitV1, Some(check), because)
    })
}

/// Whether a charge was seen being refused, which takes the armed checks.
fn charge_refused(view: &View) -> Option<Check> {
    [Check::TryCharge, Check::MemcgKmemChargePage]
        .into_iter()
        .find(|check| view.failing(*check) == Some(ENOMEM))
}

const KERNEL_MEMORY: &str = "kernel memory";
const WENT_ON: &str = "the refused charge may have been a first try for the table of open files";

/// A charge may be refused and the fork go on: a large table of open files is asked for in one
/// piece first, and then in pages (fs/file.c `alloc_fdtable`, `kvmalloc`, 5.10 to 7.2). When the
/// fork ended before it has that table, no other allocation followed.
fn may_have_gone_on(view: &View) -> bool {
    view.got_past(Check::DupFd).is_some()
}

/// Nobody is killed, so the OOM killer is not even asked (mm/memcontrol.c `mem_cgroup_oom`, v1).
fn oom_kill_disabled(view: &View) -> Option<Found> {
    let (_, level) = view.evidence.memcg.as_ref()?.refusing()?;
    if level.oom_kill_disable != Some(true) || !view.reached(Check::TryToFreeMemCgroupPages) {
        return None;
    }
    let standing = "the cgroup at its limit has oom_kill_disable set";
    if let Some(check) = charge_refused(view) {
        let because = format!(
            "{} was seen returning -ENOMEM in this fork, and {standing}",
            name(check)
        );
        let cause = Cause::MemcgOomKillDisabled;
        return Some(if may_have_gone_on(view) {
            Found::deduced(cause, Some(check), because).or(KERNEL_MEMORY, WENT_ON)
        } else {
            Found::observed(cause, check, because)
        });
    }
    // Watched and not refused: reclaim helped.
    (!view.sees(Check::TryCharge)).then(|| {
        let because = format!(
            "memory was reclaimed for this fork, {standing}, and it ended with ENOMEM; {}",
            view.how_far()
        );
        Found::deduced(Cause::MemcgOomKillDisabled, Some(Check::TryCharge), because)
    })
}

/// A charge that may wait is refused for three reasons only; two are excluded. Not armed, the
/// refused charge is not seen, but that this process was being killed; or that the OOM killer found
/// a victim and the fork got no memory nevertheless: who is not being killed then tries again.
fn dying(view: &View) -> Option<Found> {
    let reclaimed = view.reached(Check::TryToFreeMemCgroupPages);
    let (_, level) = view.evidence.memcg.as_ref()?.refusing()?;
    let dies = view.is_dying();
    if !reclaimed
        || !view.sees(Check::MemCgroupOutOfMemory)
        || level.oom_kill_disable == Some(true)
        || dies == Some(false)
    {
        return None;
    }
    let only = "only a process that is being killed is refused then";
    if let Some(check) = charge_refused(view) {
        let because = format!(
            "{} was seen returning -ENOMEM in this fork, though the OOM killer is on and did not fail: {only}",
            name(check)
        );
        let found = Found::deduced(Cause::MemcgDyingTask, Some(check), because);
        return Some(if may_have_gone_on(view) {
            found.or(KERNEL_MEMORY, WENT_ON)
        } else {
            found
        });
    }
    let mut log = view.evidence.kernel_log.iter();
    let known = if dies == Some(true) {
        "this process was being killed when it ended"
    } else if log.any(|line| matches!(line, LogFact::CgroupKilled { .. })) {
        "the kernel log says that the OOM killer of a memory cgroup chose a process; still there was no memory"
    } else {
        return None;
    };
    (!view.sees(Check::TryCharge)).then(|| {
        let because = format!(
            "memory was reclaimed for this fork, and {known}: {only}; {}",
            view.how_far()
        );
        let found = Found::deduced(Cause::MemcgDyingTask, None, because).or(
            "kernel memory",
            "want of it gives the same error, where the killed process made room in the cgroup",
        );
        if dies == Some(true) && view.in_copy_mm() {
            return found.or("a fatal signal", AS_ENOMEM);
        }
        found
    })
}
