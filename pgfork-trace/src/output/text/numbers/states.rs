//! The numbers of all other causes: memory cgroups, numbers of processes, states.

use super::{
    super::{
        super::{
            escape::{name, sentence},
            units::{bytes, count, counted},
        },
        container,
    },
    tasks,
};
use crate::verdict::{
    Cause, Evidence, LogFact, MemcgEvidence, MemcgLevel, OvercommitEvidence, PidNamespaceLevel,
    ProcessEvidence,
};

/// Most lines of the kernel log shown.
const MOST_LOG_LINES: usize = 4;

pub(super) fn lines(cause: Cause, evidence: &Evidence) -> Vec<String> {
    let mut rows = match cause {
        Cause::ThreadsMax => threads(evidence).into_iter().collect(),
        Cause::OvercommitHeuristic => evidence
            .overcommit
            .as_ref()
            .map(heuristic)
            .unwrap_or_default(),
        Cause::MemcgNoVictim
        | Cause::MemcgOomKillDisabled
        | Cause::MemcgKmemLimitV1
        | Cause::MemcgDyingTask
        | Cause::MemcgOomKilledForker => memory_cgroups(evidence),
        Cause::PidSpaceExhausted => pid_numbers(evidence),
        Cause::PidNamespaceDying | Cause::PidNamespaceDyingLate => namespaces(evidence),
        Cause::NrOpenLowered | Cause::FdTableAllocFailed => open_files(evidence),
        Cause::SchedDeadlineFork
        | Cause::SeccompDenied
        | Cause::PtraceOrUserDispatch
        | Cause::LsmDenied
        | Cause::SchedExtRejected => evidence.process.as_ref().map(process).unwrap_or_default(),
        Cause::KernelMemoryExhausted
        | Cause::KernelStackAllocFailed
        | Cause::PageTableAllocFailed
        | Cause::AuditAllocFailed => host_memory(evidence).into_iter().collect(),
        _ => Vec::new(),
    };
    rows.extend(kernel_log(evidence));
    rows
}

fn threads(evidence: &Evidence) -> Option<String> {
    let threads = evidence.threads?;
    Some(format!(
        "{} on the host of kernel.threads-max {}",
        tasks(threads.tasks),
        count(threads.limit)
    ))
}

fn heuristic(overcommit: &OvercommitEvidence) -> Vec<String> {
    let mut rows = Vec::new();
    let asked = overcommit.requested_bytes.map_or_else(
        || {
            let largest = overcommit.largest_mapping_bytes?;
            Some(format!("the largest mapping has {}", bytes(largest)))
        },
        |asked| Some(format!("asked for {} (this mapping)", bytes(asked))),
    );
    rows.extend(asked);
    if let (Some(ram), Some(swap)) = (overcommit.mem_total_bytes, overcommit.swap_total_bytes) {
        rows.push(format!(
            "RAM {} and swap {} are {}",
            bytes(ram),
            bytes(swap),
            bytes(ram.saturating_add(swap))
        ));
    }
    rows.extend(
        overcommit
            .overcommit_memory
            .map(|mode| format!("vm.overcommit_memory = {mode}")),
    );
    rows
}

fn host_memory(evidence: &Evidence) -> Option<String> {
    let overcommit = evidence.overcommit.as_ref()?;
    Some(format!(
        "MemAvailable {} of {} RAM",
        bytes(overcommit.mem_available_bytes?),
        bytes(overcommit.mem_total_bytes?)
    ))
}

/// The refusing level, who may be killed, then the others on the path that have a limit.
pub(super) fn memory_cgroups(evidence: &Evidence) -> Vec<String> {
    let Some(memcg) = &evidence.memcg else {
        return Vec::new();
    };
    let refusing = memcg
        .refusing()
        .or_else(|| memcg.refusing_kernel_memory())
        .map(|(_, level)| level);
    let mut rows = Vec::new();
    if let Some(level) = refusing {
        rows.push(format!("{} ({})", level_text(level), holder(level)));
        rows.extend(kernel_memory(level));
        if level.oom_kill_disable == Some(true) {
            rows.push("its OOM killer is turned off (memory.oom_control)".to_owned());
        }
    }
    rows.extend(killable(memcg));
    rows.extend(memcg.reclaims.map(|times| {
        format!(
            "memory was reclaimed for this fork {}",
            counted(u64::from(times), "time", "times")
        )
    }));
    let others: Vec<String> = memcg
        .levels
        .iter()
        .filter(|level| level.limit_bytes.is_some())
        .filter(|level| refusing.is_none_or(|it| it.cgroup_id != level.cgroup_id))
        .map(level_text)
        .collect();
    if !others.is_empty() {
        rows.push(format!("on the same path: {}", others.join("; ")));
    }
    rows
}

fn killable(memcg: &MemcgEvidence) -> Option<String> {
    let (looked_at, protected) = memcg.processes.zip(memcg.protected)?;
    Some(match protected {
        0 => format!(
            "all {} looked at may be killed",
            counted(looked_at, "process", "processes")
        ),
        _ => format!(
            "{} of {} looked at may not be killed (oom_score_adj -1000)",
            count(protected),
            counted(looked_at, "process", "processes")
        ),
    })
}

fn level_text(level: &MemcgLevel) -> String {
    let place = match &level.path {
        Some(path) => name(path).into_owned(),
        None => format!("cgroup id {}", level.cgroup_id),
    };
    let usage = level
        .usage_bytes
        .map_or_else(|| "memory".to_owned(), |it| bytes(it) + " of memory");
    let limit = level
        .limit_bytes
        .map_or_else(|| "no limit".to_owned(), bytes);
    let swap = match (level.memsw_usage_bytes, level.memsw_limit_bytes) {
        (Some(usage), Some(limit)) => format!(", with swap {} of {}", bytes(usage), bytes(limit)),
        _ => String::new(),
    };
    format!("{usage} of {limit}{swap} in {place}")
}

fn kernel_memory(level: &MemcgLevel) -> Option<String> {
    Some(format!(
        "kernel memory {} of {} (memory.kmem.limit_in_bytes)",
        bytes(level.kmem_usage_bytes?),
        bytes(level.kmem_limit_bytes?)
    ))
}

/// Where the limit is set.
fn holder(level: &MemcgLevel) -> String {
    let property = name(&level.property);
    match (&level.container, &level.unit) {
        (Some(id), _) => format!("{property}, {}", container(id)),
        (None, Some(unit)) => format!("{property} of {}", name(unit)),
        (None, None) => property.into_owned(),
    }
}

fn whose(level: &PidNamespaceLevel) -> String {
    match level.level {
        0 => "on the host".to_owned(),
        depth => format!("in pid namespace {} (level {depth})", level.inum),
    }
}

fn pid_numbers(evidence: &Evidence) -> Vec<String> {
    evidence
        .pid_namespaces
        .iter()
        .map(|level| {
            let taken = counted(level.taken, "number", "numbers");
            match level.pid_max {
                Some(limit) => format!(
                    "{taken} taken {}, kernel.pid_max {}",
                    whose(level),
                    count(limit)
                ),
                None => format!("{taken} taken {}", whose(level)),
            }
        })
        .collect()
}

fn namespaces(evidence: &Evidence) -> Vec<String> {
    let mut rows: Vec<String> = evidence
        .pid_namespaces
        .iter()
        .filter(|level| !level.alive)
        .map(|level| {
            format!(
                "the first process {} is gone; {} left",
                whose(level),
                counted(level.taken, "number is", "numbers are")
            )
        })
        .collect();
    rows.push("memory is not short: the kernel uses this error for it".to_owned());
    rows
}

fn open_files(evidence: &Evidence) -> Vec<String> {
    let Some(files) = evidence.open_files else {
        return Vec::new();
    };
    let nr_open = files
        .nr_open
        .map_or_else(String::new, |it| format!(", fs.nr_open {}", count(it)));
    vec![format!(
        "the table of open files has room for {}{nr_open}",
        count(files.table_size)
    )]
}

fn process(process: &ProcessEvidence) -> Vec<String> {
    let mut parts = Vec::new();
    if process.policy == Some(6) {
        parts.push("scheduling policy SCHED_DEADLINE".to_owned());
    }
    match process.seccomp_mode {
        Some(2) => parts.push("a seccomp filter is in place".to_owned()),
        Some(0) => parts.push("no seccomp filter".to_owned()),
        _ => {}
    }
    match process.traced {
        Some(true) => parts.push("a tracer is attached".to_owned()),
        Some(false) => parts.push("no tracer".to_owned()),
        None => {}
    }
    if !process.security_modules.is_empty() {
        parts.push(format!(
            "security modules {}",
            name(&process.security_modules.join(","))
        ));
    }
    if process.sched_ext == Some(true) {
        parts.push("a BPF scheduler is running".to_owned());
    }
    match parts.is_empty() {
        true => Vec::new(),
        false => vec![parts.join(", ")],
    }
}

/// Lines of the kernel log, in its own words.
pub(super) fn kernel_log(evidence: &Evidence) -> Vec<String> {
    let mut shown: Vec<String> = Vec::new();
    for line in &evidence.kernel_log {
        let text = format!("kernel log: {}", sentence(&log_text(line)));
        if !shown.contains(&text) && shown.len() < MOST_LOG_LINES {
            shown.push(text);
        }
    }
    shown
}

fn log_text(line: &LogFact) -> String {
    match line {
        LogFact::CommitRefused { pid } => {
            format!("__vm_enough_memory: pid: {pid}, not enough memory for the allocation")
        }
        LogFact::PidsRejected { path } => {
            format!("cgroup: fork rejected by pids controller in {}", name(path))
        }
        LogFact::NothingKillable => "Out of memory and no killable processes...".to_owned(),
        LogFact::CgroupOutOfMemory { pid, path } => {
            format!(
                "oom-kill:constraint=CONSTRAINT_MEMCG, oom_memcg={}, pid={pid}",
                name(path)
            )
        }
        LogFact::CgroupKilled { pid } => {
            format!("Memory cgroup out of memory: Killed process {pid}")
        }
        LogFact::HostKilled { pid } => format!("Out of memory: Killed process {pid}"),
        LogFact::AllocationFailed { comm } => format!("{}: page allocation failure", name(comm)),
        LogFact::AuditOutOfMemory => "audit: out of memory in audit_alloc".to_owned(),
    }
}
