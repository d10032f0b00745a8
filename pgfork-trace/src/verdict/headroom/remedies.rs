//! What to type for limits that no verdict has a remedy for.

use super::super::{
    Change, Facts, Remedy,
    remedy::{quoted, raised},
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
    let target = raised(usable.max(taken) + RESERVED_PIDS).min(PID_MAX_LIMIT);
    match target.checked_sub(taken + RESERVED_PIDS) {
        Some(more) if target > usable + RESERVED_PIDS => {
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

pub(super) fn memory(
    facts: &HeadroomFacts,
    level: &MemoryLevel,
    ancestor: usize,
    limit: Limit,
    max: u64,
) -> Vec<Remedy> {
    const MIB: u64 = 1 << 20;
    // Half as much again, in whole MiB.
    let target = max.saturating_add(max / 2).div_ceil(MIB);
    let mut remedies = Vec::new();
    match &level.group.unit {
        Some(unit) if level.group.container.is_none() => remedies.push(Remedy {
            change: Change::Command(format!(
                "systemctl set-property {} {}={target}M",
                quoted(&unit.name),
                unit.property
            )),
            effect: "half as much memory again, if the host has it".to_owned(),
            immediate: true,
        }),
        _ => remedies.push(Remedy {
            change: Change::Command(format!(
                "echo {target}M > {}",
                quoted(&format!("{}/memory.max", level.group.directory))
            )),
            effect: "half as much memory again, until the cgroup is made anew".to_owned(),
            immediate: true,
        }),
    }
    if limit == Limit::MemcgNoVictim && ancestor == 0 {
        remedies.push(Remedy {
            change: Change::Action("start the server with PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj PG_OOM_ADJUST_VALUE=0"
                .to_owned()),
            effect: "backends can be killed then, and the postmaster's forks are not refused".to_owned(),
            immediate: false,
        });
    }
    if limit == Limit::MemcgOomKillDisabled {
        remedies.push(Remedy {
            change: Change::Command(format!(
                "echo 0 > {}",
                quoted(&format!("{}/memory.oom_control", level.group.directory))
            )),
            effect: "the OOM killer ends one process instead of all waiting".to_owned(),
            immediate: true,
        });
    }
    let v1 = facts.kernel < (6, 12) && level.kmem.is_some();
    if v1 {
        for remedy in &mut remedies {
            if let Change::Command(command) = &mut remedy.change {
                *command = command.replace("/memory.max", "/memory.limit_in_bytes");
            }
        }
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
