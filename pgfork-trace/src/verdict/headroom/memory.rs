//! Limits that count memory in use. Most of them end in a kill, not in a refused fork.

use super::super::remedy::memory::kernel_memory;
use super::{Effect, HeadroomFacts, Limit, MemoryLevel, Place, Row, Unit, remedies};
use crate::output::units;

pub(super) fn rows(facts: &HeadroomFacts) -> Vec<Row> {
    let mut rows = Vec::new();
    for (ancestor, level) in facts.memory.iter().enumerate() {
        rows.extend(max(facts, ancestor, level));
        rows.extend(high(facts, ancestor, level));
        rows.extend(kmem(facts, ancestor, level));
    }
    rows.extend(host(facts));
    rows
}

/// Memory that one more backend takes for good.
fn backend(facts: &HeadroomFacts) -> Option<u64> {
    let private = facts.cost.private_bytes?;
    let kernel = facts.cost.kernel_bytes.unwrap_or(0);
    Some(private.saturating_add(kernel).max(1))
}

fn place(level: &MemoryLevel, ancestor: usize, file: &str) -> Place {
    let group = &level.fact.group;
    let unit = group.unit.as_ref();
    Place::Cgroup {
        path: group.path.clone(),
        ancestor,
        unit: unit.map(|unit| unit.name.clone()),
        property: match (unit, file) {
            (Some(unit), "memory.max" | "memory.limit_in_bytes") => unit.property.clone(),
            (Some(_), "memory.high") => "MemoryHigh".to_owned(),
            _ => file.to_owned(),
        },
        container: group.container.clone(),
    }
}

/// mm/memcontrol.c `try_charge_memcg`, 5.10 to 7.2: at the limit the kernel reclaims, then kills,
/// and refuses only when nothing can be killed.
fn max(facts: &HeadroomFacts, ancestor: usize, level: &MemoryLevel) -> Option<Row> {
    let usage = level.fact.usage?;
    let (limit, effect) = if level.fact.oom_kill_disable == Some(true) {
        (Limit::MemcgOomKillDisabled, Effect::RefusesEnomem)
    } else if level.killable == Some(false) {
        (Limit::MemcgNoVictim, Effect::RefusesEnomem)
    } else {
        (Limit::MemcgOomKill, Effect::Kills)
    };
    let place = place(level, ancestor, level.fact.limit_file());
    let mut row = Row::new(limit, place, effect, Unit::Bytes);
    row.used = usage.saturating_sub(level.reclaimable);
    let Some(max) = level.fact.limit else {
        // On v1 the root has the file, too, but can have no limit.
        return (level.fact.group.path != "/").then_some(row);
    };
    row.max = Some(max);
    let (swap, swap_note) = swap(facts, level);
    let room = max.saturating_sub(row.used).saturating_add(swap);
    row.room = Some(room);
    row.backends = backend(facts).map(|each| room / each);
    if level.reclaimable > 0 {
        row.notes.push(format!(
            "without {} of file cache and kernel caches, which the kernel drops first",
            units::bytes(level.reclaimable)
        ));
    }
    if level.cache_in_use > 0 {
        row.uncertain_backends = backend(facts).map_or(0, |each| level.cache_in_use / each);
        row.notes.push(format!(
            "{} of file cache in use counts as taken; some of it may be dropped too, and has to be read again",
            units::bytes(level.cache_in_use)
        ));
    }
    row.notes.extend(swap_note);
    // mm/memcontrol.c `mem_cgroup_get_oom_group`, 5.10 to 7.2: of the levels from the victim up to
    // the one at its limit.
    let on_the_way = facts.memory.iter().take(ancestor + 1);
    if limit == Limit::MemcgOomKill
        && let Some(group) = on_the_way.rev().find(|level| level.oom_group)
    {
        row.notes.push(format!(
            "memory.oom.group is 1 in {}: all its processes are killed together, but those with oom_score_adj -1000",
            group.fact.group.path
        ));
    }
    if limit == Limit::MemcgNoVictim {
        row.notes.push(
            "every process in it has oom_score_adj -1000: none can be killed, so forks are refused"
                .to_owned(),
        );
    }
    row.remedy = remedies::memory(facts, level, limit);
    Some(row)
}

/// How much of what a level holds can go to swap, and what bounds it.
///
/// v2: what is swapped out is charged to every level (mm/memcontrol.c
/// `mem_cgroup_get_nr_swap_pages`, 5.10 to 7.2), so the least room on the path counts. v1: swap in
/// use counts towards the limit of both together.
fn swap(facts: &HeadroomFacts, level: &MemoryLevel) -> (u64, Option<String>) {
    let free = facts.swap_free.unwrap_or(0);
    let fact = &level.fact;
    let (bound, by) = if fact.v1 {
        let swapped = fact.memsw_usage.zip(fact.usage);
        let swapped = swapped.map_or(0, |(both, memory)| both.saturating_sub(memory));
        let both = fact.memsw_limit.zip(fact.limit);
        let room = both.map(|(both, memory)| {
            let swap = both.saturating_sub(memory);
            swap.saturating_sub(swapped)
        });
        (
            room,
            format!("memory.memsw.limit_in_bytes of {}", fact.group.path),
        )
    } else {
        let least = facts
            .memory
            .iter()
            .filter_map(|level| Some((level.swap_room?, level)))
            .min_by_key(|(room, _)| *room);
        let by = least.map(|(_, level)| level.fact.group.path.as_str());
        (
            least.map(|(room, _)| room),
            format!("memory.swap.max of {}", by.unwrap_or_default()),
        )
    };
    let swap = bound.unwrap_or(u64::MAX).min(free);
    let note = match (swap, bound) {
        (0, Some(0)) if free > 0 => Some(format!("no room in swap: {by} leaves none")),
        (0, _) => None,
        (swap, Some(bound)) if bound < free => Some(format!(
            "room includes {} of swap, all that {by} leaves",
            units::bytes(swap)
        )),
        (swap, _) => Some(format!("room includes {} of swap", units::bytes(swap))),
    };
    (swap, note)
}

fn high(facts: &HeadroomFacts, ancestor: usize, level: &MemoryLevel) -> Option<Row> {
    let high = level.high?;
    let mut row = Row::new(
        Limit::MemcgHigh,
        place(level, ancestor, "memory.high"),
        Effect::Slows,
        Unit::Bytes,
    );
    row.used = level.fact.usage?.saturating_sub(level.reclaimable);
    row.max = Some(high);
    row.room = Some(high.saturating_sub(row.used));
    row.backends = backend(facts).zip(row.room).map(|(each, room)| room / each);
    row.remedy = remedies::high(level, high);
    Some(row)
}

/// mm/memcontrol.c `__memcg_kmem_charge`, 5.10; a limit has no effect since 5.16.
fn kmem(facts: &HeadroomFacts, ancestor: usize, level: &MemoryLevel) -> Option<Row> {
    let in_force = facts.kernel < (5, 16);
    let (used, max) = level.fact.kmem_usage.zip(level.fact.kmem_limit)?;
    if !in_force {
        return None;
    }
    let mut row = Row::new(
        Limit::MemcgKmemLimitV1,
        place(level, ancestor, "memory.kmem.limit_in_bytes"),
        Effect::RefusesEnomem,
        Unit::Bytes,
    );
    row.used = used;
    row.max = Some(max);
    row.room = Some(max.saturating_sub(used));
    row.backends = facts
        .cost
        .kernel_bytes
        .filter(|each| *each > 0)
        .map(|each| max.saturating_sub(used) / each);
    row.remedy = kernel_memory([&level.fact]);
    Some(row)
}

fn host(facts: &HeadroomFacts) -> Option<Row> {
    let memory = facts.host.memory?;
    let swap = facts.swap_free.unwrap_or(0);
    let max = memory.mem_total.saturating_add(memory.swap_total);
    let room = memory.mem_available.saturating_add(swap);
    let mut row = Row::new(
        Limit::GlobalOomKill,
        Place::Host,
        Effect::Kills,
        Unit::Bytes,
    );
    row.used = max.saturating_sub(room);
    row.max = Some(max);
    row.room = Some(room.min(max));
    row.backends = backend(facts).map(|each| room / each);
    row.notes.push(format!(
        "MemAvailable {} and {} of free swap",
        units::bytes(memory.mem_available),
        units::bytes(swap)
    ));
    row.remedy = remedies::host_memory(facts, backend(facts));
    Some(row)
}
