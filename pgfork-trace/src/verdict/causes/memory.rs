//! Memory cgroups, and the kernel's own memory.

use super::{Cause, CauseEntry};

pub(super) const ENTRIES: &[CauseEntry] = &[
    CauseEntry {
        cause: Cause::MemcgNoVictim,
        id: "memcg_no_victim",
        title: "a memory cgroup is full, and nothing in it may be killed",
        errno: "ENOMEM",
        function: "mem_cgroup_out_of_memory",
        evidence: "Observed: mem_cgroup_out_of_memory returned false in a fork that ended with ENOMEM, whatever stage \
                   it was at; the cgroup is its argument. Deduced (tracepoint): memory was reclaimed for this fork, \
                   and the kernel log says \"Out of memory and no killable processes\".",
        meaning: "The memory limit of the service or container is reached, and every process in it is protected from \
                  the OOM killer (oom_score_adj -1000), so the kernel refuses the fork instead of killing one. The \
                  usual reason is OOMScoreAdjust=-1000 on the postmaster without PG_OOM_ADJUST_FILE for its children.",
        remedy: "Raise MemoryMax= (or the container's memory limit), or lower what is used; start the server with \
                 PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj and PG_OOM_ADJUST_VALUE=0 so that only the postmaster is \
                 protected.",
        verify: "memory.current stays below memory.max; cat /proc/PID_OF_A_BACKEND/oom_score_adj is above -1000",
    },
    CauseEntry {
        cause: Cause::MemcgOomKillDisabled,
        id: "memcg_oom_kill_disabled",
        title: "a memory cgroup (v1) is full, and its OOM killer is turned off",
        errno: "ENOMEM",
        function: "try_charge",
        evidence: "Observed with the armed checks: the charge was refused, and the cgroup at its limit has \
                   oom_kill_disable set. Deduced: memory was reclaimed from that cgroup, the OOM killer was not asked, \
                   and the fork ended with ENOMEM.",
        meaning: "The memory limit of a cgroup (v1) is reached, and memory.oom_control forbids to kill anything in it. \
                  A fork is refused then, and processes that touch new memory stop until there is some.",
        remedy: "Raise memory.limit_in_bytes, or turn the OOM killer on again: echo 0 > memory.oom_control.",
        verify: "grep oom_kill_disable .../memory.oom_control; memory.usage_in_bytes stays below memory.limit_in_bytes",
    },
    CauseEntry {
        cause: Cause::MemcgKmemLimitV1,
        id: "memcg_kmem_limit_v1",
        title: "the kernel memory limit of a memory cgroup (v1, to 5.15) is reached",
        errno: "ENOMEM",
        function: "__memcg_kmem_charge",
        evidence: "Observed with the armed checks: __memcg_kmem_charge returned -ENOMEM while the charge to the \
                   cgroup's memory itself was not refused. Deduced: kernel memory is at memory.kmem.limit_in_bytes, \
                   and nothing else refused. Without effect since 5.16.",
        meaning: "A container has a separate limit for the kernel's memory on its behalf (docker --kernel-memory): \
                  stacks, page tables, open files. A fork needs some, and it is refused at once, even though the \
                  memory limit itself is not reached.",
        remedy: "Remove the limit: echo -1 > memory.kmem.limit_in_bytes, and start the container without \
                 --kernel-memory.",
        verify: "cat .../memory.kmem.failcnt   (does not grow any more)",
    },
    CauseEntry {
        cause: Cause::MemcgOomKilledForker,
        id: "memcg_oom_killed_forker",
        title: "the OOM killer of a memory cgroup chose the forking process itself",
        errno: "EINTR",
        function: "copy_process",
        evidence: "Deduced: the fork ended with EINTR, which only a fatal signal gives there, and the kernel log says \
                   that the OOM killer of a memory cgroup killed this pid.",
        meaning: "The memory limit of the service or container is reached, and the kernel killed the very process \
                  that was forking. If that is the postmaster, the whole server goes down with it.",
        remedy: "Raise MemoryMax=, or lower what is used; protect the postmaster with OOMScoreAdjust=-900 and reset \
                 its children with PG_OOM_ADJUST_FILE.",
        verify: "journalctl -k --grep 'Memory cgroup out of memory'   (no new line)",
    },
    CauseEntry {
        cause: Cause::MemcgDyingTask,
        id: "memcg_dying_task",
        title: "the process was being killed, and a memory cgroup had no room",
        errno: "ENOMEM",
        function: "try_charge_memcg",
        evidence: "Deduced: memory was reclaimed for the fork, the OOM killer is on and did not fail, and yet the \
                   charge was refused (seen with the armed checks), or the kernel log names a victim and the fork \
                   ended with ENOMEM. Only a task that is being killed is refused then: for example one that shares \
                   its memory with the victim.",
        meaning: "Somebody killed the process while it forked, and its memory cgroup was full at that moment. The \
                  refused fork is a consequence, not the problem.",
        remedy: "None for the fork; find out who killed the process, and give the cgroup more memory if it was the \
                 OOM killer.",
        verify: "journalctl -k --grep 'out of memory'   (no new line)",
    },
    CauseEntry {
        cause: Cause::KernelMemoryExhausted,
        id: "kernel_memory_exhausted",
        title: "the kernel had no memory for a structure of the new process",
        errno: "ENOMEM",
        function: "copy_process",
        evidence: "Observed: the function that allocates returned an error, and no memory cgroup refused. Deduced: \
                   ENOMEM, no limit refused, and all that could was watched; the stage says how far the fork came. \
                   The kernel log has \"page allocation failure\" for larger allocations.",
        meaning: "The kernel itself ran out of memory for one of the many small structures of a process. The host is \
                  out of memory, or its memory is in too small pieces; no limit of PostgreSQL or systemd is involved.",
        remedy: "Free memory on the host: end idle connections, lower shared_buffers and work_mem, add RAM; raise \
                 vm.min_free_kbytes.",
        verify: "grep -E 'MemAvailable|Slab|SUnreclaim' /proc/meminfo; journalctl -k --grep 'page allocation failure'",
    },
    CauseEntry {
        cause: Cause::KernelStackAllocFailed,
        id: "kernel_stack_alloc_failed",
        title: "the kernel had no memory for the stack of the new process",
        errno: "ENOMEM",
        function: "dup_task_struct",
        evidence: "Deduced, as the allocation is inline: arch_dup_task_struct succeeded, copy_creds was not reached, \
                   and no memory cgroup refused.",
        meaning: "Every process has a stack of 16 KiB in the kernel, and there was no memory for it. The host is out \
                  of memory, or of room for such stacks.",
        remedy: "Free memory on the host: end idle connections, lower shared_buffers and work_mem, add RAM; raise \
                 vm.min_free_kbytes.",
        verify: "grep -E 'MemAvailable|KernelStack|VmallocUsed' /proc/meminfo; journalctl -k --grep vmalloc",
    },
    CauseEntry {
        cause: Cause::PageTableAllocFailed,
        id: "page_table_alloc_failed",
        title: "the kernel had no memory for the page tables of the new process",
        errno: "ENOMEM",
        function: "copy_page_range",
        evidence: "Observed: pgd_alloc, or with the armed checks copy_page_range, returned an error, and no memory \
                   cgroup refused.",
        meaning: "A fork copies the tables that say where the postmaster's private memory is, and there was no memory \
                  for the copy. Shared buffers need none; a large private memory of the postmaster does.",
        remedy: "Free memory on the host, and keep the postmaster's private memory small (shared_preload_libraries); \
                 huge pages need fewer tables.",
        verify: "grep -E 'MemAvailable|PageTables' /proc/meminfo; grep VmPTE /proc/PID/status",
    },
    CauseEntry {
        cause: Cause::FdTableAllocFailed,
        id: "fd_table_alloc_failed",
        title: "the kernel had no memory for the table of open files",
        errno: "ENOMEM",
        function: "dup_fd",
        evidence: "Observed: dup_fd returned an error, the fork ended with ENOMEM, and no memory cgroup refused.",
        meaning: "A fork copies the list of files that the postmaster has open, and there was no memory for the copy. \
                  That is a problem only with very many open files, or on a host without memory.",
        remedy: "Lower max_files_per_process, close what need not be open, and free memory on the host.",
        verify: "grep FDSize /proc/PID/status; grep MemAvailable /proc/meminfo",
    },
    CauseEntry {
        cause: Cause::NrOpenLowered,
        id: "nr_open_lowered",
        title: "fs.nr_open was lowered below what the process has open",
        errno: "EMFILE",
        function: "dup_fd",
        evidence: "Observed: dup_fd returned an error, and the fork ended with EMFILE. Deduced (tracepoint): EMFILE, and \
                   the table of open files is larger than fs.nr_open.",
        meaning: "Somebody lowered the host's setting fs.nr_open after the postmaster had opened files with higher \
                  numbers, so that its list of open files cannot be copied any more. Every fork fails until it is \
                  raised again.",
        remedy: "Set fs.nr_open back to its former value (1048576 by default).",
        verify: "sysctl fs.nr_open; ls /proc/PID/fd | sort -n | tail -1   (the first is larger)",
    },
];
