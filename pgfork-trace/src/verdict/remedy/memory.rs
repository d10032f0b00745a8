//! Memory cgroups and mappings that are too large.

use super::{
    super::{
        CgroupFact, Change, Evidence, Facts, MemcgFact, MemcgLevel, OvercommitEvidence, Remedy,
    },
    MIB, quoted,
};

/// Room that a remedy makes in a memory cgroup at least.
const LEAST_ROOM: u64 = 256 * MIB;

/// More memory for the full cgroup, and for every one above that would refuse within that room.
pub(super) fn no_victim(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let mut remedies = raise(evidence, facts);
    if !remedies.is_empty() {
        remedies.push(Remedy {
            change: Change::Action("start the server with PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj PG_OOM_ADJUST_VALUE=0"
                .to_owned()),
            effect: "only the postmaster is protected then; at the limit a backend is killed, and the server recovers"
                .to_owned(),
            immediate: false,
        });
    }
    remedies
}

pub(super) fn oom_kill_disabled(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let mut remedies = raise(evidence, facts);
    let refusing = evidence.memcg.as_ref().and_then(|it| it.refusing());
    let fact = refusing.and_then(|(_, level)| fact_of(level, facts));
    if let Some(fact) = fact {
        remedies.push(Remedy {
            change: Change::Command(format!(
                "echo 0 > {}",
                file(&fact.group, "memory.oom_control")
            )),
            effect: "instead: at the limit the OOM killer ends one process, and the others go on"
                .to_owned(),
            immediate: true,
        });
    }
    remedies
}

/// mm/memcontrol.c `memcg_update_kmem_max`, 5.10: -1 is no limit, at every level that has one.
pub(super) fn kernel_memory(facts: &Facts) -> Vec<Remedy> {
    facts
        .memory_cgroups
        .iter()
        .filter(|fact| fact.kmem_limit.is_some())
        .map(|fact| Remedy {
            change: Change::Command(format!(
                "echo -1 > {}",
                file(&fact.group, "memory.kmem.limit_in_bytes")
            )),
            effect: match &fact.group.container {
                Some(id) => format!(
                    "no separate limit of kernel memory, until container {} is recreated: start it without --kernel-memory",
                    id.get(..12).unwrap_or(id)
                ),
                None => "no separate limit of kernel memory; the memory limit still counts it".to_owned(),
            },
            immediate: true,
        })
        .collect()
}

fn fact_of<'a>(level: &MemcgLevel, facts: &'a Facts) -> Option<&'a MemcgFact> {
    facts
        .memory_cgroups
        .iter()
        .find(|fact| fact.group.id == level.cgroup_id)
}

fn file(group: &CgroupFact, name: &str) -> String {
    quoted(&format!("{}/{name}", group.directory))
}

/// Half as much again, at least `LEAST_ROOM`, for the level that refused; the others on its path
/// must have room for that as well.
fn raise(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let Some((place, refusing)) = evidence.memcg.as_ref().and_then(|it| it.refusing()) else {
        return Vec::new();
    };
    let (Some(usage), Some(_)) = (refusing.usage_bytes, place) else {
        return Vec::new();
    };
    let limit = refusing.limit_bytes.or(refusing.memsw_limit_bytes);
    let Some(limit) = limit else {
        return Vec::new();
    };
    let more = (limit / 2).max(LEAST_ROOM);
    let mut remedies = Vec::new();
    for fact in &facts.memory_cgroups {
        let own = fact.group.id == refusing.cgroup_id;
        let used = if own {
            usage.max(fact.usage.unwrap_or(0))
        } else {
            fact.usage.unwrap_or(0)
        };
        let target = used.saturating_add(more).div_ceil(MIB) * MIB;
        let raises = |limit: Option<u64>| limit.is_some_and(|limit| limit < target);
        let effect = if own {
            let ram = facts.memory.map(|it| it.mem_available);
            let short = ram.is_some_and(|available| available < more);
            format!(
                "room for {} MiB more{}",
                more / MIB,
                if short {
                    ", which the host does not have: lower what is used instead"
                } else {
                    ""
                }
            )
        } else {
            "needed as well: this one would be full next".to_owned()
        };
        // Memory and swap together may not be less than memory alone, so that comes first.
        if raises(fact.memsw_limit) {
            remedies.push(set(fact, "memory.memsw.limit_in_bytes", target, &effect));
        }
        if raises(fact.limit) {
            let name = if fact.v1 {
                "memory.limit_in_bytes"
            } else {
                "memory.max"
            };
            remedies.push(set(fact, name, target, &effect));
        }
    }
    remedies
}

fn set(fact: &MemcgFact, name: &str, bytes: u64, effect: &str) -> Remedy {
    let mib = bytes / MIB;
    let group = &fact.group;
    match &group.unit {
        // systemd has no property for memory and swap together.
        Some(unit) if group.container.is_none() && name != "memory.memsw.limit_in_bytes" => {
            Remedy {
                change: Change::Command(format!(
                    "systemctl set-property {} {}={mib}M",
                    quoted(&unit.name),
                    unit.property
                )),
                effect: format!("{effect}; lasts across restarts (--runtime: until the next boot)"),
                immediate: true,
            }
        }
        _ => Remedy {
            change: Change::Command(format!("echo {mib}M > {}", file(group, name))),
            effect: match &group.container {
                Some(id) => format!(
                    "{effect}; until container {} is recreated: raise its memory limit there too",
                    id.get(..12).unwrap_or(id)
                ),
                None => effect.to_owned(),
            },
            immediate: true,
        },
    }
}

/// mm/util.c `__vm_enough_memory`, 5.10 to 7.2: what is asked for may be as large as RAM and swap.
pub(super) fn heuristic(overcommit: &OvercommitEvidence) -> Vec<Remedy> {
    let asked = overcommit
        .requested_bytes
        .max(overcommit.largest_mapping_bytes);
    let (Some(asked), Some(ram), Some(swap)) = (
        asked,
        overcommit.mem_total_bytes,
        overcommit.swap_total_bytes,
    ) else {
        return Vec::new();
    };
    let missing = asked.saturating_sub(ram.saturating_add(swap)).div_ceil(MIB);
    let mut remedies = vec![Remedy {
        change: Change::Command("sysctl vm.overcommit_memory=1".to_owned()),
        effect: "the kernel refuses no request then; the OOM killer acts when memory really ends"
            .to_owned(),
        immediate: true,
    }];
    if missing > 0 {
        remedies.push(Remedy {
            change: Change::Action(format!("add {} MiB of swap", missing + 1)),
            effect: "then RAM and swap are as large as the largest mapping".to_owned(),
            immediate: true,
        });
    }
    remedies
}
