//! System calls watched as such: what the arguments of clone bring about, and what answered before.

use pgfork_trace_common::{
    syscall::{ANSWERED_BEFORE, CLONE, CLONE3, ENTERED},
    valid,
};

use super::*;

const NEWPID: u64 = 0x2000_0000;
const INTO_CGROUP: u64 = 0x2_0000_0000;
const THREAD: u64 = 0x1_0000;

fn watched() -> Coverage {
    Coverage {
        syscalls: true,
        ..no_hooks()
    }
}

/// Cause, and also what may have given the same.
fn judged(attempt: Build) -> (Cause, Certainty, Vec<&'static str>) {
    let verdict = judge(&attempt.done(), &facts(), &watched());
    (
        verdict.cause,
        verdict.certainty,
        whats(&verdict.also_possible),
    )
}

fn cause(attempt: Build) -> Cause {
    judged(attempt).0
}

fn entered(call: u32, errno: i32) -> Build {
    by_syscall(call | ENTERED, -errno)
}

fn with_pids(errno: i32) -> Build {
    entered(CLONE3, errno).change(|it| it.set_tid_size = 1)
}

#[test]
fn flags_that_contradict_each_other() {
    for flags in [
        THREAD,
        0x800,
        0x200 | 0x2_0000,
        0x200 | 0x1000_0000,
        THREAD | 0x900 | NEWPID,
        0x1000 | 0x40_0000,
        0x900 | 0x1_0000_0000,
    ] {
        let attempt = entered(CLONE3, libc::EINVAL).flags(flags);
        assert_eq!(
            judged(attempt),
            (Cause::InvalidCloneFlags, Certainty::Deduced, vec![]),
            "{flags:#x}"
        );
        // Another error is of another origin.
        assert_ne!(
            cause(entered(CLONE3, libc::EACCES).flags(flags)),
            Cause::InvalidCloneFlags
        );
    }
    for flags in [0, 0x120_0000, THREAD | 0x900, NEWPID, 0x1900 | THREAD] {
        assert_eq!(
            cause(entered(CLONE, libc::EINVAL).flags(flags)),
            Cause::Unknown,
            "{flags:#x}"
        );
    }
}

#[test]
fn arguments_of_clone3_that_the_kernel_does_not_take() {
    for errno in [libc::E2BIG, libc::EFAULT] {
        assert_eq!(cause(entered(CLONE3, errno)), Cause::InvalidCloneFlags);
        assert_eq!(cause(entered(CLONE, errno)), Cause::Unknown);
    }
    let pidfd = entered(CLONE, libc::EFAULT).flags(0x1000);
    assert_eq!(cause(pidfd), Cause::InvalidCloneFlags);
}

#[test]
fn pids_that_were_asked_for() {
    for errno in [libc::EEXIST, libc::EPERM, libc::EINVAL] {
        let asked = with_pids(errno).flags(0x4000);
        assert_eq!(cause(asked), Cause::SetTidConflict);
        assert_eq!(
            cause(entered(CLONE3, errno).flags(0x4000)),
            Cause::Unknown,
            "{errno}"
        );
    }
    // Either wish may be what was denied.
    let both = with_pids(libc::EPERM).flags(NEWPID);
    assert_eq!(cause(both), Cause::Unknown);
    let taken = with_pids(libc::EEXIST).flags(NEWPID);
    assert_eq!(cause(taken), Cause::SetTidConflict);
}

#[test]
fn a_cgroup_that_was_asked_for() {
    for errno in [
        libc::EBADF,
        libc::ENODEV,
        libc::EACCES,
        libc::EBUSY,
        libc::EOPNOTSUPP,
    ] {
        let asked = entered(CLONE3, errno).flags(INTO_CGROUP);
        assert_eq!(cause(asked), Cause::CloneIntoCgroupFailed);
        assert_eq!(cause(entered(CLONE3, errno).flags(0x4000)), Cause::Unknown);
    }
}

#[test]
fn namespaces_that_were_asked_for() {
    for errno in [libc::EPERM, libc::ENOSPC, libc::EUSERS] {
        for flags in [NEWPID, 0x2_0000, 0x80, 0x1000_0000] {
            let attempt = entered(CLONE3, errno).flags(flags);
            assert_eq!(cause(attempt), Cause::NamespaceDenied);
        }
        assert_eq!(cause(entered(CLONE, errno)), Cause::Unknown);
    }
}

#[test]
fn a_call_that_was_entered_was_not_refused_by_a_filter() {
    let filtered = |attempt: Build| {
        attempt.with(valid::SECCOMP | valid::PTRACE).change(|it| {
            it.state.seccomp_mode = 2;
        })
    };
    // Without the entry, the filter is what is left.
    assert_eq!(
        cause(filtered(by_libc(Some(-libc::EPERM)))),
        Cause::SeccompDenied
    );
    assert_eq!(
        judged(filtered(entered(CLONE, libc::EPERM))),
        (Cause::Unknown, Certainty::Unknown, vec![])
    );
    let module = Facts {
        security_modules: vec!["selinux".to_owned()],
        ..facts()
    };
    let by_module = |attempt: Build| judge(&attempt.done(), &module, &watched()).cause;
    assert_eq!(
        by_module(filtered(entered(CLONE, libc::EPERM))),
        Cause::LsmDenied
    );
    // What asks for more has more that may be denied; a module may as well.
    let asks = entered(CLONE, libc::EPERM).flags(NEWPID);
    let verdict = judge(&asks.done(), &module, &watched());
    assert_eq!(verdict.cause, Cause::NamespaceDenied);
    assert_eq!(whats(&verdict.also_possible), ["security module"]);
    assert_eq!(
        by_module(entered(CLONE, libc::EACCES).flags(0x1000)),
        Cause::Unknown
    );
}

#[test]
fn a_call_that_ended_without_having_begun_was_answered_before() {
    // A full limit was not asked.
    let ended = |part: u32, mode: u32| {
        by_syscall(CLONE | part, EAGAIN)
            .with(valid::SECCOMP | valid::PTRACE | valid::POLICY)
            .nproc(100, 4000)
            .threads(500, 90_000)
            .pid_namespaces(&[(80, 32_768)])
            .pids(&[(40, 40)])
            .change(|it| it.state.seccomp_mode = mode)
    };
    let verdict = judge(&ended(ANSWERED_BEFORE, 2).done(), &facts(), &watched());
    assert_eq!(verdict.cause, Cause::SeccompDenied);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert!(
        verdict
            .because
            .starts_with("clone failed with EAGAIN, and the kernel's fork path was not entered"),
        "{}",
        verdict.because
    );
    // Neither a filter nor a tracer: the end of a call that user dispatch took is not seen.
    assert_eq!(cause(ended(ANSWERED_BEFORE, 0)), Cause::Unknown);
    // It may have begun before it was watched.
    assert_eq!(cause(ended(0, 2)), Cause::PidsCgroupMax);
    assert_eq!(cause(ended(ENTERED, 2)), Cause::PidsCgroupMax);
}
