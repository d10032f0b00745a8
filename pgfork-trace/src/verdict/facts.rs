//! What `host`, `postgres` and `kernel` say, as the verdict needs it.

use std::collections::HashSet;

use pgfork_trace_common::Check;

use crate::kernel::plan::Method;

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
}

/// What one more backend costs, measured from those that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCost {
    /// Children of the postmaster now.
    pub children: u64,
    /// Commit charge of one child in bytes: the median of those looked at.
    pub commit_bytes: Option<u64>,
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
}

impl Coverage {
    /// Whether this check is watched.
    #[must_use]
    pub fn sees(&self, check: Check) -> bool {
        self.hooked.contains(&check)
    }
}
