//! Lines about what happens below the watched processes.

use super::{
    super::line::{
        Errno, Killed, KilledBy, Line, MemoryRefusal, Method, OomKill, Process, Refusal, Role,
        Sender,
    },
    HOSTILE, MIB, action, in_container, nproc, overcommit, postmaster, remedy,
};
use crate::verdict::{
    Cause, Certainty, CheckSeen, Considered, Scope, TrailEntry,
    memory::{Asked, HugePages, MemoryEvidence, MemoryVerdict, TmpfsRoom, Way},
    oom::{OomEvidence, OomVerdict},
};

pub(in crate::output) fn backend() -> Process {
    Process {
        pid: 2210,
        tid: 2210,
        comm: Some("postgres".to_owned()),
        title: Some("postgres: app db 10.0.3.17(52114) SELECT".to_owned()),
        role: Some(Role::ClientBackend),
        job: None,
    }
}

fn asked(way: Way, bytes: u64) -> Asked {
    Asked {
        way,
        bytes: Some(bytes),
        returned: Some("-ENOMEM".to_owned()),
    }
}

fn entry(function: &'static str, returned: &str) -> TrailEntry {
    TrailEntry {
        function,
        returned: returned.to_owned(),
    }
}

fn memory(verdict: MemoryVerdict) -> MemoryRefusal {
    MemoryRefusal {
        postmaster: postmaster(),
        process: backend(),
        errno: Some(Errno::from_ret(-libc::ENOMEM)),
        method: Method::Fexit,
        verdict,
    }
}

fn blank(cause: Cause, certainty: Certainty, because: &str) -> MemoryVerdict {
    MemoryVerdict {
        cause,
        behind: None,
        certainty,
        because: because.to_owned(),
        scope: None,
        asked: Vec::new(),
        check: None,
        trail: Vec::new(),
        evidence: MemoryEvidence::default(),
        remedy: Vec::new(),
        also_possible: Vec::new(),
        ruled_out: Vec::new(),
        not_seen: Vec::new(),
    }
}

pub(in crate::output) fn rlimit_as() -> MemoryRefusal {
    memory(MemoryVerdict {
        scope: Some(Scope::Process),
        asked: vec![
            asked(Way::Mmap, 256 * MIB),
            asked(Way::Brk, 257 * MIB),
            asked(Way::Mmap, 258 * MIB),
        ],
        check: Some(CheckSeen {
            function: "may_expand_vm",
            path: vec!["vm_mmap_pgoff"],
            returned: Some("false".to_owned()),
        }),
        trail: vec![
            entry("may_expand_vm", "false"),
            entry("vm_mmap_pgoff", "-ENOMEM"),
        ],
        evidence: MemoryEvidence {
            requested_bytes: Some(256 * MIB),
            mapping_flags: Some(0x22),
            total_vm_bytes: Some(512 * MIB),
            data_vm_bytes: Some(64 * MIB),
            stack_vm_bytes: Some(MIB),
            locked_vm_bytes: Some(0),
            rlimit_as_bytes: Some(600 * MIB),
            rlimit_stack_bytes: Some(8 * MIB),
            rlimit_memlock_bytes: Some(8 * MIB),
            mappings: Some(200),
            max_map_count: Some(65_530),
            ..MemoryEvidence::default()
        },
        remedy: vec![
            remedy(
                "prlimit --pid 1843 --as=1073741824:",
                "512 MiB of address space for each process started from then on, until the postmaster is restarted; running ones keep their limit",
                true,
            ),
            remedy(
                "mkdir -p /etc/systemd/system/postgresql@15-main.service.d && printf '[Service]\\nLimitAS=1073741824\\n' > /etc/systemd/system/postgresql@15-main.service.d/LimitAS.conf && systemctl daemon-reload",
                "the same, from the next restart on",
                false,
            ),
        ],
        ..blank(
            Cause::RlimitAs,
            Certainty::Observed,
            "may_expand_vm was seen refusing, and the address space with this request passes RLIMIT_AS",
        )
    })
}

fn strict() -> MemoryRefusal {
    let mut numbers = overcommit();
    numbers.requested_bytes = Some(1024 * MIB);
    numbers.fork_charge_bytes = None;
    memory(MemoryVerdict {
        scope: Some(Scope::Host),
        asked: vec![asked(Way::Mmap, 1024 * MIB)],
        check: Some(CheckSeen {
            function: "__vm_enough_memory",
            path: vec!["vm_mmap_pgoff"],
            returned: Some("-ENOMEM".to_owned()),
        }),
        trail: vec![
            entry("__vm_enough_memory", "-ENOMEM"),
            entry("vm_mmap_pgoff", "-ENOMEM"),
        ],
        evidence: MemoryEvidence {
            requested_bytes: Some(1024 * MIB),
            overcommit: Some(numbers),
            ..MemoryEvidence::default()
        },
        remedy: vec![
            remedy(
                "sysctl vm.overcommit_ratio=92",
                "room for about 10 more requests like this one",
                true,
            ),
            action(
                "lower work_mem, hash_mem_multiplier or maintenance_work_mem where this is asked for",
                "each sort, hash and index build of each backend may take as much as these allow",
                true,
            ),
        ],
        also_possible: vec![Considered {
            what: "max_map_count",
            why: "brk, asked for the same memory, was refused by this: the process has 65 531 mappings".to_owned(),
        }],
        ..blank(
            Cause::CommitLimit,
            Certainty::Observed,
            "__vm_enough_memory was seen returning -ENOMEM, in strict mode",
        )
    })
}

fn stack() -> MemoryRefusal {
    MemoryRefusal {
        process: Process {
            pid: 2300,
            tid: 2300,
            comm: Some("postgres".to_owned()),
            title: Some("postgres: 15/main: autovacuum worker db".to_owned()),
            role: Some(Role::Helper),
            job: Some("autovacuum worker".to_owned()),
        },
        ..memory(MemoryVerdict {
            scope: Some(Scope::Process),
            asked: vec![Asked {
                way: Way::StackGrowth,
                bytes: None,
                returned: Some("-ENOMEM".to_owned()),
            }],
            evidence: MemoryEvidence {
                stack_vm_bytes: Some(8 * MIB),
                rlimit_stack_bytes: Some(8 * MIB),
                ..MemoryEvidence::default()
            },
            remedy: vec![action(
                "max_stack_depth = 7168kB in postgresql.conf, or less",
                "an error, not the end",
                false,
            )],
            ..blank(
                Cause::StackGrowthRefused,
                Certainty::Observed,
                "expand_downwards was seen refusing to let the stack grow: the process gets SIGSEGV, and it is as large as RLIMIT_STACK allows",
            )
        })
    }
}

fn tmpfs_full() -> MemoryRefusal {
    let mut refusal = rlimit_as();
    refusal.errno = Some(Errno::from_ret(-libc::ENOSPC));
    let verdict = &mut refusal.verdict;
    verdict.cause = Cause::ShmTmpfsFull;
    "shmem_fallocate was seen returning -ENOSPC, and the commit limit, which also has it do so, was watched and did not refuse"
        .clone_into(&mut verdict.because);
    verdict.scope = None;
    verdict.asked = vec![Asked {
        returned: Some("-ENOSPC".to_owned()),
        ..asked(Way::Fallocate, 8 * MIB)
    }];
    verdict.check = Some(CheckSeen {
        function: "shmem_fallocate",
        path: Vec::new(),
        returned: Some("-ENOSPC".to_owned()),
    });
    verdict.trail = vec![entry("shmem_fallocate", "-ENOSPC")];
    verdict.evidence.requested_bytes = Some(8 * MIB);
    verdict.evidence.tmpfs = Some(TmpfsRoom {
        mounted_on: "/dev/shm".to_owned(),
        size_bytes: Some(64 * MIB),
        free_bytes: Some(2 * MIB),
    });
    verdict.remedy = vec![remedy(
        "nsenter -t 1843 -m mount -o remount,size=96M /dev/shm",
        "96 MiB at once, until it is mounted anew; what is used of it is memory, also of the cgroup",
        true,
    )];
    refusal
}

fn unknown() -> MemoryRefusal {
    let mut refusal = rlimit_as();
    refusal.errno = None;
    refusal.process = Process {
        pid: 7,
        tid: 9,
        ..Process::default()
    };
    let verdict = &mut refusal.verdict;
    (verdict.cause, verdict.certainty) = (Cause::Unknown, Certainty::Unknown);
    "mmap ended with ENOMEM, and no limit that is known would refuse it"
        .clone_into(&mut verdict.because);
    (verdict.check, verdict.scope) = (None, None);
    verdict.remedy.clear();
    verdict.evidence.huge_pages = Some(HugePages {
        page_bytes: 2 * MIB,
        total_pages: 100,
        free_pages: 60,
        reserved_pages: 20,
    });
    verdict.ruled_out = vec![Considered {
        what: "max_map_count",
        why: "the process has 200 mappings of vm.max_map_count 65 530".to_owned(),
    }];
    verdict.not_seen = vec!["may_expand_vm: not a function of its own here".to_owned()];
    refusal
}

fn hostile() -> MemoryRefusal {
    let mut refusal = unknown();
    let bad = || HOSTILE.to_owned();
    refusal.process = Process {
        title: Some(format!("postgres: {}", bad())),
        comm: Some(bad()),
        job: Some(bad()),
        role: Some(Role::Helper),
        ..refusal.process
    };
    refusal.verdict.because = bad();
    refusal.verdict.ruled_out[0].why = bad();
    refusal.verdict.remedy = vec![remedy(&bad(), &bad(), true)];
    refusal
}

pub(in crate::output) fn memory_refusals() -> Vec<(&'static str, MemoryRefusal)> {
    vec![
        ("memory_rlimit_as", rlimit_as()),
        ("memory_commit_limit", strict()),
        ("memory_stack", stack()),
        ("memory_tmpfs_full", tmpfs_full()),
        ("memory_unknown", unknown()),
        ("memory_hostile", hostile()),
    ]
}

/// A fork refused to a child of the archiver.
pub(in crate::output) fn in_program() -> Refusal {
    Refusal {
        postmaster: postmaster(),
        process: Process {
            pid: 2401,
            tid: 2401,
            comm: Some("sh".to_owned()),
            title: None,
            role: Some(Role::Program),
            job: Some("archive_command".to_owned()),
        },
        ..nproc()
    }
}

pub(in crate::output) fn oom_cgroup() -> OomKill {
    let path = "/system.slice/postgresql@15-main.service";
    OomKill {
        postmaster: Some(postmaster()),
        victim: backend(),
        trigger_pid: Some(2210),
        verdict: OomVerdict {
            cause: Cause::MemcgOomKill,
            certainty: Certainty::Observed,
            because: "oom_kill_process was seen choosing the victim because a memory cgroup was at its limit".to_owned(),
            scope: Some(Scope::Cgroup {
                path: Some(path.to_owned()),
                cgroup_id: 4_711,
                ancestor: 0,
                unit: Some("postgresql@15-main.service".to_owned()),
                property: "MemoryMax".to_owned(),
                container: None,
            }),
            evidence: OomEvidence {
                oom_cgroup: Some(path.to_owned()),
                victim_cgroup: Some(path.to_owned()),
                usage_bytes: Some(256 * MIB),
                limit_bytes: Some(256 * MIB),
                total_vm_bytes: Some(407 * MIB),
                anon_rss_bytes: Some(205 * MIB),
                file_rss_bytes: Some(11 * MIB),
                shmem_rss_bytes: Some(26 * MIB),
                page_tables_bytes: Some(MIB),
                oom_score_adj: Some(0),
                uid: Some(115),
            },
            remedy: vec![remedy(
                "systemctl set-property postgresql@15-main.service MemoryMax=335544320",
                "64 MiB more; lasts across restarts (--runtime: until the next boot)",
                true,
            )],
        },
    }
}

/// The postmaster, and next to nothing is known.
fn oom_sparse() -> OomKill {
    OomKill {
        postmaster: Some(in_container()),
        victim: Process {
            pid: 22100,
            tid: 22100,
            role: Some(Role::Postmaster),
            ..Process::default()
        },
        trigger_pid: None,
        verdict: OomVerdict {
            cause: Cause::Unknown,
            certainty: Certainty::Unknown,
            because: "the OOM killer marked this victim; whether a cgroup or the host was short of memory was not seen".to_owned(),
            scope: None,
            evidence: OomEvidence::default(),
            remedy: Vec::new(),
        },
    }
}

fn oom_other() -> OomKill {
    let mut kill = oom_cgroup();
    kill.postmaster = None;
    kill.victim = Process {
        pid: 99,
        tid: 99,
        comm: Some(HOSTILE.to_owned()),
        ..Process::default()
    };
    kill.verdict.cause = Cause::GlobalOomKill;
    kill.verdict.scope = Some(Scope::Host);
    kill.verdict.evidence.oom_cgroup = None;
    kill.verdict.evidence.victim_cgroup = Some(HOSTILE.to_owned());
    kill.verdict.remedy.clear();
    kill
}

pub(in crate::output) fn oom_kills() -> Vec<(&'static str, OomKill)> {
    vec![
        ("oom_cgroup", oom_cgroup()),
        ("oom_sparse", oom_sparse()),
        ("oom_other", oom_other()),
    ]
}

pub(in crate::output) fn by_bash() -> KilledBy {
    KilledBy::Signal {
        sender: Sender {
            pid: 77,
            comm: Some("bash".to_owned()),
            uid: 0,
        },
    }
}

pub(in crate::output) fn killed(target: Process, killed_by: KilledBy) -> Line {
    Line::Killed(Killed {
        postmaster: postmaster(),
        target,
        killed_by,
    })
}

/// One of every kind.
pub(in crate::output) fn all() -> Vec<Line> {
    let mut lines = vec![
        Line::Refusal(Box::new(in_program())),
        killed(backend(), by_bash()),
        killed(backend(), KilledBy::Kernel),
        killed(backend(), KilledBy::OomKiller),
    ];
    lines.extend(
        memory_refusals()
            .into_iter()
            .map(|(_, it)| Line::MemoryRefusal(Box::new(it))),
    );
    lines.extend(
        oom_kills()
            .into_iter()
            .map(|(_, it)| Line::OomKill(Box::new(it))),
    );
    lines
}
