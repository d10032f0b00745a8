//! Remedies that really suffice, by the kernel's own predicates.

use pgfork_trace_common::valid;

use super::*;
use crate::verdict::MemcgFact;

fn value(command: &str, name: &str) -> Option<u64> {
    let rest = command.split(&format!("{name}=")).nth(1)?;
    rest.trim_end_matches('M').parse().ok()
}

#[test]
fn threads_max_and_the_numbers_for_them() {
    let between = hooked(EAGAIN).reached(Check::CopyCreds).threads(900, 900);
    let mut facts = facts();
    facts.pid_max = Some(1000);
    let verdict = judge(&between.done(), &facts, &base_hooks());
    assert_eq!(verdict.cause, Cause::ThreadsMax);
    let limit = value(&verdict.remedy[0].change.to_string(), "kernel.threads-max").unwrap();
    let numbers = value(&verdict.remedy[1].change.to_string(), "kernel.pid_max").unwrap();
    assert!(limit >= 950 && numbers > limit, "{:?}", verdict.remedy);
    facts.pid_max = Some(4 << 20);
    let verdict = judge(&between.done(), &facts, &base_hooks());
    assert_eq!(verdict.remedy.len(), 1);
}

#[test]
fn numbers_at_every_level_that_would_refuse_next() {
    let refused = |levels: &[(u32, i32)]| {
        let attempt = hooked(EAGAIN)
            .pid_namespaces(levels)
            .failed(Check::AllocPid, EAGAIN);
        judge(&attempt.done(), &facts(), &base_hooks()).remedy
    };
    for levels in [
        &[(300, 301), (900, 32_768)][..],
        &[(300, 301), (300, 301), (32_760, 32_768)],
        &[(30, 4_194_304), (32_500, 32_768)],
    ] {
        let remedies = refused(levels);
        assert!(!remedies.is_empty(), "{levels:?}");
        // Each level with the first limit that a command for it sets.
        for (number, (taken, pid_max)) in levels.iter().enumerate() {
            let host = number + 1 == levels.len();
            let inum = 4_026_530_000 + number;
            let own = remedies.iter().find(|remedy| {
                let command = &remedy.change;
                match (host, number) {
                    (true, _) => command.starts_with("sysctl "),
                    (false, 0) => {
                        command.starts_with("nsenter --pid=/proc/1843/ns/pid_for_children ")
                    }
                    (false, _) => command.contains(&format!(" {inum} ")),
                }
            });
            let limit = own
                .and_then(|remedy| value(&remedy.change.to_string(), "kernel.pid_max"))
                .unwrap_or(*pid_max as u64);
            assert!(limit >= u64::from(*taken) + 300 + 50, "{remedies:?}");
        }
    }
    for pid_max in [4_194_304, 4_194_000] {
        assert!(
            refused(&[(4_194_303, pid_max)]).is_empty(),
            "no more than that"
        );
    }
}

#[test]
fn one_setting_for_all_namespaces_takes_one_command() {
    let attempt = hooked(EAGAIN)
        .pid_namespaces(&[(30, 0), (130, 0)])
        .without(valid::PIDNS_PID_MAX)
        .failed(Check::AllocPid, EAGAIN)
        .done();
    let facts = Facts {
        pid_max: Some(301),
        ..facts()
    };
    let remedies = judge(&attempt, &facts, &base_hooks()).remedy;
    assert_eq!(remedies.len(), 1);
    assert_eq!(remedies[0].change.to_string(), "sysctl kernel.pid_max=580");
}

fn level(id: u64, path: &str, usage: u64, limit: Option<u64>) -> MemcgFact {
    MemcgFact {
        group: cgroup(id - 101, path),
        usage: Some(usage),
        limit,
        ..MemcgFact::default()
    }
}

#[test]
fn a_memory_cgroup_gets_room_on_its_whole_path() {
    let attempt = hooked(ENOMEM)
        .memcg(101, 1024, 1024)
        .failed(Check::MemCgroupOutOfMemory, 0)
        .done();
    let mut facts = facts();
    facts.memory_cgroups = vec![
        level(101, "/a/b", 4 * MIB, Some(4 * MIB)),
        level(102, "/a", 5 * MIB, Some(20 * MIB)),
        level(103, "/", 900 * MIB, None),
    ];
    let verdict = judge(&attempt, &facts, &base_hooks());
    let commands: Vec<&str> = verdict.remedy.iter().map(|it| &*it.change).collect();
    assert_eq!(
        commands[..2],
        [
            "echo 260M > /sys/fs/cgroup/a/b/memory.max",
            "echo 261M > /sys/fs/cgroup/a/memory.max"
        ]
    );
    assert!(commands[2].contains("PG_OOM_ADJUST_FILE"));
    // v1: memory and swap together first, which may not be less.
    for fact in &mut facts.memory_cgroups[..1] {
        fact.v1 = true;
        fact.memsw_limit = Some(4 * MIB);
    }
    let verdict = judge(&attempt, &facts, &base_hooks());
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "echo 260M > /sys/fs/cgroup/a/b/memory.memsw.limit_in_bytes"
    );
    assert_eq!(
        verdict.remedy[1].change.to_string(),
        "echo 260M > /sys/fs/cgroup/a/b/memory.limit_in_bytes"
    );
    facts.memory.as_mut().unwrap().mem_available = MIB;
    let verdict = judge(&attempt, &facts, &base_hooks());
    assert!(verdict.remedy[0].effect.contains("does not have"));
}

#[test]
fn a_namespace_or_filter_takes_a_restart() {
    let dying = hooked(ENOMEM)
        .pid_namespace(3)
        .failed(Check::AllocPid, ENOMEM)
        .done();
    let mut facts = facts();
    let command = |facts: &Facts| {
        let remedy = judge(&dying, facts, &base_hooks()).remedy.remove(0);
        assert!(!remedy.immediate);
        remedy.change.to_string()
    };
    assert!(command(&facts).contains("--fork"));
    facts.unit = Some("pg@1.service".to_owned());
    assert_eq!(command(&facts), "systemctl restart pg@1.service");
    facts.cgroups = vec![cgroup(0, "/docker/x")];
    facts.cgroups[0].container = Some("0123456789abcdef".to_owned());
    assert_eq!(command(&facts), "restart container 0123456789ab");
}

#[test]
fn every_cause_that_can_be_changed_from_outside_says_how() {
    let remedy = |attempt: Build| judge(&attempt.done(), &facts(), &base_hooks()).remedy;
    let chrt = remedy(hooked(EAGAIN).failed(Check::SchedFork, EAGAIN));
    assert_eq!(
        chrt[0].change.to_string(),
        "chrt --all-tasks --other --pid 0 1843"
    );
    for (check, ret) in [
        (Check::SecurityTaskAlloc, -libc::EPERM),
        (Check::SchedCgroupFork, -libc::EPERM),
        (Check::PerfEventInitTask, -libc::EPERM),
    ] {
        assert_eq!(remedy(hooked(ret).failed(check, ret)).len(), 1, "{check:?}");
    }
}
