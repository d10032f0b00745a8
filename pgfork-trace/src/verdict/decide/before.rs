//! What answers before the kernel's fork path: syscall user dispatch, a tracer, a seccomp filter,
//! in this order (`syscall_trace_enter`, kernel/entry/common.c 5.10 to 6.12, 6.18 and 7.2 beside).

use pgfork_trace_common::{
    source,
    syscall::{ANSWERED_BEFORE, ENTERED},
};

use super::{
    super::{
        Cause, Considered, call_name,
        candidates::{Candidate, EAGAIN, EMFILE, ENOMEM, Numbers},
        errno_name,
    },
    Found, arguments,
    returned::allocation_logged,
    view::View,
};

/// `SECCOMP_MODE_FILTER` (include/uapi/linux/seccomp.h).
const SECCOMP_FILTER: u32 = 2;
const FILTER: &str = "seccomp filter";
const TRACER: &str = "tracer";
const MAY_ANSWER: &str = "one is attached, and it may answer by itself";
const DISPATCH: &str = "syscall user dispatch";
const MAY_DISPATCH: &str = "it is on, and the process's own handler may answer";

/// Whether the process has a filter that may have answered; `None` where that could not be read.
fn filtered(view: &View) -> Option<bool> {
    if view.seen(ENTERED) {
        return Some(false);
    }
    let mode = view.evidence.process.as_ref()?.seccomp_mode?;
    Some(mode == SECCOMP_FILTER)
}

/// The same of a tracer.
fn traced(view: &View) -> Option<bool> {
    if view.seen(ENTERED) {
        return Some(false);
    }
    view.evidence.process.as_ref()?.traced
}

/// Whether system calls go to a handler of the process's own; kernels before 5.11 have no such
/// thing. Of calls that it took `sys_exit` does not tell (kernel/entry/common.c
/// `syscall_exit_work`, 5.11 to 7.2).
fn dispatched(view: &View) -> bool {
    if view.seen(ENTERED) || view.seen(ANSWERED_BEFORE) {
        return false;
    }
    let process = view.evidence.process.as_ref();
    process.is_some_and(|it| it.user_dispatch)
}

/// Whether perf events are open on the process that its children inherit.
fn measured(view: &View) -> bool {
    let process = view.evidence.process.as_ref();
    process.is_some_and(|it| it.perf_events.is_some())
}

/// `fork()` failed although `kernel_clone`, which is hooked, was not entered; or the system call
/// ended without having begun.
pub(super) fn kernel_clone(view: &View) -> Option<Found> {
    let errno = view
        .ret
        .map_or_else(String::new, |ret| format!(" with {}", errno_name(ret)));
    let call = call_name(view.attempt).unwrap_or("fork() of the C library");
    let not_entered = format!("{call} failed{errno}, and the kernel's fork path was not entered");
    let so = |cause, who: &str| {
        let because = format!("{not_entered}; {who}");
        let found = Found::deduced(cause, None, because);
        Some(others_before_fork(view, found, cause))
    };
    match (filtered(view), traced(view)) {
        // A tracer that only watches changes nothing; a filter is there to refuse.
        (Some(true), _) => so(Cause::SeccompDenied, "the process has a seccomp filter"),
        (Some(false), Some(true)) => so(
            Cause::PtraceOrUserDispatch,
            "the process has no seccomp filter, and a tracer is attached",
        ),
        (Some(false), Some(false)) if dispatched(view) => so(
            Cause::PtraceOrUserDispatch,
            "the process has neither a seccomp filter nor a tracer, and syscall user dispatch is on",
        ),
        _ => None,
    }
}

/// What else may have answered before the fork path, in the kernel's order.
fn others_before_fork(view: &View, mut found: Found, chosen: Cause) -> Found {
    if dispatched(view) && (chosen != Cause::PtraceOrUserDispatch || traced(view) == Some(true)) {
        found = found.or(DISPATCH, MAY_DISPATCH);
    }
    if traced(view) == Some(true) && chosen != Cause::PtraceOrUserDispatch {
        found = found.or(TRACER, MAY_ANSWER);
    }
    found
}

/// Errors that limits give.
const OF_LIMITS: [i32; 3] = [EAGAIN, ENOMEM, EMFILE];

/// Without hooks, and no limit explains it: what has no numbers.
pub(super) fn without_hooks(view: &View, candidates: &[Candidate]) -> Option<Found> {
    let ret = view.ret?;
    if ret == ENOMEM && allocation_logged(view) {
        return Some(Found::deduced(
            Cause::KernelMemoryExhausted,
            None,
            "fork failed with ENOMEM, and the kernel log has a failed allocation of this process"
                .to_owned(),
        ));
    }
    if OF_LIMITS.contains(&ret) {
        return by_filter_alone(view, candidates);
    }
    by_veto(view, ret)
}

/// A filter may say EAGAIN or EMFILE as well; that it did is what is left when every check that
/// says so was read and is far from refusing. ENOMEM may come of any allocation, which no number
/// shows, and every container has a filter: that stays open.
fn by_filter_alone(view: &View, candidates: &[Candidate]) -> Option<Found> {
    let far = candidates
        .iter()
        .filter(|it| view.gives(it.errno))
        .all(|it| matches!(it.numbers, Numbers::DoNotFit(_)));
    if !far || view.ret == Some(ENOMEM) || filtered(view) != Some(true) {
        return None;
    }
    let found = Found::deduced(
        Cause::SeccompDenied,
        None,
        format!(
            "fork failed with {}, every limit that gives it was read and is far away, and the process has a seccomp filter, which may give any error",
            errno_name(view.attempt.ret)
        ),
    );
    Some(with_vetoes(view, found, Cause::SeccompDenied))
}

/// No limit gives this error: a filter, a tracer, a security module or a BPF scheduler did.
fn by_veto(view: &View, ret: i32) -> Option<Found> {
    if view.attempt.source == source::SYSCALL && !arguments::is_plain(view) {
        return None;
    }
    let errno = errno_name(ret);
    let so = |cause, who: &str| {
        let because = format!("fork failed with {errno}, which no limit gives, and {who}");
        Some(with_vetoes(
            view,
            Found::deduced(cause, None, because),
            cause,
        ))
    };
    match (filtered(view), traced(view)) {
        (Some(true), _) => so(Cause::SeccompDenied, "the process has a seccomp filter"),
        (Some(false), Some(true)) => so(Cause::PtraceOrUserDispatch, "a tracer is attached"),
        (Some(false), Some(false)) if dispatched(view) => {
            so(Cause::PtraceOrUserDispatch, "syscall user dispatch is on")
        }
        // kernel/fork.c copy_process asks perf, then security modules, then the scheduler.
        (Some(false), Some(false)) if measured(view) => so(
            Cause::PerfInheritFailed,
            "perf events are open on the process that its children inherit",
        ),
        // Either may have any error; nothing tells them apart.
        (Some(false), Some(false)) if !modules(view).is_empty() && scheduler(view) => None,
        (Some(false), Some(false)) if !modules(view).is_empty() => so(
            Cause::LsmDenied,
            &format!(
                "of what may veto there is only a security module ({})",
                modules(view).join(", ")
            ),
        ),
        (Some(false), Some(false)) if scheduler(view) => so(
            Cause::SchedExtRejected,
            "of what may veto there is only a BPF scheduler",
        ),
        _ => None,
    }
}

/// Security modules without a say in fork: they have no `task_alloc` hook, or one that only
/// copies what it keeps and returns 0 (security/ of 5.10 to 7.2: apparmor/lsm.c
/// `apparmor_task_alloc`, tomoyo/tomoyo.c `tomoyo_task_alloc`; smack and ipe have none). Left are
/// selinux, whose policy may deny, and bpf, whose programs may.
const HARMLESS: [&str; 13] = [
    "capability",
    "lockdown",
    "landlock",
    "yama",
    "loadpin",
    "safesetid",
    "integrity",
    "ima",
    "evm",
    "apparmor",
    "smack",
    "tomoyo",
    "ipe",
];

fn modules<'a>(view: &'a View) -> Vec<&'a str> {
    let process = view.evidence.process.as_ref();
    let all = process.map(|it| it.security_modules.as_slice());
    all.unwrap_or_default()
        .iter()
        .map(String::as_str)
        .filter(|name| !HARMLESS.contains(name))
        .collect()
}

/// Why a security module may be it, where there is one with a say.
fn module_may(view: &View) -> Option<String> {
    let modules = modules(view);
    (!modules.is_empty()).then(|| format!("{} may refuse with any error", modules.join(", ")))
}

const MODULE: &str = "security module";
const SCHEDULER: &str = "BPF scheduler";
const MAY_SCHEDULE: &str = "one is running, and may refuse with any error";

fn scheduler(view: &View) -> bool {
    view.evidence.process.as_ref().and_then(|it| it.sched_ext) == Some(true)
}

/// Names the others that may veto, in the kernel's order.
pub(super) fn with_vetoes(view: &View, mut found: Found, chosen: Cause) -> Found {
    found = others_before_fork(view, found, chosen);
    if chosen != Cause::PerfInheritFailed && measured(view) {
        found = found.or(
            "perf events",
            "some are open on the process that its children inherit, which may fail",
        );
    }
    if let Some(why) = module_may(view).filter(|_| chosen != Cause::LsmDenied) {
        found = found.or(MODULE, &why);
    }
    if chosen != Cause::SchedExtRejected && scheduler(view) {
        found = found.or(SCHEDULER, MAY_SCHEDULE);
    }
    found
}

/// For a refusal that nothing explains.
pub(super) fn possible(view: &View) -> Vec<Considered> {
    let mut possible = Vec::new();
    let mut add = |what, why: &str| {
        possible.push(Considered {
            what,
            why: why.to_owned(),
        });
    };
    if view.attempt.source == source::KERNEL_CLONE {
        return possible;
    }
    if dispatched(view) {
        add(DISPATCH, MAY_DISPATCH);
    }
    if traced(view) == Some(true) {
        add(TRACER, MAY_ANSWER);
    }
    if filtered(view) == Some(true) {
        add(
            FILTER,
            "the process has one, and it may refuse with any error",
        );
    }
    // Of an error that a limit gives they are seldom the reason.
    if !OF_LIMITS.contains(&view.attempt.ret) {
        if let Some(why) = module_may(view) {
            add(MODULE, &why);
        }
        if scheduler(view) {
            add(SCHEDULER, MAY_SCHEDULE);
        }
    }
    possible
}
