//! Refusals that no check explains: what was seen, what was ruled out, what could not be seen.

use pgfork_trace_common::valid;

use super::*;

#[test]
fn a_check_that_was_seen_refusing_is_named_though_its_reason_is_not_known() {
    let seen = |attempt: Build| judge(&attempt.done(), &facts(), &all_hooks());
    for (check, ret, errno, function, shown) in [
        (Check::AllocPid, EAGAIN, EAGAIN, "alloc_pid", "-EAGAIN"),
        (Check::PgdAlloc, 0, ENOMEM, "pgd_alloc", "NULL"),
        (Check::CopyFsStruct, 0, ENOMEM, "copy_fs_struct", "NULL"),
        (Check::DupFd, 0, -libc::EMFILE, "dup_fd", "NULL"),
        (
            Check::SecurityTaskAlloc,
            -libc::EPERM,
            -libc::EPERM,
            "security_task_alloc",
            "-EPERM",
        ),
    ] {
        let verdict = seen(
            hooked(errno)
                .failed(check, ret)
                .failed(Check::CopyProcess, errno),
        );
        assert_eq!(verdict.cause, Cause::Unknown);
        assert_eq!(verdict.certainty, Certainty::Unknown);
        let named = verdict.check.unwrap();
        assert_eq!(
            (named.function, named.returned.as_deref()),
            (function, Some(shown))
        );
        assert!(
            verdict
                .because
                .contains(&format!("{function} was seen returning {shown}")),
            "{}",
            verdict.because
        );
        assert!(verdict.remedy.is_empty());
        assert_eq!(verdict.scope, None);
    }
}

#[test]
fn failures_that_a_fork_survives_are_not_blamed() {
    // Nobody could be killed at first, then there was memory; the fork ended elsewhere.
    let attempt = hooked(ENOMEM)
        .failed(Check::MemCgroupOutOfMemory, 0)
        .failed(Check::IsRlimitOverlimit, 1)
        .failed(Check::AllocPid, ENOMEM)
        .failed(Check::CopyProcess, ENOMEM)
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.check.unwrap().function, "alloc_pid");
    // Alone, it is the best witness of an ENOMEM, and none of anything else.
    let alone = |ret| hooked(ret).failed(Check::MemCgroupOutOfMemory, 0).done();
    let verdict = judge(&alone(ENOMEM), &facts(), &all_hooks());
    assert_eq!(verdict.check.unwrap().function, "mem_cgroup_out_of_memory");
    assert_eq!(judge(&alone(EAGAIN), &facts(), &all_hooks()).check, None);
}

#[test]
fn nothing_seen_says_how_many_were_watched() {
    let attempt = hooked(ENOMEM).reached(Check::CopyCreds).done();
    let verdict = judge(&attempt, &facts(), &hooks_without(&[Check::DupFd]));
    assert_eq!(verdict.check, None);
    assert_eq!(verdict.stage, Some("copy_creds"));
    assert!(
        verdict.because.contains("none of the 22 watched checks"),
        "{}",
        verdict.because
    );
    assert_eq!(verdict.not_seen[0], "not attached");
}

#[test]
fn what_was_watched_and_what_the_fork_got_past_are_ruled_out() {
    // All is full, but hooks saw how far the fork came: to alloc_pid.
    let attempt = hooked(EAGAIN)
        .reached(Check::CopyCreds)
        .reached(Check::CgroupFork)
        .reached(Check::SchedFork)
        .nproc(400, 400)
        .threads(900, 900)
        .pids(&[(40, 40)])
        .failed(Check::AllocPid, EAGAIN)
        .failed(Check::CopyProcess, EAGAIN)
        .with(valid::PIDNS_PID_MAX)
        .change(|it| it.pidns[0].pid_max = 301)
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(whats(&verdict.also_possible), ["kernel.pid_max"]);
    let why = |what| {
        let found = verdict.ruled_out.iter().find(|it| it.what == what);
        found.unwrap_or_else(|| panic!("{what}")).why.as_str()
    };
    assert_eq!(
        why("RLIMIT_NPROC"),
        "the fork got past it, as far as cgroup_fork"
    );
    assert_eq!(
        why("kernel.threads-max"),
        "the fork got past it, as far as cgroup_fork"
    );
    assert_eq!(
        why("pids cgroup"),
        "pids_can_fork was watched and did not refuse"
    );
    assert!(!whats(&verdict.also_possible).contains(&"pids cgroup"));
}

#[test]
fn a_check_that_was_not_watched_stays_possible() {
    let attempt = hooked(EAGAIN)
        .reached(Check::CgroupFork)
        .pids(&[(40, 40)])
        .done();
    let verdict = judge(&attempt, &facts(), &hooks_without(&[Check::PidsCanFork]));
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(whats(&verdict.also_possible), ["pids cgroup"]);
    assert_eq!(verdict.not_seen[0], "not attached");
    // Not possible where the fork got past it.
    let mut later = attempt;
    later.stages |= Check::CgroupCancelFork.bit();
    let verdict = judge(&later, &facts(), &hooks_without(&[Check::PidsCanFork]));
    assert!(verdict.also_possible.is_empty());
}

#[test]
fn an_unwatched_commit_limit_stays_possible() {
    let mut facts = facts();
    facts.overcommit.as_mut().unwrap().mode = 2;
    facts.memory.as_mut().unwrap().committed_as = 9 * GIB;
    facts.fork_charge_bytes = Some(MIB);
    let attempt = hooked(ENOMEM).reached(Check::PgdAlloc).total_vm(GIB).done();
    let blind = judge(&attempt, &facts, &hooks_without(&[Check::VmEnoughMemory]));
    assert_eq!(blind.cause, Cause::Unknown);
    assert_eq!(whats(&blind.also_possible), ["strict overcommit"]);
    let watched = judge(&attempt, &facts, &all_hooks());
    assert!(watched.also_possible.is_empty());
    assert!(
        whats(&watched.ruled_out).contains(&"strict overcommit"),
        "{:?}",
        watched.ruled_out
    );
}

#[test]
fn a_check_that_gives_another_errno_is_ruled_out_by_it() {
    let attempt = hooked(ENOMEM).nproc(400, 400).pids(&[(40, 40)]).done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    for what in ["RLIMIT_NPROC", "pids cgroup"] {
        let found = verdict.ruled_out.iter().find(|it| it.what == what).unwrap();
        assert!(found.why.ends_with("but it gives EAGAIN"), "{}", found.why);
    }
}

#[test]
fn a_dying_pid_namespace_is_possible_where_alloc_pid_refused() {
    let attempt = hooked(ENOMEM)
        .pid_namespace(3)
        .failed(Check::AllocPid, ENOMEM)
        .failed(Check::CopyProcess, ENOMEM)
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.evidence.pid_namespace_alive, Some(false));
    assert_eq!(
        whats(&verdict.also_possible),
        ["pid namespace without init"]
    );
    let unread = hooked(ENOMEM).without(valid::PIDNS).done();
    let verdict = judge(&unread, &facts(), &all_hooks());
    assert_eq!(verdict.evidence.pid_namespace_alive, None);
}

#[test]
fn a_seccomp_filter_may_have_answered_where_only_fork_is_seen() {
    let filtered = |build: Build| {
        build
            .with(valid::SECCOMP)
            .change(|it| it.state.seccomp_mode = 2)
            .done()
    };
    let verdict = judge(
        &filtered(by_libc(Some(-libc::EPERM))),
        &facts(),
        &no_hooks(),
    );
    assert_eq!(whats(&verdict.also_possible), ["seccomp filter"]);
    assert!(verdict.because.contains("EPERM"));
    // kernel_clone was reached: no filter answered.
    let verdict = judge(&filtered(hooked(-libc::EPERM)), &facts(), &all_hooks());
    assert!(verdict.also_possible.is_empty());
    let free = by_libc(Some(-libc::EPERM)).with(valid::SECCOMP).done();
    assert!(judge(&free, &facts(), &no_hooks()).also_possible.is_empty());
}

#[test]
fn the_users_tasks_are_passed_on() {
    let mut facts = facts();
    facts.user_tasks = vec![("postgres".to_owned(), 7)];
    let attempt = by_libc(Some(EAGAIN)).nproc(9, 9).done();
    let nproc = judge(&attempt, &facts, &no_hooks()).evidence.nproc.unwrap();
    assert_eq!(nproc.user_tasks[0].comm, "postgres");
    assert_eq!(nproc.user_tasks[0].tasks, 7);
}

#[test]
fn the_root_cgroup_has_no_limit_and_an_unread_path_is_not_ruled_out() {
    let ruled_out = |attempt: &Attempt| {
        let verdict = judge(attempt, &facts(), &no_hooks());
        assert_eq!(verdict.cause, Cause::Unknown);
        whats(&verdict.ruled_out).contains(&"pids cgroup")
    };
    assert!(ruled_out(&by_libc(Some(EAGAIN)).pids(&[]).done()));
    assert!(!ruled_out(
        &by_libc(Some(EAGAIN)).without(valid::PIDS).done()
    ));
}
