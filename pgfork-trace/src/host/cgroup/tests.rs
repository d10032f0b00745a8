use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::fake::{FakeProcess, FakeRoot};
use super::super::read::Ceiling;
use super::*;

const PID: Pid = 50;
const V2_MOUNT: &str = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

fn with(cgroup: &[u8], mountinfo: &str) -> FakeRoot {
    let fake = FakeRoot::new();
    fake.process(&FakeProcess {
        cgroup: cgroup.to_vec(),
        ..FakeProcess::new(PID)
    });
    fake.write("proc/self/mountinfo", mountinfo);
    fake.link("proc/self/ns/cgroup", "cgroup:[4026531835]");
    fake
}

fn pids_chain(fake: &FakeRoot) -> Chain {
    chain(fake.root(), PID, Controller::Pids).unwrap().unwrap()
}

fn paths(chain: &Chain) -> Vec<&str> {
    chain
        .levels
        .iter()
        .map(|level| level.path.to_str().unwrap())
        .collect()
}

#[test]
fn v2_from_the_process_to_the_root() {
    let fake = with(b"0::/system.slice/pg.service\n", V2_MOUNT);
    let dir = "sys/fs/cgroup/system.slice";
    fake.write(format!("{dir}/pg.service/pids.current"), "511\n");
    fake.write(format!("{dir}/pg.service/pids.max"), "512\n");
    fake.write(format!("{dir}/pg.service/pids.events"), "max 7\n");
    fake.write(format!("{dir}/pg.service/pids.events.local"), "max 3\n");
    fake.write(format!("{dir}/pids.max"), "max\n");
    let chain = pids_chain(&fake);
    assert_eq!((chain.version, chain.reach), (Version::V2, Reach::Root));
    assert_eq!(
        paths(&chain),
        ["/system.slice/pg.service", "/system.slice", "/"]
    );
    let own = chain.levels[0].pids;
    assert_eq!((own.current, own.max), (Some(511), Some(Ceiling::At(512))));
    assert_eq!((own.events_max, own.events_local_max), (Some(7), Some(3)));
    assert_eq!(chain.levels[1].pids.max, Some(Ceiling::Unlimited));
    assert_eq!(chain.levels[2].pids, PidsFacts::default());
    assert_eq!(chain.levels[0].memory, MemoryFacts::default());
    let inode = fake.path(dir).metadata().unwrap().ino();
    assert_eq!(
        resolve_id(&chain, inode).unwrap().path,
        Path::new("/system.slice")
    );
    assert_eq!(resolve_id(&chain, 0), None);
}

#[test]
fn v2_memory() {
    let fake = with(b"0::/db\n", V2_MOUNT);
    for (file, content) in [
        ("memory.current", "4096\n"),
        ("memory.max", "max\n"),
        ("memory.high", "8192\n"),
        ("memory.swap.max", "0\n"),
        (
            "memory.events",
            "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n",
        ),
        ("memory.oom.group", "1\n"),
    ] {
        fake.write(format!("sys/fs/cgroup/db/{file}"), content);
    }
    let chain = chain(fake.root(), PID, Controller::Memory)
        .unwrap()
        .unwrap();
    let memory = chain.levels[0].memory;
    assert_eq!(memory.current_bytes, Some(4096));
    assert_eq!(memory.max_bytes, Some(Ceiling::Unlimited));
    assert_eq!(memory.high_bytes, Some(Ceiling::At(8192)));
    assert_eq!(memory.swap_max_bytes, Some(Ceiling::At(0)));
    assert_eq!(
        (memory.events_max, memory.events_oom, memory.events_oom_kill),
        (Some(2), Some(3), Some(4))
    );
    assert_eq!(
        (memory.events_high, memory.oom_group),
        (Some(1), Some(true))
    );
    assert_eq!(memory.kmem_max_bytes, None);
    // What happened below is not this level's.
    fake.write(
        "sys/fs/cgroup/db/memory.events.local",
        "high 0\nmax 1\noom 0\noom_kill 0\n",
    );
    let chain = super::chain(fake.root(), PID, Controller::Memory)
        .unwrap()
        .unwrap();
    let memory = chain.levels[0].memory;
    assert_eq!(
        (memory.events_max, memory.events_oom_kill),
        (Some(1), Some(0))
    );
}

const V1_CGROUP: &[u8] =
    b"9:name=systemd:/system.slice/pg.service\n8:pids:/system.slice/pg.service\n\
    4:memory:/db\n2:cpu,cpuacct:/\n0::/elsewhere\n";
const V1_MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755\n\
    35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
    39 31 0:36 / /sys/fs/cgroup/pids rw shared:12 master:1 - cgroup cgroup rw,pids\n\
    41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

#[test]
fn hybrid_takes_the_hierarchy_that_has_the_controller() {
    let fake = with(V1_CGROUP, V1_MOUNTS);
    fake.write(
        "sys/fs/cgroup/pids/system.slice/pg.service/pids.max",
        "100\n",
    );
    fake.write(
        "sys/fs/cgroup/pids/system.slice/pg.service/pids.events",
        "max 1\n",
    );
    let chain = pids_chain(&fake);
    assert_eq!((chain.version, chain.reach), (Version::V1, Reach::Root));
    assert_eq!(
        paths(&chain),
        ["/system.slice/pg.service", "/system.slice", "/"]
    );
    assert_eq!(chain.levels[0].pids.max, Some(Ceiling::At(100)));
    assert_eq!(chain.levels[0].pids.events_max, Some(1));
    assert_eq!(
        chain.levels[0].directory,
        fake.path("sys/fs/cgroup/pids/system.slice/pg.service")
    );
}

#[test]
fn v1_memory_ends_where_a_parent_counts_itself_only() {
    let fake = with(V1_CGROUP, V1_MOUNTS);
    let levels = |root: &str| {
        fake.write("sys/fs/cgroup/memory/db/memory.limit_in_bytes", "4096\n");
        fake.write("sys/fs/cgroup/memory/memory.use_hierarchy", root);
        let chain = chain(fake.root(), PID, Controller::Memory).unwrap();
        paths(&chain.unwrap()).len()
    };
    assert_eq!(levels("1\n"), 2);
    assert_eq!(levels("0\n"), 1);
    // The own cgroup counts the process, whatever it says of others.
    fake.write("sys/fs/cgroup/memory/db/memory.use_hierarchy", "0\n");
    assert_eq!(levels("1\n"), 2);
}

#[test]
fn v1_memory_has_its_own_names_and_its_own_infinity() {
    let fake = with(V1_CGROUP, V1_MOUNTS);
    let dir = "sys/fs/cgroup/memory/db";
    for (file, content) in [
        ("memory.usage_in_bytes", "1000\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.limit_in_bytes", "9223372036854710272\n"),
        ("memory.kmem.limit_in_bytes", "2000\n"),
        ("memory.kmem.usage_in_bytes", "1999\n"),
        ("memory.failcnt", "6\n"),
        ("memory.kmem.failcnt", "7\n"),
        ("memory.memsw.failcnt", "8\n"),
        ("memory.memsw.usage_in_bytes", "1500\n"),
        (
            "memory.oom_control",
            "oom_kill_disable 1\nunder_oom 0\noom_kill 9\n",
        ),
    ] {
        fake.write(format!("{dir}/{file}"), content);
    }
    let chain = chain(fake.root(), PID, Controller::Memory)
        .unwrap()
        .unwrap();
    assert_eq!(paths(&chain), ["/db", "/"]);
    let memory = chain.levels[0].memory;
    assert_eq!(memory.current_bytes, Some(1000));
    assert_eq!(memory.max_bytes, Some(Ceiling::Unlimited));
    assert_eq!(memory.memsw_max_bytes, Some(Ceiling::Unlimited));
    assert_eq!(memory.kmem_max_bytes, Some(Ceiling::At(2000)));
    assert_eq!(memory.kmem_current_bytes, Some(1999));
    assert_eq!(memory.oom_kill_disable, Some(true));
    assert_eq!(
        (memory.events_max, memory.events_oom_kill),
        (Some(6), Some(9))
    );
    assert_eq!(
        (memory.events_kmem, memory.events_memsw),
        (Some(7), Some(8))
    );
    assert_eq!(memory.memsw_current_bytes, Some(1500));
}

#[test]
fn in_a_container_without_its_own_cgroup_namespace() {
    let mount = "31 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    let fake = with(b"0::/docker/abc/x\n", mount);
    fake.write("sys/fs/cgroup/x/pids.max", "5\n");
    let inside = pids_chain(&fake);
    assert_eq!(inside.reach, Reach::Partial);
    assert_eq!(paths(&inside), ["/docker/abc/x", "/docker/abc"]);
    assert_eq!(inside.levels[0].pids.max, Some(Ceiling::At(5)));
    let fake = with(b"0::/docker/abcdef\n", mount);
    let outside = pids_chain(&fake);
    assert_eq!((outside.reach, outside.levels.len()), (Reach::Outside, 0));
    assert_eq!(outside.path, Path::new("/docker/abcdef"));
}

#[test]
fn in_a_container_with_its_own_cgroup_namespace() {
    let fake = with(b"0::/x\n", V2_MOUNT);
    fake.link("proc/self/ns/cgroup", "cgroup:[4026532999]");
    assert_eq!(pids_chain(&fake).reach, Reach::Partial);
    let fake = with(b"0::/../other\n", V2_MOUNT);
    assert_eq!(pids_chain(&fake).reach, Reach::Outside);
    // The host's hierarchy is mounted as well: it shows more, but not what the names between are.
    let host = format!("{V2_MOUNT}40 23 0:28 /../.. /host/cgroup rw - cgroup2 cgroup2 rw\n");
    let fake = with(b"0::/../../system.slice/pg.service\n", &host);
    fake.write("host/cgroup/system.slice/pids.max", "9\n");
    let chain = pids_chain(&fake);
    assert_eq!(chain.reach, Reach::Partial);
    assert_eq!(chain.levels.len(), 3);
    assert_eq!(chain.levels[1].pids.max, Some(Ceiling::At(9)));
    assert_eq!(
        chain.levels[1].directory,
        fake.path("host/cgroup/system.slice")
    );
}

#[test]
fn of_two_mounts_the_one_with_more_levels() {
    let part = "40 23 0:28 /system.slice /mnt/part rw - cgroup2 cgroup2 rw\n";
    for mounts in [format!("{part}{V2_MOUNT}"), format!("{V2_MOUNT}{part}")] {
        let fake = with(b"0::/system.slice/pg.service\n", &mounts);
        let chain = pids_chain(&fake);
        assert_eq!((chain.levels.len(), chain.reach), (3, Reach::Root));
    }
}

#[test]
fn nothing_mounted_and_nothing_there() {
    let fake = with(b"0::/x\n", "22 27 0:21 / /proc rw - proc proc rw\n");
    assert_eq!(pids_chain(&fake).reach, Reach::NotMounted);
    let fake = with(b"3:cpu:/x\n", V2_MOUNT);
    assert_eq!(pids_chain(&fake).reach, Reach::NoController);
    let fake = with(b"", V2_MOUNT);
    assert_eq!(pids_chain(&fake).reach, Reach::NoController);
    assert_eq!(chain(fake.root(), 51, Controller::Pids).unwrap(), None);
    fake.remove("proc/self/mountinfo");
    assert_eq!(mounts(fake.root()).unwrap(), []);
}

#[test]
fn a_removed_cgroup_is_marked_and_has_no_numbers() {
    let fake = with(b"0::/gone (deleted)\n", V2_MOUNT);
    let found = memberships(fake.root(), PID).unwrap().unwrap();
    assert_eq!(
        (found[0].path.as_path(), found[0].deleted),
        (Path::new("/gone"), true)
    );
    let chain = pids_chain(&fake);
    assert_eq!(
        (chain.levels[0].inode, chain.levels[0].pids),
        (None, PidsFacts::default())
    );
    // On v1 this is a name.
    let fake = with(b"8:pids:/odd (deleted)\n", V1_MOUNTS);
    let found = memberships(fake.root(), PID).unwrap().unwrap();
    assert_eq!(
        (found[0].path.as_path(), found[0].deleted),
        (Path::new("/odd (deleted)"), false)
    );
}

#[test]
fn names_of_any_bytes() {
    let fake = with(b"0::/a:b \x1b[2J\xff\n", V2_MOUNT);
    let chain = pids_chain(&fake);
    assert_eq!(chain.path.as_os_str().as_bytes(), b"/a:b \x1b[2J\xff");
    assert_eq!(chain.levels.len(), 2);
    let info = "31 23 0:28 / /sys/fs/my\\040cg\\134x rw - cgroup2  rw\n";
    let fake = with(b"0::/\n", info);
    assert_eq!(
        mounts(fake.root()).unwrap()[0].mount_point,
        Path::new("/sys/fs/my cg\\x")
    );
}

#[test]
fn nonsense_is_an_error_with_a_place() {
    for odd in ["x", "0:", "0::relative", "-1::/", "99999999999::/"] {
        let fake = with(format!("0::/\n{odd}\n").as_bytes(), V2_MOUNT);
        let error = memberships(fake.root(), PID).unwrap_err().to_string();
        assert!(
            error.contains("cgroup\":2: expected number:controllers:/path"),
            "{error}"
        );
    }
    for odd in ["-3", "infinite", "18446744073709551616", ""] {
        let fake = with(b"0::/db\n", V2_MOUNT);
        fake.write("sys/fs/cgroup/db/pids.max", odd);
        fake.write("sys/fs/cgroup/db/pids.current", "5\n");
        fake.write("sys/fs/cgroup/db/pids.events", "max\n");
        fake.write("sys/fs/cgroup/pids.max", "9\n");
        let chain = pids_chain(&fake);
        let [max, events] = &chain.unread[..] else {
            panic!("{:?}", chain.unread)
        };
        assert!(
            max.contains("pids.max\":1: expected a number or \"max\""),
            "{max}"
        );
        assert!(events.contains("pids.events"), "{events}");
        // It takes nothing else with it.
        assert_eq!(chain.levels[0].pids.current, Some(5));
        assert_eq!(chain.levels[1].pids.max, Some(Ceiling::At(9)));
    }
}

#[test]
fn odd_mount_lines_are_passed_over() {
    let long = format!(
        "1 1 0:1 / /x rw - overlay overlay rw,lowerdir={}\n",
        "y".repeat(40_000)
    );
    let fake = with(
        b"0::/\n",
        &format!("\n1\n1 2 3 4 5 6 7\n- - - -\n{long}{V2_MOUNT}"),
    );
    assert_eq!(mounts(fake.root()).unwrap().len(), 1);
}

#[test]
fn this_very_process() {
    let root = Root::default();
    let found = chain(&root, std::process::id(), Controller::Pids)
        .unwrap()
        .unwrap();
    if found.reach == Reach::Root {
        assert_eq!(
            found.levels.last().unwrap().inode,
            Some(1),
            "the root is node 1 of its kernfs"
        );
    }
    assert!(
        !memberships(&root, std::process::id())
            .unwrap()
            .unwrap()
            .is_empty()
    );
}
