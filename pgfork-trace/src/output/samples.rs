//! Refusals and other lines for tests: full, sparse and hostile ones.

pub(super) mod children;
mod lines;
mod states;

use jiff::Timestamp;

use super::line::{Errno, Method, Postmaster, Process, Refusal, WatchedKind};
pub(super) use lines::*;

use crate::verdict::{
    Cause, Certainty, CgroupLevel, Change, CheckSeen, Considered, Evidence, NprocEvidence,
    NprocLevelEvidence, OvercommitEvidence, Remedy, Scope, ThreadsEvidence, TrailEntry, UserTasks,
    Verdict,
    client::{Child, ChildKind, Client},
    headroom::{Effect, Limit, NextLimit, Place, Unit},
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// Names that try to act on the terminal and to forge a line.
pub(super) const HOSTILE: &str = "\u{1b}[2J\u{9b}31m\n12:00:00  REFUSED  \u{202e}gp\u{200b}";

pub(super) fn time(text: &str) -> Timestamp {
    format!("2026-03-01T{text}Z").parse().unwrap()
}

pub(super) fn postmaster() -> Postmaster {
    Postmaster {
        pid: 1843,
        port: Some(5432),
        data_dir: Some("/var/lib/postgresql/15/main".to_owned()),
        version: Some("15".to_owned()),
        unit: Some("postgresql@15-main.service".to_owned()),
        started: Some("2026-03-01T08:00:07Z".parse().unwrap()),
        ..Postmaster::default()
    }
}

pub(super) fn in_container() -> Postmaster {
    Postmaster {
        pid: 22100,
        port: Some(5433),
        data_dir: Some("/srv/pg17".to_owned()),
        version: Some("17".to_owned()),
        container: Some("7f3c1b2a90de4455667788990011223344556677".to_owned()),
        ..Postmaster::default()
    }
}

pub(super) fn pooler() -> Postmaster {
    Postmaster {
        pid: 77,
        kind: WatchedKind::Process,
        comm: Some("pgbouncer".to_owned()),
        ..Postmaster::default()
    }
}

/// Nothing but what it has to have.
pub(crate) fn verdict(cause: Cause, certainty: Certainty, because: &str) -> Verdict {
    Verdict {
        cause,
        certainty,
        because: because.to_owned(),
        scope: None,
        check: None,
        trail: Vec::new(),
        stage: None,
        evidence: Evidence::default(),
        remedy: Vec::new(),
        also_possible: Vec::new(),
        also_full: Vec::new(),
        ruled_out: Vec::new(),
        not_seen: Vec::new(),
    }
}

fn tcp_client() -> Client {
    Client::Tcp4 {
        address: "10.0.3.17".to_owned(),
        port: 52114,
    }
}

fn child(kind: ChildKind, certainty: Certainty) -> Option<Child> {
    Some(Child {
        kind,
        certainty,
        likely: None,
    })
}

fn refusal(ret: i32, verdict: Verdict) -> Refusal {
    Refusal {
        postmaster: postmaster(),
        process: Process {
            pid: 1843,
            tid: 1843,
            comm: Some("postgres".to_owned()),
            ..Process::default()
        },
        client: Some(tcp_client()),
        child: child(ChildKind::ClientBackend, Certainty::Observed),
        syscall: None,
        clone_flags: Some(0x0120_0011),
        errno: Some(Errno::from_ret(ret)),
        duration_ns: Some(310_250),
        method: Method::Fexit,
        verdict,
        next_limit: None,
        lost_before: 0,
    }
}

fn action(what: &str, effect: &str, immediate: bool) -> Remedy {
    Remedy {
        change: Change::Action(what.to_owned()),
        ..remedy("", effect, immediate)
    }
}

fn remedy(command: &str, effect: &str, immediate: bool) -> Remedy {
    Remedy {
        change: Change::Command(command.to_owned()),
        effect: effect.to_owned(),
        immediate,
    }
}

pub(super) fn overcommit() -> OvercommitEvidence {
    OvercommitEvidence {
        overcommit_memory: Some(2),
        requested_bytes: Some(148 * KIB),
        fork_charge_bytes: Some(12_632 * KIB),
        largest_mapping_bytes: None,
        total_vm_bytes: Some(193_536 * KIB),
        committed_bytes: Some(12_689_408 * KIB),
        counter_skew_bytes: Some(512 * KIB),
        commit_limit_bytes: Some(12_703_744 * KIB),
        admin_reserve_bytes: Some(8_192 * KIB),
        user_reserve_bytes: Some(6_048 * KIB),
        usable_bytes: Some(12_689_504 * KIB),
        overcommit_ratio: Some(50),
        overcommit_bytes: Some(0),
        committed_after_bytes: Some(12_676_776 * KIB),
        mem_total_bytes: Some(24_800 * MIB),
        mem_available_bytes: Some(7_577 * MIB),
        swap_total_bytes: Some(0),
        backend_commit_bytes: Some(14 * MIB),
    }
}

fn next_limit(path: &str) -> NextLimit {
    NextLimit {
        limit: Limit::PidsCgroupMax,
        scope: Place::Cgroup {
            path: format!("/{path}"),
            ancestor: 0,
            unit: None,
            property: "TasksMax".to_owned(),
            container: None,
        },
        effect: Effect::RefusesEagain,
        unit: Unit::Tasks,
        max: Some(512),
        room: Some(37),
        backends: 37,
        text: format!("after that, pids_cgroup_max refuses first: {path}, 37 left of 512"),
    }
}

pub(super) fn commit_limit() -> Refusal {
    let mut verdict = verdict(
        Cause::CommitLimit,
        Certainty::Observed,
        "__vm_enough_memory was seen returning -ENOMEM in this fork, in strict mode",
    );
    verdict.scope = Some(Scope::Host);
    verdict.check = Some(CheckSeen {
        function: "__vm_enough_memory",
        path: vec!["kernel_clone", "copy_process", "dup_mm", "dup_mmap"],
        returned: Some("-ENOMEM".to_owned()),
    });
    verdict.trail = vec![
        TrailEntry {
            function: "__vm_enough_memory",
            returned: "-ENOMEM".to_owned(),
        },
        TrailEntry {
            function: "kernel_clone",
            returned: "-ENOMEM".to_owned(),
        },
    ];
    verdict.stage = Some("pgd_alloc");
    verdict.evidence.overcommit = Some(overcommit());
    verdict.remedy = vec![
        remedy(
            "sysctl vm.overcommit_ratio=53",
            "room for about 52 more backends like these",
            true,
        ),
        action(
            "add 715 MiB of swap",
            "the same; each GiB of swap raises the limit by 1 GiB, room for about 73 backends",
            true,
        ),
    ];
    let mut refusal = refusal(-libc::ENOMEM, verdict);
    refusal.next_limit = Some(next_limit("system.slice/postgresql@15-main.service"));
    refusal
}

/// The same in the method that reads right after the fact.
pub(super) fn commit_limit_deduced() -> Refusal {
    let mut refusal = commit_limit();
    refusal.method = Method::Tracepoint;
    refusal.client = Some(Client::Unix {
        pid: Some(901),
        uid: 1000,
        comm: Some("psql".to_owned()),
    });
    refusal.errno = None;
    refusal.clone_flags = None;
    refusal.duration_ns = None;
    let verdict = &mut refusal.verdict;
    verdict.certainty = Certainty::Deduced;
    verdict.because = "fork failed, and read right after it: the numbers fit".to_owned();
    verdict.trail.clear();
    verdict.stage = None;
    if let Some(check) = &mut verdict.check {
        check.returned = None;
    }
    if let Some(overcommit) = &mut verdict.evidence.overcommit {
        overcommit.requested_bytes = None;
        overcommit.committed_bytes = None;
        overcommit.swap_total_bytes = Some(2048 * MIB);
        overcommit.mem_available_bytes = Some(1000 * MIB);
        overcommit.overcommit_bytes = Some(4096 * MIB);
    }
    verdict.also_possible = vec![Considered {
        what: "pid namespace without init",
        why: "the init process of the pid namespace for children is gone".to_owned(),
    }];
    refusal
}

fn level(path: &str, unit: Option<&str>, tasks: u64, limit: Option<u64>) -> CgroupLevel {
    CgroupLevel {
        cgroup_id: 4_711,
        path: Some(path.to_owned()),
        unit: unit.map(str::to_owned),
        property: unit.map_or("pids.max", |_| "TasksMax").to_owned(),
        container: None,
        tasks,
        limit,
    }
}

pub(super) fn pids() -> Refusal {
    let unit = "postgresql@15-main.service";
    let path = "/system.slice/postgresql@15-main.service";
    let mut verdict = verdict(
        Cause::PidsCgroupMax,
        Certainty::Observed,
        "pids_can_fork was seen returning -EAGAIN in this fork",
    );
    verdict.scope = Some(Scope::Cgroup {
        path: Some(path.to_owned()),
        cgroup_id: 4_711,
        ancestor: 0,
        unit: Some(unit.to_owned()),
        property: "TasksMax".to_owned(),
        container: None,
    });
    verdict.check = Some(CheckSeen {
        function: "pids_can_fork",
        path: vec!["kernel_clone", "copy_process", "cgroup_can_fork"],
        returned: Some("-EAGAIN".to_owned()),
    });
    verdict.evidence.pids = vec![
        level(path, Some(unit), 512, Some(512)),
        level("/system.slice", Some("system.slice"), 1_903, Some(1_950)),
        level("/", None, 2_100, None),
    ];
    verdict.remedy = vec![
        remedy(
            "systemctl set-property postgresql@15-main.service TasksMax=768",
            "room for 256 more tasks; lasts across restarts (--runtime: until the next boot)",
            true,
        ),
        remedy(
            "systemctl set-property system.slice TasksMax=2159",
            "needed as well: this one has 1903 tasks of 1950; lasts across restarts (--runtime: until the next boot)",
            true,
        ),
    ];
    let mut refusal = refusal(-libc::EAGAIN, verdict);
    refusal.lost_before = 3;
    refusal.client = None;
    refusal.child = Some(Child {
        kind: ChildKind::Worker,
        certainty: Certainty::Deduced,
        likely: Some("checkpointer"),
    });
    refusal
}

pub(super) fn nproc() -> Refusal {
    let mut verdict = verdict(
        Cause::RlimitNproc,
        Certainty::Observed,
        "is_rlimit_overlimit was seen returning true, the process is not exempt, and the fork got no further",
    );
    verdict.scope = Some(Scope::User {
        uid: Some(999),
        userns_inum: 4_026_532_200,
        ancestor: 0,
    });
    verdict.check = Some(CheckSeen {
        function: "is_rlimit_overlimit",
        path: vec!["kernel_clone", "copy_process", "is_rlimit_overlimit"],
        returned: Some("true".to_owned()),
    });
    verdict.evidence.nproc = Some(NprocEvidence {
        uid: Some(999),
        exempt: Some(false),
        levels: vec![NprocLevelEvidence {
            userns_inum: 4_026_532_200,
            tasks: 400,
            limit: Some(400),
        }],
        truncated: false,
        user_tasks: [
            ("postgres", 312),
            ("java", 80),
            ("sh", 3),
            ("awk", 2),
            ("top", 1),
            ("cron", 1),
            ("vi", 1),
        ]
        .into_iter()
        .map(|(comm, tasks)| UserTasks {
            comm: comm.to_owned(),
            tasks,
        })
        .collect(),
    });
    verdict.remedy = vec![
        remedy(
            "prlimit --pid 77 --nproc=600:",
            "room for 200 more tasks of this user, until the process is restarted",
            true,
        ),
        action(
            "nproc 600 for the user in /etc/security/limits.conf, or ulimit -u where it is started",
            "the same, from the next start on",
            false,
        ),
    ];
    let mut refusal = refusal(-libc::EAGAIN, verdict);
    refusal.postmaster = pooler();
    (refusal.client, refusal.child) = (None, None);
    refusal.process = Process {
        pid: 77,
        tid: 79,
        comm: Some("worker".to_owned()),
        ..Process::default()
    };
    refusal
}

pub(super) fn unknown() -> Refusal {
    let mut verdict = verdict(
        Cause::Unknown,
        Certainty::Unknown,
        "the fork ended with ENOMEM, and none of the 17 watched checks was seen refusing",
    );
    verdict.stage = Some("copy_thread");
    verdict.trail = vec![TrailEntry {
        function: "kernel_clone",
        returned: "-ENOMEM".to_owned(),
    }];
    verdict.evidence = Evidence {
        overcommit: Some(OvercommitEvidence {
            overcommit_memory: Some(0),
            ..OvercommitEvidence::default()
        }),
        pids: vec![
            level("/a", None, 10, Some(100)),
            level("/", None, 20, Some(1_000)),
        ],
        pids_root: false,
        pids_truncated: true,
        nproc: None,
        threads: Some(ThreadsEvidence {
            tasks: 2_100,
            limit: 254_000,
        }),
        pid_namespace_alive: Some(false),
        ..Evidence::default()
    };
    verdict.ruled_out = vec![
        Considered {
            what: "strict overcommit",
            why: "vm.overcommit_memory is 0, not strict".to_owned(),
        },
        Considered {
            what: "pids cgroup",
            why: "the fullest cgroup has 10 tasks of 100".to_owned(),
        },
    ];
    verdict.also_possible = vec![Considered {
        what: "pid namespace without init",
        why: "the init process of the pid namespace for children is gone".to_owned(),
    }];
    verdict.not_seen = (1..=7).map(|n| format!("check_{n}: not in BTF")).collect();
    let mut refusal = refusal(-libc::ENOMEM, verdict);
    refusal.client = None;
    refusal.child = child(ChildKind::Unknown, Certainty::Unknown);
    refusal
}

/// Next to nothing could be read.
pub(super) fn sparse() -> Refusal {
    let verdict = verdict(
        Cause::Unknown,
        Certainty::Unknown,
        "fork failed with an unknown error, and the numbers of no check that gives it fit",
    );
    Refusal {
        postmaster: Postmaster {
            pid: 9,
            ..Postmaster::default()
        },
        process: Process {
            pid: 9,
            tid: 9,
            ..Process::default()
        },
        client: None,
        child: None,
        syscall: None,
        clone_flags: None,
        errno: None,
        duration_ns: None,
        method: Method::Tracepoint,
        verdict,
        next_limit: None,
        lost_before: 0,
    }
}

/// Every string that others choose is hostile.
pub(super) fn hostile() -> Refusal {
    let bad = || HOSTILE.to_owned();
    let mut refusal = pids();
    refusal.postmaster = Postmaster {
        pid: 1843,
        kind: WatchedKind::Process,
        comm: Some(bad()),
        port: None,
        data_dir: None,
        version: Some(bad()),
        unit: Some(bad()),
        container: Some(bad()),
        started: None,
    };
    refusal.process = Process {
        pid: 1844,
        tid: 1844,
        comm: Some(bad()),
        ..Process::default()
    };
    let verdict = &mut refusal.verdict;
    verdict.because = bad();
    verdict.certainty = Certainty::Unknown;
    verdict.scope = Some(Scope::Cgroup {
        path: Some(bad()),
        cgroup_id: 1,
        ancestor: 0,
        unit: Some(bad()),
        property: bad(),
        container: None,
    });
    verdict.evidence.pids = vec![CgroupLevel {
        unit: Some(bad()),
        property: bad(),
        ..level(&(bad() + &"x".repeat(5_000)), None, 5, Some(5))
    }];
    verdict.remedy = vec![remedy(&bad(), &bad(), true)];
    let considered = || {
        vec![Considered {
            what: "pids cgroup",
            why: bad(),
        }]
    };
    verdict.ruled_out = considered();
    verdict.also_possible = considered();
    verdict.not_seen = vec![bad()];
    refusal.next_limit = Some(next_limit(HOSTILE));
    refusal.client = Some(Client::Unix {
        pid: Some(5),
        uid: 0,
        comm: Some(bad()),
    });
    refusal
}

pub(super) fn refusals() -> Vec<(&'static str, Refusal)> {
    vec![
        ("commit_limit", commit_limit()),
        ("commit_limit_deduced", commit_limit_deduced()),
        ("pids_cgroup_max", pids()),
        ("rlimit_nproc", nproc()),
        ("unknown", unknown()),
        ("sparse", sparse()),
        ("hostile", hostile()),
        ("memcg_no_victim", states::no_victim()),
        ("pid_space_exhausted", states::pid_numbers()),
        ("pid_namespace_dying", states::dying_namespace()),
        ("threads_max", states::threads()),
        ("seccomp_denied", states::filter()),
        ("overcommit_heuristic", states::large_mapping()),
        ("kernel_stack_alloc_failed", states::kernel_memory()),
        ("hostile_memcg", states::hostile()),
    ]
}
