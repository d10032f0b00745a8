//! Refusals that no check explains: what was seen, what was ruled out, what could not be seen.

use pgfork_trace_common::valid;

use super::*;

#[test]
fn a_check_that_was_seen_refusing_is_named_though_its_reason_is_not_known() {
    for (check, ret, errno, function, shown) in [
        // No cause in the catalogue gives this error there.
        (
            Check::SchedFork,
            -libc::EBUSY,
            -libc::EBUSY,
            "sched_fork",
            "-EBUSY",
        ),
        (Check::DupFd, 0, -libc::EBUSY, "dup_fd", "NULL"),
        (
            Check::CopyThread,
            -libc::EPERM,
            -libc::EPERM,
            "copy_thread",
            "-EPERM",
        ),
    ] {
        let attempt = hooked(errno)
            .reached(Check::CopyCreds)
            .failed(check, ret)
            .failed(Check::CopyProcess, errno);
        let verdict = judge(&attempt.done(), &facts(), &all_hooks());
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
    // Over the limit but exempt, and nobody could be killed: it ended with another error.
    let attempt = hooked(-libc::EBUSY)
        .failed(Check::MemCgroupOutOfMemory, 0)
        .failed(Check::IsRlimitOverlimit, 1)
        .failed(Check::TryCharge, ENOMEM)
        .failed(Check::CopyProcess, -libc::EBUSY)
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(verdict.check, None);
}

#[test]
fn nothing_seen_says_how_many_were_watched() {
    let attempt = hooked(ENOMEM).reached(Check::CopyCreds).done();
    let verdict = judge(&attempt, &facts(), &hooks_without(&[Check::DupFd]));
    assert_eq!(verdict.check, None);
    assert_eq!(verdict.stage, Some("copy_creds"));
    let watched = format!("none of the {} watched checks", Check::ALL.len() - 1);
    assert!(verdict.because.contains(&watched), "{}", verdict.because);
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
        .with(valid::PIDNS_PID_MAX)
        .change(|it| it.pidns[0].pid_max = 301)
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::Unknown);
    assert!(verdict.also_possible.is_empty());
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
fn the_one_check_that_was_not_watched_and_fits_is_deduced() {
    let attempt = hooked(EAGAIN)
        .reached(Check::CgroupFork)
        .pids(&[(40, 40)])
        .done();
    let verdict = judge(&attempt, &facts(), &hooks_without(&[Check::PidsCanFork]));
    assert_eq!(verdict.cause, Cause::PidsCgroupMax);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert_eq!(verdict.not_seen[0], "not attached");
    // Not possible where the fork got past it.
    let mut later = attempt;
    later.stages |= Check::CgroupCancelFork.bit();
    let verdict = judge(&later, &facts(), &hooks_without(&[Check::PidsCanFork]));
    assert_eq!(verdict.cause, Cause::Unknown);
    assert!(verdict.also_possible.is_empty());
    // Another one that was not watched and could not be read leaves it open.
    let blind = hooks_without(&[Check::PidsCanFork, Check::AllocPid]);
    let verdict = judge(&attempt, &facts(), &blind);
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(whats(&verdict.also_possible), ["pids cgroup"]);
}

#[test]
fn an_unwatched_commit_limit_that_fits_is_deduced() {
    let mut facts = facts();
    facts.overcommit.as_mut().unwrap().mode = 2;
    facts.memory.as_mut().unwrap().committed_as = 9 * GIB;
    facts.fork_charge_bytes = Some(MIB);
    let attempt = hooked(ENOMEM)
        .reached(Check::CopyCreds)
        .reached(Check::PgdAlloc)
        .total_vm(GIB)
        .mode(2)
        .done();
    let blind = judge(&attempt, &facts, &hooks_without(&[Check::VmEnoughMemory]));
    assert_eq!(blind.cause, Cause::CommitLimit);
    assert_eq!(blind.certainty, Certainty::Deduced);
    assert_eq!(blind.not_seen, ["not attached"]);
    let watched = judge(&attempt, &facts, &all_hooks());
    assert_eq!(watched.cause, Cause::KernelMemoryExhausted);
    assert_eq!(whats(&watched.also_possible), ["a fatal signal"]);
}

#[test]
fn a_check_that_gives_another_errno_is_ruled_out_by_it() {
    let attempt = hooked(-libc::EBUSY)
        .reached(Check::CopyCreds)
        .nproc(400, 400)
        .pids(&[(40, 40)])
        .done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    for what in ["RLIMIT_NPROC", "pids cgroup"] {
        let found = verdict.ruled_out.iter().find(|it| it.what == what).unwrap();
        assert!(found.why.ends_with("but it gives EAGAIN"), "{}", found.why);
    }
}

#[test]
fn a_limit_that_is_almost_reached_may_have_been() {
    let attempt = by_libc(Some(EAGAIN))
        .nproc(398, 400)
        .threads(10, 900)
        .pids(&[(39, 40)])
        .done();
    let verdict = judge(&attempt, &facts(), &no_hooks());
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(
        whats(&verdict.also_possible),
        ["RLIMIT_NPROC", "pids cgroup"]
    );
    assert!(whats(&verdict.ruled_out).contains(&"kernel.threads-max"));
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

#[test]
fn a_pidfd_that_could_not_be_had_is_told() {
    const CLONE_PIDFD: u64 = 0x1000;
    let emfile = -libc::EMFILE;
    let attempt = hooked(emfile)
        .reached(Check::AllocPid)
        .failed(Check::CopyProcess, emfile);
    let because = |attempt: Build| judge(&attempt.done(), &facts(), &all_hooks()).because;
    assert!(because(attempt.flags(CLONE_PIDFD)).contains("a pidfd was asked for"));
    assert!(!because(attempt.flags(CLONE_PIDFD << 1)).contains("pidfd"));
}

#[test]
fn overcommit_is_not_blamed_for_a_fork_that_did_not_come_to_it() {
    let mut facts = facts();
    facts.overcommit.as_mut().unwrap().mode = 2;
    facts.memory.as_mut().unwrap().committed_as = 9 * GIB;
    facts.fork_charge_bytes = Some(MIB);
    let early = hooked(ENOMEM).mode(2).reached(Check::ArchDupTaskStruct);
    let judged = |attempt: Build, facts: &Facts| {
        judge(
            &attempt.done(),
            facts,
            &hooks_without(&[Check::VmEnoughMemory]),
        )
    };
    let verdict = judged(early, &facts);
    assert_eq!(verdict.cause, Cause::KernelStackAllocFailed);
    let copying = early.reached(Check::PgdAlloc);
    assert_eq!(judged(copying, &facts).cause, Cause::CommitLimit);
    // Facts of the host may be older than the fork: what was read with it counts, and the log.
    facts.overcommit.as_mut().unwrap().mode = 0;
    assert_eq!(judged(copying, &facts).cause, Cause::CommitLimit);
    let mut logged = facts.clone();
    logged.memory.as_mut().unwrap().committed_as = GIB;
    logged.kernel_log = vec![LogFact::CommitRefused { pid: 1843 }];
    let stale = copying.mode(0);
    assert_ne!(judged(stale, &logged).cause, Cause::KernelMemoryExhausted);
}
