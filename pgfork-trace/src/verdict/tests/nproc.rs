//! `rlimit_nproc`: who is exempt, whose count it is, and what the stages say before 6.1.

use pgfork_trace_common::valid;

use super::*;

/// 6.1 and later: the check said so, with the refused task already counted.
fn overlimit(levels: &[(i64, u64, u32)]) -> Build {
    hooked(EAGAIN)
        .reached(Check::CopyCreds)
        .nproc_levels(levels)
        .with(valid::NPROC_COUNTS_SELF)
        .failed(Check::IsRlimitOverlimit, 1)
        .failed(Check::CopyProcess, EAGAIN)
}

const FULL: &[(i64, u64, u32)] = &[(401, 400, INITIAL_USERNS)];
const OWN_USERNS: u32 = 4_026_532_200;
const NAME: Option<&str> = Some("is_rlimit_overlimit");

fn case(
    name: &'static str,
    attempt: Build,
    coverage: Coverage,
    expected: (Cause, Certainty),
) -> Case {
    Case {
        name,
        attempt: attempt.done(),
        facts: facts(),
        coverage,
        cause: expected.0,
        certainty: expected.1,
        check: (expected.0 == Cause::RlimitNproc).then_some(NAME).flatten(),
    }
}

const OBSERVED: (Cause, Certainty) = (Cause::RlimitNproc, Certainty::Observed);
const DEDUCED: (Cause, Certainty) = (Cause::RlimitNproc, Certainty::Deduced);
const THREADS: (Cause, Certainty) = (Cause::ThreadsMax, Certainty::Deduced);
const UNKNOWN: (Cause, Certainty) = (Cause::Unknown, Certainty::Unknown);

#[test]
fn the_check_is_necessary_and_the_exemption_decides() {
    let nested: &[(i64, u64, u32)] = &[(401, 400, OWN_USERNS), (9, 99, INITIAL_USERNS)];
    let root = |build: Build| build.credentials(0, 0);
    let admin = |build: Build| build.credentials(POSTGRES, CAP_SYS_ADMIN);
    let resource = |build: Build| build.credentials(POSTGRES, CAP_SYS_RESOURCE);
    let other = |build: Build| build.credentials(POSTGRES, !(CAP_SYS_ADMIN | CAP_SYS_RESOURCE));
    assert_cases(vec![
        case("plain", overlimit(FULL), all_hooks(), OBSERVED),
        case(
            "other capabilities do not exempt",
            other(overlimit(FULL)),
            all_hooks(),
            OBSERVED,
        ),
        case("root", root(overlimit(FULL)), all_hooks(), THREADS),
        case(
            "CAP_SYS_ADMIN",
            admin(overlimit(FULL)),
            all_hooks(),
            THREADS,
        ),
        case(
            "CAP_SYS_RESOURCE",
            resource(overlimit(FULL)),
            all_hooks(),
            THREADS,
        ),
        case(
            "capabilities of a nested user namespace do not exempt",
            admin(resource(overlimit(nested))),
            all_hooks(),
            OBSERVED,
        ),
        // INIT_USER is found by the host's uid alone: kernel/user.c `find_user`.
        case(
            "the host's root in a nested user namespace",
            root(overlimit(nested)),
            all_hooks(),
            THREADS,
        ),
        case(
            "credentials unreadable",
            overlimit(FULL).without(valid::CRED),
            all_hooks(),
            UNKNOWN,
        ),
        case(
            "privileged in a user namespace that is not known",
            admin(overlimit(&[(401, 400, 0)])),
            all_hooks(),
            UNKNOWN,
        ),
        case(
            "unprivileged in a user namespace that is not known",
            overlimit(&[(401, 400, 0)]),
            all_hooks(),
            OBSERVED,
        ),
    ]);
}

#[test]
fn how_far_the_fork_came_decides() {
    let root = |build: Build| build.credentials(0, 0);
    let without_cgroup_fork = || hooks_without(&[Check::CgroupFork]);
    assert_cases(vec![
        case(
            "the fork got past it",
            overlimit(FULL).reached(Check::CgroupFork),
            all_hooks(),
            UNKNOWN,
        ),
        case(
            "cgroup_fork is not watched",
            overlimit(FULL),
            without_cgroup_fork(),
            DEDUCED,
        ),
        case(
            "cgroup_fork is not watched, but a later stage was reached",
            overlimit(FULL).reached(Check::SchedFork),
            without_cgroup_fork(),
            UNKNOWN,
        ),
        case(
            "cgroup_fork is not watched and root",
            root(overlimit(FULL)),
            without_cgroup_fork(),
            UNKNOWN,
        ),
        case(
            "another errno",
            overlimit(FULL).change(|it| it.ret = ENOMEM),
            all_hooks(),
            UNKNOWN,
        ),
    ]);
}

#[test]
fn an_exempt_process_over_its_limit_met_the_next_one() {
    // kernel.threads-max comes next, holds for root too, and is inline.
    let attempt = overlimit(FULL).credentials(0, 0).threads(900, 900).done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::ThreadsMax);
    assert!(
        verdict
            .because
            .contains("the process is exempt from RLIMIT_NPROC"),
        "{}",
        verdict.because
    );
    assert!(verdict.also_possible.is_empty());
    assert_eq!(verdict.evidence.nproc.unwrap().exempt, Some(true));
}

#[test]
fn counts_exclude_the_refused_task() {
    let level = |attempt: Attempt| {
        judge(&attempt, &facts(), &all_hooks())
            .evidence
            .nproc
            .unwrap()
    };
    let inside = level(overlimit(FULL).done());
    assert_eq!(inside.levels[0].tasks, 400);
    assert_eq!(inside.exempt, Some(false));
    assert!(inside.levels[0].is_full());
    let after = level(hooked(EAGAIN).nproc(400, 400).done());
    assert_eq!(after.levels[0].tasks, 400);
    assert!(after.levels[0].is_full());
    let unlimited = level(hooked(EAGAIN).nproc(400, u64::MAX).done());
    assert_eq!(unlimited.levels[0].limit, None);
    assert!(!unlimited.levels[0].is_full());
}

#[test]
fn the_remedy_raises_the_limit_of_the_process_and_of_its_unit() {
    let mut facts = facts();
    facts.unit = Some("postgresql.service".to_owned());
    let verdict = judge(&overlimit(FULL).done(), &facts, &all_hooks());
    assert_eq!(
        verdict.scope,
        Some(Scope::User {
            uid: Some(POSTGRES),
            userns_inum: INITIAL_USERNS,
            ancestor: 0
        })
    );
    let commands: Vec<&str> = verdict.remedy.iter().map(|it| &*it.change).collect();
    assert_eq!(
        commands,
        [
            "prlimit --pid 1843 --nproc=600:600",
            "mkdir -p /etc/systemd/system/postgresql.service.d && printf '[Service]\\nLimitNPROC=600\\n' > /etc/systemd/system/postgresql.service.d/LimitNPROC.conf && systemctl daemon-reload"
        ]
    );
    assert_eq!(
        verdict.remedy[0].effect,
        "room for 200 more tasks of this user, until the process is restarted"
    );
    assert!(verdict.remedy[0].immediate && !verdict.remedy[1].immediate);
    facts.unit = None;
    let verdict = judge(&overlimit(FULL).done(), &facts, &all_hooks());
    assert!(
        matches!(&verdict.remedy[1].change, Change::Action(what) if what.contains("limits.conf"))
    );
}

#[test]
fn the_hard_limit_is_raised_but_never_lowered() {
    let with = |hard| {
        let mut facts = facts();
        facts.hard_limits.nproc = hard;
        let verdict = judge(&overlimit(FULL).done(), &facts, &all_hooks());
        verdict.remedy[0].change.to_string()
    };
    // Only the soft one is in the way.
    assert_eq!(with(Some(u64::MAX)), "prlimit --pid 1843 --nproc=600:");
    assert_eq!(with(Some(600)), "prlimit --pid 1843 --nproc=600:");
    assert_eq!(with(Some(599)), "prlimit --pid 1843 --nproc=600:600");
    assert_eq!(with(None), "prlimit --pid 1843 --nproc=600:600");
}

#[test]
fn more_tasks_than_the_limit_are_counted_in() {
    // The limit was lowered below what runs.
    let verdict = judge(
        &overlimit(&[(1001, 400, INITIAL_USERNS)]).done(),
        &facts(),
        &all_hooks(),
    );
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "prlimit --pid 1843 --nproc=1500:1500"
    );
    assert!(verdict.remedy[0].effect.contains("room for 500 more"));
}

#[test]
fn the_limit_of_an_upper_user_namespace() {
    let levels = [(12, 400, OWN_USERNS), (4001, 4000, INITIAL_USERNS)];
    let verdict = judge(&overlimit(&levels).done(), &facts(), &all_hooks());
    assert_eq!(verdict.cause, Cause::RlimitNproc);
    // There it is the creator of the user namespace who is counted, and who that is was not read.
    assert_eq!(
        verdict.scope,
        Some(Scope::User {
            uid: None,
            userns_inum: INITIAL_USERNS,
            ancestor: 1
        })
    );
    assert_eq!(verdict.remedy.len(), 1);
    assert!(!verdict.remedy[0].immediate);
    assert!(verdict.remedy[0].effect.contains("4000"));
    assert!(!verdict.remedy[0].change.contains("prlimit"));
}

#[test]
fn observed_without_counts_there_is_no_scope() {
    let attempt = overlimit(FULL).without(valid::NPROC).done();
    let verdict = judge(&attempt, &facts(), &all_hooks());
    // Nothing says that the process is not exempt.
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(verdict.scope, None);
}

/// 5.10: no function to hook, and the check comes before `copy_creds`.
fn old(count: i64, limit: u64) -> Build {
    hooked(EAGAIN)
        .reached(Check::ArchDupTaskStruct)
        .nproc(count, limit)
        .failed(Check::CopyProcess, EAGAIN)
}

#[test]
fn before_there_was_a_function_the_stages_decide() {
    let kernel_5_10 = || hooks_without(&[Check::IsRlimitOverlimit]);
    let blind = |check: Check| hooks_without(&[Check::IsRlimitOverlimit, check]);
    assert_cases(vec![
        case("full", old(400, 400), kernel_5_10(), DEDUCED),
        case("not full", old(399, 400), kernel_5_10(), UNKNOWN),
        case(
            "exempt",
            old(400, 400).credentials(0, 0),
            kernel_5_10(),
            UNKNOWN,
        ),
        case(
            "past copy_creds: kernel.threads-max",
            old(400, 400).reached(Check::CopyCreds),
            kernel_5_10(),
            UNKNOWN,
        ),
        case(
            "past cgroup_fork",
            old(400, 400).reached(Check::CgroupFork),
            kernel_5_10(),
            UNKNOWN,
        ),
        case(
            "copy_creds is not watched",
            old(400, 400),
            blind(Check::CopyCreds),
            UNKNOWN,
        ),
        case(
            "cgroup_fork is not watched",
            old(400, 400),
            blind(Check::CgroupFork),
            UNKNOWN,
        ),
        case(
            "another errno",
            old(400, 400).change(|it| it.ret = ENOMEM),
            kernel_5_10(),
            UNKNOWN,
        ),
        case(
            "the function exists and said no",
            old(400, 400),
            all_hooks(),
            UNKNOWN,
        ),
        case(
            "before copy_process",
            old(400, 400).change(|it| it.stages = Check::KernelClone.bit()),
            kernel_5_10(),
            UNKNOWN,
        ),
    ]);
}

#[test]
fn what_is_full_behind_it_is_told_with_and_without_the_function() {
    let full = |build: Build| build.pids(&[(40, 40)]).done();
    let seen = judge(&full(overlimit(FULL)), &facts(), &all_hooks());
    let kernel_5_10 = hooks_without(&[Check::IsRlimitOverlimit]);
    let by_stage = judge(&full(old(400, 400)), &facts(), &kernel_5_10);
    for verdict in [seen, by_stage] {
        assert_eq!(verdict.cause, Cause::RlimitNproc);
        assert_eq!(whats(&verdict.also_full), ["pids cgroup"]);
        assert!(verdict.also_possible.is_empty());
    }
}

#[test]
fn by_stage_names_what_could_not_be_seen() {
    let verdict = judge(
        &old(400, 400).done(),
        &facts(),
        &hooks_without(&[Check::IsRlimitOverlimit]),
    );
    assert_eq!(verdict.not_seen, ["not attached"], "the check itself");
    assert_eq!(verdict.check.unwrap().returned, None);
}

#[test]
fn an_execve_after_setuid_pays_for_the_limit() {
    let execve = |count, limit| {
        let attempt = hooked(EAGAIN)
            .change(|it| {
                it.source = source::EXECVE;
                it.stages = 0;
            })
            .failed(Check::Execve, EAGAIN)
            .nproc(count, limit)
            .threads(900, 900)
            .done();
        judge(&attempt, &facts(), &base_hooks())
    };
    let verdict = execve(401, 400);
    assert_eq!(verdict.cause, Cause::ExecAfterSetuidNproc);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert_eq!(verdict.check.unwrap().function, "__x64_sys_execve");
    assert!(matches!(
        verdict.scope,
        Some(Scope::User {
            uid: Some(POSTGRES),
            ..
        })
    ));
    assert!(
        verdict.remedy[0]
            .change
            .starts_with("prlimit --pid 1843 --nproc=")
    );
    // No other check of a fork explains it: it was none.
    assert!(verdict.also_possible.is_empty() && verdict.trail.len() == 1);
    // The process itself counts, so the limit itself is not yet over it.
    let verdict = execve(400, 400);
    assert_eq!(verdict.cause, Cause::Unknown);
    assert!(verdict.remedy.is_empty() && verdict.also_possible.is_empty());
}
