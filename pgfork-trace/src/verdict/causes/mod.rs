//! The catalogue of causes: text, JSON enumeration and documentation come from it.

mod limits;
mod memory;
mod process;
mod requests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a fork was refused. Ids are never renamed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// `RLIMIT_NPROC`: the user has as many tasks as the process may have.
    RlimitNproc,
    /// kernel.threads-max: the host has as many tasks as it may have.
    ThreadsMax,
    /// A pids cgroup is full: its own limit or that of any ancestor.
    PidsCgroupMax,
    /// No process id is left in the pid namespace or one above it.
    PidSpaceExhausted,
    /// The process runs under `SCHED_DEADLINE`, which may not fork.
    SchedDeadlineFork,
    /// A thread of the process is in execve.
    ExecRaceFs,
    /// Strict overcommit (vm.overcommit_memory = 2): the commit limit is reached.
    CommitLimit,
    /// Heuristic overcommit: one mapping is larger than RAM and swap.
    OvercommitHeuristic,
    /// A memory cgroup is full, and nothing in it may be killed.
    MemcgNoVictim,
    /// A memory cgroup (v1) is full, and its OOM killer is turned off.
    MemcgOomKillDisabled,
    /// The kernel memory limit of a memory cgroup (v1, to 5.10) is reached.
    MemcgKmemLimitV1,
    /// The OOM killer of a memory cgroup chose the forking process itself.
    MemcgOomKilledForker,
    /// The process was being killed, and a memory cgroup had no room.
    MemcgDyingTask,
    /// The kernel had no memory for a structure of the new process.
    KernelMemoryExhausted,
    /// The kernel had no memory for the stack of the new process.
    KernelStackAllocFailed,
    /// The kernel had no memory for the page tables of the new process.
    PageTableAllocFailed,
    /// The kernel had no memory for the table of open files.
    FdTableAllocFailed,
    /// fs.nr_open was lowered below what the process has open.
    NrOpenLowered,
    /// The init process of the pid namespace is gone.
    PidNamespaceDying,
    /// The init process of the pid namespace went during the fork.
    PidNamespaceDyingLate,
    /// A seccomp filter refused the system call.
    SeccompDenied,
    /// A tracer or syscall user dispatch took the system call.
    PtraceOrUserDispatch,
    /// A security module refused the new process.
    LsmDenied,
    /// A BPF scheduler (sched_ext) refused the new process.
    SchedExtRejected,
    /// Inherited perf events could not be set up.
    PerfInheritFailed,
    /// The audit context could not be allocated.
    AuditAllocFailed,
    /// A new namespace was asked for and refused.
    NamespaceDenied,
    /// The flags of clone contradict each other.
    InvalidCloneFlags,
    /// The pid that clone3 asked for cannot be had.
    SetTidConflict,
    /// The cgroup that clone3 asked for cannot be entered.
    CloneIntoCgroupFailed,
    /// The process was being killed while it forked.
    FatalSignal,
    /// A signal was pending; the kernel repeats the fork.
    SignalRestart,
    /// setuid passed `RLIMIT_NPROC`, and execve refuses.
    ExecAfterSetuidNproc,
    /// `RLIMIT_AS`: the address space of the process is full.
    RlimitAs,
    /// `RLIMIT_DATA`: the private writable memory of the process is full.
    RlimitData,
    /// vm.max_map_count: the process has as many mappings as it may have.
    MaxMapCount,
    /// `RLIMIT_MEMLOCK`: the process may not lock more memory.
    RlimitMemlock,
    /// The pool of huge pages is used up.
    HugetlbExhausted,
    /// No hole in the address space is large enough.
    AddressSpaceExhausted,
    /// The stack had to grow and could not.
    StackGrowthRefused,
    /// Shared memory did not fit under the commit limit.
    ShmCommitRefused,
    /// The tmpfs of /dev/shm is full.
    ShmTmpfsFull,
    /// The OOM killer of a memory cgroup killed a process.
    MemcgOomKill,
    /// The OOM killer of the host killed a process.
    GlobalOomKill,
    /// No cause could be proven.
    Unknown,
}

/// One entry of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CauseEntry {
    /// The cause.
    #[serde(skip)]
    pub cause: Cause,
    /// Its id in output.
    pub id: &'static str,
    /// One line: what it is.
    pub title: &'static str,
    /// errno that the process gets.
    pub errno: &'static str,
    /// Kernel function of the check.
    pub function: &'static str,
    /// What proves it, and by which method how surely.
    pub evidence: &'static str,
    /// What it means, for a database administrator.
    pub meaning: &'static str,
    /// What to change.
    pub remedy: &'static str,
    /// How to see that the remedy worked.
    pub verify: &'static str,
}

const FAMILIES: [&[CauseEntry]; 4] = [
    limits::ENTRIES,
    memory::ENTRIES,
    process::ENTRIES,
    requests::ENTRIES,
];

/// The whole catalogue: limits, memory, vetoes and states, requests of running processes.
pub fn catalogue() -> impl Iterator<Item = &'static CauseEntry> {
    FAMILIES.into_iter().flatten()
}

impl Cause {
    /// Its entry in the catalogue.
    #[must_use]
    pub fn entry(self) -> &'static CauseEntry {
        // A test holds the catalogue to one entry for each cause.
        catalogue()
            .find(|entry| entry.cause == self)
            .unwrap_or(&limits::ENTRIES[0])
    }

    /// Its id in output.
    #[must_use]
    pub fn id(self) -> &'static str {
        self.entry().id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_json_values() {
        for entry in catalogue() {
            assert_eq!(entry.cause.entry(), entry);
            assert_eq!(serde_json::to_value(entry.cause).unwrap(), entry.id);
        }
    }

    fn sentences(text: &str) -> usize {
        text.split(". ").count()
    }

    #[test]
    fn every_cause_has_its_entry_and_every_entry_is_whole() {
        let schema = schemars::schema_for!(Cause).to_value();
        let ids: Vec<&str> = schema["oneOf"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|one| one["const"].as_str())
            .collect();
        assert_eq!(ids.len(), catalogue().count());
        for id in ids {
            assert!(catalogue().any(|entry| entry.id == id), "{id}");
        }
        for entry in catalogue() {
            for text in [
                entry.title,
                entry.errno,
                entry.evidence,
                entry.meaning,
                entry.remedy,
                entry.verify,
            ] {
                assert!(!text.is_empty() && !text.contains("  \n"), "{}", entry.id);
            }
            for sentences in [entry.evidence, entry.meaning, entry.remedy] {
                assert!(sentences.ends_with('.'), "{}: {sentences}", entry.id);
            }
            assert_eq!(sentences(entry.meaning), 2, "{}", entry.meaning);
            assert_eq!(entry.function.is_empty(), entry.cause == Cause::Unknown);
        }
    }
}
