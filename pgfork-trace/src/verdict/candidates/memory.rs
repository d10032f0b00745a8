//! Promised memory, memory cgroups, and tables of files.

use pgfork_trace_common::{Attempt, Check, valid};

use super::Numbers;
use crate::verdict::{
    Evidence, LogFact, MemcgEvidence, MemcgLevel,
    overcommit::{self, HEURISTIC, STRICT},
};

fn reclaimed(attempt: &Attempt) -> bool {
    attempt.stages & Check::TryToFreeMemCgroupPages.bit() != 0
}

fn named(level: &MemcgLevel) -> String {
    let path = level.path.as_deref().unwrap_or("(unnamed)");
    match (level.usage_bytes, level.limit_bytes) {
        (Some(usage), Some(limit)) => format!("cgroup {path} has {usage} bytes of {limit}"),
        _ => format!("cgroup {path} is at its limit"),
    }
}

/// What the memory cgroups of the path say, and whether memory was reclaimed for this fork. The
/// charge that was refused is taken back, so a full cgroup need not look full any more.
enum Standing<'a> {
    AtLimit(&'a MemcgLevel),
    Far(String),
    Unread,
}

fn standing<'a>(attempt: &Attempt, memcg: Option<&'a MemcgEvidence>) -> Standing<'a> {
    let refusing = memcg.and_then(|it| it.refusing());
    match (reclaimed(attempt), refusing) {
        (true, Some((_, level))) => Standing::AtLimit(level),
        (true, None) => Standing::Unread,
        (false, _) => Standing::Far("no memory of a cgroup was reclaimed for this fork".to_owned()),
    }
}

pub(super) fn no_victim(attempt: &Attempt, evidence: &Evidence) -> Numbers {
    let memcg = evidence.memcg.as_ref();
    // Where some may be killed, the line in the log is of another cgroup.
    let some = memcg.is_some_and(|it| it.processes > it.protected);
    let logged = !some && evidence.kernel_log.contains(&LogFact::NothingKillable);
    let nobody = memcg.is_some_and(|it| it.processes.is_some() && it.processes == it.protected);
    match standing(attempt, memcg) {
        Standing::AtLimit(level) if level.oom_kill_disable == Some(true) => {
            Numbers::DoNotFit("the OOM killer of the cgroup at its limit is turned off".to_owned())
        }
        Standing::AtLimit(level) if logged => Numbers::Fit(format!(
            "{}, and the kernel log says that nothing in it could be killed",
            named(level)
        )),
        Standing::AtLimit(level) if nobody => Numbers::Near(format!(
            "{}, memory was reclaimed for this fork, and none of the processes looked at may be killed",
            named(level)
        )),
        Standing::AtLimit(level) => Numbers::DoNotFit(format!(
            "{}, but some of its processes may be killed",
            named(level)
        )),
        Standing::Unread if logged => Numbers::Near(
            "memory was reclaimed for this fork, and the kernel log says that nothing could be killed".to_owned(),
        ),
        Standing::Unread if memcg.is_none() => Numbers::Absent,
        Standing::Unread => Numbers::DoNotFit(
            "no cgroup on the path is at its limit, and nothing in the kernel log says that none could be killed"
                .to_owned(),
        ),
        Standing::Far(why) => Numbers::DoNotFit(why),
    }
}

pub(super) fn oom_kill_disabled(attempt: &Attempt, evidence: &Evidence) -> Numbers {
    match standing(attempt, evidence.memcg.as_ref()) {
        Standing::AtLimit(level) if level.oom_kill_disable == Some(true) => Numbers::Fit(format!(
            "memory was reclaimed for this fork, {}, and its OOM killer is turned off",
            named(level)
        )),
        Standing::AtLimit(_) => {
            Numbers::DoNotFit("the OOM killer of the cgroup at its limit is on".to_owned())
        }
        Standing::Unread if evidence.memcg.is_none() => Numbers::Absent,
        Standing::Unread => Numbers::DoNotFit("no cgroup on the path is at its limit".to_owned()),
        Standing::Far(why) => Numbers::DoNotFit(why),
    }
}

pub(super) fn kernel_memory(evidence: &Evidence) -> Numbers {
    // Without a memory cgroup there is no such limit; where it is not in force it is not read.
    let refusing = evidence
        .memcg
        .as_ref()
        .and_then(MemcgEvidence::refusing_kernel_memory);
    match refusing {
        Some((_, level)) => Numbers::Fit(format!(
            "cgroup {} has {} bytes of kernel memory of {}",
            level.path.as_deref().unwrap_or("(unnamed)"),
            level.kmem_usage_bytes.unwrap_or(0),
            level.kmem_limit_bytes.unwrap_or(0)
        )),
        None => Numbers::DoNotFit("no cgroup is at a limit of kernel memory".to_owned()),
    }
}

/// kernel/auditsc.c `audit_alloc`, 5.10 to 7.2: `audit_log_lost("out of memory in audit_alloc")`.
pub(super) fn audit(evidence: &Evidence) -> Numbers {
    if evidence.kernel_log.contains(&LogFact::AuditOutOfMemory) {
        Numbers::Fit("the kernel log says \"audit: out of memory in audit_alloc\"".to_owned())
    } else {
        Numbers::DoNotFit("the kernel log says nothing of it".to_owned())
    }
}

/// fs/file.c `dup_fd` and `alloc_fdtable`, 5.10 to 7.2: the copy may not be larger than
/// fs.nr_open. The table may be larger than what is open in it; but only this gives EMFILE.
pub(super) fn open_files(evidence: &Evidence) -> Numbers {
    let Some(files) = &evidence.open_files else {
        return Numbers::Absent;
    };
    let Some(nr_open) = files.nr_open else {
        return Numbers::Absent;
    };
    let text = format!(
        "the table of open files has room for {}, and fs.nr_open is {nr_open}",
        files.table_size
    );
    if files.table_size > nr_open {
        Numbers::Fit(text)
    } else {
        Numbers::DoNotFit(text)
    }
}

/// The kernel log names the refused pid (mm/util.c `__vm_enough_memory`, 6.1 to 7.2).
fn logged(attempt: &Attempt, evidence: &Evidence) -> bool {
    let named = LogFact::CommitRefused { pid: attempt.tid };
    let leader = LogFact::CommitRefused { pid: attempt.tgid };
    evidence.kernel_log.contains(&named) || evidence.kernel_log.contains(&leader)
}

/// Right after the refusal the kernel has undone the fork's charges, so the
/// whole fork is put to the question again, not the one mapping.
pub(super) fn strict(attempt: &Attempt, evidence: &Evidence) -> Numbers {
    let Some(overcommit) = &evidence.overcommit else {
        return Numbers::Absent;
    };
    match overcommit.overcommit_memory {
        Some(STRICT) => {}
        Some(mode) => {
            return Numbers::DoNotFit(format!("vm.overcommit_memory is {mode}, not strict"));
        }
        None => return Numbers::Absent,
    }
    if attempt.valid & valid::OVERCOMMIT_CALL != 0 {
        return Numbers::Absent;
    }
    if logged(attempt, evidence) {
        return Numbers::Fit(
            "the kernel log says that overcommit refused this process, in strict mode".to_owned(),
        );
    }
    let (Some(usable), Some(charge), Some(committed)) = (
        overcommit.usable_bytes,
        overcommit.fork_charge_bytes,
        overcommit
            .committed_bytes
            .or(overcommit.committed_after_bytes),
    ) else {
        return Numbers::Absent;
    };
    let text = format!(
        "{committed} bytes are promised, the fork asks for {charge} more, and {usable} are usable"
    );
    let skew = overcommit.counter_skew_bytes.unwrap_or(0);
    if overcommit::refuses(committed, charge, usable) {
        Numbers::Fit(text)
    } else if overcommit::refuses(committed.saturating_add(skew), charge, usable) {
        Numbers::Unclear(format!("{text}; the kernel's counter may be off by {skew}"))
    } else {
        Numbers::DoNotFit(text)
    }
}

/// mm/util.c `__vm_enough_memory`, 5.10 to 7.2: mode 0 refuses a request larger than RAM and swap.
pub(super) fn heuristic(attempt: &Attempt, evidence: &Evidence) -> Numbers {
    let Some(overcommit) = &evidence.overcommit else {
        return Numbers::Absent;
    };
    match overcommit.overcommit_memory {
        Some(HEURISTIC) => {}
        Some(mode) => {
            return Numbers::DoNotFit(format!("vm.overcommit_memory is {mode}, not heuristic"));
        }
        None => return Numbers::Absent,
    }
    let largest = overcommit
        .requested_bytes
        .or(overcommit.largest_mapping_bytes);
    let all = overcommit
        .mem_total_bytes
        .zip(overcommit.swap_total_bytes)
        .map(|(ram, swap)| ram.saturating_add(swap));
    let sizes = largest.zip(all);
    // What is logged of a smaller one was refused in another mode, before that was changed.
    let at_most = largest.or(overcommit.total_vm_bytes).zip(all);
    let in_this_mode = at_most.is_none_or(|(largest, all)| largest > all);
    if logged(attempt, evidence) && in_this_mode {
        return Numbers::Fit(
            "the kernel log says that overcommit refused this process, in heuristic mode"
                .to_owned(),
        );
    }
    let Some((largest, all)) = sizes else {
        let whole = overcommit.total_vm_bytes.zip(all);
        return whole.filter(|(whole, all)| whole <= all).map_or(
            Numbers::Absent,
            |(whole, all)| {
                Numbers::DoNotFit(format!(
                    "the whole address space has {whole} bytes, and RAM and swap have {all}"
                ))
            },
        );
    };
    let text = format!("the largest mapping has {largest} bytes, and RAM and swap have {all}");
    if largest > all {
        Numbers::Fit(text)
    } else {
        Numbers::DoNotFit(text)
    }
}
