//! Whose limit it is.

use super::super::{Cause, Evidence, MemcgLevel, Scope, candidates::numbers_left};

pub(in crate::verdict) fn scope(cause: Cause, evidence: &Evidence) -> Option<Scope> {
    match cause {
        Cause::CommitLimit
        | Cause::OvercommitHeuristic
        | Cause::ThreadsMax
        | Cause::NrOpenLowered
        | Cause::SchedExtRejected
        | Cause::LsmDenied
        | Cause::KernelMemoryExhausted
        | Cause::KernelStackAllocFailed
        | Cause::PageTableAllocFailed
        | Cause::FdTableAllocFailed => Some(Scope::Host),
        Cause::PidsCgroupMax => pids(evidence),
        Cause::RlimitNproc => user(evidence),
        Cause::PidSpaceExhausted => {
            let (ancestor, level) = evidence
                .pid_namespaces
                .iter()
                .enumerate()
                .filter(|(_, level)| level.pid_max.is_some())
                .min_by_key(|(_, level)| numbers_left(level))?;
            Some(Scope::PidNamespace {
                inum: level.inum,
                level: level.level,
                ancestor,
            })
        }
        Cause::PidNamespaceDying | Cause::PidNamespaceDyingLate => {
            let gone = evidence.pid_namespaces.iter().position(|it| !it.alive);
            // At the late check it was still there when it was read.
            let ancestor = gone.or((cause == Cause::PidNamespaceDyingLate).then_some(0))?;
            let level = evidence.pid_namespaces.get(ancestor)?;
            Some(Scope::PidNamespace {
                inum: level.inum,
                level: level.level,
                ancestor,
            })
        }
        Cause::MemcgNoVictim | Cause::MemcgOomKillDisabled => {
            let (ancestor, level) = evidence.memcg.as_ref()?.refusing()?;
            memory(ancestor?, level, &level.property)
        }
        Cause::MemcgKmemLimitV1 => {
            let (ancestor, level) = evidence.memcg.as_ref()?.refusing_kernel_memory()?;
            memory(ancestor?, level, "memory.kmem.limit_in_bytes")
        }
        Cause::SchedDeadlineFork
        | Cause::ExecRaceFs
        | Cause::SeccompDenied
        | Cause::PtraceOrUserDispatch
        | Cause::PerfInheritFailed
        | Cause::InvalidCloneFlags
        | Cause::FatalSignal => Some(Scope::Process),
        _ => None,
    }
}

fn memory(ancestor: usize, level: &MemcgLevel, property: &str) -> Option<Scope> {
    Some(Scope::Cgroup {
        path: level.path.clone(),
        cgroup_id: level.cgroup_id,
        ancestor,
        unit: level.unit.clone(),
        property: property.to_owned(),
        container: level.container.clone(),
    })
}

fn pids(evidence: &Evidence) -> Option<Scope> {
    let (ancestor, level) = evidence.refusing_pids()?;
    Some(Scope::Cgroup {
        path: level.path.clone(),
        cgroup_id: level.cgroup_id,
        ancestor,
        unit: level.unit.clone(),
        property: level.property.clone(),
        container: level.container.clone(),
    })
}

fn user(evidence: &Evidence) -> Option<Scope> {
    let nproc = evidence.nproc.as_ref()?;
    let (ancestor, level) = nproc.refusing()?;
    Some(Scope::User {
        uid: nproc.uid.filter(|_| ancestor == 0),
        userns_inum: level.userns_inum,
        ancestor,
    })
}
