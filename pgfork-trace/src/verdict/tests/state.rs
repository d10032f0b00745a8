//! The tracepoint method: the state right after the refusal, in the kernel's order.

use pgfork_trace_common::valid;

use super::*;

fn facts() -> Facts {
    Facts {
        largest_mapping_bytes: Some(MIB),
        ..super::facts()
    }
}

fn strict(committed: u64, charge: u64) -> Facts {
    let mut facts = facts();
    facts.overcommit.as_mut().unwrap().mode = 2;
    facts.memory.as_mut().unwrap().committed_as = committed;
    facts.fork_charge_bytes = Some(charge);
    facts
}

/// 8 GiB less 8 MiB for the administrator, less 1/32 of 1 GiB for the user.
const USABLE: u64 = 8 * GIB - 8 * MIB - 32 * MIB;
/// 16 GiB / 256 for both processors together.
const SKEW: u64 = 64 * MIB;

fn plain(ret: Option<i32>) -> Build {
    by_libc(ret)
        .nproc(100, 4000)
        .threads(500, 90_000)
        .pids(&[(40, 500), (90, 9000)])
        .pid_namespaces(&[(80, 32_768)])
        .with(valid::POLICY)
        .total_vm(GIB)
}

fn case(name: &'static str, attempt: Build, facts: Facts, expected: Expected) -> Case {
    Case {
        name,
        attempt: attempt.done(),
        facts,
        coverage: no_hooks(),
        cause: expected.map_or(Cause::Unknown, |(cause, _)| cause),
        certainty: expected.map_or(Certainty::Unknown, |_| Certainty::Deduced),
        check: expected.and_then(|(_, check)| check),
    }
}

type Expected = Option<(Cause, Option<&'static str>)>;

const THREADS: Expected = Some((Cause::ThreadsMax, None));
const DYING: Expected = Some((Cause::PidNamespaceDying, Some("alloc_pid")));
const PIDS: Expected = Some((Cause::PidsCgroupMax, Some("pids_can_fork")));
const NPROC: Expected = Some((Cause::RlimitNproc, Some("is_rlimit_overlimit")));
const COMMIT: Expected = Some((Cause::CommitLimit, Some("__vm_enough_memory")));

#[test]
fn the_first_that_fits_in_the_kernels_order_is_deduced() {
    let full_pids = |build: Build| build.pids(&[(40, 500), (90, 90)]);
    let again = || plain(Some(EAGAIN));
    assert_cases(vec![
        case("nothing fits", again(), facts(), None),
        case("pids", full_pids(again()), facts(), PIDS),
        case("nproc", again().nproc(400, 400), facts(), NPROC),
        case(
            "nproc comes before pids",
            full_pids(again().nproc(400, 400)),
            facts(),
            NPROC,
        ),
        case(
            "exempt from nproc",
            full_pids(again().nproc(400, 400).credentials(0, 0)),
            facts(),
            PIDS,
        ),
        case(
            "threads-max comes before pids, and has no function",
            full_pids(again().threads(900, 900)),
            facts(),
            THREADS,
        ),
        case(
            "nproc comes before threads-max",
            again().nproc(400, 400).threads(900, 900),
            facts(),
            NPROC,
        ),
        case(
            "whether nproc applies is not known",
            full_pids(again().nproc(400, 400)).without(valid::CRED),
            facts(),
            None,
        ),
        case(
            "more user namespaces than were read",
            full_pids(again()).with(valid::NPROC_TRUNCATED),
            facts(),
            None,
        ),
    ]);
}

#[test]
fn what_is_not_exact_keeps_later_checks_from_being_blamed() {
    let full_pids = |build: Build| build.pids(&[(40, 500), (90, 90)]);
    let again = || plain(Some(EAGAIN));
    assert_cases(vec![
        case(
            "deadline scheduling comes before pids",
            full_pids(again())
                .with(valid::POLICY)
                .change(|it| it.state.policy = 6),
            facts(),
            None,
        ),
        case(
            "another policy",
            full_pids(again()).with(valid::POLICY),
            facts(),
            PIDS,
        ),
        case(
            "pid numbers may be used up before pids",
            full_pids(again())
                .with(valid::PIDNS_PID_MAX)
                .pid_namespace(1 << 31 | 32_468)
                .change(|it| it.pidns[0].pid_max = 32_768),
            facts(),
            None,
        ),
        case(
            "pid numbers are left",
            full_pids(again())
                .with(valid::PIDNS_PID_MAX)
                .pid_namespace(1 << 31 | 32_467)
                .change(|it| it.pidns[0].pid_max = 32_768),
            facts(),
            PIDS,
        ),
        case(
            "what gives ENOMEM does not matter",
            full_pids(again()).pid_namespace(5),
            strict(9 * GIB, MIB),
            PIDS,
        ),
    ]);
}

#[test]
fn enomem_is_held_against_the_whole_fork() {
    let nomem = || plain(Some(ENOMEM));
    assert_cases(vec![
        case("not strict", nomem(), facts(), None),
        case("room", nomem(), strict(GIB, MIB), None),
        case("just refused", nomem(), strict(USABLE - MIB, MIB), COMMIT),
        case(
            "one page less, within what the counter may be off",
            nomem(),
            strict(USABLE - MIB - PAGE, MIB),
            None,
        ),
        case(
            "the kernel's own counter counts before /proc",
            nomem().committed(USABLE),
            strict(GIB, MIB),
            COMMIT,
        ),
        case(
            "a root without CAP_SYS_ADMIN is not spared the reserve",
            nomem().credentials(0, 0),
            strict(USABLE - MIB, MIB),
            COMMIT,
        ),
        case(
            "CAP_SYS_ADMIN is spared the reserve",
            nomem().credentials(POSTGRES, CAP_SYS_ADMIN),
            strict(USABLE + 8 * MIB - MIB, MIB),
            COMMIT,
        ),
        case(
            "CAP_SYS_ADMIN in a nested user namespace is not",
            nomem()
                .credentials(0, CAP_SYS_ADMIN)
                .nproc_levels(&[(5, 99, 4_026_532_200)]),
            strict(USABLE - MIB, MIB),
            COMMIT,
        ),
        case(
            "size of the process unknown",
            nomem().without(valid::MM),
            strict(9 * GIB, MIB),
            None,
        ),
        case(
            "pid namespace without init",
            nomem().pid_namespace(5),
            facts(),
            DYING,
        ),
        case(
            "the commit limit comes before the pid namespace",
            nomem().pid_namespace(5),
            strict(9 * GIB, MIB),
            COMMIT,
        ),
        case(
            "what gives EAGAIN does not matter",
            nomem().nproc(400, 400).pids(&[(40, 40)]),
            strict(9 * GIB, MIB),
            COMMIT,
        ),
    ]);
    let mut unread = strict(9 * GIB, MIB);
    unread.fork_charge_bytes = None;
    assert_eq!(
        judge(&nomem().done(), &unread, &no_hooks()).cause,
        Cause::Unknown
    );
}

#[test]
fn with_capabilities_the_reserve_decides() {
    // Below what is usable with the reserve, above what is without.
    let facts = strict(USABLE - MIB, MIB);
    let spared = plain(Some(ENOMEM)).credentials(POSTGRES, CAP_SYS_ADMIN);
    let verdict = judge(&spared.done(), &facts, &no_hooks());
    assert_eq!(
        verdict
            .evidence
            .overcommit
            .as_ref()
            .unwrap()
            .admin_reserve_bytes,
        Some(0)
    );
    // 8 MiB are less than the counter may be off.
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(whats(&verdict.also_possible), ["strict overcommit"]);
    let unread = plain(Some(ENOMEM)).without(valid::CRED).done();
    let verdict = judge(&unread, &facts, &no_hooks());
    assert_eq!(verdict.cause, Cause::Unknown, "the reserve is not known");
    assert_eq!(
        verdict.not_seen,
        ["the numbers of strict overcommit could not be read"]
    );
}

#[test]
fn without_errno_only_checks_of_one_errno_may_fit() {
    let full = |build: Build| build.pids(&[(40, 40)]);
    assert_cases(vec![
        case("pids alone", full(plain(None)), facts(), PIDS),
        case(
            "pids and nproc, both EAGAIN",
            full(plain(None)).nproc(400, 400),
            facts(),
            NPROC,
        ),
        case(
            "pids and commit limit",
            full(plain(None)),
            strict(9 * GIB, MIB),
            None,
        ),
        case(
            "pids, and perhaps the commit limit",
            full(plain(None)),
            strict(USABLE - 2 * MIB, MIB),
            None,
        ),
        case(
            "commit limit alone",
            plain(None),
            strict(9 * GIB, MIB),
            COMMIT,
        ),
        case(
            "pids and a dying pid namespace",
            full(plain(None)).pid_namespace(5),
            facts(),
            None,
        ),
        case("nothing", plain(None), facts(), None),
    ]);
    let both = judge(
        &full(plain(None)).done(),
        &strict(9 * GIB, MIB),
        &no_hooks(),
    );
    assert_eq!(
        whats(&both.also_possible),
        ["strict overcommit", "pids cgroup"]
    );
    assert!(
        both.because.contains("an unknown error"),
        "{}",
        both.because
    );
    let pids = judge(&full(plain(None)).done(), &facts(), &no_hooks());
    assert!(
        pids.because
            .starts_with("fork failed, and read right after it:")
    );
}

#[test]
fn what_else_fits_is_named_and_so_is_what_could_not_be_read() {
    let both = plain(Some(EAGAIN)).nproc(400, 400).pids(&[(40, 40)]).done();
    let verdict = judge(&both, &facts(), &no_hooks());
    assert_eq!(verdict.cause, Cause::RlimitNproc);
    assert_eq!(whats(&verdict.also_possible), ["pids cgroup"]);
    assert!(verdict.because.contains("EAGAIN"));
    assert!(verdict.because.contains("400 tasks of 400"));

    let blind = by_libc(Some(EAGAIN)).pids(&[(40, 40)]).done();
    let verdict = judge(&blind, &facts(), &no_hooks());
    // Any of these comes before it, and may have refused.
    assert_eq!(verdict.cause, Cause::Unknown);
    assert_eq!(whats(&verdict.also_possible), ["pids cgroup"]);
    assert_eq!(
        verdict.not_seen,
        [
            "the numbers of RLIMIT_NPROC could not be read",
            "the numbers of kernel.threads-max could not be read",
            "the numbers of deadline scheduling could not be read",
            "the numbers of kernel.pid_max could not be read",
        ]
    );
}

#[test]
fn threads_come_from_proc_where_the_kernel_hides_them() {
    let attempt = plain(Some(EAGAIN)).without(valid::THREADS).done();
    let mut facts = facts();
    facts.threads = Some((900, 900));
    let verdict = judge(&attempt, &facts, &no_hooks());
    assert_eq!(verdict.evidence.threads.unwrap().tasks, 900);
    assert_eq!(verdict.cause, Cause::ThreadsMax);
}

#[test]
fn the_arithmetic_of_a_deduced_commit_limit_is_told() {
    let verdict = judge(
        &plain(Some(ENOMEM)).done(),
        &strict(USABLE - MIB, MIB),
        &no_hooks(),
    );
    let it = verdict.evidence.overcommit.as_ref().unwrap();
    assert_eq!(it.usable_bytes, Some(USABLE));
    assert_eq!(it.counter_skew_bytes, Some(SKEW));
    assert_eq!(it.requested_bytes, None);
    assert_eq!(it.fork_charge_bytes, Some(MIB));
    for number in [USABLE - MIB, MIB, USABLE] {
        assert!(
            verdict.because.contains(&number.to_string()),
            "{}",
            verdict.because
        );
    }
    assert_eq!(verdict.scope, Some(Scope::Host));
    assert!(
        verdict.remedy[0]
            .change
            .starts_with("sysctl vm.overcommit_ratio=")
    );
}
