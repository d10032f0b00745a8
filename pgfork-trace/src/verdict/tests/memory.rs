//! Memory cgroups: at any stage, and only what refused.

use pgfork_trace_common::valid;

use super::*;
use crate::verdict::{KillableFact, LogFact, MemcgFact};

const ID: u64 = 201;

fn memcg(usage: u64, limit: u64) -> MemcgFact {
    MemcgFact {
        group: CgroupFact {
            runtime: None,
            id: ID,
            path: "/system.slice/pg.service".to_owned(),
            directory: "/sys/fs/cgroup/system.slice/pg.service".to_owned(),
            unit: Some(UnitFact {
                name: "pg.service".to_owned(),
                property: "MemoryMax".to_owned(),
            }),
            container: None,
        },
        usage: Some(usage),
        limit: Some(limit),
        ..MemcgFact::default()
    }
}

fn full() -> Facts {
    Facts {
        memory_cgroups: vec![memcg(4 * MIB, 4 * MIB)],
        kernel: Some((6, 12)),
        ..facts()
    }
}

/// Stages at which the same refusal was measured, and others.
const STAGES: [Check; 5] = [
    Check::ArchDupTaskStruct,
    Check::CopyCreds,
    Check::DupFd,
    Check::PgdAlloc,
    Check::AllocPid,
];

#[test]
fn nobody_to_kill_is_the_cause_at_every_stage() {
    for stage in STAGES {
        for failing in [false, true] {
            let mut attempt = hooked(ENOMEM)
                .memcg(ID, 1024, 1024)
                .with(valid::MEMCG_OOM)
                .failed(Check::MemCgroupOutOfMemory, 0)
                .reached(stage);
            if failing {
                attempt = attempt.failed(stage, ENOMEM);
            }
            let verdict = judge(
                &attempt.failed(Check::CopyProcess, ENOMEM).done(),
                &full(),
                &base_hooks(),
            );
            assert_eq!(verdict.cause, Cause::MemcgNoVictim, "{stage:?}");
            assert_eq!(verdict.certainty, Certainty::Observed);
            assert_eq!(verdict.check.unwrap().function, "mem_cgroup_out_of_memory");
            let Some(Scope::Cgroup {
                ancestor: 0,
                cgroup_id: ID,
                property,
                ..
            }) = verdict.scope
            else {
                panic!("{:?}", verdict.scope)
            };
            assert_eq!(property, "MemoryMax");
        }
    }
}

#[test]
fn a_reason_of_its_own_comes_before_memory_cgroups() {
    let starved = || {
        hooked(ENOMEM)
            .memcg(ID, 1024, 1024)
            .failed(Check::MemCgroupOutOfMemory, 0)
    };
    let dying = starved()
        .pid_namespace(3)
        .with(valid::PIDNS_AT_CHECK)
        .failed(Check::AllocPid, ENOMEM)
        .done();
    assert_eq!(
        judge(&dying, &full(), &base_hooks()).cause,
        Cause::PidNamespaceDying
    );
    let other = starved().change(|it| it.ret = EAGAIN).done();
    assert_eq!(judge(&other, &full(), &base_hooks()).cause, Cause::Unknown);
}

#[test]
fn an_oom_killer_that_is_off_is_deduced_and_observed_when_armed() {
    let off = hooked(ENOMEM)
        .reached(Check::CopyCreds)
        .memcg(ID, 1024, 1024)
        .with(valid::MEMCG_OOM_DISABLE)
        .change(|it| it.memcg.oom_kill_disable = 1);
    let verdict = judge(&off.done(), &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgOomKillDisabled);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    let charged = off.failed(Check::TryCharge, ENOMEM).done();
    let verdict = judge(&charged, &full(), &all_hooks());
    assert_eq!(verdict.cause, Cause::MemcgOomKillDisabled);
    assert_eq!(verdict.certainty, Certainty::Observed);
    // Charges were watched and none was refused: reclaim helped.
    let helped = judge(&off.done(), &full(), &all_hooks());
    assert_eq!(helped.cause, Cause::KernelMemoryExhausted);
    // Not reclaimed from at all.
    let calm = off.change(|it| it.stages &= !Check::TryToFreeMemCgroupPages.bit());
    assert_ne!(
        judge(&calm.done(), &full(), &base_hooks()).cause,
        Cause::MemcgOomKillDisabled
    );
}

#[test]
fn reclaim_alone_proves_nothing() {
    let attempt = hooked(ENOMEM)
        .reached(Check::CopyCreds)
        .memcg(ID, 1024, 1024)
        .done();
    let verdict = judge(&attempt, &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::KernelMemoryExhausted);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert!(whats(&verdict.also_possible).contains(&"memory cgroup"));
}

#[test]
fn a_task_that_is_being_killed_is_what_is_left_of_a_refused_charge() {
    for charge in [Check::TryCharge, Check::MemcgKmemChargePage] {
        let attempt = hooked(ENOMEM)
            .memcg(ID, 1024, 1024)
            .failed(charge, ENOMEM)
            .failed(Check::CopyCreds, ENOMEM);
        let verdict = judge(&attempt.done(), &full(), &all_hooks());
        assert_eq!(verdict.cause, Cause::MemcgDyingTask);
        assert_eq!(verdict.certainty, Certainty::Deduced);
        let blind = judge(
            &attempt.done(),
            &full(),
            &hooks_without(&[Check::MemCgroupOutOfMemory]),
        );
        assert_ne!(blind.cause, Cause::MemcgDyingTask);
    }
}

#[test]
fn one_that_shares_its_memory_with_the_victim_dies_too() {
    let attempt = hooked(ENOMEM)
        .reached(Check::CopyProcess)
        .memcg(ID, 1024, 1024);
    let mut facts = full();
    facts.kernel_log = vec![LogFact::CgroupKilled { pid: 762 }];
    let verdict = judge(&attempt.done(), &facts, &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgDyingTask);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert_eq!(whats(&verdict.also_possible), ["kernel memory"]);
    // Not a memory cgroup of this fork.
    let calm = attempt.change(|it| it.stages &= !Check::TryToFreeMemCgroupPages.bit());
    assert_eq!(
        judge(&calm.done(), &facts, &base_hooks()).cause,
        Cause::KernelMemoryExhausted
    );
    // Charges were watched, and none was refused.
    assert_eq!(
        judge(&attempt.done(), &facts, &all_hooks()).cause,
        Cause::KernelMemoryExhausted
    );
}

/// 5.10 with a limit of kernel memory, in pages.
fn kernel_memory(usage: i64, max: i64) -> Build {
    hooked(ENOMEM)
        .reached(Check::ArchDupTaskStruct)
        .with(valid::MEMCG_KMEM)
        .change(|it| {
            it.memcg.cgroup_id = ID;
            it.memcg.usage = 600;
            it.memcg.max = 100_000;
            it.memcg.kmem_usage = usage;
            it.memcg.kmem_max = max;
        })
}

fn on_5_10() -> Facts {
    let mut facts = full();
    facts.kernel = Some((5, 10));
    facts.memory_cgroups[0] = MemcgFact {
        v1: true,
        kmem_usage: Some(2 * MIB),
        kmem_limit: Some(2 * MIB),
        ..memcg(3 * MIB, 400 * MIB)
    };
    facts
}

#[test]
fn kernel_memory_of_cgroup_v1() {
    let refused = kernel_memory(512, 512).failed(Check::MemcgKmemCharge, ENOMEM);
    let verdict = judge(&refused.done(), &on_5_10(), &all_hooks());
    assert_eq!(verdict.cause, Cause::MemcgKmemLimitV1);
    assert_eq!(verdict.certainty, Certainty::Observed);
    assert!(matches!(
        verdict.scope,
        Some(Scope::Cgroup { property, .. }) if property == "memory.kmem.limit_in_bytes"
    ));
    // The charge to memory, which comes first, was what was refused.
    let memory = refused.failed(Check::TryCharge, ENOMEM).done();
    assert_ne!(
        judge(&memory, &on_5_10(), &all_hooks()).cause,
        Cause::MemcgKmemLimitV1
    );
    // That charge was not watched: it would have been refused after reclaim only.
    let unwatched = |attempt: Build| {
        let coverage = hooks_without(&[Check::TryCharge]);
        judge(&attempt.done(), &on_5_10(), &coverage)
    };
    let verdict = unwatched(refused);
    assert_eq!(verdict.cause, Cause::MemcgKmemLimitV1);
    assert_eq!(verdict.certainty, Certainty::Observed);
    let reclaimed = refused.reached(Check::TryToFreeMemCgroupPages);
    assert_ne!(unwatched(reclaimed).cause, Cause::MemcgKmemLimitV1);
    // Not armed: by the numbers of the path.
    let plain = hooked(ENOMEM).reached(Check::ArchDupTaskStruct).done();
    let verdict = judge(&plain, &on_5_10(), &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgKmemLimitV1);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert_eq!(
        verdict.remedy[0].change.to_string(),
        "echo -1 > /sys/fs/cgroup/system.slice/pg.service/memory.kmem.limit_in_bytes"
    );
    // Since 5.16 the limit has no effect.
    let mut newer = on_5_10();
    newer.kernel = Some((6, 1));
    let verdict = judge(&plain, &newer, &base_hooks());
    assert_eq!(verdict.cause, Cause::KernelStackAllocFailed);
    assert_eq!(
        verdict.evidence.memcg.unwrap().levels[0].kmem_limit_bytes,
        None
    );
}

#[test]
fn after_the_fact_reclaim_the_log_and_the_path_speak() {
    let refused = by_libc(Some(ENOMEM))
        .reached(Check::TryToFreeMemCgroupPages)
        .change(|it| it.memcg.reclaims = 17);
    let judged = |attempt: Build, facts: &Facts| judge(&attempt.done(), facts, &no_hooks());
    let mut logged = full();
    logged.kernel_log = vec![LogFact::NothingKillable];
    let verdict = judged(refused, &logged);
    assert_eq!(verdict.cause, Cause::MemcgNoVictim);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert!(!verdict.remedy.is_empty());
    // The log cannot be read, but nobody looked at may be killed.
    let mut protected = full();
    protected.killable = Some(KillableFact {
        looked_at: 9,
        protected: 9,
    });
    assert_eq!(judged(refused, &protected).cause, Cause::MemcgNoVictim);
    protected.killable.as_mut().unwrap().protected = 8;
    assert_eq!(judged(refused, &protected).cause, Cause::Unknown);
    // One may be killed: the log line is of another cgroup.
    protected.kernel_log = vec![LogFact::NothingKillable];
    assert_eq!(judged(refused, &protected).cause, Cause::Unknown);
    // Not reclaimed: the log line is of another fork.
    assert_eq!(judged(by_libc(Some(ENOMEM)), &logged).cause, Cause::Unknown);
    // Another cgroup was short.
    let mut roomy = full();
    roomy.memory_cgroups[0].usage = Some(MIB);
    assert_eq!(judged(refused, &roomy).cause, Cause::Unknown);
    let mut off = full();
    off.memory_cgroups[0].oom_kill_disable = Some(true);
    assert_eq!(judged(refused, &off).cause, Cause::MemcgOomKillDisabled);
    let verdict = judged(by_libc(Some(ENOMEM)), &on_5_10());
    assert_eq!(verdict.cause, Cause::MemcgKmemLimitV1);
}

#[test]
fn a_limit_without_end_and_one_that_is_not_on_the_path() {
    let attempt = hooked(ENOMEM)
        .memcg(999, 1024, i64::MAX / 4096)
        .failed(Check::MemCgroupOutOfMemory, 0)
        .done();
    let verdict = judge(&attempt, &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgNoVictim);
    let memcg = verdict.evidence.memcg.unwrap();
    let seen = memcg.at_limit.unwrap();
    assert_eq!((seen.usage_bytes, seen.limit_bytes), (Some(4 * MIB), None));
    assert_eq!(verdict.scope, None);
    assert!(verdict.remedy.is_empty());
}
