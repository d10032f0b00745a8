//! Memory cgroups: what the kernel side saw of the one at its limit, and the path's own files.

use pgfork_trace_common::{Attempt, MemcgSeen, valid};

use super::{
    Facts, MemcgFact,
    evidence::{MemcgEvidence, MemcgLevel},
};

/// A level this close to its limit counts as full: charges come in batches of up to 64 pages
/// (`MEMCG_CHARGE_BATCH`, include/linux/memcontrol.h, 6.1 to 7.2; 32 pages in 5.10), of which
/// each CPU may hold one back, and the refused fork has given back what it had.
const SLACK: u64 = 1 << 20;
/// The same for kernel memory: a stack of 16 KiB or a slab of up to 32 KiB did not fit, and what
/// the refused fork had of it is given back.
const KERNEL_SLACK: u64 = 64 << 10;
/// Since this release a limit of kernel memory has no effect (mm/memcontrol.c; it does in 5.10,
/// not in 6.1).
const KMEM_LIMIT_GONE: (u32, u32) = (5, 16);

pub(super) fn collect(attempt: &Attempt, facts: &Facts) -> Option<MemcgEvidence> {
    let seen = attempt.valid & (valid::MEMCG_RECLAIM | valid::MEMCG_OOM | valid::MEMCG_KMEM) != 0;
    let found = MemcgEvidence {
        at_limit: seen.then(|| at_limit(attempt, facts)),
        oom: attempt.valid & valid::MEMCG_OOM != 0,
        reclaims: (attempt.memcg.reclaims > 0).then_some(attempt.memcg.reclaims),
        levels: facts
            .memory_cgroups
            .iter()
            .map(|it| level(it, facts))
            .collect(),
        processes: facts.killable.map(|it| it.looked_at),
        protected: facts.killable.map(|it| it.protected),
    };
    (found != MemcgEvidence::default()).then_some(found)
}

fn at_limit(attempt: &Attempt, facts: &Facts) -> MemcgLevel {
    let seen: &MemcgSeen = &attempt.memcg;
    let page = facts.page_size;
    let usage = |pages: i64| Some(u64::try_from(pages).unwrap_or(0).saturating_mul(page));
    // PAGE_COUNTER_MAX (include/linux/page_counter.h, 5.10 to 7.2): LONG_MAX / PAGE_SIZE.
    let limit = |pages: i64| {
        let unlimited = i64::MAX / i64::try_from(page.max(1)).unwrap_or(i64::MAX);
        u64::try_from(pages)
            .ok()
            .filter(|_| pages < unlimited)
            .map(|pages| pages.saturating_mul(page))
    };
    let fact = facts
        .memory_cgroups
        .iter()
        .find(|fact| fact.group.id == seen.cgroup_id);
    let named = fact
        .map(|it| level(it, facts))
        .unwrap_or_else(|| MemcgLevel {
            cgroup_id: seen.cgroup_id,
            property: "memory.max".to_owned(),
            ..MemcgLevel::default()
        });
    let read = |bit: u32| attempt.valid & bit != 0;
    MemcgLevel {
        usage_bytes: usage(seen.usage),
        limit_bytes: limit(seen.max),
        memsw_usage_bytes: usage(seen.memsw_usage).filter(|_| read(valid::MEMCG_MEMSW)),
        memsw_limit_bytes: limit(seen.memsw_max).filter(|_| read(valid::MEMCG_MEMSW)),
        kmem_usage_bytes: usage(seen.kmem_usage)
            .filter(|_| read(valid::MEMCG_KMEM) && kmem_counts(facts)),
        kmem_limit_bytes: limit(seen.kmem_max)
            .filter(|_| read(valid::MEMCG_KMEM) && kmem_counts(facts)),
        oom_kill_disable: read(valid::MEMCG_OOM_DISABLE).then_some(seen.oom_kill_disable != 0),
        ..named
    }
}

/// Whether a limit of kernel memory is in force on this kernel.
fn kmem_counts(facts: &Facts) -> bool {
    facts.kernel.is_some_and(|kernel| kernel < KMEM_LIMIT_GONE)
}

fn level(fact: &MemcgFact, facts: &Facts) -> MemcgLevel {
    let group = &fact.group;
    MemcgLevel {
        cgroup_id: group.id,
        path: Some(group.path.clone()),
        unit: group.unit.as_ref().map(|unit| unit.name.clone()),
        property: group.unit.as_ref().map_or_else(
            || fact.limit_file().to_owned(),
            |unit| unit.property.clone(),
        ),
        container: group.container.clone(),
        usage_bytes: fact.usage,
        limit_bytes: fact.limit,
        memsw_usage_bytes: fact.memsw_usage,
        memsw_limit_bytes: fact.memsw_limit,
        kmem_usage_bytes: fact.kmem_usage.filter(|_| kmem_counts(facts)),
        kmem_limit_bytes: fact.kmem_limit.filter(|_| kmem_counts(facts)),
        oom_kill_disable: fact.oom_kill_disable,
    }
}

impl MemcgFact {
    /// The file that holds the limit.
    pub(super) fn limit_file(&self) -> &'static str {
        if self.v1 {
            "memory.limit_in_bytes"
        } else {
            "memory.max"
        }
    }
}

impl MemcgLevel {
    /// Whether memory, or memory and swap, is at the limit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let full = |usage: Option<u64>, limit: Option<u64>| match (usage, limit) {
            (Some(usage), Some(limit)) => usage.saturating_add(SLACK.min(limit / 8)) >= limit,
            _ => false,
        };
        full(self.usage_bytes, self.limit_bytes)
            || full(self.memsw_usage_bytes, self.memsw_limit_bytes)
    }

    /// Whether kernel memory is at its limit.
    #[must_use]
    pub fn kernel_memory_is_full(&self) -> bool {
        match (self.kmem_usage_bytes, self.kmem_limit_bytes) {
            (Some(usage), Some(limit)) => {
                usage.saturating_add(KERNEL_SLACK.min(limit / 8)) >= limit
            }
            _ => false,
        }
    }
}

impl MemcgEvidence {
    /// The level whose limit it was: the one that memory was reclaimed from, if it was full or the
    /// OOM killer was called for it, else the first full one. With its place on the path, where it is on it. Memory is reclaimed
    /// above memory.high as well, which refuses nothing (mm/memcontrol.c `reclaim_high`, called by
    /// `mem_cgroup_handle_over_high`, 5.10 to 7.2).
    #[must_use]
    pub fn refusing(&self) -> Option<(Option<usize>, &MemcgLevel)> {
        match &self.at_limit {
            Some(level) if self.oom || level.is_full() => Some((self.place(level), level)),
            _ => self.first(MemcgLevel::is_full),
        }
    }

    /// The level whose limit of kernel memory it was.
    #[must_use]
    pub fn refusing_kernel_memory(&self) -> Option<(Option<usize>, &MemcgLevel)> {
        match &self.at_limit {
            Some(level) if level.kernel_memory_is_full() => Some((self.place(level), level)),
            _ => self.first(MemcgLevel::kernel_memory_is_full),
        }
    }

    fn place(&self, level: &MemcgLevel) -> Option<usize> {
        self.levels
            .iter()
            .position(|it| it.cgroup_id == level.cgroup_id)
    }

    fn first(&self, full: impl Fn(&MemcgLevel) -> bool) -> Option<(Option<usize>, &MemcgLevel)> {
        let found = self.levels.iter().enumerate().find(|(_, it)| full(it))?;
        Some((Some(found.0), found.1))
    }
}
