//! Forks of a process that is being killed, and checks that were attached too late.

use super::*;
use crate::verdict::{LogFact, MemcgFact};

const ID: u64 = 201;

/// A memory cgroup at its limit.
fn full() -> Facts {
    Facts {
        memory_cgroups: vec![MemcgFact {
            group: CgroupFact {
                id: ID,
                ..CgroupFact::default()
            },
            usage: Some(4 * MIB),
            limit: Some(4 * MIB),
            ..MemcgFact::default()
        }],
        kernel: Some((6, 12)),
        ..facts()
    }
}

fn in_copy_mm() -> Build {
    [
        Check::ArchDupTaskStruct,
        Check::CopyCreds,
        Check::SecurityTaskAlloc,
        Check::PgdAlloc,
    ]
    .into_iter()
    .fold(hooked(ENOMEM), Build::reached)
}

#[test]
fn a_signal_while_memory_is_copied_ends_as_enomem() {
    let verdict = judge(&in_copy_mm().dying(true).done(), &facts(), &base_hooks());
    assert_eq!(verdict.cause, Cause::FatalSignal);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    assert_eq!(whats(&verdict.also_possible), ["kernel memory"]);
    // Read, and not pending: it is ruled out.
    let verdict = judge(&in_copy_mm().dying(false).done(), &facts(), &base_hooks());
    assert_eq!(verdict.cause, Cause::KernelMemoryExhausted);
    assert!(verdict.also_possible.is_empty());
    let verdict = judge(&in_copy_mm().done(), &facts(), &base_hooks());
    assert_eq!(whats(&verdict.also_possible), ["a fatal signal"]);
}

#[test]
fn a_pending_signal_explains_no_enomem_elsewhere() {
    let judged = |attempt: Build, coverage: &Coverage| {
        judge(&attempt.dying(true).done(), &facts(), coverage).cause
    };
    let base = base_hooks();
    let before = hooked(ENOMEM).reached(Check::ArchDupTaskStruct);
    assert_eq!(judged(before, &base), Cause::KernelStackAllocFailed);
    let behind = in_copy_mm().reached(Check::CopyNamespaces);
    assert_eq!(judged(behind, &base), Cause::KernelMemoryExhausted);
    let blind = hooks_without(&[Check::CopyNamespaces, Check::DupMmap]);
    assert_ne!(judged(in_copy_mm(), &blind), Cause::FatalSignal);
    // The init of a pid namespace takes all in it along.
    let late = behind.reached(Check::CgroupCancelFork);
    assert_eq!(judged(late, &base), Cause::PidNamespaceDyingLate);
    // What refused was seen.
    let table = in_copy_mm().failed(Check::CopyPageRange, ENOMEM);
    assert_eq!(judged(table, &all_hooks()), Cause::PageTableAllocFailed);
    let full = in_copy_mm().change(|it| it.ret = EAGAIN);
    assert_ne!(judged(full, &base), Cause::FatalSignal);
}

#[test]
fn the_mark_of_the_oom_killer_needs_no_kernel_log() {
    let killed = in_copy_mm().memcg(ID, 1024, 1024).oom_victim();
    let verdict = judge(&killed.done(), &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgOomKilledForker);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    let late = killed
        .change(|it| it.ret = -libc::EINTR)
        .reached(Check::CgroupCancelFork);
    let verdict = judge(&late.done(), &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgOomKilledForker);
    // The host's OOM killer leaves the same mark.
    let mut host = full();
    host.kernel_log = vec![LogFact::HostKilled { pid: 1843 }];
    assert_ne!(
        judge(&killed.done(), &host, &base_hooks()).cause,
        Cause::MemcgOomKilledForker
    );
    assert_eq!(
        whats(&judge(&killed.done(), &full(), &base_hooks()).also_possible),
        ["a fatal signal"]
    );
    // One that dies beside the victim is marked as well when it finds no memory.
    let mut beside = full();
    beside.kernel_log = vec![
        LogFact::CgroupOutOfMemory {
            pid: 762,
            path: beside.memory_cgroups[0].group.path.clone(),
        },
        LogFact::CgroupKilled { pid: 762 },
    ];
    let verdict = judge(&killed.done(), &beside, &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgDyingTask);
    beside.kernel_log.push(LogFact::CgroupKilled { pid: 1843 });
    let verdict = judge(&killed.done(), &beside, &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgOomKilledForker);
    assert!(verdict.also_possible.is_empty());
    let calm = in_copy_mm().oom_victim();
    let verdict = judge(&calm.done(), &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::FatalSignal);
}

#[test]
fn one_that_dies_with_the_victim_is_told_by_its_own_signal() {
    let beside = in_copy_mm().memcg(ID, 1024, 1024);
    let verdict = judge(&beside.dying(true).done(), &full(), &base_hooks());
    assert_eq!(verdict.cause, Cause::MemcgDyingTask);
    assert_eq!(
        whats(&verdict.also_possible),
        ["kernel memory", "a fatal signal"]
    );
    // Whom nobody kills is not refused for that, whatever the log says of others.
    let mut logged = full();
    logged.kernel_log = vec![LogFact::CgroupKilled { pid: 762 }];
    for coverage in [base_hooks(), all_hooks()] {
        let verdict = judge(&beside.dying(false).done(), &logged, &coverage);
        assert_eq!(verdict.cause, Cause::KernelMemoryExhausted);
    }
}

#[test]
fn a_system_call_of_a_dying_process_is_told_by_its_signal() {
    use pgfork_trace_common::syscall::{CLONE, ENTERED};
    let call = |ret| by_syscall(CLONE | ENTERED, ret).dying(true);
    let judged = |attempt: Build, facts: &Facts| judge(&attempt.done(), facts, &no_hooks());
    let verdict = judged(call(-libc::EINTR), &facts());
    assert_eq!(verdict.cause, Cause::FatalSignal);
    assert_eq!(verdict.certainty, Certainty::Deduced);
    let verdict = judged(call(ENOMEM), &facts());
    assert_eq!(verdict.cause, Cause::FatalSignal);
    assert!(whats(&verdict.also_possible).contains(&"kernel memory"));
    let reclaimed = call(ENOMEM).memcg(ID, 1024, 1024);
    let verdict = judged(reclaimed, &full());
    assert_eq!(verdict.cause, Cause::MemcgDyingTask);
    assert!(whats(&verdict.also_possible).contains(&"a fatal signal"));
    let verdict = judged(reclaimed.oom_victim(), &full());
    assert_eq!(verdict.cause, Cause::MemcgOomKilledForker);
    // Other reasons to get the same, and no signal.
    let namespace = call(ENOMEM).pid_namespace(3);
    let small = Facts {
        largest_mapping_bytes: Some(MIB),
        ..facts()
    };
    assert_eq!(judged(namespace, &small).cause, Cause::PidNamespaceDying);
    let alive = by_syscall(CLONE | ENTERED, ENOMEM).dying(false);
    assert_ne!(judged(alive, &facts()).cause, Cause::FatalSignal);
    assert_ne!(judged(call(EAGAIN), &facts()).cause, Cause::FatalSignal);
}

/// The checks on hot paths are attached while records of earlier forks wait: those forks were not
/// watched by them.
#[test]
fn a_fork_from_before_they_were_attached_is_judged_without_them() {
    let off = hooked(ENOMEM)
        .reached(Check::CopyCreds)
        .memcg(ID, 1024, 1024)
        .with(valid::MEMCG_OOM_DISABLE)
        .change(|it| it.memcg.oom_kill_disable = 1);
    let judged = |coverage| judge(&off.done(), &full(), &coverage).cause;
    assert_eq!(judged(base_hooks()), Cause::MemcgOomKillDisabled);
    assert_eq!(judged(all_hooks()), Cause::KernelMemoryExhausted);
}
