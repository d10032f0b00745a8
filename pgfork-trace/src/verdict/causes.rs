//! The catalogue of causes: text, JSON enumeration and documentation come from it.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CauseEntry {
    /// The cause.
    pub cause: Cause,
    /// Its id in output.
    pub id: &'static str,
    /// One line: what it is.
    pub title: &'static str,
    /// errno that the process gets.
    pub errno: &'static str,
    /// Kernel function of the check.
    pub function: &'static str,
    /// What it means, for a database administrator.
    pub meaning: &'static str,
}

const CATALOGUE: &[CauseEntry] = &[
    CauseEntry {
        cause: Cause::RlimitNproc,
        id: "rlimit_nproc",
        title: "the user has as many tasks as its process limit allows",
        errno: "EAGAIN",
        function: "is_rlimit_overlimit",
        meaning: "RLIMIT_NPROC (ulimit -u, LimitNPROC=) counts all processes and threads of the user on the host, \
                  also those of other services and containers that run as the same user.",
    },
    CauseEntry {
        cause: Cause::ThreadsMax,
        id: "threads_max",
        title: "kernel.threads-max: the host has as many tasks as it may have",
        errno: "EAGAIN",
        function: "copy_process",
        meaning: "kernel.threads-max: the host has as many tasks as it may have.",
    },
    CauseEntry {
        cause: Cause::PidsCgroupMax,
        id: "pids_cgroup_max",
        title: "a control group has as many tasks as it may have",
        errno: "EAGAIN",
        function: "pids_can_fork",
        meaning: "A limit on the number of tasks (systemd TasksMax, a container's pids limit) is reached in the \
                  postmaster's cgroup or in one above it. Every process and thread in that cgroup counts.",
    },
    CauseEntry {
        cause: Cause::PidSpaceExhausted,
        id: "pid_space_exhausted",
        title: "no process id is left in the pid namespace or one above it",
        errno: "EAGAIN",
        function: "alloc_pid",
        meaning: "No process id is left in the pid namespace or one above it.",
    },
    CauseEntry {
        cause: Cause::SchedDeadlineFork,
        id: "sched_deadline_fork",
        title: "the process runs under SCHED_DEADLINE, which may not fork",
        errno: "EAGAIN",
        function: "sched_fork",
        meaning: "The process runs under SCHED_DEADLINE, which may not fork.",
    },
    CauseEntry {
        cause: Cause::ExecRaceFs,
        id: "exec_race_fs",
        title: "a thread of the process is in execve",
        errno: "EAGAIN",
        function: "copy_fs",
        meaning: "A thread of the process is in execve.",
    },
    CauseEntry {
        cause: Cause::CommitLimit,
        id: "commit_limit",
        title: "strict overcommit, the host's commit limit is reached",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        meaning: "The kernel promises no more memory than CommitLimit, whether or not it is used, and a fork \
                  asks for a copy of all private writable memory of the postmaster. RAM itself may be free.",
    },
    CauseEntry {
        cause: Cause::OvercommitHeuristic,
        id: "overcommit_heuristic",
        title: "heuristic overcommit: one mapping is larger than RAM and swap",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        meaning: "Heuristic overcommit: one mapping is larger than RAM and swap.",
    },
    CauseEntry {
        cause: Cause::MemcgNoVictim,
        id: "memcg_no_victim",
        title: "a memory cgroup is full, and nothing in it may be killed",
        errno: "ENOMEM",
        function: "mem_cgroup_out_of_memory",
        meaning: "A memory cgroup is full, and nothing in it may be killed.",
    },
    CauseEntry {
        cause: Cause::MemcgOomKillDisabled,
        id: "memcg_oom_kill_disabled",
        title: "a memory cgroup (v1) is full, and its OOM killer is turned off",
        errno: "ENOMEM",
        function: "try_charge",
        meaning: "A memory cgroup (v1) is full, and its OOM killer is turned off.",
    },
    CauseEntry {
        cause: Cause::MemcgKmemLimitV1,
        id: "memcg_kmem_limit_v1",
        title: "the kernel memory limit of a memory cgroup (v1, to 5.10) is reached",
        errno: "ENOMEM",
        function: "__memcg_kmem_charge",
        meaning: "The kernel memory limit of a memory cgroup (v1, to 5.10) is reached.",
    },
    CauseEntry {
        cause: Cause::MemcgOomKilledForker,
        id: "memcg_oom_killed_forker",
        title: "the OOM killer of a memory cgroup chose the forking process itself",
        errno: "EINTR",
        function: "copy_process",
        meaning: "The OOM killer of a memory cgroup chose the forking process itself.",
    },
    CauseEntry {
        cause: Cause::MemcgDyingTask,
        id: "memcg_dying_task",
        title: "the process was being killed, and a memory cgroup had no room",
        errno: "ENOMEM",
        function: "try_charge_memcg",
        meaning: "The process was being killed, and a memory cgroup had no room.",
    },
    CauseEntry {
        cause: Cause::KernelMemoryExhausted,
        id: "kernel_memory_exhausted",
        title: "the kernel had no memory for a structure of the new process",
        errno: "ENOMEM",
        function: "copy_process",
        meaning: "The kernel had no memory for a structure of the new process.",
    },
    CauseEntry {
        cause: Cause::KernelStackAllocFailed,
        id: "kernel_stack_alloc_failed",
        title: "the kernel had no memory for the stack of the new process",
        errno: "ENOMEM",
        function: "dup_task_struct",
        meaning: "The kernel had no memory for the stack of the new process.",
    },
    CauseEntry {
        cause: Cause::PageTableAllocFailed,
        id: "page_table_alloc_failed",
        title: "the kernel had no memory for the page tables of the new process",
        errno: "ENOMEM",
        function: "copy_page_range",
        meaning: "The kernel had no memory for the page tables of the new process.",
    },
    CauseEntry {
        cause: Cause::FdTableAllocFailed,
        id: "fd_table_alloc_failed",
        title: "the kernel had no memory for the table of open files",
        errno: "ENOMEM",
        function: "dup_fd",
        meaning: "The kernel had no memory for the table of open files.",
    },
    CauseEntry {
        cause: Cause::NrOpenLowered,
        id: "nr_open_lowered",
        title: "fs.nr_open was lowered below what the process has open",
        errno: "EMFILE",
        function: "dup_fd",
        meaning: "fs.nr_open was lowered below what the process has open.",
    },
    CauseEntry {
        cause: Cause::PidNamespaceDying,
        id: "pid_namespace_dying",
        title: "the init process of the pid namespace is gone",
        errno: "ENOMEM",
        function: "alloc_pid",
        meaning: "The init process of the pid namespace is gone.",
    },
    CauseEntry {
        cause: Cause::PidNamespaceDyingLate,
        id: "pid_namespace_dying_late",
        title: "the init process of the pid namespace went during the fork",
        errno: "ENOMEM",
        function: "copy_process",
        meaning: "The init process of the pid namespace went during the fork.",
    },
    CauseEntry {
        cause: Cause::SeccompDenied,
        id: "seccomp_denied",
        title: "a seccomp filter refused the system call",
        errno: "any",
        function: "__seccomp_filter",
        meaning: "A seccomp filter refused the system call.",
    },
    CauseEntry {
        cause: Cause::PtraceOrUserDispatch,
        id: "ptrace_or_user_dispatch",
        title: "a tracer or syscall user dispatch took the system call",
        errno: "any",
        function: "syscall_trace_enter",
        meaning: "A tracer or syscall user dispatch took the system call.",
    },
    CauseEntry {
        cause: Cause::LsmDenied,
        id: "lsm_denied",
        title: "a security module refused the new process",
        errno: "any",
        function: "security_task_alloc",
        meaning: "A security module refused the new process.",
    },
    CauseEntry {
        cause: Cause::SchedExtRejected,
        id: "sched_ext_rejected",
        title: "a BPF scheduler (sched_ext) refused the new process",
        errno: "any",
        function: "scx_fork",
        meaning: "A BPF scheduler (sched_ext) refused the new process.",
    },
    CauseEntry {
        cause: Cause::PerfInheritFailed,
        id: "perf_inherit_failed",
        title: "inherited perf events could not be set up",
        errno: "ENOMEM",
        function: "perf_event_init_task",
        meaning: "Inherited perf events could not be set up.",
    },
    CauseEntry {
        cause: Cause::AuditAllocFailed,
        id: "audit_alloc_failed",
        title: "the audit context could not be allocated",
        errno: "ENOMEM",
        function: "audit_alloc",
        meaning: "The audit context could not be allocated.",
    },
    CauseEntry {
        cause: Cause::NamespaceDenied,
        id: "namespace_denied",
        title: "a new namespace was asked for and refused",
        errno: "EPERM",
        function: "copy_namespaces",
        meaning: "A new namespace was asked for and refused.",
    },
    CauseEntry {
        cause: Cause::InvalidCloneFlags,
        id: "invalid_clone_flags",
        title: "the flags of clone contradict each other",
        errno: "EINVAL",
        function: "copy_process",
        meaning: "The flags of clone contradict each other.",
    },
    CauseEntry {
        cause: Cause::SetTidConflict,
        id: "set_tid_conflict",
        title: "the pid that clone3 asked for cannot be had",
        errno: "EEXIST",
        function: "alloc_pid",
        meaning: "The pid that clone3 asked for cannot be had.",
    },
    CauseEntry {
        cause: Cause::CloneIntoCgroupFailed,
        id: "clone_into_cgroup_failed",
        title: "the cgroup that clone3 asked for cannot be entered",
        errno: "EBUSY",
        function: "cgroup_can_fork",
        meaning: "The cgroup that clone3 asked for cannot be entered.",
    },
    CauseEntry {
        cause: Cause::FatalSignal,
        id: "fatal_signal",
        title: "the process was being killed while it forked",
        errno: "EINTR",
        function: "copy_process",
        meaning: "The process was being killed while it forked.",
    },
    CauseEntry {
        cause: Cause::SignalRestart,
        id: "signal_restart",
        title: "a signal was pending; the kernel repeats the fork",
        errno: "-513",
        function: "copy_process",
        meaning: "A signal was pending; the kernel repeats the fork.",
    },
    CauseEntry {
        cause: Cause::ExecAfterSetuidNproc,
        id: "exec_after_setuid_nproc",
        title: "setuid passed RLIMIT_NPROC, and execve refuses",
        errno: "EAGAIN",
        function: "do_execveat_common",
        meaning: "setuid passed RLIMIT_NPROC, and execve refuses.",
    },
    CauseEntry {
        cause: Cause::RlimitAs,
        id: "rlimit_as",
        title: "RLIMIT_AS: the address space of the process is full",
        errno: "ENOMEM",
        function: "may_expand_vm",
        meaning: "RLIMIT_AS: the address space of the process is full.",
    },
    CauseEntry {
        cause: Cause::RlimitData,
        id: "rlimit_data",
        title: "RLIMIT_DATA: the private writable memory of the process is full",
        errno: "ENOMEM",
        function: "may_expand_vm",
        meaning: "RLIMIT_DATA: the private writable memory of the process is full.",
    },
    CauseEntry {
        cause: Cause::MaxMapCount,
        id: "max_map_count",
        title: "vm.max_map_count: the process has as many mappings as it may have",
        errno: "ENOMEM",
        function: "do_mmap",
        meaning: "vm.max_map_count: the process has as many mappings as it may have.",
    },
    CauseEntry {
        cause: Cause::RlimitMemlock,
        id: "rlimit_memlock",
        title: "RLIMIT_MEMLOCK: the process may not lock more memory",
        errno: "EAGAIN",
        function: "mlock_future_ok",
        meaning: "RLIMIT_MEMLOCK: the process may not lock more memory.",
    },
    CauseEntry {
        cause: Cause::HugetlbExhausted,
        id: "hugetlb_exhausted",
        title: "the pool of huge pages is used up",
        errno: "ENOMEM",
        function: "hugetlb_reserve_pages",
        meaning: "The pool of huge pages is used up.",
    },
    CauseEntry {
        cause: Cause::AddressSpaceExhausted,
        id: "address_space_exhausted",
        title: "no hole in the address space is large enough",
        errno: "ENOMEM",
        function: "get_unmapped_area",
        meaning: "No hole in the address space is large enough.",
    },
    CauseEntry {
        cause: Cause::StackGrowthRefused,
        id: "stack_growth_refused",
        title: "the stack had to grow and could not",
        errno: "SIGSEGV",
        function: "expand_downwards",
        meaning: "The stack had to grow and could not.",
    },
    CauseEntry {
        cause: Cause::ShmCommitRefused,
        id: "shm_commit_refused",
        title: "shared memory did not fit under the commit limit",
        errno: "ENOMEM",
        function: "__vm_enough_memory",
        meaning: "Shared memory did not fit under the commit limit.",
    },
    CauseEntry {
        cause: Cause::ShmTmpfsFull,
        id: "shm_tmpfs_full",
        title: "the tmpfs of /dev/shm is full",
        errno: "ENOSPC",
        function: "shmem_get_folio",
        meaning: "The tmpfs of /dev/shm is full.",
    },
    CauseEntry {
        cause: Cause::MemcgOomKill,
        id: "memcg_oom_kill",
        title: "the OOM killer of a memory cgroup killed a process",
        errno: "SIGKILL",
        function: "oom_kill_process",
        meaning: "The OOM killer of a memory cgroup killed a process.",
    },
    CauseEntry {
        cause: Cause::GlobalOomKill,
        id: "global_oom_kill",
        title: "the OOM killer of the host killed a process",
        errno: "SIGKILL",
        function: "oom_kill_process",
        meaning: "The OOM killer of the host killed a process.",
    },
    CauseEntry {
        cause: Cause::Unknown,
        id: "unknown",
        title: "no check could be proven to have refused",
        errno: "any",
        function: "",
        meaning: "The kernel refused the fork at a place that could not be identified. What was seen and what was \
                  ruled out is listed.",
    },
];

impl Cause {
    /// Its entry in the catalogue.
    #[must_use]
    pub fn entry(self) -> &'static CauseEntry {
        // A test holds the catalogue to one entry for each cause.
        CATALOGUE
            .iter()
            .find(|entry| entry.cause == self)
            .unwrap_or(&CATALOGUE[CATALOGUE.len() - 1])
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
        for entry in CATALOGUE {
            assert_eq!(entry.cause.entry(), entry);
            assert_eq!(serde_json::to_value(entry.cause).unwrap(), entry.id);
        }
    }
}
