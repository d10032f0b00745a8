//! The tracepoint method: states that are no limits, and the kernel log.

use pgfork_trace_common::valid;

use super::*;

fn plain(ret: i32) -> Build {
    by_libc(Some(ret))
        .nproc(100, 4000)
        .threads(500, 90_000)
        .pids(&[(40, 500)])
        .pid_namespaces(&[(80, 32_768)])
        .with(valid::POLICY | valid::SECCOMP | valid::PTRACE)
}

fn judged(attempt: Build, facts: &Facts) -> Verdict {
    let verdict = judge(&attempt.done(), facts, &no_hooks());
    assert_ne!(verdict.certainty, Certainty::Observed);
    verdict
}

fn with(change: impl FnOnce(&mut Facts)) -> Facts {
    let mut facts = facts();
    facts.largest_mapping_bytes = Some(MIB);
    change(&mut facts);
    facts
}

#[test]
fn deadline_scheduling_by_its_flag() {
    let deadline = || plain(EAGAIN).change(|it| it.state.policy = 6);
    let flag = |flag| with(|facts| facts.reset_on_fork = flag);
    let cause = |attempt, facts| judged(attempt, &facts).cause;
    let full = || deadline().pids(&[(40, 40)]);
    assert_eq!(
        cause(deadline(), flag(Some(false))),
        Cause::SchedDeadlineFork
    );
    assert_eq!(cause(full(), flag(Some(false))), Cause::SchedDeadlineFork);
    assert_eq!(cause(deadline(), flag(Some(true))), Cause::Unknown);
    assert_eq!(cause(full(), flag(Some(true))), Cause::PidsCgroupMax);
    // Not read: good only if nothing else explains it.
    assert_eq!(cause(deadline(), flag(None)), Cause::SchedDeadlineFork);
    assert_eq!(cause(full(), flag(None)), Cause::Unknown);
}

#[test]
fn pid_numbers_of_every_level() {
    let cause = |levels: &[(u32, i32)]| judged(plain(EAGAIN).pid_namespaces(levels), &with(|_| ()));
    assert_eq!(cause(&[(80, 32_768)]).cause, Cause::Unknown);
    for (levels, ancestor) in [
        // All taken.
        (&[(300, 301), (900, 32_768)][..], 0),
        (&[(30, 4096), (32_767, 32_768)], 1),
        // Wrapped: numbers below 300 are not given out again.
        (&[(30, 4096), (32_500, 32_768)], 1),
    ] {
        let verdict = cause(levels);
        assert_eq!(verdict.cause, Cause::PidSpaceExhausted, "{levels:?}");
        assert!(
            matches!(verdict.scope, Some(Scope::PidNamespace { ancestor: it, .. }) if it == ancestor),
            "{:?}",
            verdict.scope
        );
    }
    // Before 6.18 there is one for all, which is read from the host.
    let old = plain(EAGAIN)
        .pid_namespaces(&[(30, 0), (32_700, 0)])
        .without(valid::PIDNS_PID_MAX);
    let verdict = judged(old, &with(|facts| facts.pid_max = Some(32_768)));
    assert_eq!(verdict.cause, Cause::PidSpaceExhausted);
    assert_eq!(judged(old, &with(|_| ())).cause, Cause::Unknown);
    // A slot in the pids cgroup is missing for certain, but the numbers come first, and are not.
    let both = plain(EAGAIN)
        .pid_namespaces(&[(32_500, 32_768)])
        .pids(&[(40, 40)]);
    let verdict = judged(both, &with(|_| ()));
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(
        whats(&verdict.also_possible),
        ["kernel.pid_max", "pids cgroup"]
    );
}

#[test]
fn open_files_above_nr_open() {
    let table = |size| {
        plain(-libc::EMFILE)
            .with(valid::MAX_FDS)
            .change(|it| it.state.max_fds = size)
    };
    let lowered = with(|facts| facts.nr_open = Some(64));
    let verdict = judged(table(256), &lowered);
    assert_eq!(verdict.cause, Cause::NrOpenLowered);
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "sysctl fs.nr_open=1048576"
    );
    assert_eq!(judged(table(64), &lowered).cause, Cause::Unknown);
    assert_eq!(judged(table(256), &with(|_| ())).cause, Cause::Unknown);
}

#[test]
fn overcommit_by_the_log_or_by_the_largest_mapping() {
    let large = with(|facts| facts.largest_mapping_bytes = Some(17 * GIB));
    let verdict = judged(plain(ENOMEM), &large);
    assert_eq!(verdict.cause, Cause::OvercommitHeuristic);
    assert_eq!(verdict.scope, Some(Scope::Host));
    let named = |pid, mode| {
        with(|facts| {
            facts.kernel_log = vec![LogFact::CommitRefused { pid }];
            facts.largest_mapping_bytes = None;
            facts.overcommit.as_mut().unwrap().mode = mode;
        })
    };
    assert_eq!(
        judged(plain(ENOMEM), &named(1843, 0)).cause,
        Cause::OvercommitHeuristic
    );
    assert_eq!(
        judged(plain(ENOMEM), &named(1843, 2)).cause,
        Cause::CommitLimit
    );
    assert_eq!(judged(plain(ENOMEM), &named(7, 0)).cause, Cause::Unknown);
    // It was strict mode that refused so little, and that has been changed since.
    let mut changed = named(1843, 0);
    changed.largest_mapping_bytes = Some(MIB);
    assert_eq!(judged(plain(ENOMEM), &changed).cause, Cause::Unknown);
    // That mode refuses nothing.
    assert_eq!(judged(plain(ENOMEM), &named(1843, 1)).cause, Cause::Unknown);
}

#[test]
fn the_log_names_what_has_no_numbers() {
    let log = |line| with(|facts| facts.kernel_log = vec![line]);
    let verdict = judged(plain(ENOMEM), &log(LogFact::AuditOutOfMemory));
    assert_eq!(verdict.cause, Cause::AuditAllocFailed);
    let failed = || {
        log(LogFact::AllocationFailed {
            comm: "postgres".to_owned(),
        })
    };
    let postgres = plain(ENOMEM).change(|it| it.comm[..8].copy_from_slice(b"postgres"));
    assert_eq!(
        judged(postgres, &failed()).cause,
        Cause::KernelMemoryExhausted
    );
    assert_eq!(judged(plain(ENOMEM), &failed()).cause, Cause::Unknown);
    let killed = log(LogFact::CgroupKilled { pid: 1843 });
    assert_eq!(
        judged(plain(-libc::EINTR), &killed).cause,
        Cause::MemcgOomKilledForker
    );
    // A slot became free, but the log says that there was none.
    let mut rejected = log(LogFact::PidsRejected {
        path: "/pg".to_owned(),
    });
    rejected.cgroups = vec![cgroup(0, "/pg")];
    assert_eq!(judged(plain(EAGAIN), &rejected).cause, Cause::PidsCgroupMax);
    rejected.cgroups = vec![cgroup(0, "/other")];
    let verdict = judged(plain(EAGAIN), &rejected);
    assert_eq!(verdict.cause, Cause::Unknown);
    assert!(verdict.evidence.kernel_log.is_empty(), "of another cgroup");
    // What is logged of memory says nothing of a limit on tasks, nor of others' requests.
    let noise = with(|facts| {
        facts.kernel_log = vec![LogFact::CommitRefused { pid: 7 }, LogFact::NothingKillable];
    });
    assert!(judged(plain(EAGAIN), &noise).evidence.kernel_log.is_empty());
    assert_eq!(
        judged(plain(ENOMEM), &noise).evidence.kernel_log,
        [LogFact::NothingKillable]
    );
}

#[test]
fn an_error_that_no_limit_gives_is_a_veto() {
    let eperm = || plain(-libc::EPERM);
    let filter = |it: Build| it.change(|it| it.state.seccomp_mode = 2);
    let traced = |it: Build| it.change(|it| it.state.ptrace = 1);
    let modules = |names: &[&str]| {
        with(|facts| facts.security_modules = names.iter().map(|it| (*it).to_owned()).collect())
    };
    let harmless = modules(&["capability", "yama", "apparmor", "tomoyo", "smack", "ipe"]);
    let selinux = modules(&["capability", "selinux"]);
    let verdict = judged(filter(eperm()), &harmless);
    assert_eq!(verdict.cause, Cause::SeccompDenied);
    assert!(verdict.also_possible.is_empty());
    let verdict = judged(traced(filter(eperm())), &selinux);
    assert_eq!(verdict.cause, Cause::SeccompDenied);
    assert_eq!(whats(&verdict.also_possible), ["tracer", "security module"]);
    assert_eq!(
        judged(traced(eperm()), &harmless).cause,
        Cause::PtraceOrUserDispatch
    );
    assert_eq!(judged(eperm(), &selinux).cause, Cause::LsmDenied);
    // Debian's list: no word of the others in fork, and BPF programs may have one.
    let debian = modules(&[
        "lockdown",
        "capability",
        "landlock",
        "yama",
        "apparmor",
        "tomoyo",
        "bpf",
        "ipe",
        "smack",
    ]);
    let verdict = judged(eperm(), &debian);
    assert_eq!(verdict.cause, Cause::LsmDenied);
    assert!(verdict.because.contains("(bpf)"), "{}", verdict.because);
    let verdict = judged(filter(eperm()), &debian);
    assert_eq!(whats(&verdict.also_possible), ["security module"]);
    // Perf is asked first.
    let events = |number: u32| eperm().change(move |it| it.state.perf_events = number);
    let verdict = judged(events(2), &debian);
    assert_eq!(verdict.cause, Cause::PerfInheritFailed);
    assert_eq!(whats(&verdict.also_possible), ["security module"]);
    assert_eq!(judged(events(0), &debian).cause, Cause::LsmDenied);
    let verdict = judged(filter(events(1)), &harmless);
    assert_eq!(verdict.cause, Cause::SeccompDenied);
    assert_eq!(whats(&verdict.also_possible), ["perf events"]);
    let dispatching = eperm().change(|it| it.state.user_dispatch = 1);
    assert_eq!(
        judged(dispatching, &selinux).cause,
        Cause::PtraceOrUserDispatch
    );
    assert_eq!(judged(eperm(), &harmless).cause, Cause::Unknown);
    let scheduler = with(|facts| facts.sched_ext = Some(true));
    assert_eq!(judged(eperm(), &scheduler).cause, Cause::SchedExtRejected);
    let both = with(|facts| {
        facts.sched_ext = Some(true);
        facts.security_modules = vec!["bpf".to_owned()];
    });
    let verdict = judged(eperm(), &both);
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(
        whats(&verdict.also_possible),
        ["security module", "BPF scheduler"]
    );
    let unread = eperm().without(valid::SECCOMP);
    assert_eq!(judged(unread, &selinux).cause, Cause::Unknown);
}

#[test]
fn a_filter_may_say_eagain_too_where_every_limit_is_far_away() {
    let filter = |ret| plain(ret).change(|it| it.state.seccomp_mode = 2);
    let verdict = judged(filter(EAGAIN), &with(|_| ()));
    assert_eq!(verdict.cause, Cause::SeccompDenied, "{}", verdict.because);
    assert_eq!(judged(plain(EAGAIN), &with(|_| ())).cause, Cause::Unknown);
    // A slot may have become free meanwhile.
    let close = judged(filter(EAGAIN).pids(&[(39, 40)]), &with(|_| ()));
    assert_eq!(close.cause, Cause::Unknown);
    assert_eq!(
        whats(&close.also_possible),
        ["pids cgroup", "seccomp filter"]
    );
    let unread = judged(filter(EAGAIN).without(valid::NPROC), &with(|_| ()));
    assert_eq!(unread.cause, Cause::Unknown);
}

#[test]
fn want_of_memory_is_not_blamed_on_the_filter_that_every_container_has() {
    let filtered = plain(ENOMEM).change(|it| it.state.seccomp_mode = 2);
    let verdict = judged(filtered, &with(|_| ()));
    assert_eq!(verdict.cause, Cause::Unknown, "{}", verdict.because);
    assert_eq!(whats(&verdict.also_possible), ["seccomp filter"]);
    assert!(verdict.remedy.is_empty());
}
