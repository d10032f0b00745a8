//! What to change so that a refused request for memory passes, with numbers computed from the
//! evidence.

use super::{
    super::{Cause, Change, HardLimits, Remedy, remedy},
    MemoryEvidence, RequestFacts,
    decide::Decision,
};
use crate::output::units;

const MIB: u64 = 1024 * 1024;
/// Default of vm.max_map_count (`DEFAULT_MAX_MAP_COUNT`, include/linux/mm.h).
const DEFAULT_MAX_MAP_COUNT: u64 = 65_530;

/// One request may be as large as many backends: room for two is a remedy.
const REQUESTS: remedy::Unit = remedy::Unit {
    fewest: 2,
    like_these: "requests like this one",
    many: "such requests",
};

pub(super) fn remedies(
    decision: &Decision,
    evidence: &MemoryEvidence,
    facts: &RequestFacts,
) -> Vec<Remedy> {
    if decision.stack_limit {
        return stack_limit(evidence, facts);
    }
    match decision.behind.unwrap_or(decision.cause) {
        Cause::RlimitAs => limit(
            &AS,
            evidence.total_vm_bytes,
            evidence.rlimit_as_bytes,
            evidence,
            facts,
        ),
        Cause::RlimitData => limit(
            &DATA,
            evidence.data_vm_bytes,
            evidence.rlimit_data_bytes,
            evidence,
            facts,
        ),
        Cause::RlimitMemlock => limit(
            &MEMLOCK,
            evidence.locked_vm_bytes,
            evidence.rlimit_memlock_bytes,
            evidence,
            facts,
        ),
        Cause::MaxMapCount => max_map_count(evidence),
        Cause::CommitLimit => commit_limit(evidence, facts, ask_for_less()),
        Cause::ShmCommitRefused => shared(evidence, facts),
        Cause::OvercommitHeuristic => heuristic(evidence, facts),
        Cause::HugetlbExhausted => huge_pages(evidence, facts),
        Cause::ShmTmpfsFull => tmpfs(evidence, facts),
        _ => Vec::new(),
    }
}

/// A resource limit under its three names.
struct Named {
    prlimit: &'static str,
    hard: fn(&HardLimits) -> Option<u64>,
    unit: &'static str,
    shell: &'static str,
    /// `ulimit` counts in KiB.
    what: &'static str,
}

const AS: Named = Named {
    prlimit: "as",
    hard: |limits| limits.address_space,
    unit: "LimitAS",
    shell: "ulimit -v",
    what: "address space",
};
const DATA: Named = Named {
    prlimit: "data",
    hard: |limits| limits.data,
    unit: "LimitDATA",
    shell: "ulimit -d",
    what: "private writable memory",
};
const MEMLOCK: Named = Named {
    prlimit: "memlock",
    hard: |limits| limits.memlock,
    unit: "LimitMEMLOCK",
    shell: "ulimit -l",
    what: "locked memory",
};
const STACK: Named = Named {
    prlimit: "stack",
    hard: |limits| limits.stack,
    unit: "LimitSTACK",
    shell: "ulimit -s",
    what: "stack",
};

/// Room for the request once more, and half of the limit on top.
fn limit(
    named: &Named,
    used: Option<u64>,
    limit: Option<u64>,
    evidence: &MemoryEvidence,
    facts: &RequestFacts,
) -> Vec<Remedy> {
    let Some((used, limit)) = used.zip(limit) else {
        return Vec::new();
    };
    let asked = evidence.requested_bytes.unwrap_or(0);
    let wanted = used
        .saturating_add(asked.saturating_mul(2))
        .max(limit.saturating_add(limit / 2));
    raise(named, used, wanted, facts)
}

/// Children inherit limits when they are forked: those of the postmaster are what counts.
fn raise(named: &Named, used: u64, wanted: u64, facts: &RequestFacts) -> Vec<Remedy> {
    let Some(target) = wanted.checked_next_multiple_of(MIB) else {
        return Vec::new();
    };
    let room = units::bytes(target.saturating_sub(used));
    let mut remedies = vec![Remedy {
        change: Change::Command(remedy::prlimit(
            facts.host.pid,
            named.prlimit,
            target,
            (named.hard)(&facts.host.hard_limits),
        )),
        effect: format!(
            "{room} of {} for each process started from then on, until the postmaster is restarted; running ones keep their limit",
            named.what
        ),
        immediate: true,
    }];
    remedies.push(match &facts.host.unit {
        Some(unit) => Remedy {
            change: Change::Command(remedy::drop_in(
                unit,
                &[&format!("{}={target}", named.unit)],
            )),
            effect: "the same, from the next restart on".to_owned(),
            immediate: false,
        },
        None => Remedy {
            change: Change::Action(format!(
                "{} {} where it is started",
                named.shell,
                target / 1024
            )),
            effect: "the same, from the next start on".to_owned(),
            immediate: false,
        },
    });
    remedies
}

fn stack_limit(evidence: &MemoryEvidence, facts: &RequestFacts) -> Vec<Remedy> {
    let Some(limit) = evidence.rlimit_stack_bytes else {
        return Vec::new();
    };
    let used = evidence.stack_vm_bytes.unwrap_or(limit);
    // PostgreSQL wants 512 kB between the two (STACK_DEPTH_SLOP, src/include/tcop/tcopprot.h).
    let depth = limit.saturating_sub(MIB).max(MIB / 10) / 1024;
    let mut remedies = Vec::new();
    remedies.extend(facts.server.then(|| Remedy {
        change: Change::Action(format!("max_stack_depth = {depth}kB in postgresql.conf, or less")),
        effect: "PostgreSQL then ends a query that nests too deep with an error, before the kernel kills the backend".to_owned(),
        immediate: false,
    }));
    remedies.extend(raise(&STACK, used, limit.saturating_mul(2), facts));
    remedies
}

fn max_map_count(evidence: &MemoryEvidence) -> Vec<Remedy> {
    let Some(max) = evidence.max_map_count else {
        return Vec::new();
    };
    let target = max
        .max(evidence.mappings.unwrap_or(0))
        .saturating_mul(2)
        .max(DEFAULT_MAX_MAP_COUNT)
        // An int in the kernel (mm/util.c or mm/mmap.c `sysctl_max_map_count`).
        .min(i32::MAX as u64);
    vec![Remedy {
        change: Change::Command(format!("sysctl vm.max_map_count={target}")),
        effect: format!(
            "room for {} more mappings in each process of the host",
            units::count(target.saturating_sub(evidence.mappings.unwrap_or(max)))
        ),
        immediate: true,
    }]
}

fn ask_for_less() -> Remedy {
    Remedy {
        change: Change::Action("lower work_mem, hash_mem_multiplier or maintenance_work_mem where this is asked for".to_owned()),
        effect: "each sort, hash and index build of each backend may take as much as these allow; the title and the log name the query".to_owned(),
        immediate: true,
    }
}

fn commit_limit(evidence: &MemoryEvidence, facts: &RequestFacts, less: Remedy) -> Vec<Remedy> {
    let mut remedies = evidence
        .overcommit
        .as_ref()
        .and_then(|it| remedy::commit_limit_for(&REQUESTS, it, &facts.host))
        .unwrap_or_default();
    remedies.extend(facts.server.then_some(less));
    remedies
}

fn shared(evidence: &MemoryEvidence, facts: &RequestFacts) -> Vec<Remedy> {
    let less = Remedy {
        change: Change::Action("lower shared_buffers, or what asks for dynamic shared memory (max_parallel_workers_per_gather, hash_mem_multiplier)".to_owned()),
        effect: "a shared mapping is charged as a whole when it is made, used or not".to_owned(),
        immediate: false,
    };
    let mode = evidence
        .overcommit
        .as_ref()
        .and_then(|it| it.overcommit_memory);
    if mode == Some(0) {
        let mut remedies = heuristic(evidence, facts);
        remedies.extend(facts.server.then_some(less));
        return remedies;
    }
    commit_limit(evidence, facts, less)
}

fn heuristic(evidence: &MemoryEvidence, facts: &RequestFacts) -> Vec<Remedy> {
    let Some(asked) = evidence.requested_bytes else {
        return Vec::new();
    };
    let mut remedies = vec![Remedy {
        change: Change::Action(format!("ask for less than {} at once", units::bytes(asked))),
        effect: if facts.server {
            "one request larger than all RAM and swap is refused: look at work_mem, maintenance_work_mem, shared_buffers and the query".to_owned()
        } else {
            "one request larger than all RAM and swap is refused".to_owned()
        },
        immediate: true,
    }];
    if let Some(memory) = facts.host.memory {
        let missing = asked
            .saturating_sub(memory.mem_total.saturating_add(memory.swap_total))
            .div_ceil(MIB)
            .max(1);
        remedies.push(Remedy {
            change: Change::Action(format!("add {missing} MiB of swap")),
            effect: "the request then passes this check; using the memory is another matter"
                .to_owned(),
            immediate: true,
        });
    }
    remedies
}

/// Room for the request and another one, and half of the size on top. nsenter: a container has its own
/// mounts; on the host it changes nothing.
fn tmpfs(evidence: &MemoryEvidence, facts: &RequestFacts) -> Vec<Remedy> {
    let Some(tmpfs) = &evidence.tmpfs else {
        return Vec::new();
    };
    let path = &tmpfs.mounted_on;
    // What is typed into a shell as it is.
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-".contains(character);
    let mut remedies = Vec::new();
    if let Some(((size, free), asked)) = tmpfs
        .size_bytes
        .zip(tmpfs.free_bytes)
        .zip(evidence.requested_bytes)
        .filter(|_| path.chars().all(plain))
    {
        let used = size.saturating_sub(free);
        let wanted = used
            .saturating_add(asked.saturating_mul(2))
            .max(size.saturating_add(size / 2))
            .div_ceil(MIB);
        remedies.push(Remedy {
            change: Change::Command(format!(
                "nsenter -t {} -m mount -o remount,size={wanted}M {path}",
                facts.host.pid
            )),
            effect: format!(
                "{wanted} MiB at once, until it is mounted anew; what is used of it is memory, also of the cgroup"
            ),
            immediate: true,
        });
    }
    remedies.push(Remedy {
        change: Change::Action(format!(
            "a larger size= of {path} where it is mounted (a container: --shm-size, or an emptyDir of medium Memory with a sizeLimit)"
        )),
        effect: "the same, from the next start on".to_owned(),
        immediate: false,
    });
    remedies.extend(facts.server.then(|| Remedy {
        change: Change::Action(
            "lower max_parallel_workers_per_gather or work_mem, or set min_dynamic_shared_memory (14 and later)"
                .to_owned(),
        ),
        effect: "parallel queries then take less of it".to_owned(),
        immediate: false,
    }));
    remedies
}

fn huge_pages(evidence: &MemoryEvidence, facts: &RequestFacts) -> Vec<Remedy> {
    let mut remedies = Vec::new();
    if let Some((pool, asked)) = evidence
        .huge_pages
        .zip(evidence.requested_bytes)
        .filter(|(pool, _)| pool.page_bytes > 0)
    {
        let wanted = asked.div_ceil(pool.page_bytes);
        let missing = wanted.saturating_sub(pool.available());
        let target = pool.total_pages.saturating_add(missing);
        remedies.push(Remedy {
            change: Change::Command(format!("sysctl vm.nr_hugepages={target}")),
            effect: format!(
                "{} more huge pages of {}; the kernel gives fewer where memory is fragmented: look at HugePages_Total afterwards",
                units::count(missing),
                units::bytes(pool.page_bytes)
            ),
            immediate: true,
        });
    }
    remedies.extend(facts.server.then(|| Remedy {
        change: Change::Action("huge_pages = try in postgresql.conf".to_owned()),
        effect: "PostgreSQL then takes ordinary pages where huge ones are short".to_owned(),
        immediate: false,
    }));
    remedies
}
