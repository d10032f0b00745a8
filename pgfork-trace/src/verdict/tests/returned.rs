//! Checks that were seen returning the error: each cause, by its function.

use pgfork_trace_common::valid;

use super::*;
use crate::verdict::LogFact;

const CLONE_NEWUSER: u64 = 0x1000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Check, what it returned, what the fork ended with, cause, certainty.
type Row = (Check, i32, i32, Cause, Certainty);

const OBSERVED: Certainty = Certainty::Observed;
const DEDUCED: Certainty = Certainty::Deduced;

const EPERM: i32 = -libc::EPERM;
const EMFILE: i32 = -libc::EMFILE;
const EINTR: i32 = -libc::EINTR;
const ENOSPC: i32 = -libc::ENOSPC;
const EEXIST: i32 = -libc::EEXIST;
const EBUSY: i32 = -libc::EBUSY;

// A null pointer from dup_fd: 5.10, which has the error beside it.
#[rustfmt::skip]
const TABLE: [Row; 27] = {
    use Cause as C;
    use Check as K;
    [
        (K::SchedFork, EAGAIN, EAGAIN, C::SchedDeadlineFork, OBSERVED),
        (K::AllocPid, EAGAIN, EAGAIN, C::PidSpaceExhausted, OBSERVED),
        (K::PidsCanFork, EAGAIN, EAGAIN, C::PidsCgroupMax, OBSERVED),
        (K::DupFd, EMFILE, EMFILE, C::NrOpenLowered, OBSERVED),
        (K::DupFd, 0, EMFILE, C::NrOpenLowered, OBSERVED),
        (K::DupFd, 0, ENOMEM, C::FdTableAllocFailed, OBSERVED),
        (K::DupFd, ENOMEM, ENOMEM, C::FdTableAllocFailed, OBSERVED),
        (K::PgdAlloc, 0, ENOMEM, C::PageTableAllocFailed, OBSERVED),
        (K::CopyPageRange, ENOMEM, ENOMEM, C::PageTableAllocFailed, OBSERVED),
        (K::DupMmap, EINTR, ENOMEM, C::FatalSignal, OBSERVED),
        (K::DupMmap, ENOMEM, ENOMEM, C::KernelMemoryExhausted, OBSERVED),
        (K::SecurityTaskAlloc, EPERM, EPERM, C::LsmDenied, OBSERVED),
        (K::SecurityTaskAlloc, ENOMEM, ENOMEM, C::LsmDenied, DEDUCED),
        (K::SchedCgroupFork, ENOMEM, ENOMEM, C::SchedExtRejected, OBSERVED),
        (K::SchedCgroupFork, EPERM, EPERM, C::SchedExtRejected, OBSERVED),
        (K::PerfEventInitTask, ENOMEM, ENOMEM, C::PerfInheritFailed, OBSERVED),
        (K::PerfEventInitTask, EPERM, EPERM, C::PerfInheritFailed, OBSERVED),
        (K::AuditAlloc, ENOMEM, ENOMEM, C::AuditAllocFailed, OBSERVED),
        (K::AuditAlloc, EPERM, EPERM, C::AuditAllocFailed, OBSERVED),
        (K::CopyCreds, EPERM, EPERM, C::NamespaceDenied, OBSERVED),
        (K::CopyCreds, ENOMEM, ENOMEM, C::KernelMemoryExhausted, OBSERVED),
        (K::CopyNamespaces, ENOSPC, ENOSPC, C::NamespaceDenied, OBSERVED),
        (K::AllocPid, EEXIST, EEXIST, C::SetTidConflict, OBSERVED),
        (K::AllocPid, EPERM, EPERM, C::SetTidConflict, OBSERVED),
        (K::AllocPid, ENOMEM, ENOMEM, C::KernelMemoryExhausted, OBSERVED),
        (K::CgroupCanFork, EBUSY, EBUSY, C::CloneIntoCgroupFailed, OBSERVED),
        (K::CopyThread, EINTR, EINTR, C::FatalSignal, OBSERVED),
    ]
};

#[test]
fn the_function_names_the_cause() {
    for (check, ret, errno, cause, certainty) in TABLE {
        let attempt = hooked(errno)
            .reached(Check::CopyCreds)
            .failed(check, ret)
            .failed(Check::CopyProcess, errno)
            .change(|it| it.set_tid_size = 1)
            .done();
        let verdict = judge(&attempt, &facts(), &all_hooks());
        let what = format!("{check:?} {ret} {errno}: {}", verdict.because);
        assert_eq!(verdict.cause, cause, "{what}");
        assert_eq!(verdict.certainty, certainty, "{what}");
        let named = verdict.check.unwrap();
        assert_eq!(named.returned, Some(returned(check, ret)), "{what}");
        // The same seen failing, but another error at the end, proves nothing.
        let other = hooked(-libc::EDEADLK)
            .failed(check, if ret == 0 { ENOMEM } else { ret })
            .failed(Check::CopyProcess, -libc::EDEADLK)
            .done();
        let verdict = judge(&other, &facts(), &all_hooks());
        assert_eq!(verdict.cause, Cause::Unknown, "{check:?}");
    }
}

#[test]
fn allocations_without_a_cause_of_their_own_are_kernel_memory() {
    for check in [
        Check::ArchDupTaskStruct,
        Check::TaskExecStateCopy,
        Check::IoUringFork,
        Check::CopySemundo,
        Check::CopyFsStruct,
        Check::VmAreaDup,
        Check::AnonVmaFork,
        Check::CopyNamespaces,
        Check::CopyIo,
        Check::CopyThread,
        Check::FutexHashAllocate,
    ] {
        let attempt = hooked(ENOMEM)
            .failed(check, ENOMEM)
            .failed(Check::CopyProcess, ENOMEM);
        let verdict = judge(&attempt.done(), &facts(), &all_hooks());
        assert_eq!(verdict.cause, Cause::KernelMemoryExhausted, "{check:?}");
        assert_eq!(verdict.certainty, Certainty::Observed);
        assert!(
            verdict
                .because
                .contains("no memory cgroup was at its limit")
        );
        // A cgroup at its limit may have been what refused.
        let reclaimed = judge(
            &attempt.memcg(201, 1024, 1024).done(),
            &facts(),
            &base_hooks(),
        );
        assert_eq!(reclaimed.cause, Cause::KernelMemoryExhausted, "{check:?}");
        assert_eq!(reclaimed.certainty, Certainty::Deduced);
        assert!(whats(&reclaimed.also_possible).contains(&"memory cgroup"));
        // So may one that could not be watched.
        let blind = hooks_without(&[Check::MemCgroupOutOfMemory]);
        let blind = judge(&attempt.done(), &facts(), &blind);
        assert_eq!(blind.certainty, Certainty::Deduced);
        assert!(whats(&blind.also_possible).contains(&"memory cgroup"));
    }
}

#[test]
fn a_namespace_without_init_is_seen_at_the_check_or_after_it() {
    let refused = hooked(ENOMEM)
        .pid_namespace(3)
        .failed(Check::AllocPid, ENOMEM)
        .failed(Check::CopyProcess, ENOMEM);
    let at_check = judge(
        &refused.with(valid::PIDNS_AT_CHECK).done(),
        &facts(),
        &all_hooks(),
    );
    assert_eq!(at_check.cause, Cause::PidNamespaceDying);
    assert_eq!(at_check.certainty, Certainty::Observed);
    let after = judge(&refused.done(), &facts(), &all_hooks());
    assert_eq!(after.cause, Cause::PidNamespaceDying);
    assert_eq!(after.certainty, Certainty::Deduced);
    assert_eq!(after.evidence.pid_namespace_alive, Some(false));
    let unread = judge(
        &refused.without(valid::PIDNS).done(),
        &facts(),
        &all_hooks(),
    );
    assert_eq!(unread.cause, Cause::Unknown);
    assert_eq!(unread.check.unwrap().function, "alloc_pid");
    // One above has gone.
    let above = refused
        .pid_namespaces(&[(5, 4096), (80, 32768)])
        .change(|it| it.pidns[1].allocated = 80)
        .with(valid::PIDNS_AT_CHECK);
    let above = judge(&above.done(), &facts(), &all_hooks());
    assert_eq!(above.cause, Cause::PidNamespaceDying);
    assert_eq!(
        above.scope,
        Some(Scope::PidNamespace {
            inum: 4_026_530_001,
            level: 0,
            ancestor: 1
        })
    );
    // There are more above than were read.
    let deep = refused
        .pid_namespace(1 << 31 | 3)
        .with(valid::PIDNS_AT_CHECK | valid::PIDNS_TRUNCATED);
    let deep = judge(&deep.done(), &facts(), &all_hooks());
    assert_eq!(deep.cause, Cause::KernelMemoryExhausted);
    assert_eq!(deep.certainty, Certainty::Deduced);
    assert_eq!(whats(&deep.also_possible), ["pid namespace without init"]);
}

#[test]
fn flags_tell_what_was_asked_for() {
    let creds = |flags| {
        hooked(EAGAIN)
            .flags(flags)
            .failed(Check::CopyCreds, EAGAIN)
            .done()
    };
    let cause = |attempt: &Attempt| judge(attempt, &facts(), &all_hooks()).cause;
    assert_eq!(cause(&creds(CLONE_NEWUSER)), Cause::NamespaceDenied);
    assert_eq!(cause(&creds(0x11)), Cause::Unknown);
    let cgroup = |flags, ret| {
        hooked(ret)
            .flags(flags)
            .failed(Check::CgroupCanFork, ret)
            .done()
    };
    let into = CLONE_INTO_CGROUP;
    for ret in [-libc::EBUSY, -libc::EACCES, -libc::EBADF, ENOMEM] {
        assert_eq!(cause(&cgroup(into, ret)), Cause::CloneIntoCgroupFailed);
    }
    assert_eq!(cause(&cgroup(0x11, -libc::EBUSY)), Cause::Unknown);
    assert_eq!(cause(&cgroup(0, ENOMEM)), Cause::Unknown);
}

#[test]
fn cgroup_can_fork_stands_for_the_pids_controller_that_was_not_watched() {
    let attempt = hooked(EAGAIN)
        .reached(Check::CgroupFork)
        .pids(&[(40, 40)])
        .failed(Check::CgroupCanFork, EAGAIN)
        .failed(Check::CopyProcess, EAGAIN)
        .done();
    let verdict = judge(&attempt, &facts(), &hooks_without(&[Check::PidsCanFork]));
    assert_eq!(verdict.cause, Cause::PidsCgroupMax);
    assert_eq!(verdict.certainty, Certainty::Deduced);
}

#[test]
fn what_is_full_behind_an_observed_cause_is_told() {
    let attempt = hooked(EAGAIN)
        .reached(Check::CopyCreds)
        .nproc_levels(&[(401, 400, INITIAL_USERNS)])
        .with(valid::NPROC_COUNTS_SELF)
        .failed(Check::IsRlimitOverlimit, 1)
        .threads(10, 900)
        .pids(&[(40, 40)])
        .done();
    let mut facts = facts();
    facts.overcommit.as_mut().unwrap().mode = 2;
    facts.memory.as_mut().unwrap().committed_as = 9 * GIB;
    facts.fork_charge_bytes = Some(MIB);
    let mut attempt = attempt;
    attempt.state.total_vm_pages = GIB / PAGE;
    attempt.valid |= valid::MM;
    attempt.overcommit.mode = 2;
    let verdict = judge(&attempt, &facts, &all_hooks());
    assert_eq!(verdict.cause, Cause::RlimitNproc);
    assert_eq!(verdict.certainty, Certainty::Observed);
    assert_eq!(
        whats(&verdict.also_full),
        ["strict overcommit", "pids cgroup"]
    );
    // What is logged of a check behind is of another fork.
    let log = vec![
        LogFact::PidsRejected {
            path: "/pg".to_owned(),
        },
        LogFact::CommitRefused { pid: 1843 },
    ];
    facts.cgroups = vec![cgroup(0, "/pg")];
    facts.memory.as_mut().unwrap().committed_as = GIB;
    facts.kernel_log = log;
    attempt.pids[0].limit = 50;
    let verdict = judge(&attempt, &facts, &all_hooks());
    assert_eq!(verdict.cause, Cause::RlimitNproc);
    assert_eq!(whats(&verdict.also_full), [""; 0]);
}

#[test]
fn only_who_asks_for_numbers_is_refused_them() {
    let first = hooked(-libc::EINVAL)
        .with(valid::PIDNS_AT_CHECK)
        .failed(Check::AllocPid, -libc::EINVAL)
        .failed(Check::CopyProcess, -libc::EINVAL);
    let verdict = judge(&first.done(), &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::Unknown);
    assert!(verdict.because.contains("no certain number was asked for"));
    let asked = first.change(|it| it.set_tid_size = 1).done();
    let verdict = judge(&asked, &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::SetTidConflict);
    assert_eq!(verdict.certainty, Certainty::Observed);
}
