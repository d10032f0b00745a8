//! Files that vanish, or turn into something else, while they are read.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Whatever is there at the moment of each read, a look gives a report of the server that stays.
#[test]
fn processes_and_cgroups_come_and_go_while_it_looks() {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    for pid in 701..=720 {
        backend(&fake, pid, "postgres: app db 10.0.0.1(5000) idle");
    }
    let stop = AtomicBool::new(false);
    let unit = fake.path("sys/fs/cgroup/app.slice/pg.service");
    std::thread::scope(|scope| {
        let (fake, stop) = (&fake, &stop);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for pid in 701..=720 {
                    let directory = fake.path(format!("proc/{pid}"));
                    std::fs::remove_dir_all(directory).unwrap();
                }
                std::fs::remove_dir_all(&unit).unwrap();
                for pid in 701..=720 {
                    backend(fake, pid, "postgres: app db 10.0.0.1(5000) idle");
                }
                v2(fake);
            }
        });
        for _ in 0..60 {
            let found = look_at(fake);
            assert_eq!(found.pid, 700);
            assert!(found.connections.clients <= 20);
            assert!(row(&found, Limit::RlimitNproc).used <= 21);
            assert_eq!(row(&found, Limit::ThreadsMax).backends, Some(880));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let found = look_at(&fake);
    assert_eq!(
        found.connections.clients, 20,
        "it sees again what is there again"
    );
    assert_eq!(row(&found, Limit::PidsCgroupMax).backends, Some(5));
}

#[test]
fn a_directory_in_place_of_a_file_lowers_what_is_said() {
    for file in [
        "proc/meminfo",
        "proc/loadavg",
        "proc/sys/kernel/pid_max",
        "proc/701/status",
        "proc/700/smaps",
        "proc/700/limits",
        "proc/701/stat",
        "proc/701/cmdline",
        "data/postgresql.conf",
        "sys/fs/cgroup/app.slice/pg.service/pids.max",
        "sys/fs/cgroup/app.slice/pg.service/memory.stat",
    ] {
        let fake = FakeRoot::new();
        server(&fake, "0::/app.slice/pg.service\n");
        host(&fake);
        v2(&fake);
        backend(&fake, 701, "postgres: app db [local] idle");
        fake.remove(file);
        std::fs::create_dir(fake.path(file)).unwrap();
        let found = look_at(&fake);
        assert_eq!(found.pid, 700, "{file}");
        assert!(found.limits.len() >= 4, "{file}: {:#?}", found.limits);
    }
}
