//! The kernel's fork path was not entered: filters and tracers.

use pgfork_trace_common::valid;

use super::*;

fn answered(seccomp: u32, ptrace: u32) -> Build {
    by_libc(Some(ENOMEM))
        .with(valid::SECCOMP | valid::PTRACE)
        .change(|it| {
            it.state.seccomp_mode = seccomp;
            it.state.ptrace = ptrace;
        })
}

fn judged(attempt: Build) -> Verdict {
    judge(&attempt.done(), &facts(), &base_hooks())
}

#[test]
fn a_filter_comes_before_a_tracer_that_only_watches() {
    let verdict = judged(answered(2, 0));
    assert_eq!(verdict.cause, Cause::SeccompDenied);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert!(verdict.also_possible.is_empty());
    assert_eq!(verdict.scope, Some(Scope::Process));
    let verdict = judged(answered(2, 1));
    assert_eq!(verdict.cause, Cause::SeccompDenied);
    assert_eq!(whats(&verdict.also_possible), ["tracer"]);
}

#[test]
fn a_tracer_or_user_dispatch_is_what_is_left() {
    let verdict = judged(answered(0, 1));
    assert_eq!(verdict.cause, Cause::PtraceOrUserDispatch);
    let dispatching = |it: Build| it.change(|it| it.state.user_dispatch = 1);
    let verdict = judged(dispatching(answered(0, 0)));
    assert_eq!(verdict.cause, Cause::PtraceOrUserDispatch);
    assert!(verdict.because.contains("syscall user dispatch is on"));
    assert!(verdict.also_possible.is_empty());
    for (attempt, cause, others) in [
        (
            answered(2, 0),
            Cause::SeccompDenied,
            &["syscall user dispatch"][..],
        ),
        (
            answered(2, 1),
            Cause::SeccompDenied,
            &["syscall user dispatch", "tracer"],
        ),
        (
            answered(0, 1),
            Cause::PtraceOrUserDispatch,
            &["syscall user dispatch"],
        ),
    ] {
        let verdict = judged(dispatching(attempt));
        assert_eq!(verdict.cause, cause);
        assert_eq!(whats(&verdict.also_possible), others);
    }
    // Whoever answered has gone meanwhile.
    assert_eq!(judged(answered(0, 0)).cause, Cause::Unknown);
}

#[test]
fn what_could_not_be_read_stays_possible() {
    let verdict = judged(answered(0, 1).without(valid::SECCOMP));
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(whats(&verdict.also_possible), ["tracer"]);
    assert!(
        verdict.because.contains("fork path was not reached"),
        "{}",
        verdict.because
    );
}

#[test]
fn limits_that_are_full_did_not_answer() {
    // The fork path was not entered, so no limit of it was asked.
    let attempt = answered(2, 0)
        .change(|it| it.ret = EAGAIN)
        .nproc(400, 400)
        .pids(&[(40, 40)]);
    assert_eq!(judged(attempt).cause, Cause::SeccompDenied);
}
