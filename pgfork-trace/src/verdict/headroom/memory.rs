//! Limits that count memory in use. Most of them end in a kill, not in a refused fork.

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
    Some((private + facts.cost.kernel_bytes.unwrap_or(0)).max(1))
}

fn place(level: &MemoryLevel, ancestor: usize, file: &str) -> Place {
    let unit = level.group.unit.as_ref();
    Place::Cgroup {
        path: level.group.path.clone(),
        ancestor,
        unit: unit.map(|unit| unit.name.clone()),
        property: match (unit, file) {
            (Some(unit), "memory.max") => unit.property.clone(),
            (Some(_), "memory.high") => "MemoryHigh".to_owned(),
            _ => file.to_owned(),
        },
        container: level.group.container.clone(),
    }
}

/// mm/memcontrol.c `try_charge_memcg`, 5.10 to 7.2: at the limit the kernel reclaims, then kills,
/// and refuses only when nothing can be killed.
fn max(facts: &HeadroomFacts, ancestor: usize, level: &MemoryLevel) -> Option<Row> {
    let max = level.max?;
    let (limit, effect) = if level.oom_kill_disable {
        (Limit::MemcgOomKillDisabled, Effect::RefusesEnomem)
    } else if facts.killable == Some(false) {
        (Limit::MemcgNoVictim, Effect::RefusesEnomem)
    } else {
        (Limit::MemcgOomKill, Effect::Kills)
    };
    let mut row = Row::new(
        limit,
        place(level, ancestor, "memory.max"),
        effect,
        Unit::Bytes,
    );
    row.used = level.current.saturating_sub(level.reclaimable);
    row.max = Some(max);
    let swap = level
        .swap_room
        .unwrap_or(u64::MAX)
        .min(facts.swap_free.unwrap_or(0));
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
    if swap > 0 {
        row.notes
            .push(format!("room includes {} of swap", units::bytes(swap)));
    }
    if limit == Limit::MemcgNoVictim {
        row.notes.push(
            "every process of the server has oom_score_adj -1000: none can be killed, so forks are refused"
                .to_owned(),
        );
    }
    row.remedy = remedies::memory(facts, level, ancestor, limit, max);
    Some(row)
}

fn high(facts: &HeadroomFacts, ancestor: usize, level: &MemoryLevel) -> Option<Row> {
    let high = level.high?;
    let mut row = Row::new(
        Limit::MemcgHigh,
        place(level, ancestor, "memory.high"),
        Effect::Slows,
        Unit::Bytes,
    );
    row.used = level.current.saturating_sub(level.reclaimable);
    row.max = Some(high);
    row.room = Some(high.saturating_sub(row.used));
    row.backends = backend(facts).zip(row.room).map(|(each, room)| room / each);
    Some(row)
}

/// mm/memcontrol.c `__memcg_kmem_charge`, 5.10; a limit has no effect since 5.16.
fn kmem(facts: &HeadroomFacts, ancestor: usize, level: &MemoryLevel) -> Option<Row> {
    let (used, max) = level.kmem.filter(|_| facts.kernel < (5, 16))?;
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
    row.remedy = remedies::host_memory();
    Some(row)
}
