//! What `host`, `postgres` and `kernel` say, as the verdict needs it.

use std::collections::HashSet;

use pgfork_trace_common::Check;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{host::cgroup::Runtime, kernel::plan::Method};

/// Memory of the host, in bytes, as `/proc/meminfo` had it right after the refusal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryFacts {
    /// `MemTotal`.
    pub mem_total: u64,
    /// `MemAvailable`.
    pub mem_available: u64,
    /// `SwapTotal`.
    pub swap_total: u64,
    /// `CommitLimit`.
    pub commit_limit: u64,
    /// `Committed_AS`.
    pub committed_as: u64,
    /// `Hugetlb`: memory set aside for huge pages.
    pub hugetlb: u64,
}

/// `/proc/sys/vm/`: how memory may be promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OvercommitSettings {
    /// `overcommit_memory`: 0 heuristic, 1 always, 2 strict.
    pub mode: i32,
    /// `overcommit_ratio`, percent.
    pub ratio: u64,
    /// `overcommit_kbytes`; 0 when the ratio counts.
    pub kbytes: u64,
    /// `admin_reserve_kbytes`.
    pub admin_reserve_kbytes: u64,
    /// `user_reserve_kbytes`.
    pub user_reserve_kbytes: u64,
}

/// The systemd unit that manages a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitFact {
    /// Unit name.
    pub name: String,
    /// Property that sets the limit, for example `TasksMax`.
    pub property: String,
}

/// A cgroup on the postmaster's path in the pids hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupFact {
    /// Inode number of its directory: the kernel's id of it.
    pub id: u64,
    /// Path below the root of the hierarchy, with a leading slash.
    pub path: String,
    /// Directory on this host, to write a limit into.
    pub directory: String,
    /// systemd unit, where the path names one.
    pub unit: Option<UnitFact>,
    /// Container id, where the path names one.
    pub container: Option<String>,
    /// What made the container; only of the container's own cgroup, not of one below it.
    pub runtime: Option<Runtime>,
}

/// What one more backend costs, measured from those that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCost {
    /// Children of the postmaster now.
    pub children: u64,
    /// Commit charge of one child in bytes: the median of those looked at.
    pub commit_bytes: Option<u64>,
}

/// Memory cgroup of the postmaster's path, as its files had it right after the refusal. In bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemcgFact {
    /// What it is called, and who manages its limit.
    pub group: CgroupFact,
    /// Its files are those of cgroup v1.
    pub v1: bool,
    /// Memory charged.
    pub usage: Option<u64>,
    /// Its limit; absent also for "max".
    pub limit: Option<u64>,
    /// Memory and swap charged together (v1).
    pub memsw_usage: Option<u64>,
    /// Limit of memory and swap together (v1).
    pub memsw_limit: Option<u64>,
    /// Kernel memory charged (v1).
    pub kmem_usage: Option<u64>,
    /// Its limit (v1).
    pub kmem_limit: Option<u64>,
    /// Nobody is killed at the limit (v1).
    pub oom_kill_disable: Option<bool>,
}

/// Who in the postmaster's memory cgroup may be killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KillableFact {
    /// Processes looked at: the postmaster and a sample of its children.
    pub looked_at: u64,
    /// How many of them have `oom_score_adj` -1000.
    pub protected: u64,
}

/// One line of the kernel log that bears on refused forks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogFact {
    /// `__vm_enough_memory: pid: N, comm: C, ... not enough memory` (6.1 and later).
    CommitRefused {
        /// The process, in the initial pid namespace.
        pid: u32,
    },
    /// `cgroup: fork rejected by pids controller in PATH`, once for each cgroup that forks.
    PidsRejected {
        /// The cgroup that forked, not the one whose limit it was.
        path: String,
    },
    /// `Out of memory and no killable processes...`.
    NothingKillable,
    /// `oom-kill:...,oom_memcg=PATH,...,pid=N,...`: which memory cgroup a victim was killed for.
    CgroupOutOfMemory {
        /// The victim, in the initial pid namespace.
        pid: u32,
        /// The memory cgroup that was short.
        path: String,
    },
    /// `Memory cgroup out of memory: Killed process N (C)`.
    CgroupKilled {
        /// The victim, in the initial pid namespace.
        pid: u32,
    },
    /// `Out of memory: Killed process N (C)`.
    HostKilled {
        /// The victim, in the initial pid namespace.
        pid: u32,
    },
    /// `C: page allocation failure: ...`.
    AllocationFailed {
        /// Name of the process.
        comm: String,
    },
    /// `audit: out of memory in audit_alloc`.
    AuditOutOfMemory,
}

/// Everything read from the host for one verdict. Absent means: could not be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Page size in bytes.
    pub page_size: u64,
    /// Number of processors that are online.
    pub cpus: u64,
    /// Memory.
    pub memory: Option<MemoryFacts>,
    /// Overcommit settings.
    pub overcommit: Option<OvercommitSettings>,
    /// Tasks on the host and `kernel.threads-max`.
    pub threads: Option<(u64, u64)>,
    /// cgroups on the postmaster's path, own first.
    pub cgroups: Vec<CgroupFact>,
    /// The postmaster's own systemd unit.
    pub unit: Option<String>,
    /// Bytes that a fork of the postmaster charges: its accounted mappings.
    pub fork_charge_bytes: Option<u64>,
    /// Backends.
    pub backends: BackendCost,
    /// Names and counts of the user's tasks, most frequent first.
    pub user_tasks: Vec<(String, u64)>,
    /// Process id of the refused process.
    pub pid: u32,
    /// Its hard resource limits.
    pub hard_limits: HardLimits,
    /// Release of the kernel: major and minor.
    pub kernel: Option<(u32, u32)>,
    /// `kernel.pid_max` of the host: for all pid namespaces where they have none of their own.
    pub pid_max: Option<u64>,
    /// `fs.nr_open`.
    pub nr_open: Option<u64>,
    /// Memory cgroups on the postmaster's path, own first.
    pub memory_cgroups: Vec<MemcgFact>,
    /// Who of the postmaster and its children may be killed.
    pub killable: Option<KillableFact>,
    /// The largest accounted mapping of the process, in bytes.
    pub largest_mapping_bytes: Option<u64>,
    /// The process has the reset-on-fork flag of its scheduling policy.
    pub reset_on_fork: Option<bool>,
    /// Security modules of this kernel.
    pub security_modules: Vec<String>,
    /// A BPF scheduler is running.
    pub sched_ext: Option<bool>,
    /// Lines of the kernel log from shortly before the refusal on.
    pub kernel_log: Vec<LogFact>,
}

/// How far a process itself may raise its resource limits: `u64::MAX` without a limit, absent
/// where it cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardLimits {
    /// `RLIMIT_NPROC`, tasks.
    pub nproc: Option<u64>,
    /// `RLIMIT_AS`, bytes.
    pub address_space: Option<u64>,
    /// `RLIMIT_DATA`, bytes.
    pub data: Option<u64>,
    /// `RLIMIT_STACK`, bytes.
    pub stack: Option<u64>,
    /// `RLIMIT_MEMLOCK`, bytes.
    pub memlock: Option<u64>,
}

/// Which checks could be watched, and how.
#[derive(Clone, Debug)]
pub struct Coverage {
    /// Attach method.
    pub method: Method,
    /// Checks whose programs are attached.
    pub hooked: HashSet<Check>,
    /// The rest: check and reason.
    pub not_seen: Vec<(Check, String)>,
    /// Without hooks: system calls are watched, not the C library's `fork`.
    pub syscalls: bool,
}

impl Coverage {
    /// Whether this check is watched.
    #[must_use]
    pub fn sees(&self, check: Check) -> bool {
        self.hooked.contains(&check)
    }

    /// Whether this kernel may have the check, but it is not watched. A check that the kernel
    /// does not have is neither watched nor missing.
    #[must_use]
    pub fn misses(&self, check: Check) -> bool {
        self.not_seen.iter().any(|(missing, _)| *missing == check)
    }
}
