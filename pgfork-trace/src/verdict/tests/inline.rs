//! Checks without a function of their own: by how far the fork came.

use super::*;

const CLONE_FS: u64 = 0x200;
const CLONE_VM: u64 = 0x100;
const CLONE_NEWUSER: u64 = 0x1000_0000;

fn case(
    name: &'static str,
    attempt: Build,
    coverage: Coverage,
    cause: Cause,
    check: Option<&'static str>,
) -> Case {
    Case {
        name,
        attempt: attempt.done(),
        facts: facts(),
        coverage,
        cause,
        certainty: if cause == Cause::Unknown {
            Certainty::Unknown
        } else {
            Certainty::Deduced
        },
        check,
    }
}

fn through(ret: i32, stages: &[Check]) -> Build {
    stages
        .iter()
        .fold(hooked(ret).reached(Check::CopyProcess), |it, stage| {
            it.reached(*stage)
        })
}

#[test]
fn threads_max_between_copy_creds_and_cgroup_fork() {
    use Cause::{RlimitNproc, ThreadsMax, Unknown};
    let between = || through(EAGAIN, &[Check::ArchDupTaskStruct, Check::CopyCreds]);
    let kernel_5_10 = || hooks_without(&[Check::IsRlimitOverlimit]);
    let nproc = Some("is_rlimit_overlimit");
    assert_cases(vec![
        case("watched", between(), base_hooks(), ThreadsMax, None),
        case(
            "5.10, the user is far from its limit",
            between().nproc(5, 400),
            kernel_5_10(),
            ThreadsMax,
            None,
        ),
        case(
            "5.10, the user is full by now, but copy_creds comes behind its limit",
            between()
                .nproc(400, 400)
                .change(|it| it.nproc[0].of_user = 1)
                .threads(899, 900),
            kernel_5_10(),
            ThreadsMax,
            None,
        ),
        case(
            "5.10, nothing is known of the user",
            between(),
            kernel_5_10(),
            Unknown,
            None,
        ),
        case(
            "not watched, the user full, threads far away",
            between().nproc(400, 400).threads(10, 900),
            kernel_5_10(),
            RlimitNproc,
            nproc,
        ),
        case(
            "not watched, both full: the first in the kernel's order",
            between().nproc(400, 400).threads(900, 900),
            kernel_5_10(),
            RlimitNproc,
            nproc,
        ),
        case(
            "not watched, the user close, threads full",
            between().nproc(399, 400).threads(900, 900),
            kernel_5_10(),
            ThreadsMax,
            None,
        ),
        case(
            "copy_creds refused",
            between().flags(0x11).failed(Check::CopyCreds, EAGAIN),
            base_hooks(),
            Unknown,
            Some("copy_creds"),
        ),
        case(
            "cgroup_fork reached",
            between().reached(Check::CgroupFork),
            base_hooks(),
            Unknown,
            None,
        ),
        case(
            "cgroup_fork not watched",
            between(),
            hooks_without(&[Check::CgroupFork]),
            Unknown,
            None,
        ),
    ]);
}

#[test]
fn threads_max_is_full_behind_a_fork_that_did_not_come_to_it() {
    let attempt = through(EAGAIN, &[Check::ArchDupTaskStruct])
        .nproc(400, 400)
        .threads(900, 900);
    let kernel_5_10 = hooks_without(&[Check::IsRlimitOverlimit]);
    let verdict = judge(&attempt.done(), &facts(), &kernel_5_10);
    assert_eq!(verdict.cause, Cause::RlimitNproc);
    assert_eq!(whats(&verdict.also_full), ["kernel.threads-max"]);
    assert!(verdict.also_possible.is_empty());
}

#[test]
fn contradicting_flags_end_it_before_anything() {
    let bare = |ret| through(ret, &[]);
    assert_cases(vec![
        case(
            "EINVAL",
            bare(-libc::EINVAL),
            base_hooks(),
            Cause::InvalidCloneFlags,
            None,
        ),
        case(
            "EINVAL, but further on",
            bare(-libc::EINVAL).reached(Check::CopyCreds),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
        case(
            "EINVAL, and how far it came is not known",
            bare(-libc::EINVAL),
            hooks_without(&[Check::CopyCreds]),
            Cause::Unknown,
            None,
        ),
        case(
            "EPERM with a user namespace",
            bare(-libc::EPERM).flags(CLONE_NEWUSER),
            base_hooks(),
            Cause::NamespaceDenied,
            None,
        ),
        case(
            "EPERM without",
            bare(-libc::EPERM).flags(0x11),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
    ]);
}

#[test]
fn exec_race_takes_shared_directories() {
    let window = || {
        through(
            EAGAIN,
            &[
                Check::CopyCreds,
                Check::CgroupFork,
                Check::SchedFork,
                Check::SecurityTaskAlloc,
            ],
        )
    };
    assert_cases(vec![
        case(
            "in the window",
            window().flags(CLONE_FS | CLONE_VM),
            base_hooks(),
            Cause::ExecRaceFs,
            None,
        ),
        case(
            "a plain fork",
            window().flags(0x11),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
        case(
            "later",
            window().flags(CLONE_FS).reached(Check::CopyNamespaces),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
        case(
            "earlier",
            through(EAGAIN, &[Check::CopyCreds, Check::CgroupFork]).flags(CLONE_FS),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
    ]);
}

#[test]
fn cgroup_cancel_fork_tells_the_last_checks() {
    let late = |ret| {
        through(
            ret,
            &[
                Check::AllocPid,
                Check::CgroupCanFork,
                Check::CgroupCancelFork,
            ],
        )
    };
    let check = Some("cgroup_cancel_fork");
    assert_cases(vec![
        case(
            "ENOMEM",
            late(ENOMEM),
            base_hooks(),
            Cause::PidNamespaceDyingLate,
            check,
        ),
        case(
            "EINTR",
            late(-libc::EINTR),
            base_hooks(),
            Cause::FatalSignal,
            check,
        ),
        case(
            "EINTR elsewhere",
            through(-libc::EINTR, &[Check::AllocPid]),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
        case(
            "EINTR, and the check is not watched",
            through(-libc::EINTR, &[Check::AllocPid]),
            hooks_without(&[Check::CgroupCancelFork]),
            Cause::FatalSignal,
            check,
        ),
    ]);
    let blind = hooks_without(&[Check::SchedCgroupFork]);
    let verdict = judge(&late(ENOMEM).done(), &facts(), &blind);
    assert_eq!(whats(&verdict.also_possible), ["a BPF scheduler"]);
    let mut killed = facts();
    killed.kernel_log = vec![LogFact::CgroupKilled { pid: 1843 }];
    let verdict = judge(&late(-libc::EINTR).done(), &killed, &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgOomKilledForker);
    for refused in [
        through(ENOMEM, &[Check::PgdAlloc]),
        hooked(ENOMEM).failed(Check::DupMmap, -libc::EINTR),
        hooked(ENOMEM).failed(Check::CopyCreds, ENOMEM),
        through(-libc::EINTR, &[Check::AllocPid]),
    ] {
        let verdict = judge(&refused.done(), &killed, &all_hooks());
        assert_eq!(verdict.cause, Cause::MemcgOomKilledForker);
        assert_eq!(verdict.certainty, Certainty::Deduced);
    }
    killed.kernel_log = vec![LogFact::CgroupKilled { pid: 9 }];
    let verdict = judge(&late(-libc::EINTR).done(), &killed, &base_hooks());
    assert_eq!(verdict.cause, Cause::FatalSignal);
}

#[test]
fn what_nothing_refused_is_kernel_memory_at_its_stage() {
    use Cause::{KernelMemoryExhausted, KernelStackAllocFailed, Unknown};
    let at = |stages: &[Check]| through(ENOMEM, stages);
    let stack = || at(&[Check::ArchDupTaskStruct]);
    assert_cases(vec![
        case("task", at(&[]), base_hooks(), KernelMemoryExhausted, None),
        case("stack", stack(), base_hooks(), KernelStackAllocFailed, None),
        case(
            "later",
            at(&[Check::CopyCreds, Check::CgroupFork]),
            base_hooks(),
            KernelMemoryExhausted,
            None,
        ),
        case(
            "memory cgroups are not watched",
            stack(),
            hooks_without(&[Check::MemCgroupOutOfMemory]),
            Unknown,
            None,
        ),
        case(
            "a pidfd was asked for",
            at(&[Check::AllocPid]).flags(0x1000),
            base_hooks(),
            Unknown,
            None,
        ),
        case(
            "more failed than was kept",
            stack().change(|it| it.trail_lost = 1),
            base_hooks(),
            Unknown,
            None,
        ),
    ]);
    let because = |stages: &[Check], coverage: &Coverage| {
        judge(&at(stages).done(), &facts(), coverage).because
    };
    let told = because(&[Check::DupFd], &base_hooks());
    assert!(told.contains("behind dup_fd"), "{told}");
    let told = because(&[], &hooks_without(&[Check::ArchDupTaskStruct]));
    assert!(told.contains("at a stage that is not known"), "{told}");
}

#[test]
fn perf_is_what_lies_between_sched_fork_and_audit_alloc() {
    let kernel_5_10 = || hooks_without(&[Check::PerfEventInitTask]);
    let behind = |ret| {
        through(
            ret,
            &[Check::ArchDupTaskStruct, Check::CopyCreds, Check::SchedFork],
        )
    };
    let perf = Some("perf_event_init_task");
    let denied = -libc::EACCES;
    assert_cases(vec![
        case(
            "ENOMEM",
            behind(ENOMEM),
            kernel_5_10(),
            Cause::PerfInheritFailed,
            perf,
        ),
        case(
            "EACCES",
            behind(denied),
            kernel_5_10(),
            Cause::PerfInheritFailed,
            perf,
        ),
        case(
            "EAGAIN",
            behind(EAGAIN),
            kernel_5_10(),
            Cause::Unknown,
            None,
        ),
        case(
            "watched",
            behind(denied),
            base_hooks(),
            Cause::Unknown,
            None,
        ),
        case(
            "further on",
            behind(denied).reached(Check::AuditAlloc),
            kernel_5_10(),
            Cause::Unknown,
            None,
        ),
        case(
            "audit_alloc not watched",
            behind(denied),
            hooks_without(&[Check::PerfEventInitTask, Check::AuditAlloc]),
            Cause::Unknown,
            None,
        ),
        case(
            "sched_fork refused",
            behind(denied).failed(Check::SchedFork, denied),
            kernel_5_10(),
            Cause::Unknown,
            Some("sched_fork"),
        ),
    ]);
}

/// `__vm_enough_memory` is not hooked where it may refuse nothing: what ended a fork that it may have
/// been asked in is then told by what else is known of it.
#[test]
fn overcommit_that_was_not_watched_is_not_forgotten() {
    use Cause::{KernelMemoryExhausted, Unknown};
    let at = |stages: &[Check]| through(ENOMEM, stages);
    let unwatched = || hooks_without(&[Check::VmEnoughMemory]);
    assert_cases(vec![
        case(
            "overcommit is not watched, and the process is smaller than RAM",
            at(&[Check::PgdAlloc]),
            unwatched(),
            KernelMemoryExhausted,
            None,
        ),
        case(
            "overcommit is not watched, and the process may be larger than RAM",
            at(&[Check::PgdAlloc]).total_vm(17 * GIB),
            unwatched(),
            Unknown,
            None,
        ),
        case(
            "overcommit is not watched, and the size of the process is not known",
            at(&[Check::PgdAlloc]).without(valid::MM),
            unwatched(),
            Unknown,
            None,
        ),
        case(
            "overcommit is not watched, and its mode was not read with the fork",
            at(&[Check::PgdAlloc]).without(valid::OVERCOMMIT_MODE),
            unwatched(),
            Unknown,
            None,
        ),
        case(
            "overcommit is not watched, and was strict: its numbers are of a moment later",
            at(&[Check::PgdAlloc]).mode(2),
            unwatched(),
            Unknown,
            None,
        ),
        case(
            "overcommit is not watched, was strict, and was not come to",
            at(&[Check::CopyCreds]).mode(2),
            unwatched(),
            KernelMemoryExhausted,
            None,
        ),
        case(
            "dup_mmap says what overcommit may have said",
            at(&[Check::PgdAlloc])
                .total_vm(17 * GIB)
                .failed(Check::DupMmap, ENOMEM),
            unwatched(),
            Unknown,
            Some("dup_mmap"),
        ),
        case(
            "dup_mmap says what overcommit cannot have said",
            at(&[Check::PgdAlloc]).failed(Check::DupMmap, ENOMEM),
            unwatched(),
            KernelMemoryExhausted,
            Some("dup_mmap"),
        ),
        case(
            "overcommit is not watched, but passed",
            at(&[Check::PgdAlloc, Check::CopyThread]).without(valid::MM),
            unwatched(),
            KernelMemoryExhausted,
            None,
        ),
    ]);
}
