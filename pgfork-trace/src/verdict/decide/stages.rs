//! Checks without a function of their own: how far the fork came tells them apart.

use pgfork_trace_common::Check;

use super::{
    super::{
        Cause, Coverage,
        candidates::{Candidate, EAGAIN, ENOMEM},
        errno_name,
    },
    CLONE_PIDFD, Found,
    numbers::no_overcommit,
    returned::allocation_logged,
    view::{View, name},
};

const EINTR: i32 = -libc::EINTR;
const CLONE_FS: u64 = 0x200;
const CLONE_NEWUSER: u64 = 0x1000_0000;

pub(super) fn inline(view: &View) -> Option<Found> {
    perf(view).or_else(|| by_error(view))
}

fn by_error(view: &View) -> Option<Found> {
    match -view.attempt.ret {
        libc::EINVAL | libc::EPERM => flags(view),
        libc::EAGAIN => exec_race(view),
        libc::ENOMEM => namespace_died(view),
        libc::EINTR => fatal_signal(view),
        _ => None,
    }
}

/// Where `perf_event_init_task` cannot be hooked (5.10): it alone lies between `sched_fork` and
/// `audit_alloc` (kernel/fork.c `copy_process`, 5.10 to 7.2), and EAGAIN is `sched_fork`'s.
fn perf(view: &View) -> Option<Found> {
    let check = Check::PerfEventInitTask;
    let between = !view.sees(check)
        && view.sees(Check::AuditAlloc)
        && view.reached(Check::SchedFork)
        && view.got_past(check).is_none();
    (between && view.attempt.ret != EAGAIN && !view.contradicts()).then(|| {
        let because = format!(
            "the fork ended with {} between sched_fork and audit_alloc, where only perf_event_init_task lies",
            errno_name(view.attempt.ret)
        );
        Found::deduced(Cause::PerfInheritFailed, Some(check), because)
    })
}

/// Combinations of flags are tested before anything is copied (kernel/fork.c `kernel_clone` and
/// `copy_process`, 5.10 to 7.2); Debian's and Ubuntu's kernel.unprivileged_userns_clone as well.
fn flags(view: &View) -> Option<Found> {
    let watched = view.sees(Check::CopyCreds) && view.sees(Check::ArchDupTaskStruct);
    if !watched || view.last_stage().is_some() {
        return None;
    }
    let nothing = "the fork ended before anything was copied";
    if view.attempt.ret == -libc::EINVAL {
        return Some(Found::deduced(
            Cause::InvalidCloneFlags,
            None,
            format!("{nothing}, where only contradicting flags give EINVAL"),
        ));
    }
    (view.flags(CLONE_NEWUSER) == Some(true)).then(|| {
        Found::deduced(
            Cause::NamespaceDenied,
            None,
            format!(
                "{nothing}, with EPERM and CLONE_NEWUSER: kernel.unprivileged_userns_clone is 0"
            ),
        )
    })
}

/// kernel/fork.c `copy_fs`, 5.10 to 7.2: only with `CLONE_FS`, behind `copy_files` and before
/// `copy_namespaces`.
fn exec_race(view: &View) -> Option<Found> {
    let watched = [
        Check::SchedFork,
        Check::SecurityTaskAlloc,
        Check::CopyNamespaces,
    ];
    let window = watched.iter().all(|check| view.sees(*check))
        && view.reached(Check::SecurityTaskAlloc)
        && view.got_past(Check::CopyFsStruct).is_none()
        && !view.reached(Check::CopyFsStruct);
    (view.attempt.ret == EAGAIN && window && view.flags(CLONE_FS) == Some(true)).then(|| {
        Found::deduced(
            Cause::ExecRaceFs,
            None,
            "the fork ended with EAGAIN between security_task_alloc and copy_namespaces, with CLONE_FS: another task that shares its working directory is in execve".to_owned(),
        )
    })
}

/// kernel/fork.c `copy_process`, 5.10 to 7.2: under tasklist_lock, once more.
fn namespace_died(view: &View) -> Option<Found> {
    if !view.reached(Check::CgroupCancelFork) {
        return None;
    }
    let found = Found::deduced(
        Cause::PidNamespaceDyingLate,
        Some(Check::CgroupCancelFork),
        "the fork ended with ENOMEM behind cgroup_can_fork, where only a pid namespace that has just lost its init gives it"
            .to_owned(),
    );
    Some(if view.coverage.misses(Check::SchedCgroupFork) {
        found.or(
            "a BPF scheduler",
            "it is asked there too, and that could not be watched",
        )
    } else {
        found
    })
}

fn fatal_signal(view: &View) -> Option<Found> {
    let check = Some(Check::CgroupCancelFork);
    let behind = view.reached(Check::CgroupCancelFork);
    let how = if behind {
        "the fork ended with EINTR behind cgroup_can_fork"
    } else {
        "the fork ended with EINTR"
    };
    let only = "which only a signal that ends the process gives";
    if let Some(known) = view.was_killed() {
        return Some(Found::deduced(
            Cause::MemcgOomKilledForker,
            check.filter(|_| behind),
            format!("{how}, {only}, and {known}"),
        ));
    }
    (behind || !view.sees(Check::CgroupCancelFork))
        .then(|| Found::deduced(Cause::FatalSignal, check, format!("{how}, {only}")))
}

/// What becomes of a signal in `dup_mmap`.
pub(super) const AS_ENOMEM: &str = "while memory is copied the kernel reports it as ENOMEM";

/// `dup_mmap` gives EINTR to a process that is being killed (kernel/fork.c, 5.10 to 6.12;
/// mm/mmap.c, 6.18 and later), and `copy_mm` makes ENOMEM of it.
pub(super) fn killed_in_copy_mm(view: &View) -> Option<Found> {
    let window = view.sees(Check::CopyNamespaces) && view.in_copy_mm();
    let killed = view.attempt.ret == ENOMEM && view.is_dying() == Some(true);
    // An allocation that was seen failing there says more.
    (killed && window && view.deepest().is_none()).then(|| {
        let because = "the fork ended with ENOMEM while memory was copied, and the process was being killed: the kernel then breaks off, and reports that as ENOMEM";
        Found::deduced(Cause::FatalSignal, None, because.to_owned()).or(
            "kernel memory",
            "want of it gives the same error at that place",
        )
    })
}

/// Without hooks: how far the fork came is not known, but that the process was being killed.
pub(super) fn dying_by_state(view: &View) -> Option<Found> {
    // The init of a pid namespace takes all in it along, and none of them can fork.
    let namespace_lives = view.evidence.pid_namespaces.iter().all(|it| it.alive);
    let ret = view.ret.filter(|ret| [ENOMEM, EINTR].contains(ret))?;
    if view.is_dying() != Some(true) || !namespace_lives {
        return None;
    }
    let reclaimed = view.reached(Check::TryToFreeMemCgroupPages);
    let ended = format!("the fork ended with {}", errno_name(ret));
    let (cause, because) = match view.was_killed() {
        Some(known) => (Cause::MemcgOomKilledForker, format!("{known}, and {ended}")),
        None if reclaimed && ret == ENOMEM => (
            Cause::MemcgDyingTask,
            format!(
                "memory was reclaimed for this fork, the process was being killed when it ended, and {ended}"
            ),
        ),
        None => (
            Cause::FatalSignal,
            format!("{ended}, and the process was being killed when it did"),
        ),
    };
    let found = Found::deduced(cause, None, because);
    Some(match (ret, cause) {
        (ENOMEM, Cause::MemcgDyingTask) => found.or("a fatal signal", AS_ENOMEM),
        (ENOMEM, Cause::FatalSignal) => {
            found.or("kernel memory", "want of it gives the same error")
        }
        _ => found,
    })
}

/// Checks that give ENOMEM for a reason of their own: where one could not be watched and the fork
/// did not get past it, it may be the one.
const OTHER_REASONS: [Check; 8] = [
    Check::CopyCreds,
    Check::AuditAlloc,
    Check::SecurityTaskAlloc,
    Check::DupFd,
    Check::VmEnoughMemory,
    Check::CopyNamespaces,
    Check::AllocPid,
    Check::CgroupCanFork,
];

/// ENOMEM, and nothing that was watched refused: the kernel itself had no memory.
pub(super) fn kernel_memory(view: &View, candidates: &[Candidate]) -> Option<Found> {
    if view.attempt.ret != ENOMEM || view.contradicts() || view.attempt.trail_lost > 0 {
        return None;
    }
    let overcommit = !view.sees(Check::VmEnoughMemory) && !view.ended_before_dup_mmap();
    let no_overcommit = overcommit && no_overcommit(view, candidates);
    let unseen = OTHER_REASONS.iter().any(|check| {
        !view.sees(*check)
            && view.got_past(*check).is_none()
            && !(*check == Check::VmEnoughMemory && (no_overcommit || !overcommit))
    });
    let cgroups = memory_cgroups_watched(view.coverage);
    let pidfd = view.flags(CLONE_PIDFD) == Some(true);
    if unseen || !cgroups || pidfd {
        return None;
    }
    let (cause, place) = place(view);
    let logged = if allocation_logged(view) {
        "; the kernel log has a failed allocation of this process"
    } else {
        ""
    };
    let excluded = if no_overcommit {
        "; overcommit was not watched, and refuses nothing so small in its mode"
    } else {
        ""
    };
    let mut found = Found::deduced(
        cause,
        None,
        format!(
            "the fork ended with ENOMEM {place}, and no limit and no memory cgroup was seen refusing{excluded}{logged}"
        ),
    );
    if view.reached(Check::TryToFreeMemCgroupPages) {
        found = found.or(
            "memory cgroup",
            "one was at its limit in this fork; whether it refused was not seen",
        );
    }
    if view.in_copy_mm() && view.is_dying().is_none() {
        found = found.or("a fatal signal", AS_ENOMEM);
    }
    Some(found)
}

fn memory_cgroups_watched(coverage: &Coverage) -> bool {
    coverage.sees(Check::MemCgroupOutOfMemory) && coverage.sees(Check::TryToFreeMemCgroupPages)
}

/// What was being made where the fork ended. Until `copy_creds` that is the task itself
/// (kernel/fork.c `dup_task_struct`): its stack comes after `arch_dup_task_struct` in 6.1 and
/// later, and before it in 5.10.
fn place(view: &View) -> (Cause, String) {
    let behind = view.last_stage();
    match behind {
        None if view.sees(Check::ArchDupTaskStruct) => (
            Cause::KernelMemoryExhausted,
            "before arch_dup_task_struct, for the task itself (in 5.10: or its stack)".to_owned(),
        ),
        Some(Check::ArchDupTaskStruct) => (
            Cause::KernelStackAllocFailed,
            "between arch_dup_task_struct and copy_creds, where the stack is made".to_owned(),
        ),
        Some(check) => (
            Cause::KernelMemoryExhausted,
            format!("behind {}", name(check)),
        ),
        None => (
            Cause::KernelMemoryExhausted,
            "at a stage that is not known".to_owned(),
        ),
    }
}
