//! Whole looks at other arrangements of cgroups and namespaces.

use super::*;

/// systemd's hybrid: memory on v1, and the pids controller on v2.
#[test]
fn a_hybrid_has_each_limit_from_the_hierarchy_of_its_controller() {
    let fake = FakeRoot::new();
    let unit = "/app.slice/pg.service";
    server(
        &fake,
        &format!("5:memory:{unit}\n1:name=systemd:{unit}\n0::{unit}\n"),
    );
    host(&fake);
    fake.write(
        "proc/self/mountinfo",
        "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
         32 23 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
         33 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    );
    let pids = format!("sys/fs/cgroup/unified{unit}");
    fake.write(format!("{pids}/pids.current"), "12\n");
    fake.write(format!("{pids}/pids.max"), "17\n");
    let memory = format!("sys/fs/cgroup/memory{unit}");
    fake.write(format!("{memory}/memory.usage_in_bytes"), "104857600\n");
    fake.write(format!("{memory}/memory.limit_in_bytes"), "209715200\n");
    let found = look_at(&fake);
    let tasks = row(&found, Limit::PidsCgroupMax);
    assert_eq!((tasks.used, tasks.backends), (12, Some(5)));
    let memory = row(&found, Limit::MemcgOomKill);
    assert_eq!((memory.used, memory.max), (104_857_600, Some(209_715_200)));
    assert!(
        found.summary.contains("12 tasks of 17"),
        "{}",
        found.summary
    );
}

/// Docker without userns-remap on v2: the uid is the host's, and so is the count behind `RLIMIT_NPROC`.
#[test]
fn a_container_without_a_user_namespace_shares_the_hosts_count() {
    let fake = FakeRoot::new();
    let id = "7f3c1b2a90de".repeat(5) + "7f3c";
    let scope = format!("/system.slice/docker-{id}.scope");
    server(&fake, &format!("0::{scope}\n"));
    host(&fake);
    for pid in [1, 700, 900] {
        fake.link(format!("proc/{pid}/ns/user"), "user:[4026531837]");
    }
    // A process of the host with the same uid number.
    let stranger = FakeProcess {
        parent: 1,
        comm: b"worker".to_vec(),
        ..FakeProcess::postgres(900, "elsewhere")
    };
    fake.process(&stranger);
    fake.write("proc/self/mountinfo", V2);
    fake.write(format!("sys/fs/cgroup{scope}/pids.current"), "99\n");
    fake.write(format!("sys/fs/cgroup{scope}/pids.max"), "100\n");
    let found = look_at(&fake);
    assert_eq!(found.container.as_deref(), Some(id.as_str()));
    let tasks = row(&found, Limit::PidsCgroupMax);
    assert_eq!(
        (tasks.used, tasks.max, tasks.backends),
        (99, Some(100), Some(1))
    );
    assert_eq!(row(&found, Limit::RlimitNproc).used, 2);
    let typed = found.make_room.unwrap_or_default();
    assert!(typed.contains("docker update"), "{typed}");
}
