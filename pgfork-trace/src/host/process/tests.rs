use super::super::fake::{FakeProcess, FakeRoot};
use super::super::read::Ceiling;
use super::*;

const PID: Pid = 4711;

fn one(process: FakeProcess) -> FakeRoot {
    let fake = FakeRoot::new();
    fake.process(&process);
    fake
}

#[test]
fn everything_about_one_process() {
    let fake = one(FakeProcess {
        ns_pids: vec![PID, 12, 1],
        parent: 9,
        ..FakeProcess::new(PID)
    });
    fake.write("proc/4711/cmdline", "/bin/sh\0-c\0\0x\0");
    fake.write("proc/4711/oom_score_adj", "-1000\n");
    let facts = any_process(fake.root(), PID).unwrap().unwrap();
    assert_eq!(
        facts.id,
        ProcessId {
            pid: PID,
            start_ticks: 471_100
        }
    );
    assert_eq!(facts.stat.parent, 9);
    assert_eq!(facts.stat.comm, "sh");
    assert_eq!(facts.exe.unwrap().path, Path::new("/bin/sh"));
    assert_eq!(facts.cmdline, ["/bin/sh", "-c", "", "x"]);
    assert_eq!(facts.status.ns_pids, [PID, 12, 1]);
    assert_eq!(facts.status.uids.real, 26);
    assert_eq!(facts.status.seccomp, Some(Seccomp::Filter));
    assert_eq!(facts.status.vm_data_bytes, Some(40 << 10));
    assert_eq!(facts.status.vm_stack_bytes, None);
    assert_eq!(facts.limits, None);
    assert_eq!(facts.oom_score_adj, Some(-1000));
    assert_eq!(facts.namespaces.user, Some(INITIAL_USER_NS));
    assert_eq!(facts.namespaces.net, None);
}

#[test]
fn absent_processes_and_files_are_none() {
    let fake = FakeRoot::new();
    let root = fake.root();
    assert_eq!(any_process(root, PID).unwrap(), None);
    assert_eq!(stat(root, PID).unwrap(), None);
    assert_eq!(status(root, PID).unwrap(), None);
    assert_eq!(limits(root, PID).unwrap(), None);
    assert_eq!(accounted(root, PID).unwrap(), None);
    assert_eq!(exe(root, PID), None);
    assert_eq!(cmdline(root, PID).unwrap(), Vec::<OsString>::new());
    assert_eq!(oom_score_adj(root, PID).unwrap(), None);
    assert_eq!(namespaces(&root.pid(PID)), Namespaces::default());
    assert!(
        !still(
            root,
            ProcessId {
                pid: PID,
                start_ticks: 0
            }
        )
        .unwrap()
    );
}

#[test]
fn a_name_may_imitate_the_fields_after_it() {
    let hostile: &[&[u8]] = &[b") R 1 (", b"a b\nc", b"\xff\xfe\x1b[2J", b"", b")))"];
    for &comm in hostile {
        let fake = one(FakeProcess {
            comm: comm.to_vec(),
            parent: 77,
            state: 'D',
            ..FakeProcess::new(PID)
        });
        let stat = stat(fake.root(), PID).unwrap().unwrap();
        assert_eq!(stat.comm.as_bytes(), comm);
        assert_eq!((stat.parent, stat.state), (77, 'D'));
        assert_eq!(stat.start_ticks, 471_100);
    }
}

#[test]
fn broken_stat_files_are_errors_not_panics() {
    let fake = FakeRoot::new();
    for broken in [
        "",
        "(",
        ")",
        ")(",
        "1 (x",
        "1 (x)",
        "1 (x) S",
        "1 (x) S 1 1 1",
        "1 (x) S -5 1 1 0 -1 0",
    ] {
        fake.write("proc/4711/stat", broken);
        let error = stat(fake.root(), PID).unwrap_err().to_string();
        assert!(
            error.contains("4711/stat\":1: expected pid (comm)"),
            "{error}"
        );
    }
}

#[test]
fn broken_status_files_are_errors_with_a_line() {
    let fake = one(FakeProcess::new(PID));
    for (text, place) in [
        ("PPid:\t1\nUid:\t1\t2\t3\n", ":2: expected four user ids"),
        (
            "PPid:\t1\nUid:\t1 2 3 4294967296\n",
            ":2: expected four user ids",
        ),
        (
            "PPid:\t1\nUid:\t1 2 3 4\n",
            ":3: expected lines PPid, Uid and Threads",
        ),
        ("Threads:\t-1\n", ":1: expected a number"),
        ("CapEff:\tzz\n", ":1: expected a hexadecimal number"),
        ("NSpid:\t1 x\n", ":1: expected pids"),
        (
            "VmData:\t99999999999999999999 kB\n",
            ":1: expected a number of kB",
        ),
        ("", ":1: expected lines PPid"),
    ] {
        fake.write("proc/4711/status", text);
        let error = status(fake.root(), PID).unwrap_err().to_string();
        assert!(error.contains(place), "{text:?}: {error}");
    }
}

#[test]
fn status_lines_of_any_bytes_are_passed_over() {
    let fake = FakeRoot::new();
    fake.write(
        "proc/4711/status",
        b"Name:\t\xff\xfe:\\n\nno colon\nPPid:\t1\nUid:\t1 2 3 4\nThreads:\t5\nNew_in_9.9:\tx\n",
    );
    let status = status(fake.root(), PID).unwrap().unwrap();
    assert_eq!((status.threads, status.uids.filesystem), (5, 4));
    assert_eq!(
        (status.tgid, status.cap_effective, status.seccomp),
        (None, None, None)
    );
}

#[test]
fn a_deleted_executable_keeps_its_name() {
    let fake = one(FakeProcess {
        exe: Some(b"/usr/bin/postgres (deleted)".to_vec()),
        ..FakeProcess::new(PID)
    });
    let found = exe(fake.root(), PID).unwrap();
    assert_eq!(
        (found.path.as_path(), found.deleted),
        (Path::new("/usr/bin/postgres"), true)
    );
}

#[test]
fn a_title_is_one_argument_of_any_bytes() {
    let fake = FakeRoot::new();
    fake.write(
        "proc/4711/cmdline",
        b"postgres: app \x1b[31m\xff idle\0\0\0\0\0",
    );
    let title = cmdline(fake.root(), PID).unwrap();
    assert_eq!(title.len(), 1);
    assert_eq!(title[0].as_bytes(), b"postgres: app \x1b[31m\xff idle");
    fake.write("proc/4711/cmdline", vec![b'x'; 1 << 20]);
    assert_eq!(cmdline(fake.root(), PID).unwrap()[0].len(), 4096);
    fake.write("proc/4711/cmdline", "");
    assert!(cmdline(fake.root(), PID).unwrap().is_empty());
}

#[test]
fn limits_are_numbers_or_unlimited() {
    let fake = FakeRoot::new();
    fake.write(
        "proc/4711/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max cpu time              unlimited            unlimited            seconds   \n\
         Max data size             1024                 unlimited            bytes     \n\
         Max processes             512                  1024                 processes \n\
         Max nice priority         0                    0                    \n",
    );
    let found = limits(fake.root(), PID).unwrap().unwrap();
    let processes = found.processes.unwrap();
    assert_eq!(processes.soft, Ceiling::At(512));
    assert_eq!(processes.hard.value(), Some(1024));
    assert_eq!(found.data_bytes.unwrap().hard, Ceiling::Unlimited);
    assert_eq!(found.stack_bytes, None);
    fake.write("proc/4711/limits", "Max processes 1\n");
    let error = limits(fake.root(), PID).unwrap_err().to_string();
    assert!(
        error.contains(":1: expected soft and hard limit"),
        "{error}"
    );
}

#[test]
fn only_accounted_mappings_that_are_copied_cost_something() {
    let fake = FakeRoot::new();
    let mapping = |kilobytes: u64, flags: &str| {
        format!(
            "55d0c4e00000-55d0c4e21000 rw-p 00000000 00:00 0   [heap]\nSize: {kilobytes:>14} kB\n\
             Rss:   4 kB\nVmFlags: {flags} \n"
        )
    };
    let smaps = [
        mapping(132, "rd wr mr mw me ac sd"),
        mapping(8_388_608, "rd wr sh mr mw me ms sd"),
        mapping(64, "rd wr mr mw me dc ac sd"),
        mapping(2048, "rd mr mw me ac"),
        mapping(16, "rd ex mr mw me"),
    ];
    fake.write("proc/4711/smaps", smaps.concat());
    let found = accounted(fake.root(), PID).unwrap().unwrap();
    assert_eq!(found.total_bytes, (132 + 2048) * 1024);
    assert_eq!((found.largest_bytes, found.mappings), (2048 * 1024, 2));
    fake.write("proc/4711/smaps", "");
    assert_eq!(
        accounted(fake.root(), PID).unwrap(),
        Some(Accounted::default())
    );
    fake.write("proc/4711/smaps", "a\nSize: huge kB\n");
    assert!(accounted(fake.root(), PID).is_err());
}

fn crowd() -> FakeRoot {
    let fake = FakeRoot::new();
    let named = |pid, comm: &[u8], uid, threads| FakeProcess {
        comm: comm.to_vec(),
        uid,
        threads,
        ..FakeProcess::new(pid)
    };
    fake.process(&named(1, b"systemd", 0, 1));
    fake.process(&named(10, b"postgres", 26, 1));
    fake.process(&named(11, b"postgres", 26, 1));
    fake.process(&named(12, b"java", 26, 40));
    fake.process(&FakeProcess {
        state: 'Z',
        ..named(13, b"leak", 26, 1)
    });
    fake.process(&FakeProcess {
        user_ns: 77,
        ..named(14, b"postgres", 26, 2)
    });
    // Ended between listing and reading; and one that makes no sense.
    fake.write("proc/15/comm", "gone");
    fake.write("proc/16/status", "?");
    fake
}

#[test]
fn tasks_of_a_user_are_threads_and_zombies() {
    let fake = crowd();
    let all = tasks_of_uid(fake.root(), 26, None).unwrap();
    assert_eq!(
        (all.tasks, all.processes, all.unknown_namespace),
        (45, 5, 0)
    );
    let one = tasks_of_uid(fake.root(), 26, Some(INITIAL_USER_NS)).unwrap();
    assert_eq!((one.tasks, one.processes), (43, 4));
    fake.remove("proc/12/ns/user");
    let one = tasks_of_uid(fake.root(), 26, Some(INITIAL_USER_NS)).unwrap();
    assert_eq!((one.tasks, one.unknown_namespace), (3, 40));
    assert_eq!(
        tasks_of_uid(fake.root(), 9, None).unwrap(),
        TaskCount::default()
    );
}

#[test]
fn tasks_by_name_come_most_first() {
    let fake = crowd();
    let top = tasks_by_comm_of_uid(fake.root(), 26, 2).unwrap();
    assert_eq!(top, [("java".into(), 40), ("postgres".into(), 4)]);
    assert_eq!(tasks_by_comm_of_uid(fake.root(), 26, 9).unwrap().len(), 3);
}

#[test]
fn a_missing_proc_is_an_error() {
    let fake = FakeRoot::new();
    fake.remove("proc");
    assert!(pids(fake.root()).is_err());
    assert!(tasks_of_uid(fake.root(), 0, None).is_err());
}

#[test]
fn age_needs_the_uptime() {
    let id = ProcessId {
        pid: PID,
        start_ticks: 250,
    };
    assert_eq!(id.age(Duration::from_secs(10)), Duration::from_millis(7500));
    assert_eq!(id.age(Duration::from_secs(1)), Duration::ZERO);
    let absurd = ProcessId {
        pid: PID,
        start_ticks: u64::MAX,
    };
    assert_eq!(absurd.age(Duration::from_secs(1)), Duration::ZERO);
}

#[test]
fn a_reused_pid_is_another_process() {
    let fake = one(FakeProcess::new(PID));
    let id = ProcessId {
        pid: PID,
        start_ticks: 471_100,
    };
    assert!(still(fake.root(), id).unwrap());
    fake.process(&FakeProcess {
        start_ticks: 471_101,
        ..FakeProcess::new(PID)
    });
    assert!(!still(fake.root(), id).unwrap());
}

#[test]
fn this_very_process() {
    let root = Root::default();
    let pid = std::process::id();
    let facts = any_process(&root, pid).unwrap().unwrap();
    assert_eq!(facts.status.tgid, Some(pid));
    assert_eq!(facts.stat.parent, facts.status.parent);
    assert_eq!(facts.exe.unwrap().path, std::env::current_exe().unwrap());
    assert_eq!(facts.cmdline.len(), std::env::args_os().count());
    assert!(facts.limits.unwrap().processes.is_some());
    assert!(facts.namespaces.pid.is_some() && facts.namespaces.user.is_some());
    assert!(!facts.stat.kernel_thread);
    let uptime = super::super::uptime(&root).unwrap().unwrap();
    assert!(facts.id.age(uptime) < Duration::from_secs(3600));
    let cost = accounted(&root, pid).unwrap().unwrap();
    assert!(cost.total_bytes >= cost.largest_bytes && cost.largest_bytes > 0);
    let uid = facts.status.uids.real;
    let tasks = tasks_of_uid(&root, uid, facts.namespaces.user).unwrap();
    assert!(tasks.tasks >= facts.status.threads);
    assert!(!tasks_by_comm_of_uid(&root, uid, 3).unwrap().is_empty());
}
