//! What to type for limits that no verdict has a remedy for.

use super::super::{
    Change, Facts, Remedy,
    remedy::{
        memory::{Raised, enable_oom_killer, let_backends_be_killed},
        quoted, raised,
    },
};
use super::{HeadroomFacts, Limit, MemoryLevel};

/// Most that kernel.pid_max can be (`PID_MAX_LIMIT`, include/linux/threads.h, 64 bit).
const PID_MAX_LIMIT: u64 = 4 << 20;
/// Most that kernel.threads-max can be (`MAX_THREADS`, include/linux/threads.h, is FUTEX_TID_MASK).
const THREADS_LIMIT: u64 = 0x3fff_ffff;
/// First number that is given out again and again.
const RESERVED_PIDS: u64 = 300;

fn sysctl(name: &str, value: u64, more: u64) -> Remedy {
    Remedy {
        change: Change::Command(format!("sysctl {name}={value}")),
        effect: format!("room for {more} more tasks on the host, until the next boot"),
        immediate: true,
    }
}

pub(super) fn threads(tasks: u64, limit: u64) -> Vec<Remedy> {
    let target = raised(limit.max(tasks)).min(THREADS_LIMIT);
    match target.checked_sub(tasks) {
        Some(more) if target > limit => vec![sysctl("kernel.threads-max", target, more)],
        _ => Vec::new(),
    }
}

pub(super) fn numbers(usable: u64, taken: u64) -> Vec<Remedy> {
    // A pid_max of more than fits is a limit that nobody reaches.
    let all = |numbers: u64| numbers.saturating_add(RESERVED_PIDS);
    let target = raised(all(usable.max(taken))).min(PID_MAX_LIMIT);
    match target.checked_sub(all(taken)) {
        Some(more) if target > all(usable) => {
            vec![sysctl("kernel.pid_max", target, more)]
        }
        _ => Vec::new(),
    }
}

pub(super) fn namespace(facts: &Facts) -> Vec<Remedy> {
    let change = match &facts.unit {
        Some(unit) => Change::Command(format!("systemctl restart {}", quoted(unit))),
        None => Change::Action(
            "restart the container, or the server outside of that pid namespace (unshare --fork)"
                .to_owned(),
        ),
    };
    vec![Remedy {
        change,
        effect: "a pid namespace without its first process takes no new process ever again"
            .to_owned(),
        immediate: false,
    }]
}

pub(super) fn slots(max: u64) -> Vec<Remedy> {
    vec![
        Remedy {
            change: Change::Action("end idle connections, or put a pooler in front".to_owned()),
            effect: "frees slots without a restart".to_owned(),
            immediate: true,
        },
        Remedy {
            change: Change::Command(format!(
                "psql -c 'ALTER SYSTEM SET max_connections = {}'",
                raised(max)
            )),
            effect: "more slots once the server is restarted; see that the limits below allow as many processes"
                .to_owned(),
            immediate: false,
        },
    ]
}

pub(super) fn memory(facts: &HeadroomFacts, level: &MemoryLevel, limit: Limit) -> Vec<Remedy> {
    let levels = facts.memory.iter().map(|level| &level.fact);
    let mut remedies = Raised::half(&level.fact).map_or_else(Vec::new, |raised| {
        raised.remedies(levels, facts.host.memory)
    });
    match limit {
        Limit::MemcgNoVictim => remedies.push(let_backends_be_killed()),
        Limit::MemcgOomKillDisabled => remedies.push(enable_oom_killer(&level.fact.group)),
        _ => {}
    }
    remedies
}

pub(super) fn host_memory() -> Vec<Remedy> {
    vec![Remedy {
        change: Change::Action(
            "end idle connections, lower work_mem, or add RAM or swap".to_owned(),
        ),
        effect: "memory in use is what ends here, not a limit that can be raised".to_owned(),
        immediate: true,
    }]
}
