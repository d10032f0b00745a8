//! Numbers of tasks and of processes for the whole host or a pid namespace.

use super::{
    super::{
        Change, Evidence, Facts, PidNamespaceLevel, Remedy,
        candidates::{RESERVED_PIDS, numbers_left},
    },
    raised,
};

/// Most that kernel.pid_max can be (`PID_MAX_LIMIT`, include/linux/threads.h, 64 bit).
const PID_MAX_LIMIT: u64 = 4 << 20;
/// Most that kernel.threads-max can be (`MAX_THREADS`, kernel/fork.c, is FUTEX_TID_MASK).
const THREADS_LIMIT: u64 = 0x3fff_ffff;

/// More tasks, and numbers for them.
pub(super) fn threads(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let Some(threads) = evidence.threads else {
        return Vec::new();
    };
    let target = raised(threads.limit.max(threads.tasks)).min(THREADS_LIMIT);
    if target <= threads.limit.max(threads.tasks) {
        return Vec::new();
    }
    let mut remedies = vec![Remedy {
        change: Change::Command(format!("sysctl kernel.threads-max={target}")),
        effect: format!(
            "room for {} more tasks on the host, until the next boot",
            target - threads.tasks
        ),
        immediate: true,
    }];
    let numbers = target.saturating_add(RESERVED_PIDS).min(PID_MAX_LIMIT);
    if facts.pid_max.is_some_and(|pid_max| pid_max < numbers) {
        remedies.push(Remedy {
            change: Change::Command(format!("sysctl kernel.pid_max={numbers}")),
            effect: "needed as well: each task takes a number below it".to_owned(),
            immediate: true,
        });
    }
    remedies
}

/// Raises every level that would refuse within the room that is made.
pub(super) fn numbers(evidence: &Evidence, facts: &Facts) -> Vec<Remedy> {
    let fullest = evidence
        .pid_namespaces
        .iter()
        .filter(|level| level.pid_max.is_some())
        .min_by_key(|level| numbers_left(level));
    let Some(fullest) = fullest else {
        return Vec::new();
    };
    // Where namespaces have no setting of their own there is one for all (6.18 and later have
    // one each): the level with most numbers taken decides.
    let shared = !fullest.has_own_pid_max;
    let usable = fullest.taken.max(fullest.pid_max.unwrap_or(0));
    let more = raised(usable) - usable;
    let mut remedies = Vec::new();
    for (ancestor, level) in evidence.pid_namespaces.iter().enumerate() {
        let Some(pid_max) = level.pid_max else {
            continue;
        };
        if shared && !std::ptr::eq(level, fullest) {
            continue;
        }
        // Once numbers have wrapped, those below RESERVED_PIDS are not given out again.
        let target = (level.taken + RESERVED_PIDS + more).min(PID_MAX_LIMIT);
        let Some(room) = target.checked_sub(level.taken + RESERVED_PIDS) else {
            continue;
        };
        if target <= pid_max || room == 0 {
            continue;
        }
        let effect = if std::ptr::eq(level, fullest) {
            format!("room for {room} more tasks")
        } else {
            format!("needed as well: {} numbers are taken there", level.taken)
        };
        remedies.push(Remedy {
            change: Change::Command(if shared {
                format!("sysctl kernel.pid_max={target}")
            } else {
                set(level, ancestor, target, facts.pid)
            }),
            effect: format!("{effect}, until the next boot"),
            immediate: true,
        });
    }
    remedies
}

/// A namespace's own setting is the one that a process in it sees, whatever /proc it looks at
/// (measured on 6.18). The process itself may be in another namespace than its children.
fn set(level: &PidNamespaceLevel, ancestor: usize, target: u64, pid: u32) -> String {
    let sysctl = format!("sysctl kernel.pid_max={target}");
    match (level.level, ancestor) {
        (0, _) => sysctl,
        (_, 0) => format!("nsenter --pid=/proc/{pid}/ns/pid_for_children {sysctl}"),
        _ => format!(
            "nsenter --target $(lsns -n -o PID {} | head -n 1) --pid {sysctl}",
            level.inum
        ),
    }
}
