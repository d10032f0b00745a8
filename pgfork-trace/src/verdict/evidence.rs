//! Numbers behind a verdict: what the kernel side recorded, completed by the host's facts.

use pgfork_trace_common::{Attempt, PIDS_MAX, valid};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Facts, LogFact, memcg, overcommit, privilege};

/// One level of the pids controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CgroupLevel {
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// Path below the hierarchy's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// systemd property or cgroup file that holds the limit.
    pub property: String,
    /// Container id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Tasks in it, without the refused one.
    pub tasks: u64,
    /// Limit; absent for "max".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl CgroupLevel {
    /// Whether one more task would be refused here.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.tasks + 1 > limit)
    }
}

/// Task count of the user in one user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NprocLevelEvidence {
    /// Inode number of the user namespace.
    pub userns_inum: u32,
    /// Tasks of the user, without the refused one.
    pub tasks: u64,
    /// Limit; absent for "unlimited".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

impl NprocLevelEvidence {
    /// Whether one more task would be refused here.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.limit.is_some_and(|limit| self.tasks >= limit)
    }
}

/// How many tasks of the user have one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct UserTasks {
    /// `comm`.
    pub comm: String,
    /// Tasks.
    pub tasks: u64,
}

/// `RLIMIT_NPROC` and who counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct NprocEvidence {
    /// Real uid in the initial user namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The limit does not apply to this process; absent when its credentials could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exempt: Option<bool>,
    /// The process's own user namespace first.
    pub levels: Vec<NprocLevelEvidence>,
    /// There are more user namespaces above than were read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The user's tasks by name, most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub user_tasks: Vec<UserTasks>,
}

/// What overcommit compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OvercommitEvidence {
    /// vm.overcommit_memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit_memory: Option<i32>,
    /// Bytes asked for by the refused call: one mapping of the postmaster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_bytes: Option<u64>,
    /// Bytes that the whole fork asks for: all accounted mappings of the postmaster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork_charge_bytes: Option<u64>,
    /// The largest single accounted mapping of the postmaster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub largest_mapping_bytes: Option<u64>,
    /// The postmaster's whole address space: no mapping of it is larger.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_vm_bytes: Option<u64>,
    /// Memory promised when the check compared, without the request, as the kernel's own
    /// counter had it (approximate by up to `counter_skew_bytes`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_bytes: Option<u64>,
    /// Most that the counter may lag behind the exact sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counter_skew_bytes: Option<u64>,
    /// CommitLimit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_limit_bytes: Option<u64>,
    /// Part of it kept for privileged processes (vm.admin_reserve_kbytes); 0 for those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_reserve_bytes: Option<u64>,
    /// Part of it kept so that one user can recover: the smaller of vm.user_reserve_kbytes
    /// and 1/32 of the postmaster's address space, shared_buffers included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_reserve_bytes: Option<u64>,
    /// `commit_limit_bytes` less both reserves: what `committed_bytes` plus the request must stay below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usable_bytes: Option<u64>,
    /// vm.overcommit_ratio, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit_ratio: Option<u64>,
    /// vm.overcommit_kbytes, in bytes; 0 when the ratio counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit_bytes: Option<u64>,
    /// Committed_AS of /proc/meminfo right after the refusal: already lower, as the
    /// kernel has undone the fork.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_after_bytes: Option<u64>,
    /// MemTotal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_total_bytes: Option<u64>,
    /// MemAvailable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_available_bytes: Option<u64>,
    /// SwapTotal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_total_bytes: Option<u64>,
    /// Commit charge of one backend: the median of those that run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_commit_bytes: Option<u64>,
}

/// kernel.threads-max.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ThreadsEvidence {
    /// Tasks on the host.
    pub tasks: u64,
    /// kernel.threads-max.
    pub limit: u64,
}

/// One memory cgroup, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemcgLevel {
    /// Inode number of the cgroup's directory.
    pub cgroup_id: u64,
    /// Path below the hierarchy's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// systemd unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// systemd property or cgroup file that holds the limit.
    pub property: String,
    /// Container id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Memory charged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// Limit; absent for "max".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Memory and swap charged (v1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memsw_usage_bytes: Option<u64>,
    /// Limit of both together (v1); absent for "max".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memsw_limit_bytes: Option<u64>,
    /// Kernel memory charged (v1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kmem_usage_bytes: Option<u64>,
    /// Limit of it (v1); absent for "max".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kmem_limit_bytes: Option<u64>,
    /// The OOM killer is turned off here (v1).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kill_disable: Option<bool>,
}

/// Memory cgroups: the one that was at its limit, and the postmaster's path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemcgEvidence {
    /// The cgroup that memory was reclaimed from last in this fork, as it was then: at its limit,
    /// or above memory.high.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_limit: Option<MemcgLevel>,
    /// The OOM killer was called for `at_limit`.
    #[serde(skip)]
    pub oom: bool,
    /// How many times memory was reclaimed for this fork; it may have helped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaims: Option<u32>,
    /// The postmaster's own cgroup first, as their files had it right after.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<MemcgLevel>,
    /// Processes looked at: the postmaster and a sample of its children.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u64>,
    /// How many of them the OOM killer may not kill (`oom_score_adj` -1000).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protected: Option<u64>,
}

/// One pid namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PidNamespaceLevel {
    /// Inode number.
    pub inum: u32,
    /// Depth; 0 is the host's.
    pub level: u32,
    /// Numbers given out.
    pub taken: u64,
    /// kernel.pid_max: numbers stay below it. The namespace's own in 6.18 and later, else the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_max: Option<u64>,
    /// `pid_max` is its own, not one for all.
    #[serde(skip)]
    pub has_own_pid_max: bool,
    /// It still has its init process.
    pub alive: bool,
}

/// The table of open files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct OpenFilesEvidence {
    /// Size of the table: the highest open number is below it.
    pub table_size: u64,
    /// fs.nr_open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nr_open: Option<u64>,
}

/// State of the refused process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ProcessEvidence {
    /// Scheduling policy by number; 6 is `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<u32>,
    /// Its children get a normal policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reset_on_fork: Option<bool>,
    /// 0: no seccomp, 1: strict, 2: filters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_mode: Option<u32>,
    /// A tracer is attached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traced: Option<bool>,
    /// System calls are dispatched to a handler of its own (`PR_SET_SYSCALL_USER_DISPATCH`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub user_dispatch: bool,
    /// Perf events that are open on the process and that its children inherit, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perf_events: Option<u32>,
    /// -1000: the OOM killer may not kill it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Security modules of this kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub security_modules: Vec<String>,
    /// A BPF scheduler is running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sched_ext: Option<bool>,
}

/// All numbers of one refusal; what could not be read is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Evidence {
    /// Overcommit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<OvercommitEvidence>,
    /// pids limits from the postmaster's own cgroup upwards.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pids: Vec<CgroupLevel>,
    /// The process is in the root of the pids hierarchy, which has no limit.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pids_root: bool,
    /// The path is deeper than what was read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pids_truncated: bool,
    /// `RLIMIT_NPROC`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nproc: Option<NprocEvidence>,
    /// kernel.threads-max.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<ThreadsEvidence>,
    /// The pid namespace for children still has its init process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_namespace_alive: Option<bool>,
    /// Memory cgroups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memcg: Option<MemcgEvidence>,
    /// Pid namespaces, the one for children first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pid_namespaces: Vec<PidNamespaceLevel>,
    /// There are more pid namespaces above than were read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pid_namespaces_truncated: bool,
    /// The table of open files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<OpenFilesEvidence>,
    /// State of the refused process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessEvidence>,
    /// Lines of the kernel log from shortly before the refusal on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel_log: Vec<LogFact>,
}

impl Evidence {
    /// The pids level that refused: the first full one; else, as the numbers may have been read a
    /// moment later and a task has ended since, the fullest, where all levels were read.
    #[must_use]
    pub fn refusing_pids(&self) -> Option<(usize, &CgroupLevel)> {
        let mut levels = self.pids.iter().enumerate();
        levels.find(|(_, level)| level.is_full()).or_else(|| {
            let room = |level: &CgroupLevel| Some(level.limit?.saturating_sub(level.tasks));
            let limited = self.pids.iter().enumerate();
            limited
                .filter(|(_, level)| level.limit.is_some() && !self.pids_truncated)
                .min_by_key(|(_, level)| room(level))
        })
    }
}

impl NprocEvidence {
    /// The same of the user namespaces.
    #[must_use]
    pub fn refusing(&self) -> Option<(usize, &NprocLevelEvidence)> {
        let mut levels = self.levels.iter().enumerate();
        levels.find(|(_, level)| level.is_full()).or_else(|| {
            let room = |level: &NprocLevelEvidence| Some(level.limit?.saturating_sub(level.tasks));
            let limited = self.levels.iter().enumerate();
            limited
                .filter(|(_, level)| level.limit.is_some() && !self.truncated)
                .min_by_key(|(_, level)| room(level))
        })
    }
}

pub(super) fn collect(attempt: &Attempt, facts: &Facts) -> Evidence {
    Evidence {
        overcommit: overcommit::collect(attempt, facts),
        pids: pids(attempt, facts),
        pids_root: attempt.valid & valid::PIDS != 0 && attempt.pids_levels == 0,
        pids_truncated: attempt.valid & valid::PIDS_TRUNCATED != 0,
        nproc: nproc(attempt, facts),
        threads: threads(attempt, facts),
        // PIDNS_ADDING, bit 31 of pid_allocated, is cleared when init is gone
        // (kernel/pid.c `disable_pid_allocation`, 5.10 to 7.2).
        pid_namespace_alive: (attempt.valid & valid::PIDNS != 0)
            .then_some(attempt.pidns[0].allocated >> 31 == 1),
        memcg: memcg::collect(attempt, facts),
        pid_namespaces: pid_namespaces(attempt, facts),
        pid_namespaces_truncated: attempt.valid & valid::PIDNS_TRUNCATED != 0,
        open_files: open_files(attempt, facts),
        process: process(attempt, facts),
        kernel_log: kernel_log(attempt, facts),
    }
}

/// Lines that may be of this refusal: of its errno, and of no other process or cgroup.
fn kernel_log(attempt: &Attempt, facts: &Facts) -> Vec<LogFact> {
    let unread = attempt.valid & valid::RET == 0;
    let tasks = unread || attempt.ret == -libc::EAGAIN;
    let memory = unread || attempt.ret == -libc::ENOMEM || attempt.ret == -libc::EINTR;
    let own = facts.cgroups.first().map(|fact| &fact.path);
    let is_on_path = |path: &String| {
        let mut levels = facts.memory_cgroups.iter();
        levels.any(|level| level.group.path == *path)
    };
    // A container that is out of memory next door has nothing to do with this fork.
    let is_of_ours = |victim: u32| {
        victim == attempt.tgid
            || facts.kernel_log.iter().any(|line| {
                matches!(line, LogFact::CgroupOutOfMemory { pid, path } if *pid == victim && is_on_path(path))
            })
    };
    let about = |line: &&LogFact| match line {
        LogFact::CommitRefused { pid } => memory && (*pid == attempt.tgid || *pid == attempt.tid),
        LogFact::PidsRejected { path } => tasks && Some(path) == own,
        LogFact::CgroupOutOfMemory { pid, .. } | LogFact::CgroupKilled { pid } => {
            memory && is_of_ours(*pid)
        }
        _ => memory,
    };
    facts.kernel_log.iter().filter(about).cloned().collect()
}

/// `PIDNS_ADDING` (include/linux/pid_namespace.h, 5.10 to 7.2): not part of the count.
const PIDNS_ADDING: u32 = 1 << 31;

fn pid_namespaces(attempt: &Attempt, facts: &Facts) -> Vec<PidNamespaceLevel> {
    if attempt.valid & valid::PIDNS == 0 {
        return Vec::new();
    }
    let own_limits = attempt.valid & valid::PIDNS_PID_MAX != 0;
    attempt
        .pidns
        .iter()
        .take(attempt.pidns_levels as usize)
        .map(|level| PidNamespaceLevel {
            inum: level.inum,
            level: level.level,
            taken: u64::from(level.allocated & !PIDNS_ADDING),
            pid_max: if own_limits {
                u64::try_from(level.pid_max).ok()
            } else {
                facts.pid_max
            },
            has_own_pid_max: own_limits,
            alive: level.allocated & PIDNS_ADDING != 0,
        })
        .collect()
}

fn open_files(attempt: &Attempt, facts: &Facts) -> Option<OpenFilesEvidence> {
    (attempt.valid & valid::MAX_FDS != 0 && attempt.ret == -libc::EMFILE).then(|| {
        OpenFilesEvidence {
            table_size: u64::from(attempt.state.max_fds),
            nr_open: facts.nr_open,
        }
    })
}

fn process(attempt: &Attempt, facts: &Facts) -> Option<ProcessEvidence> {
    let read = |bit: u32| attempt.valid & bit != 0;
    let state = &attempt.state;
    let found = ProcessEvidence {
        policy: read(valid::POLICY).then_some(state.policy),
        reset_on_fork: facts.reset_on_fork,
        seccomp_mode: read(valid::SECCOMP).then_some(state.seccomp_mode),
        traced: read(valid::PTRACE).then_some(state.ptrace != 0),
        user_dispatch: state.user_dispatch != 0,
        perf_events: (state.perf_events != 0).then_some(state.perf_events),
        oom_score_adj: read(valid::OOM_SCORE_ADJ).then_some(state.oom_score_adj),
        security_modules: facts.security_modules.clone(),
        sched_ext: facts.sched_ext,
    };
    (found != ProcessEvidence::default()).then_some(found)
}

fn pids(attempt: &Attempt, facts: &Facts) -> Vec<CgroupLevel> {
    if attempt.valid & valid::PIDS == 0 {
        return Vec::new();
    }
    attempt
        .pids
        .iter()
        .take(attempt.pids_levels as usize)
        .map(|level| {
            let fact = facts.cgroups.iter().find(|fact| fact.id == level.cgroup_id);
            let unit = fact.and_then(|fact| fact.unit.as_ref());
            CgroupLevel {
                cgroup_id: level.cgroup_id,
                path: fact.map(|fact| fact.path.clone()),
                unit: unit.map(|unit| unit.name.clone()),
                property: unit.map_or_else(|| "pids.max".to_owned(), |unit| unit.property.clone()),
                container: fact.and_then(|fact| fact.container.clone()),
                tasks: u64::try_from(level.count).unwrap_or(0),
                limit: u64::try_from(level.limit)
                    .ok()
                    .filter(|_| level.limit < PIDS_MAX),
            }
        })
        .collect()
}

fn nproc(attempt: &Attempt, facts: &Facts) -> Option<NprocEvidence> {
    if attempt.valid & valid::NPROC == 0 {
        return None;
    }
    // Inside the check the refused task is already counted.
    let own = i64::from(attempt.valid & valid::NPROC_COUNTS_SELF != 0);
    let levels = attempt
        .nproc
        .iter()
        .take(attempt.nproc_levels as usize)
        .map(|level| NprocLevelEvidence {
            userns_inum: level.userns_inum,
            tasks: u64::try_from(level.count - own).unwrap_or(0),
            limit: Some(level.limit).filter(|limit| *limit < i64::MAX as u64),
        })
        .collect();
    let credentials = attempt.valid & valid::CRED != 0;
    Some(NprocEvidence {
        uid: credentials.then_some(attempt.state.uid),
        exempt: privilege::exempt_from_nproc(attempt),
        levels,
        truncated: attempt.valid & valid::NPROC_TRUNCATED != 0,
        user_tasks: facts
            .user_tasks
            .iter()
            .map(|(comm, tasks)| UserTasks {
                comm: comm.clone(),
                tasks: *tasks,
            })
            .collect(),
    })
}

fn threads(attempt: &Attempt, facts: &Facts) -> Option<ThreadsEvidence> {
    if attempt.valid & valid::THREADS != 0 {
        return Some(ThreadsEvidence {
            tasks: u64::try_from(attempt.state.nr_threads).unwrap_or(0),
            limit: u64::try_from(attempt.state.max_threads).unwrap_or(0),
        });
    }
    facts
        .threads
        .map(|(tasks, limit)| ThreadsEvidence { tasks, limit })
}
