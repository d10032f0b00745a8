//! Verdicts on refusals made by hand: every branch, with the kernel's own predicate as the judge.

mod build;
mod dying;
mod inline;
mod memory;
mod nproc;
mod overcommit;
mod pids;
mod process;
mod remedies;
mod returned;
mod state;
mod syscalls;
mod unknown;
mod without_hooks;

use build::*;
use pgfork_trace_common::{Attempt, Check};

use super::*;

/// One refusal and what must be said of it.
struct Case {
    name: &'static str,
    attempt: Attempt,
    facts: Facts,
    coverage: Coverage,
    cause: Cause,
    certainty: Certainty,
    check: Option<&'static str>,
}

fn assert_cases(cases: Vec<Case>) {
    for case in cases {
        let verdict = judge(&case.attempt, &case.facts, &case.coverage);
        let name = case.name;
        assert_eq!(verdict.cause, case.cause, "{name}: {}", verdict.because);
        assert_eq!(
            verdict.certainty, case.certainty,
            "{name}: {}",
            verdict.because
        );
        assert_eq!(
            verdict.check.as_ref().map(|check| check.function),
            case.check,
            "{name}"
        );
        // A remedy only for what is proven, and never a word too much for an observation.
        match verdict.certainty {
            Certainty::Unknown => assert!(verdict.remedy.is_empty(), "{name}"),
            Certainty::Observed => {
                assert!(verdict.also_possible.is_empty(), "{name}");
                assert!(verdict.not_seen.is_empty(), "{name}");
                assert!(verdict.ruled_out.is_empty(), "{name}");
            }
            Certainty::Deduced => assert!(verdict.ruled_out.is_empty(), "{name}"),
        }
    }
}

fn whats(considered: &[Considered]) -> Vec<&'static str> {
    considered.iter().map(|it| it.what).collect()
}

#[test]
fn the_trail_shows_what_each_function_returned() {
    let attempt = hooked(EAGAIN)
        .failed(Check::IsRlimitOverlimit, 1)
        .failed(Check::MemCgroupOutOfMemory, 0)
        .failed(Check::PgdAlloc, 0)
        .failed(Check::AllocPid, ENOMEM)
        .failed(Check::CopyProcess, -517)
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    let shown: Vec<(&str, &str)> = verdict
        .trail
        .iter()
        .map(|entry| (entry.function, entry.returned.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("is_rlimit_overlimit", "true"),
            ("mem_cgroup_out_of_memory", "false"),
            ("pgd_alloc", "NULL"),
            ("alloc_pid", "-ENOMEM"),
            ("copy_process", "-errno 517"),
            ("kernel_clone", "-EAGAIN"),
        ]
    );
}

#[test]
fn the_trail_of_the_tracepoint_method_is_empty() {
    assert!(
        judge(&by_libc(Some(EAGAIN)).done(), &facts(), &no_hooks())
            .trail
            .is_empty()
    );
}

#[test]
fn a_check_of_a_later_version_is_passed_over() {
    let mut attempt = hooked(EAGAIN).failed(Check::PidsCanFork, EAGAIN).done();
    attempt.trail[0].check = 999;
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.trail.len(), 1);
    assert_eq!(verdict.cause, Cause::Unknown);
}

#[test]
fn errnos_have_names() {
    for (ret, name) in [
        (-libc::EAGAIN, "EAGAIN"),
        (-libc::ENOMEM, "ENOMEM"),
        (-libc::EPERM, "EPERM"),
        (-libc::ENOSPC, "ENOSPC"),
        (-libc::EUSERS, "EUSERS"),
        (-4000, "errno 4000"),
    ] {
        assert_eq!(errno_name(ret), name);
    }
}

#[test]
fn the_stage_is_the_last_one_reached_in_the_kernels_order() {
    let stage = |checks: &[Check]| {
        let attempt = checks
            .iter()
            .fold(hooked(ENOMEM), |attempt, check| attempt.reached(*check))
            .done();
        judge(&attempt, &facts(), &all_hooks()).stage
    };
    assert_eq!(stage(&[]), None);
    // These return after all others, or belong to no stage.
    assert_eq!(stage(&[Check::CopyProcess]), None);
    assert_eq!(stage(&[Check::TryToFreeMemCgroupPages]), None);
    assert_eq!(
        stage(&[Check::CopyProcess, Check::CopyCreds]),
        Some("copy_creds")
    );
    assert_eq!(
        stage(&[Check::CgroupCancelFork, Check::CgroupFork, Check::AllocPid]),
        Some("cgroup_cancel_fork")
    );
}
