//! The numbers behind a cause, in terms that visibly add up.

mod states;

use super::{
    super::{
        escape::name,
        units::{SumUnit, bytes, count, counted},
    },
    container,
};
use crate::verdict::{Cause, CgroupLevel, Evidence, NprocEvidence, OvercommitEvidence, Verdict};

/// Inode number of the initial user namespace (include/linux/proc_ns.h `PROC_USER_INIT_INO`).
const INITIAL_USERNS: u32 = 0xEFFF_FFFD;
/// Most names of the user's tasks shown.
const MOST_NAMES: usize = 5;

/// The rows for a verdict.
pub(super) fn lines(verdict: &Verdict) -> Vec<String> {
    let evidence = &verdict.evidence;
    match verdict.cause {
        Cause::CommitLimit => evidence
            .overcommit
            .as_ref()
            .map(|it| commit_limit(it, true))
            .unwrap_or_default(),
        Cause::PidsCgroupMax => pids(evidence, true),
        Cause::RlimitNproc => match &evidence.nproc {
            Some(own) => nproc(own, true),
            None => Vec::new(),
        },
        Cause::Unknown => unknown(evidence),
        cause => states::lines(cause, evidence),
    }
}

pub(super) fn commit_limit(overcommit: &OvercommitEvidence, refused_here: bool) -> Vec<String> {
    let unit = SumUnit::exact_for(
        [
            overcommit.requested_bytes,
            overcommit.fork_charge_bytes,
            overcommit
                .committed_bytes
                .or(overcommit.committed_after_bytes),
            overcommit.usable_bytes,
            overcommit.commit_limit_bytes,
            overcommit.admin_reserve_bytes,
            overcommit.user_reserve_bytes,
        ]
        .into_iter()
        .flatten(),
    );
    let mut rows = Vec::new();
    rows.extend(asked(overcommit, unit));
    rows.extend(committed(overcommit, unit));
    rows.extend(usable(overcommit, unit));
    if refused_here {
        rows.extend(doubt(overcommit, unit));
    }
    rows.extend(settings(overcommit));
    rows
}

fn asked(overcommit: &OvercommitEvidence, unit: SumUnit) -> Option<String> {
    let whole = overcommit.fork_charge_bytes.map(|whole| unit.show(whole));
    match (overcommit.requested_bytes, whole) {
        (Some(one), Some(whole)) => Some(format!(
            "asked for {} (this mapping); the fork as a whole asks for {whole}",
            unit.show(one)
        )),
        (Some(one), None) => Some(format!("asked for {} (this mapping)", unit.show(one))),
        (None, Some(whole)) => Some(format!("the fork as a whole asks for {whole}")),
        (None, None) => None,
    }
}

/// What was promised, of what may be.
fn committed(overcommit: &OvercommitEvidence, unit: SumUnit) -> Option<String> {
    let (committed, when) = match (overcommit.committed_bytes, overcommit.committed_after_bytes) {
        (Some(committed), _) => (committed, ""),
        (None, Some(after)) => (after, " (read right after, the fork undone)"),
        (None, None) => {
            let limit = overcommit.commit_limit_bytes?;
            return Some(format!("CommitLimit {}", unit.show(limit)));
        }
    };
    let mut row = format!("Committed_AS {}{when}", unit.show(committed));
    let Some(usable) = overcommit.usable_bytes else {
        if let Some(limit) = overcommit.commit_limit_bytes {
            row += &format!(" of CommitLimit {}", unit.show(limit));
        }
        return Some(row);
    };
    row += &format!(" of usable {}", unit.show(usable));
    row += &match usable.checked_sub(committed) {
        Some(left) => format!(", {} left", unit.show(left)),
        None => format!(", {} over", unit.show(committed - usable)),
    };
    Some(row)
}

/// How the usable part comes about.
fn usable(overcommit: &OvercommitEvidence, unit: SumUnit) -> Option<String> {
    overcommit.usable_bytes?;
    Some(format!(
        "usable: CommitLimit {} - admin_reserve {} - user_reserve {}",
        unit.show(overcommit.commit_limit_bytes?),
        unit.show(overcommit.admin_reserve_bytes?),
        unit.show(overcommit.user_reserve_bytes?)
    ))
}

/// Said where the printed numbers alone would not refuse the fork.
fn doubt(overcommit: &OvercommitEvidence, unit: SumUnit) -> Option<String> {
    let asked = overcommit
        .requested_bytes
        .or(overcommit.fork_charge_bytes)?;
    let below = overcommit
        .usable_bytes?
        .checked_sub(overcommit.committed_bytes?)?
        .checked_sub(asked)
        .filter(|below| *below > 0)?;
    Some(match overcommit.counter_skew_bytes {
        Some(skew) if below <= skew => format!(
            "{} would be left: the kernel's counter is approximate by up to {}",
            unit.show(below),
            bytes(skew)
        ),
        _ => format!(
            "{} would be left: the numbers were read a moment apart",
            unit.show(below)
        ),
    })
}

fn settings(overcommit: &OvercommitEvidence) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(mode) = overcommit.overcommit_memory {
        parts.push(format!("vm.overcommit_memory = {mode}"));
    }
    match (overcommit.overcommit_bytes, overcommit.overcommit_ratio) {
        (Some(limit @ 1..), _) => parts.push(format!("vm.overcommit_kbytes = {}", limit / 1024)),
        (_, Some(ratio)) => parts.push(format!("vm.overcommit_ratio = {ratio}")),
        (_, None) => {}
    }
    if let Some(swap) = overcommit.swap_total_bytes {
        parts.push(match swap {
            0 => "swap 0".to_owned(),
            swap => format!("swap {}", bytes(swap)),
        });
    }
    if let Some(available) = overcommit.mem_available_bytes {
        let plenty = overcommit
            .mem_total_bytes
            .is_some_and(|total| available > total / 10);
        let remark = if plenty { " (RAM is not short)" } else { "" };
        parts.push(format!("MemAvailable {}{remark}", bytes(available)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The refusing level, then the others that have a limit.
fn pids(evidence: &Evidence, refused: bool) -> Vec<String> {
    let levels = &evidence.pids;
    let limited = |level: &&CgroupLevel| level.limit.is_some();
    let room = |level: &&CgroupLevel| level.limit.unwrap_or(u64::MAX).saturating_sub(level.tasks);
    let refusing = evidence
        .refusing_pids()
        .map(|(_, level)| level)
        .or_else(|| levels.iter().filter(limited).min_by_key(room));
    let mut rows = Vec::new();
    rows.extend(refusing.map(|level| {
        let later = then(level.is_full(), refused);
        format!("{} ({}){later}", level_text(level), holder(level))
    }));
    let others: Vec<String> = levels
        .iter()
        .filter(limited)
        .filter(|level| !refusing.is_some_and(|refusing| std::ptr::eq(refusing, *level)))
        .map(level_text)
        .collect();
    if !others.is_empty() {
        rows.push(format!("on the same path: {}", others.join("; ")));
    }
    if evidence.pids_truncated {
        rows.push("the path is deeper than what was read".to_owned());
    }
    rows
}

/// Said of a full level, and of one that refused and is not full any more.
const fn then(is_full: bool, refused: bool) -> &'static str {
    match (is_full, refused) {
        (true, _) => ASKED,
        (false, true) => ", read a moment later",
        (false, false) => "",
    }
}

fn level_text(level: &CgroupLevel) -> String {
    let limit = level.limit.map_or_else(|| "no limit".to_owned(), count);
    let place = match &level.path {
        Some(path) => name(path).into_owned(),
        None => format!("cgroup id {}", level.cgroup_id),
    };
    format!("{} of {limit} in {place}", tasks(level.tasks))
}

/// A fork makes one task, whatever it shares.
const ASKED: &str = ", and asked for 1 more";

fn tasks(number: u64) -> String {
    counted(number, "task", "tasks")
}

/// Where the limit is set.
fn holder(level: &CgroupLevel) -> String {
    let property = name(&level.property);
    match (&level.container, &level.unit) {
        (Some(id), _) => format!("{property}, {}", container(id)),
        (None, Some(unit)) => format!("{property} of {}", name(unit)),
        (None, None) => property.into_owned(),
    }
}

fn nproc(nproc: &NprocEvidence, refused: bool) -> Vec<String> {
    let uid = nproc
        .uid
        .map_or_else(|| "the user".to_owned(), |uid| format!("uid {uid}"));
    let mut rows = Vec::new();
    let number = nproc.refusing().map_or(0, |(number, _)| number);
    if let Some(level) = nproc.levels.get(number) {
        // Above the process's own namespace its creator is counted.
        let whose = match number {
            0 => uid,
            _ => "the creator of a user namespace".to_owned(),
        };
        let limit = level.limit.map_or_else(|| "no limit".to_owned(), count);
        let place = if level.userns_inum == INITIAL_USERNS {
            String::new()
        } else {
            format!(", in user namespace {}", level.userns_inum)
        };
        let exempt = if nproc.exempt == Some(true) {
            " (exempt)"
        } else {
            ""
        };
        let later = then(level.is_full(), refused && level.limit.is_some());
        rows.push(format!(
            "{} of {limit} for {whose}{place}{exempt}{later}",
            tasks(level.tasks)
        ));
    }
    let user_tasks = &nproc.user_tasks;
    if !user_tasks.is_empty() {
        let mut parts: Vec<String> = user_tasks
            .iter()
            .take(MOST_NAMES)
            .map(|it| format!("{} {}", count(it.tasks), name(&it.comm)))
            .collect();
        let others: u64 = user_tasks.iter().skip(MOST_NAMES).map(|it| it.tasks).sum();
        if others > 0 {
            parts.push(format!("{} others", count(others)));
        }
        rows.push(format!("its tasks: {}", parts.join(", ")));
    }
    rows
}

/// Whatever could be read.
fn unknown(evidence: &Evidence) -> Vec<String> {
    let mut rows = Vec::new();
    if let Some(overcommit) = &evidence.overcommit {
        rows.extend(commit_limit(overcommit, false));
    }
    rows.extend(pids(evidence, false));
    if let Some(own) = &evidence.nproc {
        rows.extend(nproc(own, false));
    }
    if let Some(threads) = &evidence.threads {
        rows.push(format!(
            "{} on the host of kernel.threads-max {}",
            tasks(threads.tasks),
            count(threads.limit)
        ));
    }
    if evidence.pid_namespace_alive == Some(false) {
        rows.push("the init process of the pid namespace is gone".to_owned());
    }
    rows.extend(states::memory_cgroups(evidence));
    rows.extend(states::kernel_log(evidence));
    rows
}

#[cfg(test)]
#[path = "numbers_tests.rs"]
mod tests;
