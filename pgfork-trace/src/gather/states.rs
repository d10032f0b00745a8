//! Facts that only some refusals need, by their errno.

use std::{fs, path::Path, time::Instant};

use pgfork_trace_common::{Attempt, Check, source, valid};

use super::{FRESH, Gatherer, SLOW_FRESH, cgroup_fact};
use crate::{
    host::{
        Ceiling, Pid, Root,
        cgroup::{self, Controller, Level, Version},
        process, sysctl,
    },
    verdict::{
        Facts, KillableFact, MemcgFact, MemoryFacts,
        overcommit::{self, HEURISTIC},
    },
};

/// Children whose `oom_score_adj` is looked at.
const SAMPLED_CHILDREN: usize = 32;
/// `SCHED_DEADLINE` (include/uapi/linux/sched.h).
const SCHED_DEADLINE: u32 = 6;
/// `oom_score_adj` of what is never killed (`OOM_SCORE_ADJ_MIN`, include/uapi/linux/oom.h).
const NEVER_KILLED: i32 = -1000;

impl Gatherer {
    /// Completes the facts by what this refusal's errno makes relevant.
    pub(super) fn states(&mut self, attempt: &Attempt, facts: &mut Facts, now: Instant) {
        let ret = (attempt.valid & valid::RET != 0).then_some(attempt.ret);
        let may_be = |errno: i32| ret.is_none_or(|ret| ret == -errno);
        let pid = attempt.tgid;
        let after_the_fact = attempt.source != source::KERNEL_CLONE;
        facts.kernel_log = self.log.recent(now);
        if may_be(libc::EAGAIN)
            && attempt.valid & valid::POLICY != 0
            && attempt.state.policy == SCHED_DEADLINE
        {
            facts.reset_on_fork = reset_on_fork(attempt.tid);
        }
        if may_be(libc::EMFILE) {
            facts.nr_open = sysctl::sysctl_number(&self.root, "fs/nr_open")
                .ok()
                .flatten();
        }
        if may_be(libc::ENOMEM) {
            facts.memory_cgroups = self.memory_cgroups(pid, now);
            let reclaimed = attempt.stages & Check::TryToFreeMemCgroupPages.bit() != 0;
            if reclaimed || attempt.valid & valid::MEMCG_OOM != 0 {
                facts.killable = Some(self.killable(pid, now));
            }
            let heuristic = overcommit::mode(attempt, facts) == Some(HEURISTIC);
            let called = attempt.valid & valid::OVERCOMMIT_CALL != 0;
            if heuristic && !called && !fits_in_all(attempt, facts) {
                facts.largest_mapping_bytes = self.charge(pid, now).map(|it| it.largest_bytes);
            }
        }
        let limits = [-libc::EAGAIN, -libc::ENOMEM];
        if after_the_fact || ret.is_some_and(|ret| !limits.contains(&ret)) {
            facts.security_modules.clone_from(&self.security_modules);
            facts.sched_ext = sched_ext(&self.root);
        }
    }

    fn memory_cgroups(&mut self, pid: Pid, now: Instant) -> Vec<MemcgFact> {
        if let Some((at, levels)) = self.memory.get(&pid)
            && now.duration_since(*at) < FRESH
        {
            return levels.clone();
        }
        let chain = cgroup::chain(&self.root, pid, Controller::Memory)
            .ok()
            .flatten();
        let levels: Vec<MemcgFact> = chain.map_or_else(Vec::new, |chain| {
            let fact = |level| memcg_fact(level, chain.version);
            chain.levels.iter().filter_map(fact).collect()
        });
        self.memory.insert(pid, (now, levels.clone()));
        levels
    }

    fn killable(&mut self, pid: Pid, now: Instant) -> KillableFact {
        if let Some((at, found)) = self.killable.get(&pid)
            && now.duration_since(*at) < SLOW_FRESH
        {
            return *found;
        }
        let children = process::children(&self.root, pid);
        let newest = children.into_iter().rev().take(SAMPLED_CHILDREN);
        let scores: Vec<i32> = std::iter::once(pid)
            .chain(newest)
            .filter_map(|pid| process::oom_score_adj(&self.root, pid).ok().flatten())
            .collect();
        let found = KillableFact {
            looked_at: scores.len() as u64,
            protected: scores
                .iter()
                .filter(|score| **score == NEVER_KILLED)
                .count() as u64,
        };
        self.killable.insert(pid, (now, found));
        found
    }
}

/// A level's limits, and who manages them.
pub(crate) fn memcg_fact(level: &Level, version: Version) -> Option<MemcgFact> {
    let at = |ceiling: Option<Ceiling>| match ceiling {
        Some(Ceiling::At(bytes)) => Some(bytes),
        _ => None,
    };
    let memory = &level.memory;
    Some(MemcgFact {
        group: cgroup_fact(level, Controller::Memory)?,
        v1: version == Version::V1,
        usage: memory.current_bytes,
        limit: at(memory.max_bytes),
        memsw_usage: memory.memsw_current_bytes,
        memsw_limit: at(memory.memsw_max_bytes),
        kmem_usage: memory.kmem_current_bytes,
        kmem_limit: at(memory.kmem_max_bytes),
        oom_kill_disable: memory.oom_kill_disable,
    })
}

/// Major and minor release of the running kernel.
pub(super) fn kernel(root: &Root) -> Option<(u32, u32)> {
    let release = sysctl::read_sysctl(root, "kernel/osrelease")
        .ok()
        .flatten()?;
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Security modules in the order in which the kernel asks them.
pub(super) fn security_modules(root: &Root) -> Vec<String> {
    let path = root.join(Path::new("/sys/kernel/security/lsm"));
    let list = fs::read_to_string(path).unwrap_or_default();
    list.trim()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether a BPF scheduler runs: kernel/sched/ext.c, `/sys/kernel/sched_ext/state` (6.12 and later).
fn sched_ext(root: &Root) -> Option<bool> {
    let path = root.join(Path::new("/sys/kernel/sched_ext/state"));
    let state = fs::read_to_string(path).ok()?;
    Some(state.trim() != "disabled")
}

/// Whether children of this thread get a normal policy.
fn reset_on_fork(tid: Pid) -> Option<bool> {
    const RESET_ON_FORK: u64 = libc::SCHED_FLAG_RESET_ON_FORK as u64;
    // SAFETY: made of integers only.
    let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = u32::try_from(size_of_val(&attr)).ok()?;
    // SAFETY: the kernel writes at most `size` bytes to `attr`, which is that large.
    let result = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) };
    (result == 0).then_some(attr.sched_flags & RESET_ON_FORK != 0)
}

/// Whether the whole address space is known to be no larger than RAM and swap, so that no mapping
/// of it is: they are then not looked at.
fn fits_in_all(attempt: &Attempt, facts: &Facts) -> bool {
    let size = attempt.state.total_vm_pages.saturating_mul(facts.page_size);
    let all = |memory: MemoryFacts| memory.mem_total.saturating_add(memory.swap_total);
    attempt.valid & valid::MM != 0 && facts.memory.is_some_and(|it| size <= all(it))
}

#[cfg(test)]
#[path = "states_tests.rs"]
mod tests;
