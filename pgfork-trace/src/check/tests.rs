//! Whole looks at fake trees. `PGFORK_TRACE_BLESS=1` rewrites docs/check-schema.json.

mod figures;
mod golden;
mod hierarchies;
mod in_force;
mod memory;
mod origins;
mod races;
mod versions;
mod watching;

use super::*;
use crate::{
    host::fake::{FakeProcess, FakeRoot},
    output::{check_document, check_schema},
    verdict::{
        findings::FindingId,
        headroom::{Effect, Limit, Row},
    },
};

const SMAPS: &str = "55d0-55d1 rw-p 0 00:00 0\nSize: 2048 kB\nPss: 600 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: 500 kB\n\
                     Anonymous: 600 kB\nSwapPss: 12 kB\nVmFlags: rd wr mr mw me ac \n\
                     7f00-7f01 rw-s 0 00:05 1 /dev/zero\nSize: 131072 kB\nPss: 100 kB\nPrivate_Dirty: 90 kB\nAnonymous: 0 kB\n\
                     VmFlags: rd wr sh mr mw me ms sd \n";

fn server(fake: &FakeRoot, cgroup: &str) {
    fake.process(&FakeProcess {
        pid: 1,
        parent: 0,
        uid: 0,
        comm: b"systemd".to_vec(),
        ..FakeProcess::new(1)
    });
    fake.data_dir("data", "/data", 700, 5432);
    fake.process(&FakeProcess {
        cgroup: cgroup.as_bytes().to_vec(),
        ..FakeProcess::postgres(700, "data")
    });
    fake.write("proc/700/cmdline", "postgres\0-D\0/data\0");
    fake.write("proc/700/smaps", SMAPS);
    fake.write("proc/700/oom_score_adj", "-900\n");
    fake.link("proc/700/ns/pid", "pid:[4026531836]");
    fake.link("proc/700/ns/pid_for_children", "pid:[4026531836]");
    fake.write(
        "proc/700/limits",
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max processes             40                   80                   processes \n",
    );
    fake.write("data/postgresql.conf", "max_connections = 30\n");
}

fn backend(fake: &FakeRoot, pid: u32, title: &str) {
    fake.process(&FakeProcess {
        parent: 700,
        cgroup: b"0::/app.slice/pg.service\n".to_vec(),
        ..FakeProcess::postgres(pid, "data")
    });
    fake.write(format!("proc/{pid}/cmdline"), format!("{title}\0\0\0"));
    fake.write(format!("proc/{pid}/smaps"), SMAPS);
    fake.write(format!("proc/{pid}/oom_score_adj"), "0\n");
}

fn host(fake: &FakeRoot) {
    fake.write("proc/loadavg", "0 0 0 1/120 9000\n");
    fake.write("proc/uptime", "100000.00 1.00\n");
    fake.write("proc/sys/kernel/osrelease", "6.1.0-50-amd64\n");
    fake.write("proc/sys/kernel/threads-max", "1000\n");
    fake.write("proc/sys/kernel/pid_max", "32768\n");
    for (name, value) in [
        ("overcommit_memory", 2),
        ("overcommit_ratio", 50),
        ("overcommit_kbytes", 0),
        ("admin_reserve_kbytes", 8192),
        ("user_reserve_kbytes", 131_072),
    ] {
        fake.write(format!("proc/sys/vm/{name}"), format!("{value}\n"));
    }
    fake.write(
        "proc/meminfo",
        "MemTotal: 2097152 kB\nMemAvailable: 1048576 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n\
         CommitLimit: 1048576 kB\nCommitted_AS: 524288 kB\nSReclaimable: 3072 kB\nSUnreclaim: 1024 kB\n",
    );
}

const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";

fn v2(fake: &FakeRoot) {
    fake.write("proc/self/mountinfo", V2);
    let unit = "sys/fs/cgroup/app.slice/pg.service";
    fake.write(format!("{unit}/pids.current"), "12\n");
    fake.write(format!("{unit}/pids.max"), "17\n");
    fake.write(format!("{unit}/pids.events"), "max 3\n");
    fake.write(format!("{unit}/memory.current"), "104857600\n");
    fake.write(format!("{unit}/memory.max"), "209715200\n");
    fake.write(format!("{unit}/memory.high"), "max\n");
    fake.write(format!("{unit}/memory.swap.max"), "0\n");
    fake.write(
        format!("{unit}/memory.stat"),
        "anon 20971520\nfile 52428800\nshmem 31457280\ninactive_file 20971520\nkernel_stack 131072\npagetables 1441792\n",
    );
    fake.write("sys/fs/cgroup/app.slice/pids.current", "20\n");
    fake.write("sys/fs/cgroup/app.slice/pids.max", "max\n");
}

fn look_at(fake: &FakeRoot) -> ServerReport {
    let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    let validator = jsonschema::validator_for(&check_schema()).unwrap();
    let document = check_document(&report);
    let value = serde_json::from_slice(&document).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(&value)
        .map(|error| error.to_string())
        .collect();
    assert!(errors.is_empty(), "{errors:?}");
    for byte in document.iter().chain(text_of(&report).as_bytes()) {
        assert!(*byte >= b' ' || *byte == b'\n', "{byte:#x}");
    }
    let [server] = <[ServerReport; 1]>::try_from(report.servers).unwrap();
    server
}

fn text_of(report: &Report) -> String {
    let around = Surroundings {
        stdout_terminal: false,
        stderr_terminal: false,
        no_color: true,
        time_zone: jiff::tz::TimeZone::UTC,
    };
    check_text(report, &OutputOptions::default(), &around)
}

fn row(server: &ServerReport, limit: Limit) -> &Row {
    let found = server.limits.iter().find(|it| it.row.limit == limit);
    &found
        .unwrap_or_else(|| panic!("no {limit:?} in {:#?}", server.limits))
        .row
}

#[test]
fn schema_is_the_committed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/check-schema.json");
    let text = serde_json::to_string_pretty(&check_schema()).unwrap() + "\n";
    if std::env::var_os("PGFORK_TRACE_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), text);
}

/// A unit with eight clients and a checkpointer.
fn busy() -> FakeRoot {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    for pid in 701..=708 {
        backend(&fake, pid, "postgres: app db 10.0.0.1(5000) idle");
    }
    backend(&fake, 709, "postgres: checkpointer ");
    fake
}

#[test]
fn every_limit_of_a_unit_on_v2() {
    let fake = busy();
    let found = look_at(&fake);
    assert_eq!(
        found.summary,
        "After 5 more backends, TasksMax in pg.service refuses forks (EAGAIN, \"Resource temporarily unavailable\"): 12 tasks of 17 taken."
    );
    assert_eq!(
        found.make_room.as_deref(),
        Some("systemctl set-property pg.service TasksMax=67")
    );
    assert_eq!(found.unread, []);
    let pids = row(&found, Limit::PidsCgroupMax);
    assert_eq!(
        pids.remedy[0].change.to_string(),
        "systemctl set-property pg.service TasksMax=67"
    );
    // postmaster, 9 children; not uid 0.
    assert_eq!(row(&found, Limit::RlimitNproc).used, 10);
    assert_eq!(row(&found, Limit::RlimitNproc).backends, Some(30));
    assert_eq!(row(&found, Limit::ThreadsMax).backends, Some(880));
    assert_eq!(row(&found, Limit::PidSpaceExhausted).used, 10);
    assert_eq!(
        row(&found, Limit::MaxConnections).backends,
        Some(30 - 3 - 8)
    );
    // 100 MiB in use, 20 MiB of it file cache; 0.5 MiB anonymous and its swap, 128 KiB of kernel memory.
    let memory = row(&found, Limit::MemcgOomKill);
    assert_eq!(memory.effect, Effect::Kills);
    assert_eq!(memory.used, 80 << 20);
    assert_eq!(found.backend_cost.kernel_bytes, Some(131_072));
    assert_eq!(found.backend_cost.private_bytes, Some(512 << 10));
    assert_eq!(memory.backends, Some((120 << 20) / ((512 + 128) << 10)));
    // Address space is not in the fake status: without the user's reserve.
    let commit = row(&found, Limit::CommitLimit);
    assert_eq!(commit.max, Some((1024 - 8) << 20));
    assert_eq!(found.connections.idle, 8);
    assert_eq!(found.connections.by_address[0].count, 8);
}

#[test]
fn a_container_in_its_own_user_namespace_on_v1() {
    let fake = FakeRoot::new();
    let id = "7f3c1b2a90de".repeat(5) + "7f3c";
    let path = format!("/docker/{id}");
    server(&fake, &format!("5:memory:{path}\n4:pids:{path}\n0::/\n"));
    host(&fake);
    fake.link("proc/700/ns/user", "user:[4026532999]");
    fake.write(
        "proc/self/mountinfo",
        "31 23 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
         32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
         33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    );
    fake.write(format!("sys/fs/cgroup/pids{path}/pids.current"), "99\n");
    fake.write(format!("sys/fs/cgroup/pids{path}/pids.max"), "100\n");
    let memory = format!("sys/fs/cgroup/memory{path}");
    fake.write(format!("{memory}/memory.usage_in_bytes"), "1048576\n");
    fake.write(format!("{memory}/memory.limit_in_bytes"), "2097152\n");
    fake.write(format!("{memory}/memory.kmem.usage_in_bytes"), "9900000\n");
    fake.write(
        format!("{memory}/memory.oom_control"),
        "oom_kill_disable 1\nunder_oom 0\noom_kill 0\n",
    );
    let found = look_at(&fake);
    assert_eq!(found.container.as_deref(), Some(id.as_str()));
    assert_eq!(row(&found, Limit::PidsCgroupMax).backends, Some(1));
    assert_eq!(
        row(&found, Limit::MemcgOomKillDisabled).effect,
        Effect::RefusesEnomem
    );
    // 100 000 for each of 99 tasks: a stack, and of the rest a quarter that cannot be dropped.
    assert_eq!(
        found.backend_cost.kernel_bytes,
        Some(16_384 + (100_000 - 16_384) / 4)
    );
    // Process 1 has the same uid number, but is in another user namespace.
    assert_eq!(row(&found, Limit::RlimitNproc).used, 1);
}

#[test]
fn with_nothing_but_the_lock_file_the_rest_is_named_as_unseen() {
    let fake = FakeRoot::new();
    fake.data_dir("data", "/data", 700, 5432);
    fake.process(&FakeProcess::postgres(700, "data"));
    let found = look_at(&fake);
    assert_eq!(found.first, None);
    assert!(found.not_seen.len() >= 3, "{:?}", found.not_seen);
    assert_eq!(found.unread.len(), 5, "{:?}", found.unread);
    let said = "Not all could be read (not max_connections, rlimit_nproc, threads_max, ";
    assert!(found.summary.starts_with(said), "{}", found.summary);
}

#[test]
fn a_server_of_another_user_is_looked_at_from_outside() {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    // As the kernel hides them from those who may not trace the process; also from root here.
    fake.remove("proc/700/cwd");
    fake.write("proc/700/cwd", "");
    fake.remove("proc/700/smaps");
    fake.write("data/postmaster.pid", "");
    let found = discover(fake.root()).unwrap();
    assert_eq!(found.candidates.len(), 1);
    let candidate = crate::postgres::Candidate {
        why: crate::postgres::Why::Unreadable,
        ..found.candidates[0].clone()
    };
    let presumed = presumed(fake.root(), &candidate).unwrap().unwrap();
    assert_eq!(presumed.data_dir, Path::new("/data"));
    assert_eq!((presumed.uid, presumed.port), (26, None));
}

#[test]
fn no_server_is_an_error() {
    let fake = FakeRoot::new();
    fake.process(&FakeProcess::new(1));
    let error = look(fake.root(), &Filter::default(), Near::default()).unwrap_err();
    assert_eq!(error.to_string(), "no postmaster was found");
}

#[test]
fn hostile_and_absurd_content_ends_nothing() {
    let fake = FakeRoot::new();
    let evil = "/a\x1b[2J\u{202e}/pg.service";
    server(&fake, &format!("0::{evil}\n"));
    host(&fake);
    fake.write("proc/self/mountinfo", V2);
    let dir = format!("sys/fs/cgroup{evil}");
    fake.write(format!("{dir}/pids.current"), "18446744073709551615\n");
    fake.write(format!("{dir}/pids.max"), "1\n");
    fake.write(format!("{dir}/memory.current"), "18446744073709551615\n");
    fake.write(format!("{dir}/memory.max"), "99999999999999999999999\n");
    fake.write("proc/meminfo", "MemTotal: x kB\n");
    fake.write("proc/sys/kernel/pid_max", "18446744073709551615\n");
    fake.write(
        "data/postgresql.conf",
        "max_connections = 18446744073709551615\n",
    );
    backend(&fake, 701, "postgres: \x1b]0;x\x07 a b [local] \x1b[31m");
    backend(&fake, 702, "postgres: ");
    backend(&fake, 703, "");
    fake.write("proc/704/stat", "704 (gone");
    let found = look_at(&fake);
    assert_eq!(row(&found, Limit::PidsCgroupMax).backends, Some(0));
    assert!(
        found
            .not_seen
            .iter()
            .any(|note| note.contains("memory.max"))
    );
    assert_eq!(found.connections.clients, 1);
}

#[test]
fn a_dying_pid_namespace_is_seen() {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    fake.link("proc/1/ns/pid", "pid:[4026531836]");
    fake.link("proc/700/ns/pid_for_children", "pid:[4026532777]");
    let found = look_at(&fake);
    assert_eq!(row(&found, Limit::PidNamespaceDying).backends, Some(0));
    let init = FakeProcess {
        ns_pids: vec![900, 1],
        ..FakeProcess::new(900)
    };
    fake.process(&init);
    fake.link("proc/900/ns/pid", "pid:[4026532777]");
    let found = look_at(&fake);
    assert_eq!(row(&found, Limit::PidNamespaceDying).backends, None);
}

#[test]
fn zombies_children_and_a_pooler_pattern() {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    for pid in 701..=730 {
        let state = if pid > 720 { "SELECT" } else { "idle" };
        let title = format!("postgres: main: app db 10.0.0.{}(1) {state}", pid % 2);
        backend(&fake, pid, &title);
    }
    backend(&fake, 740, "postgres: main: archiver ");
    fake.process(&FakeProcess {
        parent: 740,
        ..FakeProcess::new(741)
    });
    // What the shell of archive_command started; its number is lower after a wrap.
    fake.process(&FakeProcess {
        parent: 741,
        comm: b"gzip".to_vec(),
        ..FakeProcess::new(650)
    });
    backend(
        &fake,
        743,
        "postgres: main: walsender rep 10.0.0.9(5) streaming 0/0",
    );
    fake.process(&FakeProcess {
        parent: 743,
        ..FakeProcess::new(744)
    });
    fake.process(&FakeProcess {
        parent: 700,
        state: 'Z',
        ..FakeProcess::new(742)
    });
    fake.write("data/postgresql.conf", "cluster_name = 'main'\n");
    let found = look_at(&fake).connections;
    assert_eq!((found.clients, found.idle, found.zombies), (30, 20, 1));
    assert_eq!(found.by_user[0].name, "app");
    let started: Vec<_> = found
        .started_by_children
        .iter()
        .map(|it| it.name.as_str())
        .collect();
    assert_eq!(
        started,
        ["archiver (gzip)", "archiver (sh)", "wal sender (sh)"]
    );
    assert!(found.pooler.unwrap().starts_with("20 of 30 connections"));
}

#[test]
fn what_already_happened_and_who_is_blamed_for_it() {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    let unit = "sys/fs/cgroup/app.slice/pg.service";
    fake.write(
        format!("{unit}/memory.events"),
        "max 7\noom 2\noom_kill 1\n",
    );
    fake.write(
        "dev/kmsg",
        "6,1,99999000000,-;cgroup: fork rejected by pids controller in /x\n",
    );
    fake.write(
        "proc/pressure/memory",
        "some avg10=1.50 avg60=0.00 avg300=0.25 total=1\n",
    );
    fake.write(
        "log",
        "LOG:  could not fork new process for connection: Cannot allocate memory\n",
    );
    fake.link("proc/700/fd/2", fake.path("log"));
    let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    assert_eq!(report.history.kernel_log[0].last_s_ago, Some(1));
    let seen = look_at(&fake).history;
    // Without pids.events.local the counter is of the forking cgroup.
    assert!(seen.pids_events[0].counts_forker && seen.pids_events[0].refused == 3);
    assert_eq!(seen.memory_events[0].killed, Some(1));
    assert_eq!(seen.server_log[0].could_not_fork[0].name, "ENOMEM");
    fake.write("data/postgresql.conf", "lc_messages = 'de_DE.UTF-8'\n");
    let notes = look_at(&fake).not_seen;
    assert!(
        notes.iter().any(|it| it.contains("lc_messages = de_DE")),
        "{notes:?}"
    );
    fake.write("data/postgresql.conf", "lc_messages = 'en_US.UTF-8'\n");
    let notes = look_at(&fake).not_seen;
    assert!(
        !notes.iter().any(|it| it.contains("lc_messages")),
        "{notes:?}"
    );
    // With it, pids.events of every level above counts the refusals below it as well.
    let slice = "sys/fs/cgroup/app.slice";
    fake.write(format!("{unit}/pids.events.local"), "max 0\n");
    fake.write(format!("{slice}/pids.events"), "max 3\n");
    fake.write(format!("{slice}/pids.events.local"), "max 2\n");
    fake.write(
        format!("{slice}/memory.events"),
        "high 9\nmax 7\noom 2\noom_kill 1\n",
    );
    fake.write(
        format!("{slice}/memory.events.local"),
        "high 4\nmax 0\noom 0\noom_kill 0\n",
    );
    let seen = look_at(&fake).history;
    let [events] = &seen.pids_events[..] else {
        panic!("{:?}", seen.pids_events)
    };
    assert_eq!((events.path.as_str(), events.refused), ("/app.slice", 2));
    assert!(!events.counts_forker);
    let above = &seen.memory_events[1];
    assert_eq!(
        (above.slowed, above.limit_reached, above.killed),
        (Some(4), None, None)
    );
    fake.write(
        "proc/self/mountinfo",
        V2.replace("rw\n", "rw,pids_localevents\n"),
    );
    assert!(look_at(&fake).history.pids_events[0].counts_forker);
    let text = text_of(&report);
    for expected in [
        "fork rejected by the pids controller, forked in /x (1 time in the kernel log, last 1 s ago)",
        "tasks waited for memory 1.50 % of the last 10 s, 0.25 % of the last 5 min",
        "memory of /app.slice/pg.service: limit reached 7 times, nothing to take back 2 times, process killed 1 time",
        "1 \"could not fork\" (ENOMEM) in ",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn metrics_replace_a_file_in_one_step() {
    let fake = FakeRoot::new();
    server(&fake, "0::/a\"b\\\n");
    host(&fake);
    fake.write("proc/self/mountinfo", V2);
    fake.write("sys/fs/cgroup/a\"b\\/pids.current", "3\n");
    fake.write("sys/fs/cgroup/a\"b\\/pids.max", "10\n");
    let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    let path = fake.path("metrics/pgfork.prom");
    assert!(write_metrics(&report, &path).is_err());
    fake.write("metrics/pgfork.prom", "old");
    write_metrics(&report, &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let line = r#"pgfork_limit_backends{pid="700",port="5432",data_dir="/data",limit="pids_cgroup_max",place="/a\"b\\ pids.max"} 7"#;
    assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    assert!(text.lines().any(|found| found == "pgfork_up 1"), "{text}");
    // Two paths that differ late are two series.
    let long = format!("/{}/x", "y".repeat(220));
    server(&fake, &format!("0::{long}\n"));
    for directory in [long.as_str(), &long[..221]] {
        fake.write(format!("sys/fs/cgroup{directory}/pids.current"), "3\n");
        fake.write(format!("sys/fs/cgroup{directory}/pids.max"), "10\n");
    }
    let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    write_metrics(&report, &path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let series: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| Some(line.rsplit_once(' ')?.0))
        .collect();
    let distinct: std::collections::HashSet<&&str> = series.iter().collect();
    assert_eq!(distinct.len(), series.len(), "{text}");
    let left = std::fs::read_dir(fake.path("metrics")).unwrap().count();
    assert_eq!(left, 1);
}

#[test]
fn metrics_of_a_look_that_failed_do_not_say_the_former_state() {
    let fake = FakeRoot::new();
    fake.write("pgfork.prom", "pgfork_up 1\npgfork_limits_near 0\n");
    let plan = CheckPlan {
        prometheus: Some(fake.path("pgfork.prom")),
        ..CheckPlan::default()
    };
    assert_eq!(looked(&plan, Ok(7)).unwrap(), 7);
    let metrics = || std::fs::read_to_string(fake.path("pgfork.prom")).unwrap();
    assert!(metrics().contains("pgfork_up 1"));
    let failed = look(fake.root(), &plan.filter, plan.near);
    let error = looked(&plan, failed).unwrap_err();
    assert!(format!("{error:#}").starts_with("no postmaster was found"));
    let text = metrics();
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.next(), Some("pgfork_up 0"));
    let time = lines.next().unwrap();
    let seconds = time.strip_prefix("pgfork_look_timestamp_seconds ").unwrap();
    assert!(seconds.parse::<u64>().unwrap() > 1_700_000_000);
    assert_eq!(lines.next(), None);
    assert_eq!(text.matches("# TYPE ").count(), 2);
}

#[test]
fn what_is_not_seen_of_settings_and_log_is_said() {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    host(&fake);
    fake.write("data/postgresql.conf", "include 'more.conf'\n");
    fake.link("proc/700/fd/2", "/dev/null");
    let notes = look_at(&fake).not_seen;
    for words in [
        "more.conf of the server's settings cannot be read (No such file",
        "the server's messages go to /dev/null, where they cannot be read",
    ] {
        assert!(
            notes.iter().any(|it| it.contains(words)),
            "{words}: {notes:?}"
        );
    }
    fake.write("log", "LOG:  ready\n");
    fake.link("proc/700/fd/2", fake.path("log"));
    let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    let text = text_of(&report);
    assert!(
        text.contains("0 refusals in ") && !text.contains("messages go to"),
        "{text}"
    );
}

#[test]
fn a_memory_cgroup_without_a_limit_is_named() {
    let fake = FakeRoot::new();
    server(&fake, "0::/app.slice/pg.service\n");
    host(&fake);
    v2(&fake);
    fake.write("sys/fs/cgroup/app.slice/pg.service/memory.max", "max\n");
    let report = look(fake.root(), &Filter::default(), Near::default()).unwrap();
    let text = text_of(&report);
    let line = text.lines().find(|line| line.contains("no limit: "));
    let named = line.is_some_and(|line| line.contains("memcg_oom_kill pg.service MemoryMax"));
    assert!(named, "{text}");
}
