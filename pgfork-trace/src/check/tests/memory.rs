//! Memory cgroups: whose limit, who may be killed, what to type.

use super::*;

const V1: &str = "31 23 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                  32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
const MIB: u64 = 1 << 20;

/// A v1 container of 200 MiB, swap counted in as Docker does it, below a tight parent.
fn v1_container() -> FakeRoot {
    let fake = FakeRoot::new();
    let path = format!("/docker/{}", "a".repeat(64));
    server(&fake, &format!("5:memory:{path}\n4:pids:{path}\n0::/\n"));
    host(&fake);
    fake.write("proc/self/mountinfo", V1);
    for (directory, usage, memory, both) in
        [(path.as_str(), 100, 200, 200), ("/docker", 150, 300, 900)]
    {
        let directory = format!("sys/fs/cgroup/memory{directory}");
        let file = |name: &str, mib: u64| {
            fake.write(
                format!("{directory}/memory.{name}"),
                format!("{}\n", mib * MIB),
            );
        };
        file("usage_in_bytes", usage);
        file("limit_in_bytes", memory);
        file("memsw.usage_in_bytes", usage + 20);
        file("memsw.limit_in_bytes", both);
        fake.write(format!("{directory}/memory.failcnt"), "12\n");
        fake.write(format!("{directory}/memory.memsw.failcnt"), "3\n");
        fake.write(format!("{directory}/memory.kmem.failcnt"), "0\n");
        fake.write(format!("{directory}/memory.kmem.usage_in_bytes"), "4096\n");
        fake.write(
            format!("{directory}/memory.oom_control"),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        );
    }
    fake
}

#[test]
fn a_v1_container_is_raised_by_files_that_exist_in_the_order_that_the_kernel_takes() {
    let fake = v1_container();
    let found = look_at(&fake);
    let rows = found.limits.iter().map(|it| &it.row);
    let own = rows
        .clone()
        .find(|row| row.limit == Limit::MemcgOomKill)
        .unwrap();
    let commands: Vec<_> = own.remedy.iter().map(|it| it.change.to_string()).collect();
    let id = "a".repeat(64);
    assert_eq!(
        commands,
        [
            format!("echo 456M > /sys/fs/cgroup/memory/docker/{id}/memory.memsw.limit_in_bytes"),
            format!("echo 456M > /sys/fs/cgroup/memory/docker/{id}/memory.limit_in_bytes"),
            "echo 506M > /sys/fs/cgroup/memory/docker/memory.limit_in_bytes".to_owned(),
        ]
        .map(|it| it.replace("/sys", fake.path("sys").to_str().unwrap()))
    );
    // Swap is full: 20 MiB of it are in use, and both together may be 200.
    assert_eq!(own.room, Some(100 * MIB));
    let upper = rows
        .filter(|row| row.limit == Limit::MemcgOomKill)
        .nth(1)
        .unwrap();
    assert_eq!(upper.max, Some(300 * MIB));
    let seen = &found.history.memory_events[0];
    assert_eq!((seen.limit_reached, seen.killed), (Some(12), Some(2)));
    assert_eq!(
        (
            seen.memory_and_swap_limit_reached,
            seen.kernel_memory_limit_reached
        ),
        (Some(3), None)
    );
}

/// Nothing of the server may be killed.
fn protected(fake: &FakeRoot) {
    server(fake, "0::/app.slice/pg.service\n");
    host(fake);
    v2(fake);
    backend(fake, 701, "postgres: app db [local] idle");
    for pid in [700, 701] {
        fake.write(format!("proc/{pid}/oom_score_adj"), "-1000\n");
    }
    fake.write("sys/fs/cgroup/app.slice/memory.current", "104857600\n");
    fake.write("sys/fs/cgroup/app.slice/memory.max", "209715200\n");
}

fn ends(found: &ServerReport) -> Vec<Limit> {
    let mut rows: Vec<_> = found
        .limits
        .iter()
        .filter_map(|it| match &it.row.place {
            headroom::Place::Cgroup { ancestor, .. } if it.row.unit == headroom::Unit::Bytes => {
                Some((*ancestor, it.row.limit))
            }
            _ => None,
        })
        .collect();
    rows.sort_unstable();
    rows.into_iter().map(|(_, limit)| limit).collect()
}

#[test]
fn above_a_protected_server_others_may_be_killed() {
    let fake = FakeRoot::new();
    protected(&fake);
    assert_eq!(ends(&look_at(&fake)), [Limit::MemcgNoVictim; 2]);
    fake.process(&FakeProcess {
        cgroup: b"0::/app.slice/web.service\n".to_vec(),
        ..FakeProcess::new(800)
    });
    fake.write("proc/800/oom_score_adj", "0\n");
    let found = look_at(&fake);
    assert_eq!(ends(&found), [Limit::MemcgNoVictim, Limit::MemcgOomKill]);
    let ids: Vec<_> = found.findings.iter().map(|it| it.id).collect();
    assert!(ids.contains(&FindingId::NothingKillable), "{ids:?}");
    // In the very cgroup, a command that the archiver started, say.
    fake.process(&FakeProcess {
        cgroup: b"0::/app.slice/pg.service\n".to_vec(),
        ..FakeProcess::new(800)
    });
    let found = look_at(&fake);
    assert_eq!(ends(&found), [Limit::MemcgOomKill; 2]);
    let ids: Vec<_> = found.findings.iter().map(|it| it.id).collect();
    assert!(!ids.contains(&FindingId::NothingKillable), "{ids:?}");
}

#[test]
fn all_are_killed_together() {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    fake.write("sys/fs/cgroup/app.slice/pg.service/memory.oom.group", "1\n");
    let found = look_at(&fake);
    let notes = &row(&found, Limit::MemcgOomKill).notes;
    let said = "memory.oom.group is 1 in /app.slice/pg.service";
    assert!(notes.iter().any(|it| it.starts_with(said)), "{notes:?}");
}

#[test]
fn the_pool_of_huge_pages_has_to_hold_the_whole_segment() {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    host(&fake);
    // shared_buffers would fit into 128 MiB; the segment of 140 does not.
    let segment = |size: u64, flags: &str| {
        let text = format!(
            "7f00-7f01 rw-s 0 00:05 1 /dev/zero\nSize: {size} kB\nVmFlags: rd wr sh mr mw me ms {flags}\n"
        );
        fake.write("proc/700/smaps", text);
    };
    let pool = |pages: u64| {
        fake.write(
            "proc/meminfo",
            format!("HugePages_Total: {pages}\nHugePages_Free: 0\nHugePages_Rsvd: 0\nHugepagesize: 2048 kB\n"),
        );
    };
    let few = || {
        let found = look_at(&fake).findings;
        found.iter().any(|it| it.id == FindingId::HugePagesTooFew)
    };
    segment(143_360, "sd");
    pool(64);
    assert!(few());
    pool(70);
    assert!(!few());
    // Whatever is left of the pool: the server has its pages.
    pool(64);
    segment(143_360, "ht");
    assert!(!few());
    // huge_page_size = 1GB: the pool of that size counts.
    segment(143_360, "sd");
    pool(70);
    fake.write("data/postgresql.conf", "huge_page_size = 1GB\n");
    assert!(!few());
    let gigantic = "sys/kernel/mm/hugepages/hugepages-1048576kB";
    for (name, pages) in [("nr", 1), ("free", 0), ("resv", 0)] {
        fake.write(format!("{gigantic}/{name}_hugepages"), format!("{pages}\n"));
    }
    assert!(!few());
    segment(2 << 20, "sd");
    assert!(few());
}
