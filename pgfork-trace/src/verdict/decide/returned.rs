//! Checks that are functions of their own, and were seen returning what the fork ended with.

use pgfork_trace_common::{Check, valid};

use super::{
    super::{
        Cause, Certainty, LogFact,
        candidates::{Candidate, EAGAIN, EMFILE, ENOMEM},
        errno_name,
        overcommit::{HEURISTIC, STRICT},
        returned as shown,
    },
    Found,
    numbers::no_overcommit,
    view::{View, name},
};

const CLONE_NEWUSER: u64 = 0x1000_0000;
/// `CLONE_INTO_CGROUP` (include/uapi/linux/sched.h), of clone3 only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const EINTR: i32 = -libc::EINTR;

/// `FUNCTION was seen returning -ERROR in this fork`.
fn said(view: &View, check: Check) -> String {
    let ret = view.failing(check).unwrap_or(0);
    let tail = match ret {
        0 => format!(", and the fork ended with {}", errno_name(view.attempt.ret)),
        _ => " in this fork".to_owned(),
    };
    format!(
        "{} was seen returning {}{tail}",
        name(check),
        shown(check, ret)
    )
}

/// The deepest first: `pids_can_fork` is called by `cgroup_can_fork`, and so on.
pub(super) fn for_its_own_reason(view: &View) -> Option<Found> {
    pids(view)
        .or_else(|| overcommit(view))
        .or_else(|| alloc_pid(view))
        .or_else(|| dying_in_dup_mmap(view))
        .or_else(|| by_error(view))
        .or_else(|| into_cgroup(view))
}

fn pids(view: &View) -> Option<Found> {
    let check = Check::PidsCanFork;
    let refused = view.failing(check) == Some(EAGAIN) && view.attempt.ret == EAGAIN;
    refused.then(|| Found::observed(Cause::PidsCgroupMax, check, said(view, check)))
}

/// mm/util.c `__vm_enough_memory`, 5.10 to 7.2; what it compares depends on the mode.
fn overcommit(view: &View) -> Option<Found> {
    let check = Check::VmEnoughMemory;
    if view.failing(check) != Some(ENOMEM) || view.attempt.ret != ENOMEM {
        return None;
    }
    let evidence = view.evidence.overcommit.as_ref()?;
    let mode = evidence.overcommit_memory?;
    // The mode is that of a moment later then, and another one refused so small a request.
    let too_small = evidence.requested_bytes.is_some_and(|asked| {
        let all = evidence.mem_total_bytes.zip(evidence.swap_total_bytes);
        all.is_some_and(|(ram, swap)| asked <= ram.saturating_add(swap))
    });
    if mode == HEURISTIC && too_small && !view.read(valid::OVERCOMMIT_MODE) {
        return None;
    }
    let (cause, what) = match mode {
        STRICT => (Cause::CommitLimit, "strict"),
        HEURISTIC => (Cause::OvercommitHeuristic, "heuristic"),
        _ => return None,
    };
    let because = format!("{}, in {what} mode", said(view, check));
    Some(Found::observed(cause, check, because))
}

/// kernel/pid.c `alloc_pid`, 5.10 to 7.2.
fn alloc_pid(view: &View) -> Option<Found> {
    let check = Check::AllocPid;
    let ret = view.failing(check).filter(|ret| *ret == view.attempt.ret)?;
    match -ret {
        libc::EAGAIN => Some(Found::observed(
            Cause::PidSpaceExhausted,
            check,
            format!(
                "{}, which it does only when no number is left",
                said(view, check)
            ),
        )),
        // 7.2 gives EINVAL also where the first pid of a namespace would not be 1.
        libc::EEXIST | libc::EINVAL | libc::EPERM => {
            let asked = view.attempt.set_tid_size;
            (asked > 0).then(|| {
                let because = format!("{}, and certain numbers were asked for", said(view, check));
                Found::observed(Cause::SetTidConflict, check, because)
            })
        }
        libc::ENOMEM => {
            let gone = view.evidence.pid_namespaces.iter().any(|it| !it.alive);
            let because = |when| {
                format!(
                    "{}, and the pid namespace takes no new process: {when}",
                    said(view, check)
                )
            };
            gone.then(|| {
                if view.read(valid::PIDNS_AT_CHECK) {
                    Found::observed(Cause::PidNamespaceDying, check, because("its init is gone"))
                } else {
                    Found::deduced(
                        Cause::PidNamespaceDying,
                        Some(check),
                        because("its init is gone (read right after)"),
                    )
                }
            })
        }
        _ => None,
    }
}

/// `copy_mm` makes ENOMEM of every error inside it (kernel/fork.c 5.10 to 7.2).
fn dying_in_dup_mmap(view: &View) -> Option<Found> {
    let check = Check::DupMmap;
    // Who killed it says more.
    let dying = view.failing(check) == Some(EINTR) && view.attempt.ret == ENOMEM;
    (dying && view.was_killed().is_none()).then(|| {
        Found::observed(
            Cause::FatalSignal,
            check,
            format!(
                "{}, which it does only for a process that is being killed; copy_mm makes ENOMEM of it",
                said(view, check)
            ),
        )
    })
}

/// Functions whose error, if it is not want of memory, has one meaning.
fn by_error(view: &View) -> Option<Found> {
    let ret = view.attempt.ret;
    let veto = |check: Check, cause: Cause, wanted: bool| {
        (wanted && view.ended(check)).then(|| Found::observed(cause, check, said(view, check)))
    };
    let not_memory = ret != ENOMEM;
    let in_user_namespace = view.flags(CLONE_NEWUSER) != Some(false);
    veto(
        Check::CopyCreds,
        Cause::NamespaceDenied,
        not_memory && in_user_namespace,
    )
    .or_else(|| {
        let found = veto(Check::SchedFork, Cause::SchedDeadlineFork, ret == EAGAIN)?;
        Some(Found {
            because: format!(
                "{}, which it does only for a process under SCHED_DEADLINE",
                found.because
            ),
            ..found
        })
    })
    .or_else(|| {
        veto(
            Check::PerfEventInitTask,
            Cause::PerfInheritFailed,
            not_memory,
        )
    })
    .or_else(|| veto(Check::AuditAlloc, Cause::AuditAllocFailed, not_memory))
    .or_else(|| veto(Check::SecurityTaskAlloc, Cause::LsmDenied, not_memory))
    .or_else(|| veto(Check::DupFd, Cause::NrOpenLowered, ret == EMFILE))
    .or_else(|| veto(Check::CopyNamespaces, Cause::NamespaceDenied, not_memory))
    .or_else(|| veto(Check::CopyThread, Cause::FatalSignal, ret == EINTR))
    .or_else(|| veto(Check::SchedCgroupFork, Cause::SchedExtRejected, not_memory))
}

/// kernel/cgroup/cgroup.c `cgroup_can_fork`, 5.10 to 7.2: other errors than those of the pids
/// controller come with `CLONE_INTO_CGROUP` only.
fn into_cgroup(view: &View) -> Option<Found> {
    let check = Check::CgroupCanFork;
    let own = view.ended(check) && view.failing(Check::PidsCanFork).is_none();
    let asked = view.flags(CLONE_INTO_CGROUP);
    if !own || asked == Some(false) || view.attempt.ret == EAGAIN {
        return None;
    }
    // Flags that were not seen leave want of memory to others.
    if asked.is_none() && view.attempt.ret == ENOMEM {
        return None;
    }
    Some(Found::observed(
        Cause::CloneIntoCgroupFailed,
        check,
        format!(
            "{}, and pids_can_fork was not seen refusing",
            said(view, check)
        ),
    ))
}

/// Functions that return ENOMEM when an allocation of theirs fails, the deepest first, with what
/// the fork then lacks.
const ALLOCATING: [(Check, Cause); 18] = [
    (Check::CopyPageRange, Cause::PageTableAllocFailed),
    (Check::VmAreaDup, Cause::KernelMemoryExhausted),
    (Check::AnonVmaFork, Cause::KernelMemoryExhausted),
    (Check::DupMmap, Cause::KernelMemoryExhausted),
    (Check::PgdAlloc, Cause::PageTableAllocFailed),
    (Check::ArchDupTaskStruct, Cause::KernelMemoryExhausted),
    (Check::TaskExecStateCopy, Cause::KernelMemoryExhausted),
    (Check::CopyCreds, Cause::KernelMemoryExhausted),
    (Check::IoUringFork, Cause::KernelMemoryExhausted),
    (Check::PerfEventInitTask, Cause::PerfInheritFailed),
    (Check::AuditAlloc, Cause::AuditAllocFailed),
    (Check::CopySemundo, Cause::KernelMemoryExhausted),
    (Check::DupFd, Cause::FdTableAllocFailed),
    (Check::CopyFsStruct, Cause::KernelMemoryExhausted),
    (Check::CopyNamespaces, Cause::KernelMemoryExhausted),
    (Check::CopyIo, Cause::KernelMemoryExhausted),
    (Check::CopyThread, Cause::KernelMemoryExhausted),
    (Check::FutexHashAllocate, Cause::KernelMemoryExhausted),
];

/// A function got no memory, and no memory cgroup refused it.
pub(super) fn without_memory(view: &View, candidates: &[Candidate]) -> Option<Found> {
    if view.attempt.ret != ENOMEM {
        return None;
    }
    security(view)
        .or_else(|| scheduler(view))
        .or_else(|| pid(view))
        .or_else(|| {
            let (check, cause) = ALLOCATING
                .into_iter()
                .find(|(check, _)| view.ended(*check))?;
            // It also passes on what overcommit says.
            let found = no_memory(view, check, cause);
            if check != Check::DupMmap || view.sees(Check::VmEnoughMemory) {
                return Some(found);
            }
            no_overcommit(view, candidates).then_some(Found {
                certainty: Certainty::Deduced,
                ..found
            })
        })
}

/// Whether it was a memory cgroup is known only where those are watched, and where none was at
/// its limit in this fork.
fn no_memory(view: &View, check: Check, cause: Cause) -> Found {
    let said = said(view, check);
    let watched = view.sees(Check::MemCgroupOutOfMemory);
    let reclaimed = view.reached(Check::TryToFreeMemCgroupPages);
    if reclaimed {
        let memcg = view.evidence.memcg.as_ref();
        let because = match memcg.and_then(|it| it.refusing()) {
            Some(_) => format!(
                "{said}; a memory cgroup was at its limit in this fork, but was not seen refusing"
            ),
            None => format!(
                "{said}; memory of a cgroup was reclaimed for this fork, and none was seen at its limit"
            ),
        };
        let found = Found::deduced(cause, Some(check), because);
        return found.or("memory cgroup", "memory was reclaimed for this fork");
    }
    if watched && view.sees(Check::TryToFreeMemCgroupPages) {
        let because = format!("{said}, and no memory cgroup was at its limit");
        return Found::observed(cause, check, because);
    }
    Found::deduced(cause, Some(check), said).or(
        "memory cgroup",
        "whether one was at its limit could not be watched",
    )
}

/// security/security.c `security_task_alloc`, 5.10 to 7.2: a module's veto, or no memory for its
/// data, which is small: the kernel hardly ever refuses that.
fn security(view: &View) -> Option<Found> {
    let check = Check::SecurityTaskAlloc;
    let found = view
        .ended(check)
        .then(|| Found::deduced(Cause::LsmDenied, Some(check), said(view, check)))?;
    Some(found.or(
        "kernel memory",
        "want of memory for the module's data gives the same error",
    ))
}

fn scheduler(view: &View) -> Option<Found> {
    let check = Check::SchedCgroupFork;
    view.ended(check)
        .then(|| Found::observed(Cause::SchedExtRejected, check, said(view, check)))
}

fn pid(view: &View) -> Option<Found> {
    let check = Check::AllocPid;
    if !view.ended(check) {
        return None;
    }
    let found = no_memory(view, check, Cause::KernelMemoryExhausted);
    if view.evidence.pid_namespaces.is_empty() {
        // The likeliest reason by far, but it was not read.
        return None;
    }
    Some(if view.evidence.pid_namespaces_truncated {
        let found = Found::deduced(found.cause, found.check, found.because);
        found.or(
            "pid namespace without init",
            "there are more above than were read",
        )
    } else {
        found
    })
}

/// Whether the kernel log has a failed allocation of this process.
pub(super) fn allocation_logged(view: &View) -> bool {
    let comm = view.attempt.comm.split(|byte| *byte == 0).next();
    view.evidence.kernel_log.iter().any(|line| {
        matches!(line, LogFact::AllocationFailed { comm: name } if comm == Some(name.as_bytes()))
    })
}
