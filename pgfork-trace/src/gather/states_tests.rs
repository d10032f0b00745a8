//! Facts from fake trees.

use std::time::Duration;

use super::*;
use crate::host::fake::FakeRoot;

fn attempt(ret: i32) -> Attempt {
    // SAFETY: an Attempt is made of integers only.
    let mut attempt: Attempt = unsafe { std::mem::zeroed() };
    attempt.source = source::KERNEL_CLONE;
    attempt.tgid = 700;
    attempt.tid = 700;
    attempt.ret = ret;
    attempt.valid = valid::RET;
    attempt
}

fn tree() -> FakeRoot {
    let fake = FakeRoot::new();
    fake.write("proc/sys/kernel/osrelease", "5.10.0-46-amd64\n");
    fake.write("proc/sys/kernel/pid_max", "32768\n");
    fake.write("proc/sys/fs/nr_open", "64\n");
    fake.write("sys/kernel/security/lsm", "capability,yama,bpf\n");
    fake.write("sys/kernel/sched_ext/state", "enabled\n");
    fake.write("proc/700/cgroup", "4:memory:/a\n0::/\n");
    fake.write(
        "proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
    );
    let own = "sys/fs/cgroup/memory/a";
    fake.write(format!("{own}/memory.usage_in_bytes"), "4190208\n");
    fake.write(format!("{own}/memory.limit_in_bytes"), "4194304\n");
    fake.write(format!("{own}/memory.kmem.usage_in_bytes"), "100\n");
    fake.write(
        format!("{own}/memory.kmem.limit_in_bytes"),
        "9223372036854771712\n",
    );
    fake.write(
        format!("{own}/memory.oom_control"),
        "oom_kill_disable 1\nunder_oom 0\noom_kill 0\n",
    );
    fake.write("proc/700/oom_score_adj", "-1000\n");
    fake
}

#[test]
fn each_errno_has_its_facts() {
    let fake = tree();
    let mut gatherer = Gatherer::new(fake.root().clone());
    let now = Instant::now();
    let facts = gatherer.facts(&attempt(-libc::EAGAIN), now);
    assert_eq!(facts.kernel, Some((5, 10)));
    assert_eq!(facts.pid_max, Some(32768));
    assert_eq!((facts.nr_open, facts.killable), (None, None));
    assert!(facts.memory_cgroups.is_empty() && facts.security_modules.is_empty());

    let facts = gatherer.facts(&attempt(-libc::EMFILE), now);
    assert_eq!(facts.nr_open, Some(64));

    let facts = gatherer.facts(&attempt(-libc::EPERM), now);
    assert_eq!(facts.security_modules, ["capability", "yama", "bpf"]);
    assert_eq!(facts.sched_ext, Some(true));
}

#[test]
fn want_of_memory_reads_the_memory_cgroups() {
    let fake = tree();
    let mut gatherer = Gatherer::new(fake.root().clone());
    let now = Instant::now();
    let mut refused = attempt(-libc::ENOMEM);
    let facts = gatherer.facts(&refused, now);
    let own = &facts.memory_cgroups[0];
    assert!(own.v1);
    assert_eq!(own.group.path, "/a");
    assert_eq!((own.usage, own.limit), (Some(4_190_208), Some(4_194_304)));
    assert_eq!((own.kmem_usage, own.kmem_limit), (Some(100), None));
    assert_eq!(own.oom_kill_disable, Some(true));
    assert_eq!(facts.killable, None, "nothing was reclaimed");
    refused.stages |= Check::TryToFreeMemCgroupPages.bit();
    let killable = gatherer.facts(&refused, now).killable.unwrap();
    assert_eq!((killable.looked_at, killable.protected), (1, 1));
}

#[test]
fn the_kernel_log_counts_for_a_moment() {
    use std::io::Write as _;
    let fake = tree();
    fake.write(
        "dev/kmsg",
        "3,1,5,-;Out of memory and no killable processes...\n",
    );
    let mut gatherer = Gatherer::new(fake.root().clone());
    let start = Instant::now();
    let log = |gatherer: &mut Gatherer, at| gatherer.facts(&attempt(-libc::ENOMEM), at).kernel_log;
    assert_eq!(log(&mut gatherer, start), [], "older than this program");
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(fake.path("dev/kmsg"))
        .unwrap();
    file.write_all(b"4,3,300,-;__vm_enough_memory: pid: 700, comm: x, bytes: 1 not enough memory for the allocation\n")
        .unwrap();
    gatherer.tick(start);
    let line = crate::verdict::LogFact::CommitRefused { pid: 700 };
    assert_eq!(log(&mut gatherer, start + Duration::from_secs(1)), [line]);
    assert_eq!(log(&mut gatherer, start + Duration::from_secs(3)), []);
}

#[test]
fn a_descendants_refusal_is_mended_at_the_server() {
    let fake = tree();
    fake.write("proc/900/cgroup", "0::/\n");
    let mut gatherer = Gatherer::new(fake.root().clone());
    let mut refused = attempt(-libc::EAGAIN);
    refused.tgid = 900;
    refused.watched = 700;
    let start = Instant::now();
    assert_eq!(gatherer.facts(&refused, start).pid, 700);
    assert_eq!(gatherer.facts(&attempt(-libc::EAGAIN), start).pid, 700);
    // What nobody says the end of is forgotten by its age.
    assert_eq!(gatherer.quick.len(), 2);
    gatherer.tick(start + FRESH / 2);
    assert_eq!(gatherer.quick.len(), 2);
    gatherer.tick(start + FRESH);
    assert!(gatherer.quick.is_empty());
}

#[test]
fn large_backends_are_not_walked() {
    let fake = FakeRoot::new();
    fake.write("proc/sys/vm/overcommit_memory", "2\n");
    let resident = |pid: u32, bytes: u64| {
        fake.process(&crate::host::fake::FakeProcess {
            parent: if pid == 700 { 1 } else { 700 },
            ..crate::host::fake::FakeProcess::new(pid)
        });
        fake.write(
            format!("proc/{pid}/status"),
            format!("Tgid:\t{pid}\nPid:\t{pid}\nPPid:\t700\nUid:\t1\t1\t1\t1\nThreads:\t1\nVmRSS:\t{} kB\n", bytes >> 10),
        );
        fake.write(
            format!("proc/{pid}/smaps"),
            format!("Size: {} kB\nVmFlags: rd wr mr mw me ac\n", pid),
        );
    };
    resident(700, 1 << 20);
    resident(701, 600 << 20);
    resident(702, 64 << 30);
    resident(703, 300 << 20);
    let mut gatherer = Gatherer::new(fake.root().clone());
    let cost = gatherer.backends(700, Instant::now());
    assert_eq!(cost.children, 3);
    assert_eq!(cost.commit_bytes, Some(703 << 10), "of 701 and 703");
    assert!(gatherer.charge(700, Instant::now()).is_some());
    resident(700, 64 << 30);
    gatherer.forget(700);
    assert_eq!(gatherer.charge(700, Instant::now()), None);
}

#[test]
fn the_unit_of_a_users_own_manager_is_named_by_its_file() {
    let fake = FakeRoot::new();
    fake.write(
        "proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    );
    let user = "/user.slice/user-1000.slice/user@1000.service";
    for (pid, path, unit) in [
        (
            700,
            "/system.slice/pg.service".to_owned(),
            Some("pg.service"),
        ),
        (701, user.to_owned(), Some("user@1000.service")),
        (702, format!("{user}/app.slice/pg.service"), None),
    ] {
        fake.write(format!("proc/{pid}/cgroup"), format!("0::{path}\n"));
        fake.write(format!("sys/fs/cgroup{path}/pids.max"), "10\n");
        fake.write(format!("sys/fs/cgroup{path}/pids.current"), "10\n");
        let mut gatherer = Gatherer::new(fake.root().clone());
        let facts = gatherer.facts_of(pid, Instant::now());
        let own = &facts.cgroups[0];
        assert_eq!(own.path, path);
        assert_eq!(own.unit.as_ref().map(|it| it.name.as_str()), unit);
        assert_eq!(facts.unit.as_deref(), unit);
    }
}

/// A server that has ended by its refused fork.
#[test]
fn cgroups_of_one_that_is_gone_are_those_it_was_met_in() {
    let fake = FakeRoot::new();
    fake.write(
        "proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
    );
    fake.write("proc/700/cgroup", "0::/system.slice/pg.service\n");
    fake.write("sys/fs/cgroup/system.slice/pg.service/pids.max", "10\n");
    fake.write("sys/fs/cgroup/system.slice/pg.service/pids.current", "10\n");
    let mut gatherer = Gatherer::new(fake.root().clone());
    gatherer.meet(700);
    fake.remove("proc/700/cgroup");
    let now = Instant::now();
    let facts = gatherer.facts(&attempt(-libc::EAGAIN), now);
    assert_eq!(facts.cgroups[0].path, "/system.slice/pg.service");
    gatherer.forget(700);
    let facts = gatherer.facts(&attempt(-libc::EAGAIN), now);
    assert!(facts.cgroups.is_empty());
}

#[test]
fn this_process_has_a_normal_policy() {
    assert_eq!(reset_on_fork(std::process::id()), Some(false));
}
