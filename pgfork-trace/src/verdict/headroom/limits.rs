//! Limits that count tasks, numbers, connections and promised memory.

use super::super::{
    CgroupLevel, NprocLevelEvidence, OvercommitEvidence,
    overcommit::{self, STRICT},
    remedy,
};
use super::{Effect, HeadroomFacts, Limit, Place, Row, Unit, Written, remedies};
use crate::output::units;

/// `PROC_USER_INIT_INO` (include/linux/proc_ns.h).
const INITIAL_USER_NS: u32 = 0xEFFF_FFFD;

pub(super) fn rows(facts: &HeadroomFacts) -> Vec<Row> {
    let mut rows: Vec<Row> = [
        nproc(facts),
        threads(facts),
        overcommit(facts),
        namespace(facts),
        numbers(facts),
        inner_numbers(facts),
        slots(facts),
    ]
    .into_iter()
    .flatten()
    .collect();
    rows.extend(
        facts
            .pids
            .iter()
            .enumerate()
            .map(|(ancestor, level)| pids(facts, ancestor, level)),
    );
    rows
}

/// Fills in room and backends for a limit that `each` of a backend's units count towards.
fn counted(mut row: Row, used: u64, max: Option<u64>, each: u64) -> Row {
    row.used = used;
    row.max = max;
    row.room = max.map(|max| max.saturating_sub(used));
    row.backends = row.room.map(|room| room / each.max(1));
    row
}

/// kernel/fork.c `copy_process`: 5.10 refuses at `processes >= limit` before counting the child,
/// 6.1 to 7.2 at `count > limit` after it. Both let `limit` tasks live.
fn nproc(facts: &HeadroomFacts) -> Option<Row> {
    let nproc = facts.nproc.as_ref()?;
    let mut row = Row::new(
        Limit::RlimitNproc,
        Place::User { uid: nproc.uid },
        Effect::RefusesEagain,
        Unit::Tasks,
    );
    let exempt = nproc.root || facts.cap_sys_admin || facts.cap_sys_resource;
    let limit = nproc.limit.filter(|_| !exempt);
    if exempt {
        row.notes
            .push("the postmaster is exempt: root, CAP_SYS_ADMIN or CAP_SYS_RESOURCE".to_owned());
    }
    if nproc.uncertain > 0 {
        row.notes.push(format!(
            "{} more tasks of this user are in user namespaces that could not be read, and may count",
            nproc.uncertain
        ));
    }
    if nproc
        .userns_inum
        .is_some_and(|inum| inum != INITIAL_USER_NS)
        && facts.kernel >= (5, 14)
    {
        // kernel/ucount.c `is_rlimit_overlimit`, 6.1 to 7.2.
        row.notes.push(
            "in a user namespace of its own: the limits that were in force where it was made count too, and cannot be read"
                .to_owned(),
        );
    }
    if limit.is_some() {
        let level = NprocLevelEvidence {
            userns_inum: nproc.userns_inum.unwrap_or_default(),
            tasks: nproc.tasks,
            limit,
        };
        row.remedy = remedy::nproc_level(0, &level, &facts.host);
    }
    Some(counted(row, nproc.tasks, limit, facts.cost.tasks))
}

/// kernel/fork.c `copy_process`, 5.10 to 7.2: refuses at `nr_threads >= max_threads`.
fn threads(facts: &HeadroomFacts) -> Option<Row> {
    let (tasks, limit) = facts.host.threads?;
    let mut row = Row::new(
        Limit::ThreadsMax,
        Place::Host,
        Effect::RefusesEagain,
        Unit::Tasks,
    );
    row.remedy = remedies::threads(tasks, limit);
    Some(counted(row, tasks, Some(limit), facts.cost.tasks))
}

fn overcommit(facts: &HeadroomFacts) -> Option<Row> {
    match facts.host.overcommit?.mode {
        STRICT => commit_limit(facts),
        0 => heuristic(facts),
        _ => {
            let mut row = Row::new(
                Limit::CommitLimit,
                Place::Host,
                Effect::RefusesEnomem,
                Unit::Bytes,
            );
            row.used = facts.host.memory?.committed_as;
            row.notes
                .push("vm.overcommit_memory = 1: no promise of memory is refused".to_owned());
            Some(row)
        }
    }
}

fn commit_limit(facts: &HeadroomFacts) -> Option<Row> {
    let memory = facts.host.memory?;
    let mut row = Row::new(
        Limit::CommitLimit,
        Place::Host,
        Effect::RefusesEnomem,
        Unit::Bytes,
    );
    let mut evidence = OvercommitEvidence {
        overcommit_memory: Some(STRICT),
        fork_charge_bytes: facts.host.fork_charge_bytes,
        backend_commit_bytes: facts.cost.commit_bytes,
        ..OvercommitEvidence::default()
    };
    overcommit::complete(
        &mut evidence,
        &facts.host,
        facts.total_vm_pages,
        Some(facts.cap_sys_admin),
    );
    row.used = memory.committed_as;
    let usable = match evidence.usable_bytes {
        Some(usable) => usable,
        None => {
            row.notes.push(
                "the postmaster's size could not be read: vm.user_reserve_kbytes is left out"
                    .to_owned(),
            );
            memory
                .commit_limit
                .saturating_sub(evidence.admin_reserve_bytes.unwrap_or(0))
        }
    };
    row.max = Some(usable);
    row.room = Some(usable.saturating_sub(row.used));
    let charge = facts.host.fork_charge_bytes.or(facts.cost.commit_bytes);
    let kept = facts.cost.commit_bytes.or(charge);
    if let (Some(charge), Some(kept)) = (charge, kept) {
        row.backends = Some(overcommit::fitting(row.used, charge, kept, usable));
        let skew = evidence.counter_skew_bytes.unwrap_or(0);
        row.uncertain_backends = skew / kept.max(charge).max(1);
    }
    row.notes.push(format!(
        "CommitLimit {}, less {} for administrators and {} for the user (this postmaster's share)",
        units::bytes(memory.commit_limit),
        units::bytes(evidence.admin_reserve_bytes.unwrap_or(0)),
        units::bytes(evidence.user_reserve_bytes.unwrap_or(0)),
    ));
    row.remedy = remedy::commit_limit(&evidence, &facts.host).unwrap_or_default();
    Some(row)
}

/// mm/util.c `__vm_enough_memory`, 5.10 to 7.2: one request larger than RAM and swap is refused.
fn heuristic(facts: &HeadroomFacts) -> Option<Row> {
    let memory = facts.host.memory?;
    let largest = facts.largest_charge?;
    let max = memory.mem_total.saturating_add(memory.swap_total);
    let mut row = Row::new(
        Limit::OvercommitHeuristic,
        Place::Host,
        Effect::RefusesEnomem,
        Unit::Bytes,
    );
    row.used = largest;
    row.max = Some(max);
    row.room = Some(max.saturating_sub(largest));
    row.backends = (largest > max).then_some(0);
    row.notes.push(
        "the postmaster's largest private mapping against RAM and swap; the number of backends does not matter"
            .to_owned(),
    );
    row.remedy = remedy::heuristic(&OvercommitEvidence {
        largest_mapping_bytes: Some(largest),
        mem_total_bytes: Some(memory.mem_total),
        swap_total_bytes: Some(memory.swap_total),
        ..OvercommitEvidence::default()
    });
    Some(row)
}

fn namespace(facts: &HeadroomFacts) -> Option<Row> {
    let alive = facts.pid_namespace_alive?;
    let mut row = Row::new(
        Limit::PidNamespaceDying,
        Place::Server,
        Effect::RefusesEnomem,
        Unit::Tasks,
    );
    if alive {
        row.notes
            .push("the pid namespace has its first process".to_owned());
    } else {
        row.backends = Some(0);
        row.notes.push(
            "the first process of the pid namespace for children is gone: every fork is refused"
                .to_owned(),
        );
        row.remedy = remedies::namespace(&facts.host);
    }
    Some(row)
}

/// kernel/pid.c `alloc_pid`, 5.10 to 7.2.
fn numbers(facts: &HeadroomFacts) -> Option<Row> {
    let numbers = facts.numbers?;
    let mut row = Row::new(
        Limit::PidSpaceExhausted,
        Place::Host,
        Effect::RefusesEagain,
        Unit::Numbers,
    );
    row.remedy = remedies::numbers(numbers.usable, numbers.taken);
    Some(counted(
        row,
        numbers.taken,
        Some(numbers.usable),
        facts.cost.tasks,
    ))
}

/// The same of a pid namespace's own `pid_max`, which it has in 6.18 and 7.2 (merged for 6.14), and
/// which only a process inside can read.
fn inner_numbers(facts: &HeadroomFacts) -> Option<Row> {
    const OWN_PID_MAX: (u32, u32) = (6, 14);
    let inner = facts.numbers?.inner?;
    if facts.kernel < OWN_PID_MAX {
        return None;
    }
    let mut row = Row::new(
        Limit::PidSpaceExhausted,
        Place::Server,
        Effect::RefusesEagain,
        Unit::Numbers,
    );
    row.used = inner;
    row.limit_unknown = true;
    row.notes.push(format!(
        "the postmaster's pid namespace has a kernel.pid_max of its own, which can only be read inside: nsenter --pid=/proc/{}/ns/pid_for_children sysctl kernel.pid_max",
        facts.host.pid
    ));
    Some(row)
}

/// kernel/cgroup/pids.c `pids_try_charge`, 5.10 to 7.2: refuses when `current + 1 > max`.
fn pids(facts: &HeadroomFacts, ancestor: usize, level: &CgroupLevel) -> Row {
    let mut row = Row::new(
        Limit::PidsCgroupMax,
        Place::Cgroup {
            path: level.path.clone().unwrap_or_default(),
            ancestor,
            unit: level.unit.clone(),
            property: level.property.clone(),
            container: level.container.clone(),
        },
        Effect::RefusesEagain,
        Unit::Tasks,
    );
    row.remedy = remedy::pids_path(&facts.pids, level, &facts.host);
    counted(row, level.tasks, level.limit, facts.cost.tasks)
}

/// src/backend/utils/init/postinit.c `InitPostgres`, PostgreSQL 10 to 18.
fn slots(facts: &HeadroomFacts) -> Option<Row> {
    let slots = facts.slots?;
    let mut row = Row::new(
        Limit::MaxConnections,
        Place::Server,
        Effect::TurnsAway,
        Unit::Connections,
    );
    if slots.reserved > 0 {
        row.notes.push(format!(
            "max_connections {} less {} reserved",
            slots.max, slots.reserved
        ));
    }
    row.notes.extend(match &facts.max_connections {
        Written::InForce => None,
        Written::Pending { written, .. } => Some(format!(
            "{written}, {} in force until the server is restarted",
            slots.max
        )),
        Written::Unsure { file, why } => Some(format!(
            "{} may not be in force: {file} was changed after the server started; {why}",
            slots.max
        )),
    });
    row.remedy = remedies::slots(facts, &slots);
    Some(counted(
        row,
        slots.used,
        Some(slots.max.saturating_sub(slots.reserved)),
        1,
    ))
}
