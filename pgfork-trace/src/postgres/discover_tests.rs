use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::host::fake::{FakeProcess, FakeRoot};

fn cluster(fake: &FakeRoot, pid: Pid, directory: &str, port: u16) {
    fake.process(&FakeProcess::postgres(pid, directory));
    fake.data_dir(directory, &format!("/{directory}"), i64::from(pid), port);
}

fn backend(pid: Pid, parent: Pid, directory: &str) -> FakeProcess {
    FakeProcess {
        parent,
        ..FakeProcess::postgres(pid, directory)
    }
}

/// Process 1 and a shell, so that the tree looks like one.
fn host() -> FakeRoot {
    let fake = FakeRoot::new();
    fake.process(&FakeProcess::new(1));
    fake.process(&FakeProcess::new(2));
    fake
}

fn why(fake: &FakeRoot, pid: Pid) -> Why {
    match identify(fake.root(), pid).unwrap() {
        Identity::Candidate(candidate) => candidate.why,
        other => panic!("{other:?}"),
    }
}

fn is_postmaster(fake: &FakeRoot, pid: Pid) -> bool {
    matches!(identify(fake.root(), pid).unwrap(), Identity::Postmaster(_))
}

#[test]
fn two_postmasters_with_children_between_other_processes() {
    let fake = host();
    cluster(&fake, 300, "pg/b", 5433);
    cluster(&fake, 100, "pg/a", 5432);
    for pid in 101..111 {
        fake.process(&backend(pid, 100, "pg/a"));
    }
    fake.process(&FakeProcess {
        flags: 0x0020_8040,
        exe: None,
        comm: b"postgres".to_vec(),
        ..FakeProcess::new(3)
    });
    fake.write("proc/4/comm", "ended");
    fake.write("proc/5/stat", "nonsense");
    let found = discover(fake.root()).unwrap();
    let names: Vec<_> = found.postmasters.iter().map(|p| (p.pid, p.port)).collect();
    assert_eq!(names, [(100, Some(5432)), (300, Some(5433))]);
    assert_eq!((found.children, found.candidates.len()), (10, 0));
    let skipped = found.skipped;
    assert_eq!(
        (skipped.kernel_threads, skipped.vanished, skipped.unreadable),
        (1, 1, 1)
    );
    assert_eq!(found.hidden, None);
}

#[test]
fn a_postmaster_in_a_unit() {
    let fake = host();
    let unit = "/system.slice/system-postgresql.slice/postgresql@15-main.service";
    fake.process(&FakeProcess {
        cgroup: format!("0::{unit}\n").into_bytes(),
        exe: Some(b"/usr/lib/postgresql/15/bin/postgres (deleted)".to_vec()),
        ..FakeProcess::postgres(100, "pg")
    });
    fake.data_dir("pg", "/var/lib/postgresql/15/main", 100, 5432);
    let found = discover(fake.root()).unwrap().postmasters.remove(0);
    assert_eq!((found.pid, found.ns_pid, found.uid), (100, 100, 26));
    assert_eq!(found.data_dir, Path::new("/var/lib/postgresql/15/main"));
    assert_eq!(found.version.as_deref(), Some("15"));
    assert_eq!(found.lock_file.status.as_deref(), Some("ready"));
    assert_eq!(found.cgroup.as_deref(), Some(Path::new(unit)));
    assert_eq!(
        found.unit.as_ref().unwrap().unit,
        "postgresql@15-main.service"
    );
    assert_eq!(found.container, None);
    assert!(found.exe.as_ref().unwrap().deleted);
    assert_eq!(found.id().start_ticks, 10_000);
    assert_eq!(found.age(Duration::from_secs(160)), Duration::from_secs(60));
}

#[test]
fn a_postmaster_in_a_container_numbers_itself() {
    let fake = host();
    let id = "7f".repeat(32);
    fake.process(&FakeProcess {
        ns_pids: vec![2210, 1],
        mnt_ns: 77,
        cgroup: format!("0::/system.slice/docker-{id}.scope\n").into_bytes(),
        ..FakeProcess::postgres(2210, "pg")
    });
    fake.data_dir("pg", "/var/lib/postgresql/data", 1, 5432);
    let found = discover(fake.root()).unwrap().postmasters.remove(0);
    assert_eq!((found.pid, found.ns_pid), (2210, 1));
    assert_eq!(found.container.unwrap().id, id);
    // By the pid outside, the file would be that of another process.
    fake.data_dir("pg", "/var/lib/postgresql/data", 2210, 5432);
    assert_eq!(why(&fake, 2210), Why::OtherPid(2210));
}

#[test]
fn on_v1_the_unit_may_be_known_to_systemds_hierarchy_only() {
    let fake = host();
    fake.process(&FakeProcess {
        cgroup: b"9:name=systemd:/system.slice/pg.service\n8:pids:/\n0::/\n".to_vec(),
        ..FakeProcess::postgres(100, "pg")
    });
    fake.data_dir("pg", "/pg", 100, 5432);
    let found = discover(fake.root()).unwrap().postmasters.remove(0);
    assert_eq!(found.unit.unwrap().unit, "pg.service");
    assert_eq!(found.cgroup.as_deref(), Some(Path::new("/")));
}

#[test]
fn all_names_of_the_server_and_no_others() {
    for (exe, expected) in [
        ("/usr/bin/postmaster", true),
        ("/usr/edb/as15/bin/edb-postgres", true),
        ("/opt/pg/bin/postgres", true),
        ("/usr/bin/postgres_exporter", false),
        ("/usr/bin/pgbouncer", false),
        ("/usr/bin/pg_ctl", false),
        ("/postgres/sh", false),
    ] {
        let fake = host();
        fake.process(&FakeProcess {
            exe: Some(exe.into()),
            ..FakeProcess::postgres(100, "pg")
        });
        fake.data_dir("pg", "/pg", 100, 5432);
        assert_eq!(is_postmaster(&fake, 100), expected, "{exe}");
    }
}

#[test]
fn the_name_counts_only_without_an_executable() {
    let fake = host();
    fake.data_dir("pg", "/pg", 100, 5432);
    let named = FakeProcess {
        exe: None,
        ..FakeProcess::postgres(100, "pg")
    };
    fake.process(&named);
    assert!(is_postmaster(&fake, 100));
    fake.process(&FakeProcess {
        comm: b"postgre\xff".to_vec(),
        ..named
    });
    assert!(!is_postmaster(&fake, 100));
    // An imitation by name alone.
    fake.process(&FakeProcess {
        exe: Some(b"/bin/sh".to_vec()),
        ..FakeProcess::postgres(100, "pg")
    });
    assert!(!is_postmaster(&fake, 100));
}

#[test]
fn children_are_told_by_executable_and_mount_namespace() {
    let fake = host();
    cluster(&fake, 100, "pg", 5432);
    fake.process(&backend(101, 100, "pg"));
    assert_eq!(
        identify(fake.root(), 101).unwrap(),
        Identity::Child { parent: 100 }
    );
    fake.process(&FakeProcess {
        exe: None,
        ..backend(102, 100, "pg")
    });
    assert_eq!(
        identify(fake.root(), 102).unwrap(),
        Identity::Child { parent: 100 }
    );
    // Another server that one starts; and the same path in another container.
    fake.process(&FakeProcess {
        exe: Some(b"/opt/pg17/bin/postgres".to_vec()),
        ..backend(103, 100, "pg")
    });
    assert_eq!(why(&fake, 103), Why::OtherPid(100));
    fake.process(&FakeProcess {
        mnt_ns: 5,
        ..backend(104, 100, "pg")
    });
    assert_eq!(why(&fake, 104), Why::OtherPid(100));
}

#[test]
fn a_postmaster_reparented_to_another_one_is_found() {
    // In a container process 1 may be a postmaster and inherits what pg_ctl started.
    let fake = host();
    cluster(&fake, 100, "pg/a", 5432);
    fake.process(&backend(200, 100, "pg/b"));
    fake.data_dir("pg/b", "/pg/b", 200, 5433);
    assert_eq!(discover(fake.root()).unwrap().postmasters.len(), 2);
}

#[test]
fn without_a_lock_file_of_its_own_it_is_a_candidate() {
    let fake = host();
    fake.process(&FakeProcess::postgres(100, "pg"));
    assert_eq!(why(&fake, 100), Why::NoLockFile);
    fake.data_dir("pg", "/pg", -100, 5432);
    assert_eq!(why(&fake, 100), Why::SingleUser);
    fake.data_dir("pg", "/pg", 99, 5432);
    assert_eq!(why(&fake, 100), Why::OtherPid(99));
    fake.data_dir("pg", "/pg", i64::MIN, 5432);
    assert_eq!(why(&fake, 100), Why::OtherPid(i64::MIN));
    fake.write("pg/postmaster.pid", "");
    assert_eq!(why(&fake, 100), Why::OddLockFile);
    fake.write("pg/postmaster.pid", "100\n/pg\n1\n5432\n\n");
    assert!(is_postmaster(&fake, 100));
    fake.remove("proc/100/cwd");
    assert_eq!(why(&fake, 100), Why::NoLockFile);
    assert_eq!(discover(fake.root()).unwrap().candidates.len(), 1);
}

#[test]
fn lock_files_that_are_traps() {
    let fake = host();
    fake.process(&FakeProcess::postgres(100, "pg"));
    let path = fake.path("pg/postmaster.pid");
    fs::create_dir(&path).unwrap();
    assert_eq!(why(&fake, 100), Why::OddLockFile);
    fs::remove_dir(&path).unwrap();
    for target in ["/dev/zero", "/etc/passwd", "postmaster.pid", "/nowhere"] {
        symlink(target, &path).unwrap();
        assert_eq!(why(&fake, 100), Why::OddLockFile, "{target}");
        fs::remove_file(&path).unwrap();
    }
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: the name is a string that ends with a NUL and lives until the call returns.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert_eq!(why(&fake, 100), Why::OddLockFile);
    fs::remove_file(&path).unwrap();
    // Huge, and sparse: only the beginning is read.
    fake.write("pg/postmaster.pid", "100\n/pg\n");
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let Identity::Postmaster(found) = identify(fake.root(), 100).unwrap() else {
        panic!("still the right pid");
    };
    assert_eq!((found.port, found.version), (None, None));
}

#[test]
fn text_of_any_bytes_is_kept() {
    let fake = host();
    fake.process(&FakeProcess {
        comm: b"\x1b]0;x\x07) S 1 (".to_vec(),
        cgroup: b"0::/\x1b[2J\xff.service\n".to_vec(),
        exe: Some(b"/\xff\x1b/postgres".to_vec()),
        ..FakeProcess::postgres(100, "pg")
    });
    fake.write(
        "pg/postmaster.pid",
        b"100\n/pg\x1b[2J\xff\n1\n5432\n\n*\x07\n",
    );
    fake.write("pg/PG_VERSION", "\x1b[31m");
    let found = discover(fake.root()).unwrap().postmasters.remove(0);
    assert_eq!(found.data_dir.as_os_str().as_bytes(), b"/pg\x1b[2J\xff");
    assert_eq!(
        found.exe.unwrap().path.as_os_str().as_bytes(),
        b"/\xff\x1b/postgres"
    );
    assert_eq!((found.unit, found.version), (None, None));
}

#[test]
fn zombies_and_threads_are_other() {
    let fake = host();
    cluster(&fake, 100, "pg", 5432);
    fake.process(&FakeProcess {
        state: 'Z',
        ..FakeProcess::postgres(100, "pg")
    });
    assert!(!is_postmaster(&fake, 100));
    fake.process(&FakeProcess::postgres(100, "pg"));
    fake.write(
        "proc/100/status",
        "Tgid:\t90\nPPid:\t1\nUid:\t1 1 1 1\nThreads:\t2\n",
    );
    assert!(!is_postmaster(&fake, 100));
    assert_eq!(identify(fake.root(), 999).unwrap(), Identity::Gone);
}

#[test]
fn without_nspid_the_pid_is_the_pid() {
    let fake = host();
    cluster(&fake, 100, "pg", 5432);
    fake.write("proc/100/status", "PPid:\t1\nUid:\t1 1 1 1\nThreads:\t1\n");
    assert!(is_postmaster(&fake, 100));
}

#[test]
fn an_empty_proc_says_so() {
    let fake = FakeRoot::new();
    let found = discover(fake.root()).unwrap();
    assert!(found.postmasters.is_empty() && found.hidden.is_some());
    fake.remove("proc");
    assert!(discover(fake.root()).is_err());
}

#[test]
fn this_very_machine() {
    let found = discover(&Root::default()).unwrap();
    assert!(
        found
            .postmasters
            .iter()
            .all(|postmaster| postmaster.pid != std::process::id())
    );
    let own = identify(&Root::default(), std::process::id()).unwrap();
    assert_eq!(
        own,
        Identity::Other {
            kernel_thread: false
        }
    );
}
