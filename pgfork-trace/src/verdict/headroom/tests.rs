//! Tests of the arithmetic, each against what the kernel would do next.

use super::super::{CgroupFact, MemoryFacts, OvercommitSettings};
use super::*;
use crate::verdict::Change;

const MIB: u64 = 1 << 20;

fn facts() -> HeadroomFacts {
    HeadroomFacts {
        host: Facts {
            page_size: 4096,
            cpus: 2,
            pid: 700,
            ..Facts::default()
        },
        kernel: (6, 1),
        cost: Cost {
            measured_backends: 3,
            tasks: 1,
            commit_bytes: Some(4 * MIB),
            private_bytes: Some(2 * MIB),
            kernel_bytes: Some(MIB),
        },
        ..HeadroomFacts::default()
    }
}

fn level(path: &str, tasks: u64, limit: Option<u64>) -> CgroupLevel {
    CgroupLevel {
        cgroup_id: tasks,
        path: Some(path.to_owned()),
        unit: None,
        property: "pids.max".to_owned(),
        container: None,
        tasks,
        limit,
    }
}

fn row(facts: &HeadroomFacts, limit: Limit) -> Row {
    headroom(facts)
        .into_iter()
        .find(|row| row.limit == limit)
        .unwrap()
}

#[test]
fn the_fuller_level_comes_first_and_no_limit_last() {
    let mut facts = facts();
    facts.pids = vec![
        level("/a/b", 10, None),
        level("/a", 30, Some(37)),
        level("/", 500, None),
    ];
    facts.host.cgroups = vec![CgroupFact {
        id: 30,
        directory: "/sys/fs/cgroup/a".to_owned(),
        ..CgroupFact::default()
    }];
    facts.host.threads = Some((100, 105));
    let rows = headroom(&facts);
    let order: Vec<_> = rows.iter().map(|row| (row.limit, row.backends)).collect();
    assert_eq!(
        order,
        [
            (Limit::ThreadsMax, Some(5)),
            (Limit::PidsCgroupMax, Some(7)),
            (Limit::PidsCgroupMax, None),
            (Limit::PidsCgroupMax, None),
        ]
    );
    assert_eq!(first(&rows).unwrap().limit, Limit::ThreadsMax);
    assert_eq!(
        rows[1].remedy[0].change.to_string(),
        "echo 87 > /sys/fs/cgroup/a/pids.max"
    );
}

#[test]
fn of_two_equally_close_limits_the_earlier_check_refuses() {
    let mut facts = facts();
    facts.pids = vec![level("/a", 10, Some(15))];
    facts.numbers = Some(PidNumbers {
        taken: 10,
        usable: 15,
        inner: None,
    });
    facts.nproc = Some(NprocFacts {
        uid: 26,
        userns_inum: None,
        tasks: 5,
        uncertain: 0,
        root: false,
        limit: Some(10),
    });
    let order: Vec<_> = headroom(&facts).iter().map(|row| row.limit).collect();
    assert_eq!(
        order,
        [
            Limit::RlimitNproc,
            Limit::PidSpaceExhausted,
            Limit::PidsCgroupMax
        ]
    );
    // uid 0 of a container only.
    facts.nproc.as_mut().unwrap().uid = 0;
    assert_eq!(row(&facts, Limit::RlimitNproc).backends, Some(5));
    facts.nproc.as_mut().unwrap().root = true;
    assert_eq!(row(&facts, Limit::RlimitNproc).backends, None);
    facts.nproc.as_mut().unwrap().root = false;
    facts.cap_sys_resource = true;
    assert_eq!(row(&facts, Limit::RlimitNproc).backends, None);
}

fn strict(mut facts: HeadroomFacts) -> HeadroomFacts {
    facts.host.overcommit = Some(OvercommitSettings {
        mode: 2,
        ratio: 50,
        kbytes: 0,
        admin_reserve_kbytes: 8192,
        user_reserve_kbytes: 131_072,
    });
    facts.host.memory = Some(MemoryFacts {
        mem_total: 2048 * MIB,
        mem_available: 1024 * MIB,
        swap_total: 0,
        commit_limit: 1024 * MIB,
        committed_as: 900 * MIB,
        hugetlb: 0,
    });
    facts.host.fork_charge_bytes = Some(3 * MIB);
    // 320 MiB of address space: 10 MiB of reserve.
    facts.total_vm_pages = Some(320 * MIB / 4096);
    facts
}

#[test]
fn strict_overcommit_keeps_both_reserves() {
    let facts = strict(facts());
    let row = row(&facts, Limit::CommitLimit);
    assert_eq!(row.max, Some((1024 - 8 - 10) * MIB));
    assert_eq!(row.room, Some(106 * MIB));
    // 26 x 4 = 104; 27 x 4 = 108 would not fit.
    assert_eq!(row.backends, Some(26));
    assert!(row.uncertain_backends <= 2, "{row:?}");
    assert!(
        row.remedy[0]
            .change
            .starts_with("sysctl vm.overcommit_ratio=")
    );
}

/// A server whose socket and owner are known.
fn access() -> Access {
    Access {
        uid: 26,
        user: Some("postgres".to_owned()),
        socket_dir: Some("/run/my pg".to_owned()),
        port: Some(5433),
        programs: Some("/usr/lib/postgresql/15/bin".to_owned()),
        data_dir: "/data".to_owned(),
        log: Some("/data/log".to_owned()),
        elsewhere: false,
    }
}

/// Commands go to this server, as its own user, or there is none.
#[test]
fn commands_for_slots_reach_the_server_they_are_for() {
    let mut facts = facts();
    facts.host.pid = 700;
    facts.access = access();
    let slots = |max, on_command_line| Slots {
        used: 6,
        max,
        reserved: 3,
        on_command_line,
    };
    let typed = |facts: &HeadroomFacts| {
        let rows = headroom(facts);
        let row = rows.iter().find(|row| row.limit == Limit::MaxConnections);
        let remedies = row.unwrap().remedy.iter();
        let all: Vec<(bool, String)> = remedies
            .map(|it| {
                (
                    matches!(it.change, Change::Command(_)),
                    it.change.to_string(),
                )
            })
            .collect();
        all
    };
    facts.slots = Some(slots(100, false));
    let here = typed(&facts);
    let psql = "runuser -u postgres -- psql -h '/run/my pg' -p 5433 -d postgres -c ";
    assert!(here[0].1.starts_with(psql), "{here:?}");
    assert_eq!(
        here[1],
        (
            true,
            format!(
                "{psql}'ALTER SYSTEM SET max_connections = 150' && runuser -u postgres -- /usr/lib/postgresql/15/bin/pg_ctl -D /data -l /data/log restart"
            )
        )
    );
    facts.access.elsewhere = true;
    let inside = typed(&facts);
    assert!(
        inside[0].1.starts_with(
            "nsenter -t 700 -m -p -S 26 -- /usr/lib/postgresql/15/bin/psql -h '/run/my pg' -p 5433 "
        ),
        "{inside:?}"
    );
    // Its container is what has to be restarted.
    assert!(
        inside[1].1.ends_with("max_connections = 150'"),
        "{inside:?}"
    );
    // Whose it is, or where, is not known: nothing that may reach another one.
    for unknown in [
        Access {
            port: None,
            ..access()
        },
        Access {
            socket_dir: None,
            ..access()
        },
        Access {
            user: None,
            ..access()
        },
    ] {
        facts.access = unknown;
        let nowhere = typed(&facts);
        assert!(nowhere.iter().all(|(command, _)| !command), "{nowhere:?}");
    }
    facts.access = access();
    facts.slots = Some(slots(100, true));
    let started_so = &typed(&facts)[1];
    assert!(!started_so.0 && started_so.1.contains("its command line"));
    facts.slots = Some(slots(200_000, false));
    assert!(typed(&facts)[1].1.contains("max_connections = 262143'"));
    facts.slots = Some(slots(262_143, false));
    assert_eq!(typed(&facts).len(), 1);
}

/// Whatever has a limit has something to type, and no sysctl is for this boot alone.
#[test]
fn every_limit_has_a_command() {
    let mut facts = strict(facts());
    facts.access = access();
    facts.host.threads = Some((100, 105));
    facts.numbers = Some(PidNumbers {
        taken: 10,
        usable: 15,
        inner: None,
    });
    facts.nproc = Some(NprocFacts {
        uid: 26,
        userns_inum: None,
        tasks: 5,
        uncertain: 0,
        root: false,
        limit: Some(10),
    });
    facts.pids = vec![level("/a", 10, Some(15))];
    facts.slots = Some(Slots {
        used: 6,
        max: 100,
        reserved: 3,
        on_command_line: false,
    });
    facts.kernel = (5, 10);
    let mut group = CgroupFact::default();
    "/sys/fs/cgroup/memory/a b".clone_into(&mut group.directory);
    facts.memory = vec![MemoryLevel {
        fact: MemcgFact {
            group,
            usage: Some(100 * MIB),
            limit: Some(190 * MIB),
            kmem_usage: Some(5 * MIB),
            kmem_limit: Some(9 * MIB),
            ..MemcgFact::default()
        },
        high: Some(163 * MIB),
        ..MemoryLevel::default()
    }];
    let rows = headroom(&facts);
    assert_eq!(rows.iter().filter(|row| row.max.is_some()).count(), 10);
    for row in rows.iter().filter(|row| row.max.is_some()) {
        assert!(!row.remedy.is_empty(), "{:?}", row.limit);
        for at in 0..row.remedy.len() {
            let command = &row.remedy[at].change;
            let Some((name, value)) = command
                .strip_prefix("sysctl ")
                .and_then(|it| it.split_once('='))
            else {
                continue;
            };
            assert_eq!(
                *row.remedy[at + 1].change,
                *format!("echo '{name} = {value}' > /etc/sysctl.d/zz-{name}.conf")
            );
            assert!(!row.remedy[at + 1].immediate);
        }
    }
    let first = |limit| row(&facts, limit).remedy[0].change.to_string();
    assert_eq!(
        first(Limit::MemcgKmemLimitV1),
        "echo -1 > '/sys/fs/cgroup/memory/a b/memory.kmem.limit_in_bytes'"
    );
    assert!(first(Limit::MaxConnections).starts_with(
        "runuser -u postgres -- psql -h '/run/my pg' -p 5433 -d postgres -c \"select "
    ));
    let restart = &row(&facts, Limit::MaxConnections).remedy[1].change;
    assert!(
        restart.ends_with("/pg_ctl -D /data -l /data/log restart"),
        "{restart}"
    );
    facts.host.overcommit.as_mut().unwrap().mode = 0;
    facts.largest_charge = Some(4096 * MIB);
    assert_eq!(
        &*row(&facts, Limit::OvercommitHeuristic).remedy[0].change,
        "sysctl vm.overcommit_memory=1"
    );
}

#[test]
fn what_exactly_fills_the_limit_is_refused() {
    use super::super::overcommit::fitting;
    assert_eq!(fitting(0, 1, 10, 100), 9);
    assert_eq!(fitting(0, 1, 10, 101), 10);
    assert_eq!(fitting(0, 20, 10, 21), 1);
    assert_eq!(fitting(99, 1, 1, 100), 0);
    assert_eq!(fitting(u64::MAX, 1, 1, 100), 0);
    assert_eq!(fitting(0, 0, 0, 0), 0);
}

#[test]
fn other_modes_of_overcommit_count_no_backends() {
    let mut facts = strict(facts());
    facts.largest_charge = Some(MIB);
    facts.host.overcommit.as_mut().unwrap().mode = 0;
    assert_eq!(row(&facts, Limit::OvercommitHeuristic).backends, None);
    facts.largest_charge = Some(4096 * MIB);
    assert_eq!(row(&facts, Limit::OvercommitHeuristic).backends, Some(0));
    facts.host.overcommit.as_mut().unwrap().mode = 1;
    assert_eq!(row(&facts, Limit::CommitLimit).max, None);
}

#[test]
fn memory_limits_drop_caches_first_and_say_who_dies() {
    let mut facts = facts();
    facts.memory = vec![MemoryLevel {
        fact: MemcgFact {
            usage: Some(100 * MIB),
            limit: Some(90 * MIB),
            kmem_usage: Some(5 * MIB),
            kmem_limit: Some(9 * MIB),
            ..MemcgFact::default()
        },
        reclaimable: 40 * MIB,
        high: Some(63 * MIB),
        ..MemoryLevel::default()
    }];
    let kills = row(&facts, Limit::MemcgOomKill);
    assert_eq!((kills.room, kills.backends), (Some(30 * MIB), Some(10)));
    assert_eq!(kills.effect, Effect::Kills);
    // Slows down earlier, but refuses nobody.
    let rows = headroom(&facts);
    assert_eq!(rows[0].limit, Limit::MemcgHigh);
    assert_eq!(first(&rows).unwrap().limit, Limit::MemcgOomKill);
    assert!(rows[0].is_near(Near::default()), "a slow server is news");
    facts.memory[0].killable = Some(false);
    assert_eq!(
        row(&facts, Limit::MemcgNoVictim).effect,
        Effect::RefusesEnomem
    );
    assert!(
        headroom(&facts)
            .iter()
            .all(|row| row.limit != Limit::MemcgKmemLimitV1)
            == (facts.kernel >= (5, 16))
    );
    facts.kernel = (5, 10);
    assert_eq!(row(&facts, Limit::MemcgKmemLimitV1).backends, Some(4));
    // Without a limit it is named, but refuses nothing.
    let mut endless = facts.clone();
    endless.memory[0].fact.limit = None;
    let named = row(&endless, Limit::MemcgNoVictim);
    assert_eq!((named.max, named.room, named.backends), (None, None, None));
    "/".clone_into(&mut endless.memory[0].fact.group.path);
    let rows = headroom(&endless);
    assert!(rows.iter().all(|row| row.limit != Limit::MemcgNoVictim));
    facts.memory[0].swap_room = Some(3 * MIB);
    facts.swap_free = Some(MIB);
    assert_eq!(row(&facts, Limit::MemcgNoVictim).room, Some(31 * MIB));
}

#[test]
fn swap_counts_only_as_far_as_every_level_allows() {
    let mut facts = facts();
    let fact = MemcgFact {
        usage: Some(60 * MIB),
        limit: Some(100 * MIB),
        group: CgroupFact {
            path: "/a.slice".to_owned(),
            ..CgroupFact::default()
        },
        ..MemcgFact::default()
    };
    let own = MemoryLevel {
        fact: fact.clone(),
        swap_room: Some(30 * MIB),
        ..MemoryLevel::default()
    };
    let slice = MemoryLevel {
        fact: MemcgFact {
            limit: None,
            ..fact.clone()
        },
        swap_room: Some(0),
        ..MemoryLevel::default()
    };
    facts.swap_free = Some(50 * MIB);
    facts.memory = vec![own.clone()];
    assert_eq!(row(&facts, Limit::MemcgOomKill).room, Some(70 * MIB));
    // MemorySwapMax=0 on the slice.
    facts.memory.push(slice);
    let full = row(&facts, Limit::MemcgOomKill);
    assert_eq!(full.room, Some(40 * MIB));
    assert_eq!(
        full.notes,
        ["no room in swap: memory.swap.max of /a.slice leaves none"]
    );
    // v1: 120 MiB of both, of which 15 are in swap already.
    let mut v1 = own;
    v1.fact = MemcgFact {
        v1: true,
        memsw_usage: Some(75 * MIB),
        memsw_limit: Some(120 * MIB),
        ..fact
    };
    facts.memory = vec![v1];
    assert_eq!(row(&facts, Limit::MemcgOomKill).room, Some(45 * MIB));
}

#[test]
fn a_dead_namespace_refuses_everything() {
    let mut facts = facts();
    facts.pid_namespace_alive = Some(false);
    let rows = headroom(&facts);
    assert_eq!(rows[0].backends, Some(0));
    assert!(rows[0].is_near(Near::default()));
}

#[test]
fn slots_and_what_counts_as_near() {
    let mut facts = facts();
    facts.slots = Some(Slots {
        used: 6,
        max: 100,
        reserved: 3,
        on_command_line: false,
    });
    let found = row(&facts, Limit::MaxConnections);
    assert_eq!((found.max, found.backends), (Some(97), Some(91)));
    assert!(!found.is_near(Near::default()));
    assert!(found.is_near(Near {
        backends: 91,
        percent: 0
    }));
    assert!(found.is_near(Near {
        backends: 0,
        percent: 94
    }));
    facts.slots.as_mut().unwrap().used = 120;
    assert_eq!(row(&facts, Limit::MaxConnections).backends, Some(0));
}

#[test]
fn absurd_numbers_do_not_overflow() {
    let mut facts = strict(facts());
    let memory = facts.host.memory.as_mut().unwrap();
    memory.committed_as = 1 << 62;
    memory.mem_total = 1 << 63;
    memory.swap_total = 1 << 40;
    facts.swap_free = Some(u64::MAX);
    facts.host.threads = Some((1 << 62, 0));
    facts.numbers = Some(PidNumbers {
        taken: 1 << 40,
        usable: 0,
        inner: Some(u64::MAX),
    });
    let absurd = |usage, limit| MemoryLevel {
        fact: MemcgFact {
            usage: Some(usage),
            limit: Some(limit),
            memsw_usage: Some(0),
            memsw_limit: Some(limit),
            ..MemcgFact::default()
        },
        reclaimable: u64::MAX,
        high: Some(0),
        ..MemoryLevel::default()
    };
    facts.memory = vec![absurd(0, u64::MAX), absurd(u64::MAX, 1)];
    facts.cost.private_bytes = Some(u64::MAX);
    facts.cost.commit_bytes = Some(u64::MAX);
    facts.host.fork_charge_bytes = Some(u64::MAX);
    facts.pids = vec![
        level("/a", 0, Some(u64::MAX - 1)),
        level("/b", u64::MAX, Some(u64::MAX - 1)),
    ];
    facts.slots = Some(Slots {
        used: u64::MAX,
        max: 0,
        reserved: u64::MAX,
        on_command_line: false,
    });
    assert!(!headroom(&facts).is_empty());
    assert!(
        headroom(&HeadroomFacts::default())
            .iter()
            .all(|row| row.backends.is_none())
    );
}
