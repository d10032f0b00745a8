//! Memory cgroups and mappings that are too large.

use super::{
    super::{
        CgroupFact, Change, Evidence, Facts, MemcgFact, MemcgLevel, MemoryFacts,
        OvercommitEvidence, Remedy,
    },
    MIB, container, quoted,
};

/// Room that a remedy makes in a memory cgroup at least.
const LEAST_ROOM: u64 = 256 * MIB;

/// More memory for the full cgroup, and for every one above that would refuse within that room.
pub(super) fn no_victim(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let mut remedies = raise(evidence, facts);
    if !remedies.is_empty() {
        remedies.push(let_backends_be_killed());
    }
    remedies
}

pub(in super::super) fn let_backends_be_killed() -> Remedy {
    Remedy {
        change: Change::Action("start the server with PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj PG_OOM_ADJUST_VALUE=0"
            .to_owned()),
        effect: "only the postmaster is protected then; at the limit a backend is killed, and the server recovers"
            .to_owned(),
        immediate: false,
    }
}

pub(super) fn oom_kill_disabled(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let mut remedies = raise(evidence, facts);
    let refusing = evidence.memcg.as_ref().and_then(|it| it.refusing());
    let fact = refusing.and_then(|(_, level)| fact_of(level, facts));
    remedies.extend(fact.map(|fact| enable_oom_killer(&fact.group)));
    remedies
}

pub(in super::super) fn enable_oom_killer(group: &CgroupFact) -> Remedy {
    Remedy {
        change: Change::Command(format!("echo 0 > {}", file(group, "memory.oom_control"))),
        effect: "instead: at the limit the OOM killer ends one process, and the others go on"
            .to_owned(),
        immediate: true,
    }
}

/// mm/memcontrol.c `memcg_update_kmem_max`, 5.10: -1 is no limit, at every level that has one.
pub(in super::super) fn kernel_memory<'f>(
    levels: impl IntoIterator<Item = &'f MemcgFact>,
) -> Vec<Remedy> {
    levels
        .into_iter()
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

/// Half as much again for the level that refused; the others on its path must have room for that
/// as well.
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
    let raised = Raised {
        id: refusing.cgroup_id,
        usage,
        more: half(limit),
    };
    raised.remedies(&facts.memory_cgroups, facts.memory)
}

/// Half of a limit, at least `LEAST_ROOM`.
fn half(limit: u64) -> u64 {
    (limit / 2).max(LEAST_ROOM)
}

/// A level that is to have room for more.
pub(in super::super) struct Raised {
    id: u64,
    usage: u64,
    more: u64,
}

impl Raised {
    /// Half as much again for a level that need not be full.
    pub(in super::super) fn half(level: &MemcgFact) -> Option<Self> {
        let usage = level.usage?;
        let limit = level.limit?;
        Some(Self {
            id: level.group.id,
            usage,
            more: limit.max(usage).saturating_add(half(limit)) - usage,
        })
    }

    /// What to change of `levels`, the path from the process's own cgroup upwards.
    pub(in super::super) fn remedies<'f>(
        &self,
        levels: impl IntoIterator<Item = &'f MemcgFact>,
        host: Option<MemoryFacts>,
    ) -> Vec<Remedy> {
        let mut remedies = Vec::new();
        for fact in levels {
            let own = fact.group.id == self.id;
            let used = fact.usage.unwrap_or(0);
            let used = if own { used.max(self.usage) } else { used };
            let target = whole_mib(used.saturating_add(self.more));
            let raises = |limit: Option<u64>| limit.is_some_and(|limit| limit < target);
            let effect = match own {
                true => self.effect(host),
                false => "needed as well: this one would be full next".to_owned(),
            };
            // Memory and swap together may not be less than memory alone, so that comes first.
            if raises(fact.memsw_limit) {
                remedies.push(set(fact, "memory.memsw.limit_in_bytes", target, &effect));
            }
            if raises(fact.limit) {
                remedies.push(set(fact, fact.limit_file(), target, &effect));
            }
        }
        remedies
    }

    fn effect(&self, host: Option<MemoryFacts>) -> String {
        let short = host.is_some_and(|it| it.mem_available < self.more);
        format!(
            "room for {} MiB more{}",
            self.more / MIB,
            if short {
                ", which the host does not have: lower what is used instead"
            } else {
                ""
            }
        )
    }
}

fn whole_mib(bytes: u64) -> u64 {
    bytes.div_ceil(MIB).saturating_mul(MIB)
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
                    "{effect}; until container {} is recreated: {}",
                    id.get(..12).unwrap_or(id),
                    container::lasting(
                        group.runtime,
                        "its memory limit",
                        "resources.limits.memory",
                        "memory.max"
                    )
                ),
                None => effect.to_owned(),
            },
            immediate: true,
        },
    }
}

/// mm/util.c `__vm_enough_memory`, 5.10 to 7.2: what is asked for may be as large as RAM and swap.
pub(in super::super) fn heuristic(overcommit: &OvercommitEvidence) -> Vec<Remedy> {
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
