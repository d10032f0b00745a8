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
fn this_process_has_a_normal_policy() {
    assert_eq!(reset_on_fork(std::process::id()), Some(false));
}
