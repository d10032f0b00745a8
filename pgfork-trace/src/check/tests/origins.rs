//! Where limits were set, which line is in force, and what contradicts.

use super::*;

fn found(fake: &FakeRoot) -> ServerReport {
    server(fake, "0::/app.slice/pg.service\n");
    host(fake);
    v2(fake);
    fake.write("etc/passwd", "root:x:0:0:::\npostgres:x:26:26:::\n");
    look_at(fake)
}

fn ids(found: &ServerReport) -> Vec<FindingId> {
    found.findings.iter().map(|it| it.id).collect()
}

/// Key and value of every line, with a word on what became of it.
fn told(found: &ServerReport) -> Vec<String> {
    let lines = found.origins.iter().map(|it| {
        let state = match (&it.now, &it.not_applied, it.overridden) {
            (Some(now), ..) => format!(" now {now}"),
            (None, Some(_), _) => " not applied".to_owned(),
            (None, None, true) => " overridden".to_owned(),
            (None, None, false) => String::new(),
        };
        format!("{} {}{state}", it.key, it.value)
    });
    lines
        .filter(|it| !it.starts_with("max_connections"))
        .collect()
}

#[test]
fn where_limits_were_set_and_what_contradicts() {
    let fake = FakeRoot::new();
    fake.write(
        "etc/sysctl.d/50-a.conf",
        "vm.overcommit_ratio = 80\nvm.overcommit_memory=2\n",
    );
    fake.write("etc/sysctl.d/40-b.conf", "vm.overcommit_memory=0\n");
    fake.write(
        "etc/systemd/system/pg.service",
        "[Service]\nTasksMax=500\nMemoryMax=50%\n",
    );
    fake.write(
        "etc/security/limits.conf",
        "postgres soft nproc 99\nother hard nproc 1\n",
    );
    let found = found(&fake);
    assert_eq!(
        ids(&found),
        [
            FindingId::StrictWithoutSwap,
            FindingId::FewerTasksThanConnections,
            FindingId::FewerTasksThanConnections,
            // vm.overcommit_ratio, TasksMax, MemoryMax.
            FindingId::KernelDiffersFromFiles,
            FindingId::KernelDiffersFromFiles,
            FindingId::KernelDiffersFromFiles,
            FindingId::SettingsNewerThanServer,
            FindingId::SharedMemoryNotFilled,
            FindingId::LimitsConfNotApplied,
        ],
        "{:#?}",
        found.findings
    );
    assert_eq!(
        told(&found),
        [
            "vm.overcommit_memory 0 overridden",
            "vm.overcommit_ratio 80 now 50",
            "vm.overcommit_memory 2",
            "TasksMax 500 now 17",
            "MemoryMax 50% now 209715200",
            "nproc soft 99 not applied",
        ]
    );
}

#[test]
fn sysctl_conf_counts_only_where_something_reads_it() {
    let fake = FakeRoot::new();
    fake.write("etc/sysctl.d/10-a.conf", "vm.overcommit_memory = 2\n");
    fake.write("etc/sysctl.conf", "vm.overcommit_memory = 0\n");
    let read = found(&fake);
    assert_eq!(
        told(&read)[..2],
        [
            "vm.overcommit_memory 2 overridden",
            "vm.overcommit_memory 0 now 2"
        ]
    );
    fake.write("run/systemd/system/x", "");
    let unread = look_at(&fake);
    assert_eq!(
        told(&unread)[..2],
        [
            "vm.overcommit_memory 2",
            "vm.overcommit_memory 0 not applied"
        ]
    );
    assert!(ids(&unread).contains(&FindingId::SysctlConfNotApplied));
    fake.link("etc/sysctl.d/99-sysctl.conf", "../sysctl.conf");
    let linked = look_at(&fake);
    assert_eq!(
        told(&linked)[..2],
        [
            "vm.overcommit_memory 2 overridden",
            "vm.overcommit_memory 0 now 2"
        ]
    );
    assert!(!ids(&linked).contains(&FindingId::SysctlConfNotApplied));
}

#[test]
fn ratio_and_kbytes_override_each_other() {
    let fake = FakeRoot::new();
    fake.write(
        "etc/sysctl.d/10-a.conf",
        "vm.overcommit_kbytes = 4000000\nvm.overcommit_ratio = 50\n",
    );
    let found = found(&fake);
    assert_eq!(
        told(&found)[..2],
        [
            "vm.overcommit_kbytes 4000000 overridden",
            "vm.overcommit_ratio 50"
        ]
    );
    assert!(!ids(&found).contains(&FindingId::KernelDiffersFromFiles));
}

#[test]
fn units_are_compared_in_the_kernels_own_numbers() {
    let fake = FakeRoot::new();
    fake.write("etc/systemd/system.conf", "DefaultTasksMax=9999\n");
    fake.write(
        "etc/systemd/system/pg.service",
        "TasksMax=17\nLimitNPROC=40:80\nMemoryMax=200M\nMemoryHigh=infinity\nMemorySwapMax=0\n",
    );
    assert_eq!(
        told(&found(&fake)),
        [
            "DefaultTasksMax 9999 overridden",
            "TasksMax 17",
            "LimitNPROC 40:80",
            "MemoryMax 200M",
            "MemoryHigh infinity",
            "MemorySwapMax 0",
        ]
    );
    fake.write(
        "etc/systemd/system/pg.service",
        "LimitNPROC=infinity\nMemoryMax=1G\nMemorySwapMax=infinity\n",
    );
    let found = look_at(&fake);
    assert_eq!(
        told(&found),
        [
            "DefaultTasksMax 9999 now 17",
            "LimitNPROC infinity now 40",
            "MemoryMax 1G now 209715200",
            "MemorySwapMax infinity now 0",
        ]
    );
    // Without any file; and where the kernel's limit cannot be read nothing is said of it.
    fake.remove("etc/systemd/system.conf");
    let built_in = look_at(&fake);
    let first = &built_in.origins[0];
    assert_eq!(
        (first.key.as_str(), first.now.as_deref()),
        ("DefaultTasksMax", Some("17"))
    );
    assert_eq!(first.source, "built into systemd, not set in any file");
    fake.write("etc/systemd/system/pg.service", "TasksMax=5\n");
    fake.remove("sys/fs/cgroup/app.slice/pg.service/pids.max");
    assert_eq!(told(&look_at(&fake)), ["TasksMax 5"]);
}

#[test]
fn the_most_specific_line_of_limits_conf_counts_and_only_a_difference_is_told() {
    let fake = FakeRoot::new();
    fake.write("etc/group", "dba:x:30:postgres\n");
    fake.write(
        "etc/security/limits.conf",
        "postgres soft nproc 40\n@dba - nproc 70\n",
    );
    fake.write("etc/security/limits.d/90.conf", "* - nproc 90\n");
    let found = found(&fake);
    let state: Vec<_> = found
        .origins
        .iter()
        .filter(|it| it.key == "nproc")
        .map(|it| (it.value.as_str(), it.overridden, it.not_applied.is_some()))
        .collect();
    // The group still sets the hard limit.
    assert_eq!(
        state,
        [
            ("soft 40", false, true),
            ("- 70", false, true),
            ("- 90", true, true)
        ]
    );
    // The server has that limit, wherever from.
    assert!(!ids(&found).contains(&FindingId::LimitsConfNotApplied));
    // Started through a login it applies, and would be another.
    fake.write("etc/security/limits.conf", "postgres soft nproc 50\n");
    fake.write("etc/systemd/system/pg.service", "PAMName=login\n");
    let found = look_at(&fake);
    assert!(told(&found).contains(&"nproc soft 50 now 40".to_owned()));
    assert!(ids(&found).contains(&FindingId::KernelDiffersFromFiles));
    // Not where nothing in pam.d would apply it.
    fake.write("etc/pam.d/su", "#session required pam_limits.so\n");
    assert!(told(&look_at(&fake)).contains(&"nproc soft 50 not applied".to_owned()));
    fake.write("etc/pam.d/su", "session required pam_limits.so\n");
    assert!(told(&look_at(&fake)).contains(&"nproc soft 50 now 40".to_owned()));
}

#[test]
fn a_container_has_limits_conf_of_its_own() {
    let fake = FakeRoot::new();
    server(
        &fake,
        &format!("0::/system.slice/docker-{}.scope\n", "a".repeat(64)),
    );
    host(&fake);
    fake.write("etc/passwd", "postgres:x:26:26:::\n");
    fake.write("etc/security/limits.conf", "postgres soft nproc 99\n");
    let found = look_at(&fake);
    assert!(found.container.is_some());
    assert_eq!(told(&found), Vec::<String>::new());
    // What its runtime set is named, and changed with its own command.
    v2(&fake);
    let scope = format!("sys/fs/cgroup/system.slice/docker-{}.scope", "a".repeat(64));
    fake.write(format!("{scope}/pids.max"), "17\n");
    fake.write(format!("{scope}/pids.current"), "12\n");
    let found = look_at(&fake);
    assert_eq!(told(&found), ["pids.max 17"]);
    let origin = &found.origins[0];
    assert_eq!(
        (origin.target.as_str(), origin.source.as_str()),
        ("aaaaaaaaaaaa", "set by docker")
    );
    let pids = row(&found, Limit::PidsCgroupMax);
    assert_eq!(
        pids.remedy[0].change.to_string(),
        "docker update --pids-limit 67 aaaaaaaaaaaa"
    );
}

#[test]
fn a_pid_namespace_with_a_limit_of_its_own() {
    let fake = FakeRoot::new();
    server(&fake, "0::/\n");
    host(&fake);
    fake.process(&FakeProcess::new(9000));
    fake.link("proc/self", "9000");
    fake.link("proc/9000/ns/pid", "pid:[4026531836]");
    backend(&fake, 701, "postgres: app db [local] idle");
    for pid in [700, 701] {
        fake.link(format!("proc/{pid}/ns/pid"), "pid:[4026532777]");
    }
    let inner = || {
        let found = look_at(&fake);
        let unknown = found.limits.iter().find(|it| it.row.limit_unknown);
        unknown.map(|it| (it.row.limit, it.row.used, it.row.notes.join("")))
    };
    // The kernel of the fake host is 6.1, where all share one.
    assert_eq!(inner(), None);
    fake.write("proc/sys/kernel/osrelease", "6.18.0\n");
    let (limit, used, note) = inner().unwrap();
    assert_eq!((limit, used), (Limit::PidSpaceExhausted, 2));
    assert!(
        note.contains("nsenter --pid=/proc/700/ns/pid_for_children"),
        "{note}"
    );
}

#[test]
fn who_exempts_the_children_from_less() {
    let fake = FakeRoot::new();
    fake.write(
        "etc/systemd/system/pg.service",
        "Environment=PGDATA=/data\nEnvironmentFile=-/etc/default/pg\nOOMScoreAdjust=-900\n",
    );
    fake.write("proc/700/environ", "PGDATA=/data\0");
    backend(&fake, 701, "postgres: app db [local] idle");
    fake.write("proc/701/oom_score_adj", "-900\n");
    let none = found(&fake);
    assert!(
        ids(&none).contains(&FindingId::OomAdjustNotSet),
        "{:?}",
        ids(&none)
    );
    fake.write(
        "etc/default/pg",
        "X=1\nPG_OOM_ADJUST_FILE=/proc/self/oom_score_adj\n",
    );
    let unit = look_at(&fake);
    assert!(
        told(&unit)
            .contains(&"EnvironmentFile PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj".to_owned())
    );
    assert!(
        unit.findings
            .iter()
            .any(|it| it.text.ends_with("from the next restart on"))
    );
    fake.write(
        "etc/systemd/system/pg.service",
        "Environment=PGPASSWORD=x PG_OOM_ADJUST_VALUE=0\n",
    );
    assert_eq!(
        told(&look_at(&fake)).last().unwrap(),
        "Environment PG_OOM_ADJUST_VALUE=0"
    );
    fake.write(
        "proc/700/environ",
        "PGDATA=/data\0PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj\0",
    );
    assert!(ids(&look_at(&fake)).contains(&FindingId::OomAdjustWithoutEffect));
}
